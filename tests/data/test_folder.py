"""Folders of images and masks: what is read, by which rule, and what is refused, naming the file."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

from onenet_bench import data
from onenet_bench.data import folder, rasters
from onenet_bench.errors import DataError
from onenet_bench.task import Task

Pixels = NDArray[np.generic]


def _save(path: Path, pixels: Pixels, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def _gray(value: int = 100, height: int = 8, width: int = 8) -> Pixels:
    return np.full((height, width), value, np.uint8)


def _turned(root: Path, orientation: int, height: int = 8, suffix: str = ".jpg") -> None:
    """The third image as a photograph of some EXIF orientation."""
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    (root / "images/2.png").unlink()
    _save(root / f"images/2{suffix}", _gray(100, height), exif=exif)


def _color(value: int = 100) -> Pixels:
    return np.stack([_gray(value), _gray(value + 20), _gray(value + 40)], -1)


def _halves(*values: int, dtype: type = np.uint8) -> Pixels:
    """A mask (8, 8) of bands from left to right."""
    return np.repeat(np.array(values, dtype), 8 // len(values))[None].repeat(8, 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four gray images of brightness 10, 20, 30 and 40 whose masks hold 0 and 1."""
    root = tmp_path / "set"
    for index in range(4):
        _save(root / f"images/{index}.png", _gray(10 * index + 10))
        _save(root / f"masks/{index}.png", _halves(0, 1))
    return root


def _open(root: Path, **wanted: int) -> Task:
    return data.open_task(f"folder:{root}", **{"resolution": 8, **wanted})


def _everything(root: Path, **wanted: int) -> dict[str, tuple[Pixels, Pixels]]:
    """Image and mask of every stem, whatever its split."""
    splits = data.load(_open(root, **wanted))
    return {
        name: (samples.images[row], samples.masks[row])
        for samples in (splits.train, splits.validation, splits.test)
        for row, name in enumerate(samples.names)
    }


# -- images ----------------------------------------------------------------------------------------------------------


def test_gray_stays_one_channel(root: Path) -> None:
    assert _open(root).in_channels == 1
    for stem, (image, mask) in _everything(root).items():
        assert np.array_equal(image, _gray(10 * int(stem) + 10)[None])
        assert np.array_equal(mask, _halves(0, 1))


def test_one_color_image_makes_all_rgb(root: Path) -> None:
    _save(root / "images/0.png", _color())
    found = _everything(root)
    assert np.array_equal(found["0"][0], np.moveaxis(_color(), -1, 0))
    assert np.array_equal(found["1"][0], np.stack([_gray(20)] * 3))


def test_alpha_is_dropped_not_blended(root: Path) -> None:
    transparent = np.concatenate([_color(), np.zeros((8, 8, 1), np.uint8)], -1)
    _save(root / "images/0.png", transparent)
    _save(root / "images/1.png", np.stack([_gray(77), _gray(0)], -1))  # gray and alpha
    found = _everything(root)
    assert np.array_equal(found["0"][0], np.moveaxis(_color(), -1, 0))
    assert (found["1"][0] == 77).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".npy", ".jpg", ".JPEG"])
def test_formats(root: Path, suffix: str) -> None:
    (root / "images/0.png").unlink()
    _save(root / f"images/0{suffix}", _gray(50))
    assert (_everything(root)["0"][0] == 50).all()


def test_the_content_counts_not_the_extension(root: Path) -> None:
    Image.fromarray(_gray(60)).save(root / "images/0.png", format="GIF")
    (root / "masks/1.png").rename(root / "masks/1.jpg")
    found = _everything(root)
    assert (found["0"][0] == 60).all()  # a palette image is in colour
    assert np.array_equal(found["1"][1], _halves(0, 1))


