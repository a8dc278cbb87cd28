"""Where the time of a training step goes: a short training by ``fit`` itself, its parts timed as they end.

A GPU is waited for at the end of every part, so that each has its own time; what overlaps in training proper then does
not, and a step takes a little longer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from onenet_bench.errors import RecipeError
from onenet_bench.recipe import Recipe
from onenet_bench.training.loop import Samples, fit

PARTS = {
    "data": "gathering the batch, copying it to the device, augmentation",
    "forward": "the net and the loss",
    "backward": "gradients",
    "optimiser": "the new weights",
}
"""What ``fit`` marks, in order."""

WARM_UP = 5
"""Steps that are not timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepProfile:
    """Seconds of each part of ``PARTS``, step by step, for steps of ``batch`` images."""

    batch: int
    seconds: Mapping[str, tuple[float, ...]]

    @property
    def steps(self) -> int:
        return len(self.seconds["data"])

    def share(self, part: str) -> float:
        """Of the time of all steps, what ``part`` takes, 0 to 1."""
        return sum(self.seconds[part]) / sum(map(sum, self.seconds.values()))

    @property
    def step_ms(self) -> float:
        """The median of a whole step."""
        return 1e3 * median(map(sum, zip(*self.seconds.values(), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        parts = {
            part: {"median_ms": 1e3 * median(seconds), "share": self.share(part), "ms": [1e3 * s for s in seconds]}
            for part, seconds in self.seconds.items()
        }
        return {"batch": self.batch, "steps": self.steps, "step_ms": self.step_ms,
                "images_per_second": 1e3 * self.batch / self.step_ms, "parts": parts}  # fmt: skip


class _Stopwatch:
    """Hears the marks of ``fit``."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self._device = device
        self._last = 0.0

    def __call__(self, part: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if part in self.seconds:
            self.seconds[part].append(now - self._last)
        self._last = now


def profile(
    net: nn.Module,
    train: Samples,
    validation: Samples,
    recipe: Recipe,
    *,
    steps: int = 20,
    classes: int,
    background: int = 0,
    ignore_index: int = 255,
    device: str | torch.device = "cpu",
) -> StepProfile:
    """Train ``net`` for a few steps by ``recipe`` and time the parts of ``steps`` of them; the net's weights move.

    ``validation`` is not part of it: a single image will do. Raises RecipeError for less than one step, and what
    ``fit`` raises.
    """
    if steps < 1:
        raise RecipeError(f"a profile is of at least one step, but got {steps}")
    watch = _Stopwatch(torch.device(device))
    short = replace(recipe, steps=WARM_UP + steps, epochs=1, patience=0, keep="last")
    fit(net, train, validation, short, classes=classes, background=background, ignore_index=ignore_index,
        device=device, mark=watch)  # fmt: skip
    return StepProfile(
        batch=min(recipe.batch, len(train.images)),
        seconds={part: tuple(rows[WARM_UP:]) for part, rows in watch.seconds.items()},
    )
