"""Using a trained net: its masks for files, and its scores on a split.

**How an image comes to the net.** As in training: as ``data.folder`` and ``data.decathlon`` read it, and stretched to
the square of the checkpoint's task. The logits are interpolated bilinearly back to the image's own size, and a pixel
takes the class of the largest. A colour image is turned to grey for a net that was trained on grey ones. Volumes go
slice by slice, along the same axis as in training.

**Tiles.** With ``Reading.tile`` an image keeps its own scale: the net sees overlapping squares of the task's side, and
their logits are averaged by a Hann window, which is next to nothing at a tile's edge, so that no seam shows. What is
smaller than a tile is mirrored up to it. Tiles are never chosen by themselves: training stretched whole images, however
large, and at another scale objects look as they never did to the net. Only who knows the images can tell; ``coarse``
marks those that lose much.

**What is written.** ``DIR/masks/STEM.png``, a palette image of class indices in the colours of the report, or
``DIR/masks/STEM.nii.gz``, a label volume on the image's own grid; and ``DIR/overlays/STEM.png``, the image under the
colours of all classes but the background; of a volume, its slice with most foreground. A file appears whole or not
at all, the mask last.

Shapes: H and W pixels of an image, C channels, K classes, S = side of the net's square, H' and W' its logits' size;
X, Y, Z voxels of a volume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from onenet_bench import data, models, training
from onenet_bench.data import decathlon, folder, rasters
from onenet_bench.data._images import square_image
from onenet_bench.data.samples import SPLITS
from onenet_bench.errors import DataError, OnenetBenchError, SpecError, known
from onenet_bench.files import whole
from onenet_bench.palette import palette
from onenet_bench.plan import check_resolution
from onenet_bench.recipe import Recipe
from onenet_bench.task import Task

Bytes = NDArray[np.uint8]

VOLUMES = (".nii", ".nii.gz")
MODALITIES = {"ct": "CT", "mri": "MRI"}
COARSE = 4
"""An image is coarse where more than this many of its pixels, in a row or a column, become one of the net's."""
BATCH = 8  # tiles at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A trained net, and what it was trained on and how."""

    path: Path
    net: models.UNet
    task: Task
    recipe: Recipe


def open_checkpoint(path: Path, device: str = "cpu") -> Checkpoint:
    """The checkpoint of ``path``, its net on ``device`` and in evaluation mode.

    Raises SpecError for files that are none, and for those that do not say what they were trained on.
    """
    net, facts = models.load_checkpoint(path)
    try:
        task, recipe = Task.from_dict(facts["task"]), Recipe.from_dict(facts["recipe"])
        if (task.in_channels, task.classes) != (net.spec.in_channels, net.spec.classes):
            raise ValueError(f"a task of {task.in_channels} channels and {task.classes} classes is not its net's")
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"a checkpoint tells its task and recipe, but {path} does not: {error!r}; use one that training left"
        ) from error
    return Checkpoint(path=path, net=net.to(device), task=task, recipe=recipe)


