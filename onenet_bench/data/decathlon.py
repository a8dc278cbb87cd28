"""``msd-heart:PATH``, ``msd-brain:PATH``, ``msd-lung:PATH``: tasks of the Medical Segmentation Decathlon.

::

    Task02_Heart/                  and Task01_BrainTumour, Task06_Lung
      dataset.json                 modalities, labels, and the lists of volumes
      imagesTr/NAME.nii.gz         (X, Y, Z), or (X, Y, Z, modalities)
      labelsTr/NAME.nii.gz         (X, Y, Z) of class indices, the background 0
      imagesTs/                    without labels: not used

The volumes are those that ``dataset.json`` lists; what else lies there, such as the ``._`` twins that macOS leaves, is
passed over. Reading them needs nibabel: ``pip install 'onenet-bench[medical]'``.

**Slices.** Every (X, Y) plane of a volume is an image, its row the first axis and its column the second, as stored, and
is named ``NAME/slice-012``. A modality is a channel. Slices are stretched to the task's square by bilinear
interpolation, averaging where they shrink; labels take the nearest voxel.

**Splits.** The publisher's test volumes have no labels, so the training volumes, one a patient, are shuffled by the
seed and cut 70 / 15 / 15. Validation and test keep every slice, volume by volume; training has its slices in an order
that the seed decides, so that asking for fewer takes a fair sample. ``?foreground-slices`` drops the training slices
that are background only. A split cut to fewer slices may end inside a volume.

**Intensities** become bytes, modality by modality:

- CT: clipped to −1000 to 400 HU, which become 0 and 255; a step is 5.5 HU.
- everything else (MRI, which has no unit): voxels that are 0 lie outside and stay 0. The others are taken in standard
  deviations from their mean within the volume, clipped to ±5 and mapped to 1 to 255, so that 128 is the mean and a step
  is 0.04 standard deviations.

**Content** is a digest of ``dataset.json`` and of the bytes of all volumes it lists for training. Files are hashed and
labels checked once, and again when size or time of change are others. Converted slices are cached split by split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onenet_bench.data import _cache
from onenet_bench.data._images import BROKEN, broken, square_image, square_mask
from onenet_bench.data._official import Place, locate
from onenet_bench.data.samples import SPLITS, Request, Samples, Source, Splits, shuffled
from onenet_bench.errors import DataError
from onenet_bench.task import Task

VERSION = 1  # of the rules above
LISTING = "dataset.json"
HOUNSFIELD = (-1000.0, 400.0)
DEVIATIONS = 5.0


class Kind(NamedTuple):
    """What tells one task of the decathlon from another."""

    folder: str
    modalities: int
    is_ct: bool
    classes: int


KINDS = {
    "msd-heart": Kind("Task02_Heart", 1, False, 2),
    "msd-brain": Kind("Task01_BrainTumour", 4, False, 4),
    "msd-lung": Kind("Task06_Lung", 1, True, 2),
}


class Volume(NamedTuple):
    """A patient's image and label."""

    name: str
    image: Path
    label: Path


class Slice(NamedTuple):
    """A plane of a volume, counted from 0."""

    volume: Volume
    z: int

    @property
    def name(self) -> str:
        """``PATIENT/slice-012``"""
        return f"{self.volume.name}/slice-{self.z:03}"


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeTree:
    """A tree as its ``dataset.json`` describes it. ``unlabelled`` is how many volumes have no label."""

    place: Place
    class_names: tuple[str, ...]
    modalities: tuple[str, ...]
    volumes: tuple[Volume, ...]
    unlabelled: int


class _Facts(NamedTuple):
    """What only a look into every file tells."""

    content: str
    slices: dict[str, int]  # by volume
    foreground: dict[str, tuple[int, ...]]  # by volume: the slices with more than background


# -- from dataset.json to a tree -------------------------------------------------------------------------------------


