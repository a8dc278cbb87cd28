"""Recipe: how a net is trained, down to the seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from onenet_bench.errors import RecipeError, known

OPTIMISERS = ("adam", "adamw")
SCHEDULES = {
    "constant": "the learning rate as given, throughout",
    "cosine": "from the learning rate to zero along half a cosine, by step",
    "onecycle": "up to the learning rate over the first 30 % of the steps and down to nearly zero, by step",
    "paper": "x0.1 every 20 epochs from epoch 50 on (arXiv 2411.09838, §4.2)",
}
PRECISIONS = ("float32", "bf16")
AUGMENTATIONS = {
    "flips": "mirrored along the width with probability 1/2 and, independently, along the height",
    "rotations": "turned by 0, 1, 2 or 3 right angles; square images only",
    "scale": "zoomed by 2/3 to 3/2: a random crop enlarged, or the whole shrunk; what lies outside is ignored",
    "intensity": "contrast times 0.7 to 1.4, brightness plus -0.15 to 0.15, of the whole image",
}
"""What is done to an image of a batch, in this order, at random; a recipe joins names by "+", or says "none"."""
KEEPS = {
    "last": "the weights after the last epoch",
    "best": "those of the first epoch with the highest validation mIoU",
}


_KINDS: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}
MOST_IMAGES = 2**31 - 1
"""Of a batch."""
_NOUNS = {int: "a whole number", float: "a number", str: "a text"}


def _one_of(what: str, value: str, values: Iterable[str]) -> None:
    if value not in values:
        raise RecipeError(known(what, value, values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A way to train one net. Length is ``epochs``, or ``steps`` (optimiser steps) where that is not 0.

    ``augmentation`` is "none", or names of ``AUGMENTATIONS`` joined by "+". ``deep_supervision`` is the weight of
    the mean loss of the decoder's other heads, beside the 1 of the net's own; 0 leaves them out. ``patience`` ends
    the training after so many epochs without a higher validation mIoU; 0 never does. ``keep`` says whose epoch's
    weights the trained net has.
    """

    epochs: int = 12
    steps: int = 0
    batch: int = 16
    optimiser: str = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    schedule: str = "onecycle"
    background_weight: float = 0.25
    precision: str = "float32"
    augmentation: str = "flips"
    seed: int = 0
    deep_supervision: float = 0.0
    patience: int = 0
    keep: str = "last"

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kinds = getattr(self, f.name), _KINDS[type(f.default)]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise RecipeError(f"{f.name} of a recipe is {_NOUNS[type(f.default)]}, but got {value!r}")
        _one_of("optimiser", self.optimiser, OPTIMISERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("choice of weights to keep", self.keep, KEEPS)
        names = self.augmentations
        if not AUGMENTATIONS.keys() >= set(names) or len(set(names)) < len(names):
            raise RecipeError(
                f"an augmentation is 'none' or different names joined by '+', but got {self.augmentation!r}; "
                f"known: {', '.join(AUGMENTATIONS)}"
            )
        if self.steps < 0 or (self.steps == 0 and self.epochs < 1):
            raise RecipeError(
                f"training needs at least one epoch or step, but got epochs={self.epochs}, steps={self.steps}"
            )
        if not 1 <= self.batch <= MOST_IMAGES:
            raise RecipeError(f"a batch holds 1 to {MOST_IMAGES:,} images, but got {self.batch}")
        if not 0 < self.learning_rate < math.inf:
            raise RecipeError(f"the learning rate must be above 0 and finite, but got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise RecipeError(f"the weight decay must be at least 0 and finite, but got {self.weight_decay}")
        if not 0 < self.background_weight <= 1:
            raise RecipeError(f"the background's weight lies in (0, 1], but got {self.background_weight}")
        if not 0 <= self.deep_supervision < math.inf:
            raise RecipeError(f"the weight of deep supervision is at least 0, but got {self.deep_supervision}")
        if self.patience < 0:
            raise RecipeError(f"the patience is at least 0 epochs, but got {self.patience}")

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in ``augmentation``; none for "none"."""
        return () if self.augmentation == "none" else tuple(self.augmentation.split("+"))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of ``to_dict``."""
        return cls(**values)


def check_heads(number: int) -> None:
    """Raise RecipeError unless a net with so many heads can be supervised deeply."""
    if number < 2:
        raise RecipeError(
            "deep supervision needs heads at two or more decoder levels, but the net has one; "
            'give its spec heads = "all" and more levels, or leave deep supervision out'
        )


PAPER = Recipe(
    epochs=300,
    batch=32,
    optimiser="adam",
    learning_rate=1e-4,
    weight_decay=0.0,
    schedule="paper",
    augmentation="none",
)
"""The protocol of arXiv 2411.09838, §4.2."""

RECIPES = {"default": Recipe(), "paper": PAPER}
"""Recipes that have a name."""
