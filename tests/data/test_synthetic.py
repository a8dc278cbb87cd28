"""The synthetic scenes: frozen, of one scene at every resolution, and labelled as they are drawn."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from onenet_bench import data
from onenet_bench.data import _cache, synthetic
from onenet_bench.data.synthetic import SyntheticSpec, render
from onenet_bench.errors import DataError
from onenet_bench.files import alone

SMALL = {"train": 4, "validation": 2, "test": 1}
CLEAN = "noise=0,illumination=0"


def _scenes(knobs: str, count: int, *, resolution: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    spec = SyntheticSpec.parse(knobs)
    pairs = [render(spec, resolution=resolution, seed=0, split="train", index=index) for index in range(count)]
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])


# -- frozen ----------------------------------------------------------------------------------------------------------


def test_golden_digests() -> None:
    """The stream of version 1. Who changes what is drawn raises VERSION and writes new digests here."""
    found = []
    for split, index in [("train", 0), ("train", 319), ("validation", 0), ("test", 0)]:
        image, mask = render(SyntheticSpec(), resolution=64, seed=0, split=split, index=index)
        found.append(hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()[:16])
    assert synthetic.VERSION == 1
    assert found == ["71c766ea90973866", "ee2b1211922a9b24", "89baa7a6e83d55cb", "40c3b9f84cc97c91"]


def test_default_sizes_and_classes() -> None:
    task = data.open_task("synthetic")
    assert (task.train, task.validation, task.test) == (320, 96, 96)
    assert (task.in_channels, task.classes, task.background) == (3, 8, 0)
    assert task.class_names[0] == "background"


def test_every_class_occurs_in_every_small_split() -> None:
    _, masks = _scenes("", 16)
    assert set(np.unique(masks)) == set(range(8))


def test_one_scene_at_every_resolution() -> None:
    _, small = _scenes("cues=texture+organ+shape+marker", 8, resolution=64)
    _, large = _scenes("cues=texture+organ+shape+marker", 8, resolution=192)
    assert (small == large[:, 1::3, 1::3]).all()  # the centre of every block of 3 x 3 is the small pixel's centre


# -- labelled as drawn -----------------------------------------------------------------------------------------------


def test_the_two_textures_have_one_mean_and_directions_a_quarter_turn_apart() -> None:
    images, masks = _scenes(f"{CLEAN},cues=texture,occlusion=0", 60)
    light = images.mean(1) / images.mean((1, 2, 3))[:, None, None]  # (N, H, W); the lens's gain divided away
    down, right = np.gradient(light, axis=1) ** 2, np.gradient(light, axis=2) ** 2
    level, upright = masks == 1, masks == 2
    assert light[level].mean() == pytest.approx(light[upright].mean(), abs=0.02)
    assert light[level].mean() == pytest.approx(light[masks == 0].mean(), abs=0.02)
    assert down[level].mean() > 5 * right[level].mean()
    assert right[upright].mean() > 5 * down[upright].mean()


def test_classes_survive_flips() -> None:
    """Training mirrors images, so no class may depend on which side is left."""
    images, masks = _scenes(f"{CLEAN},cues=texture,occlusion=0", 60)
    for axis in (1, 2):
        light, flipped = np.flip(images.mean(1), axis), np.flip(masks, axis)
        down, right = np.gradient(light, axis=1) ** 2, np.gradient(light, axis=2) ** 2
        assert down[flipped == 1].mean() > 5 * right[flipped == 1].mean()
        assert right[flipped == 2].mean() > 5 * down[flipped == 2].mean()


def test_lesions_touch_organ_and_their_lookalikes_do_not() -> None:
    images, masks = _scenes(f"{CLEAN},cues=organ", 40)
    light = images.mean(1) / np.median(images.mean(1), (1, 2))[:, None, None]  # (N, H, W)
    lesion = masks == 2
    around = np.zeros_like(lesion)
    for axis in (1, 2):
        for step in (-1, 1):
            around |= np.roll(lesion, step, axis)
    neighbours = masks[around & ~lesion]
    assert (neighbours == 1).all()
    lookalike = (masks == 0) & (light > 1.3)  # lighter than organ on background
    assert lookalike.sum() > 0.3 * lesion.sum()
    assert light[lesion].min() > light[masks == 1].mean()


def test_a_ring_owns_its_hole_and_the_hole_looks_like_ground() -> None:
    images, masks = _scenes(f"{CLEAN},cues=shape,occlusion=0", 40)
    light = images.mean(1)
    ground = np.median(light, (1, 2))[:, None, None]
    ring = masks == 1
    hole = ring & (np.abs(light - ground) < 2)
    disc = (masks == 0) & (light < 0.8 * ground)
    assert 0.15 < hole.sum() / ring.sum() < 0.6
    assert 0.3 < (ring.sum() / (ring.sum() + disc.sum())) < 0.7


def test_vessels_are_thin_and_cross_the_image() -> None:
    _, masks = _scenes("cues=vessel,vessels=1", 40)
    vessel = masks == 1
    whole = vessel[:, 1:-1, 1:-1]
    block = whole[:, :-3, :-3] & whole[:, 3:, :-3] & whole[:, :-3, 3:] & whole[:, 3:, 3:]
    assert vessel.any((1, 2)).all()
    assert block.mean() < 0.002  # no place for a square of 4 x 4 pixels but in bends
    assert (vessel.any(1).sum(1) > 40).mean() + (vessel.any(2).sum(1) > 40).mean() >= 1


def test_vessels_stay_whole_at_half_the_resolution() -> None:
    _, masks = _scenes("cues=vessel,vessels=1", 40, resolution=32)

    def gaps(vessel: NDArray[np.bool_]) -> int:
        rows = np.flatnonzero(vessel.any(1))
        return int(rows[-1] - rows[0] + 1 - len(rows))

    assert sum(min(gaps(mask == 1), gaps(mask.T == 1)) for mask in masks) == 0


def test_the_cross_decides_the_square_at_its_distance() -> None:
    for distance in (0.2, 0.4):
        images, masks = _scenes(f"{CLEAN},cues=marker,squares=1,marker_distance={distance}", 40)
        light = images.mean(1)
        ground = np.median(light, (1, 2))
        marked = (masks == 1).any((1, 2))
        assert 0.25 < marked.mean() < 0.75
        for plane, mask, level in zip(light[marked], masks[marked], ground[marked], strict=True):
            cross, square = np.argwhere(plane > 1.6 * level), np.argwhere(mask == 1)
            far = np.linalg.norm(cross.mean(0) - square.mean(0))
            assert far == pytest.approx(64 * distance, abs=1)
        dark = light[~marked].min((1, 2)) < 0.4 * ground[~marked]
        assert dark.all()


def test_every_square_is_decided_by_its_own_cross() -> None:
    """Among two squares of one scene, the marked one is nearer to the light cross than to the dark one."""
    images, masks = _scenes(f"{CLEAN},cues=marker", 60)
    light = images.mean(1)
    ground = np.median(light, (1, 2))
    seen = 0
    for plane, mask, level in zip(light, masks, ground, strict=True):
        bright, dark, square = (np.argwhere(p) for p in (plane > 1.6 * level, plane < 0.4 * level, mask == 1))
        if len(bright) and len(dark):  # one of each
            seen += 1
            near, far = (np.linalg.norm(cross.mean(0) - square.mean(0)) for cross in (bright, dark))
            assert near == pytest.approx(64 * 0.2, abs=1)
            assert far > 1.4 * near
    assert seen > 15


def test_objects_hide_one_another_as_often_as_asked() -> None:
    def hidden(occlusion: float) -> float:
        _, masks = _scenes(f"cues=texture+shape+marker,patches=3,occlusion={occlusion}", 60)
        return float((masks == 0).mean())

    assert hidden(1.0) > hidden(0.0) + 0.01


def test_the_knobs_of_light_do_what_they_say() -> None:
    even, _ = _scenes("noise=0,illumination=0,cues=vessel,vessels=0", 8)
    noisy, _ = _scenes("noise=0.1,illumination=0,cues=vessel,vessels=0", 8)
    slanted, _ = _scenes("noise=0,illumination=0.3,cues=vessel,vessels=0", 8)
    assert even.std((2, 3)).max() == 0
    assert noisy.std((2, 3)).mean() == pytest.approx(25.5, rel=0.05)
    assert np.ptp(slanted, (2, 3)).min() > 0.4 * 255


# -- knobs -----------------------------------------------------------------------------------------------------------


def test_cues_choose_the_classes() -> None:
    assert data.open_task("synthetic:cues=vessel+texture").class_names == (
        "background",
        "stripes_level",
        "stripes_upright",
        "vessel",
    )
    _, masks = _scenes("cues=vessel+texture", 8)
    assert set(np.unique(masks)) == {0, 1, 2, 3}


def test_knobs_are_part_of_the_content() -> None:
    contents = {
        data.open_task(name, resolution=resolution, seed=seed, train=train).content
        for name, resolution, seed, train in [
            ("synthetic", 64, 0, 8),
            ("synthetic:noise=0.07", 64, 0, 8),
            ("synthetic", 72, 0, 8),
            ("synthetic", 64, 1, 8),
            ("synthetic", 64, 0, 9),
        ]
    }
    assert len(contents) == 5
    assert SyntheticSpec().digest() == SyntheticSpec.parse("noise=0.06").digest()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("synthetic:nois=0.1", "unknown knob of the synthetic data 'nois'; known: .*noise"),
        ("synthetic:noise=loud", "noise of the synthetic data is of type float, but got 'loud'"),
        ("synthetic:patches=1.5", "patches of the synthetic data is of type int"),
        ("synthetic:noise=nan", "noise lies between 0 and 1"),
        ("synthetic:patches=99", "patches lies between 0 and 32"),
        ("synthetic:marker_distance=0.9", "marker_distance lies between"),
        ("synthetic:cues=smell", "unknown cue 'smell'; known: marker"),
        ("synthetic:cues=organ+organ", "each once"),
    ],
)
def test_refuses_knobs_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.open_task(name)


@pytest.mark.parametrize("resolution", [24, 60])
def test_refuses_resolutions(resolution: int) -> None:
    with pytest.raises(DataError, match=f"multiple of 8, but got {resolution}"):
        data.open_task("synthetic", resolution=resolution)


# -- the cache -------------------------------------------------------------------------------------------------------


def test_is_made_once_and_then_mapped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = data.open_task("synthetic", resolution=32, **SMALL)
    first = data.load(task)
    assert isinstance(first.train.images, np.memmap)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(synthetic, "render", never)
    assert np.array_equal(data.load(task).train.images, first.train.images)
    (entry,) = cache.iterdir()  # and no draft is left behind
    assert sorted(path.name for path in entry.iterdir()) == sorted(
        ["sha256.json", *(f"{split}_{part}.npy" for split in SMALL for part in ("images", "masks"))]
    )


def _flip_a_bit(entry: Path) -> None:
    whole = bytearray((entry / "train_images.npy").read_bytes())
    whole[-1] ^= 1
    (entry / "train_images.npy").write_bytes(whole)


def _cut(entry: Path) -> None:
    (entry / "test_masks.npy").write_bytes((entry / "test_masks.npy").read_bytes()[:100])


def _lose_a_file(entry: Path) -> None:
    (entry / "validation_masks.npy").unlink()


def _lose_the_digests(entry: Path) -> None:
    (entry / "sha256.json").unlink()


def _garble_the_digests(entry: Path) -> None:
    (entry / "sha256.json").write_text("[1, 2")


def _be_a_list(entry: Path) -> None:
    (entry / "sha256.json").write_text(json.dumps([1]))


def _be_a_file(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_text("not a folder")


@pytest.mark.parametrize(
    "damage",
    [_flip_a_bit, _cut, _lose_a_file, _lose_the_digests, _garble_the_digests, _be_a_list, _be_a_file],
)
def test_a_damaged_entry_is_made_again(damage: object, cache: Path) -> None:
    task = data.open_task("synthetic", resolution=32, **SMALL)
    expected = [np.array(samples.images) for samples in _parts(data.load(task))]
    (entry,) = cache.iterdir()
    assert callable(damage)
    damage(entry)
    for _ in range(2):  # made again, and read again
        found = _parts(data.load(task))
        assert all(np.array_equal(a.images, b) for a, b in zip(found, expected, strict=True))
        assert isinstance(found[0].images, np.memmap)
    assert list(cache.iterdir()) == [entry]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(_cache, "sha256", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        killed = multiprocessing.get_context("fork").Process(target=_load_and_hash, args=(0,))
        killed.start()
        killed.join()
    (left,) = cache.iterdir()
    assert (left / "draft").is_dir()
    living = left.with_name(left.name + "-living")
    shutil.copytree(left, living)
    with alone(living, AssertionError()):
        _load_and_hash(0)
    assert sorted(path.name for path in cache.iterdir()) == sorted([living.name, left.name[1:].rpartition("-")[0]])


def _parts(splits: data.Splits) -> list[data.Samples]:
    return [splits.train, splits.validation, splits.test]


def test_without_a_cache_data_stays_in_memory_and_one_warning_says_so(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    task = data.open_task("synthetic", resolution=32, **SMALL)
    with pytest.warns(UserWarning, match=r"cache .* cannot be written .* set ONENET_BENCH_CACHE") as caught:
        first = data.load(task)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = data.load(data.open_task("synthetic", resolution=40, **SMALL))
        again = data.load(task)
    assert again.train.images is first.train.images
    assert not first.train.images.flags.writeable
    assert other.train.images.shape[-1] == 40


def _load_and_hash(_: int) -> str:
    samples = data.load(data.open_task("synthetic", resolution=32, **SMALL)).train
    return hashlib.sha256(samples.images.tobytes()).hexdigest()


def test_processes_may_make_one_entry_at_once(cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        digests = pool.map(_load_and_hash, range(8), chunksize=1)
    assert len(set(digests)) == 1
    assert len(list(cache.iterdir())) == 1
