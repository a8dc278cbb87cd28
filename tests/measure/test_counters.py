"""What fvcore, ptflops, torch and torchinfo say about a net is explained to the last unit."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from typer.testing import CliRunner

from onenet_bench import costs, zoo
from onenet_bench.cli import app
from onenet_bench.errors import SpecError
from onenet_bench.measure import counters
from onenet_bench.measure.counters import COUNTERS, Counter, Reading, verify
from onenet_bench.models.layers import SpatialConv
from onenet_bench.plan import Plan
from onenet_bench.spec import NetSpec
from tests.specs import specs

SMALL = zoo.onenet_ed(depth=1, width=4, stem_repeat=1)
"""Has a spatial convolution in its encoder and in its decoder."""


def assert_explained(spec: NetSpec, resolution: int | tuple[int, int]) -> None:
    verification = verify(spec, resolution)
    assert not verification.failures
    assert [count.counter for count in verification.counts] == list(COUNTERS)
    assert {count.counter: count.unexplained for count in verification.counts} == dict.fromkeys(COUNTERS, 0)
    assert verification.agrees
    assert verification.macs == costs.count(spec, resolution).macs


@pytest.mark.parametrize("name", zoo.NETS)
def test_every_counter_is_explained_over_the_zoo(name: str) -> None:
    assert_explained(zoo.get(name), 64)


@given(specs())
@settings(max_examples=25)
def test_every_counter_is_explained_over_random_specs(spec: NetSpec) -> None:
    assert_explained(spec, (spec.total_scale, 2 * spec.total_scale))


def named(spec: NetSpec, side: int) -> dict[str, dict[str, int]]:
    return {count.counter: dict(count.terms) for count in verify(spec, side).counts}


def test_the_terms_of_a_net_done_by_hand() -> None:
    """unet(1, width=4, stem_repeat=1) at 8x8: convolutions 3→4 at 8x8, 4→8→8 at 4x4, up 8→4 to 8x8, twice 4→4 and the
    head 4→4 at 8x8; norms and ReLUs behind the first three alone."""
    bias = 4 * 64 + 2 * 8 * 16 + 4 * 64 + 2 * 4 * 64 + 4 * 64
    normed = 4 * 64 + 2 * 8 * 16
    up = 8 * 4 * 4 * 16  # weights x input positions
    found = named(zoo.unet(1, width=4, stem_repeat=1), 8)
    assert found == {
        "fvcore": {"batch norm, 2 per element": 2 * normed},
        "ptflops_pytorch": {
            "bias, 1 per output element": bias,
            "batch norm, 2 per element": 2 * normed,
            "ReLU, 1 per element": normed,
            "max pooling, 1 per input element": 4 * 64,
        },
        "ptflops_aten": {"bias, 1 per output element": bias},
        "flop_counter": {},
        "torchinfo": {
            "transposed convolutions, weights at output positions": 3 * up,
            "bias, 1 per output element": bias,
            "batch norm, its parameters once": 2 * (4 + 8 + 8),
        },
    }


@pytest.mark.parametrize("name", ["unet_4", "mobilenet_unet", "resnet34_unet"])
def test_torchinfo_is_the_papers_convention(name: str) -> None:
    """Where there is no spatial convolution, which the paper's authors ran in another form than this package."""
    spec = zoo.get(name)
    (count,) = (count for count in verify(spec, 32).counts if count.counter == "torchinfo")
    assert 2 * count.number == costs.count(spec, 32).paper_flops


def test_what_could_not_be_counted_stands_beside_the_number() -> None:
    uncounted = {count.counter: set(count.uncounted) for count in verify(SMALL, 8).counts}
    assert {"aten::pixel_unshuffle", "aten::pixel_shuffle"} <= uncounted["fvcore"]
    assert "SpatialConv" in uncounted["ptflops_pytorch"]
    assert not {"UNet", "Module", "relu", "maxpool"} & uncounted["ptflops_pytorch"]
    assert {"aten.native_batch_norm", "aten.relu_"} <= uncounted["ptflops_aten"]
    assert "aten.relu_" in uncounted["flop_counter"]
    assert not {"aten.convolution", "aten.view"} & (uncounted["ptflops_aten"] | uncounted["flop_counter"])
    assert uncounted["torchinfo"] == {"normalise", "relu", "unshuffle", "shuffle"}


