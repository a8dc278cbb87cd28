"""Hypothesis strategies for specs: everything the builder can express, at sizes that build in milliseconds."""

from __future__ import annotations

from hypothesis import strategies as st

from onenet_bench.spec import NetSpec, StageSpec, StemSpec

KINDS_2D = ("conv2d", "separable2d", "bottleneck2d")

TAPS = (0, 3, 9)
MORE_TAPS = (0, 1, 9, 17, 31, 35)
"""Kernels of spatial convolutions: none, one tap, more than there are channels, the last of them never banded."""


@st.composite
def specs(
    draw: st.DrawFn, max_depth: int = 3, max_channels: int = 12, max_in_channels: int = 4, taps: tuple[int, ...] = TAPS
) -> NetSpec:
    """Any spec of up to ``max_depth`` levels, ResNet encoders included."""
    channels = st.integers(1, max_channels)
    resnet = draw(st.integers(0, 9)) == 0
    depth = draw(st.integers(1, max_depth))
    if resnet:
        stem = StemSpec(kind="resnet", channels=draw(channels), repeat=1)
        kind = draw(st.sampled_from(("resnet_basic", "resnet_bottleneck")))
        encoder = tuple(
            StageSpec(kind=kind, channels=4 * draw(channels), repeat=draw(st.integers(1, 2))) for _ in range(depth)
        )
    else:
        stem = StemSpec(
            kind=draw(st.sampled_from(("onenet1d", "conv2d"))), channels=draw(channels), repeat=draw(st.integers(1, 2))
        )
        encoder = tuple(_stage(draw, draw(st.sampled_from((2, 3, 4))), draw(channels), taps) for _ in range(depth))
    scales = [stage.scale for stage in reversed(encoder)] + [2] * (stem.stride == 2)
    output_stride = draw(st.sampled_from((1, 2))) if scales[-1] == 2 else 1
    if output_stride == 2:
        scales.pop()
    decoder = []
    for j, scale in enumerate(scales):
        skip = draw(st.booleans()) if depth - j >= 1 else False
        stage = _stage(draw, scale, draw(channels), taps)
        plain = stage.kind == "conv2d" and draw(st.booleans())
        decoder.append(
            StageSpec(
                kind=stage.kind,
                channels=stage.channels,
                scale=scale,
                spatial_kernel=stage.spatial_kernel,
                repeat=stage.repeat,
                skip=skip,
                plain=plain,
            )
        )
    return NetSpec(
        in_channels=draw(st.integers(1, max_in_channels)), classes=draw(st.integers(1, 5)), stem=stem, encoder=encoder,
        decoder=tuple(decoder), heads=draw(st.sampled_from(("top", "all"))), output_stride=output_stride,
        normalise=draw(st.booleans()), classifier=draw(st.sampled_from((0, 7))),
    )  # fmt: skip


def _stage(draw: st.DrawFn, scale: int, channels: int, taps: tuple[int, ...]) -> StageSpec:
    kind = draw(st.sampled_from(("onenet1d", "onenet1d", *KINDS_2D)))
    kernel = draw(st.sampled_from(taps if kind == "onenet1d" else (1, 3, 5)))
    return StageSpec(kind=kind, channels=channels, scale=scale, spatial_kernel=kernel, repeat=draw(st.integers(1, 3)))
