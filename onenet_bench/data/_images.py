"""Reading image files, and bringing pixels to the task's square."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenet_bench.errors import DataError

BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, RuntimeError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What readers raise over a damaged file."""


def broken(path: Path, error: BaseException) -> DataError:
    """The sentence for a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} is a part of the data set, but there is no such file; put it back")
    return DataError(f"{path} cannot be read ({error or type(error).__name__}); replace it or remove it")


def open_image(path: Path) -> Image.Image:
    """The file, recognised by what it holds and not by its extension; no pixel is decoded yet."""
    try:
        image = Image.open(path)
        frames = getattr(image, "n_frames", 1)
    except BROKEN as error:
        raise broken(path, error) from error
    if frames > 1 and image.format == "TIFF":
        raise DataError(f"an image file holds one image, but {path} holds several; write one file for each")
    return image


def raw_mode(image: Image.Image) -> str:
    """How an image that was not decoded yet lies in its file, by Pillow's name; empty where it has none."""
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if tiles else ""
    return str(stored[0] if isinstance(stored, tuple) else stored)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) of any image file; transparency is dropped."""
    with open_image(path) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except BROKEN as error:
            raise broken(path, error) from error


def read_indices(path: Path) -> NDArray[np.uint8]:
    """(H, W) of an 8-bit grayscale image's values or a palette image's indices, never its colours."""
    with open_image(path) as image:
        if image.mode not in ("L", "P") or image.format == "JPEG":
            raise DataError(
                f"a mask is an 8-bit grayscale or palette image stored without loss, but {path} is a {image.format} "
                f"of mode {image.mode}; take the original from the archive"
            )
        try:
            return np.asarray(image)
        except BROKEN as error:
            raise broken(path, error) from error


def square_image(image: NDArray[Any], side: int) -> NDArray[np.uint8]:
    """(H, W, C) of uint8 → (C, side, side), stretched by bilinear interpolation, averaging where it shrinks."""
    planes = (Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2]))
    return np.stack([np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR)) for plane in planes])


def square_mask(mask: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W) of class indices → (side, side), each pixel the nearest one's."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(mask)).resize((side, side), Image.Resampling.NEAREST))
