import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from onenet_bench import costs, models, zoo
from onenet_bench.errors import DataError
from onenet_bench.recipe import OPTIMISERS, SCHEDULES, Recipe
from onenet_bench.record import SCORES
from onenet_bench.training import DivergedError, Progress, evaluate_split, fit, loop, predict


@dataclass(frozen=True)
class Pictures:
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{number:03d}" for number in range(len(self.images)))


def squares(number: int, seed: int, size: int = 16) -> Pictures:
    """Grey noise with one bright square (class 1) and one dark square (class 2) each."""
    draws = np.random.default_rng(seed)
    images = draws.integers(100, 150, (number, 3, size, size), dtype=np.uint8)
    masks = np.zeros((number, size, size), dtype=np.uint8)
    for image, mask in zip(images, masks, strict=True):
        for label, grey in ((1, 220), (2, 30)):
            top, left = draws.integers(0, size - 6, 2)
            image[:, top : top + 6, left : left + 6] = grey
            mask[top : top + 6, left : left + 6] = label
    return Pictures(images, masks)


def tiny(seed: int = 0, *, stride: int = 1, classes: int = 3) -> nn.Sequential:
    """Two convolutions with a batch norm between; the global generator is put back.

    No bias before the norm: its gradient is rounding error, which Adam would blow up to full steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=stride, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, classes, 1),
        )


class Spy(nn.Module):
    """A net that keeps what it was shown, in training and in evaluation, and what it then said."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.shown: list[Tensor] = []
        self.shown_in_evaluation: list[Tensor] = []
        self.said: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.shown if self.training else self.shown_in_evaluation).append(x.clone())
        y: Tensor = self.net(x)
        self.said.append(y.detach())
        return y


SHORT = Recipe(epochs=3, batch=4, learning_rate=1e-2)


def weights_of(net: nn.Module) -> list[Tensor]:
    return [value.clone() for value in net.state_dict().values()]


def test_a_tiny_net_learns_the_squares() -> None:
    seen: list[Progress] = []
    net = tiny()
    train = squares(16, seed=0)
    trained = fit(
        net, train, squares(8, seed=1), replace(SHORT, epochs=30, learning_rate=3e-2), classes=3, on_epoch=seen.append
    )
    assert trained.scores["miou"] > 0.9
    assert tuple(seen) == trained.history
    assert [progress.epoch for progress in seen] == list(range(1, 31))
    assert [progress.step for progress in seen] == list(range(4, 121, 4))
    assert seen[-1].loss < 0.2 * seen[0].loss
    assert seen[-1].scores == trained.scores
    assert not trained.stopped
    assert not net.training


def test_the_loss_of_a_pass_is_the_mean_of_its_batches() -> None:
    data, net = squares(8, seed=0), nn.Conv2d(3, 3, 1)
    recipe = Recipe(epochs=1, batch=2, learning_rate=1e-9, background_weight=1, augmentation="none")
    trained = fit(net, data, data, recipe, classes=3)  # too slow to change the net
    whole = F.cross_entropy(net(torch.from_numpy(data.images) / 255), torch.from_numpy(data.masks).long())
    assert trained.history[0].loss == pytest.approx(whole.item(), rel=1e-5)


def test_seconds_are_those_since_the_training_began(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()  # each look at the clock takes a second
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    trained = fit(tiny(), squares(10, seed=0), squares(2, seed=1), SHORT, classes=3)
    assert [progress.seconds for progress in trained.history] == [1, 2, 3]
    assert trained.seconds == 4


def test_full_batch_training_is_that_of_a_plain_loop() -> None:
    data = squares(6, seed=2)
    data.masks[0, :4] = 255
    recipe = Recipe(epochs=12, batch=6, learning_rate=2e-2, augmentation="none", background_weight=0.4)
    net, reference = tiny(), tiny()
    history = fit(net, data, data, recipe, classes=3).history

    x, target = torch.from_numpy(data.images) / 255, torch.from_numpy(data.masks).long()
    optimiser = torch.optim.AdamW(reference.parameters(), weight_decay=recipe.weight_decay)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=12, cycle_momentum=False)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(reference(x), target, torch.tensor([0.4, 1, 1]), ignore_index=255)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        rates.step()
        losses.append(loss.item())

    assert [progress.loss for progress in history] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(weights_of(net), weights_of(reference), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_first_step_of_adam_is_as_long_as_the_scheduled_rate(optimiser: str) -> None:
    data = squares(4, seed=3)
    for schedule, length in (("constant", 1e-3), ("onecycle", 1e-3 / 25)):
        net = nn.Conv2d(3, 3, 1)
        before = net.weight.detach().clone()
        recipe = Recipe(epochs=9, batch=4, optimiser=optimiser, learning_rate=1e-3, weight_decay=0, schedule=schedule)
        fit(net, data, data, recipe, classes=3, on_epoch=lambda _: False)
        moved = (net.weight.detach() - before).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, length), rtol=2e-2, atol=1e-7)


