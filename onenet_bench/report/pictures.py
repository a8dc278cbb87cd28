"""The pictures of a page: sample images, their truth and predictions, as data URIs."""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onenet_bench.palette import IGNORED, Colour, hexadecimal, palette
from onenet_bench.report.tables import Run

SAMPLES = 4
"""Images that are shown."""
SIDE = 256
"""Images and masks are shown with at most this many pixels a side."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """The images of a page as data URIs."""

    names: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    truths: tuple[str, ...] = ()
    predictions: Mapping[int, list[str]] = field(default_factory=dict)
    """By trial, in the order of ``images``."""
    missing: Mapping[int, str] = field(default_factory=dict)
    """By trial: why there is no prediction."""
    note: str = ""
    """What is missing altogether; empty where nothing is."""
    legend: tuple[tuple[str, str], ...] = ()
    """Class name and colour."""


def pictures(run: Run, gallery: list[int], room: int) -> Pictures:
    """The sample images, their truth, and predictions: of the trials in ``gallery`` always, of the front and then of
    the other nets while all of it takes up to ``room`` bytes."""
    colours = palette(run.task.classes, run.task.background)
    legend = [(name, hexadecimal(colour)) for name, colour in zip(run.task.class_names, colours, strict=True)]
    try:
        samples = _arrays(run.path / "samples.npz", images=4, masks=3, names=1)
    except _Unreadable as error:
        return Pictures(note=f"There are no sample images: {error}.", legend=tuple(legend))
    if run.task.ignore_index in samples["masks"][:SAMPLES]:
        legend.append(("not counted", hexadecimal(IGNORED)))
    images = [image_uri(image) for image in samples["images"][:SAMPLES]]
    truths = [mask_uri(mask, colours, run.task.ignore_index) for mask in samples["masks"][:SAMPLES]]
    room -= sum(map(len, images + truths))

    predictions: dict[int, list[str]] = {}
    missing: dict[int, str] = {}
    best_first = run.complete.sort_values(run.first_pair[0].name, ascending=not run.first_pair[0].maximise)
    for trial in dict.fromkeys([*gallery, *map(int, run.front["trial"]), *map(int, best_first["trial"])]):
        where = run.record(trial).artifacts.get("predictions")
        if trial not in gallery and room <= 0:
            missing[trial] = "left out to keep this page small"
        elif where is None:
            missing[trial] = "no predictions were kept"
        else:
            try:
                masks = _arrays(run.path / where, predictions=3)["predictions"][: len(images)]
            except _Unreadable as error:
                missing[trial] = str(error)
            else:
                predictions[trial] = [mask_uri(mask, colours, run.task.ignore_index) for mask in masks]
                room -= sum(map(len, predictions[trial])) * (2 if trial in gallery else 1)  # shown in two places
    return Pictures(
        names=tuple(str(name) for name in samples["names"][:SAMPLES]),
        images=tuple(images),
        truths=tuple(truths),
        predictions=predictions,
        missing=missing,
        legend=tuple(legend),
    )


class _Unreadable(Exception):
    """An array file that is missing or is not what it should be; says so."""


def _arrays(path: Path, **dimensions: int) -> dict[str, Any]:
    """The arrays of ``path`` by name, each with the given number of dimensions. Raises _Unreadable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in dimensions}
    except FileNotFoundError as error:
        raise _Unreadable(f"{path.name} is missing") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _Unreadable(f"{path.name} cannot be read") from error
    for name, expected in dimensions.items():
        if found[name].ndim != expected or (name != "names" and found[name].dtype != np.uint8):
            raise _Unreadable(f"{path.name} does not hold {name} as uint8 in {expected} dimensions")
    return found


def image_uri(image: Bytes) -> str:
    """An image (C, H, W) as a PNG: three channels as colours, of any other number the first as grey."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image[0]  # (H, W, 3) or (H, W)
    made = Image.fromarray(np.ascontiguousarray(pixels))
    if max(made.size) > SIDE:
        made.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return _uri(made)


def mask_uri(mask: Bytes, colours: list[Colour], ignore_index: int) -> str:
    """Class indices (H, W) as a palette PNG; what is no class has the colour of IGNORED."""
    step = -(-max(mask.shape) // SIDE)
    small = np.ascontiguousarray(mask[::step, ::step])
    used = int(small.max(initial=0)) + 1  # a short palette takes fewer bits per pixel
    table = [IGNORED if i >= len(colours) or i == ignore_index else colours[i] for i in range(used)]
    made = Image.frombytes("P", (small.shape[1], small.shape[0]), small.tobytes())
    made.putpalette([channel for colour in table for channel in colour])
    return _uri(made)


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
