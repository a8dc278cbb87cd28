"""What a data kind is, and what it hands over.

Shapes: N images, C channels, H = W = the task's resolution in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onenet_bench.errors import DataError
from onenet_bench.task import Task

SPLITS = ("train", "validation", "test")
T = TypeVar("T")


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """The items in an order that is the seed's alone, on every machine."""
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed])))
    return [items[place] for place in random.permutation(len(items))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Images and their masks, row by row. The arrays may be read-only memory maps."""

    images: NDArray[np.uint8]  # (N, C, H, W), C-contiguous
    masks: NDArray[np.uint8]  # (N, H, W) of class indices, or the task's ignore_index
    names: tuple[str, ...]  # N of them

    def __post_init__(self) -> None:
        images, masks = self.images, self.masks
        if images.dtype != np.uint8 or masks.dtype != np.uint8:
            raise DataError(f"images and masks are of uint8, but got {images.dtype} and {masks.dtype}")
        if images.ndim != 4 or masks.shape != (len(images), *images.shape[2:]):
            raise DataError(f"images are (N, C, H, W) and masks (N, H, W), but got {images.shape} and {masks.shape}")
        if not images.flags.c_contiguous:
            raise DataError("images must be C-contiguous; pass them through numpy.ascontiguousarray")
        if len(self.names) != len(images):
            raise DataError(f"every image has one name, but got {len(self.names)} for {len(images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Samples:
        """The first ``count`` of them."""
        return replace(self, images=self.images[:count], masks=self.masks[:count], names=self.names[:count])


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The three parts of a data set. No image is in two of them; ``test`` may be empty."""

    train: Samples
    validation: Samples
    test: Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What ``open_task`` was asked for. ``where`` is what stands after the colon of ``data``.

    ``train``, ``validation`` and ``test`` are wanted numbers of images; None leaves the choice to the data. ``white``
    is the value of 16-bit images that becomes 255; None: the largest in any of them. With ``fewer`` what is found will
    do where it is less than was wanted.
    """

    data: str
    where: str
    resolution: int
    seed: int
    train: int | None
    validation: int | None
    test: int | None
    white: int | None = None
    fewer: bool = False

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise DataError(f"a resolution is at least 1 pixel, but got {self.resolution}")
        if self.seed < 0:
            raise DataError(f"a seed is at least 0, but got {self.seed}")
        for split in SPLITS:
            size = getattr(self, split)
            least = 0 if split == "test" else 1
            if size is not None and size < least:
                raise DataError(f"the {split} split holds at least {least} images, but {size} were asked for")

    def sizes(self, found: Mapping[str, int], root: Path) -> dict[str, int]:
        """How many images of each split are used, of the numbers ``found`` at ``root``."""
        sizes = {}
        for split in SPLITS:
            wanted = getattr(self, split)
            sizes[split] = found[split] if wanted is None else wanted
            if sizes[split] > found[split] and not self.fewer:
                raise DataError(f"the {split} split of {root} has {found[split]} images, but {wanted} were asked for")
            sizes[split] = min(sizes[split], found[split])
        return sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A kind of data: a row of ``onenet_bench.data.SOURCES``.

    ``open`` looks at what is there and returns the Task with all sizes, the class names and the content
    digest filled in. ``load`` returns the pixels of a Task that ``open`` has made. Both raise DataError. ``notes`` are
    sentences on what is odd about such a Task, and yet may be meant.
    """

    summary: str  # one line for a list of kinds; begins with how the name is written
    open: Callable[[Request], Task]
    load: Callable[[Task], Splits]
    notes: Callable[[Task], tuple[str, ...]] = lambda _: ()