# -- scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The scores of a checkpoint on a split.

    ``scores`` are those of ``training.evaluate_split``, ``per_class`` lists in class order, None for what cannot be
    said. ``notes`` are sentences on what may make the scores mean something else.
    """

    task: Task
    split: str
    images: int
    scores: dict[str, float | None]
    per_class: dict[str, list[float | None]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "task": self.task.to_dict(), "split": self.split, "images": self.images, "scores": self.scores,
            "per_class": self.per_class, "notes": list(self.notes),
        }  # fmt: skip


def score(
    checkpoint: Checkpoint, data_name: str | None = None, *, split: str = "test", resolution: int | None = None
) -> Evaluation:
    """Score ``checkpoint`` on ``split`` of the data that ``data_name`` names; where None, of what it was trained on.

    Splits are cut by the seed of the checkpoint's task, and have its sizes on its own data, so that what was held out
    in training is held out here. ``resolution`` is the task's where None.

    Raises:
        DataError: the data cannot be used, the split is unknown, empty or without a pixel that counts, or classes or
            channels are not the net's.
        SpecError: the net cannot take the resolution.
    """
    if split not in SPLITS:
        raise DataError(known("split", split, SPLITS))
    spec, trained = checkpoint.net.spec, checkpoint.task
    side = trained.resolution if resolution is None else resolution
    check_resolution(spec, side, side)
    name = trained.data if data_name is None else data_name
    own = name == trained.data
    task = (
        data.reopen(trained, resolution=side)
        if own
        else data.open_task(name, resolution=side, seed=trained.seed, white=trained.white)
    )
    for what, of_net, of_data in (
        ("classes", spec.classes, task.classes),
        ("channels", spec.in_channels, task.in_channels),
    ):
        if of_net != of_data:
            raise DataError(
                f"a net is scored on data of its own {what}, but {checkpoint.path} has {of_net} and {name} has "
                f"{of_data}; its training data was {trained.data}"
            )
    if not getattr(task, split):
        raise DataError(f"the {split} split of {name} is empty; use --split validation")
    notes = differences(checkpoint, task)
    if own and (task if side == trained.resolution else data.reopen(trained)).content != trained.content:
        notes.append(f"{name} has changed since the training, so that its {split} split may hold images trained on")
    splits = data.load(task)
    data.check_labels(task, splits, split)
    samples = getattr(splits, split)
    scores = training.evaluate_split(
        checkpoint.net, samples, classes=task.classes, background=task.background, ignore_index=task.ignore_index,
        batch=checkpoint.recipe.batch, device=_device(checkpoint.net),
    )  # fmt: skip
    return Evaluation(
        task=task,
        split=split,
        images=len(samples),
        scores={key: value for key, value in scores.items() if key != "per_class"},
        per_class=dict(scores["per_class"]),
        notes=tuple(notes),
    )


def differences(checkpoint: Checkpoint, task: Task) -> list[str]:
    """Sentences on what the data of ``task`` have otherwise than those that the net was trained on."""
    trained, notes = checkpoint.task, []
    if task.class_names != trained.class_names:
        notes.append(
            f"classes are compared by index, but {task.data} names them {', '.join(task.class_names)} and the net was "
            f"trained on {', '.join(trained.class_names)}"
        )
    if task.white is not None and trained.white is None and task.content != trained.content:
        notes.append(
            f"{checkpoint.path} does not say which value of 16-bit images was white in training, so that those of "
            f"{task.data} are scaled by their own largest value, {task.white}"
        )
    return notes


# -- from pixels to classes ------------------------------------------------------------------------------------------


def segment(net: models.UNet, image: Bytes, *, side: int, tile: bool = False) -> Bytes:
    """The class of every pixel: (H, W, C) → (H, W), stretched to ``side`` or, with ``tile``, at its own scale.

    ``net`` is in evaluation mode; it runs where its weights are, in float32.
    """
    if tile:
        bands = tiled_logits(net, image, side=side)
        return np.concatenate([band.max(dim=0).indices.to("cpu", torch.uint8).numpy() for band in bands])
    logits = _logits(net, torch.from_numpy(square_image(image, side)[None]))[0]  # (K, H', W')
    size = image.shape[:2]
    mask = torch.zeros(size, dtype=torch.uint8, device=logits.device)  # (H, W)
    largest = torch.full(size, -torch.inf, device=logits.device)  # (H, W)
    for index, plane in enumerate(logits):  # class by class, for K planes of a large image may not fit
        plane = _at_size(plane[None, None], size)[0, 0]  # (H, W)
        mask[plane > largest] = index
        largest = torch.maximum(largest, plane)
    return mask.cpu().numpy()


def tiled_logits(net: models.UNet, image: Bytes, *, side: int) -> Iterator[Tensor]:
    """The logits (K, H, W) of ``image`` (H, W, C) at its own scale, as bands (K, h, W) from top to bottom.

    Each is the mean over the tiles of ``side`` pixels that cover a pixel, weighted by ``shares``. Tiles begin at
    multiples of the net's total scale, so that all of them divide the image alike. No more than one row of tiles is
    in memory at a time.
    """
    height, width = image.shape[:2]
    scale = net.spec.total_scale if side > net.spec.total_scale else 1
    beyond = [max(side, -(-length // scale) * scale) - length for length in (height, width)]
    padded = np.pad(image, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="reflect")
    pixels = torch.from_numpy(padded.transpose(2, 0, 1).copy())  # (C, H + …, W + …)
    rows, columns = (shares(length, side, scale) for length in pixels.shape[1:])
    device = _device(net)
    band = torch.zeros(net.spec.classes, side, pixels.shape[2], device=device)  # (K, S, W + …)
    for (top, down), following in zip(rows, [*(start for start, _ in rows[1:]), height], strict=True):
        strip = torch.stack([pixels[:, top : top + side, left : left + side] for left, _ in columns])  # (T, C, S, S)
        logits = (one for part in torch.split(strip, BATCH) for one in _at_size(_logits(net, part), (side, side)))
        for (left, along), tile in zip(columns, logits, strict=True):
            share = torch.from_numpy(np.outer(down, along)).to(device)  # (S, S)
            band[:, :, left : left + side] += tile * share
        done = following - top
        yield band[:, :done, :width]
        band = torch.cat([band[:, done:], torch.zeros_like(band[:, :done])], dim=1)


def shares(length: int, side: int, scale: int) -> list[tuple[int, NDArray[np.float32]]]:
    """Where the tiles of an axis begin, and the weight (side,) of each in the pixels it covers.

    Tiles overlap by half or more, and begin at multiples of ``scale``, of which ``length`` and ``side`` are
    multiples too. The weights of every pixel sum to 1; between two neighbours they follow sin² and cos².
    """
    places, step = (length - side) // scale, max(1, side // scale // 2)
    number = -(-places // step)  # of tiles after the first
    starts = [scale * round(i * places / max(1, number)) for i in range(number + 1)]
    window = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2  # (side,), nowhere 0
    total = np.zeros(length)
    for start in starts:
        total[start : start + side] += window
    return [(start, (window / total[start : start + side]).astype(np.float32)) for start in starts]


@torch.inference_mode()
def _logits(net: models.UNet, images: Tensor) -> Tensor:
    """(B, C, S, S) of uint8 → (B, K, H', W')"""
    logits: Tensor = net(images.to(_device(net)).float().div_(255))
    return logits


def _at_size(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, K, H', W') → (B, K, H, W), by bilinear interpolation between the centres of pixels."""
    return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _device(net: models.UNet) -> torch.device:
    return next(net.parameters()).device


