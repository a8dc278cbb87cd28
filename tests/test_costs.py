"""Counts against Table 2's integers, torch's counter and the module itself."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from onenet_bench import costs, models, zoo
from onenet_bench.field import receptive_field
from onenet_bench.plan import plan, smallest
from onenet_bench.spec import NetSpec
from tests.specs import specs

# parameters, parameters used, torchinfo mult-adds, torchinfo pass bytes, FlopCounterMode, for 1x3x256x256
TABLE_2 = {
    "unet_4": (31040912, 31008644, 52380839168, 509607936, 91796537344),
    "unet_5": (124420500, 124351364, 65401019648, 524288000, 114613551104),
    "resnet34_unet": (25049852, 24518404, 14700595840, 241172480, 26749173760),
    "resnet50_unet": (74074556, 71958724, 42487835776, 450363392, 72047656960),
    "mobilenet_unet": (14400848, 14368580, 41975038976, 671088640, 70964740096),
    "onenet_e_4": (16388216, 16355948, 39209676160, 639631360, 65430093824),
    "onenet_e_5": (65727622, 65658486, 49413905792, 656408576, 82614681600),
    "onenet_ed_4": (9081016, 9073836, 11463314560, 799014912, 22814916608),
    "onenet_ed_4_spatial": (9081056, 9073876, 11541957760, 861929472, 22956474368),
    "onenet_ed_5": (36382968, 36367592, 14503681152, 884998144, 28876210176),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_the_zoo_has_the_papers_integers(name: str) -> None:
    counted = costs.count(zoo.get(name), 256)
    parameters, used, mult_adds, pass_bytes, flop_counter = TABLE_2[name]
    assert counted.parameters == parameters
    assert counted.parameters_used == used
    assert counted.paper_flops == 2 * mult_adds
    assert counted.paper_memory_mb * 1e6 == pytest.approx(pass_bytes, rel=1e-12)
    assert 2 * counted.macs == flop_counter


def test_every_net_of_the_zoo_is_checked() -> None:
    assert set(TABLE_2) == set(zoo.NETS)


def counted_by_torch(spec: NetSpec, side: int, **how: Any) -> tuple[int, int]:
    """Parameters and FLOPs that torch itself finds on the meta device."""
    with torch.device("meta"):
        net = models.build(spec).eval()
        image = torch.empty(1, spec.in_channels, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = net(image)
    assert logits.shape == (1, spec.classes, side // spec.output_stride, side // spec.output_stride)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()


@pytest.mark.parametrize("name", zoo.NETS)
def test_counts_equal_torchs_over_the_zoo(name: str) -> None:
    spec = zoo.get(name)
    counted = costs.count(spec, 96)
    assert (counted.parameters, 2 * counted.macs) == counted_by_torch(spec, 96)


@given(specs())
@settings(max_examples=300)
def test_counts_equal_torchs_over_random_specs(spec: NetSpec) -> None:
    side = 2 * spec.total_scale
    counted = costs.count(spec, side)
    assert (counted.parameters, 2 * counted.macs) == counted_by_torch(spec, side)


@given(specs())
@settings(max_examples=100)
def test_parameters_used_are_those_that_get_a_gradient(spec: NetSpec) -> None:
    net = models.build(spec).double()
    side = 2 * spec.total_scale
    net(torch.rand(2, spec.in_channels, side, side, dtype=torch.float64)).sum().backward()
    used = sum(p.numel() for p in net.parameters() if p.grad is not None)
    assert costs.count(spec, side).parameters_used == used


@given(specs())
@settings(max_examples=100)
def test_levels_add_up_to_the_whole(spec: NetSpec) -> None:
    lowered = smallest(spec)
    levels = costs.by_level(lowered)
    whole = costs.count_plan(lowered)
    for name in ("parameters", "macs", "activation_bytes"):
        assert sum(level[name] for level in levels.values()) == getattr(whole, name)


def traits_of(spec: NetSpec) -> dict[str, int]:
    side = 2 * spec.total_scale
    return costs.traits(plan(spec, (spec.in_channels, side, side)).rows, side).named()


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_the_extent_of_a_net_that_only_unshuffles(levels: int) -> None:
    """The paper's S^L."""
    assert traits_of(zoo.onenet_ed(levels, spatial_kernel=0))["extent"] == 2**levels


@given(specs())
@settings(max_examples=100)
def test_extent_and_receptive_field_are_near(spec: NetSpec) -> None:
    field = receptive_field(spec)
    assert 0.5 < traits_of(spec)["extent"] / max(field) < 2


def test_extents_of_the_zoo_are_in_the_order_of_receptive_fields() -> None:
    nets = [zoo.get(name) for name in zoo.NETS]
    fields, extents = [receptive_field(net).width for net in nets], [traits_of(net)["extent"] for net in nets]
    for a, b in itertools.combinations(range(len(nets)), 2):
        if abs(math.log(fields[a] / fields[b])) > 0.2:
            assert (fields[a] < fields[b]) == (extents[a] < extents[b])


def test_the_encoders_macs_and_the_decoders_are_all() -> None:
    spec = zoo.get("onenet_e_4")
    lowered = plan(spec, (3, 64, 64))
    levels = costs.by_level(lowered)
    decoders = sum(level["macs"] for name, level in levels.items() if name.startswith("decoder"))
    assert costs.traits(lowered.rows, 64).encoder_macs == costs.count_plan(lowered).macs - decoders


def test_a_rectangle_costs_its_area() -> None:
    spec = zoo.get("onenet_ed_4")
    assert 2 * costs.count(spec, (64, 32)).macs == costs.count(spec, 64).macs


def test_the_peak_of_a_net_done_by_hand() -> None:
    """unet(1, width=4, stem_repeat=1) at 8x8, elements: image 192 all along; at the top level's end the
    grown tensor (4x8x8), the convolution's output beside it."""
    spec = zoo.unet(1, width=4, stem_repeat=1)
    # the top level's conv input (256) with its output (256) is the most that lives at once: norms are in place
    assert costs.peak_elements(plan(spec, (3, 8, 8))) == 192 + 256 + 256
