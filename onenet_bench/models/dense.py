"""Convolutions of several taps that mix all channels, on channels-last CPU memory, where torch's own are slow.

On a processor with AVX2 and without AVX-512, torch's library (oneDNN 3.12) takes up to five times as long for the
gradient of the weights of a channels-last convolution, a strided or transposed one too, as for that of a contiguous
one. Here it is a sum of matrix products, one a tap, over zero-padded bands that fit into a core's cache: about as fast
as the contiguous one, without whole copies, and more accurate. Heavy convolutions of small images are computed on
contiguous copies.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from onenet_bench.memory import CHUNK, is_heavy, is_narrow
from onenet_bench.plan import Row

SLOW = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Whether this processor is one where products are the faster gradient."""

CHANNELS = 32
"""From so many channels on, in and out, products of matrices are worth their copies,"""
WORK = 1 << 26
"""where the elements of input and output, times the lesser number of channels, are more than this."""


def dense_conv(row: Row, conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """``conv`` of (B, C, H, W) in the fastest of the equal forms that is free of the library's errors."""
    training = torch.is_grad_enabled()
    heavier = is_heavy(row) and x.numel() < conv.weight.numel()
    if isinstance(conv, nn.Conv2d) and (heavier or (is_narrow(row) and training)):
        return heavy_conv(conv, x)
    out: Tensor
    if training and SLOW and _by_products(row, x):
        how = row.stride, conv.padding[0], row.op == "up"
        out = _Conv.apply(x, conv.weight, conv.bias, *how)  # type: ignore[no-untyped-call]
    else:
        out = conv(x)
    return out


def _by_products(row: Row, x: Tensor) -> bool:
    fewer = min(row.c_in, row.c_out)
    grown = row.stride**2 if row.op == "up" else 1 / row.stride**2
    elements = x.numel() * (1 + grown * row.c_out / row.c_in)
    return row.groups == 1 < row.kernel and fewer >= CHANNELS and elements * fewer > WORK


def heavy_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv`` of (B, C, H, W) on contiguous copies: where the input has fewer elements than the weights, since the
    library reorders these at every call, for a channels-last convolution several times more slowly; and where
    ``memory.is_narrow`` tells of an error of the library's."""
    stride, padding = conv.stride, conv.padding
    if torch.is_grad_enabled():
        out: Tensor = _HeavyConv.apply(x, conv.weight, conv.bias, stride, padding)  # type: ignore[no-untyped-call]
        return out
    return _contiguously(x, conv.weight, conv.bias, stride, padding)


@library.custom_op("onenet_bench::weight_gradient", mutates_args=())
def weight_gradient(g: Tensor, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The gradient (C', C, k, k), channels-last, of a convolution's weights, from that of its output (B, C', H', W')
    and its input (B, C, H, W).

    Tap (i, j) is the product of both as (positions, channels), the input's positions shifted by i rows and j columns.
    For one shift to hold for all positions, both lie in rows as long as a padded one of the input, g with zeros behind
    it; with a stride s, the input is the one of every s-th row and column that has the remainders of i and j.

    An operator of its own, so that those who count tensors see what it returns and not its scratch space.
    """
    (b, c_out, h, w), c_in = g.shape, x.shape[1]
    g, x = g.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    more = (kernel - 1) // stride  # positions that a row is longer than g's, and rows that are read beyond a band's
    wide = w + more
    right = wide * stride - padding - x.shape[2]  # below 0 where the last columns are not read
    line = wide * (c_in * stride**2 + c_out)
    lines = min(h, max(1, CHUNK // line))  # of an image at a time, or several whole images
    images = max(1, CHUNK // (h * line)) if lines == h else 1
    out = x.new_zeros(c_out, kernel, kernel, c_in)
    for some in (slice(first, first + images) for first in range(0, b, images)):
        for top in range(0, h, lines):
            bottom = min(top + lines, h)
            above, below = top * stride - padding, (bottom + more) * stride - padding  # the rows that are read
            first, last = max(0, above), min(below, x.shape[1])
            read = F.pad(x[some, first:last], (0, 0, padding, right, first - above, below - last))
            columns = F.pad(g[some, top:bottom], (0, 0, 0, more, 0, more)).reshape(-1, c_out).t()
            positions = columns.shape[1] - more * (wide + 1)  # behind them are zeros alone
            columns = columns[:, :positions]
            rows = {
                (i, j): read[:, i::stride, j::stride].reshape(-1, c_in)
                for i, j in itertools.product(range(min(stride, kernel)), repeat=2)
            }
            for i, j in itertools.product(range(kernel), repeat=2):
                shift = i // stride * wide + j // stride
                out[:, i, j].addmm_(columns, rows[i % stride, j % stride][shift : shift + positions])
    return out.permute(0, 3, 1, 2)


@weight_gradient.register_fake
def _(g: Tensor, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return x.new_empty(g.shape[1], kernel, kernel, x.shape[1]).permute(0, 3, 1, 2)


@register_flop_formula(torch.ops.onenet_bench.weight_gradient)
def _flops(g: tuple[int, ...], x: tuple[int, ...], kernel: int, *_: Any, out_shape: Any = None) -> int:
    """Two a multiply-add."""
    return 2 * math.prod(g) * x[1] * kernel**2


class _Conv(torch.autograd.Function):
    """A convolution, or a transposed one, with ``weight_gradient``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1
        return torch.convolution(x, weight, bias, *ctx.how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (stride, _), (padding, _), _, transposed, *_ = ctx.how
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        to_x = to_weight = None
        if of_x:
            wanted = [True, False, False]  # with the gradient of a bias torch's library computes that of the weights
            to_x = torch.ops.aten.convolution_backward(g, x, weight, None, *ctx.how, wanted)[0]
        if of_weight:
            down, up = (x, g) if transposed else (g, x)  # a transposed convolution's input is an output, read backwards
            to_weight = weight_gradient(down, up, weight.shape[-1], stride, padding)
        return to_x, to_weight, g.sum((0, 2, 3)) if of_bias else None, None, None, None


class _HeavyConv(torch.autograd.Function):
    """``heavy_conv`` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (None if bias is None else [len(bias)]), stride, padding
        return _contiguously(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        biases, stride, padding = ctx.how
        wanted = [ctx.needs_input_grad[0], True, biases is not None]
        to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
            g.contiguous(), x.contiguous(), weight, biases, stride, padding, [1, 1], False, [0, 0], 1, wanted
        )
        if to_x is not None:
            to_x = to_x.contiguous(memory_format=torch.channels_last)
        return to_x, to_weight, to_bias, None, None


def _contiguously(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
    out = F.conv2d(x.contiguous(), weight, bias, stride, padding)
    return out.contiguous(memory_format=torch.channels_last)
