"""Published sets of photographs: each image a JPEG with a mask beside it, split by lists.

**Splits.** The publisher's test list is the test split. A tenth of the training list, chosen by the seed, is the
validation split, so that nothing is ever chosen by the test images. All three are in an order that the seed decides,
so that asking for fewer takes a fair sample.

**Pixels.** Images are read by what they hold, whatever their extension, as RGB. They are stretched to the task's square
by bilinear interpolation, averaging where they shrink; masks take the nearest pixel's class index.

**Content** is a digest of the lists and of the bytes of all images and masks in them. Files are hashed once, and again
when their size or time of change is another. What was decoded is cached under that digest, split by split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onenet_bench.data import _cache
from onenet_bench.data._images import broken, read_indices, read_rgb, square_image, square_mask
from onenet_bench.data._official import Place
from onenet_bench.data.samples import SPLITS, Request, Samples, Source, Splits, shuffled
from onenet_bench.errors import DataError
from onenet_bench.task import Task

VERSION = 1  # of the rules above
IGNORED = 255


class Pair(NamedTuple):
    """An image and its mask. ``classes`` maps every value that the mask may hold to its class index."""

    name: str
    image: Path
    mask: Path
    classes: Mapping[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTree:
    """A tree as its lists describe it. ``training`` and ``test`` are the publisher's lists."""

    place: Place
    class_names: tuple[str, ...]
    background: int
    lists: tuple[Path, Path]
    training: tuple[Pair, ...]
    test: tuple[Pair, ...]

    def __post_init__(self) -> None:
        home: dict[str, Path] = {}
        for file, pairs in zip(self.lists, (self.training, self.test), strict=True):
            for pair in pairs:
                if pair.name in home:
                    raise DataError(
                        f"an image is in one list, once, but {file} lists {pair.name} after {home[pair.name]}"
                    )
                home[pair.name] = file
        if len(self.training) < 2:
            raise DataError(
                f"training and validation need an image each, but {self.lists[0]} names {len(self.training)}; "
                "take it from the archive again"
            )

    def content(self) -> str:
        """A digest of the lists and of everything they name."""
        root = self.place.root
        notes = _cache.Notes("sha256", root, _cache.sha256)
        digests = []
        files = [*self.lists, *(path for pair in (*self.training, *self.test) for path in (pair.image, pair.mask))]
        for path in files:
            try:
                digests.append([path.relative_to(root).as_posix(), notes[path]])
            except OSError as error:
                raise broken(path, error) from error
        return _cache.digest([self.place.kind, VERSION, digests])

    def divide(self, seed: int) -> dict[str, tuple[Pair, ...]]:
        """The pairs of each split."""
        training = shuffled(self.training, seed)
        part = max(1, round(0.1 * len(training)))
        return {
            "train": tuple(training[part:]),
            "validation": tuple(training[:part]),
            "test": tuple(shuffled(self.test, seed)),
        }


def read_pair(pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and mask (H, W) of class indices and IGNORED.

    Raises:
        DataError: one of the files cannot be read, they have two sizes, or the mask holds what is no class.
    """
    image, mask = read_rgb(pair.image), read_indices(pair.mask)
    if mask.shape != image.shape[:2]:
        raise DataError(
            f"an image and its mask have one size, but {pair.image} is {image.shape[1]} x {image.shape[0]} and "
            f"{pair.mask} is {mask.shape[1]} x {mask.shape[0]}; take both from the archive again"
        )
    strange = set(np.unique(mask).tolist()) - pair.classes.keys()
    if strange:
        allowed = ", ".join(map(str, sorted(pair.classes)))
        raise DataError(
            f"masks hold {allowed}, but {pair.mask} holds {min(strange)}; take the mask from the archive again"
        )
    table = np.zeros(256, np.uint8)
    table[list(pair.classes)] = list(pair.classes.values())
    return image, table[mask]


def source(summary: str, find: Callable[[str], PairTree]) -> Source:
    """The row of the table for trees that ``find`` reads."""

    def open_(request: Request) -> Task:
        tree = find(request.where)
        found = {split: len(pairs) for split, pairs in tree.divide(request.seed).items()}
        return Task(
            data=request.data,
            content=tree.content(),
            in_channels=3,
            class_names=tree.place.class_names(tree.class_names),
            resolution=request.resolution,
            seed=request.seed,
            background=tree.background,
            ignore_index=IGNORED,
            **request.sizes(found, tree.place.root),
        )

    def load(task: Task) -> Splits:
        tree = find(task.data.partition(":")[2])
        divided = tree.divide(task.seed)
        return Splits(**{split: _samples(tree.place, divided[split][: getattr(task, split)], task) for split in SPLITS})

    return Source(summary=summary, open=open_, load=load)


def _samples(place: Place, pairs: tuple[Pair, ...], task: Task) -> Samples:
    size, side = len(pairs), task.resolution
    names = tuple(pair.name for pair in pairs)

    def convert(row: int) -> _cache.Rows:
        image, mask = read_pair(pairs[row])
        yield "images", row, square_image(image, side)  # (3, side, side)
        yield "masks", row, square_mask(mask, side)  # (side, side)

    entry = f"{place.kind}-{_cache.digest([task.content, side, names])}"
    shapes = {"images": (size, 3, side, side), "masks": (size, side, side)}
    arrays = _cache.streamed(entry, shapes, size, convert)
    return Samples(images=arrays["images"], masks=arrays["masks"], names=names)
