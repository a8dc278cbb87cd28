"""The papers' networks by name, as specs.

Source: OneNet, arXiv 2411.09838, §3 and Table 2. Widths double per level from ``width``; 3 input channels and
4 classes where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onenet_bench.errors import SpecError, known
from onenet_bench.spec import NetSpec, StageSpec, StemSpec


def _widths(depth: int, width: int) -> list[int]:
    if depth < 1:
        raise SpecError(f"a U-Net has at least one level, but got depth={depth}")
    return [width * 2**i for i in range(depth + 1)]


def _decoder_2d(widths: list[int]) -> tuple[StageSpec, ...]:
    """The paper's 2D decoder: no skip and a plain level at the top. ``widths`` from the stem down."""
    return tuple(
        StageSpec(kind="conv2d", channels=c, skip=i > 0, plain=i == 0)
        for i, c in reversed(list(enumerate(widths[:-1])))
    )


def _encoder_1d(widths: list[int], spatial_kernel: int) -> tuple[StageSpec, ...]:
    return tuple(StageSpec(kind="onenet1d", channels=c, spatial_kernel=spatial_kernel) for c in widths[1:])


def onenet_e(
    depth: int = 4, width: int = 64, stem_repeat: int = 3, spatial_kernel: int = 9, classes: int = 4,
    in_channels: int = 3,
) -> NetSpec:  # fmt: skip
    """OneNet with the 1D encoder and the 2D decoder (OneNet_e)."""
    widths = _widths(depth, width)
    return NetSpec(
        in_channels=in_channels, classes=classes, heads="all",
        stem=StemSpec(kind="onenet1d", channels=width, repeat=stem_repeat),
        encoder=_encoder_1d(widths, spatial_kernel),
        decoder=_decoder_2d(widths),
    )  # fmt: skip


def onenet_ed(
    depth: int = 4, width: int = 64, stem_repeat: int = 3, spatial_kernel: int = 9, classes: int = 4,
    in_channels: int = 3, encoder_kernel: int | None = None,
) -> NetSpec:  # fmt: skip
    """OneNet with both encoder and decoder 1D (OneNet_e,d).

    ``encoder_kernel`` is the encoder's spatial kernel where it differs from the decoder's.
    """
    widths = _widths(depth, width)
    return NetSpec(
        in_channels=in_channels, classes=classes, heads="all",
        stem=StemSpec(kind="onenet1d", channels=width, repeat=stem_repeat),
        encoder=_encoder_1d(widths, spatial_kernel if encoder_kernel is None else encoder_kernel),
        decoder=tuple(
            StageSpec(kind="onenet1d", channels=c, spatial_kernel=spatial_kernel, skip=i > 0)
            for i, c in reversed(list(enumerate(widths[:-1])))
        ),
    )  # fmt: skip


def unet(depth: int = 4, width: int = 64, stem_repeat: int = 2, classes: int = 4, in_channels: int = 3) -> NetSpec:
    """The 2D U-Net that the paper compares with."""
    widths = _widths(depth, width)
    return NetSpec(
        in_channels=in_channels, classes=classes, heads="all", normalise=False,
        stem=StemSpec(kind="conv2d", channels=width, repeat=stem_repeat),
        encoder=tuple(StageSpec(kind="conv2d", channels=c) for c in widths[1:]),
        decoder=_decoder_2d(widths),
    )  # fmt: skip


def mobilenet_unet(depth: int = 4, width: int = 64, classes: int = 4, in_channels: int = 3) -> NetSpec:
    """The paper's MobileNet row: a U-Net whose encoder convolves depthwise and pointwise."""
    widths = _widths(depth, width)
    return NetSpec(
        in_channels=in_channels, classes=classes, heads="all", normalise=False,
        stem=StemSpec(kind="conv2d", channels=width, repeat=3),
        encoder=tuple(StageSpec(kind="separable2d", channels=c) for c in widths[1:]),
        decoder=_decoder_2d(widths),
    )  # fmt: skip


def resnet_unet(kind: str, widths: list[int], repeats: list[int], classes: int = 4, in_channels: int = 3) -> NetSpec:
    """A ResNet v1 encoder under the 2D decoder, one skip-less level longer because its stem has stride 2.

    ``widths`` are those of the stem and the stages. The ImageNet classifier is carried along and never run.
    """
    return NetSpec(
        in_channels=in_channels, classes=classes, heads="all", normalise=False, classifier=1000,
        stem=StemSpec(kind="resnet", channels=widths[0], repeat=1),
        encoder=tuple(
            StageSpec(kind=kind, channels=c, repeat=n) for c, n in zip(widths[1:], repeats, strict=True)
        ),
        decoder=(
            *(StageSpec(kind="conv2d", channels=c) for c in reversed(widths[:-1])),
            StageSpec(kind="conv2d", channels=widths[0], skip=False, plain=True),
        ),
    )  # fmt: skip


NETS: dict[str, Callable[[], NetSpec]] = {
    "unet_4": lambda: unet(4),
    "unet_5": lambda: unet(5),
    "resnet34_unet": lambda: resnet_unet("resnet_basic", [64, 64, 128, 256, 512], [3, 4, 6, 3]),
    "resnet50_unet": lambda: resnet_unet("resnet_bottleneck", [64, 256, 512, 1024, 2048], [3, 4, 6, 3]),
    "mobilenet_unet": mobilenet_unet,
    "onenet_e_4": lambda: onenet_e(4),
    "onenet_e_5": lambda: onenet_e(5),
    # Table 2 measured this one row without the encoder's spatial convolution.
    "onenet_ed_4": lambda: onenet_ed(4, encoder_kernel=0),
    "onenet_ed_4_spatial": lambda: onenet_ed(4),
    "onenet_ed_5": lambda: onenet_ed(5),
}


def get(name: str) -> NetSpec:
    """The net called ``name``. Raises SpecError that lists the known names."""
    if name not in NETS:
        raise SpecError(known("net", name, NETS))
    return NETS[name]()


def read(name: str) -> NetSpec:
    """The net called ``name``, or the one in the TOML file of that path. Raises SpecError."""
    return NetSpec.from_toml(Path(name)) if name.endswith(".toml") else get(name)