# -- from files to files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How files are read.

    ``tile``: at their own scale. ``white``: the value of 16-bit images that becomes 255; None: as in training, where
    that was the largest in any image. ``modality``: ``ct`` or ``mri``, for volumes; None: as the data that the net was
    trained on.
    """

    tile: bool = False
    white: int | None = None
    modality: str | None = None

    def __post_init__(self) -> None:
        if self.white is not None and not 1 <= self.white <= 65535:
            raise DataError(f"white is a value of 1 to 65535, but got {self.white}")
        if self.modality is not None and self.modality not in MODALITIES:
            raise DataError(known("modality", self.modality, MODALITIES))


class Job(NamedTuple):
    """A file, and what will be made of it."""

    source: Path
    mask: Path
    overlay: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A file that was done. ``shape`` is (H, W) or (X, Y, Z), ``pixels`` how many each class got; ``z`` is the slice
    that a volume's overlay shows, counted from 0."""

    job: Job
    shape: tuple[int, ...]
    pixels: tuple[int, ...]
    z: int | None
    coarse: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        paths = {name: str(path) for name, path in self.job._asdict().items()}
        return {**paths, "shape": list(self.shape), "pixels": list(self.pixels), "z": self.z}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A file that could not be done, and the sentence that says why."""

    job: Job
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"source": str(self.job.source), "error": self.reason}


def jobs(sources: Sequence[Path], out: Path, *, overwrite: bool = False) -> list[Job]:
    """What ``sources``, files and folders of files, become in ``out``, whose folders are made.

    Raises:
        DataError: a folder holds no image; two files share a stem; or one would be overwritten that is a source, no
            earlier prediction (which have overlays), or that is there already and ``overwrite`` was not said.
        OnenetBenchError: ``out`` cannot be written.
    """
    files = {os.path.realpath(path): path for source in sources for path in _files(source)}
    planned: dict[str, Job] = {}
    for path in files.values():
        stem = _stem(path)
        if stem in planned:
            raise DataError(
                f"a stem names one mask, but {planned[stem].source} and {path} share {stem!r}; predict them in two "
                "calls, into two folders"
            )
        mask = out / "masks" / f"{stem}{'.nii.gz' if _is_volume(path) else '.png'}"
        planned[stem] = Job(path, mask, out / "overlays" / f"{stem}.png")
    written = [path for job in planned.values() for path in (job.mask, job.overlay)]
    for path in written:
        if os.path.realpath(path) in files:
            raise DataError(f"a prediction never replaces what it is made from, but {path} is both; name another --out")
        if path.exists() and not overwrite:
            raise DataError(f"a prediction replaces nothing, but {path} is there already; name another --out, "
                            "or say --overwrite")  # fmt: skip
    for job in planned.values():
        if job.mask.exists() and not job.overlay.exists():
            raise DataError(
                f"only earlier predictions are replaced, and they have overlays, but {job.mask} has none; "
                "name another --out"
            )
    for made in ("masks", "overlays"):
        try:
            (out / made).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OnenetBenchError(
                f"the folder for predictions must be writable, but {out} is not: {error.strerror}"
            ) from error
    return list(planned.values())


def _files(source: Path) -> list[Path]:
    """``source``, or the images and volumes of a folder by name; folders in it and hidden files (``._*`` among them)
    are passed over."""
    if not source.is_dir():
        return [source]
    found = [
        path
        for path in sorted(source.iterdir())
        if (path.suffix.lower() in folder.EXTENSIONS or _is_volume(path))
        and not path.name.startswith(".")
        and path.is_file()
    ]
    if not found:
        endings = ", ".join((*folder.EXTENSIONS, *VOLUMES))
        raise DataError(f"there is no file with one of the extensions {endings} in {source}")
    return found


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(VOLUMES)


def _stem(path: Path) -> str:
    return path.name[: path.name.lower().rindex(".nii")] if _is_volume(path) else path.stem


def predict(checkpoint: Checkpoint, planned: Sequence[Job], reading: Reading) -> Iterator[Prediction | Failure]:
    """Do ``planned`` one by one. A file that cannot be used becomes a Failure, and the others are done all the same."""
    for job in planned:
        try:
            yield _volume(checkpoint, job, reading) if _is_volume(job.source) else _image(checkpoint, job, reading)
        except OnenetBenchError as error:
            yield Failure(job=job, reason=str(error))
        except MemoryError:
            yield Failure(job=job, reason=f"{job.source} takes more memory than there is; use one of fewer pixels")


def _image(checkpoint: Checkpoint, job: Job, reading: Reading) -> Prediction:
    image = _pixels(job.source, checkpoint.net.spec.in_channels, reading.white or checkpoint.task.white)
    mask = segment(checkpoint.net, image, side=checkpoint.task.resolution, tile=reading.tile)  # (H, W)
    _write(job.overlay, lambda path: _overlay(checkpoint.task, image, mask).save(path, format="PNG"))
    _write(job.mask, lambda path: _paletted(checkpoint.task, mask).save(path, format="PNG"))
    return _prediction(checkpoint, job, reading, mask, None)


def _volume(checkpoint: Checkpoint, job: Job, reading: Reading) -> Prediction:
    volume, task = _read_volume(job.source, checkpoint, reading.modality), checkpoint.task  # (X, Y, Z, C)
    labels = np.empty(volume.shape[:3], np.uint8)
    for z in range(volume.shape[2]):
        labels[:, :, z] = segment(checkpoint.net, volume[:, :, z], side=task.resolution, tile=reading.tile)
    foreground = (labels != task.background).sum(axis=(0, 1))  # (Z,)
    z = int(foreground.argmax()) if foreground.any() else len(foreground) // 2

    nibabel = decathlon.nibabel_package()
    stored = nibabel.load(job.source)
    header = stored.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0  # of the intensities, which these are not
    made = type(stored)(labels, stored.affine, header)
    _write(job.overlay, lambda path: _overlay(task, volume[:, :, z], labels[:, :, z]).save(path, format="PNG"))
    _write(job.mask, lambda path: nibabel.save(made, path))
    return _prediction(checkpoint, job, reading, labels, z)


def _prediction(checkpoint: Checkpoint, job: Job, reading: Reading, mask: Bytes, z: int | None) -> Prediction:
    return Prediction(
        job=job,
        shape=mask.shape,
        pixels=tuple(np.bincount(mask.ravel(), minlength=checkpoint.task.classes).tolist()),
        z=z,
        coarse=not reading.tile and max(mask.shape[:2]) > COARSE * checkpoint.task.resolution,
    )


def _pixels(path: Path, channels: int, white: int | None) -> Bytes:
    """(H, W, channels)"""
    if not path.is_file():
        raise DataError(f"an image to predict is a file, but there is none at {path}")
    found, sixteen_bit, _ = rasters.channels_and_size(path)
    can_convert = (found, channels) == (1, 3) or ((found, channels) == (3, 1) and path.suffix.lower() != ".npy")
    if found != channels and not can_convert:
        raise DataError(
            f"the net takes images of {channels} channels, but {path} has {found}; use images as in training"
        )
    if sixteen_bit and white is None:
        raise DataError(
            f"{path} has 16 bits, and what is white in them is not known; give the largest value of the training "
            "images as --white"
        )
    return rasters.to_bytes(rasters.read_image(path, channels), white or 65535)


def _read_volume(path: Path, checkpoint: Checkpoint, modality: str | None) -> Bytes:
    """(X, Y, Z, C)"""
    if not path.is_file():
        raise DataError(f"a volume to predict is a file, but there is none at {path}")
    kind = checkpoint.task.data.partition(":")[0]
    if modality is None and kind not in decathlon.KINDS:
        raise DataError(
            f"{path} is a volume, and {checkpoint.path} was trained on {kind} images, which does not tell what its "
            "values mean; say --modality ct or --modality mri"
        )
    is_ct = decathlon.KINDS[kind].is_ct if modality is None else modality == "ct"
    volume, channels = decathlon.read_image(path), checkpoint.net.spec.in_channels  # (X, Y, Z, C)
    if volume.shape[3] != channels:
        raise DataError(
            f"the net takes volumes of {channels} modalities, but {path} has {volume.shape[3]}; "
            "use volumes as in training"
        )
    return decathlon.to_bytes(volume, (MODALITIES["ct" if is_ct else "mri"],) * channels)


def _paletted(task: Task, mask: Bytes) -> Image.Image:
    """A palette image whose indices are ``mask`` (H, W)."""
    made = Image.fromarray(mask)
    made.putpalette([part for colour in palette(task.classes, task.background) for part in colour])
    return made


def _overlay(task: Task, image: Bytes, mask: Bytes) -> Image.Image:
    """``image`` (H, W, C), half covered by the colours of ``mask`` (H, W); of other than 3 channels the first, grey."""
    seen = image if image.shape[2] == 3 else np.broadcast_to(image[..., :1], (*mask.shape, 3))  # (H, W, 3)
    colours = np.array(palette(task.classes, task.background), np.uint8)  # (K, 3)
    covered = seen // 2 + colours[mask] // 2  # (H, W, 3)
    return Image.fromarray(np.where((mask == task.background)[..., None], seen, covered))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make ``path``, whole or not at all."""
    try:
        with whole(path) as draft:
            write(draft)
    except OSError as error:
        raise OnenetBenchError(
            f"a prediction must be writable, but {path} is not: {error.strerror or error}"
        ) from error
