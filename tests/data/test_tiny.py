"""The tiny trees hold the quirks that break naive loaders, and are made whole and always alike."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from onenet_bench.data import tiny
from onenet_bench.errors import DataError


def _grown(kind: str, folder: Path) -> Path:
    return Path(tiny.grow(kind, folder).partition(":")[2])


def test_voc_has_palettes_void_and_a_png_named_jpg(tmp_path: Path) -> None:
    root = _grown("voc", tmp_path)
    assert root.parts[-2:] == ("VOCdevkit", "VOC2012")
    with Image.open(root / "SegmentationClass/2007_000001.png") as mask:
        assert mask.mode == "P"
        assert {0, 255} < set(np.unique(np.asarray(mask)).tolist())
        assert (mask.getpalette() or [])[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        assert 255 not in np.asarray(mask.convert("L"))  # the trap
    formats = {Image.open(path).format for path in (root / "JPEGImages").iterdir()}
    assert formats == {"JPEG", "PNG"}
    assert len(list((root / "JPEGImages").iterdir())) == 27  # one more than the lists name


def test_pets_have_mistyped_files_twins_and_comments(tmp_path: Path) -> None:
    root = _grown("pets-full", tmp_path)
    assert _grown("pets-small", tmp_path) == root
    assert {Image.open(path).format for path in root.glob("images/*.jpg")} == {"JPEG", "PNG", "GIF"}
    assert "RGBA" in {Image.open(path).mode for path in root.glob("images/*.jpg")}
    assert len(list(root.glob("images/*.mat"))) == 3
    assert len(list(root.glob("annotations/trimaps/._*.png"))) == 74
    lines = (root / "annotations/list.txt").read_text().splitlines()
    assert [line.startswith("#") for line in lines] == [True] * 6 + [False] * 74
    assert {int(line.split()[1]) for line in lines[6:]} == set(range(1, 38))
    trimap = np.asarray(Image.open(root / "annotations/trimaps/pug_1.png"))
    assert set(np.unique(trimap)) == {1, 2, 3}
    assert trimap[0, 0] == 2


@pytest.mark.parametrize(("kind", "shape", "least"), [("msd-heart", 3, 0), ("msd-brain", 4, 0), ("msd-lung", 3, -1200)])
def test_volumes_have_twins_and_slices_without_an_object(kind: str, shape: int, least: int, tmp_path: Path) -> None:
    root = _grown(kind, tmp_path)
    stated = json.loads((root / "dataset.json").read_text())
    assert (len(stated["training"]), len(stated["test"]), next(iter(stated["labels"]))) == (6, 2, "0")
    assert all(isinstance(path, str) for path in stated["test"])
    assert len(list(root.glob("imagesTr/*.nii.gz"))) == 12  # twins and all
    for item in stated["training"]:
        image = nibabel.load(root / item["image"])
        assert image.ndim == shape
        assert image.shape[3:] == ((4,) if shape == 4 else ())
        assert least <= image.get_fdata().min() <= least + 200
        label = np.asarray(nibabel.load(root / item["label"]).dataobj)
        assert not label[:, :, [0, -1]].any()
        assert set(np.unique(label)) == {int(key) for key in stated["labels"]}


@pytest.mark.parametrize("kind", sorted(tiny.TREES))
def test_the_same_bytes_every_time_and_nothing_beside(kind: str, tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(str(p.relative_to(root)).encode() + p.read_bytes() for p in files)).hexdigest()

    one, other = _grown(kind, tmp_path / "one"), _grown(kind, tmp_path / "other")
    assert digest(one) == digest(other)
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_a_tree_that_is_there_is_kept(tmp_path: Path) -> None:
    root = _grown("voc", tmp_path)
    (root / "mine").write_text("x")
    assert _grown("voc", tmp_path) == root
    assert (root / "mine").exists()


def test_an_end_in_the_middle_leaves_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "putpalette", ends)
        with pytest.raises(KeyboardInterrupt):
            tiny.grow("voc", tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(list((_grown("voc", tmp_path) / "SegmentationClass").iterdir())) == 27


def test_an_unknown_kind_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown published data set 'coco'; known: msd-brain, .*, voc"):
        tiny.grow("coco", tmp_path)
