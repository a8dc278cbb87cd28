"""Run folders for the tests of pages: written through the real Ledger, with real specs and real costs, and with
invented scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onenet_bench.budget import Budget
from onenet_bench.costs import count
from onenet_bench.ledger import Ledger
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCHEMA, Costs, Machine, Record, Status
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from onenet_bench.task import Task

RESOLUTION = 64
MACHINE = Machine(system="Linux-6.1", cpu="Example CPU", cores=8, memory_gib=31.0)
BUDGET = Budget(cost="parameters", limit=1.2e6)
CLASSES = ("background", "disc", "ring", "cross")


def net(depth: int, width: int, kernel: int, decoder: str, kind: str) -> NetSpec:
    widths = [width * 2**i for i in range(depth + 1)]
    return NetSpec(
        classes=len(CLASSES),
        stem=StemSpec(kind="onenet1d" if kind == "onenet1d" else "conv2d", channels=width, repeat=1),
        encoder=tuple(
            StageSpec(kind=kind, channels=c, spatial_kernel=kernel if kind == "onenet1d" else None) for c in widths[1:]
        ),
        decoder=tuple(StageSpec(kind=decoder, channels=c) for c in reversed(widths[:-1])),
    )


def task(class_names: Sequence[str] = CLASSES) -> Task:
    return Task(
        data="synthetic", content="0f1e2d3c4b5a", in_channels=3, class_names=tuple(class_names),
        resolution=RESOLUTION, train=256, validation=64, test=64,
    )  # fmt: skip


def scenes(seed: int, samples: int = 4) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Discs, rings and crosses before a noisy background: images (S, 3, H, W) and masks (S, H, W)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:RESOLUTION, :RESOLUTION]
    images, masks = [], []
    for _ in range(samples):
        mask = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
        for kind in (1, 2, 3, random.integers(1, 4)):
            cx, cy, r = random.integers(12, 52), random.integers(12, 52), random.integers(7, 13)
            distance = np.hypot(x - cx, y - cy)
            cross = ((abs(x - cx) < r / 3) | (abs(y - cy) < r / 3)) & (distance < r)
            mask[{1: distance < r, 2: (distance < r) & (distance > r / 2), 3: cross}[int(kind)]] = kind
        mask[:3] = 255
        colours = np.array([[90, 96, 110], [200, 120, 80], [110, 170, 120], [120, 120, 200]])
        pixels = colours[np.where(mask == 255, 0, mask)] + random.normal(0, 14, (RESOLUTION, RESOLUTION, 3))
        images.append(pixels.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
        masks.append(mask)
    return np.stack(images), np.stack(masks)


def scores_of(quality: float) -> dict[str, float]:
    return {
        "miou": quality,
        "miou_fg": quality * 0.94,
        "dice": 2 * quality / (1 + quality),
        "dice_fg": 1.88 * quality / (1 + 0.94 * quality),
        "pixel_accuracy": 0.7 + 0.28 * quality,
        "ce": 1.1 - quality,
        "ce_weighted": 1.4 - 1.2 * quality,
    }


@dataclass(frozen=True, kw_only=True)
class Written:
    """A run folder and what was put into it."""

    path: Path
    records: tuple[Record, ...]

    def complete(self) -> list[Record]:
        return [record for record in self.records if record.status is Status.COMPLETE]


MakeRun = Callable[..., Written]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A run with every kind of candidate, for reading only."""
    return write_run(tmp_path_factory.mktemp("runs") / "example")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder with ``trials`` candidates; see ``write_run``."""

    def make(name: str = "example", **how: Any) -> Written:
        return write_run(tmp_path / name, **how)

    return make


def write_run(
    path: Path,
    *,
    trials: int = 40,
    complete: int | None = None,
    objectives: Sequence[str] = ("miou", "parameters"),
    ended: bool = True,
    under_way: int = 0,
    samples: bool = True,
    class_names: Sequence[str] = CLASSES,
    summary: str = "depth, width, kernel along the channels and the kind of each side",
    failure: str = "the loss is not finite at epoch 3 (nan)",
    measured: bool = False,
    epochs: int = 12,
) -> Written:
    """Write a run: ``complete`` caps how many candidates get final scores; the others fail."""
    random = np.random.default_rng(7)
    question = task(class_names)
    recipe = Recipe()
    records: list[Record] = []
    finished = 0
    images, masks = scenes(1)
    (path / "predictions").mkdir(parents=True)
    if samples:
        np.savez_compressed(path / "samples.npz", images=images, masks=masks, names=[f"scene {i}" for i in range(4)])
    with Ledger(path, create=True) as book:
        book.append(
            "run",
            {
                "schema": SCHEMA, "name": path.name,
                "space": {"name": "depth_scale", "summary": summary,
                          "choices": {"depth": [2, 3, 4], "width": [4, 8, 16, 32], "kernel": [0, 5, 9]},
                          "net": {"depth": "$depth", "width": "$width", "spatial_kernel": "$kernel"}},
                "task": question.to_dict(), "recipe": recipe.to_dict(), "sampler": "tpe", "seed": 3,
                "objectives": list(objectives), "budget": [str(BUDGET)], "trials": trials,
                "command": "onenet-bench sweep depth_scale --trials 40 --seed 3", "machine": asdict(MACHINE),
                "provenance": {"commit": "1f" * 20, "dirty": False, "time": "2026-01-02T03:04:05+00:00",
                               "versions": {"python": "3.11.2", "onenet-bench": "0.1.0", "torch": "2.6.0"}},
            },
        )  # fmt: skip
        for trial in range(trials):
            kind, decoder = [("onenet1d", "onenet1d"), ("onenet1d", "conv2d"), ("conv2d", "conv2d")][trial % 3]
            choices: dict[str, Any] = {
                "depth": int(random.integers(2, 5)), "width": int(2 ** random.integers(2, 6)),
                "kernel": int(random.choice([0, 5, 9])), "kind": kind, "decoder": decoder,
            }  # fmt: skip
            spec = net(choices["depth"], choices["width"], choices["kernel"], decoder, kind)
            costs = count(spec, RESOLUTION)
            book.append("ask", {"trial": trial, "choices": choices})
            quality = 0.30 + 0.095 * math.log10(costs.macs / 1e4) + 0.02 * (kind == "conv2d")
            quality = float(min(quality + random.normal(0, 0.035), 0.97))
            base = Record(
                trial=trial, spec=spec, choices=choices, task=question, recipe=recipe, machine=MACHINE,
                status=Status.REJECTED, costs=costs,
            )  # fmt: skip
            if costs.parameters > BUDGET.limit:
                record = replace(base, reason=f"over budget: parameters is {costs.parameters:,}, over 1,200,000")
            elif complete is not None and finished >= complete:
                record = replace(base, status=Status.FAILED, reason=failure, seconds=2.0)
            elif trial % 17 == 5:
                record = replace(base, status=Status.FAILED, reason=failure, seconds=3.5)
            elif trial % 11 == 8:
                record = replace(
                    base, status=Status.STOPPED, reason=f"behind {trial % 5 + 3} others at epoch 4", seconds=9.0,
                    history=history(quality, 4),
                )  # fmt: skip
            else:
                finished += 1
                record = completed(base, quality, epochs, random, measured)
                flip = random.random((4, RESOLUTION // 2, RESOLUTION // 2)) < (1 - quality) / 3
                small = np.where(masks == 255, 0, masks)[:, ::2, ::2]
                guess = np.where(flip, random.integers(0, 4, small.shape), small).astype(np.uint8)
                np.savez_compressed(path / record.artifacts["predictions"], predictions=guess)
            records.append(record)
            book.append("tell", {"record": record.to_dict()})
        for trial in range(trials, trials + under_way):
            book.append("ask", {"trial": trial, "choices": {}})
        if ended:
            book.append("end", {"reason": f"{trials} candidates were trained"})
    return Written(path=path, records=tuple(records))


def history(quality: float, epochs: int) -> tuple[dict[str, float], ...]:
    return tuple(
        {"epoch": e, "step": 16 * e, "loss": 1.2 * math.exp(-e / 5) + 0.2, "seconds": 1.5,
         **scores_of(quality * (1 - math.exp(-e / 3)))}
        for e in range(1, epochs + 1)
    )  # fmt: skip


def completed(base: Record, quality: float, epochs: int, random: np.random.Generator, measured: bool) -> Record:
    costs = base.costs
    assert costs is not None
    if measured and base.trial % 2:
        costs = Costs.from_dict({**costs.to_dict(), "latency_ms": round(costs.macs / 4e6 + 1, 3)})
    iou = [min(1.0, quality + 0.1), quality, quality - 0.1, None]
    return replace(
        base, status=Status.COMPLETE, costs=costs, scores=scores_of(quality), seconds=18.0 + epochs,
        history=history(quality, epochs), artifacts={"predictions": f"predictions/{base.trial:04d}.npz"},
        per_class={"iou": iou, "dice": [None if v is None else 2 * v / (1 + v) for v in iou]},
    )  # fmt: skip