def test_sixteen_bits_share_one_factor(root: Path) -> None:
    _save(root / "images/0.png", np.full((8, 8), 4000, np.uint16))
    _save(root / "images/1.tif", np.full((8, 8), 1000, np.uint16))
    (root / "images/1.png").unlink()
    (root / "images/2.png").unlink()
    _save(root / "images/2.npy", np.full((8, 8), 2000, np.uint16))
    found = _everything(root)
    brightness = {stem: int(image[0, 0, 0]) for stem, (image, _) in found.items()}
    assert brightness == {"0": 255, "1": 64, "2": 128, "3": 40}  # 255 v / 4000; of 8 bits, as it is


def test_npy_keeps_its_channels(root: Path) -> None:
    for index in range(4):
        (root / f"images/{index}.png").unlink()
        _save(root / f"images/{index}.npy", np.arange(5, dtype=np.uint8) + np.zeros((8, 8, 1), np.uint8))
    assert _open(root).in_channels == 5
    assert _everything(root)["2"][0][:, 3, 3].tolist() == [0, 1, 2, 3, 4]


def test_images_are_averaged_and_masks_are_not(root: Path) -> None:
    checks = np.indices((32, 16)).sum(0) % 2  # not square: it is stretched
    _save(root / "images/0.png", (255 * checks).astype(np.uint8))
    _save(root / "masks/0.png", np.where(checks, 200, 0).astype(np.uint8))
    image, mask = _everything(root)["0"]
    assert image.shape == (1, 8, 8)
    assert np.abs(image.astype(int) - 127).max() <= 16
    assert set(np.unique(mask)) <= {0, 2}


def test_image_and_mask_stay_aligned(root: Path) -> None:
    step = np.zeros((40, 24), np.uint8)
    step[10:, 6:] = 1
    _save(root / "images/0.png", 255 * step)
    _save(root / "masks/0.png", step)
    image, mask = _everything(root, resolution=8)["0"]
    assert np.array_equal(image[0] > 127, mask == 1)
    assert (mask == 1).sum() == 6 * 6


# -- masks and classes -----------------------------------------------------------------------------------------------


def test_a_palette_mask_is_its_indices(root: Path) -> None:
    palette = Image.fromarray(_halves(0, 1, 2, 255))
    palette.putpalette([255, 255, 255, 0, 0, 0, 128, 0, 0] + [9, 9, 9] * 253)
    palette.save(root / "masks/0.png")
    with Image.open(root / "masks/0.png") as image:
        assert image.mode == "P"
    assert _open(root).classes == 3
    assert np.array_equal(_everything(root)["0"][1], _halves(0, 1, 2, 255))


def test_contiguous_values_are_classes(root: Path) -> None:
    _save(root / "masks/3.png", _halves(0, 2))
    assert _open(root).class_names == ("background", "value_1", "value_2")


def test_other_values_are_numbered_in_order(root: Path) -> None:
    for index in range(4):
        _save(root / f"masks/{index}.png", _halves(0, 128, 30, 255))
    task = _open(root)
    assert task.class_names == ("background", "value_30", "value_128")
    assert np.array_equal(_everything(root)["0"][1], _halves(0, 2, 1, 255))


@pytest.mark.parametrize(("names", "expected"), [("", ("background", "value_255")), ("sky\ncat\n", ("sky", "cat"))])
def test_masks_of_0_and_255_alone_are_black_and_white_pictures(
    root: Path, names: str, expected: tuple[str, str]
) -> None:
    for path in (root / "masks").iterdir():
        _save(path, _halves(0, 255))
    if names:
        (root / "classes.txt").write_text(names)
    else:
        (root / "classes.txt").unlink(missing_ok=True)
    assert _open(root).class_names == expected
    assert all(np.array_equal(mask, _halves(0, 1)) for _, mask in _everything(root).values())


