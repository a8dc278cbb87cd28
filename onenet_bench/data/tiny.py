"""Tiny trees of the published data sets, generated: their folders, their lists and their quirks, with drawn pixels.

They are for trying what runs on the real ones, in seconds and without a download. No score on them means anything.

>>> grow("voc", Path("trees"))
'voc:trees/VOCdevkit/VOC2012'
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenet_bench.data import decathlon, pets, voc
from onenet_bench.errors import DataError, known

Random = np.random.RandomState
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
"""How the twins begin that macOS leaves beside files, and that are none of the data."""


def grow(kind: str, folder: Path) -> str:
    """The data name of a tiny tree of ``kind`` below ``folder``, made there unless there is one already.

    The bytes depend on the kind alone. Raises DataError for an unknown kind, and for volumes where there is no nibabel.
    """
    if kind not in TREES:
        raise DataError(known("published data set", kind, TREES))
    below, plant = TREES[kind]
    top = folder / below.split("/")[0]
    if not top.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{top.name}-") as bed:  # never half a tree at its place
            plant(Path(bed, below), Random(zlib.crc32(below.encode())))
            shutil.move(Path(bed, top.name), top)
    return f"{kind}:{folder / below}"


# -- scenes ----------------------------------------------------------------------------------------------------------


def _ellipse(random: Random, height: int, width: int) -> NDArray[np.float64]:
    """(H, W): the distance from an ellipse's centre, 1 on its outline."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    across, down = random.uniform(0.35, 0.65, 2) * (width, height)
    wide, high = random.uniform(0.2, 0.3, 2) * (width, height)
    distance: NDArray[np.float64] = np.hypot((x - across) / wide, (y - down) / high)
    return distance


