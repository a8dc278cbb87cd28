"""``folder:PATH``: a folder of images and a folder of masks.

::

    PATH/
      images/STEM.{png,jpg,jpeg,tif,tiff,npy}
      masks/STEM.{png,tif,tiff,npy}          class indices; 255 counts nowhere
      classes.txt                            optional: a class name a line
      split.json                             optional: {"train": [STEM, ...], "validation": [...], "test": [...]}
      train.txt, validation.txt, test.txt    or this: a stem a line

Lines that begin with ``#``, hidden files (``._*`` among them), folders and files of other kinds are passed over.

**Masks** hold one integer a pixel; of a palette image that is the index, not the colour. JPEG is refused, for it
changes values, and so are colours. The classes are the values found in all masks in use, 255 apart; but masks of 0 and
255 alone are black and white pictures, whose 255 is the object. A single pixel of another value makes 255 count nowhere
in all of them, of which ``notes`` tells where it has more pixels than all other values but 0. Where the classes are
0 to K-1 for some K, a value is its class; otherwise the sorted values are numbered from 0. A class is named
``background`` if its value is 0, else ``value_V``, or as ``classes.txt`` says: K lines are values 0 to K-1, of which
not all need occur, or, if other values occur, the names of the K sorted values. The background is the class named
``background``, else class 0.

**Images** are read by what they hold, not by their extension. Where all have one channel, a net sees one; where some
are in colour, all are read as RGB. Transparency is dropped, EXIF orientation not applied: a mask lies as the pixels in
the file do, and a photograph is refused whose size does not say whether its mask does. ``.npy`` images are (H, W)
or (H, W, C) with any C, of uint8 or uint16. Sixteen-bit images are scaled such that the largest value in any of them
becomes 255; the same factor for all, so that brightness can still be compared. That value is the task's ``white``. A
net sees other data by the white of those it was trained on, where brighter values are 255 too.

**Resolution.** Images are stretched to a square by bilinear interpolation, averaging where they shrink; masks take
the nearest pixel.

**Splits.** If the folder states none, the stems are sorted, shuffled by the seed and cut 70 / 15 / 15, with at least
one image in each. Asking for fewer images takes the first of a split and moves none to another. If it states one, only
the stems in it are used.

**Content** is the sha256 of the names and bytes of all files in use, read anew by every ``open_task`` and
``load``; what was decoded is cached under that digest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onenet_bench.data import _cache
from onenet_bench.data._images import broken, square_image, square_mask
from onenet_bench.data.paths import expanded
from onenet_bench.data.rasters import IGNORED, channels_and_size, read_image, read_mask, to_bytes, unclear_turn
from onenet_bench.data.samples import SPLITS, Request, Samples, Source, Splits, shuffled
from onenet_bench.errors import DataError
from onenet_bench.task import Task

VERSION = 2  # of the rules above
EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
MOST_CLASSES = 64


class _Stated(NamedTuple):
    """A split as a file states it."""

    file: Path
    stems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tree:
    """The files in use, by stem."""

    root: Path
    images: dict[str, Path]
    masks: dict[str, Path]
    stated: dict[str, _Stated]  # the splits; empty where the folder states none
    others: tuple[Path, ...]  # classes.txt and split files

    def content(self) -> str:
        """A digest of the names and bytes of all files in use."""
        total = hashlib.sha256(f"folder {VERSION}".encode())
        for path in sorted([*self.images.values(), *self.masks.values(), *self.others]):
            try:
                own = _cache.sha256(path)
            except OSError as error:
                raise broken(path, error) from error
            total.update(f"{path.relative_to(self.root).as_posix()}\0{own}\0".encode())
        return total.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What only a look into every file tells."""

    channels: int
    brightest: int  # the largest value of the 16-bit images, 0 if there are none
    values: tuple[int, ...]  # the masks' values that are classes, sorted
    void: int  # pixels that count nowhere
    marked: int  # pixels of all other values but 0


# -- finding files ---------------------------------------------------------------------------------------------------


def _find(where: str) -> _Tree:
    if not where:
        raise DataError("a folder data set needs a path; write folder:PATH")
    root = expanded(where)
    images, masks = (_by_stem(root / part) for part in ("images", "masks"))
    stated = _stated_split(root)
    for file, of_split in stated.values():
        for stem in of_split:
            if stem not in images and stem not in masks:
                raise DataError(
                    f"every stem of a split names an image and a mask, but {stem!r} in {file} names neither; "
                    "write stems without folder and extension"
                )
    stems = sorted({stem for _, of_split in stated.values() for stem in of_split} or images.keys() | masks.keys())
    for stem in stems:
        for here, there, part in ((images, masks, "masks"), (masks, images, "images")):
            if stem not in there:
                raise DataError(
                    f"every image has a mask of the same stem, but {here[stem]} has no counterpart in "
                    f"{root / part}; add {stem}.png there, or remove the file"
                )
    others = {root / "classes.txt", *(file for file, _ in stated.values())}
    return _Tree(
        root=root,
        images={stem: images[stem] for stem in stems},
        masks={stem: masks[stem] for stem in stems},
        stated=stated,
        others=tuple(path for path in others if path.is_file()),
    )


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"a folder data set holds images/ and masks/, but there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS or not path.is_file():
            continue
        try:
            path.stem.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"names of files are UTF-8, but {path.name!a} in {folder} is not; rename it") from error
        if path.stem in found:
            raise DataError(
                f"a stem names one file, but {found[path.stem]} and {path} share one; rename or remove one of them"
            )
        found[path.stem] = path
    if not found:
        raise DataError(f"there is no file with one of the extensions {', '.join(EXTENSIONS)} in {folder}")
    return found