def test_weight_decay_is_a_gradient_to_adam_and_a_shrinkage_to_adamw() -> None:
    data = squares(4, seed=3)
    void = Pictures(data.images, np.full_like(data.masks, 9))  # no gradient: what moves is decay
    recipe = Recipe(epochs=1, batch=4, learning_rate=1e-3, weight_decay=0.5, schedule="constant")
    for optimiser in OPTIMISERS:
        net = nn.Conv2d(3, 3, 1)
        before = net.weight.detach().clone()
        fit(net, void, void, replace(recipe, optimiser=optimiser), classes=3, ignore_index=9)
        moved = {"adam": 1e-3 * before.sign(), "adamw": 1e-3 * 0.5 * before}[optimiser]
        torch.testing.assert_close(net.weight.detach(), before - moved, rtol=1e-4, atol=1e-6)


def test_there_is_a_row_for_every_word_of_a_recipe() -> None:
    assert set(loop.FACTORS) == set(SCHEDULES)
    assert set(loop.OPTIMISERS) == set(OPTIMISERS)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 237])
def test_cosine_and_onecycle_are_those_of_torch(steps: int) -> None:
    def rates(make: Callable[..., torch.optim.lr_scheduler.LRScheduler], **options: Any) -> list[float]:
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimiser, **options)
        found = []
        for _ in range(steps):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step() if len(found) < steps else None
        return found

    ours = {name: [loop.FACTORS[name](step, steps, 0) for step in range(steps)] for name in loop.FACTORS}
    assert ours["constant"] == [1] * steps
    assert ours["cosine"] == pytest.approx(rates(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps))
    assert ours["onecycle"] == pytest.approx(
        rates(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=steps, cycle_momentum=False)
    )


def test_the_papers_schedule_drops_at_50_and_every_20_epochs_after() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[50, 70, 90, 110], gamma=0.1)
    for epoch in range(120):
        assert loop.FACTORS["paper"](0, 1, epoch) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()


def test_the_papers_schedule_follows_the_passes() -> None:
    net, data = nn.Conv2d(3, 3, 1), squares(2, seed=3)
    kept: list[Tensor] = [net.weight.detach().clone()]
    recipe = Recipe(epochs=52, batch=2, optimiser="adam", schedule="paper", augmentation="none")
    fit(net, data, data, recipe, classes=3, on_epoch=lambda _: kept.append(net.weight.detach().clone()))
    moved = [float((after - before).abs().mean()) for before, after in itertools.pairwise(kept)]
    assert moved[49] > 5 * moved[50]


@pytest.mark.parametrize(
    ("number", "batch", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 16, [3]), (1, 16, [1]), (3, 1, [1, 1, 1])],
)
def test_a_last_batch_of_one_image_is_left_out(number: int, batch: int, sizes: list[int]) -> None:
    net = Spy(tiny())
    fit(net, squares(number, seed=4), squares(2, seed=5), replace(SHORT, epochs=2, batch=batch), classes=3)
    assert [len(x) for x in net.shown] == sizes * 2


