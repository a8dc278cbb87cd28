"""The receptive field: which pixels of the image a pixel of the logits can depend on, from the plan alone.

The plan's rows are walked backwards, with an interval per axis and channel, on an image without borders. Channels
matter because a spatial convolution reads k//2 positions of the flattened (height, width, channel) axis on either side:
only the last channels of the pixel to the left and the first of the pixel to the right, which a pixel-unshuffle has
made from some of their sub-pixels. Batch norms are those of inference, which mix no pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onenet_bench.plan import Row, smallest
from onenet_bench.spec import NetSpec


class Field(NamedTuple):
    """Pixels of the image that one pixel of the logits can depend on, where the image's borders are far."""

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
