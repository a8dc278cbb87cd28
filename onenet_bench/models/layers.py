"""Shape movers and the one layer that torch lacks.

B batch, C channels, H height, W width, s scale. A tensor "stays flattened" as (B, C, H·W) in the paper's pixel
shuffles and as (B, 1, H·W·C), the channel index running fastest, in its convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from onenet_bench.errors import SpecError
from onenet_bench.plan import BAND, READ, band_padding, band_width, is_banded


def _divides(what: str, value: int, by: int) -> None:
    if by < 1 or value % by:
        raise SpecError(f"the {what} must be a multiple of {by}, but got {value}; use {value + -value % max(by, 1)}")


def flat_pixel_unshuffle(x: Tensor, height: int, width: int, scale: int) -> Tensor:
    """(B, C, H·W) to (B, C·s², (H/s)·(W/s)), equal to flattening ``F.pixel_unshuffle``.

    The paper's Algorithm 1, for any scale. Raises SpecError where s does not divide H and W, or H·W is not the
    length of the last axis.
    """
    b, c, positions = x.shape
    if positions != height * width:
        raise SpecError(f"the last axis holds height x width positions, but {positions} is not {height} x {width}")
    _divides("height", height, scale)
    _divides("width", width, scale)
    h, w = height // scale, width // scale
    x = x.reshape(b, c, h, scale, w, scale)  # (B, C, H/s, s, W/s, s)
    x = x.permute(0, 1, 3, 5, 2, 4)  # (B, C, s, s, H/s, W/s)
    return x.reshape(b, c * scale * scale, h * w)  # (B, C·s², H·W/s²)


def flat_pixel_shuffle(x: Tensor, height: int, width: int, scale: int) -> Tensor:
    """(B, C·s², H·W) to (B, C, (H·s)·(W·s)): the inverse of ``flat_pixel_unshuffle``; H, W are the input's.

    Raises SpecError where s² does not divide the channels, or H·W is not the length of the last axis.
    """
    b, c, positions = x.shape
    if positions != height * width:
        raise SpecError(f"the last axis holds height x width positions, but {positions} is not {height} x {width}")
    _divides("channels", c, scale * scale)
    x = x.reshape(b, c // scale**2, scale, scale, height, width)  # (B, C, s, s, H, W)
    x = x.permute(0, 1, 4, 2, 5, 3)  # (B, C, H, s, W, s)
    return x.reshape(b, c // scale**2, height * scale * width * scale)  # (B, C, H·s·W·s)


def flatten_channels(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H·W·C), the channel index running fastest; no copy of channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], 1, -1)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) in channels-last memory, by its strides too where C = 1 leaves torch in doubt."""
    b, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1).view(b, h, w, c).permute(0, 3, 1, 2)


def recover_channels(x: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H·W·C) to (B, C, H, W): the inverse of ``flatten_channels``."""
    return x.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)


def pixel_unshuffle(x: Tensor, scale: int) -> Tensor:
    """``F.pixel_unshuffle`` of channels-last memory, (B, C, H, W) to (B, C·s², H/s, W/s), in fewer, longer strides."""
    return _moved(x, scale, True)


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """``F.pixel_shuffle``, (B, C·s², H, W) to (B, C, H·s, W·s), whose gradient is ``pixel_unshuffle``."""
    return _moved(x, scale, False)


def _moved(x: Tensor, scale: int, down: bool) -> Tensor:
    if torch.is_grad_enabled():
        out: Tensor = _Moved.apply(x, scale, down)  # type: ignore[no-untyped-call]
        return out
    if not down:
        return F.pixel_shuffle(x, scale)
    rows = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    parts = [rows[:, i::scale, j::scale] for i in range(scale) for j in range(scale)]  # (B, H/s, W/s, C) each
    return torch.stack(parts, dim=-1).flatten(3).permute(0, 3, 1, 2)


class _Moved(torch.autograd.Function):
    """The gradient of either shape mover is the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: int, down: bool) -> Tensor:
        ctx.scale, ctx.down = scale, down
        return _moved(x, scale, down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _moved(g, ctx.scale, not ctx.down), None, None


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, padding: tuple[int, int] = (0, 0), relu: bool
) -> Tensor:  # fmt: skip
    """``F.conv2d`` of CPU memory, and a ReLU behind it where ``relu`` says so: in float32 in the same pass, where
    torch's fast library is there. ``bias`` must be contiguous. Autograd does not know of it."""
    seen = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if relu and x.dtype == torch.float32 and _in_one_pass is not None and not seen:  # by those who would trip over it
        out: Tensor = _in_one_pass(x, weight, bias, padding, (stride, stride), (1, 1), 1, "relu", [], "")
        return out
    out = F.conv2d(x, weight, bias, stride, padding)
    return out.relu_() if relu else out


