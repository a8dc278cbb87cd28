"""The gradient of weights as products of matrices: torch's own, in every shape, and more accurate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, library, nn
from torch.utils.flop_counter import FlopCounterMode

from onenet_bench import models, zoo
from onenet_bench.measure import memory
from onenet_bench.memory import CHUNK, training_peak_bytes
from onenet_bench.models import dense
from onenet_bench.models.layers import channels_last
from onenet_bench.plan import plan, smallest
from onenet_bench.spec import NetSpec
from tests.models import test_execution
from tests.specs import specs


def everywhere(patch: pytest.MonkeyPatch) -> None:
    """As on a slow processor, whatever this one is, and for convolutions however small."""
    patch.setattr(dense, "SLOW", True)
    patch.setattr(dense, "CHANNELS", 1)
    patch.setattr(dense, "WORK", 0)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (7, 2), (2, 2), (4, 3), (1, 2)])
@pytest.mark.parametrize(
    ("batch", "c_in", "c_out", "height", "width"),
    [
        (3, 2, 4, 5, 7),  # all images in one band
        (9, 31, 33, 40, 33),  # some images a band, the last band with fewer
        (2, 40, 40, 300, 20),  # some lines a band, the last band with fewer
        (1, 64, 64, 3, CHUNK // 128),  # a line is more than a band holds
        (2, 3, 2, 1, 1),
    ],
)
def test_the_gradient_is_torchs(
    kernel: int, stride: int, batch: int, c_in: int, c_out: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    x = channels_last(torch.randn(batch, c_in, height, width, dtype=torch.float64))
    weight = torch.randn(c_out, c_in, kernel, kernel, dtype=torch.float64, requires_grad=True)
    padding = kernel // 2
    out = F.conv2d(x, weight, stride=stride, padding=padding)
    g = torch.randn(batch, 2 * c_out, *out.shape[2:], dtype=torch.float64)[:, c_out:]  # as a concatenation's: a view
    (wanted,) = torch.autograd.grad(out, weight, g)
    got = dense.weight_gradient(g, x, kernel, stride, padding)
    assert (got - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert library.opcheck(dense.weight_gradient, (g, x, kernel, stride, padding))


@given(spec=specs(), batch=st.integers(1, 3))
@settings(max_examples=20)
def test_nets_whose_convolutions_are_all_products_are_the_references(spec: NetSpec, batch: int) -> None:
    rows = smallest(spec).rows
    assume(any(row.op in ("conv", "up") and row.kernel > 1 and row.groups == 1 for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        everywhere(patch)
        equality = test_execution.test_outputs_gradients_and_statistics_are_the_references
        equality.hypothesis.inner_test(spec, batch)  # type: ignore[attr-defined]


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("name", ["unet_4", "resnet34_unet", "mobilenet_unet"])
def test_the_processor_does_not_decide_on_the_training_peak(
    name: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "SLOW", slow)
    spec = zoo.get(name)
    assert training_peak_bytes(plan(spec, (3, 128, 128)), 4) == memory.tracked_training(spec, 128, 4)


def test_only_large_wide_convolutions_of_slow_processors_in_training_are_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, ...]] = []

    def noting(g: Tensor, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        seen.append((*x.shape, g.shape[1], kernel))
        return kept(g, x, kernel, stride, padding)

    kept = dense.weight_gradient
    monkeypatch.setattr(dense, "weight_gradient", noting)
    net = models.build(zoo.get("unet_4"))
    with monkeypatch.context() as patch:
        everywhere(patch)
        image = torch.rand(2, 3, 32, 32)
        with torch.autocast("cpu", torch.bfloat16):
            net(image).sum().backward()
        with torch.no_grad():
            net.eval()(image)
        patch.setattr(dense, "SLOW", False)
        net.train()(image).sum().backward()
    assert not seen
    monkeypatch.setattr(dense, "SLOW", True)
    net(torch.rand(1, 3, 128, 128)).sum().backward()
    assert seen == [  # the others have little to do, or are heavy
        (1, 64, 128, 128, 64, 3), (1, 64, 128, 128, 64, 3), (1, 64, 128, 128, 128, 2),
        (1, 128, 64, 64, 128, 3), (1, 256, 64, 64, 128, 3), (1, 128, 64, 64, 256, 2),
        (1, 256, 32, 32, 256, 3), (1, 256, 32, 32, 512, 2), (1, 512, 16, 16, 1024, 2),
        (1, 256, 32, 32, 256, 3), (1, 128, 64, 64, 128, 3), (1, 64, 128, 128, 64, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_behind_a_frozen_encoder_a_layer_still_learns(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    torch.manual_seed(0)
    row = next(row for row in smallest(zoo.get("unet_4")).rows if (row.c_in, row.c_out, row.kernel) == (64, 64, 3))
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=bias).double()
    x = channels_last(torch.randn(2, 64, 8, 8, dtype=torch.float64))
    out, wanted = dense.dense_conv(row, layer, x), layer(x)
    g = torch.randn_like(wanted)
    got, of_torch = (torch.autograd.grad(one, list(layer.parameters()), g) for one in (out, wanted))
    for a, b in zip(got, of_torch, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_weights_cost_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    row = next(row for row in smallest(zoo.get("unet_4")).rows if (row.c_in, row.c_out, row.kernel) == (64, 64, 3))
    layer = nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False)
    x = channels_last(torch.randn(2, 64, 8, 8)).requires_grad_()
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
    monkeypatch.setattr(dense, "weight_gradient", lambda *_: pytest.fail("nobody asked for it"))
    (got,) = torch.autograd.grad(dense.dense_conv(row, layer, x).square().sum(), x)
    torch.testing.assert_close(got, wanted)


def test_the_gradient_is_as_accurate_as_sums_in_parts_are() -> None:
    """torch's own, on a processor with AVX2 alone, adds up 16,384 positions one by one, and is off by 2e-6."""
    torch.manual_seed(0)
    x, g = (channels_last(torch.randn(4, 64, 64, 64)) for _ in range(2))
    weight = torch.zeros(64, 64, 3, 3, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(F.conv2d(x.double(), weight, padding=1), weight, g.double())
    assert (dense.weight_gradient(g, x, 3, 1, 1) - exact).norm() < 1e-6 * exact.norm()


def test_the_gradients_multiply_adds_are_counted() -> None:
    x, g = channels_last(torch.rand(2, 3, 8, 8)), channels_last(torch.rand(2, 5, 8, 8))
    weight = torch.zeros(5, 3, 3, 3, requires_grad=True)
    out = F.conv2d(x, weight, padding=1)
    with FlopCounterMode(display=False) as theirs:
        torch.autograd.grad(out, weight, g)
    with FlopCounterMode(display=False) as ours:
        dense.weight_gradient(g, x, 3, 1, 1)
    assert ours.get_total_flops() == theirs.get_total_flops() > 0
