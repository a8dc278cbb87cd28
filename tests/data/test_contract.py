"""What every kind of data owes its readers: run over every row of ``SOURCES``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onenet_bench import data
from onenet_bench.data import tiny
from onenet_bench.data.samples import SPLITS
from onenet_bench.errors import DataError
from onenet_bench.task import Task


def _folder(root: Path) -> str:
    random = np.random.RandomState(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(12):
        Image.fromarray(random.randint(0, 256, (20, 28, 3), np.uint8)).save(root / f"images/{index}.png")
        Image.fromarray(random.randint(0, 4, (20, 28), np.uint8)).save(root / f"masks/{index}.png")
    return f"folder:{root}"


EXAMPLES: dict[str, Callable[[Path], str]] = {  # makes a small data set and returns its name
    "synthetic": lambda _: "synthetic",
    "folder": _folder,
    **{kind: partial(tiny.grow, kind) for kind in tiny.TREES},
}
SIZES = {"train": 5, "validation": 2, "test": 1}


@pytest.fixture(params=sorted(data.SOURCES))
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    return data.open_task(EXAMPLES[request.param](tmp_path / "set"), resolution=32, seed=3, **SIZES)


def test_shapes_and_types(task: Task) -> None:
    splits = data.load(task)
    for split in SPLITS:
        samples = getattr(splits, split)
        assert len(samples) == getattr(task, split) == SIZES[split]
        assert samples.images.shape == (len(samples), task.in_channels, 32, 32)
        assert samples.masks.shape == (len(samples), 32, 32)
        assert samples.images.dtype == samples.masks.dtype == np.uint8
        assert samples.images.flags.c_contiguous
        assert not samples.images.flags.writeable
        assert not samples.masks.flags.writeable
        assert len(samples.names) == len(samples)


def test_masks_hold_classes_only(task: Task) -> None:
    allowed = {*range(task.classes), task.ignore_index}
    splits = data.load(task)
    found = set(np.unique(np.concatenate([splits.train.masks, splits.validation.masks])).tolist())
    assert found <= allowed
    assert len(found) > 1


def test_no_image_is_in_two_splits(task: Task) -> None:
    splits = data.load(task)
    names = [set(getattr(splits, split).names) for split in SPLITS]
    pixels = [{image.tobytes() for image in getattr(splits, split).images} for split in SPLITS]
    for one, other in [*combinations(names, 2), *combinations(pixels, 2)]:
        assert not one & other
    assert sum(map(len, names)) == sum(map(len, pixels)) == sum(SIZES.values())


def test_the_same_task_is_the_same_pixels(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = data.load(task), data.load(task)  # made, and from the cache
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "another"))
    reopened = data.open_task(task.data, resolution=32, seed=3, **SIZES)
    elsewhere = data.load(reopened)
    assert reopened == task
    for split in SPLITS:
        for other in (again, elsewhere):
            assert np.array_equal(getattr(first, split).images, getattr(other, split).images)
            assert np.array_equal(getattr(first, split).masks, getattr(other, split).masks)
            assert getattr(first, split).names == getattr(other, split).names


def test_fewer_images_are_the_first_of_more(task: Task) -> None:
    fewer = data.load(data.open_task(task.data, resolution=32, seed=3, train=3, validation=2, test=0))
    assert np.array_equal(fewer.train.images, data.load(task).train.images[:3])
    assert len(fewer.test) == 0


def test_one_set_at_two_resolutions(task: Task) -> None:
    data.load(task)
    assert data.load(data.open_task(task.data, resolution=48, seed=3, **SIZES)).train.masks.shape == (5, 48, 48)
    assert data.load(task).train.masks.shape == (5, 32, 32)


def test_the_seed_decides(task: Task) -> None:
    other = data.load(data.open_task(task.data, resolution=32, seed=4, **SIZES))
    assert not np.array_equal(other.train.images, data.load(task).train.images)


def test_refuses_other_content(task: Task) -> None:
    with pytest.raises(DataError, match=r"content of .* was 0123 .*open a new task"):
        data.load(replace(task, content="0123"))


def test_a_task_is_reopened_with_what_is_there(task: Task) -> None:
    assert data.reopen(task) == task
    assert data.reopen(task, resolution=48) == data.open_task(task.data, resolution=48, seed=3, **SIZES)
    if task.data != "synthetic":
        assert data.reopen(replace(task, train=10**6)).train < 10**6


def test_a_task_survives_json(task: Task) -> None:
    assert data.load(Task.from_dict(task.to_dict())).train.names == data.load(task).train.names


def test_every_kind_has_an_example() -> None:
    assert EXAMPLES.keys() == data.SOURCES.keys()


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"unknown data kind 'imagenet'; known: folder, msd-brain, .*, synthetic, voc"):
        data.open_task("imagenet:somewhere")


NOBODYS = r"~ stands for a home, but that of ~nosuchuser/x is not known; "


@pytest.mark.parametrize("kind", sorted(data.SOURCES.keys() - {"synthetic"}))
def test_nobodys_home_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match=NOBODYS + "write the path out"):
        data.open_task(f"{kind}:~nosuchuser/x")


def test_a_cache_in_nobodys_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONENET_BENCH_CACHE", "~nosuchuser/x")
    task = data.open_task("synthetic")
    with pytest.raises(DataError, match=NOBODYS + "set ONENET_BENCH_CACHE"):
        data.load(task)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"resolution": 0}, "at least 1 pixel"),
        ({"seed": -1}, "a seed is at least 0"),
        ({"train": 0}, "train split holds at least 1"),
        ({"validation": 0}, "validation split holds at least 1"),
        ({"test": -1}, "test split holds at least 0"),
    ],
)
def test_refuses_what_no_kind_can_do(wanted: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.open_task("synthetic", **wanted)


def _samples(**changed: object) -> data.Samples:
    arrays = {"images": np.zeros((2, 3, 4, 4), np.uint8), "masks": np.zeros((2, 4, 4), np.uint8)}
    return data.Samples(**{**arrays, "names": ("a", "b"), **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((2, 3, 4, 4), np.float32)}, "of uint8"),
        ({"masks": np.zeros((2, 4, 5), np.uint8)}, r"masks \(N, H, W\)"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8).transpose(0, 3, 1, 2)}, "C-contiguous"),
        ({"names": ("a",)}, "one name"),
    ],
)
def test_samples_check_themselves(changed: dict[str, object], message: str) -> None:
    assert len(_samples()) == 2
    with pytest.raises(DataError, match=message):
        _samples(**changed)