def test_much_that_counts_nowhere_is_told(root: Path) -> None:
    """A single stray pixel takes their object from black and white pictures."""
    for path in (root / "masks").iterdir():
        _save(path, _halves(0, 255))
    assert data.notes(_open(root)) == ()
    stray = _halves(0, 255)
    stray[0, 0] = 254
    _save(root / "masks/0.png", stray)
    (note,) = data.notes(_open(root))
    assert re.search("set 255, which counts nowhere, has more pixels than .* beside it there are 0, 254$", note)
    for path in (root / "masks").iterdir():
        _save(path, _halves(0, 255, 1, 1))
    assert data.notes(_open(root)) == ()


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".npy", np.int64), (".npy", np.bool_), (".tif", np.int32), (".png", np.uint16), (".png", np.bool_)],
)
def test_integers_of_any_width(root: Path, suffix: str, dtype: type) -> None:
    (root / "masks/0.png").unlink()
    _save(root / f"masks/0{suffix}", _halves(0, 1, dtype=dtype))
    assert np.array_equal(_everything(root)["0"][1], _halves(0, 1))


def test_values_above_a_byte(root: Path) -> None:
    _save(root / "masks/0.png", _halves(0, 1000, dtype=np.uint16))
    assert _open(root).class_names == ("background", "value_1", "value_1000")
    assert np.array_equal(_everything(root)["0"][1], _halves(0, 2))


def test_named_classes_may_be_absent(root: Path) -> None:
    (root / "classes.txt").write_text("# indices from 0\nsky\nroad\n\ncar\n")
    task = _open(root)
    assert (task.class_names, task.background) == (("sky", "road", "car"), 0)
    assert np.array_equal(_everything(root)["0"][1], _halves(0, 1))


def test_names_may_stand_for_values_with_gaps_and_name_the_background(root: Path) -> None:
    """The trimaps of Oxford-IIIT Pet: 1 is the pet, 2 the background, 3 the border."""
    for index in range(4):
        _save(root / f"masks/{index}.png", _halves(1, 2, 3, 2))
    (root / "classes.txt").write_text("pet\nbackground\nborder\n")
    task = _open(root)
    assert task.background == 1
    assert np.array_equal(_everything(root)["0"][1], _halves(0, 1, 2, 1))


# -- splits ----------------------------------------------------------------------------------------------------------


def _many(root: Path, count: int) -> None:
    for index in range(count):
        _save(root / f"images/{index:03}.png", _gray(index))
        _save(root / f"masks/{index:03}.png", _halves(0, 1))


def test_seeded_split(tmp_path: Path) -> None:
    _many(tmp_path, 40)
    task = _open(tmp_path)
    assert (task.train, task.validation, task.test) == (28, 6, 6)
    assert sorted(_everything(tmp_path)) == [f"{index:03}" for index in range(40)]
    names = {seed: data.load(_open(tmp_path, seed=seed)).test.names for seed in range(3)}
    assert len(set(names.values())) == 3
    limited = data.load(_open(tmp_path, train=3, test=2))
    assert limited.test.names == names[0][:2]
    assert len(limited.train) == 3
    assert len(limited.validation) == 6


def test_small_folders_have_an_image_in_each_split(root: Path) -> None:
    for part in ("images", "masks"):
        (root / part / "3.png").unlink()
    task = _open(root)
    assert (task.train, task.validation, task.test) == (1, 1, 1)


def test_split_json(root: Path) -> None:
    (root / "split.json").write_text(json.dumps({"train": ["3", "0"], "validation": ["1"]}))
    splits = data.load(_open(root))
    assert (splits.train.names, splits.validation.names, splits.test.names) == (("3", "0"), ("1",), ())
    assert splits.train.images[:, 0, 0, 0].tolist() == [40, 10]


def test_split_text_files_choose_what_is_used(root: Path) -> None:
    (root / "train.txt").write_text("# official\n0\n1\n")
    (root / "validation.txt").write_text("2\n")
    (root / "test.txt").write_text("\n")
    (root / "masks/3.png").unlink()  # not in use, so not missed
    splits = data.load(_open(root))
    assert (splits.train.names, splits.validation.names, splits.test.names) == (("0", "1"), ("2",), ())


# -- what is passed over ---------------------------------------------------------------------------------------------


