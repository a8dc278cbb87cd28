"""Task: the question that every net of a run answers.

A Task is a frozen value. The pixels themselves are loaded by ``onenet_bench.data.load(task)``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from typing import Any

from onenet_bench.errors import DataError

MOST_SIDE = 2**16
"""Pixels of an image that a net is trained on or run on: beyond it numbers of elements do not fit 64 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Which data, which split, which classes, at which resolution.

    ``data`` is the name that opened it (``synthetic``, ``voc:PATH``, …), ``content`` a digest of what was
    found there, so that two tasks of one name over changed files are not the same task.
    ``train``, ``validation`` and ``test`` are numbers of images. ``resolution`` is the side of the square
    input in pixels. Class indices run from 0; ``background`` is one of them; pixels marked
    ``ignore_index`` count nowhere. ``seed`` decides split and, for generated data, content. ``white`` is the value of
    16-bit images that becomes 255; None where there are none, and in tasks of versions that did not keep it.
    """

    data: str
    content: str
    in_channels: int
    class_names: tuple[str, ...]
    resolution: int
    train: int
    validation: int
    test: int
    seed: int = 0
    background: int = 0
    ignore_index: int = 255
    white: int | None = None

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise DataError(f"a resolution is at least 1 pixel, but got {self.resolution}")
        if not 2 <= len(self.class_names) <= 255:
            raise DataError(f"segmentation needs 2 to 255 classes, but {self.data} has {len(self.class_names)}")
        if not 0 <= self.background < len(self.class_names):
            raise DataError(
                f"the background must be one of the classes 0 to {len(self.class_names) - 1}, but got {self.background}"
            )
        for split in ("train", "validation"):
            if getattr(self, split) < 1:
                raise DataError(f"the {split} split of {self.data} is empty; give it at least one image")

    @property
    def classes(self) -> int:
        """How many classes a net must tell apart, background included."""
        return len(self.class_names)

    @property
    def shown(self) -> list[int]:
        """Which validation images a run keeps predictions of, for pictures: up to four, evenly spread."""
        last = self.validation - 1
        return sorted({round(i * last / 3) for i in range(4)})

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        values = {**{f.name: getattr(self, f.name) for f in fields(self)}, "class_names": list(self.class_names)}
        return values if self.white is not None else {name: values[name] for name in values if name != "white"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Task:
        """The inverse of ``to_dict``. Raises KeyError or TypeError for what ``to_dict`` never makes."""
        for name, value in values.items():
            wanted: type = {"data": str, "content": str, "class_names": list}.get(name, int)
            if type(value) is not wanted:
                raise TypeError(f"{name} is {value!r}, no {wanted.__name__}")
        names = tuple(values["class_names"])
        if any(type(name) is not str for name in names):
            raise TypeError(f"class names are {names}, not all of them str")
        return cls(**{**values, "class_names": names})

    def digest(self) -> str:
        """A name for this task: equal tasks have equal digests. ``white`` is not in it: in training it follows from the
        content."""
        values = replace(self, white=None).to_dict()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
