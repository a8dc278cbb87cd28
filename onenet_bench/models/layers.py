"""Shape movers and the one layer that torch lacks.

B batch, C channels, H height, W width, s scale. A tensor "stays flattened" as (B, C, H·W) in the paper's pixel
shuffles and as (B, 1, H·W·C), the channel index running fastest, in its convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet_bench.errors import SpecError


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


def recover_channels(x: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H·W·C) to (B, C, H, W): the inverse of ``flatten_channels``."""
    return x.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)


BAND = 16
"""Channels of the banded form: the vector width that CPU convolution kernels pad to anyway."""


class SpatialConv(nn.Module):
    """The paper's spatial convolution: one filter of k taps over (B, 1, H·W·C), with a bias and reflection padding.

    In and out: (B, C, H, W). k + 1 parameters in all.

    On a CPU a convolution from one channel to one channel uses a sixteenth of the vector unit. The flattened tensor
    of length N is therefore read, where it lies, as 16 channels of N/16 positions, and the k taps as a banded
    16 x 16 x 3 filter: the same sums, several times faster. ``banded = False`` keeps the plain form, which is also
    the one that runs where the banded one does not fit and on devices that are not a CPU.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.empty(1))
        self.kernel = kernel
        self.banded = True
        self._taps: Tensor
        self.register_buffer("_taps", _band(kernel), persistent=False)
        for parameter in (self.weight, self.bias):  # as nn.Conv1d does
            nn.init.uniform_(parameter, -(kernel**-0.5), kernel**-0.5)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        flat = flatten_channels(x)  # (B, 1, H·W·C)
        length = flat.shape[-1]
        fits = length % BAND == 0 and length >= 2 * BAND and self.kernel // 2 <= BAND and flat.device.type == "cpu"
        flat = self._as_band(flat) if self.banded and fits else self._plain(flat)
        return recover_channels(flat, height, width)  # (B, C, H, W)

    def _plain(self, flat: Tensor) -> Tensor:
        side = self.kernel // 2
        flat = F.pad(flat, (side, side), mode="reflect")  # (B, 1, N + k - 1)
        return F.conv1d(flat, self.weight, self.bias)  # (B, 1, N)

    def _as_band(self, flat: Tensor) -> Tensor:
        b, _, n = flat.shape
        side = self.kernel // 2
        taps = torch.cat([self.weight.flatten(), self.weight.new_zeros(1)])[self._taps]  # (16, 16, 1, 3)
        band = flat.reshape(b, 1, n // BAND, BAND).permute(0, 3, 1, 2)  # (B, 16, 1, N/16), channels last
        band = F.conv2d(band, taps, self.bias.expand(BAND), padding=(0, 1))  # zeros beyond both ends
        out = band.permute(0, 2, 3, 1).reshape(b, 1, n)  # (B, 1, N)
        if side:  # the first and last k//2 outputs, with the reflection
            left = F.pad(flat[..., : 2 * side], (side, 0), mode="reflect")  # (B, 1, 3·(k//2))
            right = F.pad(flat[..., -2 * side :], (0, side), mode="reflect")
            out[..., :side] = F.conv1d(left, self.weight, self.bias)[..., :side]
            out[..., -side:] = F.conv1d(right, self.weight, self.bias)[..., -side:]
        return out


def _band(kernel: int) -> Tensor:
    """Which tap stands where in the banded filter: (16, 16, 1, 3) of indices, ``kernel`` for none.

    Output 16m + r reads input 16(m + t - 1) + c with tap 16(t - 1) + c - r + k//2.
    """
    r = torch.arange(BAND).view(BAND, 1, 1, 1)
    c = torch.arange(BAND).view(1, BAND, 1, 1)
    t = torch.arange(3).view(1, 1, 1, 3)
    tap = BAND * (t - 1) + c - r + kernel // 2
    return torch.where((tap >= 0) & (tap < kernel), tap, kernel)
