import itertools
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onenet_bench import data, evaluate, models, zoo
from onenet_bench.errors import RecipeError
from onenet_bench.recipe import OPTIMISERS, Recipe
from onenet_bench.record import Record, Status
from onenet_bench.training import (
    Checkpointing,
    Progress,
    Trained,
    checkpoints,
    evaluate_split,
    fit,
    loop,
    read_asked,
)
from tests.training.test_loop import squares, tiny, weights_of

TRAIN, VALIDATION = squares(9, seed=0), squares(4, seed=1)
RECIPE = Recipe(epochs=4, batch=4, learning_rate=1e-2)


def onenet() -> nn.Module:
    """A net of channels-last weights, batch norms, and heads that get no gradient."""
    return models.build(zoo.onenet_ed(2, width=4, classes=3))


def dropping() -> nn.Module:
    """A net that draws from torch's global generator."""
    return nn.Sequential(*list(tiny())[:3], nn.Dropout(0.3), nn.Conv2d(8, 3, 1))


def train(
    net: nn.Module, recipe: Recipe, folder: Path | None, stop_after: int = 99, every: int = 1
) -> tuple[Trained, list[int]]:
    """How it went, and the epochs that were gone through."""
    gone: list[int] = []

    def on_epoch(progress: Progress) -> bool:
        gone.append(progress.epoch)
        return progress.epoch < stop_after

    kept = Checkpointing(folder=folder, every=every) if folder else None
    return fit(net, TRAIN, VALIDATION, recipe, classes=3, on_epoch=on_epoch, checkpoints=kept), gone