def _fused_operator() -> Any:
    """torch's own operator for its compiler, which is no public one: None where it is not there."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        operator = torch.ops.mkldnn._convolution_pointwise.default
        image, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        if operator(image, weight, torch.tensor([-2.0]), (0, 0), (1, 1), (1, 1), 1, "relu", [], "").item() != 0:
            return None
        register_flop_formula(torch.ops.mkldnn._convolution_pointwise)(
            lambda x, weight, *_, out_shape, **__: conv_flop_count(x, weight, out_shape)
        )
    except Exception:  # noqa: BLE001  whatever a private operator of another version may raise
        return None
    return operator


_in_one_pass = _fused_operator()


class SpatialConv(nn.Module):
    """The paper's spatial convolution: one filter of k taps over (B, 1, H·W·C), with bias, reflection padding and ReLU.

    In and out: (B, C, H, W). k + 1 parameters in all.

    On a CPU a convolution from one channel to one channel uses a sixteenth of the vector unit. The flattened tensor
    of length N is therefore read, where it lies, as 4 channels of N/4 positions and written as 16 channels of N/16,
    by a banded filter of stride 4 that holds the k taps: the same sums, several times faster. ``banded = False`` keeps
    the plain form, which is also the one that runs where the banded one does not fit and on devices that are not a CPU.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.empty(1))
        self.kernel = kernel
        self.banded = True
        self._taps: Tensor  # of the filter
        self._band: Tensor  # of its gradient
        self.register_buffer("_taps", _taps(kernel, READ, band_padding(kernel), band_width(kernel)), persistent=False)
        self.register_buffer("_band", _taps(kernel, BAND, 1, 3), persistent=False)
        for parameter in (self.weight, self.bias):  # as nn.Conv1d does
            nn.init.uniform_(parameter, -(kernel**-0.5), kernel**-0.5)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        flat = flatten_channels(x)  # (B, 1, H·W·C)
        banded = self.banded and flat.device.type == "cpu" and is_banded(self.kernel, flat.shape[-1])
        flat = self._as_band(flat) if banded else self._plain(flat)
        return recover_channels(flat, height, width)  # (B, C, H, W)

    def _plain(self, flat: Tensor) -> Tensor:
        side = self.kernel // 2
        flat = F.pad(flat, (side, side), mode="reflect")  # (B, 1, N + k - 1)
        return F.relu(F.conv1d(flat, self.weight, self.bias), inplace=True)  # (B, 1, N)

    def _as_band(self, flat: Tensor) -> Tensor:
        weight, bias = self.weight.to(flat.dtype), self.bias.to(flat.dtype)
        with torch.autocast(flat.device.type, enabled=False):  # the backward pass would not know of it
            if torch.is_grad_enabled():
                out: Tensor = _Banded.apply(flat, weight, bias, self._taps, self._band)  # type: ignore[no-untyped-call]
                return out
            return _banded(flat, weight, bias, self._taps)


def _taps(kernel: int, channels: int, padding: int, width: int) -> Tensor:
    """Which tap stands where in a banded filter: (16, C, 1, width) of indices, ``kernel`` for none.

    Output 16m + r reads input 16m + C(t - padding) + c with tap C(t - padding) + c - r + k//2.
    """
    r = torch.arange(BAND).view(BAND, 1, 1, 1)
    c = torch.arange(channels).view(1, channels, 1, 1)
    t = torch.arange(width).view(1, 1, 1, width)
    tap = channels * (t - padding) + c - r + kernel // 2
    return torch.where((tap >= 0) & (tap < kernel), tap, kernel)


def _as_channels(flat: Tensor) -> Tensor:
    """(B, 1, N) read as (B, 4, 1, N/4), channels last; no copy."""
    return flat.reshape(flat.shape[0], 1, -1, READ).permute(0, 3, 1, 2)


def _filter(weight: Tensor, taps: Tensor) -> Tensor:
    """The taps (1, 1, k) as the banded filter (16, 4, 1, width)."""
    return torch.cat([weight.flatten(), weight.new_zeros(1)])[taps]


