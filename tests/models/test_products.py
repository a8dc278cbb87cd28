"""Products of matrices as 1x1 convolutions, where these are faster: the same sums, in every shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, library
from torch.utils.flop_counter import FlopCounterMode

from onenet_bench import models, zoo
from onenet_bench.measure import memory
from onenet_bench.memory import BYTES, peak_elements, training_peak_bytes
from onenet_bench.models import products
from onenet_bench.plan import plan
from onenet_bench.spec import NetSpec
from tests.models import test_execution
from tests.specs import specs

SHAPES = [  # rows, channels in and out
    (16, 40, 32),  # no more rows than channels
    (32, 40, 33),  # … but channels that are not as many images
    (160, 130, 128),  # many of both
    (160, 8, 24),  # few channels
    (16, 1, 1),
]


@pytest.mark.parametrize("to_rows", [True, False])
@pytest.mark.parametrize(("n", "c_in", "c_out"), SHAPES)
def test_gradients_are_the_products(n: int, c_in: int, c_out: int, to_rows: bool) -> None:
    torch.manual_seed(0)
    g, rows, weight, before = (
        torch.randn(shape, dtype=torch.float64) for shape in ((n, c_out), (n, c_in), (c_out, c_in), (c_out, c_in))
    )
    to_weight, onward = before.clone(), torch.empty(2 * n, c_in, dtype=torch.float64)[n:] if to_rows else None
    products.by_convolution(g, rows, weight, to_weight, onward)
    torch.testing.assert_close(to_weight, before + g.t() @ rows, rtol=0, atol=1e-12 * n)
    if onward is not None:
        torch.testing.assert_close(onward, g @ weight, rtol=0, atol=1e-12 * c_out)
    assert library.opcheck(products.by_convolution, (g, rows, weight, to_weight, onward))


@pytest.mark.parametrize(("n", "c_in", "c_out"), [(256, 512, 256), (1024, 128, 256), (4096, 64, 64)])
def test_single_precision_is_as_accurate_as_products_of_matrices(n: int, c_in: int, c_out: int) -> None:
    torch.manual_seed(0)
    g, rows, weight = torch.randn(n, c_out), torch.randn(n, c_in), torch.randn(c_out, c_in)
    to_weight, to_rows = torch.zeros(c_out, c_in), torch.empty(n, c_in)
    products.by_convolution(g, rows, weight, to_weight, to_rows)
    for got, a, b in ((to_weight, g.t(), rows), (to_rows, g, weight)):
        exact = a.double() @ b.double()
        assert (got - exact).norm() <= 2 * (a @ b - exact).norm()


@given(spec=specs(), batch=st.integers(1, 3))
@settings(max_examples=20)
def test_nets_whose_products_are_all_convolutions_are_the_references(spec: NetSpec, batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_pays", lambda *_: True)
        equality = test_execution.test_outputs_gradients_and_statistics_are_the_references
        equality.hypothesis.inner_test(spec, batch)  # type: ignore[attr-defined]
        test_execution.test_evaluation_is_the_references_with_gradients_without_and_row_by_row.hypothesis.inner_test(
            spec
        )  # type: ignore[attr-defined]


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("name", ["onenet_ed_4_spatial", "onenet_e_4"])
def test_the_processor_does_not_decide_on_peaks(name: str, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SLOW", slow)
    spec = zoo.get(name)
    lowered = plan(spec, (3, 128, 128))
    assert training_peak_bytes(lowered, 4) == memory.tracked_training(spec, 128, 4)
    assert BYTES * peak_elements(lowered) == memory.tracked_inference(spec, 128)


def test_only_large_products_of_slow_processors_are_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    forwards: list[tuple[int, ...]] = []
    backwards: list[tuple[int, ...]] = []
    convolve, by_convolution = products.convolve, products.by_convolution

    def noting(x: Tensor, *rest: object, **how: bool) -> Tensor:
        forwards.append((x.shape[0], x.shape[0] * x.shape[3], x.shape[1]))
        return convolve(x, *rest, **how)  # type: ignore[arg-type]

    def noting_too(g: Tensor, rows: Tensor, *rest: Tensor) -> None:
        backwards.append((*rows.shape, g.shape[1]))
        by_convolution(g, rows, *rest)

    monkeypatch.setattr(products, "convolve", noting)
    monkeypatch.setattr(products, "by_convolution", noting_too)
    net = models.build(zoo.onenet_ed(2, 64))
    image = torch.rand(1, 3, 64, 64)
    monkeypatch.setattr(products, "SLOW", False)
    net(image).sum().backward()
    assert forwards == [(16, 4096, 3)] + [(16, 4096, 64)] * 5
    assert not backwards
    forwards.clear()
    monkeypatch.setattr(products, "SLOW", True)
    net(image).sum().backward()
    assert set(forwards) == {
        (16, 4096, 3), (16, 4096, 64), (16, 1024, 256), (16, 1024, 128), (1, 256, 512), (1, 256, 256)
    }  # fmt: skip
    assert set(backwards) == {
        (2048, 64, 64), (1024, 256, 256), (1024, 256, 128), (1024, 128, 128),
        (256, 512, 256), (256, 256, 256), (256, 256, 512),
    }  # fmt: skip
    backwards.clear()
    with torch.autocast("cpu", torch.bfloat16):
        net(image).sum().backward()
    net.double()(image.double()).sum().backward()
    assert not backwards


def test_multiply_adds_are_counted() -> None:
    g, rows, weight = torch.rand(32, 5), torch.rand(32, 3), torch.rand(5, 3)
    for to_rows, number in ((None, 1), (torch.empty(32, 3), 2)):
        with FlopCounterMode(display=False) as ours:
            products.by_convolution(g, rows, weight, torch.zeros(5, 3), to_rows)
        assert ours.get_total_flops() == number * 2 * 32 * 5 * 3


@pytest.mark.parametrize(
    ("capability", "said", "slow"),
    [
        ("AVX512", "vendor_id : AuthenticAMD\nmodel name : EPYC", True),
        ("AVX512", "vendor_id : GenuineIntel\nmodel name : Xeon", False),
        ("AVX2", "vendor_id : AuthenticAMD\nmodel name : EPYC", False),
        ("DEFAULT", "CPU implementer : 0x41", False),
        ("AVX512", None, False),
    ],
)
def test_a_processor_with_avx_512_that_is_not_intels_is_slow(
    capability: str, said: str | None, slow: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    file = tmp_path / "cpuinfo"
    if said is not None:
        file.write_text(said, encoding="utf-8")
    monkeypatch.setattr(products, "CPUINFO", file)
    assert products._is_slow() is slow


@pytest.mark.parametrize("rows", [16, 2048, 4096])
@pytest.mark.parametrize("relu", [True, False])
def test_a_product_is_linear(rows: int, relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(40)
    wanted = F.linear(x, weight, bias)
    for slow in (True, False):
        monkeypatch.setattr(products, "SLOW", slow)
        got = products.linear(x, weight, bias, relu=relu)
        torch.testing.assert_close(got, wanted.relu() if relu else wanted)
        assert got.is_contiguous()
