"""Plan: a NetSpec lowered, for one input shape, to rows of integers.

Computed once and read twice: ``onenet_bench.models`` makes its modules from the rows and executes them in
this order; ``onenet_bench.costs`` adds them up. A plan knows no tensor.

Shapes are (channels, height, width) of one image. Every row reads earlier rows (``inputs``, -1 = the image)
and makes one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from onenet_bench.errors import SpecError
from onenet_bench.spec import NetSpec, StageSpec

OPS = {
    "normalise": "(x - 0.45) / 0.225",
    "conv": "2D convolution",
    "spatial": "one 1D filter along the flattened (height, width, channel) axis, reflection padding",
    "up": "transposed 2D convolution with kernel = stride",
    "norm": "batch norm",
    "relu": "ReLU",
    "maxpool": "max pooling",
    "unshuffle": "pixel-unshuffle",
    "shuffle": "pixel-shuffle",
    "concat": "concatenation along the channels",
    "add": "sum of two tensors",
    "linear": "fully connected layer",
}


class Row(NamedTuple):
    """One layer. MACs count the multiply-adds of convolutions, transposed convolutions and linear layers."""

    name: str  # path of the module, e.g. encoder.2.channel_1.conv
    op: str  # a key of OPS, or a kind that only deployed plans have (models.deploy, models.strips)
    level: str  # stem, encoder 1, …, decoder 1, classifier
    inputs: tuple[int, ...]
    c_in: int
    h_in: int
    w_in: int
    c_out: int
    h_out: int
    w_out: int
    kernel: int
    stride: int
    groups: int
    bias: bool
    parameters: int
    macs: int
    runs: bool  # False: exists and is never executed
    again: bool = False  # whether its parameters are those of an earlier row

    @property
    def elements(self) -> int:
        """Numbers in the tensor that this row makes, for one image."""
        return self.c_out * self.h_out * self.w_out


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of a net in order of execution; ``output`` is the index of the row that makes the logits."""

    spec: NetSpec
    shape: tuple[int, int, int]
    rows: tuple[Row, ...]
    output: int
    deployed: bool = False  # executed by models.deploy.Graph in place of models.UNet

    @property
    def heads(self) -> tuple[int, ...]:
        """The rows that make logits, deepest first: those that only deep supervision runs, and ``output``."""
        return tuple(index for index, row in enumerate(self.rows) if row.name.rpartition(".")[2] == "head")


BAND = 16
"""Channels that a spatial convolution's banded form writes: the vector width that CPU convolution kernels pad to
anyway. It reads …"""

READ = 4
"""… so many: the fewer, the fewer zeros are in its filter."""


def is_banded(kernel: int, length: int) -> bool:
    """Whether a spatial convolution over ``length`` numbers can run in its banded form on a CPU."""
    return length % BAND == 0 and length >= 2 * BAND and kernel // 2 <= BAND


def band_width(kernel: int) -> int:
    """The width of the banded filter (BAND, READ, 1, width): what BAND outputs read, in positions of READ inputs."""
    return BAND // READ + 2 * band_padding(kernel)


