"""Where a step's time goes, and where the training images come from."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from onenet_bench import cli
from onenet_bench.errors import RecipeError
from onenet_bench.recipe import Recipe
from onenet_bench.training import feed, fit, profile
from onenet_bench.training.feed import Feed
from tests.training.test_loop import Pictures, squares, tiny

RECIPE = Recipe(epochs=3, batch=4, augmentation="flips+rotations+scale+intensity")
CPU = torch.device("cpu")


# Where images come from -----------------------------------------------------------------------------------


def mapped(pictures: Pictures, folder: Path) -> Pictures:
    """The same pictures as read-only memory maps, as data sets hand them over."""
    np.save(folder / "images.npy", pictures.images)
    np.save(folder / "masks.npy", pictures.masks)
    return Pictures(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks")))


@pytest.mark.parametrize("batch", [4, 10])
def test_wherever_the_images_lie_the_training_is_the_same_to_the_bit(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=3, batch=batch, augmentation="flips+rotations+scale+intensity")
    pictures, validation = squares(11, seed=0), squares(2, seed=1)
    weights = []
    for train, whole in ((pictures, False), (pictures, True), (mapped(pictures, tmp_path), False)):
        monkeypatch.setattr(feed, "fits", lambda size, device, whole=whole: whole)
        net = tiny()
        fit(net, train, validation, recipe, classes=3)
        weights.append(net.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


@pytest.mark.parametrize("whole", [False, True])
def test_batches_are_the_rows_in_their_order(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "fits", lambda size, device: whole)
    pictures = squares(7, seed=0)
    order = torch.tensor([5, 0, 6, 2, 1])
    batches = list(Feed(pictures.images, pictures.masks, CPU).batches(order, 2))
    assert [place.tolist() for place, _, _ in batches] == [[5, 0], [6, 2], [1]]
    assert np.array_equal(torch.cat([images for _, images, _ in batches]), pictures.images[order.numpy()])
    assert np.array_equal(torch.cat([masks for _, _, masks in batches]), pictures.masks[order.numpy()])


def test_a_gpu_takes_a_split_up_to_a_quarter_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 9999))
    gpu = torch.device("cuda:0")
    assert feed.fits(1000, gpu)
    assert not feed.fits(1001, gpu)
    assert not feed.fits(1, CPU)


def test_a_map_is_not_read_into_memory_as_a_whole(tmp_path: Path) -> None:
    pictures = squares(256, seed=0, size=64)  # 4 MiB
    train = mapped(pictures, tmp_path)
    one = Pictures(train.images[:1], train.masks[:1])
    tracemalloc.start()
    fit(tiny(), train, one, Recipe(steps=4, batch=4), classes=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < train.images.nbytes / 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_fed_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, order = squares(40, seed=0), torch.randperm(40)
    fed = []
    for whole in (True, False):
        monkeypatch.setattr(feed, "fits", lambda size, device, whole=whole: whole)
        batches = Feed(pictures.images, pictures.masks, torch.device("cuda")).batches(order, 8)
        fed.append(torch.cat([images for _, images, _ in batches]).cpu())
    assert torch.equal(*fed)
    assert np.array_equal(fed[0], pictures.images[order.numpy()])


# Where the time goes --------------------------------------------------------------------------------------


def ticking(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """Let the n-th look at the profile's clock come ``seconds(n)`` after the one before."""
    now, looks = 0.0, 0

    def look() -> float:
        nonlocal now, looks
        now, looks = now + seconds(looks), looks + 1
        return now

    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=look))


def test_every_part_of_every_step_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 images, 4 a batch: three steps a pass, and one look more where a pass begins.
    parts = [100.0, *[1.0, 3.0, 5.0, 2.0] * 3]  # a pass: what was before, then data, forward, backward, optimiser
    ticking(monkeypatch, lambda look: parts[look % len(parts)])
    net = tiny()
    found = profile.profile(net, squares(10, seed=0), squares(1, seed=1), RECIPE, steps=7, classes=3)
    assert {part: set(rows) for part, rows in found.seconds.items()} == {
        "data": {1.0}, "forward": {3.0}, "backward": {5.0}, "optimiser": {2.0},
    }  # fmt: skip
    assert found.steps == 7
    assert found.step_ms == 11_000
    assert [found.share(part) for part in profile.PARTS] == pytest.approx([1 / 11, 3 / 11, 5 / 11, 2 / 11])
    said = found.to_dict()
    assert said["images_per_second"] == pytest.approx(4 / 11)
    assert sum(row["share"] for row in said["parts"].values()) == pytest.approx(1)


def test_it_is_the_training_itself_that_is_timed() -> None:
    timed, trained = tiny(), tiny()
    data = squares(10, seed=0)
    profile.profile(timed, data, data, RECIPE, steps=4, classes=3)
    steps = profile.WARM_UP + 4
    fit(trained, data, data, Recipe(steps=steps, batch=4, augmentation=RECIPE.augmentation), classes=3)
    assert all(map(torch.equal, timed.state_dict().values(), trained.state_dict().values()))


def test_a_profile_needs_a_step() -> None:
    with pytest.raises(RecipeError, match="at least one step, but got 0"):
        profile.profile(tiny(), squares(4, 0), squares(1, 1), RECIPE, steps=0, classes=3)


NET = """
classes = 2
stem = {channels = 4, repeat = 1}
encoder = [{channels = 8}]
decoder = [{channels = 4}]
"""


def test_the_command_prints_the_parts_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.toml").write_text(NET)
    words = ["train", "net.toml", "--profile", "--resolution", "32", "--batch", "8", "--threads", "1", "--steps", "3"]
    cli.app([*words, "--json"], standalone_mode=False)
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (said["batch"], said["steps"], said["device"], said["threads"]) == (8, 3, "cpu", 1)
    assert said["parts"].keys() == profile.PARTS.keys()
    assert all(len(row["ms"]) == 3 for row in said["parts"].values())
    cli.app(words, standalone_mode=False)
    said_to_people = capsys.readouterr().out
    for part in profile.PARTS:
        assert re.search(rf"{part} +\d+\.\d\d +\d+\.\d%  ", said_to_people)
    assert "3 steps of 8 images" in said_to_people
    assert [path.name for path in tmp_path.iterdir()] == ["net.toml"]