def test_every_pass_shows_every_image_once_in_a_new_order() -> None:
    data = squares(12, seed=6)
    data.images[:, 0, 0, 0] = np.arange(12)
    net = Spy(tiny())
    fit(net, data, data, replace(SHORT, augmentation="none"), classes=3)
    orders = (torch.cat([x[:, 0, 0, 0] for x in net.shown]) * 255).round().int().view(3, 12).tolist()
    assert [sorted(order) for order in orders] == [list(range(12))] * 3
    assert len({tuple(order) for order in orders}) == 3
    shown = net.shown[0][0]  # (C, H, W)
    assert torch.equal(shown, torch.from_numpy(data.images[orders[0][0]]).float() / 255)


def test_flips_mirror_image_and_mask_together_in_all_four_ways() -> None:
    masks = np.zeros((8, 6, 6), dtype=np.uint8)
    masks[:, :2, :3] = 1  # a corner: no two mirror images are equal
    images = np.repeat(100 * masks[:, None], 3, axis=1)
    net = Spy(nn.Conv2d(3, 2, 1))  # sees single pixels, so it can only copy
    data = Pictures(images, masks)
    recipe = Recipe(epochs=40, batch=4, learning_rate=0.3, schedule="constant", background_weight=1)
    trained = fit(net, data, data, recipe, classes=2)
    assert trained.history[-1].loss < 0.01

    original = torch.from_numpy(images[0]).float() / 255
    ways = [original, original.flip(-1), original.flip(-2), original.flip(-1, -2)]
    shown = [[torch.equal(x, way) for way in ways] for batch in net.shown for x in batch]
    counts = torch.tensor(shown).sum(0)
    assert counts.sum() == len(shown) == 320
    assert counts.min() > 50
    assert all(torch.equal(x, original) for batch in net.shown_in_evaluation for x in batch)


def test_augmentation_does_not_change_the_order() -> None:
    data = squares(12, seed=6)
    data.images[:] = np.arange(12)[:, None, None, None]
    orders = []
    for augmentation in ("none", "flips"):
        net = Spy(tiny())
        fit(net, data, data, replace(SHORT, augmentation=augmentation), classes=3)
        orders.append(torch.cat([x[:, 0, 0, 0] for x in net.shown]))
    assert torch.equal(*orders)