def test_hidden_and_other_files_are_passed_over(root: Path) -> None:
    plain = _open(root)
    for name in ("images/._0.png", "masks/._0.png", "images/.DS_Store", "masks/notes.mat", "images/Thumbs.db"):
        (root / name).write_bytes(b"\0\5\26\7not an image")
    (root / "images/more.png").mkdir()
    assert _open(root) == plain


# -- content and cache -----------------------------------------------------------------------------------------------


def _brighter_image(root: Path) -> None:
    _save(root / "images/0.png", _gray(11))


def _other_mask(root: Path) -> None:
    _save(root / "masks/0.png", _halves(1, 0))


def _other_name(root: Path) -> None:
    for part in ("images", "masks"):
        (root / part / "3.png").rename(root / part / "4.png")


def test_files_that_may_not_be_read_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"must be readable, but .*set/images is not \(Permission denied\)"):
        _open(root)


def _add_names(root: Path) -> None:
    (root / "classes.txt").write_text("a\nb\n")


def _add_split(root: Path) -> None:
    (root / "split.json").write_text(json.dumps({"train": ["0", "1"], "validation": ["2"], "test": ["3"]}))


def _remove_a_pair(root: Path) -> None:
    (root / "images/3.png").unlink()
    (root / "masks/3.png").unlink()


@pytest.mark.parametrize("change", [_brighter_image, _other_mask, _other_name, _add_names, _add_split, _remove_a_pair])
def test_a_task_notices_changed_files(root: Path, change: Callable[[Path], None]) -> None:
    task = _open(root)
    data.load(task)
    change(root)
    with pytest.raises(DataError, match="must find the data it was opened on"):
        data.load(task)
    assert _open(root).content != task.content


def test_nothing_is_decoded_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = _open(root)
    first = data.load(task)

    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder, "read_mask", never)
    monkeypatch.setattr(rasters, "open_image", never)
    assert np.array_equal(data.load(_open(root)).train.images, first.train.images)
    assert isinstance(first.train.images, np.memmap)


# -- refusals --------------------------------------------------------------------------------------------------------


def _truncate(root: Path, name: str, suffix: str = ".png") -> None:
    """Cuts the file of a larger stem 2 in the middle of its pixels."""
    noise = np.random.RandomState(0).randint(0, 2, (64, 64), np.uint8)
    for part in ("images", "masks"):
        _save(root / part / "2.png", noise)
    (root / name).unlink()
    path = _save(root / Path(name).with_suffix(suffix), noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, one=_gray(), other=_gray())


def _npy(path: Path, shape: str) -> None:
    """A file of 64 bytes of pixels whose header claims ``shape``."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))


def _two_pages(path: Path) -> None:
    Image.fromarray(_gray()).save(path, save_all=True, append_images=[Image.fromarray(_gray())])


def _then_an_image_without_a_size(path: Path) -> None:
    """Damage: the file's only list of tags points to another, which is empty."""
    whole = bytearray(_save(path, _gray()).read_bytes())
    end = 10 + 12 * int.from_bytes(whole[8:10], "little")
    whole[end : end + 4] = len(whole).to_bytes(4, "little")
    path.write_bytes(whole + bytes(6))


def _of_no_known_pixels(root: Path) -> None:
    path = root / "images/2.png"
    Image.fromarray(_gray()).save(path, format="DDS")
    whole = bytearray(path.read_bytes())
    whole[80:84] = bytes(4)
    path.write_bytes(whole)


def _jpeg_mask(root: Path, name: str) -> None:
    Image.fromarray(_gray()).save(root / name, format="JPEG")


def _jpeg_in_tiff(root: Path) -> None:
    (root / "masks/1.png").unlink()
    Image.fromarray(_gray()).save(root / "masks/1.tif", compression="jpeg")


