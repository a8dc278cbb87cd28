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
    op: str  # a key of OPS
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


def check_resolution(spec: NetSpec, height: int, width: int) -> None:
    """Raise SpecError unless every level divides the resolution without remainder."""
    step = spec.total_scale
    for side, size in (("height", height), ("width", width)):
        if size < step or size % step:
            below, above = size // step * step, (size // step + 1) * step
            way_out = f"use {above}" if below < step else f"use {below} or {above}"
            raise SpecError(
                f"the {side} must be a multiple of {step}, the product of all scales, but got {size}; {way_out}"
            )


def plan(spec: NetSpec, shape: tuple[int, int, int]) -> Plan:
    """Lower ``spec`` for an input of ``shape`` = (channels, height, width).

    Raises SpecError where the channels differ from the spec's or a level does not divide the resolution.
    """
    channels, height, width = shape
    if channels != spec.in_channels:
        raise SpecError(f"the net takes {spec.in_channels} input channels, but the shape has {channels}")
    check_resolution(spec, height, width)
    out = _Lowering(channels, height, width)

    if spec.normalise:
        out.level = "stem"
        out.same("normalise", "normalise")
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
            out.head(f"decoder.{i}.head", spec.classes, kernel, runs=following is None)
    if not spec.decoder:
        out.level = "head"
        out.head("head", spec.classes, 1, runs=True)
    logits = len(out.rows) - 1
    if spec.classifier:
        out.level = "classifier"
        out.classifier(features[-1], spec.classifier)
    return Plan(spec, shape, tuple(out.rows), logits)


class _Lowering:
    """The rows so far, and the tensor that the next row reads."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.rows: list[Row] = []
        self.image = (channels, height, width)
        self.at = -1
        self.level = "stem"

    def size(self, index: int) -> tuple[int, int, int]:
        if index < 0:
            return self.image
        row = self.rows[index]
        return row.c_out, row.h_out, row.w_out

    def _append(
        self, name: str, op: str, inputs: tuple[int, ...], to: tuple[int, int, int], kernel: int = 0,
        stride: int = 1, groups: int = 1, bias: bool = False, parameters: int = 0, macs: int = 0, runs: bool = True,
    ) -> None:  # fmt: skip
        self.rows.append(
            Row(name, op, self.level, inputs, *self.size(inputs[0]), *to, kernel, stride, groups, bias,
                parameters, macs, runs)
        )  # fmt: skip
        if runs:
            self.at = len(self.rows) - 1

    def same(self, name: str, op: str, parameters: int = 0) -> None:
        """A row that keeps the shape."""
        self._append(name, op, (self.at,), self.size(self.at), parameters=parameters)

    def conv(
        self, name: str, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = True,
        runs: bool = True,
    ) -> None:  # fmt: skip
        c, h, w = self.size(self.at)
        h, w = h // stride, w // stride
        weights = channels * (c // groups) * kernel * kernel
        self._append(name, "conv", (self.at,), (channels, h, w), kernel, stride, groups, bias,
                     weights + channels * bias, weights * h * w, runs)  # fmt: skip

    def head(self, name: str, classes: int, kernel: int, *, runs: bool) -> None:
        self.conv(name, classes, kernel, runs=runs)

    def spatial(self, name: str, kernel: int) -> None:
        c, h, w = self.size(self.at)
        self._append(name, "spatial", (self.at,), (c, h, w), kernel, bias=True, parameters=kernel + 1,
                     macs=kernel * c * h * w)  # fmt: skip
        self.relu(name)

    def up(self, name: str, channels: int, scale: int) -> None:
        c, h, w = self.size(self.at)
        weights = c * channels * scale * scale
        self._append(name, "up", (self.at,), (channels, h * scale, w * scale), scale, scale, bias=True,
                     parameters=weights + channels, macs=weights * h * w)  # fmt: skip

    def norm(self, name: str) -> None:
        self.same(name, "norm", 2 * self.size(self.at)[0])

    def relu(self, name: str) -> None:
        self.same(f"{name}.relu", "relu")

    def maxpool(self, name: str, kernel: int, stride: int) -> None:
        c, h, w = self.size(self.at)
        self._append(name, "maxpool", (self.at,), (c, h // stride, w // stride), kernel, stride)

    def unshuffle(self, name: str, scale: int) -> None:
        c, h, w = self.size(self.at)
        self._append(name, "unshuffle", (self.at,), (c * scale * scale, h // scale, w // scale), scale, scale)

    def shuffle(self, name: str, scale: int) -> None:
        c, h, w = self.size(self.at)
        if c % (scale * scale):
            near = max(1, c // (scale * scale)) * scale * scale
            raise SpecError(
                f"pixel-shuffle by {scale} needs channels that are a multiple of {scale * scale}, "
                f"but {name} gets {c}; use {near}"
            )
        self._append(name, "shuffle", (self.at,), (c // (scale * scale), h * scale, w * scale), scale, scale)

    def concat(self, name: str, other: int) -> None:
        c, h, w = self.size(self.at)
        self._append(name, "concat", (self.at, other), (c + self.size(other)[0], h, w))

    def add(self, name: str, other: int) -> None:
        self._append(name, "add", (self.at, other), self.size(self.at))

    def classifier(self, feature: int, outputs: int) -> None:
        c = self.size(feature)[0]
        self._append("encoder.classifier", "linear", (feature,), (outputs, 1, 1), bias=True,
                     parameters=(c + 1) * outputs, macs=c * outputs, runs=False)  # fmt: skip


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
    out.conv(f"{name}.depthwise.conv", out.size(out.at)[0], kernel, groups=out.size(out.at)[0])
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
        if stride != 1 or out.size(entry)[0] != stage.channels:
            out.at = entry
            out.conv(f"{block}.shortcut.conv", stage.channels, 1, stride=stride, bias=False)
            out.norm(f"{block}.shortcut.norm")
            entry = out.at
        out.at = branch
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
        return stage.channels + out.size(skip)[0]
    return stage.channels


def _decode_1d(out: _Lowering, stage: StageSpec, name: str, skip: int | None, emit: int) -> None:
    out.shuffle(f"{name}.shuffle", stage.scale)
    if skip is not None:
        out.concat(f"{name}.concat", skip)
    kept = out.size(out.at)[0]
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
