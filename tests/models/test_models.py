"""Modules: shape movers, the spatial convolution's forms, reference checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from onenet_bench import costs, models, zoo
from onenet_bench.errors import SpecError
from onenet_bench.models.layers import (
    SpatialConv,
    flat_pixel_shuffle,
    flat_pixel_unshuffle,
    flatten_channels,
    recover_channels,
)
from onenet_bench.space import compose
from onenet_bench.spec import NetSpec
from tests.literal import literal_onenet_e, literal_onenet_ed
from tests.specs import specs

SIDES = st.integers(1, 5)


@given(s=st.integers(1, 5), b=st.integers(1, 3), c=st.integers(1, 4), h=SIDES, w=SIDES)
@settings(max_examples=60)
def test_flat_pixel_unshuffle_is_torchs_and_round_trips(s: int, b: int, c: int, h: int, w: int) -> None:
    x = torch.randn(b, c, h * s, w * s)
    flat = flat_pixel_unshuffle(x.flatten(2), h * s, w * s, s)
    assert torch.equal(flat, F.pixel_unshuffle(x, s).flatten(2))
    assert torch.equal(flat_pixel_shuffle(flat, h, w, s), x.flatten(2))
    assert torch.equal(flat_pixel_shuffle(flat, h, w, s), F.pixel_shuffle(F.pixel_unshuffle(x, s), s).flatten(2))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: flat_pixel_unshuffle(torch.zeros(1, 1, 15), 5, 3, 2),
            "height must be a multiple of 2, but got 5; use 6",
        ),
        (
            lambda: flat_pixel_shuffle(torch.zeros(1, 6, 4), 2, 2, 2),
            "channels must be a multiple of 4, but got 6; use 8",
        ),
        (lambda: flat_pixel_unshuffle(torch.zeros(1, 1, 15), 4, 4, 2), "15 is not 4 x 4"),
    ],
)
def test_what_cannot_be_shuffled_is_refused(call: object, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        call()  # type: ignore[operator]


def test_flattening_runs_over_channels_fastest_and_round_trips() -> None:
    x = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    flat = flatten_channels(x)
    assert flat[0, 0, :4].tolist() == [x[0, 0, 0, 0], x[0, 1, 0, 0], x[0, 2, 0, 0], x[0, 0, 0, 1]]
    assert torch.equal(recover_channels(flat, 2, 2), x)


def spatial_by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition, in index arithmetic: (B, C, H, W) in and out."""
    b, _, h, w = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(b, -1)
    n, k = flat.shape[1], weight.numel()
    at = torch.arange(n)[:, None] + torch.arange(k)[None, :] - k // 2
    at = at.abs()
    at = torch.where(at > n - 1, 2 * (n - 1) - at, at)
    out = F.relu((flat[:, at] * weight.flatten()).sum(-1) + bias)
    return out.reshape(b, h, w, -1).permute(0, 3, 1, 2)