def test_counting_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    functions = F.relu, F.max_pool2d, torch.add, torch.Tensor.matmul
    drawn = torch.get_rng_state()
    assert_explained(SMALL, 8)
    assert (F.relu, F.max_pool2d, torch.add, torch.Tensor.matmul) == functions
    assert torch.equal(torch.get_rng_state(), drawn)
    assert capfd.readouterr() == ("", "")


def test_spatial_convolutions_are_counted_in_their_plain_form_and_left_as_they_were() -> None:
    from fvcore.nn import FlopCountAnalysis

    def fvcore(net: nn.Module) -> int:
        analysis = FlopCountAnalysis(net, torch.zeros(1, 3, 16, 16))
        return int(analysis.unsupported_ops_warnings(False).tracer_warnings("none").total())

    net = counters.net_to_count(SMALL, "cpu")
    convolutions = [module for module in net.modules() if isinstance(module, SpatialConv)]
    convolutions[0].banded = False
    with counters.plain_spatial(net):
        plain = fvcore(net)
    assert [module.banded for module in convolutions] == [False, True]
    assert plain != fvcore(net)  # which is what is to be avoided
    with pytest.raises(KeyError), counters.plain_spatial(net):
        raise KeyError
    assert convolutions[1].banded


def test_a_counter_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    verification = verify(SMALL, 8)
    assert list(verification.failures) == ["torchinfo"]
    assert verification.failures["torchinfo"].startswith("ModuleNotFoundError: ")
    assert verification.agrees
    assert len(verification.counts) == len(COUNTERS) - 1


def test_an_error_that_ptflops_swallows_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(self: SpatialConv, x: Tensor) -> Tensor:
        raise ValueError("no such filter")

    monkeypatch.setattr(SpatialConv, "forward", fails)
    relu = F.relu
    verification = verify(SMALL, 8)
    assert verification.failures.keys() == COUNTERS.keys()
    assert verification.failures["ptflops_aten"] == "RuntimeError: ValueError: no such filter"
    assert not verification.agrees
    assert F.relu is relu
    assert capfd.readouterr() == ("", "")


def test_the_resolution_must_fit() -> None:
    with pytest.raises(SpecError, match="must be a multiple of 2"):
        verify(SMALL, 9)


def one_too_many(net: nn.Module, image: Tensor, lowered: Plan) -> Reading:
    return Reading(sum(row.macs for row in lowered.rows if row.runs) + 1, ("guess",))


def test_the_command_line_shows_every_difference_by_name() -> None:
    done = CliRunner().invoke(app, ["profile", "onenet_e_4", "--resolution", "16", "--verify"])
    assert done.exit_code == 0, done.output
    macs = costs.count(zoo.get("onenet_e_4"), 16).macs
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert f"flop_counter {2 * macs:,} 2 x {macs:,} multiply-adds" in lines
    assert lines.count("0 unexplained") == len(COUNTERS)
    for counter in COUNTERS.values():
        assert f"counts {counter.convention}" in lines
    for term in COUNTERS["torchinfo"].terms:
        assert any(line.endswith(term) for line in lines)
    assert any(line.startswith("could not count: SpatialConv, ") for line in lines)


def test_the_command_line_gives_json() -> None:
    words = ["profile", "onenet_e_4", "--resolution", "16", "--json"]
    plain = json.loads(CliRunner().invoke(app, words).output)
    done = CliRunner().invoke(app, [*words, "--verify"])
    assert done.exit_code == 0
    said = json.loads(done.output)
    assert said.pop("verification") == verify(zoo.get("onenet_e_4"), 16).to_dict()
    assert said == plain


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_unexplained_number_is_shown_and_ends_with_1(form: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "COUNTERS", {"guess": Counter(one_too_many, "one too many")})
    done = CliRunner().invoke(app, ["profile", "onenet_e_4", "--resolution", "16", "--verify", *form])
    assert done.exit_code == 1
    if form:
        assert [count["unexplained"] for count in json.loads(done.output)["verification"]["counts"]] == [1]
    else:
        assert "+1 unexplained" in " ".join(done.output.split())
