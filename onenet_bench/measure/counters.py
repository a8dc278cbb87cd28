"""What independent counters say about a net, and why each of them says so.

No two of them count the same things. Each row of ``COUNTERS`` therefore names, beside the function that runs the
counter, what it adds to the multiply-adds and what it leaves out, as a sum over the plan's rows. What is left of its
number after that, ``Count.unexplained``, is 0.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from onenet_bench import models
from onenet_bench.costs import count_plan
from onenet_bench.models.layers import SpatialConv
from onenet_bench.models.unet import MODULES
from onenet_bench.plan import Plan, Row, plan
from onenet_bench.spec import NetSpec

if TYPE_CHECKING:
    from rich.table import Table


class Reading(NamedTuple):
    """A counter's number for one image, and the operators it met and could not count."""

    number: int
    uncounted: tuple[str, ...]


class Counter(NamedTuple):
    """A counter. ``read`` runs it on a net that is then thrown away, and on an image of ``device``; the plan is for
    counters that do not tell what they pass over. ``terms`` are what a row of the plan adds to the number beside
    ``per_mac`` for each of its multiply-adds."""

    read: Callable[[nn.Module, Tensor, Plan], Reading]
    convention: str
    device: str = "meta"
    per_mac: int = 1
    terms: Mapping[str, Callable[[Row], int]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """One counter's number, taken apart: ``number == per_mac * macs + sum(terms) + unexplained``."""

    counter: str
    convention: str
    number: int
    per_mac: int
    macs: int
    """The exact multiply-adds, from the plan."""
    terms: Mapping[str, int]
    """What the counter counts beside them or differently, by name; those of 0 are left out."""
    uncounted: tuple[str, ...]
    """Operators that ran and that the counter could not count."""

    @property
    def unexplained(self) -> int:
        """What neither the multiply-adds nor the terms account for."""
        return self.number - self.per_mac * self.macs - sum(self.terms.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The counts of all counters, for one image of ``resolution`` = (height, width) pixels."""

    resolution: tuple[int, int]
    macs: int
    counts: tuple[Count, ...]
    failures: Mapping[str, str]
    """Counters that gave no number, and why: not installed, or an error of theirs."""

    @property
    def agrees(self) -> bool:
        """Whether there is a number and nothing about any is unexplained."""
        return bool(self.counts) and not any(count.unexplained for count in self.counts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "resolution": list(self.resolution),
            "macs": self.macs,
            "agrees": self.agrees,
            "counts": [
                {**asdict(count), "uncounted": list(count.uncounted), "unexplained": count.unexplained}
                for count in self.counts
            ],
            "failures": dict(self.failures),
        }


def verify(spec: NetSpec, resolution: int | tuple[int, int]) -> Verification:
    """Let every counter count ``spec`` for one image of ``resolution`` pixels (side, or height and width).

    Raises SpecError where the resolution does not fit the net. Nothing is drawn from torch's random generators.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    lowered = plan(spec, (spec.in_channels, height, width))
    macs = count_plan(lowered).macs
    counts, failures = [], {}
    for name, counter in COUNTERS.items():
        net = net_to_count(spec, counter.device)
        image = torch.zeros(1, *lowered.shape, device=counter.device)  # (1, C, H, W)
        try:
            with torch.no_grad(), plain_spatial(net):
                reading = counter.read(net, image, lowered)
        except Exception as error:  # noqa: BLE001  (foreign code may raise anything)
            failures[name] = f"{type(error).__name__}: {error}"
            continue
        sums = {term: sum(of(row) for row in lowered.rows if row.runs) for term, of in counter.terms.items()}
        counts.append(
            Count(
                counter=name,
                convention=counter.convention,
                number=reading.number,
                per_mac=counter.per_mac,
                macs=macs,
                terms={term: value for term, value in sums.items() if value},
                uncounted=reading.uncounted,
            )
        )
    return Verification(resolution=(height, width), macs=macs, counts=tuple(counts), failures=failures)


def net_to_count(spec: NetSpec, device: str) -> models.UNet:
    """The net of ``spec`` in evaluation mode, with weights of 0 where the device holds values."""
    with torch.device("meta"):
        net = models.build(spec).eval()
    if device != "meta":
        net.to_empty(device=device)
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.zero_()
    return net


@contextlib.contextmanager
def plain_spatial(net: nn.Module) -> Iterator[None]:
    """Let ``net`` run row by row and its spatial convolutions in their plain form: the operators of the banded one,
    which makes the same sums faster, are not the net's multiply-adds."""
    before = {module: module.banded for module in net.modules() if isinstance(module, SpatialConv)}
    whole = {module: module.plain for module in net.modules() if isinstance(module, models.UNet)}
    for module in before:
        module.banded = False
    for whole_net in whole:
        whole_net.plain = True
    try:
        yield
    finally:
        for module, banded in before.items():
            module.banded = banded
        for whole_net, plain in whole.items():
            whole_net.plain = plain


# The counters --------------------------------------------------------------------------------------------


def _fvcore(net: nn.Module, image: Tensor, lowered: Plan) -> Reading:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(net, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return Reading(int(analysis.total()), tuple(sorted(analysis.unsupported_ops())))


def _ptflops(net: nn.Module, image: Tensor, backend: str) -> Reading:
    """``uncounted`` is what ptflops warns of; it catches its own errors, prints them and returns None."""
    import torch._dynamo  # noqa: F401  (torch would at its first meta tensor, and fail on ptflops' patches)
    from ptflops import get_model_complexity_info

    warnings, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        number, _ = get_model_complexity_info(
            net, tuple(image.shape[1:]), print_per_layer_stat=False, as_strings=False, ost=warnings, verbose=True,
            backend=backend,
        )  # fmt: skip
    if number is None:
        raise RuntimeError(said.getvalue().strip().splitlines()[-1])
    return Reading(int(number), tuple(sorted(set(re.findall(r"Warning: (?:module )?(\S+) ", warnings.getvalue())))))


def _ptflops_pytorch(net: nn.Module, image: Tensor, lowered: Plan) -> Reading:
    number, warned = _ptflops(net, image, "pytorch")
    weighted = {type(module).__name__ for module in net.modules() if list(module.parameters(recurse=False))}
    unseen = _run(lowered) - MODULES.keys() - {"relu", "maxpool"}  # whose functional forms it replaces by its own
    return Reading(number, tuple(sorted(weighted.intersection(warned) | unseen)))


def _ptflops_aten(net: nn.Module, image: Tensor, lowered: Plan) -> Reading:
    number, warned = _ptflops(net, image, "aten")
    return Reading(number, tuple(name for name in warned if name not in ADDRESSING))


def _torchinfo(net: nn.Module, image: Tensor, lowered: Plan) -> Reading:
    from torchinfo import summary

    found = summary(net, input_data=image, device=image.device, verbose=0)
    return Reading(int(found.total_mult_adds), tuple(sorted(_run(lowered) - MODULES.keys())))


def _flop_counter(net: nn.Module, image: Tensor, lowered: Plan) -> Reading:
    with _Operators() as operators, FlopCounterMode(display=False) as counter:
        net(image)
    passed_over = {str(packet) for packet in operators.seen if packet not in flop_registry}
    return Reading(counter.get_total_flops(), tuple(sorted(passed_over - ADDRESSING)))


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down which operators ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket)
        return func(*args, **(kwargs or {}))


def _run(lowered: Plan) -> set[str]:
    """The operators of the plan that run."""
    return {row.op for row in lowered.rows if row.runs}


ADDRESSING = frozenset({"aten._unsafe_view", "aten.clone", "aten.empty", "aten.permute", "aten.view"})
"""Operators that find or copy memory: there is nothing to count."""


# What they count beside multiply-adds --------------------------------------------------------------------


def _of(*ops: str) -> Callable[[Callable[[Row], int]], Callable[[Row], int]]:
    """A term that only rows of these operators have."""
    return lambda value: lambda row: value(row) if row.op in ops else 0


COUNTERS: dict[str, Counter] = {
    "fvcore": Counter(
        _fvcore,
        "one per multiply-add of the traced graph, and batch norms; biases, ReLU and pooling are free",
        device="cpu",  # its tracing needs values
        terms={"batch norm, 2 per element": _of("norm")(lambda row: 2 * row.elements)},
    ),
    "ptflops_pytorch": Counter(
        _ptflops_pytorch,
        "one per multiply-add of the module classes it knows, with biases, batch norms, ReLU and pooling",
        terms={
            "spatial convolutions, a class it does not know": _of("spatial")(lambda row: -row.macs),
            "bias, 1 per output element": _of("conv", "up")(lambda row: row.bias * row.elements),
            "batch norm, 2 per element": _of("norm")(lambda row: 2 * row.elements),
            "ReLU, 1 per element": _of("relu")(lambda row: row.elements),
            "max pooling, 1 per input element": _of("maxpool")(lambda row: row.c_in * row.h_in * row.w_in),
        },
    ),
    "ptflops_aten": Counter(
        _ptflops_aten,
        "one per multiply-add of the operators that run, with biases; batch norms, ReLU and pooling are free",
        terms={"bias, 1 per output element": _of("conv", "up", "spatial")(lambda row: row.bias * row.elements)},
    ),
    "flop_counter": Counter(
        _flop_counter,
        "two per multiply-add of the operators that run, and nothing else (torch's FlopCounterMode)",
        per_mac=2,
    ),
    "torchinfo": Counter(
        _torchinfo,
        "the parameters of every module that runs: of a Conv class times its output's height and width, of others once",
        terms={
            "transposed convolutions, weights at output positions": _of("up")(
                lambda row: (row.stride**2 - 1) * row.macs
            ),
            "spatial convolutions, channels taken for one": _of("spatial")(
                lambda row: row.macs // row.c_out - row.macs
            ),
            "bias, 1 per output element": _of("conv", "up")(lambda row: row.bias * row.elements),
            "bias of spatial convolutions, 1 per output position": _of("spatial")(lambda row: row.h_out * row.w_out),
            "batch norm, its parameters once": _of("norm")(lambda row: row.parameters),
        },
    ),
}


def verification_table(verification: Verification) -> Table:
    """The counts side by side for a terminal, each difference named."""
    from rich.markup import escape
    from rich.table import Table

    height, width = verification.resolution
    table = Table(
        title=f"Independent counters, one {height}x{width} image: {verification.macs:,} exact multiply-adds",
        title_justify="left", box=None, padding=(0, 2),
    )  # fmt: skip
    table.add_column("counter")
    table.add_column("number", justify="right")
    table.add_column("made of", justify="right")
    table.add_column("")
    for count in verification.counts:
        times = f"{count.per_mac} x " if count.per_mac > 1 else ""
        table.add_row(count.counter, f"{count.number:,}", f"{times}{count.macs:,}", "multiply-adds")
        for term, value in count.terms.items():
            table.add_row("", "", f"{value:+,}", term)
        table.add_row("", "", f"{count.unexplained:+,}" if count.unexplained else "0", "unexplained")
        if count.uncounted:
            table.add_row("", "", "", f"[dim]could not count: {', '.join(count.uncounted)}[/dim]")
        table.add_row("", "", "", f"[dim]counts {count.convention}[/dim]")
        table.add_row()
    for name, reason in verification.failures.items():
        table.add_row(name, "no number", "", escape(reason))
    return table
