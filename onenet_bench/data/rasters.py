"""What an image file and a mask file hold, as stored: 8 or 16 bits, gray or colour, pictures and ``.npy`` arrays."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.ExifTags import Base

from onenet_bench.data._images import BROKEN, broken, open_image, raw_mode
from onenet_bench.errors import DataError

IGNORED = 255
"""Of a mask's pixels: they count nowhere."""

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # a map is never larger than the file
        if not isinstance(found, np.ndarray):
            raise ValueError("it holds several arrays, as .npz files do")
    except (*BROKEN, TokenError, OverflowError, MemoryError) as error:
        raise broken(path, error) from error
    return np.array(found)


def channels_and_size(path: Path) -> tuple[int, bool, tuple[int, int]]:
    """Channels, whether of 16 bits, and (height, width); for all but ``.npy`` from the header alone."""
    if path.suffix.lower() == ".npy":
        array = _read_npy(path)
        if array.ndim not in (2, 3) or 0 in array.shape or array.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"an .npy image is (H, W) or (H, W, C) of uint8 or uint16, but {path} is {array.shape} of "
                f"{array.dtype}; scale and save it as such"
            )
        return (1 if array.ndim == 2 else array.shape[2]), array.dtype == np.uint16, array.shape[:2]
    with open_image(path) as image:
        if image.mode == "F":
            raise DataError(
                f"an image has 8 or 16 bits a channel, but {path} is of floating point; scale it to 16 bits"
            )
        if ";16" in raw_mode(image) and image.mode not in _SIXTEEN_BIT:  # Pillow would keep the upper 8 of them
            raise DataError(
                f"an image of 16 bits a channel is gray or an .npy of uint16, but {path} is neither; save it as .npy"
            )
        gray = image.mode in ("1", "L", "LA", "La", *_SIXTEEN_BIT)
        return (1 if gray else 3), image.mode in _SIXTEEN_BIT, (image.height, image.width)


def unclear_turn(path: Path) -> int | None:
    """A photograph's EXIF orientation, where turning it keeps its size, or Pillow does so by itself.

    PNG and ``.npy`` files are none: in a PNG the orientation may stand behind all pixels.
    """
    if path.suffix.lower() == ".npy":
        return None
    with open_image(path) as image:
        if image.format not in ("JPEG", "MPO", "TIFF"):
            return None
        turn: object = image.getexif().get(Base.Orientation)
        if not isinstance(turn, int) or turn not in range(2, 9):  # 1: as it is; all others: damaged
            return None
        told_by_size = turn >= 5 and image.height != image.width and image.format != "TIFF"
    return None if told_by_size else turn


def read_image(path: Path, channels: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """(H, W, channels) as the file has it, alpha dropped."""
    if path.suffix.lower() == ".npy":
        array = _read_npy(path)
    else:
        with open_image(path) as image:
            try:
                image.load()
            except BROKEN as error:
                raise broken(path, error) from error
            wide = image.mode in _SIXTEEN_BIT
            array = np.asarray(image if wide else image.convert("L" if channels == 1 else "RGB"))
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 65535:
            raise DataError(
                f"a grayscale image holds values of 0 to 65535, but {path} has {array.min()} to {array.max()}"
            )
        array = array.astype(np.uint16)
    array = array.reshape(*array.shape[:2], -1)
    return np.broadcast_to(array, (*array.shape[:2], channels))


def read_mask(path: Path) -> NDArray[Any]:
    """(H, W) of integers, as the file has them."""
    if path.suffix.lower() == ".npy":
        array = _read_npy(path)
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "bui":
            raise DataError(
                f"a mask is (H, W) of integers, but {path} is {array.shape} of {array.dtype}; save class indices"
            )
    else:
        with open_image(path) as image:
            if image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg":
                raise DataError(
                    f"a mask must be stored without loss, but {path} is a JPEG; make a PNG from the original labels"
                )
            if image.mode not in ("1", "L", "P", *_SIXTEEN_BIT):
                raise DataError(
                    f"a mask holds one class index a pixel, but {path} has the channels {image.mode}; "
                    "map each colour to its index and save that as an 8-bit grayscale PNG"
                )
            factor = {"L;2": 85, "L;4": 17}.get(raw_mode(image), 1)  # by which Pillow stretches few bits to 8
            try:
                image.load()
            except BROKEN as error:
                raise broken(path, error) from error
            array = np.asarray(image) // factor if factor > 1 else np.asarray(image)
    if array.min() < 0:
        raise DataError(
            f"class indices are at least 0, but {path} holds {array.min()}; write {IGNORED} for pixels to ignore"
        )
    if array.max() > np.iinfo(np.int64).max:
        raise DataError(f"class indices are below 2^63, but {path} holds {array.max()}; number the classes from 0")
    return array


def to_bytes(image: NDArray[np.uint8] | NDArray[np.uint16], white: int) -> NDArray[np.uint8]:
    """An image as bytes: of 16 bits, ``white`` and what is brighter become 255; others stay as they are."""
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False)
    scaled: NDArray[np.uint8] = np.rint(np.minimum(image, white) * (255 / white)).astype(np.uint8)
    return scaled
