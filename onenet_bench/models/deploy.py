"""The same function in fewer and cheaper layers, for inference: exact rewrites of a trained net.

What is rewritten, row by row of the plan (a batch norm in inference is a scale and a shift per channel, an *affine*):

- A norm right behind a convolution becomes part of it.
- A norm behind a ReLU, and the input's normalisation, become part of the next convolution, through pixel-unshuffles
  and concatenations, where that one pads nothing. Where any reader cannot take it in (a zero-padded convolution, whose
  border would change; max-pooling, which a negative scale does not commute with; a pixel-shuffle, behind which the
  affine is no longer one per channel; a transposed convolution, whose bias would be periodic), the affine stays, as a
  depthwise 1x1 convolution, the quickest form that onnxruntime has for it.
- The scale of a norm behind the ReLU of a convolution moves into that convolution, as far as it is a power of two: the
  results are the same to the bit, and the channels between are about as large as each other, which 8 bits need.
- unshuffle(s) and what follows, a 1x1 or a spatial convolution, become one convolution of kernel = stride = s.
- A spatial convolution becomes a 1x1 convolution in blocks of up to 64 channels, the taps a banded matrix: more
  multiply-adds in less time, for nothing is flattened. The taps that reach over into the neighbouring block or position
  read k//2 planes per side of a block, which lie beyond it in the flattened tensor, mirrored at the image's two ends.
  An affine before it is taken into both; that of mirrored values is another one, so the planes get theirs first.
- Heads that never run, and the classifier, are dropped.

1x1, ReLU, norm, pixel-shuffle does not become a transposed convolution: the norm stands between.

The outcome is a Plan again, of the same rows and two more kinds, ``edges`` and ``beyond``, so that
``costs.count_plan`` counts it; ``strips`` turns it into another one.
B batch, C channels, H height, W width, s scale, k taps, p = k//2, N = H·W positions, m blocks of d = C/m channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet_bench.errors import SpecError
from onenet_bench.models import unet
from onenet_bench.models.strips import in_strips
from onenet_bench.models.unet import DEVIATION, MEAN, UNet
from onenet_bench.plan import Plan, Row, check_resolution, plan, smallest
from onenet_bench.spec import NetSpec

BLOCK = 64
"""Channels of a banded block, at most. In onnxruntime 32 are a little quicker in float32, and slower in int8."""

LANES = 16
"""Channels that onnxruntime's convolutions work on at a time."""


class Rewrite(NamedTuple):
    """A trained plan, what becomes of it, and why."""

    trained: Plan
    deployed: Plan
    origins: tuple[int, ...]  # of every deployed row, the trained row that it does
    parts: tuple[str, ...]  # and which part of that: "" = all of it
    behind: Mapping[int, int]  # convolution → the norm behind it that it takes in
    ahead: frozenset[int]  # norms and normalisations that the next convolutions take in
    levelled: Mapping[int, int]  # convolution → the norm behind its ReLU whose scale it takes in


