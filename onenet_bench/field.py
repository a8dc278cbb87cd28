"""The receptive field: which pixels of the image a pixel of the logits can depend on, from the plan alone.

The plan's rows are walked backwards. ``receptive_field`` keeps an interval per axis and channel on an image without
borders; ``reach`` keeps the very set of positions on an image of a given size, borders included. Channels matter
because a spatial convolution reads k//2 positions of the flattened (height, width, channel) axis on either side: only
the last channels of the pixel to the left and the first of the pixel to the right, which a pixel-unshuffle has made
from some of their sub-pixels. Batch norms are those of inference, which mix no pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onenet_bench.errors import SpecError
from onenet_bench.plan import Plan, Row, smallest
from onenet_bench.spec import NetSpec


class Field(NamedTuple):
    """Pixels of the image that one pixel of the logits can depend on, where the image's borders are far."""

    height: int
    width: int


class Box(NamedTuple):
    """The smallest rectangle of the image around all pixels that one pixel of the logits depends on."""

    top: int
    left: int
    height: int
    width: int


def receptive_field(spec: NetSpec) -> Field:
    """The receptive field of ``spec``: the largest over the pixels of the logits, on an image without borders.

    An image smaller than that is seen whole. An OneNet of L levels of scale S with neither spatial nor 2D
    convolutions has the paper's S^L.
    """
    lowered = smallest(spec)
    pixels = np.arange(spec.total_scale // spec.output_stride)[:, np.newaxis]  # the pattern repeats after these
    sides = []
    for across in (False, True):
        needed: dict[int, Span] = {lowered.output: (pixels, pixels)}
        for index in range(lowered.output, -1, -1):
            if index not in needed:
                continue
            row, (low, high) = lowered.rows[index], needed.pop(index)
            for source, (first, last) in zip(row.inputs, SPANS[row.op](row, low, high, across), strict=True):
                if source in needed:
                    first, last = np.minimum(first, needed[source][0]), np.maximum(last, needed[source][1])
                needed[source] = first, last
        first, last = needed[-1]
        sides.append(int((last.max(axis=1) - first.min(axis=1)).max()) + 1)
    return Field(*sides)


def reach(lowered: Plan, row: int, column: int) -> Box:
    """What the pixel (``row``, ``column``) of the logits depends on, in an image of ``lowered.shape``.

    At the ends of a line of pixels a spatial convolution goes on in the next or the previous one, so that a box there
    can be as wide as the image. Raises SpecError for a pixel outside the logits.
    """
    logits = lowered.rows[lowered.output]
    if not (0 <= row < logits.h_out and 0 <= column < logits.w_out):
        raise SpecError(f"a pixel of the logits lies within {logits.h_out} x {logits.w_out}, but got ({row}, {column})")
    pixel = np.zeros((1, logits.h_out, logits.w_out), dtype=bool)
    pixel[0, row, column] = True
    needed: dict[int, Mask] = {lowered.output: pixel}
    for index in range(lowered.output, -1, -1):
        if index not in needed:
            continue
        layer = lowered.rows[index]
        for source, mask in zip(layer.inputs, MASKS[layer.op](layer, needed.pop(index)), strict=True):
            needed[source] = needed[source] | mask if source in needed else mask
    rows, columns = (np.flatnonzero(needed[-1].any(axis=axes)) for axes in ((0, 2), (0, 1)))
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1)


def _window(row: Row) -> tuple[int, int, int]:
    """Kernel, stride and zero padding of a convolution or pooling."""
    padding = int(row.kernel > row.stride) if row.op == "maxpool" else (row.kernel - 1) // 2
    return row.kernel, row.stride, padding


# Intervals ------------------------------------------------------------------------------------------------

Int = npt.NDArray[np.int64]
Span = tuple[Int, Int]
"""First and last position along one axis, (pixels, channels); one channel stands for all where all are alike."""


def _same_span(row: Row, low: Int, high: Int, across: bool) -> list[Span]:
    return [(low, high)] * len(row.inputs)


def _any_channel(low: Int, high: Int) -> Span:
    return low.min(axis=1, keepdims=True), high.max(axis=1, keepdims=True)


def _window_span(row: Row, low: Int, high: Int, across: bool) -> list[Span]:
    """Of a convolution or a pooling. What a depthwise convolution gives is read whole by the pointwise one after it."""
    kernel, stride, padding = _window(row)
    if row.op == "conv":
        low, high = _any_channel(low, high)
    return [(low * stride - padding, high * stride - padding + kernel - 1)]


def _spatial_span(row: Row, low: Int, high: Int, across: bool) -> list[Span]:
    """Whatever reads a spatial convolution reads all its channels, so that their union is exact."""
    low, high = _any_channel(low, high)
    if across:
        side, channel = row.kernel // 2, np.arange(row.c_in)
        low, high = low - (side + channel) // row.c_in, high + (row.c_in - 1 + side - channel) // row.c_in
    return [(low, high)]


