"""Batch norms and 1x1 convolutions on channels-last CPU memory, read as rows: (N, C), N = B·H·W positions.

A batch norm before a 1x1 convolution is never carried out: with scale = γ/σ and shift = β - μ·scale,

    W·(scale·x + shift) + b  =  (W·scale)·x + (b + W·shift)

in training too, where μ and σ are the batch's, and where only x is kept for the backward pass. Any other batch norm is
one pass over its tensor.

torch's own batch norm adds up a channels-last tensor naively in float32 (pytorch issue 121651): its statistics lose
digits as N grows. Here they are taken over chunks that fit into a core's cache and combined in float64 (Chan, Golub,
LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onenet_bench.memory import CHUNK, ROWS
from onenet_bench.models.layers import convolve
from onenet_bench.models.products import add_gradients, linear


def rows_of(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B·H·W, C); no copy of channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def image_of(rows: Tensor, like: Tensor) -> Tensor:
    """(B·H·W, C) as (B, C, H, W) in channels-last memory; B, H and W are those of ``like``."""
    b, _, h, w = like.shape
    return rows.view(b, h, w, -1).permute(0, 3, 1, 2)


def _chunks(*tensors: Tensor, least: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """The rows of all tensors (N, …) together, as many at a time as of the first fit into a core's cache."""
    number = max(least, CHUNK // tensors[0].shape[1])
    if len(tensors[0]) <= number:
        return iter([tensors])
    return zip(*(torch.split(rows, number) for rows in tensors), strict=True)


def statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every column of (N, C): (C,) each, at least float32."""
    n = len(rows)
    kind = torch.promote_types(rows.dtype, torch.float32)
    means, squares, counts = [], [], []
    for (part,) in _chunks(rows):
        part = part.to(kind)
        mean = part.mean(0)
        means.append(mean)
        squares.append((part - mean).square_().sum(0))
        counts.append(len(part))
    if len(counts) == 1:
        return means[0], squares[0] / n
    count = torch.tensor(counts, dtype=torch.float64, device=rows.device)[:, None]  # (chunks, 1)
    every = torch.stack(means).double()  # (chunks, C)
    mean = (every * count).sum(0) / n
    variance = (torch.stack(squares).double().sum(0) + (every.sub_(mean).square_() * count).sum(0)) / n
    return mean.to(kind), variance.to(kind)


class Norm(NamedTuple):
    """What a batch norm does at this moment: (x - mean)·inverse·weight + bias, (C,) each."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    inverse: Tensor  # 1 / σ
    of_batch: bool  # mean and σ depend on x

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift."""
        scale = self.weight * self.inverse
        return scale, torch.addcmul(self.bias, self.mean, scale, value=-1)


def norm_of(layer: nn.BatchNorm2d, rows: Tensor) -> Norm:
    """What ``layer`` does to ``rows`` (N, C). In training its running statistics move as torch's do."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    if layer.training:
        n = len(rows)
        if n < 2:
            raise RuntimeError(f"a batch norm in training needs at least 2 values per channel, but got {n}; add images")
        with torch.no_grad():
            running, mean, variance = (mean, variance), *statistics(rows.detach())
            assert layer.momentum is not None
            running[0].lerp_(mean, layer.momentum)
            running[1].lerp_(variance * (n / (n - 1)), layer.momentum)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(1)
    return Norm(layer.weight, layer.bias, mean, torch.rsqrt(variance + layer.eps), layer.training)


def batch_norm(layer: nn.BatchNorm2d, x: Tensor, *, relu: bool) -> Tensor:
    """``layer`` of (B, C, H, W), with a ReLU behind it where ``relu`` says so. Where no gradient is asked for, the
    output takes the input's memory."""
    rows = rows_of(x)
    norm = norm_of(layer, rows)
    if torch.is_grad_enabled():
        out: Tensor = _Normed.apply(x, *norm, relu)  # type: ignore[no-untyped-call]
        return out
    _apply(rows, rows, norm, relu)
    return image_of(rows, x)


def channel_conv(conv: nn.Conv2d, x: Tensor, *, relu: bool, norm: nn.BatchNorm2d | None = None) -> Tensor:
    """A 1x1 convolution: the paper's channel-wise 1D convolution. (B, C, H, W) to (B, C', H, W).

    With a batch norm before it and a ReLU behind it where ``norm`` and ``relu`` say so. Under autocast it runs in
    autocast's type. Where no gradient is asked for, the norm may be carried out in the input's memory.
    """
    rows = rows_of(x)
    type_ = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    weight = conv.weight.flatten(1)  # (C', C)
    does = norm_of(norm, rows) if norm else None
    with torch.autocast("cpu", enabled=False):
        if torch.is_grad_enabled():
            out = _Conved.apply(rows, weight, conv.bias, *(does or [None] * 5), relu, type_)  # type: ignore[no-untyped-call]
        else:
            if does and len(rows) < len(weight):  # fewer rows than the weight has: they are scaled instead
                _apply(rows, rows, does, False)
                does = None
            out = _linear(rows, weight, conv.bias, does, relu, type_)
    return image_of(out, x)


def unshuffled_conv(conv: nn.Conv2d, x: Tensor, scale: int, *, relu: bool) -> Tensor:
    """A 1x1 convolution of the pixel-unshuffled x, as one convolution with kernel = stride = ``scale``.

    (B, C, H, W) to (B, C', H/s, W/s), with a ReLU behind it where ``relu`` says so; the sums are the same.
    """
    return convolve(x, conv.weight.reshape(-1, x.shape[1], scale, scale), conv.bias, stride=scale, relu=relu)


def _linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, relu: bool, type_: torch.dtype
) -> Tensor:  # fmt: skip
    """(N, C) to (N, C')."""
    if norm:
        scale, shift = norm.affine()
        bias = weight @ shift if bias is None else torch.addmv(bias, weight, shift)
        weight = weight * scale
    return linear(rows.to(type_), weight.to(type_), None if bias is None else bias.to(type_), relu=relu)