def _banded(flat: Tensor, weight: Tensor, bias: Tensor, taps: Tensor) -> Tensor:
    """Convolution and ReLU of (B, 1, N) in banded form: zeros beyond both ends, then both ends anew."""
    side = weight.shape[-1] // 2
    padding = 0, band_padding(weight.shape[-1])
    out = convolve(
        _as_channels(flat), _filter(weight, taps), bias.repeat(BAND), stride=BAND // READ, padding=padding, relu=True
    )
    out = out.permute(0, 2, 3, 1).reshape(flat.shape)  # (B, 1, N)
    if side:  # the first and last k//2 outputs, with the reflection
        left = F.pad(flat[..., : 2 * side], (side, 0), mode="reflect")  # (B, 1, 3·(k//2))
        right = F.pad(flat[..., -2 * side :], (0, side), mode="reflect")
        out[..., :side] = F.conv1d(left, weight, bias).relu_()
        out[..., -side:] = F.conv1d(right, weight, bias).relu_()
    return out


def _band_gradient(x: Tensor, g: Tensor, rows: int) -> Tensor:
    """The gradient (3, 16, 16) of a banded filter that reads 16 channels, from its input and its output's gradient,
    (B·rows, 16) each.

    As products of matrices, over all images and then without what one image and the next have made together: several
    times as fast as torch's own gradient of such a filter, and more accurate.
    """
    band = x.new_empty(3, BAND, BAND)
    torch.mm(g[1:].t(), x[:-1], out=band[0]).addmm_(g[rows::rows].t(), x[rows - 1 : -1 : rows], alpha=-1)
    torch.mm(g.t(), x, out=band[1])
    torch.mm(g[:-1].t(), x[1:], out=band[2]).addmm_(g[rows - 1 : -1 : rows].t(), x[rows::rows], alpha=-1)
    return band


class _Banded(torch.autograd.Function):
    """``_banded`` with a gradient that takes as few passes over the tensor: one for the input, one for the taps.

    With p = k//2 and g the gradient of the output, the padded input's gradient is the full correlation of g with the
    flipped taps. Its part inside [0, N) is again a banded convolution; the p values beyond either end are those of
    mirrored inputs and are added where these lie.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, weight: Tensor, bias: Tensor, taps: Tensor, band: Tensor) -> Tensor:
        out = _banded(flat, weight, bias, taps)
        ctx.save_for_backward(flat, weight, taps, band, out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        # (B, 1, N), (1, 1, k), (16, 4, 1, width), (16, 16, 1, 3), (B, 1, N)
        flat, weight, taps, band, out = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(g, out, 0)  # (B, 1, N): through the ReLU
        kernel, n = weight.shape[-1], flat.shape[-1]
        side = kernel // 2
        to_input = None
        if ctx.needs_input_grad[0]:
            flipped = weight.flip(-1)
            padding = 0, band_padding(kernel)
            to_input = F.conv2d(_as_channels(g), _filter(flipped, taps), stride=BAND // READ, padding=padding)
            to_input = to_input.permute(0, 2, 3, 1).reshape(g.shape)  # (B, 1, N)
            if side:
                left = F.conv1d(F.pad(g[..., :side], (2 * side, 0)), flipped)  # (B, 1, p): positions -p … -1
                right = F.conv1d(F.pad(g[..., -side:], (0, 2 * side)), flipped)  # positions N … N + p - 1
                to_input[..., 1 : side + 1] += left.flip(-1)
                to_input[..., n - 1 - side : n - 1] += right.flip(-1)
        to_band = _band_gradient(flat.reshape(-1, BAND), g.reshape(-1, BAND), n // BAND)  # (3, 16, 16)
        each = to_band.permute(1, 2, 0).flatten()
        to_weight = weight.new_zeros(kernel + 1).index_add_(0, band.flatten(), each)[:kernel]
        if side:  # what the mirrored inputs saw
            left = F.pad(flat[..., 1 : side + 1].flip(-1), (0, 2 * side)).unfold(-1, kernel, 1)  # (B, 1, p, k)
            right = F.pad(flat[..., n - 1 - side : n - 1].flip(-1), (2 * side, 0)).unfold(-1, kernel, 1)
            to_weight = to_weight + (left * g[..., :side, None] + right * g[..., -side:, None]).sum((0, 1, 2))
        return to_input, to_weight.view_as(weight), g.sum().view(1), None, None
