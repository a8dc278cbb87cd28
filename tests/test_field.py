"""Receptive fields against gradients, against each other and against closed forms."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor
from typer.testing import CliRunner

from onenet_bench import models, zoo
from onenet_bench.cli import app
from onenet_bench.field import Field, receptive_field
from onenet_bench.models import unet
from onenet_bench.models.layers import SpatialConv
from onenet_bench.plan import Row, plan
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from tests.reach import Box, reach
from tests.specs import specs


def average(row: Row, x: list[Tensor]) -> Tensor:
    """Reads the window of a max-pool, and lets every position of it through."""
    return F.avg_pool2d(x[0], row.kernel, row.stride, padding=int(row.kernel > row.stride))


def depended_on(spec: NetSpec, side: int, pixels: list[tuple[int, int]]) -> Tensor:
    """Where the gradient of each pixel of the logits is not zero: (P, H, W), by torch in double precision.

    Weights, biases and images are positive, so that nothing cancels and every ReLU is open.
    """
    torch.manual_seed(0)
    net = models.build(spec).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.5, 1.5).div_(max(1, parameter[0].numel()))  # by the fan-in: nothing overflows
    for module in net.modules():
        if isinstance(module, SpatialConv):
            module.banded = False  # torch's own gradient
    images = torch.rand(1, spec.in_channels, side, side, dtype=torch.float64).add(1).repeat(len(pixels), 1, 1, 1)
    logits = net(images.requires_grad_())
    chosen = torch.stack([logits[i, :, r, c] for i, (r, c) in enumerate(pixels)])
    (gradient,) = torch.autograd.grad(chosen.sum(), images)
    return gradient.ne(0).any(dim=1)


def box(mask: Tensor) -> Box:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    top, left = int(rows.min()), int(columns.min())
    return Box(top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)


def some_pixels(side: int) -> list[tuple[int, int]]:
    """Corners, middles of the edges, and some of the inside."""
    last, middle = side - 1, side // 2
    return [(0, 0), (0, last), (last, 0), (last, last), (middle, 0), (middle, last), (0, middle),
            (middle, middle), (middle, middle - 1), (middle // 2, middle + 1)]  # fmt: skip


SMALL = {
    "unet": zoo.unet(2, width=3),
    "mobilenet": zoo.mobilenet_unet(2, width=3),
    "resnet": zoo.resnet_unet("resnet_basic", [4, 4, 8], [1, 2]),
    "resnet bottleneck": zoo.resnet_unet("resnet_bottleneck", [4, 8, 8], [2, 1]),
    "onenet_e": zoo.onenet_e(2, width=4),
    "onenet_ed": zoo.onenet_ed(3, width=4),
    "one tap to each side": zoo.onenet_ed(3, width=2, spatial_kernel=3),  # less than a pixel's channels: sub-pixels
    "many pixels to each side": zoo.onenet_e(2, width=1, spatial_kernel=33),
    "only in the decoder": zoo.onenet_ed(3, width=4, encoder_kernel=0),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_reach_of_a_pixel_is_where_its_gradient_is_not_zero(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(unet.ACTIONS, "maxpool", average)
    spec, side = SMALL[name], 4 * SMALL[name].total_scale
    pixels = some_pixels(side)
    found = depended_on(spec, side, pixels)
    lowered = plan(spec, (spec.in_channels, side, side))
    assert [reach(lowered, *pixel) for pixel in pixels] == [box(mask) for mask in found]


@given(specs())
@settings(max_examples=100)
def test_the_same_over_random_specs(spec: NetSpec) -> None:
    side = 2 * spec.total_scale
    logits = side // spec.output_stride
    pixels = [(0, 0), (logits // 2, logits - 1), (logits // 2, logits // 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.ACTIONS, "maxpool", average)
        found = depended_on(spec, side, pixels)
    lowered = plan(spec, (spec.in_channels, side, side))
    assert [reach(lowered, *pixel) for pixel in pixels] == [box(mask) for mask in found]


def test_a_max_pool_stays_within_the_reach() -> None:
    spec, side = SMALL["resnet"], 64
    pixels = some_pixels(side)
    lowered = plan(spec, (3, side, side))
    for (row, column), mask in zip(pixels, depended_on(spec, side, pixels), strict=True):
        top, left, height, width = reach(lowered, row, column)
        outside = mask.clone()
        outside[top : top + height, left : left + width] = False
        assert mask.any()
        assert not outside.any()


def largest_reach(spec: NetSpec, side: int) -> Field:
    """The field by its definition: the largest box that touches no border, over a period of pixels in the middle."""
    lowered = plan(spec, (spec.in_channels, side, side))
    period = spec.total_scale // spec.output_stride
    start = side // spec.output_stride // 2 // period * period
    boxes = [reach(lowered, start + i, start + i) for i in range(period)]
    assert all(b.top > 0 and b.left > 0 and b.top + b.height < side and b.left + b.width < side for b in boxes)
    return Field(max(b.height for b in boxes), max(b.width for b in boxes))


def room_for(spec: NetSpec) -> int:
    """The side of an image in whose middle nothing reaches a border."""
    step = spec.total_scale
    return (2 * max(receptive_field(spec)) // step + 4) * step


@pytest.mark.parametrize("name", SMALL)
def test_the_field_is_the_largest_reach(name: str) -> None:
    assert receptive_field(SMALL[name]) == largest_reach(SMALL[name], room_for(SMALL[name]))


@given(specs(max_depth=2, max_channels=6))
@settings(max_examples=100)
def test_the_field_is_the_largest_reach_over_random_specs(spec: NetSpec) -> None:
    side = room_for(spec)
    if side <= 500:
        assert receptive_field(spec) == largest_reach(spec, side)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_onenet_without_spatial_convolution_has_the_papers_field(scale: int, levels: int) -> None:
    spec = NetSpec(
        classes=2,
        stem=StemSpec(channels=2, repeat=1),
        encoder=tuple(StageSpec(channels=2, scale=scale) for _ in range(levels)),
        decoder=tuple(StageSpec(channels=2, scale=scale, skip=i > 0) for i in reversed(range(levels))),
    )
    assert receptive_field(spec) == (scale**levels, scale**levels)
    side = 3 * scale**levels
    if side <= 81:  # the blocks do not overlap: each pixel sees its own
        corner = side // 3
        assert box(depended_on(spec, side, [(corner, 2 * corner - 1)])[0]) == (corner, corner, corner, corner)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_field_of_a_unet_in_closed_form(depth: int) -> None:
    """Two 3x3 convolutions of stride 2^i at every level down and up, the head, the pooling windows, and the block
    that a transposed convolution grows from one pixel."""
    down = 4 * sum(2**i for i in range(depth + 1)) + sum(2**i for i in range(depth))
    # up: the last level's two convolutions and the head see 6 pixels beside their own; from level to level, the
    # interval (first, last) of positions shrinks to those that they grew from
    widths = []
    for pixel in range(2**depth):
        low, high = pixel - 3, pixel + 3
        for level in range(depth):
            low, high = low // 2, high // 2
            if level < depth - 1:
                low, high = low - 2, high + 2
        widths.append((high - low) * 2**depth + 1 + down)
    assert receptive_field(zoo.unet(depth)) == (max(widths), max(widths))


@pytest.mark.parametrize("taps", [1, 3, 5, 7, 9, 11, 13, 17, 19])
def test_a_spatial_convolution_sees_as_far_as_its_taps_along_the_flattened_axis(taps: int) -> None:
    """One channel, unshuffled to the four sub-pixels of 2x2: every four taps to a side are a pixel, which is two
    columns of the image; of what is left, one tap is a sub-pixel's column, two are both."""
    spec = NetSpec(
        classes=1, in_channels=1, stem=StemSpec(channels=1, repeat=1),
        encoder=(StageSpec(channels=1, spatial_kernel=taps),),
        decoder=(StageSpec(channels=1, skip=False),),
    )  # fmt: skip
    pixels, rest = divmod(taps // 2, 4)
    assert receptive_field(spec) == (2, 2 + 2 * (2 * pixels + min(rest, 2)))


def test_a_line_goes_on_in_the_next_one() -> None:
    spec, side = SMALL["onenet_ed"], 128
    lowered = plan(spec, (3, side, side))
    inside, at_the_edge = reach(lowered, 64, 64), reach(lowered, 64, 0)
    assert inside.height == 8
    assert inside.width < side
    assert at_the_edge.height > 8  # the pixels before the first of a line are the last of the line before
    assert at_the_edge.width == side


def test_the_nets_of_the_zoo() -> None:
    fields = {name: receptive_field(zoo.get(name)) for name in zoo.NETS}
    assert fields["onenet_ed_4_spatial"].height == 2**4
    assert fields["onenet_ed_5"].height == 2**5
    assert fields["mobilenet_unet"] == tuple(side + 2 for side in fields["unet_4"])  # a third 3x3 in the stem


def test_profile_tells_the_field() -> None:
    said = CliRunner().invoke(app, ["profile", "onenet_ed_5", "--json"]).output
    assert json.loads(said)["receptive_field"] == receptive_field(zoo.get("onenet_ed_5"))._asdict()
    assert "receptive_field" in (table := CliRunner().invoke(app, ["profile", "onenet_ed_4"]).output)
    assert "16 x 40 px" in table