@given(
    kernel=st.sampled_from((1, 3, 9, 15, 33, 35)), c=st.sampled_from((4, 8, 9, 16, 64)), h=st.integers(2, 5),
    w=st.integers(2, 5),
)  # fmt: skip
@settings(max_examples=60)
def test_both_forms_of_the_spatial_convolution_are_its_definition(kernel: int, c: int, h: int, w: int) -> None:
    if kernel // 2 >= c * h * w:
        return  # reflection needs more positions than it mirrors
    torch.manual_seed(0)
    layer = SpatialConv(kernel).double()
    x = torch.randn(2, c, h, w, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(2, c, h, w, dtype=torch.float64)
    wanted = spatial_by_hand(x, layer.weight, layer.bias)
    inputs = (x, layer.weight, layer.bias)
    wanted_grads = torch.autograd.grad(wanted, inputs, gradient)
    for banded in (True, False):
        layer.banded = banded
        got = layer(x)
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
        for a, b in zip(torch.autograd.grad(got, inputs, gradient), wanted_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_banded_form_runs_where_it_fits() -> None:
    """Else the test above would compare the plain form with itself."""
    layer, x = SpatialConv(9), torch.rand(1, 16, 4, 4)
    calls = []
    layer._as_band = lambda flat: calls.append(1) or layer._plain(flat)  # type: ignore[method-assign,func-returns-value]
    layer(x)
    layer(torch.rand(1, 3, 3, 3))
    assert calls == [1]


@given(specs())
@settings(max_examples=100)
def test_every_spec_builds_trains_a_step_and_repeats_itself(spec: NetSpec) -> None:
    side = 2 * spec.total_scale
    x = torch.rand(2, spec.in_channels, side, side)
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        net = models.build(spec)
        logits = net(x)
        assert logits.shape == (2, spec.classes, side // spec.output_stride, side // spec.output_stride)
        logits.square().mean().backward()
        outputs.append(logits.detach())
    assert torch.equal(*outputs)


def test_an_image_that_does_not_fit_is_refused() -> None:
    net = models.build(zoo.unet(2, width=4))
    with pytest.raises(SpecError, match=r"width must be a multiple of 4.*got 18; use 16 or 20"):
        net(torch.rand(1, 3, 16, 18))


@pytest.mark.parametrize("kernel", [7, 9])
def test_a_kernel_that_reaches_past_what_it_mirrors_is_refused_where_costs_are_counted(kernel: int) -> None:
    """The deepest level has four numbers an image, 1 x 1 pixels of 4 channels: 7 taps reach three to either side."""
    spec = compose(classes=2, depth=3, width=1, growth=1.0, scale=[4, 3, 2], encoder="onenet1d", spatial_kernel=kernel)
    net, images = models.build(spec), torch.rand(2, 3, 24, 24)
    if kernel == 7:
        assert net(images).shape == (2, 2, 24, 24)
        assert costs.count(spec, 24).macs > 0
        return
    with pytest.raises(RuntimeError, match="Padding size should be less"):
        net(images)
    with pytest.raises(SpecError, match=r"encoder\.3.* has 9 taps and 4 numbers; use a kernel of at most 7"):
        costs.count(spec, 24)


# Checkpoints of the authors' code ---------------------------------------------------------------------------


def literal(kind: str, depth: int, width: int) -> tuple[nn.Module, NetSpec]:
    torch.manual_seed(depth)
    if kind == "e":
        net, spec = literal_onenet_e(depth, width, 2, 9, 5), zoo.onenet_e(depth, width, 2, 9, classes=5)
    else:
        net, spec = literal_onenet_ed(depth, width, 2, 9, 5), zoo.onenet_ed(depth, width, 2, 9, classes=5)
    net.train()
    for _ in range(3):  # running statistics of their own
        net(torch.rand(4, 3, 32, 32))
    return net.eval(), spec


@pytest.mark.parametrize("kind", ["e", "ed"])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_checkpoint_of_the_authors_code_gives_the_same_outputs(kind: str, depth: int) -> None:
    theirs, spec = literal(kind, depth, width=8)
    state = theirs.state_dict()
    assert "encoder.convs.channel_1_0.bn.weight" in state
    assert "decoder.convs.head_1.conv.weight" in state
    ours = models.build(spec).eval()
    models.load_reference_state_dict(ours, state)
    x = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-4)


def test_a_checkpoint_of_another_net_is_refused_and_changes_nothing() -> None:
    theirs, spec = literal("ed", 2, width=8)
    state = theirs.state_dict()
    for other in (zoo.onenet_e(2, 8, 2, 9, classes=5), zoo.onenet_ed(2, 16, 2, 9, classes=5)):
        net = models.build(other)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(SpecError, match="build the spec that the checkpoint was trained with"):
            models.load_reference_state_dict(net, state)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    short = {name: value for name, value in state.items() if name != "decoder.bottleneck.conv.bias"}
    with pytest.raises(SpecError, match=r"nothing in it is 'decoder\.bottom\.conv\.bias'"):
        models.load_reference_state_dict(models.build(spec), short)
