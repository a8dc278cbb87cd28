"""Predicted peaks against what torch's own tracker and the CPU's allocator see."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from onenet_bench import zoo
from onenet_bench.measure import memory
from onenet_bench.memory import BYTES, peak_elements, training_peak_bytes
from onenet_bench.plan import Plan, is_banded, plan
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from tests.specs import MORE_TAPS, specs


def lowered(spec: NetSpec, side: int) -> Plan:
    return plan(spec, (spec.in_channels, side, side))


@pytest.mark.parametrize("name", zoo.NETS)
def test_inference_is_the_trackers_to_the_byte_over_the_zoo(name: str) -> None:
    spec = zoo.get(name)
    assert BYTES * peak_elements(lowered(spec, 256)) == memory.tracked_inference(spec, 256)


@given(specs())
@settings(max_examples=60)
def test_inference_is_the_trackers_to_the_byte_over_random_specs(spec: NetSpec) -> None:
    side = 2 * spec.total_scale
    assert BYTES * peak_elements(lowered(spec, side)) == memory.tracked_inference(spec, side)


@pytest.mark.parametrize(
    ("levels", "kernel"),
    [
        (2, 0),  # a strided shortcut of four channels, which is copied in training alone
        (1, 3),  # a spatial convolution of sixteen numbers, too few for its banded form
        (1, 9),
    ],
)
def test_inference_is_the_trackers_where_small_copies_decide(levels: int, kernel: int) -> None:
    level = StageSpec(kind="resnet_basic", channels=4, spatial_kernel=3, repeat=1)
    top = StageSpec(channels=1, spatial_kernel=kernel, repeat=1, skip=False)
    stem = StemSpec(kind="resnet", channels=1, repeat=1)
    spec = NetSpec(
        classes=1, stem=stem, encoder=(level,) * levels, decoder=(top,) * levels, in_channels=1, output_stride=2,
        normalise=False,
    )  # fmt: skip
    test_inference_is_the_trackers_to_the_byte_over_random_specs.hypothesis.inner_test(spec)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["unet_4", "resnet34_unet", "mobilenet_unet", "onenet_e_4", "onenet_ed_4_spatial"])
def test_training_is_the_trackers_to_the_byte_over_the_zoo(name: str) -> None:
    spec = zoo.get(name)
    assert training_peak_bytes(lowered(spec, 128), 4) == memory.tracked_training(spec, 128, 4)


@pytest.mark.parametrize(
    ("channels", "scale", "kernel", "side"), [(3, 2, 9, 58), (1, 3, 31, 45), (3, 3, 31, 57), (2, 2, 35, 58)]
)
def test_training_is_the_trackers_to_the_byte_where_a_spatial_convolution_is_not_banded(
    channels: int, scale: int, kernel: int, side: int
) -> None:
    level = StageSpec(channels=2, scale=scale, spatial_kernel=kernel)
    top = StageSpec(channels=3, scale=scale, spatial_kernel=kernel, repeat=1)
    stem = StemSpec(channels=channels, repeat=1)
    spec = NetSpec(in_channels=4, classes=2, stem=stem, encoder=(level,), decoder=(top,))
    rows = lowered(spec, side).rows
    assert not any(is_banded(row.kernel, row.elements) for row in rows if row.op == "spatial")
    assert training_peak_bytes(lowered(spec, side), 2) == memory.tracked_training(spec, side, 2)


@given(specs(max_in_channels=12, taps=MORE_TAPS))
@settings(max_examples=25)
def test_training_is_the_trackers_to_the_byte_over_random_specs(spec: NetSpec) -> None:
    side = 4 * spec.total_scale
    assert training_peak_bytes(lowered(spec, side), 3) == memory.tracked_training(spec, side, 3)


@given(specs())
@settings(max_examples=25)
def test_the_copies_of_heavy_convolutions_are_counted(spec: NetSpec) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onenet_bench.memory.HEAVY", 1)
        test_inference_is_the_trackers_to_the_byte_over_random_specs.hypothesis.inner_test(spec)  # type: ignore[attr-defined]
        test_training_is_the_trackers_to_the_byte_over_random_specs.hypothesis.inner_test(spec)  # type: ignore[attr-defined]


@given(specs())
@settings(max_examples=25)
def test_the_gradient_of_a_heavy_convolution_of_one_position_is_laid_out_anew(spec: NetSpec) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onenet_bench.memory.HEAVY", 1)
        predicted = training_peak_bytes(lowered(spec, spec.total_scale), 3)
        assert predicted == memory.tracked_training(spec, spec.total_scale, 3)


@pytest.mark.parametrize("name", ["unet_4", "onenet_ed_4_spatial"])
def test_training_in_bf16_is_the_trackers_within_five_percent(name: str) -> None:
    spec = zoo.get(name)
    predicted = training_peak_bytes(lowered(spec, 128), 4, "bf16")
    assert predicted == pytest.approx(memory.tracked_training(spec, 128, 4, "bf16"), rel=0.05)
    assert predicted < training_peak_bytes(lowered(spec, 128), 4)


def test_the_allocator_agrees_where_activations_outweigh_its_scratch_space() -> None:
    spec = zoo.onenet_ed(3, width=16, classes=8)
    assert training_peak_bytes(lowered(spec, 64), 8) == pytest.approx(memory.allocated_training(spec, 64, 8), rel=0.05)
    assert BYTES * peak_elements(lowered(spec, 64)) == pytest.approx(memory.allocated_inference(spec, 64), rel=0.05)
