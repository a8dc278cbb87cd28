"""PASCAL VOC and Oxford-IIIT Pet, item for item against an independent reading of the same generated trees.

The reading is that of torchvision's ``VOCSegmentation`` and ``OxfordIIITPet``: names from the split's list, the
image as RGB, the target as PIL opens it. Nothing of the package is used for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onenet_bench import data
from onenet_bench.data import _cache, _pairs, tiny
from onenet_bench.errors import DataError

SIDE = 24
KINDS = ("voc", "pets-full", "pets-small")
Bytes = NDArray[np.uint8]
Items = dict[str, tuple[Bytes, Bytes]]


def _grown(kind: str, folder: Path) -> Path:
    return Path(tiny.grow(kind, folder).partition(":")[2])


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return _grown("voc", tmp_path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return _grown("pets-full", tmp_path)


def _splits(kind: str, root: Path, **wanted: int) -> dict[str, Items]:
    splits = data.load(data.open_task(f"{kind}:{root}", resolution=SIDE, **wanted))
    return {
        split: {
            name: (samples.images[row], samples.masks[row]) for row, name in enumerate(getattr(splits, split).names)
        }
        for split in ("train", "validation", "test")
        for samples in [getattr(splits, split)]
    }


def _read_voc(root: Path, image_set: str) -> Items:
    names = (root / f"ImageSets/Segmentation/{image_set}.txt").read_text().split()
    return {
        name: _squared(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png", lambda target: target)
        for name in names
    }


def _read_pets(root: Path, split: str, kind: str) -> Items:
    items = {}
    for line in (root / f"annotations/{split}.txt").read_text().splitlines():
        name, label, _, _ = line.split()

        def named(trimap: Bytes, label: int = int(label)) -> Bytes:
            if kind == "pets-small":
                return trimap - 1
            classes = np.full_like(trimap, 255)
            classes[trimap == 1], classes[trimap == 2] = label, 0
            return classes

        items[name] = _squared(root / f"images/{name}.jpg", root / f"annotations/trimaps/{name}.png", named)
    return items


def _squared(image: Path, target: Path, named: Callable[[Bytes], Bytes]) -> tuple[Bytes, Bytes]:
    pixels = Image.open(image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    indices = Image.open(target).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.moveaxis(np.asarray(pixels), -1, 0), named(np.asarray(indices))


def _same(found: Items, expected: Items) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(one, other) for name in expected for one, other in zip(found[name], expected[name], strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_is_what_an_independent_reading_gives(kind: str, tmp_path: Path) -> None:
    root = _grown(kind, tmp_path)
    found = _splits(kind, root)
    if kind == "voc":
        training, test = _read_voc(root, "train"), _read_voc(root, "val")
    else:
        training, test = _read_pets(root, "trainval", kind), _read_pets(root, "test", kind)
    assert _same(found["train"] | found["validation"], training)
    assert _same(found["test"], test)
    assert not found["train"].keys() & found["validation"].keys()
    assert len(found["validation"]) == round(0.1 * len(training))


def test_what_the_classes_are(voc: Path, pets: Path) -> None:
    of_voc = data.open_task(f"voc:{voc}")
    assert (of_voc.classes, of_voc.background, of_voc.ignore_index) == (21, 0, 255)
    assert (of_voc.class_names[8], of_voc.class_names[20]) == ("cat", "tvmonitor")
    small = data.open_task(f"pets-small:{pets}")
    assert (small.class_names, small.background) == (("pet", "background", "border"), 1)
    full = data.open_task(f"pets-full:{pets}")
    assert (full.classes, full.background) == (38, 0)
    assert (full.class_names[1], full.class_names[12], full.class_names[37]) == (
        "Abyssinian", "Egyptian_Mau", "yorkshire_terrier",
    )  # fmt: skip


def test_a_mask_is_its_palette_index_and_255_counts_nowhere(voc: Path) -> None:
    found = _splits("voc", voc)
    values = {int(value) for items in found.values() for _, mask in items.values() for value in np.unique(mask)}
    assert values == {*range(21), 255}


def test_the_background_of_a_trimap_is_around_the_pet(pets: Path) -> None:
    for kind, background in (("pets-small", 1), ("pets-full", 0)):
        masks = [mask for _, mask in _splits(kind, pets)["test"].values()]
        assert {int(mask[0, 0]) for mask in masks} == {background}
        assert background not in {int(mask[SIDE // 2, SIDE // 2]) for mask in masks}


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_it_was_unpacked_in_will_do(kind: str, tmp_path: Path) -> None:
    root = _grown(kind, tmp_path)
    here, above = (data.open_task(f"{kind}:{path}", resolution=SIDE) for path in (root, tmp_path))
    assert above.content == here.content
    assert data.load(above).train.names == data.load(here).train.names


def test_the_paper_has_the_classes_of_the_data(voc: Path, pets: Path) -> None:
    for kind, root in (("voc", voc), ("pets-full", pets), ("pets-small", pets)):
        plain, paper = (data.open_task(f"{kind}:{root}{knob}", resolution=SIDE) for knob in ("", "?paper-classes"))
        assert paper.class_names == plain.class_names
        assert paper.data != plain.data
        assert data.load(paper).train.names == data.load(plain).train.names


def test_fewer_images_are_a_fair_sample(pets: Path) -> None:
    task = data.open_task(f"pets-small:{pets}", resolution=SIDE, train=10, validation=2, test=10)
    for samples, listed in ((data.load(task).train, "trainval"), (data.load(task).test, "test")):
        lines = (pets / f"annotations/{listed}.txt").read_text().splitlines()
        assert not set(samples.names) <= {line.split()[0] for line in lines[:20]}, "the first breeds only"


def test_an_open_task_reads_no_file_twice(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in voc.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    task = data.open_task(f"voc:{voc}", resolution=SIDE)
    data.load(task)

    def never(_: object) -> None:
        raise AssertionError("read again")

    for name in ("read_rgb", "read_indices"):
        monkeypatch.setattr(_pairs, name, never)
    monkeypatch.setattr(_cache, "sha256", never)
    assert data.open_task(f"voc:{voc}", resolution=SIDE) == task
    assert len(data.load(task).train) == 18


@pytest.mark.parametrize(
    ("changed", "by"),
    [
        ("JPEGImages/2007_000001.jpg", "JPEGImages/2007_000003.jpg"),
        ("SegmentationClass/2007_000001.png", "SegmentationClass/2007_000003.png"),
        ("ImageSets/Segmentation/train.txt", "# a comment"),
    ],
)
def test_a_changed_file_is_other_content(changed: str, by: str, voc: Path) -> None:
    task = data.open_task(f"voc:{voc}", resolution=SIDE)
    old = (voc / changed).read_bytes()
    (voc / changed).write_bytes((voc / by).read_bytes() if (voc / by).exists() else by.encode() + b"\n" + old)
    with pytest.raises(DataError, match="must find the data it was opened on"):
        data.load(task)


def test_what_no_list_names_is_passed_over(voc: Path, pets: Path) -> None:
    contents = [data.open_task(name).content for name in (f"voc:{voc}", f"pets-full:{pets}")]
    (voc / "SegmentationClass/2007_000027.png").write_bytes(b"broken")  # in no list
    (pets / "images/._pug_1.jpg").write_bytes(b"broken")
    (pets / "images/Abyssinian_103.mat").write_bytes(b"broken")
    assert [data.open_task(name).content for name in (f"voc:{voc}", f"pets-full:{pets}")] == contents


def test_an_interrupted_conversion_ends_as_an_uninterrupted_one(
    voc: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _pairs.read_pair
    seen: list[str] = []

    def until(last: int) -> Callable[[_pairs.Pair], tuple[Bytes, Bytes]]:
        def reading(pair: _pairs.Pair) -> tuple[Bytes, Bytes]:
            if len(seen) == last:
                raise KeyboardInterrupt
            seen.append(pair.name)
            return read(pair)

        return reading

    monkeypatch.setattr(_pairs, "read_pair", until(7))
    with pytest.raises(KeyboardInterrupt):
        _splits("voc", voc)
    assert all(path.name.startswith(".") for path in cache.iterdir())
    monkeypatch.setattr(_pairs, "read_pair", until(1000))
    resumed = _splits("voc", voc)
    assert len(seen) == len(set(seen)) == 26
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "another"))
    straight = _splits("voc", voc)
    assert all(_same(resumed[split], straight[split]) for split in straight)


# -- refusals --------------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _mask(path: Path, value: int, size: tuple[int, int] = (36, 48), **options: str) -> None:
    Image.new("L", size, value).save(path, **options)


VOC_LIST, PETS_LIST = "ImageSets/Segmentation/train.txt", "annotations/trainval.txt"
VOC_IMAGE, VOC_MASK = "JPEGImages/2007_000001.jpg", "SegmentationClass/2007_000001.png"
TRIMAP = "annotations/trimaps/pug_1.png"

REFUSALS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated mask": ("voc", lambda r: _cut(r / VOC_MASK), rf"{VOC_MASK} cannot be read"),
    "truncated photograph": ("voc", lambda r: _cut(r / VOC_IMAGE), rf"{VOC_IMAGE} cannot be read"),
    "no image at all": ("voc", lambda r: (r / VOC_IMAGE).write_text("<html>"), rf"{VOC_IMAGE} cannot be read"),
    "sizes": (
        "voc",
        lambda r: _mask(r / VOC_MASK, 0, (47, 36)),
        rf"{VOC_IMAGE} is 36 x 48 and .*{VOC_MASK} is 47 x 36",
    ),
    "class out of range": ("voc", lambda r: _mask(r / VOC_MASK, 21), rf"{VOC_MASK} holds 21"),
    "colours": (
        "voc",
        lambda r: Image.open(r / VOC_MASK).convert("RGB").save(r / VOC_MASK),
        rf"{VOC_MASK} is a PNG of mode RGB",
    ),
    "photograph of a mask": ("voc", lambda r: _mask(r / VOC_MASK, 0, format="JPEG"), rf"{VOC_MASK} is a JPEG of mode"),
    "no mask": ("voc", lambda r: (r / VOC_MASK).unlink(), rf"{VOC_MASK} is a part .* no such file"),
    "empty list": ("voc", lambda r: (r / VOC_LIST).write_text("# nothing\n\n"), rf"{VOC_LIST} names none"),
    "one image": (
        "voc",
        lambda r: (r / VOC_LIST).write_text("2007_000001\n"),
        rf"training and validation need an image each, but .*{VOC_LIST} names 1",
    ),
    "list of bytes": ("voc", lambda r: (r / VOC_LIST).write_bytes(b"\xff\xfe\xe9"), rf"{VOC_LIST} is not: .*decode"),
    "in two lists": (
        "voc",
        lambda r: (r / VOC_LIST).write_text("2007_000001\n2007_000021\n"),
        r"val\.txt lists 2007_000021 after .*train\.txt",
    ),
    "no tree": ("voc", lambda r: (r / VOC_LIST).unlink(), r"needs a tree with .*train\.txt .*data verify voc .* fetch"),
    "no test list": (
        "voc",
        lambda r: (r / "ImageSets/Segmentation/val.txt").unlink(),
        r"list of images must be readable text, but .*val\.txt is not",
    ),
    "trimap out of range": ("pets-small", lambda r: _mask(r / TRIMAP, 4, (40, 32)), rf"hold 1, 2, 3, but .*{TRIMAP}"),
    "trimap of zeros": ("pets-full", lambda r: _mask(r / TRIMAP, 0, (40, 32)), rf"{TRIMAP} holds 0"),
    "unknown breed": (
        "pets-full",
        lambda r: (r / PETS_LIST).write_text("pug_1 26 2 26\nwolf_1 38 2 26\n"),
        rf"{PETS_LIST} has 'wolf_1 38 2 26'",
    ),
    "another's CLASS-ID": (
        "pets-small",
        lambda r: (r / PETS_LIST).write_text("pug_1 25 2 25\n"),
        rf"{PETS_LIST} has 'pug_1 25 2 25'",
    ),
    "no CLASS-ID": ("pets-full", lambda r: (r / PETS_LIST).write_text("pug_1\n"), rf"{PETS_LIST} has 'pug_1'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str, tmp_path: Path, cache: Path) -> None:
    kind, spoil, message = REFUSALS[case]
    root = _grown(kind, tmp_path)
    spoil(root)
    with pytest.raises(DataError, match=message) as refusal:
        _splits(kind, root)
    assert "\n" not in str(refusal.value)
    for entry in filter(Path.is_dir, cache.glob("*")):
        assert (entry / "sha256.json").is_file(), "only what is whole is left"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("voc", r"voc needs the path of its tree; write voc:PATH"),
        ("voc:?paper-classes", "needs the path"),
        ("voc:nowhere", "voc needs a tree with .* but nowhere holds none"),
        ("voc:somewhere?paper", "unknown knob of voc 'paper'; known: paper-classes"),
        ("pets-full:somewhere?foreground-slices", "unknown knob of pets-full 'foreground-slices'"),
    ],
)
def test_refuses_names(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.open_task(name)