def _claim_a_billion_pixels(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[16:24] = struct.pack(">II", 40_000, 40_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    path.write_bytes(whole)


def _noise_mask(root: Path) -> None:
    _save(root / "masks/2.png", np.arange(128, dtype=np.uint8).reshape(8, 16))
    _save(root / "images/2.png", _gray(height=8, width=16))


def _only_one(root: Path) -> None:
    for path in (root / "masks").iterdir():
        _save(path, _halves(1, 255))


def _without(*names: str) -> Callable[[Path], object]:
    def remove(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return remove


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


def _raw_png(path: Path, bits: int, kind: int, row: bytes) -> Path:
    """A PNG of eight such rows of eight pixels."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + row) * 8)),
        (b"IEND", b""),
    )
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in parts)
    )
    return path


@pytest.mark.parametrize(("bits", "row"), [(2, bytes([0b00011011] * 2)), (4, bytes([0x01, 0x23] * 2))])
def test_masks_of_few_bits_hold_indices(root: Path, bits: int, row: bytes) -> None:
    for index in range(4):
        _raw_png(root / f"masks/{index}.png", bits, 0, row)
    task = _open(root)
    assert task.class_names == ("background", "value_1", "value_2", "value_3")
    assert data.load(task).train.masks[0, 0].tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(("orientation", "height"), [(1, 8), (6, 6), (8, 10)])
def test_a_photograph_on_its_side_lies_as_its_mask_where_the_sizes_say_so(
    root: Path, orientation: int, height: int
) -> None:
    _turned(root, orientation, height)
    _save(root / "masks/2.png", _gray(1, height))
    assert _everything(root)["2"][1].all()


def _each(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [step(root) for step in steps]


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no mask": (_without("masks/2.png"), r"images/2\.png has no counterpart in .*masks; add 2\.png"),
    "no image": (_without("images/2.png"), r"masks/2\.png has no counterpart in .*images"),
    "no folder": (lambda r: (r / "masks").rename(r / "labels"), r"no folder .*masks"),
    "empty folder": (_without(*(f"images/{index}.png" for index in range(4))), r"no file .*\.npy in .*images"),
    "two files of one stem": (
        lambda r: _save(r / "images/2.jpg", _gray()),
        r"images/2\.jpg and .*images/2\.png share one",
    ),
    "colours of 16 bits": (lambda r: _raw_png(r / "images/2.png", 16, 2, bytes(48 * 8)), r"2\.png is neither; save it"),
    "a photograph on its side": (
        _each(lambda r: _save(r / "images/2.png", _gray(0, 9, 8)), lambda r: _save(r / "masks/2.png", _gray(0, 8, 9))),
        r"masks/2\.png is 9 x 8; save the image as it is seen: EXIF",
    ),
    "a square photograph on its side": (
        lambda r: _turned(r, 6),
        r"images/2\.jpg has EXIF orientation 6, .*save the image as it is seen, without",
    ),
    "a photograph upside down": (
        _each(lambda r: _turned(r, 3, 6), lambda r: _save(r / "masks/2.png", _gray(0, 6, 8))),
        r"images/2\.jpg has EXIF orientation 3, ",
    ),
    "a TIFF that Pillow turns": (lambda r: _turned(r, 4, suffix=".tif"), r"images/2\.tif has EXIF orientation 4, "),
    "a name of other bytes": (
        lambda r: (r / "images/2.png").rename(os.fsdecode(bytes(r / "images") + b"/Gr\xf6\xdfe.png")),
        r"UTF-8, but 'Gr.*png' in .*images is not; rename it",
    ),
    "sizes": (
        lambda r: _save(r / "masks/2.png", _gray(0, 8, 9)),
        r"images/2\.png is 8 x 8 and .*masks/2\.png is 9 x 8",
    ),
    "truncated image": (lambda r: _truncate(r, "images/2.png"), r"images/2\.png cannot be read"),
    "truncated photo": (lambda r: _truncate(r, "images/2.png", ".jpg"), r"images/2\.jpg cannot be read"),
    "truncated mask": (lambda r: _truncate(r, "masks/2.png"), r"masks/2\.png cannot be read"),
    "truncated npy": (lambda r: _truncate(r, "masks/2.png", ".npy"), r"masks/2\.npy cannot be read"),
    "no image at all": (_write("images/2.png", "hello"), r"images/2\.png cannot be read"),
    "empty file": (_write("masks/2.png", ""), r"masks/2\.png cannot be read"),
    "no size": (
        _each(_without("images/2.png"), lambda r: _then_an_image_without_a_size(r / "images/2.tif")),
        r"images/2\.tif cannot be read \(Missing dimensions\); replace it",
    ),
    "unknown pixels": (_of_no_known_pixels, r"images/2\.png cannot be read \(Unknown pixel format flags 0\)"),
    "enormous": (lambda r: _claim_a_billion_pixels(r / "images/2.png"), r"images/2\.png cannot be read .*bomb"),
    "broken npy": (
        _each(_without("images/2.png"), _write("images/2.npy", "\x93NUMPY")),
        r"images/2\.npy cannot be read",
    ),
    "several arrays": (
        _each(_without("images/2.png"), lambda r: _npz(r / "images/2.npy")),
        r"images/2\.npy cannot be read .*several arrays",
    ),
    "open bracket": (
        _each(_without("images/2.png"), lambda r: _npy(r / "images/2.npy", "((8, 8)")),
        r"images/2\.npy cannot be read",
    ),
    "more than there is": (
        _each(_without("images/2.png"), lambda r: _npy(r / "images/2.npy", "(999999999, 999999)")),
        r"images/2\.npy cannot be read",
    ),
    "a side of many digits": (
        _each(_without("images/2.png"), lambda r: _npy(r / "images/2.npy", f"({'9' * 30}, 8)")),
        r"images/2\.npy cannot be read",
    ),
    "signs without end": (
        _each(_without("images/2.png"), lambda r: _npy(r / "images/2.npy", f"({'-' * 9000}8, 8)")),
        r"images/2\.npy cannot be read",
    ),
    "nested split": (_write("split.json", "[" * 100_000), r"split\.json is not JSON"),
    "pickled npy": (
        _each(
            _without("images/2.png"),
            lambda r: np.save(r / "images/2.npy", np.array([{}], object), allow_pickle=True),
        ),
        r"images/2\.npy cannot be read",
    ),
    "float npy": (
        _each(_without("images/2.png"), lambda r: np.save(r / "images/2.npy", np.zeros((8, 8)))),
        r"images/2\.npy is \(8, 8\) of float64; scale",
    ),
    "float tiff": (
        _each(
            _without("images/2.png"),
            lambda r: _save(r / "images/2.tif", np.zeros((8, 8), np.float32)),
        ),
        r"images/2\.tif is of floating point",
    ),
    "wide integers": (
        _each(
            _without("images/2.png"),
            lambda r: _save(r / "images/2.tif", np.full((8, 8), 70_000, np.int32)),
        ),
        r"0 to 65535, but .*images/2\.tif has 70000",
    ),
    "pages": (
        _each(_without("images/2.png"), lambda r: _two_pages(r / "images/2.tif")),
        r"images/2\.tif holds several",
    ),
    "channels": (
        _each(
            _without("images/2.png"),
            lambda r: _save(r / "images/2.npy", np.zeros((8, 8, 4), np.uint8)),
        ),
        r"images/0\.png has 1, .*images/2\.npy has 4",
    ),
    "jpeg mask": (lambda r: _jpeg_mask(r, "masks/2.png"), r"masks/2\.png is a JPEG; make a PNG"),
    "jpeg in tiff": (_jpeg_in_tiff, r"masks/1\.tif is a JPEG"),
    "colour mask": (
        lambda r: _save(r / "masks/2.png", _color()),
        r"masks/2\.png has the channels RGB; map each colour",
    ),
    "float mask": (
        _each(_without("masks/2.png"), lambda r: np.save(r / "masks/2.npy", np.zeros((8, 8)))),
        r"masks/2\.npy is \(8, 8\) of float64; save class indices",
    ),
    "negative mask": (
        _each(
            _without("masks/2.png"),
            lambda r: _save(r / "masks/2.npy", _halves(0, -1, dtype=np.int16)),
        ),
        r"masks/2\.npy holds -1; write 255",
    ),
    "wide mask": (
        _each(
            _without("masks/2.png"),
            lambda r: _save(r / "masks/2.npy", _halves(0, 2**63, dtype=np.uint64)),
        ),
        r"below 2\^63, but .*masks/2\.npy holds 9223372036854775808",
    ),
    "too many classes": (_noise_mask, r"at most 64 different ones, but with .*masks/2\.png"),
    "1 and 255": (_only_one, "hold nothing but 1 and perhaps 255, .* objects as 1"),
    "1 and 255, with names": (_each(_only_one, _write("classes.txt", "a\nb\n")), "hold nothing but 1 and"),
    "too few names": (
        _each(_write("classes.txt", "a\nb\n"), lambda r: _save(r / "masks/2.png", _halves(0, 7))),
        r"classes\.txt names 2 classes, but the masks hold the values 0, 1, 7",
    ),
    "same names": (_write("classes.txt", "a\na\n"), r"classes\.txt has one twice"),
    "names not in UTF-8": (lambda r: (r / "classes.txt").write_bytes(b"\xe9t\xe9\n"), r"classes\.txt must be UTF-8"),
    "too few to split": (
        _without("images/0.png", "masks/0.png", "images/1.png", "masks/1.png"),
        "at least 3 images, but .* has 2",
    ),
    "unknown stem": (
        _each(_write("train.txt", "0\n9\n"), _write("validation.txt", "1\n")),
        r"'9' in .*train\.txt names neither",
    ),
    "empty split": (
        _each(_write("train.txt", "0\n"), _write("validation.txt", "#\n")),
        r"validation split of .*validation\.txt is empty",
    ),
    "half a split": (_write("train.txt", "0\n"), "has no validation part"),
    "in two splits": (
        _each(_write("train.txt", "0\n1\n"), _write("validation.txt", "1\n")),
        r"validation\.txt lists '1' in validation after train",
    ),
    "two statements": (
        _each(_write("train.txt", "0\n"), _write("split.json", "{}")),
        r"both split\.json and train\.txt",
    ),
    "split is not JSON": (_write("split.json", "{"), r"split\.json is not JSON"),
    "split of another form": (_write("split.json", '{"val": ["1"]}'), r"split\.json must be of the form"),
    "split without content": (_write("split.json", "{}"), "has no train part"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(root: Path, case: str) -> None:
    spoil, message = REFUSALS[case]
    data.load(_open(root))  # is fine before
    spoil(root)
    with pytest.raises(DataError, match=message):
        data.load(_open(root))


def test_refuses_more_images_than_there_are(root: Path) -> None:
    with pytest.raises(DataError, match=r"train split of .* has 2 images, but 3 were asked for"):
        _open(root, train=3)


def test_refuses_a_name_without_a_path() -> None:
    with pytest.raises(DataError, match="write folder:PATH"):
        data.open_task("folder")


def test_white_is_kept_and_other_images_are_scaled_by_it(root: Path) -> None:
    """Tasks of versions that did not keep it are what they were."""
    assert _open(root).white is None
    assert "white" not in _open(root).to_dict()
    _save(root / "images/0.png", np.full((8, 8), 4000, np.uint16))
    _save(root / "images/1.png", np.full((8, 8), 1000, np.uint16))
    task = _open(root)
    assert task.white == 4000
    assert Task.from_dict(task.to_dict()) == task
    older = replace(task, white=None)
    assert older.digest() == task.digest()
    other = _open(root, white=2000)
    assert other.white == 2000
    for opened, wanted in ((task, (255, 64)), (older, (255, 64)), (other, (255, 128)), (task, (255, 64))):
        splits = data.load(opened)
        brightness = {
            name: int(samples.images[row, 0, 0, 0])
            for samples in (splits.train, splits.validation, splits.test)
            for row, name in enumerate(samples.names)
        }
        assert (brightness["0"], brightness["1"], brightness["2"]) == (*wanted, 30)