def test_equal_seeds_give_equal_weights_to_the_bit() -> None:
    train, validation = squares(9, seed=0), squares(4, seed=1)

    def run(seed: int, *, training: bool = True) -> tuple[list[Tensor], list[float], dict[str, object]]:
        net = tiny().train(training)
        trained = fit(net, train, validation, replace(SHORT, seed=seed), classes=3)
        return weights_of(net), [progress.loss for progress in trained.history], trained.scores

    first, second, other = run(0), run(0, training=False), run(1)  # the mode it comes in does not matter
    assert all(map(torch.equal, first[0], second[0]))
    assert first[1:] == second[1:]
    assert not torch.equal(first[0][0], other[0][0])


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    fit(tiny(), squares(5, seed=0), squares(2, seed=1), SHORT, classes=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_length_in_steps_ends_within_a_pass_and_validates_there() -> None:
    net = Spy(tiny())
    trained = fit(net, squares(8, seed=0), squares(3, seed=1), replace(SHORT, steps=5), classes=3)
    assert [(p.epoch, p.step) for p in trained.history] == [(1, 2), (2, 4), (3, 5)]
    assert len(net.shown) == 5
    assert len(net.shown_in_evaluation) == 3
    assert not trained.stopped


def test_training_stops_when_told_false_and_only_then() -> None:
    train, validation = squares(8, seed=0), squares(2, seed=1)

    def run(answers: list[bool | None]) -> tuple[int, bool]:
        trained = fit(tiny(), train, validation, SHORT, classes=3, on_epoch=lambda p: answers[p.epoch - 1])
        return len(trained.history), trained.stopped

    assert run([None, False, None]) == (2, True)
    assert run([None, True, None]) == (3, False)
    assert run([None, None, False]) == (3, False)  # nothing was left to stop


class Failing(nn.Module):
    """Adds ``value`` to the last class at one call in training mode, or at every call in evaluation."""

    def __init__(self, value: float, *, at: int = 0, evaluating: bool = False) -> None:
        super().__init__()
        self.net, self.at, self.evaluating, self.calls = tiny(), at, evaluating, 0
        self.failure = torch.tensor([0, 0, value]).view(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        failing = (self.training and self.calls == self.at) or (self.evaluating and not self.training)
        y: Tensor = self.net(x)
        return y + self.failure if failing else y


@pytest.mark.parametrize(("value", "loss"), [(math.nan, "nan"), (-math.inf, "inf")])
def test_a_loss_that_is_not_finite_raises_and_names_the_step(value: float, loss: str) -> None:
    data = squares(8, seed=0)
    with pytest.raises(DivergedError, match=rf"it was {loss} at step 3 of 6; lower the learning rate 0\.01"):
        fit(Failing(value, at=3), data, data, SHORT, classes=3)
    with pytest.raises(DivergedError, match=f"it was {loss} on the validation images after step 2 of 6"):
        fit(Failing(value, evaluating=True), data, data, SHORT, classes=3)


def test_a_read_only_memory_map_trains_like_its_array(tmp_path: Path) -> None:
    data = squares(6, seed=0)
    np.save(tmp_path / "images.npy", data.images)
    np.save(tmp_path / "masks.npy", data.masks)
    mapped = Pictures(np.load(tmp_path / "images.npy", mmap_mode="r"), np.load(tmp_path / "masks.npy", mmap_mode="r"))
    nets = tiny(), tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = [fit(net, part, part, SHORT, classes=3).scores for net, part in zip(nets, (data, mapped), strict=True)]
    assert scores[0] == scores[1]
    assert all(map(torch.equal, weights_of(nets[0]), weights_of(nets[1])))
    assert np.array_equal(data.images, squares(6, seed=0).images)


def test_bf16_trains_in_bf16_and_is_scored_in_float32() -> None:
    net = Spy(tiny())
    data = squares(8, seed=0)
    trained = fit(net, data, data, replace(SHORT, epochs=30, learning_rate=3e-2, precision="bf16"), classes=3)
    assert {y.dtype for y in net.said} == {torch.bfloat16, torch.float32}
    assert net.said[-1].dtype == torch.float32
    assert next(net.parameters()).dtype == torch.float32
    assert trained.scores["miou"] > 0.6


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 4, 4), np.uint8), "the training split has float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 4, 4), np.int64), "uint8 and int64"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), r"\(2, 3, 4, 4\) and \(3, 4, 4\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 2, 2), np.uint8), r"\(2, 3, 4, 4\) and \(2, 2, 2\)"),
        (np.zeros((0, 3, 4, 4), np.uint8), np.zeros((0, 4, 4), np.uint8), "N at least 1"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.full((2, 4, 4), 7, np.uint8), "the training split has 7; map"),
    ],
)
def test_images_that_cannot_be_used_raise_before_training(
    images: NDArray[np.uint8], masks: NDArray[np.uint8], message: str
) -> None:
    net = Spy(tiny())
    good = squares(2, seed=0)
    with pytest.raises(DataError, match=message):
        fit(net, Pictures(images, masks), good, SHORT, classes=3)
    with pytest.raises(DataError, match=message.replace("training", "validation")):
        fit(net, good, Pictures(images, masks), SHORT, classes=3)
    assert not net.shown


class Copying(nn.Module):
    """Predicts the class that the first channel's grey names, at every ``stride``-th pixel."""

    def __init__(self, classes: int, stride: int = 1) -> None:
        super().__init__()
        self.classes, self.stride = classes, stride

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, :: self.stride, :: self.stride] * 255).round().long()  # (B, H', W')
        return 9.0 * F.one_hot(label, self.classes).movedim(-1, 1).float()  # (B, K, H', W')