def rewrite(trained: Plan) -> Rewrite:
    """What ``trained`` becomes. Knows no weights: what it decides is right for all of them."""
    rows = trained.rows
    alive = _alive(trained)
    readers: dict[int, list[int]] = {index: [] for index in (-1, *alive)}
    for index in alive:
        for source in rows[index].inputs:
            readers[source].append(index)

    def is_banded(index: int) -> bool:
        return bool(_blocks(rows[index], rows))

    def takes_affine(index: int) -> bool:
        row = rows[index]
        if row.op in ("unshuffle", "concat"):
            return all(takes_affine(reader) for reader in readers[index])
        return (row.op == "conv" and not padding(row)) or is_banded(index)

    def takes_unshuffle(index: int) -> bool:
        row = rows[index]
        return (row.op == "conv" and row.kernel == row.stride == row.groups == 1) or is_banded(index)

    def follows_relu(norm: int) -> bool:
        relu = rows[norm].inputs[0]
        conv = rows[relu].inputs[0]
        alone = readers[conv] == [relu] and readers[relu] == [norm]
        return alone and (rows[conv].op, rows[relu].op) == ("conv", "relu")

    merged = frozenset(i for i in alive if rows[i].op == "unshuffle" and all(map(takes_unshuffle, readers[i])))
    behind = {
        rows[i].inputs[0]: i for i in alive
        if rows[i].op == "norm" and rows[rows[i].inputs[0]].op == "conv" and readers[rows[i].inputs[0]] == [i]
    }  # fmt: skip
    ahead = frozenset(
        i for i in alive
        if rows[i].op in ("norm", "normalise") and i not in behind.values() and all(map(takes_affine, readers[i]))
    )  # fmt: skip
    levelled = {rows[rows[i].inputs[0]].inputs[0]: i for i in alive if rows[i].op == "norm" and follows_relu(i)}
    out = _Rows()
    at = {-1: -1}  # trained row → the deployed row that holds its tensor
    for index in alive:
        row = rows[index]
        source = row.inputs[0]
        pending = _is_pending(rows, ahead, source)
        like, step = row, 1  # a row of the sizes that are really read, and the pixel-unshuffle between
        if source in merged:
            before = rows[source]
            source, step = before.inputs[0], before.stride
            like = row._replace(c_in=before.c_in, h_in=before.h_in, w_in=before.w_in)
        if index in merged or index in ahead or index in behind.values():
            at[index] = at[source]
        elif row.op in ("norm", "normalise"):
            at[index] = out.add(_depthwise_row(row, row.name, at[source]), index)
        elif row.op == "conv":
            kernel, stride = (step, step) if step > 1 else (row.kernel, row.stride)
            biased = row.bias or index in behind or pending
            conv = _conv_row(like, row.name, at[source], row.c_out, kernel, stride, row.groups, biased)
            at[index] = out.add(conv, index)
        elif is_banded(index):
            at[index] = _add_banded(out, index, row, like, at[source], step, _blocks(row, rows), pending)
        else:
            at[index] = out.add(row._replace(inputs=tuple(at[s] for s in row.inputs)), index)
    deployed = Plan(trained.spec, trained.shape, tuple(out.rows), at[trained.output], deployed=True)
    return Rewrite(trained, deployed, tuple(out.origins), tuple(out.parts), behind, ahead, levelled)


def deployed_plan(spec: NetSpec, shape: tuple[int, int, int]) -> Plan:
    """The plan of the net that ``simplify`` makes, for an input of ``shape`` = (channels, height, width).

    Its output equals that of ``plan(spec, shape)`` for the same weights. Raises SpecError as that does.
    """
    return rewrite(plan(spec, shape)).deployed


def padding(row: Row) -> int:
    """Zeros on every side of a convolution's input. None where kernel = stride."""
    return (row.kernel - 1) // 2 if row.kernel > row.stride else 0


