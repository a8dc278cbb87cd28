"""The oracle of the exact forms: a spec's plan in stock torch layers, (B, C, H, W) contiguous, nothing fused.

Channel convolutions are stride-C Conv1d over the flattened tensor and spatial ones Conv1d with reflection padding, as
the paper describes them; in nets behind other stems 1x1 convolutions are Conv2d. The key names are those of
``models.build``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet_bench.memory import is_channel_conv
from onenet_bench.plan import Row, smallest
from onenet_bench.spec import NetSpec


class Channel(nn.Module):
    """A 1x1 convolution, read as a stride-C Conv1d over the flattened tensor."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(row.c_out, row.c_in, 1, 1))
        self.bias = nn.Parameter(torch.empty(row.c_out)) if row.bias else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.permute(0, 2, 3, 1).reshape(x.shape[0], 1, -1)  # (B, 1, H·W·C)
        flat = F.conv1d(flat, self.weight.flatten(1)[:, None], self.bias, stride=x.shape[1])  # (B, C', H·W)
        return flat.unflatten(-1, x.shape[-2:])


class Spatial(nn.Module):
    """Conv1d of k taps over the flattened tensor, reflection padding, without its ReLU."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(1, 1, row.kernel)), nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        side = self.weight.shape[-1] // 2
        flat = F.pad(x.permute(0, 2, 3, 1).reshape(b, 1, -1), (side, side), mode="reflect")
        return F.conv1d(flat, self.weight, self.bias).reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous()


LAYERS = {
    "conv": lambda row: nn.Conv2d(
        row.c_in, row.c_out, row.kernel, row.stride, (row.kernel - 1) // 2, 1, row.groups, row.bias
    ),
    "spatial": Spatial,
    "up": lambda row: nn.ConvTranspose2d(row.c_in, row.c_out, row.kernel, row.stride),
    "norm": lambda row: nn.BatchNorm2d(row.c_out),
    "linear": lambda row: nn.Linear(row.c_in, row.c_out),
}

MOVES = {
    "normalise": lambda row, x: (x - 0.45) / 0.225,
    "relu": lambda row, x: F.relu(x),
    "maxpool": lambda row, x: F.max_pool2d(x, row.kernel, row.stride, 1 if row.kernel > row.stride else 0),
    "unshuffle": lambda row, x: F.pixel_unshuffle(x, row.stride),
    "shuffle": lambda row, x: F.pixel_shuffle(x, row.stride),
    "concat": lambda row, x, other: torch.cat([x, other], 1),
    "add": lambda row, x, other: x + other,
}


class Reference(nn.Module):
    """Takes the state dict of ``models.build(spec)`` and gives the logits of all heads."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        lowered = smallest(spec)
        self.rows, self.output, self.heads = lowered.rows, lowered.output, lowered.heads
        self.last_read = {s: i for i, row in enumerate(self.rows) if row.runs for s in row.inputs}
        for row in self.rows:
            if row.op in LAYERS:
                *path, last = row.name.split(".")
                at: nn.Module = self
                for name in path:
                    if not hasattr(at, name):
                        at.add_module(name, nn.Module())
                    at = at.get_submodule(name)
                flat = spec.stem.kind == "onenet1d" and is_channel_conv(row)
                at.add_module(last, Channel(row) if flat else LAYERS[row.op](row))

    def forward(self, image: Tensor) -> Tensor:
        return self.run(image, {self.output})[self.output]

    def all_heads(self, image: Tensor) -> tuple[Tensor, ...]:
        made = self.run(image, {*self.heads})
        return tuple(made[head] for head in self.heads)

    def run(self, image: Tensor, wanted: set[int]) -> dict[int, Tensor]:
        made = {-1: image}
        for index, row in enumerate(self.rows):
            if not row.runs and index not in wanted:
                continue
            inputs = [made[source] for source in row.inputs]
            if row.op in LAYERS:
                made[index] = self.get_submodule(row.name)(inputs[0])
            else:
                made[index] = MOVES[row.op](row, *inputs)
            for source in set(row.inputs):
                if self.last_read[source] == index:
                    del made[source]
        return made
