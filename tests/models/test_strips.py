"""A deployed plan strip by strip: the same function, in an order that keeps less at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onenet_bench import costs, zoo
from onenet_bench.errors import SpecError
from onenet_bench.memory import BYTES, peak_elements
from onenet_bench.models import deploy, onnx, strips
from onenet_bench.plan import Plan
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from tests.models.test_deploy import net_of, tracked_bytes
from tests.specs import MORE_TAPS, specs


@pytest.fixture
def small() -> Iterator[None]:
    """Strips of small tensors, too, whatever it costs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strips, "STRIP", BYTES)
        patched.setattr(strips, "PAYS", 0)
        yield


def number(plan: Plan) -> int:
    """Of strips."""
    return max((row.groups for row in plan.rows if row.op == "strip"), default=1)


@given(specs(), st.integers(0, 99), st.sampled_from((2, 3, 6)))
@settings(max_examples=60, deadline=None)
def test_every_spec_is_the_same_function_in_strips(spec: NetSpec, seed: int, times: int) -> None:
    side = times * spec.total_scale
    net = net_of(spec, seed)
    image = torch.rand(2, spec.in_channels, side, 2 * side, dtype=torch.float64)
    whole = deploy.simplify(net)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strips, "STRIP", BYTES)
        patched.setattr(strips, "PAYS", 0)
        graph = whole.in_strips((spec.in_channels, side, 2 * side))
    kept = image.clone()
    with torch.no_grad():
        got, wanted = graph(image), whole(image)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max() + 1))
    assert torch.equal(kept, image), "the image is the caller's"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("times", "cut"), [(1, 1), (4, 4), (6, 6), (7, 7), (9, 3), (16, 8)])
def test_strips_divide_every_level(times: int, cut: int) -> None:
    """At most eight, of equal heights at every level."""
    spec = zoo.onenet_ed(2, width=8)
    whole = deploy.deployed_plan(spec, (3, 4 * times, 8))
    plan = strips.in_strips(whole)
    assert number(plan) == cut
    sums, wanted = costs.add_up(plan.rows), costs.add_up(whole.rows)
    assert sums.parameters == wanted.parameters
    assert sum(row.macs for row in plan.rows) == wanted.macs


@pytest.mark.parametrize(
    ("name", "side", "cut"),
    [("onenet_ed_4", 128, 1), ("onenet_ed_4", 256, 4), ("onenet_ed_4", 512, 8), ("onenet_e_4", 256, 4),
     ("unet_4", 512, 1), ("resnet50_unet", 512, 1), ("mobilenet_unet", 512, 1)],
)  # fmt: skip
def test_strips_are_for_large_tensors_that_1x1_convolutions_pass_on(name: str, side: int, cut: int) -> None:
    whole = deploy.deployed_plan(zoo.get(name), (3, side, side))
    plan = strips.in_strips(whole)
    assert number(plan) == cut
    if cut == 1:
        assert plan is whole


def test_a_onenet_needs_a_quarter_less_memory_in_strips() -> None:
    whole = deploy.deployed_plan(zoo.get("onenet_ed_4"), (3, 256, 256))
    assert peak_elements(strips.in_strips(whole)) < 0.75 * peak_elements(whole)


def test_a_strip_is_done_before_the_next_one_begins() -> None:
    """Between two that need all strips, and a spatial convolution's edges are all that is put together."""
    plan = strips.in_strips(deploy.deployed_plan(zoo.get("onenet_ed_4"), (3, 256, 256)))
    stem = [i for i, row in enumerate(plan.rows) if row.name == "stem.0.conv"]
    bottom = [i for i, row in enumerate(plan.rows) if row.name == "decoder.bottom.conv"]
    assert len(stem) == len(bottom) == 4
    assert all(end < begin for end, begin in itertools.pairwise(sorted(stem + bottom)))
    assert sorted(stem + bottom) == [i for pair in zip(stem, bottom, strict=True) for i in pair]
    stacked = [row for row in plan.rows if row.op == "stack"]
    assert len(stacked) == 4 + 1  # decoder levels, and the logits
    assert max(row.elements for row in stacked) < 0.2 * max(row.elements for row in plan.rows) * number(plan)


