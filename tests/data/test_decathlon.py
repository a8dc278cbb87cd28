"""The decathlon's volumes, item for item against nibabel and ``dataset.json``, and what is made of intensities."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onenet_bench import data
from onenet_bench.data import decathlon, tiny
from onenet_bench.errors import DataError

KINDS = ("msd-heart", "msd-brain", "msd-lung")
SIDE = 32  # of the tiny volumes, so that nothing is resized


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _grown(kind: str, folder: Path) -> Path:
    return Path(tiny.grow(kind, folder).partition(":")[2])


@pytest.fixture
def heart(tmp_path: Path) -> Path:
    return _grown("msd-heart", tmp_path)


def _load(kind: str, root: Path, knobs: str = "", resolution: int = SIDE, **wanted: int) -> data.Splits:
    return data.load(data.open_task(f"{kind}:{root}{knobs}", resolution=resolution, **wanted))


def _named(samples: data.Samples) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    return {name: (samples.images[row], samples.masks[row]) for row, name in enumerate(samples.names)}


def _expected(volume: NDArray[np.float64], modality: str) -> NDArray[np.float64]:
    """Grey levels, not yet rounded, of one modality (X, Y, Z)."""
    if modality == "CT":
        return (np.clip(volume, -1000, 400) + 1000) / 1400 * 255
    inside = volume[volume != 0]
    levels = 128 + 25.4 * np.clip((volume - inside.mean()) / inside.std(), -5, 5)
    return np.where(volume == 0, 0, levels)


def test_every_slice_is_what_nibabel_reads(kind: str, tmp_path: Path) -> None:
    root = _grown(kind, tmp_path)
    splits = _load(kind, root)
    found = _named(splits.train) | _named(splits.validation) | _named(splits.test)
    stated = json.loads((root / "dataset.json").read_text())
    seen = 0
    for item in stated["training"]:
        image = np.asarray(nibabel.load(root / item["image"]).get_fdata())
        label = np.asarray(nibabel.load(root / item["label"]).get_fdata())
        modalities = list(stated["modality"].values())
        channels = [
            _expected(image[..., channel] if image.ndim == 4 else image, modality)
            for channel, modality in enumerate(modalities)
        ]
        for z in range(label.shape[2]):
            slice_, mask = found[f"{Path(item['image']).name[:-7]}/slice-{z:03}"]
            assert slice_.shape == (len(modalities), SIDE, SIDE)
            for channel, levels in enumerate(channels):
                assert np.abs(slice_[channel] - levels[:, :, z]).max() < 0.51
            assert np.array_equal(mask, label[:, :, z])
            seen += 1
    assert seen == len(found) == sum(map(len, (splits.train, splits.validation, splits.test)))


def test_what_the_classes_and_channels_are(tmp_path: Path) -> None:
    tasks = {kind: data.open_task(tiny.grow(kind, tmp_path)) for kind in KINDS}
    assert {kind: (task.in_channels, task.classes, task.background) for kind, task in tasks.items()} == {
        "msd-heart": (1, 2, 0),
        "msd-brain": (4, 4, 0),
        "msd-lung": (1, 2, 0),
    }
    assert tasks["msd-lung"].class_names == ("background", "cancer")


def test_no_patient_is_in_two_splits_and_no_slice_is_lost(kind: str, tmp_path: Path) -> None:
    root = _grown(kind, tmp_path)
    for seed in range(3):
        splits = _load(kind, root, seed=seed)
        patients = [
            {name.split("/")[0] for name in samples.names} for samples in (splits.train, splits.validation, splits.test)
        ]
        assert [len(of_split) for of_split in patients] == [4, 1, 1]
        assert len(set.union(*patients)) == 6
        for samples in (splits.validation, splits.test):
            (patient,) = {name.split("/")[0] for name in samples.names}
            depth = nibabel.load(root / f"imagesTr/{patient}.nii.gz").shape[2]
            assert samples.names == tuple(f"{patient}/slice-{z:03}" for z in range(depth))
            assert not samples.masks[0].any(), "a slice without an object is kept"
        assert list(splits.train.names) != sorted(splits.train.names)


def test_foreground_slices_drops_the_rest_from_training_only(heart: Path) -> None:
    every, some = (_load("msd-heart", heart, knobs) for knobs in ("", "?foreground-slices"))
    kept = {name for name, (_, mask) in _named(every.train).items() if mask.any()}
    assert set(some.train.names) == kept
    assert 0 < len(kept) < len(every.train)
    assert (some.validation.names, some.test.names) == (every.validation.names, every.test.names)


def test_the_papers_classes_are_a_preset_that_a_task_carries(tmp_path: Path) -> None:
    for kind, names in {
        "msd-heart": ("background", "left atrium", "(paper) unused 2", "(paper) unused 3"),
        "msd-lung": ("background", "cancer"),
    }.items():
        task = data.open_task(f"{tiny.grow(kind, tmp_path)}?paper-classes", resolution=SIDE)
        assert task.class_names == names
        rebuilt = data.load(type(task).from_dict(task.to_dict()))
        assert rebuilt.train.masks.max() == 1
    both = data.open_task(f"{tiny.grow('msd-heart', tmp_path)}?foreground-slices,paper-classes")
    assert (both.classes, both.train) == (4, 18)


def test_masks_are_nearest_and_images_averaged(heart: Path) -> None:
    native, small = _load("msd-heart", heart), _load("msd-heart", heart, resolution=16)
    for name, (image, mask) in _named(small.train).items():
        whole, labels = _named(native.train)[name]
        side = (16, 16)
        assert np.array_equal(mask, np.asarray(Image.fromarray(labels).resize(side, Image.Resampling.NEAREST)))
        assert np.array_equal(image[0], np.asarray(Image.fromarray(whole[0]).resize(side, Image.Resampling.BILINEAR)))


def test_intensities_of_mri() -> None:
    random = np.random.RandomState(0)
    volume = random.normal(500, 20, (8, 8, 8, 2)).astype(np.float32)
    volume[..., 1] = 3 * volume[..., 0] - 400  # another unit of the same picture
    volume[0] = 0
    volume[1, 1, 1] = 1e5  # a spike
    made = decathlon.to_bytes(volume, ("T1w", "T2w"))
    assert (made[0] == 0).all()
    assert made[1:].min() >= 1
    assert made[1, 1, 1].tolist() == [255, 255]
    calm = decathlon.to_bytes(np.where(volume > 1e4, 500, volume), ("T1w", "T2w"))
    assert np.abs(calm[1:, ..., 0].mean() - 128) < 1
    assert np.abs(calm[1:, ..., 0].std() - 25.4) < 1
    assert decathlon.to_bytes(np.zeros((2, 2, 2, 1), np.float32), ("MRI",)).max() == 0
    assert set(np.unique(decathlon.to_bytes(np.full((2, 2, 2, 1), 7, np.float32), ("MRI",)))) == {128}


def test_intensities_of_ct_are_hounsfield_units() -> None:
    volume = np.array([-2048, -1000, -300, 0, 400, 3000], np.float32).reshape(6, 1, 1, 1)
    assert decathlon.to_bytes(volume, ("CT",)).ravel().tolist() == [0, 0, 128, 182, 255, 255]


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    units = np.linspace(-1024, 3000, 64).reshape(4, 4, 4)
    stored = nibabel.Nifti1Image(units, np.eye(4))
    stored.set_data_dtype(np.int16)  # for which nibabel chooses a slope and an intercept
    nibabel.save(stored, tmp_path / "a.nii.gz")
    assert nibabel.load(tmp_path / "a.nii.gz").dataobj.slope != 1
    read = decathlon.read_image(tmp_path / "a.nii.gz")
    assert read.dtype == np.float32
    assert np.allclose(read[..., 0], units, atol=0.1)


def test_labels_of_floating_point_are_read_where_they_are_whole(heart: Path) -> None:
    path = heart / "labelsTr/la_001.nii.gz"
    before = _load("msd-heart", heart)
    _rewrite(path, lambda voxels: voxels.astype(np.float32))
    after = _load("msd-heart", heart)
    assert np.array_equal(after.train.masks, before.train.masks)


def test_a_slice_of_zeros_stays_black(heart: Path) -> None:
    def blacken(voxels: NDArray[Any]) -> NDArray[Any]:
        voxels[:, :, 0] = 0
        return voxels

    _rewrite(heart / "imagesTr/la_001.nii.gz", blacken)
    found = {**_named(_load("msd-heart", heart).train), **_named(_load("msd-heart", heart).validation)}
    found |= _named(_load("msd-heart", heart).test)
    assert found["la_001/slice-000"][0].max() == 0
    assert found["la_001/slice-001"][0].max() > 0


def test_what_is_not_listed_is_passed_over(kind: str, tmp_path: Path) -> None:
    root = _grown(kind, tmp_path)
    content = data.open_task(f"{kind}:{root}").content
    assert list(root.glob("imagesTr/._*.nii.gz"))
    (root / "imagesTr/another.nii.gz").write_bytes(b"broken")
    assert data.open_task(f"{kind}:{tmp_path}").content == content


@pytest.mark.parametrize("changed", ["imagesTr/la_001.nii.gz", "labelsTr/la_001.nii.gz", "dataset.json"])
def test_a_changed_file_is_other_content(changed: str, heart: Path) -> None:
    task = data.open_task(f"msd-heart:{heart}")
    if changed == "dataset.json":
        _state(heart, lambda stated: stated.update(description="another"))
    else:
        _rewrite(heart / changed, lambda voxels: voxels[::-1])
    with pytest.raises(DataError, match="must find the data it was opened on"):
        data.load(task)


def test_volumes_are_converted_one_by_one_and_gone_on_with(
    heart: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = decathlon.read_volume
    seen: list[str] = []

    def until(last: int) -> Callable[..., Any]:
        def reading(tree: decathlon.VolumeTree, volume: decathlon.Volume) -> Any:
            if len(seen) == last:
                raise KeyboardInterrupt
            seen.append(volume.name)
            return read(tree, volume)

        return reading

    monkeypatch.setattr(decathlon, "read_volume", until(2))
    with pytest.raises(KeyboardInterrupt):
        _load("msd-heart", heart)
    assert all(path.name.startswith(".") for path in cache.iterdir())
    monkeypatch.setattr(decathlon, "read_volume", until(100))
    resumed = _load("msd-heart", heart)
    assert sorted(seen) == [f"la_{number:03}" for number in range(1, 7)]
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "another"))
    straight = _load("msd-heart", heart)
    assert np.array_equal(resumed.train.images, straight.train.images)
    assert resumed.train.names == straight.train.names


def test_without_nibabel_one_sentence_says_how_to_get_it(heart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    for ask in (lambda: data.open_task(f"msd-heart:{heart}"), lambda: tiny.grow("msd-lung", heart)):
        with pytest.raises(DataError, match=r"needs the package nibabel, .*pip install 'onenet-bench\[medical\]'"):
            ask()


# -- refusals --------------------------------------------------------------------------------------------------------


def _rewrite(path: Path, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    voxels = np.asarray(nibabel.load(path).dataobj).copy()
    nibabel.save(nibabel.Nifti1Image(change(voxels), np.eye(4)), path)


def _state(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "dataset.json"
    stated = json.loads(path.read_text())
    change(stated)
    path.write_text(json.dumps(stated))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


IMAGE, LABEL = "imagesTr/la_003.nii.gz", "labelsTr/la_003.nii.gz"

REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated image": (lambda r: _cut(r / IMAGE), rf"{IMAGE} cannot be read"),
    "truncated label": (lambda r: _cut(r / LABEL), rf"{LABEL} cannot be read"),
    "no volume at all": (lambda r: (r / IMAGE).write_bytes(tiny.APPLE_DOUBLE), rf"{IMAGE} cannot be read"),
    "no label file": (lambda r: (r / LABEL).unlink(), rf"{LABEL} is a part .* no such file"),
    "no image file": (lambda r: (r / IMAGE).unlink(), rf"{IMAGE} is a part .* no such file"),
    "no label stated": (
        lambda r: _state(r, lambda s: s["training"][2].pop("label")),
        rf"dataset\.json gives none to .*{IMAGE}",
    ),
    "sizes": (
        lambda r: _rewrite(r / LABEL, lambda v: v[:, :, 1:]),
        rf"{IMAGE} is \(32, 32, 6\) and .*{LABEL} is \(32, 32, 5\)",
    ),
    "class out of range": (
        lambda r: _rewrite(r / LABEL, lambda v: 2 * v),
        rf"labels are 0 to 1, but .*{LABEL} holds 2",
    ),
    "negative": (
        lambda r: _rewrite(r / LABEL, lambda v: -v.astype(np.int16)),
        rf"{LABEL} holds -1 to 0",
    ),
    "fractions": (
        lambda r: _rewrite(r / LABEL, lambda v: (v * 0.5).astype(np.float32)),
        rf"whole numbers, but .*{LABEL} holds others",
    ),
    "not finite": (
        lambda r: _rewrite(r / IMAGE, lambda v: np.where(v == v.max(), np.nan, v).astype(np.float32)),
        rf"finite, but .*{IMAGE} has some",
    ),
    "flat": (lambda r: _rewrite(r / IMAGE, lambda v: v[:, :, 0]), rf"{IMAGE} is \(32, 32\)"),
    "label in colour": (lambda r: _rewrite(r / LABEL, lambda v: v[..., None]), rf"{LABEL} is \(32, 32, 6, 1\)"),
    "modalities": (
        lambda r: _rewrite(r / IMAGE, lambda v: np.stack([v, v], -1)),
        rf"modalities, MRI, but .*{IMAGE} is \(32, 32, 6, 2\)",
    ),
    "another task": (
        lambda r: _state(r, lambda s: s.update(modality={"0": "CT"})),
        r"msd-heart is Task02_Heart, of 1 MRI modalities and 2 labels, but .*dataset\.json states CT and background",
    ),
    "not JSON": (lambda r: (r / "dataset.json").write_text("{"), r"dataset\.json must hold modality, .*JSONDecode"),
    "no labels": (lambda r: _state(r, lambda s: s.pop("labels")), r"dataset\.json must hold .*KeyError\('labels'\)"),
    "labels from 1": (
        lambda r: _state(r, lambda s: s.update(labels={"1": "a", "2": "b"})),
        r"dataset\.json must hold .*KeyError\('0'\)",
    ),
    "a label that is no text": (
        lambda r: _state(r, lambda s: s.update(labels={"0": "background", "1": 1})),
        r"modalities and labels have names, but .*dataset\.json calls one 1; take it from",
    ),
    "a modality that is no text": (
        lambda r: _state(r, lambda s: s.update(modality={"0": None})),
        r"modalities and labels have names, but .*dataset\.json calls one None; take it from",
    ),
    "empty list": (
        lambda r: _state(r, lambda s: s.update(training=[])),
        r"three splits need a patient each, but .*dataset\.json lists 0",
    ),
    "an image elsewhere": (
        lambda r: _state(r, lambda s: s["training"][2].update(image="/dev/null")),
        r"a volume is a file of the tree, but .*dataset\.json lists '/dev/null'; take it from",
    ),
    "a label elsewhere": (
        lambda r: _state(r, lambda s: s["training"][2].update(label="/dev/null")),
        r"a volume is a file of the tree, but .*dataset\.json lists '/dev/null'; take it from",
    ),
    "a name of no file": (
        lambda r: _state(r, lambda s: s["training"][2].update(image="imagesTr/\0.nii")),
        r"a volume is a file of the tree, but .*dataset\.json lists 'imagesTr/\\x00\.nii'",
    ),
    "half a character": (
        lambda r: _state(r, lambda s: s["training"][2].update(label="labelsTr/\ud800.nii")),
        r"a volume is a file of the tree, but .*dataset\.json lists 'labelsTr/\\ud800\.nii'",
    ),
    "nested too deep": (
        lambda r: (r / "dataset.json").write_text("[" * 100_000),
        r"dataset\.json must hold .*RecursionError",
    ),
    "listed twice": (
        lambda r: _state(r, lambda s: s["training"].append(s["training"][0])),
        r"dataset\.json lists la_001 twice",
    ),
    "no tree": (lambda r: (r / "dataset.json").unlink(), r"needs a tree with dataset\.json .*data verify msd-heart"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str, heart: Path, cache: Path) -> None:
    spoil, message = REFUSALS[case]
    spoil(heart)
    with pytest.raises(DataError, match=message) as refusal:
        _load("msd-heart", heart)
    assert "\n" not in str(refusal.value)
    for entry in filter(Path.is_dir, cache.glob("*")):
        assert (entry / "sha256.json").is_file(), "only what is whole is left"