class _Rows:
    """Deployed rows so far, each with its origin."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.origins: list[int] = []
        self.parts: list[str] = []

    def add(self, row: Row, origin: int, part: str = "") -> int:
        self.rows.append(row)
        self.origins.append(origin)
        self.parts.append(part)
        return len(self.rows) - 1


def _conv_row(
    like: Row, name: str, source: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True
) -> Row:
    """A convolution that reads and makes tensors of the sizes of ``like``."""
    weights = channels * (like.c_in // groups) * kernel * kernel
    return like._replace(
        name=name, op="conv", inputs=(source,), c_out=channels, kernel=kernel, stride=stride, groups=groups, bias=bias,
        parameters=weights + channels * bias, macs=weights * like.h_out * like.w_out,
    )  # fmt: skip


def _depthwise_row(like: Row, name: str, source: int) -> Row:
    """An affine."""
    return _conv_row(like, name, source, like.c_in, 1, groups=like.c_in)


def _blocks(row: Row, rows: tuple[Row, ...]) -> int:
    """In how many blocks a spatial convolution runs in banded form; 0 where it does not, as all other rows."""
    p = row.kernel // 2
    if row.op != "spatial" or p == 0:
        return 0
    step = rows[row.inputs[0]].stride ** 2 if rows[row.inputs[0]].op == "unshuffle" else 1  # stays in one block
    widths = [row.c_in] if row.c_in <= BLOCK else range(BLOCK, BLOCK // 2 - 1, -1)
    return next((row.c_in // d for d in widths if d > p and row.c_in % d == 0 and d % step == 0), 0)


def _add_banded(
    out: _Rows, index: int, row: Row, like: Row, source: int, step: int, blocks: int, pending: bool
) -> int:  # fmt: skip
    """The rows of a spatial convolution in banded form: two convolutions, of the tensor and of what lies beyond."""
    bare = row._replace(kernel=0, bias=False, parameters=0, macs=0, groups=blocks)
    planes = 2 * blocks * (row.kernel // 2)
    seen = planes + 2 * blocks
    edge = out.add(
        bare._replace(
            name=f"{row.name}.edges", op="edges", inputs=(source,), c_in=like.c_in, h_in=like.h_in, w_in=like.w_in,
            c_out=seen, stride=step,
        ), index,
    )  # fmt: skip
    if pending:
        edge = out.add(_depthwise_row(row._replace(c_in=seen), f"{row.name}.affine", edge), index, "affine")
    edge = out.add(
        bare._replace(name=f"{row.name}.beyond", op="beyond", inputs=(edge,), c_in=seen, c_out=planes), index
    )
    groups = _across_groups(blocks, row.kernel)
    across = _conv_row(
        row._replace(c_in=planes), f"{row.name}.across", edge, row.c_out, 1, groups=groups, bias=False
    )  # fmt: skip
    band = _conv_row(like, row.name, source, row.c_out, step, step, blocks)
    parts = out.add(band, index, "band"), out.add(across, index, "across")
    return out.add(bare._replace(name=f"{row.name}.add", op="add", inputs=parts, groups=1), index)


def _across_groups(blocks: int, kernel: int) -> int:
    """In how many groups the planes beyond the blocks are convolved: the most whose planes fill vectors, or one."""
    planes = 2 * (kernel // 2)
    return next((g for g in range(blocks, 0, -1) if blocks % g == 0 and blocks // g * planes % LANES == 0), 1)


def _alive(lowered: Plan) -> list[int]:
    """The rows that the logits depend on, in order of execution."""
    wanted = {lowered.output}
    for index in range(lowered.output, -1, -1):
        if index in wanted:
            wanted.update(source for source in lowered.rows[index].inputs if source >= 0)
    return sorted(wanted)


def _is_pending(rows: tuple[Row, ...], ahead: frozenset[int], index: int) -> bool:
    """Whether the deployed tensor of a trained row still lacks an affine."""
    if index < 0:
        return False
    if rows[index].op in ("unshuffle", "concat"):
        return any(_is_pending(rows, ahead, source) for source in rows[index].inputs)
    return index in ahead


# Weights ---------------------------------------------------------------------------------------------------

Affine = tuple[Tensor, Tensor]
"""Scale and shift, (C,) each."""


class _Weights:
    """The weights of deployed rows, computed in float64 from those of the trained ones."""

    def __init__(self, rewritten: Rewrite, state: Mapping[str, Tensor]) -> None:
        self.of = rewritten
        self.state = {name: value.double() for name, value in state.items() if value.is_floating_point()}

    def affine(self, index: int) -> Affine:
        """What is left to do of a norm or a normalisation."""
        row = self.of.trained.rows[index]
        if row.op == "normalise":
            some = next(iter(self.state.values()))
            return some.new_full((row.c_out,), 1 / DEVIATION), some.new_full((row.c_out,), -MEAN / DEVIATION)
        scale, shift = self._norm(index)
        return (scale / self.level(index) if index in self.of.levelled.values() else scale), shift

    def level(self, norm: int) -> Tensor:
        """What the convolution before a norm's ReLU makes more of: the powers of two nearest to the norm's scale."""
        size = self._norm(norm)[0].abs()
        return torch.where(size > 0, size, 1.0).log2().round().exp2()

    def _norm(self, index: int) -> Affine:
        weight, bias, mean, variance = (
            self.state[f"{self.of.trained.rows[index].name}.{field}"]
            for field in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / torch.sqrt(variance + nn.BatchNorm2d(1).eps)
        return scale, bias - mean * scale

    def pending(self, index: int) -> Affine | None:
        """The affine that the deployed tensor of a trained row still lacks."""
        trained, ahead = self.of.trained, self.of.ahead
        if index < 0 or not _is_pending(trained.rows, ahead, index):
            return None
        row = trained.rows[index]
        if row.op == "unshuffle":
            scale, shift = self.pending(row.inputs[0]) or _nothing(row.c_in, self.state)
            return scale.repeat_interleave(row.stride**2), shift.repeat_interleave(row.stride**2)
        if row.op == "concat":
            sources = [self.pending(s) or _nothing(trained.rows[s].c_out, self.state) for s in row.inputs]
            return torch.cat([scale for scale, _ in sources]), torch.cat([shift for _, shift in sources])
        return self.affine(index)

    def deployed(self, at: int) -> dict[str, Tensor]:
        """Weight and bias of a deployed row."""
        row, origin, part = self.of.deployed.rows[at], self.of.origins[at], self.of.parts[at]
        trained = self.of.trained.rows[origin]
        if trained.op in ("norm", "normalise"):
            return _depthwise(self.affine(origin))
        weight = self.state[f"{trained.name}.weight"]
        bias = self.state.get(f"{trained.name}.bias")
        pending = self.pending(trained.inputs[0])
        if part:
            return self._banded(row, trained, part, weight.flatten(), bias, pending)
        if trained.op == "conv":
            bias = weight.new_zeros(trained.c_out) if bias is None else bias
            if pending:
                weight, bias = _take_in(weight, bias, pending, trained.groups)
            if origin in self.of.behind:
                scale, shift = self.affine(self.of.behind[origin])
                weight, bias = weight * scale[:, None, None, None], bias * scale + shift
            if origin in self.of.levelled:
                level = self.level(self.of.levelled[origin])
                weight, bias = weight * level[:, None, None, None], bias * level
            weight = weight.reshape(row.c_out, row.c_in // row.groups, row.kernel, row.kernel)
        return {"weight": weight, "bias": bias} if row.bias and bias is not None else {"weight": weight}

    def _banded(
        self, row: Row, trained: Row, part: str, taps: Tensor, bias: Tensor | None, pending: Affine | None
    ) -> dict[str, Tensor]:  # fmt: skip
        """Parts of a spatial convolution in banded form."""
        k, p, c = trained.kernel, trained.kernel // 2, trained.c_in
        m = _blocks(trained, self.of.trained.rows)
        d = c // m
        if part == "affine":
            assert pending
            seen = [g * d + i for g in range(m) for i in (*range(p + 1), *range(d - 1 - p, d))]
            return _depthwise((pending[0][seen], pending[1][seen]))
        made = torch.arange(d)[:, None]  # (d, 1): the channel of a block that is made
        read = torch.arange(d) if part == "band" else torch.cat([torch.arange(-p, 0), torch.arange(d, d + p)])
        tap = (read - made + p).to(taps.device)  # (d, d) or (d, 2p)
        block = torch.where((tap >= 0) & (tap < k), taps[tap.clamp(0, k - 1)], 0)
        if part == "across":
            alike = m // row.groups  # blocks of a group
            across = torch.kron(torch.eye(alike).to(block), block)  # (d·alike, 2p·alike)
            return {"weight": across.repeat(row.groups, 1)[:, :, None, None]}  # (C, 2p·alike, 1, 1)
        assert bias is not None
        weight, bias = block.repeat(m, 1)[:, :, None, None], bias.expand(c)  # (C, d, 1, 1)
        if pending:
            weight, bias = _take_in(weight, bias, pending, m)
        return {"weight": weight.reshape(c, row.c_in // m, row.kernel, row.kernel), "bias": bias}


def _nothing(channels: int, state: Mapping[str, Tensor]) -> Affine:
    """The affine that changes nothing."""
    some = next(iter(state.values()))
    return some.new_ones(channels), some.new_zeros(channels)


def _depthwise(affine: Affine) -> dict[str, Tensor]:
    return {"weight": affine[0].reshape(-1, 1, 1, 1), "bias": affine[1]}


def _take_in(weight: Tensor, bias: Tensor, affine: Affine, groups: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without padding that gets x in place of scale·x + shift.

    ``weight`` is (out, in / groups, k, k).
    """
    scale, shift = (value.reshape(groups, 1, -1, 1, 1) for value in affine)  # (g, 1, in / g, 1, 1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # (g, out / g, in / g, k, k)
    bias = bias + (grouped * shift).sum((2, 3, 4)).reshape(-1)
    return (grouped * scale).reshape(weight.shape), bias