def _photograph(random: Random, inside: NDArray[np.bool_], shade: int) -> NDArray[np.uint8]:
    """(H, W, 3) of noise, and of a colour that ``shade`` decides inside."""
    colour = np.array([shade * 53 % 256, shade * 101 % 256, shade * 197 % 256])
    pixels = np.where(inside[..., None], colour, 110) + random.normal(0, 12, (*inside.shape, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


# -- PASCAL VOC ------------------------------------------------------------------------------------------------------


def _voc(root: Path, random: Random) -> None:
    """20 training and 6 validation images, each of one class; a mask not in the lists; a PNG named .jpg."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    names = [f"2007_{number:06}" for number in range(27)]
    palette = _voc_palette()
    for number, name in enumerate(names):
        label = 1 + number % 20
        height, width = ((36, 48), (48, 36))[number % 2]
        distance = _ellipse(random, height, width)
        mask = np.where(distance < 0.9, label, np.where(distance < 1.1, 255, 0)).astype(np.uint8)
        photograph = Image.fromarray(_photograph(random, distance < 1, label))
        photograph.save(root / f"JPEGImages/{name}.jpg", format="PNG" if number == 3 else "JPEG")
        paletted = Image.fromarray(mask)
        paletted.putpalette(palette)
        paletted.save(root / f"SegmentationClass/{name}.png")
    for listed, chosen in zip(voc.LISTS, (names[:20], names[20:26]), strict=True):
        (root / listed).write_text("".join(f"{name}\n" for name in chosen))


def _voc_palette() -> list[int]:
    """The 256 colours of VOC: the bits of an index, by threes, are the highest bits of red, green and blue."""
    return [
        sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
        for index in range(256)
        for channel in range(3)
    ]


# -- Oxford-IIIT Pet -------------------------------------------------------------------------------------------------


def _pets(root: Path, random: Random) -> None:
    """An image of each breed in both lists; PNG and GIF files named .jpg, ._ twins, .mat files, a tall comment."""
    (root / "images").mkdir(parents=True)
    (root / "annotations/trimaps").mkdir(parents=True)
    lines: dict[str, list[str]] = {listed: [] for listed in pets.LISTS}
    for number, breed in enumerate(pets.BREEDS, start=1):
        for sheet, listed in enumerate(pets.LISTS, start=1):
            name = f"{breed}_{sheet}"
            height, width = ((32, 40), (40, 32))[number % 2]
            distance = _ellipse(random, height, width)
            trimap = np.select([distance < 0.85, distance > 1.15], [pets.PET, pets.BACKGROUND], pets.BORDER)
            photograph = Image.fromarray(_photograph(random, distance < 1, number))
            if number == 12:  # Egyptian_Mau
                photograph.putalpha(200)
            form = {5: "GIF", 12: "PNG"}.get(number, "JPEG")
            photograph.save(root / f"images/{name}.jpg", format=form)
            Image.fromarray(trimap.astype(np.uint8)).save(root / f"annotations/trimaps/{name}.png")
            (root / f"annotations/trimaps/._{name}.png").write_bytes(APPLE_DOUBLE)
            lines[listed].append(f"{name} {number} {1 + (not breed[0].isupper())} {number}\n")
    for listed, of_list in lines.items():
        (root / listed).write_text("".join(of_list))
    for number in (100, 101, 102):
        (root / f"images/Abyssinian_{number}.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    comment = "".join(f"# line {number} of a comment\n" for number in range(1, 7))
    both = sorted(line for of_list in lines.values() for line in of_list)
    (root / "annotations/list.txt").write_text(comment + "".join(both))


# -- the decathlon ---------------------------------------------------------------------------------------------------


def _heart(root: Path, random: Random) -> None:
    _decathlon(root, random, "la", {"0": "MRI"}, {"0": "background", "1": "left atrium"})


def _brain(root: Path, random: Random) -> None:
    modalities = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    _decathlon(root, random, "BRATS", modalities, labels)


def _lung(root: Path, random: Random) -> None:
    _decathlon(root, random, "lung", {"0": "CT"}, {"0": "background", "1": "cancer"})


def _decathlon(root: Path, random: Random, patient: str, modalities: dict[str, str], labels: dict[str, str]) -> None:
    """Six patients with labels and two without, 32 x 32 x 6 or 7 voxels; the first and last slice are background only.

    The modality is the last axis, if there are several; beside every volume lies its ._ twin.
    """
    nibabel = decathlon.nibabel_package()
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir(parents=True)
    side, files = 32, []
    for number in range(8):
        depth = 6 + number % 2
        body = _ellipse(random, side, side)[..., None] < 1.8  # (X, Y, 1)
        label = np.zeros((side, side, depth), np.int16)
        for value in range(1, len(labels)):
            label[_ellipse(random, side, side) < 1 / value, 1:-1] = value
        planes = []
        for channel, modality in enumerate(modalities.values()):
            if modality == "CT":  # HU: air, lung and soft tissue, with some bone
                tissue = np.where(body, -700, -1024) + 750 * (label > 0) + random.normal(0, 40, label.shape)
                tissue[4, 4] = 1500
            else:  # no unit; nothing outside
                tissue = np.where(body, 300 + 200 * ((label + channel) % 4) + random.normal(0, 30, label.shape), 0)
            planes.append(tissue)
        image = np.stack(planes, -1) if len(planes) > 1 else planes[0]
        name = f"{patient}_{number + 1:03}.nii.gz"
        folders = {"imagesTr": image.astype(np.int16), "labelsTr": label} if number < 6 else {"imagesTs": image}
        for part, voxels in folders.items():
            volume = nibabel.Nifti1Image(voxels.astype(np.uint8 if part == "labelsTr" else np.int16), np.eye(4))
            nibabel.save(volume, root / part / name)
            (root / part / f"._{name}").write_bytes(APPLE_DOUBLE)
        files.append(name)
    stated = {
        "name": root.name,
        "tensorImageSize": "4D" if len(modalities) > 1 else "3D",
        "modality": modalities,
        "labels": labels,
        "numTraining": 6,
        "numTest": 2,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in files[:6]],
        "test": [f"./imagesTs/{name}" for name in files[6:]],
    }
    (root / decathlon.LISTING).write_text(json.dumps(stated, indent=1))


_VOC, _PETS = "/".join(voc.BELOW), "/".join(pets.BELOW)
TREES: dict[str, tuple[str, Callable[[Path, Random], None]]] = {
    "voc": (_VOC, _voc),
    "pets-full": (_PETS, _pets),
    "pets-small": (_PETS, _pets),
    "msd-heart": (decathlon.KINDS["msd-heart"].folder, _heart),
    "msd-brain": (decathlon.KINDS["msd-brain"].folder, _brain),
    "msd-lung": (decathlon.KINDS["msd-lung"].folder, _lung),
}
"""kind → (the folders that its archive unpacks into, what makes the tree there)."""