def _apply(rows: Tensor, out: Tensor, norm: Norm, relu: bool) -> None:
    """Write the norm of ``rows`` (N, C), through a ReLU if asked, to ``out``, which may be ``rows``."""
    scale, shift = norm.affine()
    for part, to in _chunks(rows, out):
        torch.addcmul(shift, part, scale, out=to)
        if relu:
            to.relu_()


def _through_statistics(norm: Norm, n: int, to_weight: Tensor, to_bias: Tensor) -> tuple[Tensor, Tensor]:
    """What x times a factor and a constant add to the gradient of x, because mean and σ depend on x: (C,) each."""
    scale = norm.weight * norm.inverse
    factor = scale * norm.inverse * to_weight / -n
    return factor, -(factor * norm.mean + scale * to_bias / n)


class _Normed(torch.autograd.Function):
    """Batch norm, and ReLU where asked, of (B, C, H, W)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, of_batch: bool, relu: bool
    ) -> Tensor:  # fmt: skip
        out = torch.empty_like(x)  # no view, or autograd would copy gradients where the output is written over
        to = out.permute(0, 2, 3, 1).view(-1, x.shape[1])
        _apply(rows_of(x), to, Norm(weight, bias, mean, inverse, of_batch), relu)
        ctx.save_for_backward(x, weight, bias, mean, inverse, out if relu else None)
        ctx.of_batch = of_batch
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, bias, mean, inverse, out = ctx.saved_tensors
        rows, g, out = rows_of(image), rows_of(g), None if out is None else rows_of(out)  # (N, C)
        norm = Norm(weight, bias, mean, inverse, ctx.of_batch)
        to_rows = torch.empty_like(rows)  # first what comes through the ReLU
        to_weight, to_bias = torch.zeros_like(mean), torch.zeros_like(mean)  # (C,)
        for x, incoming, passed, mask in _chunks(rows, g, to_rows, rows if out is None else out):
            if out is not None:
                incoming = torch.ops.aten.threshold_backward(incoming, mask, 0, grad_input=passed)
            to_bias += incoming.sum(0, dtype=mean.dtype)
            to_weight += (x - mean).mul_(incoming).sum(0)
        to_weight *= inverse
        scale = weight * inverse
        if norm.of_batch:
            factor, constant = _through_statistics(norm, len(rows), to_weight, to_bias)
        for x, incoming, passed in _chunks(rows, g if out is None else to_rows, to_rows):
            if not norm.of_batch:
                torch.mul(incoming, scale, out=passed)
                continue
            torch.addcmul(torch.addcmul(constant, x, factor), incoming, scale, out=passed)
        return image_of(to_rows, image), to_weight, to_bias, None, None, None, None


class _Conved(torch.autograd.Function):
    """1x1 convolution of (N, C) with a batch norm before it and a ReLU behind it, where asked.

    The sums over positions that the norm's gradient is made of come out of the weight's gradient: with g that of the
    output and x' = x - mean, the norm's weight gets the column sums of W·(gᵀx')/σ, its bias Wᵀ·Σg.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor, mean: Tensor,
        inverse: Tensor, of_batch: bool, relu: bool, type_: torch.dtype,
    ) -> Tensor:  # fmt: skip
        norm = None if gamma is None else Norm(gamma, beta, mean, inverse, of_batch)
        rows = rows.to(type_)
        out = _linear(rows, weight, bias, norm, relu, type_)
        ctx.save_for_backward(rows, weight, bias, gamma, beta, mean, inverse, out if relu else None)
        ctx.of_batch = of_batch
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, *norm, out = ctx.saved_tensors
        gamma, beta, mean, inverse = norm
        does = None if gamma is None else Norm(gamma, beta, mean, inverse, ctx.of_batch)
        folded = (weight * (does.weight * does.inverse) if does else weight).to(g.dtype)  # (C', C)
        to_weight = torch.zeros_like(weight)
        to_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None  # (N, C)
        total = weight.new_zeros(len(weight))  # (C',)
        for incoming, x, mask, passed in _chunks(
            g, rows, g if out is None else out, rows if to_rows is None else to_rows, least=ROWS
        ):
            part = incoming if out is None else torch.ops.aten.threshold_backward(incoming, mask, 0)
            total += part.sum(0, dtype=weight.dtype)
            add_gradients(part, x, folded, to_weight, None if to_rows is None else passed)
            del part  # before the next one
        to_bias = None if bias is None else total
        if does is None:
            return to_rows, to_weight, to_bias, *[None] * 7
        to_weight.addr_(total, does.mean, alpha=-1)  # of the centred rows
        to_gamma = (to_weight * weight).sum(0).mul_(does.inverse)  # (C,)
        to_beta = weight.t() @ total  # (C,)
        to_weight.mul_(does.weight * does.inverse).addr_(total, does.bias)
        if does.of_batch and to_rows is not None:
            factor, constant = _through_statistics(does, len(rows), to_gamma, to_beta)
            for x, passed in _chunks(rows, to_rows):
                passed.addcmul_(x, factor.to(passed.dtype)).add_(constant.to(passed.dtype))
        return to_rows, to_weight, to_bias, to_gamma, to_beta, *[None] * 5
