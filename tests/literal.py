"""The paper's nets composed literally, as it describes them: flatten, stride-C Conv1d, recover, for every layer.

The oracle of the exact forms, with the key names of the authors' public code, and the peer of the benchmarks.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def flatten_channels(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H·W·C), the channel index fastest."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], 1, -1)


class Crb(nn.Module):
    """conv, ReLU, batch norm over (B, 1 or C, length), named as theirs."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, pad: int = 0, *, act: bool = True,
                 norm: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride)
        self.pad, self.act = pad, act
        if norm:
            self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (self.pad, self.pad), mode="reflect") if self.pad else x)
        x = F.relu(x) if self.act else x
        return self.bn(x) if hasattr(self, "bn") else x


def channel(c_in: int, c_out: int, **how: bool) -> Crb:
    return Crb(1, c_out, c_in, c_in, **how)


def spatial(k: int) -> Crb:
    return Crb(1, 1, k, 1, k // 2, norm=False)


class LiteralEncoder(nn.Module):
    def __init__(self, widths: list[int], k: int, repeat: int) -> None:
        super().__init__()
        self.bottleneck = nn.Module()
        self.bottleneck.blocks = nn.ModuleList(
            [channel(3, widths[0])] + [Crb(widths[0], widths[0], 1, 1) for _ in range(repeat - 1)]
        )
        self.convs = nn.ModuleDict()
        for i, (c, d) in enumerate(itertools.pairwise(widths)):
            self.convs[f"spatial_{i}"] = spatial(k) if k else nn.Identity()  # Table 2 has a net without
            self.convs[f"channel_1_{i}"] = channel(4 * c, d)
            self.convs[f"channel_2_{i}"] = Crb(d, d, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        h, w = x.shape[-2:]
        flat = flatten_channels((x - 0.45) / 0.225)
        for block in self.bottleneck.blocks:
            flat = block(flat)
        features = [flat.unflatten(-1, (h, w))]
        for i in range(len(self.convs) // 3):
            x = F.pixel_unshuffle(features[-1], 2)
            flat = self.convs[f"spatial_{i}"](flatten_channels(x))
            flat = self.convs[f"channel_2_{i}"](self.convs[f"channel_1_{i}"](flat))
            features.append(flat.unflatten(-1, x.shape[-2:]))
        return features


class LiteralDecoder1D(nn.Module):
    def __init__(self, widths: list[int], k: int, classes: int) -> None:
        super().__init__()
        self.bottleneck = channel(widths[-1], 2 * widths[-1])
        self.convs = nn.ModuleDict()
        for i in range(len(widths) - 1, 0, -1):
            n = 2 * widths[i - 1] if i > 1 else widths[0]
            self.convs[f"spatial_{i}"] = spatial(k)
            self.convs[f"channel_1_{i}"] = channel(n, n)
            self.convs[f"channel_2_{i}"] = Crb(n, n, 1, 1)
            self.convs[f"head_{i}"] = Crb(n, classes, 1, 1, act=False, norm=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.bottleneck(flatten_channels(features[-1])).unflatten(-1, features[-1].shape[-2:])
        for i in range(len(features) - 1, 0, -1):
            x = F.pixel_shuffle(x, 2)
            x = torch.cat([x, features[i - 1]], 1) if i > 1 else x
            flat = self.convs[f"spatial_{i}"](flatten_channels(x))
            flat = self.convs[f"channel_2_{i}"](self.convs[f"channel_1_{i}"](flat))
            if i == 1:
                return self.convs["head_1"](flat).unflatten(-1, x.shape[-2:])
            x = flat.unflatten(-1, x.shape[-2:])
        raise AssertionError("a decoder has a level 1")


class Conv2d(nn.Module):
    """.conv.conv with .bn, or .conv alone."""

    def __init__(self, conv: nn.Module, norm: int = 0) -> None:
        super().__init__()
        self.conv = conv
        if norm:
            self.bn = nn.BatchNorm2d(norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x))) if hasattr(self, "bn") else self.conv(x)


class LiteralDecoder2D(nn.Module):
    def __init__(self, widths: list[int], classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict()
        for i in range(len(widths) - 1, 0, -1):
            c = widths[i - 1]
            self.convs[f"up_{i}"] = Conv2d(nn.ConvTranspose2d(widths[i], c, 2, 2))
            for j, inputs in ((1, 2 * c if i > 1 else c), (2, c)):
                self.convs[f"channel_{j}_{i}"] = Conv2d(
                    Conv2d(nn.Conv2d(inputs, c, 3, padding=1)), norm=c if i > 1 else 0
                )
            self.convs[f"head_{i}"] = Conv2d(nn.Conv2d(c, classes, 3, padding=1))

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for i in range(len(features) - 1, 0, -1):
            x = self.convs[f"up_{i}"](x)
            x = torch.cat([x, features[i - 1]], 1) if i > 1 else x
            x = self.convs[f"channel_2_{i}"](self.convs[f"channel_1_{i}"](x))
        return self.convs["head_1"](x)


class Literal(nn.Module):
    def __init__(self, decoder: nn.Module, widths: list[int], k: int, repeat: int) -> None:
        super().__init__()
        self.encoder = LiteralEncoder(widths, k, repeat)
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def literal_onenet_e(depth: int, width: int, stem_repeat: int, kernel: int, classes: int) -> nn.Module:
    """OneNet_e."""
    widths = [width * 2**i for i in range(depth + 1)]
    return Literal(LiteralDecoder2D(widths, classes), widths, kernel, stem_repeat)


def literal_onenet_ed(
    depth: int, width: int, stem_repeat: int, kernel: int, classes: int, encoder_kernel: int | None = None
) -> nn.Module:
    """OneNet_e,d."""
    widths = [width * 2**i for i in range(depth + 1)]
    return Literal(
        LiteralDecoder1D(widths, kernel, classes),
        widths,
        kernel if encoder_kernel is None else encoder_kernel,
        stem_repeat,
    )
