"""The only bridge between the wings: from a spec, a task and a recipe to a Record."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from onenet_bench import costs, data, models, training
from onenet_bench.errors import LedgerError, is_of_memory
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCORES, Machine, Record, Status, provenance
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's numbers for a disk, or one's share of it, that is full."""


def evaluate(
    spec: NetSpec,
    task: Task,
    recipe: Recipe,
    *,
    trial: int = 0,
    choices: Mapping[str, Any] | None = None,
    device: str = "cpu",
    run: Path | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    on_epoch: Callable[[Mapping[str, Any]], bool] | None = None,
    checkpoints: training.Checkpointing | None = None,
    test: bool = False,
    splits: data.Splits | None = None,
    again: bool = False,
    compiled: bool = False,
) -> Record:
    """Train and score ``spec``; the Record is complete, stopped (``on_epoch`` returned False) or failed.

    Whatever goes wrong in training becomes a failed Record with its reason; a bad spec, recipe or data raise, and a
    full disk raises LedgerError, for it is not the net's fault. With a folder ``run``, weights and predictions are left
    in it and named in the Record's artifacts. ``weights``, by the names of the net's state dict, are what training
    starts from; all others are drawn. ``on_epoch`` gets a dict of epoch, step, loss, seconds and the scores of that
    moment. With ``checkpoints`` an interrupted training goes on; history and seconds are those of all parts. With
    ``again`` ``on_epoch`` then hears once more of the last epoch before that, for its answer may have been lost. With
    ``test`` the test split is scored too, if there is one. ``splits`` are the task's pixels, for who has them at hand
    already. ``compiled`` is ``training.fit``'s.
    """
    began = time.perf_counter()
    earlier: Mapping[str, Any] = training.read_facts(checkpoints.folder) if checkpoints else {}
    began -= earlier.get("seconds", 0.0)
    counted = costs.count_training(spec, task.resolution, recipe)
    if checkpoints:
        asked = {"spec": spec.to_dict(), "task": task.to_dict(), **checkpoints.asked}
        checkpoints = replace(checkpoints, asked=asked)
    splits = splits or data.load(task)
    data.check_labels(task, splits, "train", "validation", *(["test"] if test else []))
    record = Record(
        trial=trial, spec=spec, choices=dict(choices or {}), task=task, recipe=recipe, machine=machine(device),
        status=Status.FAILED, costs=counted, provenance=provenance(),
    )  # fmt: skip
    history: list[Mapping[str, Any]] = [_epoch(training.Progress(**row)) for row in earlier.get("history", ())]

    def heard(progress: training.Progress) -> bool:
        if progress.epoch > len(history):
            history.append(_epoch(progress))
        elif not again:
            return True
        return on_epoch is None or on_epoch(history[-1])

    try:
        torch.manual_seed(recipe.seed)
        net = models.build(spec)
        net.load_state_dict(weights or {}, strict=False)
        trained = training.fit(
            net, splits.train, splits.validation, recipe,
            classes=task.classes, background=task.background, ignore_index=task.ignore_index, device=device,
            on_epoch=heard, checkpoints=checkpoints, compiled=compiled,
        )  # fmt: skip
        on_test = (
            training.evaluate_split(
                net, splits.test, classes=task.classes, background=task.background, ignore_index=task.ignore_index,
                device=device,
            )
            if test and task.test and not trained.stopped
            else {}
        )  # fmt: skip
        artifacts = _keep(net, splits.validation.images[task.shown], record, run, device) if run else {}
    except (RuntimeError, MemoryError, ArithmeticError, OSError, SafetensorError) as error:  # what training can die of
        if getattr(error, "errno", None) in FULL or "No space left" in str(error):  # safetensors has no number for it
            raise LedgerError(
                f"a trial's files need room on the disk, but {run} has none left; make room and use --resume"
            ) from error
        return replace(record, reason=_reason(error), history=tuple(history), seconds=time.perf_counter() - began)
    return replace(
        record,
        status=Status.STOPPED if trained.stopped else Status.COMPLETE,
        reason="stopped early" if trained.stopped else "",
        scores=_known(trained.scores),
        test_scores=_known(on_test),
        per_class={name: row for name, row in trained.scores["per_class"].items() if any(v is not None for v in row)},
        history=tuple(map(_epoch, trained.history)),
        seconds=time.perf_counter() - began,
        artifacts=artifacts,
    )


def _known(scores: training.SplitScores) -> dict[str, float]:
    return {name: value for name in SCORES if (value := scores.get(name)) is not None}


def _epoch(progress: training.Progress) -> dict[str, Any]:
    return {"epoch": progress.epoch, "step": progress.step, "loss": progress.loss, "seconds": progress.seconds,
            **_known(progress.scores)}  # fmt: skip


def machine(device: str) -> Machine:
    """This machine, with its GPU where ``device`` is one."""
    here = Machine.here()
    return replace(here, gpu=torch.cuda.get_device_name(device)) if device.startswith("cuda") else here


def _keep(net: models.UNet, images: Any, record: Record, run: Path, device: str) -> dict[str, str]:
    """Predictions (S, H', W') of the shown images, and the weights."""
    predictions, weights = f"predictions/{record.trial:04d}.npz", f"weights/{record.trial:04d}.safetensors"
    (run / "predictions").mkdir(exist_ok=True)
    np.savez_compressed(run / predictions, predictions=training.predict(net, images, device=device))
    facts = {"task": record.task.to_dict(), "recipe": record.recipe.to_dict(), "machine": record.machine.to_dict()}
    models.save_checkpoint(net, run / weights, facts)
    return {"predictions": predictions, "weights": weights}


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    if is_of_memory(error):
        return f"out of memory: {text}"
    return text if isinstance(error, training.DivergedError) else f"{type(error).__name__}: {text}"
