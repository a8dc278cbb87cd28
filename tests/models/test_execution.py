"""How nets are executed: equal to the plain reference composition, in every mode, and as accurate."""

from __future__ import annotations

import copy
import math
import os
import shutil
import statistics
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from onenet_bench import memory, models, zoo
from onenet_bench.models import dense, fused
from onenet_bench.models.layers import channels_last, convolve, pixel_shuffle, pixel_unshuffle
from onenet_bench.plan import smallest
from onenet_bench.spec import NetSpec
from tests.reference import Reference
from tests.specs import specs


def pair(spec: NetSpec, seed: int = 0) -> tuple[models.UNet, Reference]:
    """A net in float64 and its reference, with the same weights; norms with scales and shifts of their own."""
    torch.manual_seed(seed)
    net, reference = models.build(spec).double(), Reference(spec).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.uniform_(layer.bias, -1, 1)
    reference.load_state_dict(net.state_dict())
    return net, reference


def least_spread(reference: Reference, image: Tensor) -> float:
    """Over the batch norms, the least of the largest variance that a channel has before them."""
    spreads: list[float] = []
    looked_at = copy.deepcopy(reference)  # for its statistics move
    for layer in looked_at.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, x: spreads.append(float(x[0].var((0, 2, 3)).max())))
    with torch.no_grad():
        looked_at.all_heads(image)
    return min(spreads, default=math.inf)


def alive(spec: NetSpec, batch: int) -> tuple[models.UNet, Reference, Tensor]:
    """A pair and images (B, C, H, W) of which no norm sees constants alone, as behind ReLUs that are all dead: the
    true gradient is 0 before such a norm, and what is computed is rounding, magnified by 1 / sqrt(eps) at every norm.
    Weights are drawn anew, twenty times at most, so that every spec is compared where it computes something."""
    side = 2 * spec.total_scale
    for seed in range(20):
        net, reference = pair(spec, seed)
        image = torch.rand(batch, spec.in_channels, side, side, dtype=torch.float64)
        if least_spread(reference, image) > 1e-10:
            break
    return net, reference, image


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    """To ``tolerance`` of the largest number, or of 1."""
    assert (got - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))


@given(spec=specs(), batch=st.integers(1, 3))
@settings(max_examples=30)
def test_outputs_gradients_and_statistics_are_the_references(spec: NetSpec, batch: int) -> None:
    net, reference, image = alive(spec, batch)
    got, wanted = net.all_heads(image), reference.all_heads(image)
    weights = [torch.randn_like(logits) for logits in wanted]
    for a, b in zip(got, wanted, strict=True):
        close(a, b)
    torch.autograd.backward(got, weights)
    torch.autograd.backward(wanted, weights)
    theirs = dict(reference.named_parameters())
    scale = max((float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None), default=1.0)
    for name, parameter in net.named_parameters():
        gradient = theirs[name].grad
        assert (parameter.grad is None) == (gradient is None), name
        if parameter.grad is not None and gradient is not None:
            assert (parameter.grad - gradient).abs().max() <= 1e-10 * max(1.0, scale), name
    state = reference.state_dict()
    for name, value in net.state_dict().items():
        if "running" in name or "num_batches" in name:
            close(value.double(), state[name].double())


@given(spec=specs())
@settings(max_examples=30)
def test_evaluation_is_the_references_with_gradients_without_and_row_by_row(spec: NetSpec) -> None:
    net, reference = pair(spec)
    side = 2 * spec.total_scale
    image = torch.rand(2, spec.in_channels, side, side, dtype=torch.float64)
    with torch.no_grad():
        reference(image)  # running statistics that differ from the first ones
    net.load_state_dict(reference.state_dict())
    net.eval()
    wanted = reference.eval()(image)
    kept = image.clone()
    with torch.inference_mode():
        close(net(image), wanted)
        close(net(image), wanted)  # nothing of the first run is left
    assert torch.equal(image, kept)
    net.plain = True
    with torch.no_grad():
        close(net(image), wanted)
    net.plain = False
    got = net(image)
    close(got, wanted)
    some = next(net.parameters())
    a, b = (torch.autograd.grad(x.sum(), p)[0] for x, p in ((got, some), (wanted, next(reference.parameters()))))
    assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@given(spec=specs(), batch=st.integers(1, 3))
@settings(max_examples=30)
def test_single_precision_is_the_references_too(spec: NetSpec, batch: int) -> None:
    """There other operators of the library run, with and without gradients."""
    net, reference = pair(spec)
    side = 2 * spec.total_scale
    image = torch.rand(batch, spec.in_channels, side, side, dtype=torch.float64)
    with torch.no_grad():
        reference(image)
    net.load_state_dict(reference.state_dict())
    net, wanted = net.float().eval(), reference.eval()(image)
    with torch.inference_mode():
        close(net(image.float()).double(), wanted, 1e-3)
    close(net(image.float()).double(), wanted, 1e-3)


