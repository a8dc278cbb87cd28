"""What a pixel of the logits depends on, as the very set of the image's positions, borders included."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onenet_bench.field import _window
from onenet_bench.plan import Plan, Row


class Box(NamedTuple):
    """The smallest rectangle of the image around all pixels that one pixel of the logits depends on."""

    top: int
    left: int
    height: int
    width: int


def reach(lowered: Plan, row: int, column: int) -> Box:
    """What the pixel (``row``, ``column``) of the logits depends on, in an image of ``lowered.shape``.

    At the ends of a line of pixels a spatial convolution goes on in the next or the previous one, so that a box there
    can be as wide as the image.
    """
    logits = lowered.rows[lowered.output]
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
"""From what is needed of a row's output to what is needed of each of its inputs."""
