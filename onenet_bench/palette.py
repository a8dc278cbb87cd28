"""Colours of classes, for pages and for predicted masks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]
BACKGROUND: Colour = (27, 31, 36)
IGNORED: Colour = (128, 134, 142)
CLASSES: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
"""The colours of Okabe and Ito (2008), which colour-blind readers can tell apart."""


def palette(classes: int, background: int) -> list[Colour]:
    """A colour per class: near black for the background, then CLASSES, then those that differ most from all before."""
    colours = list(_apart(classes - 1))
    colours.insert(background, BACKGROUND)
    return colours


@cache
def _apart(number: int) -> tuple[Colour, ...]:
    steps = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)  # (4096, 3)
    grid = grid[(lab(grid)[:, 0] >= 35) & (lab(grid)[:, 0] <= 92)]  # neither near black nor near white
    places, chosen = lab(grid), list(CLASSES)
    nearest = np.min(
        [np.linalg.norm(places - lab(np.array(c)), axis=1) for c in (BACKGROUND, IGNORED, *CLASSES)], axis=0
    )
    while len(chosen) < number:
        best = int(nearest.argmax())
        red, green, blue = map(int, grid[best])
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(places - places[best], axis=1))
    return tuple(chosen[:number])


def lab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """sRGB (..., 3) of 0 to 255 in CIELAB, where distances are about those that are seen (IEC 61966-2-1, CIE 1976)."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _XYZ.sum(axis=1)  # over those of white
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
"""From linear sRGB, (3, 3)."""


def hexadecimal(colour: Colour) -> str:
    """``#e69f00``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