@given(spec=specs(), batch=st.integers(1, 3))
@settings(max_examples=20)
def test_heavy_convolutions_are_the_references_too(spec: NetSpec, batch: int) -> None:
    """Every convolution that has more weights than its input has elements, as if it had millions."""
    rows = smallest(spec).rows
    assume(any(row.op == "conv" and row.kernel > 1 for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "HEAVY", 1)
        test_outputs_gradients_and_statistics_are_the_references.hypothesis.inner_test(spec, batch)  # type: ignore[attr-defined]
        test_single_precision_is_the_references_too.hypothesis.inner_test(spec, batch)  # type: ignore[attr-defined]


def test_only_a_convolution_that_outweighs_its_input_is_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    kept = dense.heavy_conv

    def noting(conv: nn.Conv2d, x: Tensor) -> Tensor:
        taken.append(tuple(x.shape))
        return kept(conv, x)

    monkeypatch.setattr(dense, "heavy_conv", noting)
    net = models.build(zoo.get("unet_4")).eval()
    with torch.inference_mode():
        net(torch.rand(1, 3, 64, 64))
        assert taken[:2] == [(1, 256, 8, 8), (1, 512, 8, 8)]
        assert {c for _, c, *_ in taken} == {256, 512, 1024}
        taken.clear()
        net(torch.rand(9, 3, 256, 256))
        assert {shape[1:] for shape in taken} == {(512, 16, 16), (1024, 16, 16)}
        taken.clear()
        with torch.autocast("cpu", torch.bfloat16):
            net(torch.rand(1, 3, 64, 64))
    assert not taken


def test_weights_that_change_between_inferences_are_seen() -> None:
    net, reference = pair(zoo.onenet_ed(2, 8))
    image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    net.eval()
    reference.eval()
    for _ in range(2):
        for p, q in zip(net.parameters(), reference.parameters(), strict=True):
            p.data.mul_(1.1)  # which no version counter sees
            q.data.mul_(1.1)
        with torch.no_grad():
            close(net(image), reference(image))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [24, 4096])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_a_channel_convolution_is_a_1x1_convolution(threads: int, rows: int, relu: bool, normed: bool) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 5, 1).double(), nn.BatchNorm2d(3).double()
    nn.init.uniform_(norm.weight)
    x = channels_last(torch.randn(2, 3, rows // 8, 4, dtype=torch.float64)).requires_grad_()
    wanted = layer(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True) if normed else x)
    wanted = F.relu(wanted) if relu else wanted
    gradient = torch.randn_like(wanted)
    inputs = (x, layer.weight, layer.bias, *(norm.parameters() if normed else ()))
    got = fused.channel_conv(layer, x, relu=relu, norm=norm if normed else None)
    close(got, wanted, 1e-12)
    for a, b in zip(
        torch.autograd.grad(got, inputs, gradient), torch.autograd.grad(wanted, inputs, gradient), strict=True
    ):
        close(a, b, 1e-11)


def test_the_fast_library_gets_long_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would compare one form with itself."""
    seen: list[tuple[int, ...]] = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest: seen.append(tuple(x.shape)) or convolve(x, *rest))
    layer = nn.Conv2d(3, 5, 1)
    fused.channel_conv(layer, channels_last(torch.rand(1, 3, 64, 64)), relu=False)
    fused.channel_conv(layer, channels_last(torch.rand(1, 3, 8, 8)), relu=False)
    assert seen == [(16, 3, 1, 256)]


def test_a_hook_sees_its_layer_called() -> None:
    net = models.build(zoo.onenet_ed(1, 8)).eval()
    seen: list[str] = []
    net.get_submodule("stem.0.norm").register_forward_hook(lambda *_: seen.append("norm"))
    with torch.no_grad():
        net(torch.rand(1, 3, 16, 16))
    assert seen == ["norm"]


def test_bf16_is_as_near_float64_as_torchs_own_and_trains_every_weight() -> None:
    net, reference = pair(zoo.onenet_ed(2, 16))
    image = torch.rand(4, 3, 64, 64)
    exact = reference(image.double())
    net, reference = net.float(), reference.float()
    with torch.autocast("cpu", torch.bfloat16):
        narrow, literal = net(image), reference(image)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - exact).abs().mean() <= 1.2 * (literal - exact).abs().mean()
    narrow.float().square().mean().backward()
    used = [p for p in net.parameters() if p.grad is not None]
    assert len(used) > 50
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in used if p.grad is not None)


def errors(net: nn.Module, exact: tuple[Tensor, list[Tensor]], image: Tensor) -> tuple[float, float]:
    """Mean error of the logits and of all gradients against float64, relative to the largest of each."""
    logits, gradients = outcome(net, image)
    to_logits = float((logits.double() - exact[0]).abs().mean() / exact[0].abs().max())
    of_all = [
        float((a.double() - b).norm() / b.norm()) for a, b in zip(gradients, exact[1], strict=True) if b.norm() > 1e-8
    ]
    return to_logits, sum(of_all) / len(of_all)


def outcome(net: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    logits = net(image)
    names = [(name, p) for name, p in sorted(net.named_parameters())]
    weight = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view(logits.shape)
    found = torch.autograd.grad((logits * weight).sum(), [p for _, p in names], allow_unused=True)
    return logits.detach(), [g for g in found if g is not None]


@pytest.mark.parametrize("spec", [zoo.onenet_e(2, 16), zoo.onenet_ed(2, 16)], ids=["e", "ed"])
def test_float32_is_as_accurate_as_the_literal_composition(spec: NetSpec) -> None:
    """Against float64, in training; and torch's own batch norm on channels-last memory is not.

    Where rounding takes a number across a ReLU's corner, gradients jump by far more than rounding: a matter of luck,
    which is rare in small images, and of which the median over several knows nothing.
    """
    torch.set_num_threads(1)

    def all_errors(side: int, seed: int) -> list[tuple[float, float]]:
        """Of the literal form, ours, and ours with torch's batch norm."""
        ours, reference = pair(spec, seed)
        image = torch.rand(2, 3, side, side)
        exact = outcome(reference, image.double())
        found = [errors(net, exact, image) for net in (reference.float(), ours.float())]
        ours.plain = True
        return [*found, errors(ours, exact, image)]

    literal, got, plain = all_errors(192, 0)
    assert got[0] <= 2 * literal[0] < plain[0]
    literal, got, plain = (
        [statistics.median(e) for e in zip(*form, strict=True)]
        for form in zip(*(all_errors(48, seed) for seed in range(9)), strict=True)
    )
    assert got[0] <= 2 * literal[0] < plain[0]
    assert got[1] <= 2 * literal[1] < plain[1]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_convolution_with_its_relu_is_both_one_after_the_other(dtype: torch.dtype, relu: bool) -> None:
    torch.manual_seed(0)
    x, weight = channels_last(torch.randn(2, 16, 3, 40)).to(dtype), torch.randn(8, 16, 1, 3).to(dtype)
    for bias in (None, torch.randn(8).to(dtype)):
        wanted = F.conv2d(x, weight, bias, padding=(0, 1))
        got = convolve(x, weight, bias, padding=(0, 1), relu=relu)
        torch.testing.assert_close(got, F.relu(wanted) if relu else wanted)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_fused_convolution_s_flops_are_counted() -> None:
    net = models.build(zoo.onenet_ed(1, 8)).eval()
    image = torch.rand(1, 3, 64, 64)
    counts = []
    for plain in (False, True):
        net.plain = plain
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(image)
        counts.append(counter.get_total_flops())
    assert counts[0] >= counts[1] > 0  # a banded filter has more taps than the plain one


@pytest.mark.parametrize("scale", [2, 3])
def test_shape_movers_and_their_gradients_are_torch_s(scale: int) -> None:
    x = channels_last(torch.randn(2, 9 * scale**2, 4 * scale, 2 * scale, dtype=torch.float64)).requires_grad_()
    for ours, theirs in ((pixel_unshuffle, F.pixel_unshuffle), (pixel_shuffle, F.pixel_shuffle)):
        got, wanted = ours(x, scale), theirs(x, scale)
        assert torch.equal(got, wanted)
        weights = torch.randn_like(wanted)
        assert torch.equal(*(torch.autograd.grad(out, x, weights)[0] for out in (got, wanted)))
        with torch.no_grad():
            assert torch.equal(ours(x, scale), wanted)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_inference_is_the_same() -> None:
    net = models.build(zoo.onenet_ed(2, 8)).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = net(image)
        close(torch.compile(net)(image), wanted, 1e-5)


def test_a_narrow_strided_convolution_leaves_the_heap_alone() -> None:
    """In a process of its own, which the C library ends at the first number written beyond its place."""
    code = (
        "import torch; from onenet_bench import models, zoo\n"
        "spec = zoo.resnet_unet('resnet_basic', [4, 4, 8, 16, 32], [1, 1, 1, 1], classes=3)\n"
        "net = models.build(spec)\n"
        "for _ in range(20): net(torch.rand(4, 3, 32, 32)).sum().backward()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