def find(kind: str, where: str) -> VolumeTree:
    """The tree that ``dataset.json`` describes; ``kind`` is a key of ``KINDS``."""
    expected = KINDS[kind]
    place = locate(kind, where, knobs=("paper-classes", "foreground-slices"), below=(expected.folder,), mark=LISTING)
    listing = place.root / LISTING
    try:
        stated = json.loads(listing.read_text(encoding="utf-8-sig"))
        modalities, labels = (_in_order(listing, stated[part]) for part in ("modality", "labels"))
        volumes = tuple(_volume(listing, item) for item in stated["training"])
        unlabelled = len(stated.get("test", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{listing} must hold modality, labels and training as the decathlon's do, but: {error!r}; "
            "take it from the archive again"
        ) from error
    is_ct = any(map(_is_ct, modalities))
    if (len(modalities), is_ct, len(labels)) != expected[1:]:
        raise DataError(
            f"{kind} is {expected.folder}, of {expected.modalities} {'CT' if expected.is_ct else 'MRI'} modalities "
            f"and {expected.classes} labels, but {listing} states {', '.join(modalities)} and {', '.join(labels)}; "
            "name the tree's own kind"
        )
    names = [volume.name for volume in volumes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"a volume is listed once, but {listing} lists {twice} twice; take it from the archive again")
    if len(volumes) < 3:
        raise DataError(f"three splits need a patient each, but {listing} lists {len(volumes)} for training")
    return VolumeTree(
        place=place,
        class_names=labels,
        modalities=modalities,
        volumes=tuple(sorted(volumes)),
        unlabelled=unlabelled,
    )


def _in_order(listing: Path, named: Mapping[str, str]) -> tuple[str, ...]:
    """The values of keys "0", "1", … in that order."""
    names = tuple(named[str(index)] for index in range(len(named)))
    for name in names:
        if not isinstance(name, str):
            raise DataError(
                f"modalities and labels have names, but {listing} calls one {name!r}; take it from the archive again"
            )
    return names


def _volume(listing: Path, item: Mapping[str, str]) -> Volume:
    image = _listed(listing, item["image"])
    if not item.get("label"):
        raise DataError(f"a training volume has a label, but {listing} gives none to {image}; remove it from the list")
    return Volume(image.name.removesuffix(".gz").removesuffix(".nii"), image, _listed(listing, item["label"]))


def _listed(listing: Path, name: str) -> Path:
    path = listing.parent / name
    if not path.is_relative_to(listing.parent) or re.search("[\0\ud800-\udfff]", name):
        raise DataError(f"a volume is a file of the tree, but {listing} lists {name!r}; take it from the archive again")
    return path


# -- reading volumes -------------------------------------------------------------------------------------------------


def read_image(path: Path) -> NDArray[np.float32]:
    """(X, Y, Z, modalities), as measured: the header's slope and intercept are applied."""
    with _opened(path) as stored:
        volume: NDArray[np.float32] = stored.get_fdata(dtype=np.float32, caching="unchanged")
    if volume.ndim not in (3, 4) or not volume.size:
        raise DataError(f"a volume is (X, Y, Z) or (X, Y, Z, modalities), but {path} is {volume.shape}")
    if not np.isfinite(volume).all():
        raise DataError(f"the intensities of a volume are finite, but {path} has some that are not; replace it")
    return volume.reshape(*volume.shape[:3], -1)


def read_label(path: Path) -> NDArray[np.uint8]:
    """(X, Y, Z) of class indices. Raises DataError for values that are none."""
    with _opened(path) as stored:
        label: NDArray[Any] = np.asanyarray(stored.dataobj)
    if label.ndim != 3 or not label.size:
        raise DataError(f"a label is (X, Y, Z), but {path} is {label.shape}; take it from the archive again")
    if label.dtype.kind not in "bui" and not np.array_equal(label, np.rint(label)):
        raise DataError(f"a label holds whole numbers, but {path} holds others; take it from the archive again")
    if label.min() < 0 or label.max() > 254:
        raise DataError(
            f"a label holds class indices from 0, but {path} holds {label.min():g} to {label.max():g}; "
            "take it from the archive again"
        )
    return label.astype(np.uint8)


def to_bytes(volume: NDArray[np.float32], modalities: tuple[str, ...]) -> NDArray[np.uint8]:
    """Intensities (X, Y, Z, modalities) as bytes, by the rules at the top of this file."""
    made = np.empty(volume.shape, np.uint8)
    for channel, modality in enumerate(modalities):
        plane = volume[..., channel]  # (X, Y, Z)
        made[..., channel] = _ct(plane) if _is_ct(modality) else _mri(plane)
    return made


def _ct(volume: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = HOUNSFIELD
    scaled: NDArray[np.float32] = np.rint((np.clip(volume, low, high) - low) * (255 / (high - low)))
    return scaled.astype(np.uint8)


def _mri(volume: NDArray[np.float32]) -> NDArray[np.uint8]:
    inside = volume != 0
    voxels = volume[inside]
    if not voxels.size:
        return np.zeros(volume.shape, np.uint8)
    mean, deviation = voxels.mean(dtype=np.float64), voxels.std(dtype=np.float64)
    scores = (voxels - np.float32(mean)) / np.float32(deviation or 1)
    made = np.zeros(volume.shape, np.uint8)
    made[inside] = np.rint(128 + np.clip(scores, -DEVIATIONS, DEVIATIONS) * (127 / DEVIATIONS))
    return made


def in_words(kind: str) -> str:
    """How volumes of ``kind``, a key of ``KINDS``, become images, for who must do it elsewhere."""
    low, high = HOUNSFIELD
    ct = f"Hounsfield units are clipped to {low:g} to {high:g}, which become 0 and 255, and rounded"
    mri = (
        "voxels of 0 stay 0, the others are taken in standard deviations from their mean in the volume, clipped to "
        f"-{DEVIATIONS:g} to {DEVIATIONS:g}, which become 1 and 255, and rounded"
    )
    return (
        "slices of a volume as stored, rows along its first axis and columns along its second, a channel for each "
        f"modality in the order of {LISTING}, in which {ct if KINDS[kind].is_ct else mri}"
    )


def _is_ct(modality: str) -> bool:
    return modality.upper() == "CT"


def read_volume(tree: VolumeTree, volume: Volume) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (X, Y, Z, modalities) as bytes, and label (X, Y, Z) of class indices.

    Raises:
        DataError: one of the files cannot be read, they do not fit each other, or a label is no class.
    """
    image, label = read_image(volume.image), read_label(volume.label)
    _check(tree, volume, image.shape, label.shape, int(label.max()))
    return to_bytes(image, tree.modalities), label


def _check(tree: VolumeTree, volume: Volume, image: tuple[int, ...], label: tuple[int, ...], largest: int) -> None:
    """The shapes of image and label fit each other and the tree, and the largest label is a class."""
    modalities = image[3] if len(image) == 4 else 1
    if modalities != len(tree.modalities):
        raise DataError(
            f"the last axis of a volume is its modalities, {', '.join(tree.modalities)}, but {volume.image} "
            f"is {image}; take it from the archive again"
        )
    if image[:3] != label:
        raise DataError(
            f"a volume and its label have one size, but {volume.image} is {image[:3]} and {volume.label} is {label}; "
            "take both from the archive again"
        )
    if largest >= len(tree.class_names):
        raise DataError(
            f"labels are 0 to {len(tree.class_names) - 1}, but {volume.label} holds {largest}; "
            "take it from the archive again"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """nibabel's image of ``path``; what it raises inside the block becomes a DataError."""
    nibabel = nibabel_package()
    try:
        stored = nibabel.load(path)
        if (kind := stored.get_data_dtype()).kind in "biuf":
            yield stored
            return
    except (*BROKEN, nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise broken(path, error) from error
    raise DataError(f"a volume holds one real number a voxel, but {path} holds {kind}; save a volume for each part")


def nibabel_package() -> Any:
    """The package, or a DataError that says how to get it."""
    try:
        import nibabel
    except ImportError as error:
        raise DataError(
            "reading NIfTI volumes needs the package nibabel, which is not installed; "
            "run pip install 'onenet-bench[medical]'"
        ) from error
    return nibabel


# -- from a tree to facts --------------------------------------------------------------------------------------------


def _look_at_image(path: Path) -> dict[str, Any]:
    with _opened(path) as stored:
        shape = stored.shape  # of the header; no voxel is read
    return {"sha256": _cache.sha256(path), "shape": list(shape)}


def _look_at_label(path: Path) -> dict[str, Any]:
    label = read_label(path)
    foreground = np.flatnonzero(label.any(axis=(0, 1))).tolist()
    return {
        "sha256": _cache.sha256(path),
        "shape": list(label.shape),
        "largest": int(label.max()),
        "foreground": foreground,
    }


def _facts(tree: VolumeTree) -> _Facts:
    root = tree.place.root
    images = _cache.Notes(f"images-{VERSION}", root, _look_at_image)
    labels = _cache.Notes(f"labels-{VERSION}", root, _look_at_label)
    digests = [_cache.sha256(root / LISTING)]
    slices, foreground = {}, {}
    for volume in tree.volumes:
        try:
            image, label = images[volume.image], labels[volume.label]
        except OSError as error:
            missing = volume.label if volume.image.exists() else volume.image
            raise broken(missing, error) from error
        _check(tree, volume, tuple(image["shape"]), tuple(label["shape"]), label["largest"])
        digests += [volume.name, image["sha256"], label["sha256"]]
        slices[volume.name] = label["shape"][2]
        foreground[volume.name] = tuple(label["foreground"])
    return _Facts(_cache.digest([tree.place.kind, VERSION, digests]), slices, foreground)


def _divide(tree: VolumeTree, facts: _Facts, seed: int) -> dict[str, list[Slice]]:
    """The slices of each split; no patient is in two."""
    volumes = shuffled(tree.volumes, seed)
    part = max(1, round(0.15 * len(volumes)))

    def slices(chosen: list[Volume]) -> list[Slice]:
        return [Slice(volume, z) for volume in sorted(chosen) for z in range(facts.slices[volume.name])]

    train = slices(volumes[2 * part :])
    if "foreground-slices" in tree.place.knobs:
        train = [one for one in train if one.z in facts.foreground[one.volume.name]]
    return {
        "train": shuffled(train, seed),
        "validation": slices(volumes[:part]),
        "test": slices(volumes[part : 2 * part]),
    }


# -- the rows of the table -------------------------------------------------------------------------------------------


def _open(kind: str, request: Request) -> Task:
    tree = find(kind, request.where)
    facts = _facts(tree)
    found = {split: len(slices) for split, slices in _divide(tree, facts, request.seed).items()}
    return Task(
        data=request.data,
        content=facts.content,
        in_channels=len(tree.modalities),
        class_names=tree.place.class_names(tree.class_names),
        resolution=request.resolution,
        seed=request.seed,
        **request.sizes(found, tree.place.root),
    )


def _load(kind: str, task: Task) -> Splits:
    tree = find(kind, task.data.partition(":")[2])
    divided = _divide(tree, _facts(tree), task.seed)
    return Splits(**{split: _samples(tree, divided[split][: getattr(task, split)], task) for split in SPLITS})


def _samples(tree: VolumeTree, slices: list[Slice], task: Task) -> Samples:
    size, side, channels = len(slices), task.resolution, len(tree.modalities)
    names = tuple(one.name for one in slices)
    rows: dict[Volume, list[tuple[int, int]]] = {}  # volume -> (row, z) of each of its slices
    for row, one in enumerate(slices):
        rows.setdefault(one.volume, []).append((row, one.z))
    volumes = list(rows)

    def convert(item: int) -> _cache.Rows:
        image, label = read_volume(tree, volumes[item])
        for row, z in rows[volumes[item]]:
            yield "images", row, square_image(image[:, :, z], side)  # (modalities, side, side)
            yield "masks", row, square_mask(label[:, :, z], side)  # (side, side)

    entry = f"{tree.place.kind}-{_cache.digest([task.content, side, names])}"
    shapes = {"images": (size, channels, side, side), "masks": (size, side, side)}
    arrays = _cache.streamed(entry, shapes, len(volumes), convert)
    return Samples(images=arrays["images"], masks=arrays["masks"], names=names)


def _source(kind: str, what: str) -> Source:
    return Source(summary=f"{kind}:PATH  {what}", open=partial(_open, kind), load=partial(_load, kind))


HEART = _source("msd-heart", "the decathlon's Task02_Heart, MRI, 2 classes")
BRAIN = _source("msd-brain", "the decathlon's Task01_BrainTumour, MRI of 4 modalities, 4 classes")
LUNG = _source("msd-lung", "the decathlon's Task06_Lung, CT, 2 classes")
