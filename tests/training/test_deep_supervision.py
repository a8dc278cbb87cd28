from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from onenet_bench import costs, models, zoo
from onenet_bench.errors import RecipeError
from onenet_bench.measure.memory import _tracked
from onenet_bench.memory import training_peak_bytes
from onenet_bench.plan import plan
from onenet_bench.recipe import Recipe
from onenet_bench.spec import NetSpec
from onenet_bench.training import fit
from tests.specs import specs
from tests.training.test_loop import squares, weights_of

NETS = {
    "1D": zoo.onenet_ed(3, width=4, classes=3),
    "2D decoder": zoo.onenet_e(3, width=4, classes=3),
    "2D": zoo.get("unet_4"),
}


def built(spec: NetSpec) -> models.UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.build(spec)


@pytest.mark.parametrize("name", NETS)
def test_all_heads_are_the_head_convolutions_of_their_levels(name: str) -> None:
    net = built(NETS[name]).eval()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    read: dict[str, Tensor] = {}
    for head in net.heads:
        net.get_submodule(head).register_forward_pre_hook(lambda _, x, head=head: read.update({head: x[0].clone()}))
    with torch.no_grad():
        logits = net(image)
        assert list(read) == [net.heads[-1]]  # no inference runs the others
        heads = net.all_heads(image)
        assert torch.equal(heads[-1], logits)
        assert list(read)[1:] == list(net.heads[:-1])
        for head, y in zip(net.heads, heads, strict=True):
            module = net.get_submodule(head)
            assert isinstance(module, nn.Conv2d)
            expected = F.conv2d(read[head], module.weight, module.bias, padding=module.kernel_size[0] // 2)
            torch.testing.assert_close(y, expected)
    sides = [y.shape[-1] for y in heads]
    assert sides == sorted(set(sides))  # deepest first
    assert len(heads) == len(NETS[name].decoder)


def test_a_net_of_one_head_has_that_one() -> None:
    net = built(replace(NETS["1D"], heads="top")).eval()
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        (only,) = net.all_heads(image)
        assert torch.equal(only, net(image))


def test_the_loss_is_the_nets_own_and_the_weighted_mean_of_the_others() -> None:
    data = squares(2, seed=0)
    data.masks[0, :4] = 255
    recipe = Recipe(
        epochs=1, batch=2, learning_rate=1e-9, augmentation="none", deep_supervision=0.3, background_weight=0.5
    )
    net = built(NETS["1D"])
    image, mask = torch.from_numpy(data.images) / 255, torch.from_numpy(data.masks)
    with torch.no_grad():
        losses = []
        for y in built(NETS["1D"]).train().all_heads(image):
            stride = 16 // y.shape[-1]
            target = mask[:, ::stride, ::stride].long()
            losses.append(F.cross_entropy(y, target, torch.tensor([0.5, 1, 1]), ignore_index=255).item())
    trained = fit(net, data, data, recipe, classes=3)
    assert trained.history[0].loss == pytest.approx(losses[-1] + 0.3 * (losses[0] + losses[1]) / 2, rel=1e-5)


def test_the_other_heads_learn_under_deep_supervision_alone() -> None:
    data = squares(4, seed=0)
    recipe = Recipe(epochs=1, batch=4, schedule="constant", weight_decay=0)
    moved = {}
    for weight in (0.0, 0.5):
        net = built(NETS["1D"])
        before = [net.get_parameter(f"{head}.weight").clone() for head in net.heads]
        fit(net, data, data, replace(recipe, deep_supervision=weight), classes=3)
        after = [net.get_parameter(f"{head}.weight") for head in net.heads]
        moved[weight] = [not torch.equal(b, a) for b, a in zip(before, after, strict=True)]
    assert moved == {0.0: [False, False, True], 0.5: [True, True, True]}


@pytest.mark.parametrize("spec", [replace(NETS["1D"], heads="top"), zoo.onenet_ed(1, width=4, classes=3)])
def test_a_net_of_one_head_raises_before_training(spec: NetSpec) -> None:
    data = squares(2, seed=0)
    net = built(spec)
    before = weights_of(net)
    with pytest.raises(RecipeError, match="heads at two or more decoder levels, but the net has one; give"):
        fit(net, data, data, Recipe(deep_supervision=1), classes=3)
    with pytest.raises(RecipeError, match="heads at two or more decoder levels, but the net has one; give"):
        costs.count(spec, 16, deep_supervision=True)
    with pytest.raises(RecipeError, match="heads at two or more"):
        fit(nn.Conv2d(3, 3, 1), data, data, Recipe(deep_supervision=1), classes=3)
    assert all(map(torch.equal, before, weights_of(net)))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_raises(weight: float) -> None:
    with pytest.raises(RecipeError, match="the weight of deep supervision is at least 0, but got"):
        Recipe(deep_supervision=weight)


# Costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_other_heads_macs_are_what_torch_counts_on_top(name: str) -> None:
    spec = NETS[name]
    without, counted = costs.count(spec, 32), costs.count(spec, 32, deep_supervision=True)
    assert without.supervision_macs is None
    with FakeTensorMode():
        net, image = models.build(spec).eval(), torch.rand(1, 3, 32, 32)
        counts = []
        for call in (net, net.all_heads):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call(image)
            counts.append(counter.get_total_flops())
    assert counted.supervision_macs == (counts[1] - counts[0]) // 2 > 0
    assert replace(counted, supervision_macs=None) == without  # an inference costs the same


def tracked_peak(spec: NetSpec, resolution: int, batch: int, precision: str = "float32") -> int:
    """Peak of live bytes of a training step on all heads, by torch's tracker."""
    with FakeTensorMode():
        net = models.build(spec).train()
        optimiser = torch.optim.AdamW(net.parameters(), fused=True)
        image = torch.rand(batch, spec.in_channels, resolution, resolution)
        shapes = [y.shape for y in net.all_heads(image)]
        targets = [torch.zeros(b, h, w, dtype=torch.int64) for b, _, h, w in shapes]

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                heads = net.all_heads(image)
            *others, loss = [F.cross_entropy(y.float(), t) for y, t in zip(heads, targets, strict=True)]
            optimiser.zero_grad()
            torch.autograd.backward(loss + 0.5 * torch.stack(others).mean())
            optimiser.step()
            optimiser.zero_grad()

        step()
        return _tracked(step, net, optimiser, image, *targets)["Total"]


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [("1D", "float32", 1e-4), ("2D decoder", "float32", 1e-4), ("2D", "float32", 0.002), ("2D decoder", "bf16", 0.01)],
)
def test_the_training_peak_holds_all_heads(name: str, precision: str, tolerance: float) -> None:
    spec = NETS[name]
    lowered = plan(spec, (3, 64, 64))
    predicted = training_peak_bytes(lowered, 4, precision, deep_supervision=True)
    assert predicted == pytest.approx(tracked_peak(spec, 64, 4, precision), rel=tolerance)
    assert predicted > training_peak_bytes(lowered, 4, precision)


@given(specs(max_depth=2, max_channels=8))
@settings(max_examples=5)
def test_the_training_peak_of_all_heads_over_random_specs(spec: NetSpec) -> None:
    spec = replace(spec, heads="all")
    side = 4 * spec.total_scale
    if len(spec.decoder) > 1:
        predicted = training_peak_bytes(plan(spec, (spec.in_channels, side, side)), 3, deep_supervision=True)
        assert predicted == pytest.approx(tracked_peak(spec, side, 3), rel=0.02)