def test_masks_are_brought_to_the_size_of_the_logits() -> None:
    masks = np.random.default_rng(0).integers(0, 4, (3, 8, 12), dtype=np.uint8)
    data = Pictures(np.repeat(masks[:, None], 3, axis=1), masks)
    for stride in (1, 2, 4):
        scores = evaluate_split(Copying(4, stride), data, classes=4)
        assert scores["pixel_accuracy"] == 1
        assert scores["ce"] == pytest.approx(math.log(1 + 3 * math.exp(-9)), rel=1e-3)
        assert predict(Copying(4, stride), data.images).shape == (3, 8 // stride, 12 // stride)

    recipe = replace(SHORT, epochs=25, learning_rate=3e-2)
    half = fit(tiny(stride=2), squares(8, seed=0), squares(4, seed=1), recipe, classes=3)
    assert half.scores["miou"] > 0.7


def test_a_split_is_scored_as_a_whole_and_in_evaluation_mode() -> None:
    data = squares(7, seed=0)
    data.masks[:, :3] = 255
    net = Spy(tiny()).train()
    before = weights_of(net)
    whole = evaluate_split(net, data, classes=3, background=1, batch=7)
    assert net.training
    assert not net.shown
    assert all(map(torch.equal, before, weights_of(net)))

    parts = evaluate_split(net.eval(), data, classes=3, background=1, batch=2)
    assert not net.training
    assert parts["per_class"].pop("ce") == pytest.approx(whole["per_class"]["ce"], rel=1e-6)
    assert parts["per_class"].items() <= whole["per_class"].items()
    assert parts["ce"] == pytest.approx(whole["ce"], rel=1e-6)
    iou = whole["per_class"]["iou"]
    assert whole["miou_fg"] == pytest.approx((iou[0] + iou[2]) / 2)

    classes = predict(net.train(), data.images, batch=3)
    assert net.training
    net.eval()
    assert (classes.dtype, classes.shape) == (np.uint8, data.masks.shape)
    valid = data.masks != 255
    assert whole["pixel_accuracy"] == (classes == data.masks)[valid].mean()
    logits, target = net.net(torch.from_numpy(data.images) / 255), torch.from_numpy(data.masks).long()
    weighted = F.cross_entropy(logits, target, torch.tensor([1, 0.25, 1]), ignore_index=255).item()
    assert whole["ce"] == pytest.approx(F.cross_entropy(logits, target, ignore_index=255).item(), rel=1e-5)
    assert whole["ce_weighted"] == pytest.approx(weighted, rel=1e-5)
    assert set(whole) == {*SCORES, "per_class"}


def test_the_weighted_score_keeps_its_weight_whatever_the_recipe() -> None:
    net, data = tiny(), squares(6, seed=0)
    trained = fit(net, data, data, replace(SHORT, background_weight=0.9), classes=3)
    assert trained.scores["ce_weighted"] == evaluate_split(net, data, classes=3, batch=4)["ce_weighted"]


@pytest.mark.parametrize("deep_supervision", [0.0, 0.5])
def test_a_compiled_training_is_the_same_but_for_rounding(
    deep_supervision: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through torch's compiler but for its last part, which would translate to C++ for a minute."""
    graphs: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    recipe = replace(SHORT, deep_supervision=deep_supervision, learning_rate=1e-3)
    spec = replace(zoo.onenet_ed(2, 8), classes=3, heads="all")
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = models.build(spec)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend=count))
            trained = fit(net, squares(10, 0), squares(4, 1), recipe, classes=3, compiled=compiled)
        assert bool(graphs) == compiled
        losses.append([progress.loss for progress in trained.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(
    ("size", "batch", "wanted"), [(16, 4, 12), (16, 100, 256), (64, 4, 12), (64, 12, 16), (64, 40, 40)]
)
def test_small_images_are_evaluated_together(size: int, batch: int, wanted: int) -> None:
    spy = Spy(tiny())
    evaluate_split(spy, squares(2 * wanted, 0, size), classes=3, batch=batch)
    assert [len(x) for x in spy.shown_in_evaluation] == [wanted, wanted]


@pytest.mark.parametrize("name", list(zoo.NETS))
def test_what_is_evaluated_together_takes_no_more_than_a_training_step(name: str) -> None:
    spec = zoo.get(name)
    one = costs.count(spec, 256, batch=1)
    assert one.peak_inference_mib is not None
    assert one.peak_training_mib is not None
    assert loop.BATCHES * one.peak_inference_mib < one.peak_training_mib
