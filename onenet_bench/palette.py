"""Colours of classes, for pages and for predicted masks."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]
BACKGROUND: Colour = (27, 31, 36)
IGNORED: Colour = (128, 134, 142)
CLASSES: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
"""The colours of Okabe and Ito (2008), which colour-blind readers can tell apart."""


def palette(classes: int, background: int) -> list[Colour]:
    """A colour per class: near black for the background, then CLASSES, then hues by the golden angle."""
    colours: list[Colour] = []
    for i in range(classes - 1):
        if i < len(CLASSES):
            colours.append(CLASSES[i])
        else:
            rgb = colorsys.hls_to_rgb(i * 0.381966 % 1, (0.45, 0.65, 0.8)[i % 3], 0.6)
            colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    colours.insert(background, BACKGROUND)
    return colours


def hexadecimal(colour: Colour) -> str:
    """``#e69f00``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