def test_what_is_whole_anyway_is_not_cut() -> None:
    """A skip goes to a 3x3 convolution: it is put together, and its concatenation is no matter of strips."""
    plan = strips.in_strips(deploy.deployed_plan(zoo.get("onenet_e_4"), (3, 256, 256)))
    assert all(row.h_in == row.h_out for row in plan.rows if row.op == "concat")
    assert {row.h_out for row in plan.rows if row.op == "concat"} == {32, 64, 128}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "spec", [zoo.onenet_ed(2, width=32, encoder_kernel=0), zoo.onenet_ed(2, width=8), zoo.onenet_e(2, width=8)]
)
def test_the_peak_of_memory_is_torchs(spec: NetSpec) -> None:
    plan = strips.in_strips(deploy.deployed_plan(spec, (3, 64, 64)))
    assert number(plan) == 8
    assert tracked_bytes(plan) == BYTES * peak_elements(plan)


@given(specs(max_in_channels=12, taps=MORE_TAPS))
@settings(max_examples=60)
def test_the_peak_of_memory_is_torchs_for_every_spec_whole_and_in_strips(spec: NetSpec) -> None:
    side = 4 * spec.total_scale
    whole = deploy.deployed_plan(spec, (spec.in_channels, side, side))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strips, "STRIP", BYTES)
        patched.setattr(strips, "PAYS", 0)
        plan = strips.in_strips(whole)
    one, many = (asdict(costs.count_plan(lowered)) for lowered in (whole, plan))
    for name in ("parameters", "parameters_used", "macs", "paper_flops"):
        assert one[name] == many[name]
    for lowered in {id(some): some for some in (whole, plan)}.values():
        assert tracked_bytes(lowered) == BYTES * peak_elements(lowered)


@pytest.mark.usefixtures("small")
def test_another_height_is_refused() -> None:
    graph = deploy.simplify(net_of(zoo.onenet_ed(1, width=4))).in_strips((3, 8, 8))
    assert graph(torch.rand(1, 3, 8, 6, dtype=torch.float64)).shape == (1, 4, 8, 6)
    with pytest.raises(SpecError, match=r"cut for, 8, but got 16; cut"):
        graph(torch.rand(1, 3, 16, 8, dtype=torch.float64))


@pytest.mark.usefixtures("small")
def test_a_file_in_strips_holds_every_weight_once(tmp_path: Path) -> None:
    import onnx as package

    level = {"scale": 2, "spatial_kernel": 9, "repeat": 1}
    spec = NetSpec(
        classes=3, stem=StemSpec(channels=32, repeat=2), encoder=(StageSpec(channels=64, **level),),  # type: ignore[arg-type]
        decoder=(StageSpec(channels=32, **level),),  # type: ignore[arg-type]
    )  # fmt: skip
    net = net_of(spec).float()
    graph = deploy.simplify(net)
    cut = graph.in_strips((3, 32, 32))
    assert number(cut.plan) == 8
    assert [*cut.state_dict()] == [*graph.state_dict()]
    onnx.to_onnx(cut, tmp_path / "net.onnx", shape=(3, 32, 32))
    filters = [value for value in package.load(tmp_path / "net.onnx").graph.initializer if len(value.dims) == 4]
    assert sorted(math.prod(value.dims) for value in filters) == sorted(
        value.numel() for value in graph.parameters() if value.dim() == 4
    )
    for batch in (1, 3):
        image = torch.rand(batch, 3, 32, 32)
        with torch.no_grad():
            wanted = net(image)
        torch.testing.assert_close(onnx.OnnxNet(tmp_path / "net.onnx")(image), wanted, rtol=1e-4, atol=1e-4)
