"""A NetSpec as an ``nn.Module``: made from the plan's rows, and executed in their order.

The names in the state dict are the rows' names, e.g. ``encoder.1.channel_1.conv.weight``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet_bench.memory import is_channel_conv, is_heavy, taken_in
from onenet_bench.models.dense import dense_conv
from onenet_bench.models.fused import batch_norm, channel_conv, unshuffled_conv
from onenet_bench.models.layers import SpatialConv, channels_last, pixel_shuffle, pixel_unshuffle
from onenet_bench.plan import Plan, Row, check_resolution, smallest
from onenet_bench.spec import NetSpec

MEAN, DEVIATION = 0.45, 0.225
"""What an input in [0, 1] is normalised by (OneNet, §4.2)."""


MODULES: dict[str, Callable[[Row], nn.Module]] = {
    "conv": lambda row: nn.Conv2d(
        row.c_in,
        row.c_out,
        row.kernel,
        stride=row.stride,
        padding=(row.kernel - 1) // 2,
        groups=row.groups,
        bias=row.bias,
    ),
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


SHAPE_MOVERS: dict[str, Callable[[Tensor, int], Tensor]] = {"unshuffle": pixel_unshuffle, "shuffle": pixel_shuffle}
"""As they are on channels-last memory of a CPU."""


class UNet(nn.Module):
    """The net of ``spec``. Takes (B, C, H, W) in [0, 1], H and W multiples of ``spec.total_scale``; gives logits
    (B, classes, H / output_stride, W / output_stride). Raises SpecError for other sizes. ``heads`` names the rows that
    make logits, deepest first, that of ``forward`` last.

    Memory is channels-last throughout: a 1x1 convolution is then a matrix product, and the flattening of a spatial
    convolution is free. On a CPU rows are executed together where that is the same and faster (``fused``), and the
    modules of batch norms and 1x1 convolutions are read, not called. Everything is called, row by row, on other
    devices, where ``plain`` is set, where a module has a forward hook, and where the net is traced or compiled.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.plain = False
        self._plan = smallest(spec)  # layers know no resolution
        heads = self._plan.heads
        self.heads = tuple(self._plan.rows[index].name for index in heads)
        modules: dict[int, nn.Module] = {}
        for index, row in enumerate(self._plan.rows):
            if row.op in MODULES:
                modules[index] = MODULES[row.op](row)
                if row.op in ("conv", "up") and not is_heavy(row):
                    weight = modules[index].get_parameter("weight")
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
                _attach(self, row.name, modules[index])
        runs = [index for index, row in enumerate(self._plan.rows) if row.runs]
        self._steps = _steps(self._plan, runs, modules)
        self._steps_of_all_heads = _steps(self._plan, sorted({*runs, *heads}), modules)

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
        carry_out = _one_by_one if self._is_plain(image) else _together
        tensors = {-1: channels_last(image)}
        for step in steps:
            inputs = [tensors[source] for source in step.row.inputs]
            for source in step.dead:
                del tensors[source]
            tensors[step.at] = carry_out(step, inputs)
            del inputs
        return tensors

    def _is_plain(self, image: Tensor) -> bool:
        if self.plain or image.device.type != "cpu" or torch.compiler.is_compiling():
            return True
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return True
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.modules() if layer is not self)


class _Step(NamedTuple):
    """A row as it is executed: by itself, or with the rows before and behind it that it takes in."""

    at: int  # the row's index
    row: Row
    module: nn.Module | None
    dead: list[int]  # rows whose output nobody reads afterwards
    done: bool  # the ReLU of a spatial convolution, which has done it
    taken: bool  # the rows that read this one do it, or the one before has done it
    relu: bool  # does the ReLU behind it
    norm: nn.BatchNorm2d | None  # a 1x1 convolution that does the batch norm before it
    unshuffle: int  # a 1x1 convolution that does, in inference, the pixel-unshuffle before it: its scale, or 0


def _steps(lowered: Plan, indices: list[int], modules: dict[int, nn.Module]) -> list[_Step]:
    """The rows ``indices`` of a plan as steps."""
    rows = lowered.rows
    readers, taken = taken_in(rows, indices)
    steps = []
    for index in indices:
        row, source = rows[index], rows[index].inputs[0]
        before = rows[source] if is_channel_conv(row) and source in taken else None
        norm = modules[source] if before and before.op == "norm" else None
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        steps.append(
            _Step(
                at=index, row=row, module=modules.get(index),
                dead=[source for source in set(row.inputs) if max(readers[source]) == index],
                done=row.op == "relu" and rows[source].op == "spatial",
                taken=index in taken, norm=norm,
                relu=any(rows[at].op == "relu" and at in taken for at in readers[index]),
                unshuffle=before.stride if before and before.op == "unshuffle" else 0,
            )
        )  # fmt: skip
    return steps


def _one_by_one(step: _Step, inputs: list[Tensor]) -> Tensor:
    """Every row by itself, modules called."""
    if step.done:
        return inputs[0]
    if step.module is not None:
        out: Tensor = step.module(inputs[0])
        return out
    return ACTIONS[step.row.op](step.row, inputs)


def _together(step: _Step, inputs: list[Tensor]) -> Tensor:
    """On a CPU: rows that are taken in are left to their neighbours."""
    inference = not torch.is_grad_enabled()
    if step.taken and (step.row.op != "unshuffle" or inference):
        return inputs[0]
    if isinstance(step.module, nn.BatchNorm2d):
        return batch_norm(step.module, inputs[0], relu=step.relu)
    if isinstance(step.module, nn.Conv2d) and step.unshuffle and inference:
        return unshuffled_conv(step.module, inputs[0], step.unshuffle, relu=step.relu)
    if step.row.op in SHAPE_MOVERS:
        return SHAPE_MOVERS[step.row.op](inputs[0], step.row.stride)
    if isinstance(step.module, nn.Conv2d) and is_channel_conv(step.row):
        return channel_conv(step.module, inputs[0], relu=step.relu, norm=step.norm)
    autocast = torch.is_autocast_enabled("cpu")  # which has copies of its own
    if isinstance(step.module, nn.Conv2d | nn.ConvTranspose2d) and not autocast:
        return dense_conv(step.row, step.module, inputs[0])
    if step.module is not None:
        out: Tensor = step.module(inputs[0])
        return out
    return ACTIONS[step.row.op](step.row, inputs)


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
