"""Products of rows with a matrix, (N, C) by (C, C'), by the faster of torch's two libraries for them.

One multiplies matrices (MKL), the other convolves (oneDNN), and a product is a 1x1 convolution of images whose
positions are the rows. The first one leaves half of the vector unit idle on processors with AVX-512 that are not
Intel's (measured on AMD's Zen 5); there the second takes half as long for all but small and narrow products, in
training too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

from onenet_bench.models.layers import convolve

IMAGES = 16
"""As so many images of one row torch's fast library takes 1x1 convolutions on one thread too."""
MANY = 4096
"""From so many rows on that library is faster than a matrix product; …"""

FEW, ELEMENTS = 256, 1 << 16
"""… on a slow processor from so many on, if there are so many elements: rows, times the lesser number of channels."""
ONE = 1024
"""Fewer rows than that are faster as one image, where a ReLU behind them makes the library take it."""
CHANNELS = 128
"""From so many channels on, in and out, the gradient of the weights is the convolution's there."""

CPUINFO = Path("/proc/cpuinfo")


def _is_slow() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        said = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "vendor_id" in said and "GenuineIntel" not in said


SLOW = _is_slow()
"""Whether this processor is one where products of matrices are slow."""


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    """``F.linear`` of (N, C) with (C', C), and a ReLU behind it where asked. Autograd does not know of it."""
    if len(rows) % IMAGES == 0 and (len(rows) >= MANY or _pays(rows, len(weight))):
        images = _as_images(rows, 1 if relu and len(rows) < ONE else IMAGES)
        out = convolve(images, weight[:, :, None, None], bias, relu=relu)
        return out.permute(0, 2, 3, 1).reshape(len(rows), -1)
    out = F.linear(rows, weight, bias)
    return out.relu_() if relu else out


def add_gradients(g: Tensor, rows: Tensor, weight: Tensor, to_weight: Tensor, to_rows: Tensor | None) -> None:
    """Of ``linear``, from the gradient ``g`` (N, C') of its output: add that of the weights to ``to_weight`` (C', C),
    and write that of the rows to ``to_rows`` (N, C), where one is given. ``weight`` (C', C) is of g's type."""
    if g.dtype == to_weight.dtype and len(rows) % IMAGES == 0 and _pays(rows, len(weight)):
        by_convolution(g, rows, weight, to_weight, to_rows)
        return
    if g.dtype == to_weight.dtype:
        to_weight.addmm_(g.t(), rows)
    else:
        to_weight.add_(g.t() @ rows)
    if to_rows is not None:
        torch.mm(g, weight, out=to_rows)


def _pays(rows: Tensor, c_out: int) -> bool:
    n, c_in = rows.shape
    return SLOW and rows.dtype == torch.float32 and n >= FEW and n * min(c_in, c_out) >= ELEMENTS


def _as_images(rows: Tensor, number: int = IMAGES) -> Tensor:
    """(N, C) as (number, C, 1, N / number), channels last; no copy."""
    return rows.view(number, 1, -1, rows.shape[1]).permute(0, 3, 1, 2)


@library.custom_op("onenet_bench::add_gradients", mutates_args=("to_weight", "to_rows"))
def by_convolution(g: Tensor, rows: Tensor, weight: Tensor, to_weight: Tensor, to_rows: Tensor | None) -> None:
    """``add_gradients`` by the library that convolves.

    With no more rows than channels, the weights' gradient gᵀ·rows is a product of gᵀ's rows. With more, it is the
    library's own, where there are channels enough for that to be faster.

    An operator of its own, so that those who count tensors see no scratch space, whatever the processor.
    """
    filters, channels = weight[:, :, None, None], min(weight.shape)
    images, gradients = _as_images(rows), _as_images(g)
    if to_rows is not None:
        to_rows.copy_(_backward(gradients, images, filters, 0).permute(0, 2, 3, 1).reshape(to_rows.shape))
    if len(rows) <= channels and len(weight) % IMAGES == 0:
        out = F.conv2d(_as_images(g.t().contiguous()), rows.t().contiguous()[:, :, None, None])  # (16, C, 1, C'/16)
        to_weight.add_(out.permute(0, 2, 3, 1).reshape(to_weight.shape))
    elif channels >= CHANNELS:
        to_weight.add_(_backward(gradients, images, filters, 1).view(to_weight.shape))
    else:
        to_weight.addmm_(g.t(), rows)


def _backward(g: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    """The gradient of a 1x1 convolution's input (0) or weights (1)."""
    wanted = [which == 0, which == 1, False]
    made = torch.ops.aten.convolution_backward(g, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted)
    found: Tensor = made[which]
    return found


@register_flop_formula(torch.ops.onenet_bench.add_gradients)
def _flops(
    g: tuple[int, ...], rows: tuple[int, ...], weight: Any, to_weight: Any, to_rows: Any, *_: Any, **__: Any
) -> int:
    """Two a multiply-add."""
    return 2 * g[0] * g[1] * rows[1] * (1 if to_rows is None else 2)