# Execution -------------------------------------------------------------------------------------------------


class Taps(nn.Module):
    """A spatial convolution as it is defined: over (B, 1, N·C), the channel running fastest, mirrored at both ends."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        side = self.weight.shape[-1] // 2
        flat = x.permute(0, 2, 3, 1).reshape(-1, 1, h * w * c)  # (B, 1, N·C)
        flat = F.pad(flat, (side, side), mode="reflect")  # (B, 1, N·C + k - 1)
        flat = F.conv1d(flat, self.weight, self.bias)  # (B, 1, N·C)
        return flat.reshape(-1, h, w, c).permute(0, 3, 1, 2)  # (B, C, H, W)


MODULES: dict[str, Callable[[Row], nn.Module]] = {
    "conv": lambda row: nn.Conv2d(
        row.c_in, row.c_out, row.kernel, stride=row.stride, padding=padding(row), groups=row.groups, bias=row.bias
    ),
    "spatial": lambda row: Taps(row.kernel),
    "up": lambda row: nn.ConvTranspose2d(row.c_in, row.c_out, row.kernel, stride=row.stride),
    "norm": lambda row: nn.BatchNorm2d(row.c_out),
}
"""Rows with weights, as stock layers on (B, C, H, W)."""


def _edges(row: Row, x: Tensor) -> Tensor:
    """The first and the last p + 1 channels of every block of what a pixel-unshuffle by the stride makes of ``x``."""
    m, scale = row.groups, row.stride
    number = row.c_out // m // 2
    sources = -(-number // scale**2)  # whole channels before the unshuffle
    blocks = x.reshape(-1, m, row.c_in // m, *x.shape[2:])
    first, last = blocks[:, :, :sources], blocks[:, :, row.c_in // m - sources :]
    if scale > 1:
        first, last = F.pixel_unshuffle(first, scale), F.pixel_unshuffle(last, scale)
    both = torch.cat([first[:, :, :number], last[:, :, last.shape[2] - number :]], dim=2)  # (B, m, 2p + 2, H, W)
    return both.flatten(1, 2)  # (B, m·(2p + 2), H, W)


def _beyond(row: Row, x: Tensor) -> Tensor:
    """Of every block's first and last p + 1 channels: the p before the block and the p after it, flattened.

    Before the first block lies the last one of the position before, and at the first position the mirrored beginning
    of the tensor; so at the end.
    """
    m = row.groups
    p = row.c_out // m // 2
    blocks = x.reshape(-1, m, 2, p + 1, x.shape[2] * x.shape[3])
    first, last = blocks[:, :, 0], blocks[:, :, 1]  # (B, m, p + 1, N)
    before = torch.cat([first[:, :1, 1:, :1].flip(2), last[:, m - 1 :, 1:, :-1]], dim=3)  # (B, 1, p, N)
    after = torch.cat([first[:, :1, :p, 1:], last[:, m - 1 :, :p, -1:].flip(2)], dim=3)  # (B, 1, p, N)
    if m > 1:
        before, after = torch.cat([before, last[:, :-1, 1:]], dim=1), torch.cat([first[:, 1:, :p], after], dim=1)
    return torch.cat([before, after], dim=2).reshape(-1, 2 * p * m, *x.shape[2:])  # (B, 2p·m, H, W)


MOVES: dict[str, Callable[[Row, Tensor], Tensor]] = {
    "edges": _edges,
    "beyond": _beyond,
    "strip": lambda row, x: x.narrow(2, row.kernel * row.h_out, row.h_out).clone(),
}
"""Rows of one input that only a deployed plan has; beside them stands ``stack``, of several."""

ACTIONS: dict[str, Callable[[Row, list[Tensor]], Tensor]] = {
    **unet.ACTIONS,
    "normalise": lambda row, x: (x[0] - MEAN) / DEVIATION,
    "stack": lambda row, x: torch.cat(x, dim=2),
    **{op: lambda row, x, move=move: move(row, x[0]) for op, move in MOVES.items()},  # type: ignore[misc]
}
"""Rows without weights."""


class Graph(nn.Module):
    """The rows that lead to a plan's logits, executed one by one on plain (B, C, H, W) memory; for inference alone.

    Takes images in [0, 1] and gives logits as ``UNet`` does, H and W multiples of the spec's total scale; raises
    SpecError for other sizes. Every layer is a stock one, so that it exports to other runtimes as it stands.
    """

    def __init__(self, lowered: Plan) -> None:
        super().__init__()
        self.plan = lowered
        alive = _alive(lowered)
        self._height = lowered.shape[1] if any(lowered.rows[index].op == "strip" for index in alive) else None
        last_read = {source: index for index in alive for source in lowered.rows[index].inputs}
        self._steps: list[tuple[int, Row, str, list[int]]] = []  # index, row, module's name, rows not read again
        for index in alive:
            row = lowered.rows[index]
            name = row.name.replace(".", "_") if row.op in MODULES else ""
            if name and name not in self._modules:
                self.add_module(name, MODULES[row.op](row))
            dead = [source for source in set(row.inputs) if last_read[source] == index]
            self._steps.append((index, row, name, dead))
        self.eval().requires_grad_(False)

    def layers(self) -> list[tuple[int, Row, nn.Module]]:
        """Index, row and module of the rows with weights."""
        return [(index, row, self.get_submodule(name)) for index, row, name, _ in self._steps if name]

    def in_strips(self, shape: tuple[int, int, int]) -> Graph:
        """This simplified graph for images of ``shape`` = (C, H, W), in strips where that pays; weights are shared."""
        graph = Graph(in_strips(deployed_plan(self.plan.spec, shape)))
        graph.load_state_dict(self.state_dict(), assign=True)
        return graph

    def forward(self, image: Tensor) -> Tensor:
        check_resolution(self.plan.spec, *image.shape[-2:])
        if self._height not in (None, image.shape[-2]):
            raise SpecError(
                f"a net in strips takes images of the height it was cut for, {self._height}, but got "
                f"{image.shape[-2]}; cut the simplified net for that"
            )
        tensors = {-1: image}
        for index, row, name, dead in self._steps:
            inputs = [tensors[source] for source in row.inputs]
            for source in dead:
                del tensors[source]
            tensors[index] = self.get_submodule(name)(inputs[0]) if name else ACTIONS[row.op](row, inputs)
            del inputs
        return tensors[self.plan.output]


def plain(net: UNet) -> Graph:
    """``net`` as it was trained and as the paper writes it, in stock layers: nothing folded or merged."""
    state = net.state_dict()
    return _filled(
        net, smallest(net.spec), lambda _, row, fields: {field: state[f"{row.name}.{field}"] for field in fields}
    )


def simplify(net: UNet) -> Graph:
    """``net`` for inference: the rewrites of this file, with the running statistics that ``net`` has now.

    Equal to ``net.eval()`` up to rounding. Weights are computed in float64 and have the net's type and device.
    """
    rewritten = rewrite(smallest(net.spec))
    weights = _Weights(rewritten, net.state_dict())
    return _filled(net, rewritten.deployed, lambda at, *_: weights.deployed(at))


def _filled(net: UNet, lowered: Plan, weights: Callable[[int, Row, list[str]], Mapping[str, Tensor]]) -> Graph:
    """The graph of ``lowered``, its weights what ``weights`` says for a row's index, the row and its fields."""
    some = next(net.parameters())
    graph = Graph(lowered).to(device=some.device, dtype=some.dtype)
    for at, row, module in graph.layers():
        module.load_state_dict(weights(at, row, list(module.state_dict())))
    return graph