def timeless(trained: Trained) -> list[object]:
    history = [{**asdict(progress), "seconds": 0} for progress in trained.history]
    return [trained.scores, trained.kept, trained.stopped, history]


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (onenet, replace(RECIPE, augmentation="flips+rotations+scale+intensity")),
        (onenet, replace(RECIPE, deep_supervision=0.4, optimiser="adam", precision="bf16")),
        (tiny, replace(RECIPE, steps=7, schedule="cosine")),  # ends within a pass
        (dropping, RECIPE),
        (tiny, replace(RECIPE, keep="best", patience=2, learning_rate=0.3)),
    ],
)
def test_wherever_it_is_interrupted_a_training_ends_the_same_to_the_bit(
    make: Callable[[], nn.Module], recipe: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = make()
    expected, gone = train(whole, recipe, None)
    for stop in range(1, len(gone) + 1):
        torch.manual_seed(0)
        train(make(), recipe, tmp_path / str(stop), stop_after=stop)
        torch.manual_seed(1)  # another process: other initial weights, another global generator
        net = make()
        trained, rest = train(net, recipe, tmp_path / str(stop))
        assert rest == gone[stop - 1 :]  # of the last epoch in the state it is asked again
        assert all(map(torch.equal, weights_of(whole), weights_of(net)))
        assert timeless(trained) == timeless(expected)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_optimisers_moments_come_back_in_the_memory_format_of_their_weights(optimiser: str, tmp_path: Path) -> None:
    net = nn.Conv2d(3, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(net, replace(RECIPE, optimiser=optimiser, epochs=1), tmp_path)
    stepper = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser](net.parameters(), fused=True)
    path = Checkpointing(folder=tmp_path).path
    asked = read_asked(tmp_path)
    checkpoints.restore_state(
        checkpoints.State(net=net, optimiser=stepper, draws=torch.Generator(), asked=asked), path
    )  # fmt: skip
    moments: dict[str, Tensor] = stepper.state[net.weight]
    assert set(moments) == {"step", "exp_avg", "exp_avg_sq"}
    assert moments["exp_avg"].stride() == net.weight.stride()
    assert moments["step"] == 2


def test_a_state_is_written_at_the_start_every_so_many_epochs_and_at_the_end(tmp_path: Path) -> None:
    path = Checkpointing(folder=tmp_path).path
    written: list[bytes] = []

    def on_epoch(_: Progress) -> None:
        written.append(path.read_bytes())

    fit(tiny(), TRAIN, VALIDATION, replace(RECIPE, epochs=5), classes=3, on_epoch=on_epoch,
        checkpoints=Checkpointing(folder=tmp_path, every=2))  # fmt: skip
    written.append(path.read_bytes())
    same = [before == after for before, after in itertools.pairwise(written)]
    assert same == [True, False, True, False, False]
    assert sorted(os.listdir(tmp_path)) == ["state.safetensors"]
    with pytest.raises(RecipeError, match="every 1 or more epochs, but got 0"):
        Checkpointing(folder=tmp_path, every=0)


def test_a_finished_training_that_is_resumed_is_as_it_was(tmp_path: Path) -> None:
    first, again = tiny(), tiny(seed=5)
    trained, _ = train(first, RECIPE, tmp_path)
    before = Checkpointing(folder=tmp_path).path.read_bytes()
    resumed, gone = train(again, RECIPE, tmp_path)
    assert gone == [4]
    assert not again.training
    assert timeless(resumed) == timeless(trained)
    assert all(map(torch.equal, weights_of(first), weights_of(again)))
    assert Checkpointing(folder=tmp_path).path.read_bytes() == before


def test_dying_while_the_state_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny()
    train(expected, RECIPE, None)
    train(tiny(), RECIPE, tmp_path, stop_after=2)

    def half(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", half)
        with pytest.raises(OSError, match="No space left"):
            train(tiny(), RECIPE, tmp_path)
    net = tiny(seed=3)
    assert train(net, RECIPE, tmp_path)[1] == [2, 3, 4]
    assert all(map(torch.equal, weights_of(expected), weights_of(net)))
    assert sorted(os.listdir(tmp_path)) == ["state.safetensors"]


def test_a_state_from_before_a_field_of_the_recipe_existed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {name: value for name, value in RECIPE.to_dict().items() if name not in ("patience", "keep")}
    with monkeypatch.context() as before:
        before.setattr(Recipe, "to_dict", lambda recipe: old)
        train(tiny(), RECIPE, tmp_path, stop_after=2)
    assert read_asked(tmp_path)["recipe"] == old
    assert train(tiny(), RECIPE, tmp_path)[1] == [2, 3, 4]  # the second was stopped before it was kept


def test_a_state_by_a_recipe_that_this_version_does_not_know_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(Recipe, "to_dict", lambda recipe: {"batch": 4, "warmth": 3})
        train(tiny(), RECIPE, tmp_path, stop_after=2)
    with pytest.raises(RecipeError, match=r"as it was asked to, but of .* that cannot be read .*'warmth'"):
        train(tiny(), RECIPE, tmp_path)


def test_another_trainings_state_raises_and_changes_nothing(tmp_path: Path) -> None:
    train(tiny(), RECIPE, tmp_path, stop_after=2)
    net = tiny(seed=1)
    before = weights_of(net)
    with pytest.raises(RecipeError, match=r"recipe\.epochs was 4 and is now 5; take the old one, or another folder"):
        train(net, replace(RECIPE, epochs=5), tmp_path)
    with pytest.raises(RecipeError, match=r"images was \[9, 3, 16, 16\] and is now \[4, 3, 16, 16\]"):
        fit(net, VALIDATION, VALIDATION, RECIPE, classes=3, checkpoints=Checkpointing(folder=tmp_path))
    asking = Checkpointing(folder=tmp_path, asked={"task": "other"})
    with pytest.raises(RecipeError, match="task was None and is now 'other'"):
        fit(net, TRAIN, VALIDATION, RECIPE, classes=3, checkpoints=asking)
    with pytest.raises(RecipeError, match="must fit the net, but they do not"):
        train(nn.Conv2d(3, 3, 1), RECIPE, tmp_path)
    assert all(map(torch.equal, before, weights_of(net)))


@pytest.mark.parametrize("content", [b"", b"torn", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_state_is_named(content: bytes, tmp_path: Path) -> None:
    path = Checkpointing(folder=tmp_path).path
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"a training's state is a safetensors file .* but {path} is not"):
        train(tiny(), RECIPE, tmp_path)
    with pytest.raises(RecipeError, match="is not"):
        read_asked(tmp_path)


@pytest.mark.parametrize("what", ["history", "draws", "weights"])
def test_a_state_whose_bytes_have_changed_is_named(what: str, tmp_path: Path) -> None:
    train(tiny(), RECIPE, tmp_path, stop_after=2)
    path = Checkpointing(folder=tmp_path).path
    state = bytearray(path.read_bytes())
    at = {"history": state.index(b"history"), "draws": state.index(b"draws"), "weights": len(state) - 1}[what]
    state[at] ^= 1
    path.write_bytes(state)
    with pytest.raises(RecipeError, match=f"a training's state is a safetensors file .* but {path} is not"):
        train(tiny(), RECIPE, tmp_path)


def test_a_state_from_before_there_were_checksums_goes_on(tmp_path: Path) -> None:
    train(tiny(), RECIPE, tmp_path, stop_after=2)
    path = Checkpointing(folder=tmp_path).path
    state = path.read_bytes()
    assert state.count(b'"checksum"') == 1
    path.write_bytes(state.replace(b'"checksum"', b'"checkrum"'))
    assert train(tiny(), RECIPE, tmp_path)[1] == [2, 3, 4]


# Early stopping and the best weights -------------------------------------------------------------------------


def scripted(mious: list[float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the validations say ``mious``, one after the other."""
    left = iter(mious)
    monkeypatch.setattr(
        loop, "evaluate_split", lambda *args, **words: {**evaluate_split(*args, **words), "miou": next(left)}
    )


@pytest.mark.parametrize(
    ("mious", "patience", "epochs", "best"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.4, 0.5], 2, 4, 2),  # an equal score is no better one
        ([0.1, 0.3, 0.2, 0.4, 0.3, 0.2], 2, 6, 4),
        ([0.1, 0.3, 0.2, 0.4, 0.3, 0.2], 0, 6, 4),
        ([0.3, 0.2, 0.1, 0.0, 0.0, 0.0], 1, 2, 1),
        ([None, None, 0.1, None, None, 0.2], 3, 6, 6),
        ([None, None, None, None, 0.1, 0.2], 2, 3, 1),
    ],
)
def test_patience_ends_the_training_and_the_best_weights_are_kept(
    mious: list[float | None], patience: int, epochs: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, epochs=6, patience=patience)
    for keep in ("last", "best"):
        net = tiny()
        seen: list[list[Tensor]] = []
        scripted(mious, monkeypatch)
        trained = fit(
            net, TRAIN, VALIDATION, replace(recipe, keep=keep), classes=3,
            on_epoch=lambda _: seen.append(weights_of(net)),  # noqa: B023  (called before the next round)
        )  # fmt: skip
        assert len(trained.history) == epochs
        assert not trained.stopped  # its recipe says so
        assert trained.kept == {"last": epochs, "best": best}[keep]
        assert trained.scores == trained.history[trained.kept - 1].scores
        assert all(map(torch.equal, weights_of(net), seen[trained.kept - 1]))
        assert not net.training


def test_a_training_that_is_told_to_stop_keeps_its_best_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([0.1, 0.4, 0.2, 0.3], monkeypatch)
    trained, gone = train(tiny(), replace(RECIPE, keep="best", patience=3), None, stop_after=3)
    assert (gone, trained.kept, trained.stopped) == ([1, 2, 3], 2, True)


def test_a_recipe_of_no_patience_or_another_choice_raises() -> None:
    with pytest.raises(RecipeError, match="patience is at least 0 epochs, but got -1"):
        Recipe(patience=-1)
    with pytest.raises(RecipeError, match="unknown choice of weights to keep 'first'; known: best, last"):
        Recipe(keep="first")


# evaluate ----------------------------------------------------------------------------------------------------


def test_a_resumed_evaluation_has_the_whole_history(tmp_path: Path) -> None:
    task = data.open_task("synthetic", resolution=32, train=12, validation=4, test=0)
    spec = zoo.onenet_ed(2, width=4, classes=task.classes)
    recipe = Recipe(epochs=3, batch=4, deep_supervision=0.5)

    def run(folder: Path, last: int = 99) -> Record:
        return evaluate.evaluate(
            spec, task, recipe, run=folder, on_epoch=lambda epoch: epoch["epoch"] < last,
            checkpoints=Checkpointing(folder=folder, asked={"weights": None}),
        )  # fmt: skip

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", last=1).status is Status.STOPPED
    resumed = run(tmp_path / "parts")
    assert resumed.status is Status.COMPLETE
    assert [{**epoch, "seconds": 0} for epoch in resumed.history] == [{**e, "seconds": 0} for e in whole.history]
    assert (resumed.scores, resumed.per_class) == (whole.scores, whole.per_class)
    assert set(resumed.per_class) == {"iou", "dice", "ce", "ap50"}  # no cases, so nothing by case
    assert resumed.costs is not None
    assert resumed.costs.supervision_macs
    asked = read_asked(tmp_path / "parts")
    assert (asked["spec"], asked["task"], asked["recipe"]) == (spec.to_dict(), task.to_dict(), recipe.to_dict())
    assert "weights" in asked
