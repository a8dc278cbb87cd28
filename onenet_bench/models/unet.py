"""A NetSpec as an ``nn.Module``: made from the plan's rows, and executed in their order.

The names in the state dict are the rows' names, e.g. ``encoder.1.channel_1.conv.weight``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet_bench.models.layers import SpatialConv, channel_conv, channels_last
from onenet_bench.plan import Row, check_resolution, plan
from onenet_bench.spec import NetSpec

MEAN, DEVIATION = 0.45, 0.225
"""What an input in [0, 1] is normalised by (OneNet, §4.2)."""


def _conv(row: Row) -> nn.Module:
    padding = (row.kernel - 1) // 2 if row.stride == 1 or row.kernel > 1 else 0
    return nn.Conv2d(
        row.c_in, row.c_out, row.kernel, stride=row.stride, padding=padding, groups=row.groups, bias=row.bias
    )


MODULES: dict[str, Callable[[Row], nn.Module]] = {
    "conv": _conv,
    "spatial": lambda row: SpatialConv(row.kernel),
    "up": lambda row: nn.ConvTranspose2d(row.c_in, row.c_out, row.kernel, stride=row.stride),
    "norm": lambda row: nn.BatchNorm2d(row.c_out),
    "linear": lambda row: nn.Linear(row.c_in, row.c_out),
}
"""Rows with weights."""

ACTIONS: dict[str, Callable[[Row, list[Tensor]], Tensor]] = {
    "normalise": lambda row, x: (x[0] - MEAN).div_(DEVIATION),
    "relu": lambda row, x: F.relu(x[0], inplace=True),  # what makes a ReLU's input never reads it again
    "maxpool": lambda row, x: F.max_pool2d(x[0], row.kernel, row.stride, padding=int(row.kernel > row.stride)),
    "unshuffle": lambda row, x: F.pixel_unshuffle(x[0], row.stride),
    "shuffle": lambda row, x: F.pixel_shuffle(x[0], row.stride),
    "concat": lambda row, x: torch.cat(x, dim=1),
    "add": lambda row, x: x[0].add_(x[1]),
}
"""Rows without weights."""


class UNet(nn.Module):
    """The net of ``spec``. Takes (B, C, H, W) in [0, 1], H and W multiples of ``spec.total_scale``; gives logits
    (B, classes, H / output_stride, W / output_stride). Raises SpecError for other sizes. ``heads`` names the rows that
    make logits, deepest first, that of ``forward`` last.

    Memory is channels-last throughout: a 1x1 convolution is then a matrix product, and the flattening of a spatial
    convolution is free.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self._plan = plan(spec, (spec.in_channels, spec.total_scale, spec.total_scale))  # layers know no resolution
        last_read = {source: i for i, row in enumerate(self._plan.rows) if row.runs for source in row.inputs}
        heads = self._plan.heads
        self.heads = tuple(self._plan.rows[index].name for index in heads)
        steps: list[_Step] = []
        for index, row in enumerate(self._plan.rows):
            module = MODULES[row.op](row) if row.op in MODULES else None
            if module is not None:
                if row.op in ("conv", "up"):
                    weight = module.get_parameter("weight")
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
                _attach(self, row.name, module)
            if row.runs or index in heads:
                dead = [source for source in set(row.inputs) if last_read[source] == index]
                before = self._plan.rows[row.inputs[0]]
                done = row.op == "relu" and (before.op == "spatial" or _is_channel_conv(before))
                if done and before.op == "conv":
                    steps[-1] = steps[-1]._replace(relu=True)
                steps.append(_Step(index, row, module, dead, done, False))
        self._steps_of_all_heads = steps
        self._steps = [step for step in steps if step.row.runs]

    def forward(self, image: Tensor) -> Tensor:
        return self._run(self._steps, image)[self._plan.output]

    def all_heads(self, image: Tensor) -> tuple[Tensor, ...]:
        """The logits of every head that the net has, in the order of ``heads``, each at its own level's size.

        (B, classes, h, w) each; the last is what ``forward`` gives. A net whose spec says ``heads="top"`` has one.
        """
        tensors = self._run(self._steps_of_all_heads, image)
        return tuple(tensors[index] for index in self._plan.heads)

    def _run(self, steps: list[_Step], image: Tensor) -> dict[int, Tensor]:
        """Execute ``steps``. What is left is what no step reads, by row: the logits."""
        check_resolution(self.spec, *image.shape[-2:])
        tensors = {-1: channels_last(image)}
        for index, row, module, dead, done, relu in steps:
            inputs = [tensors[source] for source in row.inputs]
            for source in dead:
                del tensors[source]
            if done:
                tensors[index] = inputs[0]
            elif module is not None and _is_channel_conv(row):
                tensors[index] = channel_conv(module, inputs[0], relu=relu)
            elif module is not None:
                tensors[index] = module(inputs[0])
            else:
                tensors[index] = ACTIONS[row.op](row, inputs)
            del inputs
        return tensors


class _Step(NamedTuple):
    """A row as it is executed."""

    at: int  # the row's index
    row: Row
    module: nn.Module | None
    dead: list[int]  # rows whose output nobody reads afterwards
    done: bool  # a ReLU that the step before it did
    relu: bool  # a 1x1 convolution that does the ReLU behind it


def _is_channel_conv(row: Row) -> bool:
    return row.op == "conv" and row.kernel == row.stride == row.groups == 1


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(name, module)


def build(spec: NetSpec) -> UNet:
    """The module of ``spec``, with torch's default initialisation, drawn from the global generator."""
    return UNet(spec)