def _stated_split(root: Path) -> dict[str, _Stated]:
    """The splits as ``root`` states them; empty where it does not."""
    whole, parts = root / "split.json", {split: root / f"{split}.txt" for split in SPLITS}
    there = {split: path for split, path in parts.items() if path.is_file()}
    if whole.is_file():
        if there:
            names = ", ".join(path.name for path in there.values())
            raise DataError(f"a split is stated once, but {root} holds both split.json and {names}; keep one")
        stated = {split: _Stated(whole, stems) for split, stems in _read_split_json(whole).items()}
    else:
        stated = {split: _Stated(path, tuple(_lines(path))) for split, path in there.items()}
    if not stated and not whole.is_file():
        return {}
    for split in ("train", "validation"):
        if split not in stated:
            raise DataError(f"a stated split has a train and a validation part, but {root} has no {split} part")
        if not stated[split].stems:
            raise DataError(f"the {split} split of {stated[split].file} is empty; name at least one stem")
    home: dict[str, str] = {}
    for split, (file, stems) in stated.items():
        for stem in stems:
            if stem in home:
                raise DataError(
                    f"an image is in one split, once, but {file} lists {stem!r} in {split} after {home[stem]}"
                )
            home[stem] = split
    return stated


def _read_split_json(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if (
        not isinstance(stated, dict)
        or not stated.keys() <= set(SPLITS)
        or not all(isinstance(stems, list) and all(isinstance(s, str) for s in stems) for stems in stated.values())
    ):
        raise DataError(f'{path} must be of the form {{"train": ["STEM", ...], "validation": [...], "test": [...]}}')
    return {split: tuple(stems) for split, stems in stated.items()}


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be UTF-8 text, but: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


# -- from files to facts ---------------------------------------------------------------------------------------------


def _facts(tree: _Tree, content: str) -> _Facts:
    def build() -> _cache.Arrays:
        facts = _look(tree)
        return {
            "channels_and_brightest": np.array([facts.channels, facts.brightest]),
            "values": np.array(facts.values, np.int64),
            "void_and_marked": np.array([facts.void, facts.marked]),
        }

    arrays = _cache.arrays(f"folder-seen-{content}", build)
    channels, brightest = arrays["channels_and_brightest"].tolist()
    void, marked = arrays["void_and_marked"].tolist()
    return _Facts(
        channels=channels, brightest=brightest, values=tuple(arrays["values"].tolist()), void=void, marked=marked
    )


def _look(tree: _Tree) -> _Facts:
    first_with: dict[int, Path] = {}  # channels -> the first image that has as many
    pixels: Counter[int] = Counter()  # by value of the masks
    brightest = 0
    for stem, path in tree.images.items():
        channels, sixteen_bit, size = channels_and_size(path)
        first_with.setdefault(channels, path)
        if sixteen_bit:
            brightest = max(brightest, int(read_image(path, channels).max()))
        mask = read_mask(tree.masks[stem])
        if mask.shape != size:
            turned = "save the image as it is seen: EXIF orientation is not applied"
            raise DataError(
                f"an image and its mask have one size, but {path} is {size[1]} x {size[0]} and {tree.masks[stem]} is "
                f"{mask.shape[1]} x {mask.shape[0]}; {turned if mask.shape == size[::-1] else 'resize one of them'}"
            )
        if (turn := unclear_turn(path)) is not None:
            raise DataError(
                f"an image lies as its mask does, but {path} has EXIF orientation {turn}, and its size does not say "
                "whether its mask was drawn before or after that turn; save the image as it is seen, without the mark"
            )
        found, counts = np.unique(mask, return_counts=True)
        pixels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        if len(pixels.keys() - {IGNORED}) > MOST_CLASSES:
            raise DataError(
                f"masks hold class indices, at most {MOST_CLASSES} different ones, but with {tree.masks[stem]} there "
                "are more; look for smoothed edges, or an image among the masks"
            )
    if len(first_with) > 1 and first_with.keys() != {1, 3}:
        told = ", ".join(f"{path} has {channels}" for channels, path in sorted(first_with.items()))
        raise DataError(f"all images have the same channels, or are grayscale and RGB, but {told}")
    classes = pixels.keys() if pixels.keys() == {0, IGNORED} else pixels.keys() - {IGNORED}
    return _Facts(
        channels=max(first_with),
        brightest=brightest,
        values=tuple(sorted(classes)),
        void=0 if IGNORED in classes else pixels[IGNORED],
        marked=sum(count for value, count in pixels.items() if value not in (0, IGNORED)),
    )


def _classes(tree: _Tree, values: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of the classes, and the mask value of each."""
    if len(values) < 2:
        hold = " and ".join(map(str, [*values, f"perhaps {IGNORED}, which is for pixels that count nowhere"]))
        raise DataError(
            f"masks hold at least two classes, but those of {tree.root} hold nothing but {hold}; write the background "
            "as 0 and objects as 1"
        )
    path = tree.root / "classes.txt"
    if path not in tree.others:
        return tuple("background" if value == 0 else f"value_{value}" for value in values), values
    names = tuple(_lines(path))
    if len(set(names)) < len(names):
        raise DataError(f"classes have different names, but {path} has one twice")
    if values[-1] < len(names):
        return names, tuple(range(len(names)))
    if len(names) != len(values):
        raise DataError(
            f"{path} names {len(names)} classes, but the masks hold the values {', '.join(map(str, values))}; "
            "write a line for each"
        )
    return names, values


# -- the row of the table --------------------------------------------------------------------------------------------


def _divide(tree: _Tree, seed: int) -> dict[str, tuple[str, ...]]:
    """All stems of each split."""
    if tree.stated:
        return {split: tree.stated[split].stems if split in tree.stated else () for split in SPLITS}
    stems = list(tree.images)
    if len(stems) < 3:
        raise DataError(
            f"three splits need at least 3 images, but {tree.root} has {len(stems)}; add images, or state a split"
        )
    stems = shuffled(stems, seed)
    part = max(1, round(0.15 * len(stems)))
    return {
        "train": tuple(stems[2 * part :]),
        "validation": tuple(stems[:part]),
        "test": tuple(stems[part : 2 * part]),
    }


def _open(request: Request) -> Task:
    tree = _find(request.where)
    content = tree.content()
    facts = _facts(tree, content)
    names, _ = _classes(tree, facts.values)
    found = {split: len(stems) for split, stems in _divide(tree, request.seed).items()}
    return Task(
        data=request.data,
        content=content,
        in_channels=facts.channels,
        class_names=names,
        resolution=request.resolution,
        seed=request.seed,
        background=names.index("background") if "background" in names else 0,
        ignore_index=IGNORED,
        white=(request.white or facts.brightest) if facts.brightest else None,
        **request.sizes(found, tree.root),
    )


def _notes(task: Task) -> tuple[str, ...]:
    tree = _find(task.data.partition(":")[2])
    facts = _facts(tree, task.content)
    if facts.void <= facts.marked:
        return ()
    others = ", ".join(map(str, facts.values[:5])) + (", …" if len(facts.values) > 5 else "")
    return (
        f"in the masks of {tree.root} 255, which counts nowhere, has more pixels than all other values but 0 together; "
        f"if it is an object, write another value for it, or remove stray ones: beside it there are {others}",
    )


def _load(task: Task) -> Splits:
    tree = _find(task.data.partition(":")[2])
    facts = _facts(tree, task.content)
    _, values = _classes(tree, facts.values)
    stems = {split: of_split[: getattr(task, split)] for split, of_split in _divide(tree, task.seed).items()}
    white = task.white or max(facts.brightest, 1)

    def build() -> _cache.Arrays:
        made: dict[str, NDArray[np.uint8]] = {}
        side = task.resolution
        for split in SPLITS:
            size = len(stems[split])
            images = made[f"{split}_images"] = np.empty((size, facts.channels, side, side), np.uint8)
            masks = made[f"{split}_masks"] = np.empty((size, side, side), np.uint8)
            for row, stem in enumerate(stems[split]):
                images[row] = _square_image(tree.images[stem], facts.channels, white, side)
                masks[row] = _square_mask(tree.masks[stem], values, side)
        return made

    other = [white] if facts.brightest not in (0, white) else []
    entry = _cache.digest([task.content, task.resolution, stems, *other])
    arrays = _cache.arrays(f"folder-{entry}", build)
    return Splits(
        **{
            split: Samples(images=arrays[f"{split}_images"], masks=arrays[f"{split}_masks"], names=stems[split])
            for split in SPLITS
        }
    )


def _square_image(path: Path, channels: int, white: int, side: int) -> NDArray[np.uint8]:
    """(C, side, side)"""
    return square_image(to_bytes(read_image(path, channels), white), side)


def _square_mask(path: Path, values: tuple[int, ...], side: int) -> NDArray[np.uint8]:
    """(side, side) of class indices and IGNORED"""
    mask = read_mask(path)  # (H, W)
    indices = np.searchsorted(values, mask)
    if IGNORED not in values:
        indices[mask == IGNORED] = IGNORED
    return square_mask(indices.astype(np.uint8), side)


SOURCE = Source(
    summary="folder:PATH  images/ and masks/ of the same stems",
    open=_open,
    load=_load,
    notes=_notes,
)