def band_padding(kernel: int) -> int:
    """The positions beyond either end that the first and the last output read."""
    return -(-(kernel // 2) // READ)


def check_resolution(spec: NetSpec, height: int, width: int) -> None:
    """Raise SpecError unless every level divides the resolution without remainder."""
    step = spec.total_scale
    for side, size in (("height", height), ("width", width)):
        if size < step or size % step:
            below = max(0, size // step * step)
            above = below + step
            way_out = f"use {above}" if below < step else f"use {below} or {above}"
            raise SpecError(
                f"the {side} must be a multiple of {step}, the product of all scales, but got {size}; {way_out}"
            )


def plan(spec: NetSpec, shape: tuple[int, int, int]) -> Plan:
    """Lower ``spec`` for an input of ``shape`` = (channels, height, width).

    Raises SpecError where the channels differ from the spec's, a level does not divide the resolution, or a spatial
    kernel reaches further than the tensor that it mirrors.
    """
    channels, height, width = shape
    if channels != spec.in_channels:
        raise SpecError(f"the net takes {spec.in_channels} input channels, but the shape has {channels}")
    check_resolution(spec, height, width)
    return _lower(spec, _Lowering(channels, height, width))


def smallest(spec: NetSpec) -> Plan:
    """The plan for one position at the deepest level, of a net for any image: for what depends on no resolution."""
    return _lower(spec, _Lowering(spec.in_channels, spec.total_scale, spec.total_scale, sized=False))


def _lower(spec: NetSpec, out: _Lowering) -> Plan:
    shape = out.c, out.h, out.w
    if spec.normalise:
        out.level = "stem"
        out.normalise("normalise")
    _stem(out, spec)
    features = [out.at]
    for i, stage in enumerate(spec.encoder, start=1):
        out.level = f"encoder {i}"
        ENCODER_LEVELS[stage.kind](out, stage, f"encoder.{i}", i)
        features.append(out.at)

    if spec.decoder and spec.decoder[0].kind == "onenet1d":
        first = spec.decoder[0]
        out.level = f"decoder {len(spec.encoder)}"
        _crb(out, "decoder.bottom", first.scale**2 * first.channels)
    for j, stage in enumerate(spec.decoder):
        i = spec.decoder_level(j)
        out.level = f"decoder {i}"
        following = spec.decoder[j + 1] if j + 1 < len(spec.decoder) else None
        emit = _emitted(stage, following, features[i - 1] if stage.skip else None, out)
        DECODER_LEVELS[stage.kind](out, stage, f"decoder.{i}", features[i - 1] if stage.skip else None, emit)
        if following is None or spec.heads == "all":
            kernel = 1 if stage.kind == "onenet1d" else 3
            out.conv(f"decoder.{i}.head", spec.classes, kernel, runs=following is None)
    if not spec.decoder:
        out.level = "head"
        out.conv("head", spec.classes, 1)
    logits = len(out.rows) - 1
    if spec.classifier:
        out.level = "classifier"
        out.go_back_to(features[-1])
        out.classifier(spec.classifier)
    return Plan(spec, shape, tuple(out.rows), logits)


_row = Row._make  # a third faster than Row(…), and most of the work


class _Lowering:
    """The rows so far, and the tensor that the next row reads: its index ``at`` and its size ``c``, ``h``, ``w``."""

    __slots__ = ("at", "c", "h", "level", "rows", "sized", "w")

    def __init__(self, channels: int, height: int, width: int, *, sized: bool = True) -> None:
        self.rows: list[Row] = []
        self.at = -1
        self.c, self.h, self.w = channels, height, width
        self.sized = sized  # whether images are of this size
        self.level = "stem"

    def go_back_to(self, index: int) -> None:
        """Let the next row read an earlier one."""
        row = self.rows[index]
        self.at, self.c, self.h, self.w = index, row.c_out, row.h_out, row.w_out

    def _append(
        self, name: str, op: str, inputs: tuple[int, ...], c: int, h: int, w: int, kernel: int = 0, stride: int = 1,
        groups: int = 1, bias: bool = False, parameters: int = 0, macs: int = 0, runs: bool = True,
    ) -> None:  # fmt: skip
        self.rows.append(
            _row((name, op, self.level, inputs, self.c, self.h, self.w, c, h, w, kernel, stride, groups, bias,
                  parameters, macs, runs, False))
        )  # fmt: skip
        if runs:
            self.at, self.c, self.h, self.w = len(self.rows) - 1, c, h, w

    def normalise(self, name: str) -> None:
        self._append(name, "normalise", (self.at,), self.c, self.h, self.w)

    def conv(
        self, name: str, channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True,
        runs: bool = True,
    ) -> None:  # fmt: skip
        h, w = self.h // stride, self.w // stride
        weights = channels * (self.c // groups) * kernel * kernel
        self._append(name, "conv", (self.at,), channels, h, w, kernel, stride, groups, bias,
                     weights + channels * bias, weights * h * w, runs)  # fmt: skip

    def spatial(self, name: str, kernel: int) -> None:
        c, h, w = self.c, self.h, self.w
        if self.sized and kernel // 2 >= c * h * w:
            raise SpecError(
                f"a spatial kernel reaches no further than the tensor that it mirrors, but {name} has {kernel} taps "
                f"and {c * h * w} numbers; use a kernel of at most {2 * c * h * w - 1}"
            )
        self._append(name, "spatial", (self.at,), c, h, w, kernel, 1, 1, True, kernel + 1, kernel * c * h * w)
        self.relu(name)

    def up(self, name: str, channels: int, scale: int) -> None:
        h, w = self.h, self.w
        weights = self.c * channels * scale * scale
        self._append(name, "up", (self.at,), channels, h * scale, w * scale, scale, scale, 1, True,
                     weights + channels, weights * h * w)  # fmt: skip

    def norm(self, name: str) -> None:
        self._append(name, "norm", (self.at,), self.c, self.h, self.w, 0, 1, 1, False, 2 * self.c)

    def relu(self, name: str) -> None:
        self._append(f"{name}.relu", "relu", (self.at,), self.c, self.h, self.w)

    def maxpool(self, name: str, kernel: int, stride: int) -> None:
        self._append(name, "maxpool", (self.at,), self.c, self.h // stride, self.w // stride, kernel, stride)

    def unshuffle(self, name: str, scale: int) -> None:
        self._append(name, "unshuffle", (self.at,), self.c * scale * scale, self.h // scale, self.w // scale,
                     scale, scale)  # fmt: skip

    def shuffle(self, name: str, scale: int) -> None:
        c = self.c
        if c % (scale * scale):
            near = max(1, c // (scale * scale)) * scale * scale
            raise SpecError(
                f"pixel-shuffle by {scale} needs channels that are a multiple of {scale * scale}, "
                f"but {name} gets {c}; use {near}"
            )
        self._append(name, "shuffle", (self.at,), c // (scale * scale), self.h * scale, self.w * scale, scale, scale)

    def concat(self, name: str, other: int) -> None:
        self._append(name, "concat", (self.at, other), self.c + self.rows[other].c_out, self.h, self.w)

    def add(self, name: str, other: int) -> None:
        self._append(name, "add", (self.at, other), self.c, self.h, self.w)

    def classifier(self, outputs: int) -> None:
        c = self.c
        self._append("encoder.classifier", "linear", (self.at,), outputs, 1, 1, 0, 1, 1, True,
                     (c + 1) * outputs, c * outputs, False)  # fmt: skip


# Blocks: convolution and what follows it -----------------------------------------------------------------


def _crb(out: _Lowering, name: str, channels: int) -> None:
    """1x1 convolution, ReLU, batch norm: the channel-wise 1D convolution of the paper."""
    out.conv(f"{name}.conv", channels, 1)
    out.relu(name)
    out.norm(f"{name}.norm")


def _cbr(out: _Lowering, name: str, channels: int, kernel: int) -> None:
    """k x k convolution, batch norm, ReLU."""
    out.conv(f"{name}.conv", channels, kernel)
    out.norm(f"{name}.norm")
    out.relu(name)


def _separable(out: _Lowering, name: str, channels: int, kernel: int) -> None:
    out.conv(f"{name}.depthwise.conv", out.c, kernel, groups=out.c)
    out.norm(f"{name}.depthwise.norm")
    out.relu(f"{name}.depthwise")
    _cbr(out, f"{name}.pointwise", channels, 1)


def _bottleneck(out: _Lowering, name: str, channels: int, kernel: int) -> None:
    squeezed = max(1, channels // 4)
    _cbr(out, f"{name}.squeeze", squeezed, 1)
    _cbr(out, f"{name}.spatial", squeezed, kernel)
    _cbr(out, f"{name}.expand", channels, 1)


def _plain(out: _Lowering, name: str, channels: int, kernel: int) -> None:
    out.conv(f"{name}.conv", channels, kernel)


BLOCKS_2D: dict[str, Callable[[_Lowering, str, int, int], None]] = {
    "conv2d": _cbr,
    "separable2d": _separable,
    "bottleneck2d": _bottleneck,
}


# Levels --------------------------------------------------------------------------------------------------


def _stem(out: _Lowering, spec: NetSpec) -> None:
    stem = spec.stem
    for j in range(stem.repeat):
        if stem.kind == "onenet1d":
            _crb(out, f"stem.{j}", stem.channels)
        elif stem.kind == "conv2d":
            _cbr(out, f"stem.{j}", stem.channels, 3)
        else:
            out.conv("stem.0.conv", stem.channels, 7, stride=2, bias=False)
            out.norm("stem.0.norm")
            out.relu("stem.0")


def _encode_1d(out: _Lowering, stage: StageSpec, name: str, _: int) -> None:
    out.unshuffle(f"{name}.unshuffle", stage.scale)
    if stage.kernel:
        out.spatial(f"{name}.spatial.conv", stage.kernel)
    for j in range(1, stage.repeat + 1):
        _crb(out, f"{name}.channel_{j}", stage.channels)


def _encode_2d(out: _Lowering, stage: StageSpec, name: str, _: int) -> None:
    out.maxpool(f"{name}.pool", stage.scale, stage.scale)
    for j in range(1, stage.repeat + 1):
        BLOCKS_2D[stage.kind](out, f"{name}.channel_{j}", stage.channels, stage.kernel)


def _encode_resnet(out: _Lowering, stage: StageSpec, name: str, level: int) -> None:
    """One of ResNet's four stages; the first shrinks by a max-pool before it, the others in their first block."""
    if level == 1:
        out.maxpool(f"{name}.pool", 3, 2)
    for j in range(stage.repeat):
        block, entry = f"{name}.{j}", out.at
        stride = 2 if j == 0 and level > 1 else 1
        convs = [(stage.channels, 3, stride), (stage.channels, 3, 1)]
        if stage.kind == "resnet_bottleneck":
            squeezed = stage.channels // 4
            convs = [(squeezed, 1, 1), (squeezed, 3, stride), (stage.channels, 1, 1)]
        for n, (channels, kernel, step) in enumerate(convs, start=1):
            out.conv(f"{block}.conv{n}", channels, kernel, stride=step, bias=False)
            out.norm(f"{block}.norm{n}")
            if n < len(convs):
                out.relu(f"{block}.{n}")
        branch = out.at
        if stride != 1 or out.rows[entry].c_out != stage.channels:
            out.go_back_to(entry)
            out.conv(f"{block}.shortcut.conv", stage.channels, 1, stride=stride, bias=False)
            out.norm(f"{block}.shortcut.norm")
            entry = out.at
            out.go_back_to(branch)
        out.add(f"{block}.add", entry)
        out.relu(block)


def _emitted(stage: StageSpec, following: StageSpec | None, skip: int | None, out: _Lowering) -> int:
    """Channels of a decoder level's last convolution.

    What the next level's pixel-shuffle needs: scale² times its channels. A 1D level keeps to that before a 2D
    level too (for scale 2 and doubling widths it is the paper's rule, "keeps the channel count"); at the top
    it keeps its own count, and a 2D level gives its own width.
    """
    if following is not None and "onenet1d" in (stage.kind, following.kind):
        return following.scale**2 * following.channels
    if stage.kind == "onenet1d" and skip is not None:
        return stage.channels + out.rows[skip].c_out
    return stage.channels


def _decode_1d(out: _Lowering, stage: StageSpec, name: str, skip: int | None, emit: int) -> None:
    out.shuffle(f"{name}.shuffle", stage.scale)
    if skip is not None:
        out.concat(f"{name}.concat", skip)
    kept = out.c
    if stage.kernel:
        out.spatial(f"{name}.spatial.conv", stage.kernel)
    for j in range(1, stage.repeat + 1):
        _crb(out, f"{name}.channel_{j}", emit if j == stage.repeat else kept)


def _decode_2d(out: _Lowering, stage: StageSpec, name: str, skip: int | None, emit: int) -> None:
    out.up(f"{name}.up", stage.channels, stage.scale)
    if skip is not None:
        out.concat(f"{name}.concat", skip)
    block = _plain if stage.plain else BLOCKS_2D[stage.kind]
    for j in range(1, stage.repeat + 1):
        block(out, f"{name}.channel_{j}", emit if j == stage.repeat else stage.channels, stage.kernel)


ENCODER_LEVELS: dict[str, Callable[[_Lowering, StageSpec, str, int], None]] = {
    "onenet1d": _encode_1d,
    "conv2d": _encode_2d,
    "separable2d": _encode_2d,
    "bottleneck2d": _encode_2d,
    "resnet_basic": _encode_resnet,
    "resnet_bottleneck": _encode_resnet,
}

DECODER_LEVELS: dict[str, Callable[[_Lowering, StageSpec, str, int | None, int], None]] = {
    "onenet1d": _decode_1d,
    "conv2d": _decode_2d,
    "separable2d": _decode_2d,
    "bottleneck2d": _decode_2d,
}