def _grow_span(row: Row, low: Int, high: Int, across: bool) -> list[Span]:
    """Of a transposed convolution or a pixel-shuffle. The convolution that makes a shuffle's input computes all its
    channels from the same positions, so that their union is exact."""
    low, high = _any_channel(low, high)
    return [(low // row.stride, high // row.stride)]


def _unshuffle_span(row: Row, low: Int, high: Int, across: bool) -> list[Span]:
    """Channel c·s² + i·s + j at (y, x) is channel c at (y·s + i, x·s + j). Channels differ only along the width."""
    s = row.stride
    if low.shape[1] == 1:
        return [(low * s, high * s + s - 1)]
    j, shape = np.arange(s), (len(low), row.c_in, s, s)
    first, last = low.reshape(shape) * s + j, high.reshape(shape) * s + j
    return [(first.min(axis=(2, 3)), last.max(axis=(2, 3)))]


def _concat_span(row: Row, low: Int, high: Int, across: bool) -> list[Span]:
    if low.shape[1] == 1:
        return [(low, high)] * 2
    return [(low[:, : row.c_in], high[:, : row.c_in]), (low[:, row.c_in :], high[:, row.c_in :])]


SPANS: dict[str, Callable[[Row, Int, Int, bool], list[Span]]] = {
    "normalise": _same_span,
    "conv": _window_span,
    "spatial": _spatial_span,
    "up": _grow_span,
    "norm": _same_span,
    "relu": _same_span,
    "maxpool": _window_span,
    "unshuffle": _unshuffle_span,
    "shuffle": _grow_span,
    "concat": _concat_span,
    "add": _same_span,
}
"""From what is needed of a row's output to what is needed of each of its inputs, along the width (``across``) or the
height."""


# Sets -----------------------------------------------------------------------------------------------------

Mask = npt.NDArray[np.bool_]
"""Which positions are needed, (channels, height, width); one channel stands for all where all are alike."""


def _over_channels(need: Mask) -> Mask:
    return np.logical_or.reduce(need, axis=0, keepdims=True)


def _same_mask(row: Row, need: Mask) -> list[Mask]:
    return [need] * len(row.inputs)


def _window_mask(row: Row, need: Mask) -> list[Mask]:
    kernel, stride, padding = _window(row)
    if row.op == "conv":
        need = _over_channels(need)
    channels, h, w = need.shape
    down = np.zeros((channels, row.h_in + 2 * padding, w), dtype=bool)
    for tap in range(kernel):
        down[:, tap : tap + stride * (h - 1) + 1 : stride] |= need
    read = np.zeros((channels, row.h_in + 2 * padding, row.w_in + 2 * padding), dtype=bool)
    for tap in range(kernel):
        read[:, :, tap : tap + stride * (w - 1) + 1 : stride] |= down
    return [read[:, padding : padding + row.h_in, padding : padding + row.w_in]]


def _spatial_mask(row: Row, need: Mask) -> list[Mask]:
    """The reflection at both ends reads nothing that its outputs do not read anyway."""
    side = row.kernel // 2
    flat = np.broadcast_to(need, (row.c_in, row.h_in, row.w_in)).transpose(1, 2, 0).ravel()  # (H·W·C,)
    before = np.concatenate([np.zeros(side + 1, dtype=np.int64), flat.cumsum(), np.full(side, flat.sum())])
    read: Mask = before[2 * side + 1 :] > before[: len(flat)]  # any output within k//2 positions
    return [read.reshape(row.h_in, row.w_in, row.c_in).transpose(2, 0, 1)]


def _grow_mask(row: Row, need: Mask) -> list[Mask]:
    s, need = row.stride, _over_channels(need)
    read = np.zeros((1, row.h_in, row.w_in), dtype=bool)
    for i in range(s):
        for j in range(s):
            read |= need[:, i::s, j::s]
    return [read]


def _unshuffle_mask(row: Row, need: Mask) -> list[Mask]:
    s = row.stride
    if len(need) == 1:
        return [need.repeat(s, axis=1).repeat(s, axis=2)]
    blocks = need.reshape(row.c_in, s, s, row.h_out, row.w_out).transpose(0, 3, 1, 4, 2)  # (C, H/s, s, W/s, s)
    return [blocks.reshape(row.c_in, row.h_in, row.w_in)]


def _concat_mask(row: Row, need: Mask) -> list[Mask]:
    return [need, need] if len(need) == 1 else [need[: row.c_in], need[row.c_in :]]


MASKS: dict[str, Callable[[Row, Mask], list[Mask]]] = {
    "normalise": _same_mask,
    "conv": _window_mask,
    "spatial": _spatial_mask,
    "up": _grow_mask,
    "norm": _same_mask,
    "relu": _same_mask,
    "maxpool": _window_mask,
    "unshuffle": _unshuffle_mask,
    "shuffle": _grow_mask,
    "concat": _concat_mask,
    "add": _same_mask,
}
"""The same for sets of positions."""
