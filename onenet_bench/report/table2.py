"""Table 2 of the OneNet paper: the published figures, ours in the same convention to the same digit, the true ones,
and the paper's analytic claims, counted.

``table2_facts`` says everything that the table, the CSV, the JSON and the page show. Published figures stand here as
the paper prints them (arXiv 2411.09838, Table 2); every other number is counted from the plans.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onenet_bench import __version__, costs, zoo
from onenet_bench.field import Field, receptive_field
from onenet_bench.plan import plan, smallest
from onenet_bench.record import COSTS, Costs
from onenet_bench.report import words
from onenet_bench.report.html_file import write_html
from onenet_bench.report.tables import ByWidth
from onenet_bench.spec import NetSpec, StageSpec, StemSpec

SOURCE = "arXiv 2411.09838, Table 2"
RESOLUTION = 256
BASELINE = "unet_4"


class Quantity(NamedTuple):
    """A column of the published table: its heading there, what it counts, and how it gets its digits."""

    title: str
    convention: str
    show: Callable[[Costs], str]


def _printed_flops(counted: Costs) -> str:
    """Twice what torchinfo prints: rounded to two decimals first, doubled afterwards."""
    return str(2 * Decimal(f"{counted.paper_flops / 2 / 1e9:.2f}"))


QUANTITIES: dict[str, Quantity] = {
    "parameters_m": Quantity(
        "# Param (M)",
        "all parameters / 10⁶, also those that inference never runs: a head at every decoder level, the ResNets' "
        "ImageNet classifier",
        lambda counted: f"{counted.parameters / 1e6:.2f}",
    ),
    "parameters_mb": Quantity(
        "Param (MB)",
        "4 bytes × the parameters that the forward pass uses / 10⁶",
        lambda counted: f"{4 * counted.parameters_used / 1e6:.2f}",
    ),
    "paper_flops_g": Quantity(
        "FLOPS (GB)",
        "2 × the mult-adds in G that torchinfo 1.8 prints, so rounded to two decimals before they are doubled; with "
        "biases and norms, and with transposed convolutions counted kernel² times",
        _printed_flops,
    ),
    "paper_memory_mb": Quantity(
        "Memory (MB)",
        "torchinfo's forward/backward pass size: 2 × 4 bytes × the output elements of every layer with parameters "
        "/ 10⁶; the peak of neither inference nor training",
        lambda counted: f"{counted.paper_memory_mb:.2f}",
    ),
}


class Published(NamedTuple):
    """A row of the published table, as it is printed. The figures stand in the order of QUANTITIES."""

    label: str
    figures: tuple[str, str, str, str]


PUBLISHED: dict[str, Published] = {
    "unet_4": Published("U-Net_4", ("31.04", "124.03", "104.72", "509.61")),
    "unet_5": Published("U-Net_5", ("124.42", "497.41", "130.80", "524.29")),
    "resnet34_unet": Published("ResNet_34", ("25.05", "98.07", "29.40", "241.17")),
    "resnet50_unet": Published("ResNet_50", ("74.07", "287.83", "84.98", "450.36")),
    "mobilenet_unet": Published("MobileNet", ("14.40", "57.47", "83.96", "671.09")),
    "onenet_e_4": Published("OneNet_e,4", ("16.39", "65.42", "78.42", "639.63")),
    "onenet_e_5": Published("OneNet_e,5", ("65.73", "262.63", "98.82", "656.41")),
    "onenet_ed_4": Published("OneNet_e,d,4", ("9.08", "36.30", "22.92", "799.01")),
    "onenet_ed_5": Published("OneNet_e,d,5", ("36.38", "145.47", "39.00", "885.00")),
}
"""By the zoo's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A published figure beside ours. ``reason`` says why they differ, and is empty where they do not."""

    published: str
    counted: str
    reason: str = ""

    @property
    def matches(self) -> bool:
        """Whether both are the same to the last printed digit."""
        return self.published == self.counted


@dataclass(frozen=True, kw_only=True, slots=True)
class NetFacts:
    """A row: the four cells by QUANTITIES, and what the net really costs, for one image of 3 x 256 x 256.

    ``macs_change`` and ``printed_change`` compare with U-Net_4, in percent: in exact multiply-adds, and in the
    published FLOPS column.
    """

    net: str
    label: str
    cells: Mapping[str, Cell]
    costs: Costs
    field: Field
    macs_change: float
    printed_change: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A sentence of the paper beside what the counter says. ``how`` names what is compared."""

    where: str
    claim: str
    counted: str
    how: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table2:
    """Everything about the table."""

    nets: tuple[NetFacts, ...]
    claims: tuple[Claim, ...]

    @property
    def cells(self) -> int:
        """How many figures the paper prints."""
        return sum(len(net.cells) for net in self.nets)

    @property
    def differing(self) -> tuple[tuple[NetFacts, str, Cell], ...]:
        """Net, column and cell of every figure that is not ours."""
        return tuple((net, name, cell) for net in self.nets for name, cell in net.cells.items() if not cell.matches)

    @property
    def summary(self) -> str:
        """The outcome in a sentence."""
        others = len(self.differing)
        marked = f"; the other {others} are marked" if others > 1 else "; the other one is marked" if others else ""
        return f"{self.cells - others} of {self.cells} published figures come out to the printed digit{marked}."


def table2_facts() -> Table2:
    """Count the nine nets and hold them to the paper."""
    counted = {net: costs.count(zoo.get(net), RESOLUTION, batch=1) for net in PUBLISHED}
    printed = {net: dict(zip(QUANTITIES, row.figures, strict=True)) for net, row in PUBLISHED.items()}
    ours = {net: {name: quantity.show(counted[net]) for name, quantity in QUANTITIES.items()} for net in PUBLISHED}
    base, base_printed = counted[BASELINE].macs, float(printed[BASELINE]["paper_flops_g"])
    nets = tuple(
        NetFacts(
            net=net,
            label=PUBLISHED[net].label,
            cells={
                name: Cell(
                    published=printed[net][name], counted=ours[net][name], reason=_reason(net, name, printed, ours)
                )
                for name in QUANTITIES
            },
            costs=counted[net],
            field=receptive_field(zoo.get(net)),
            macs_change=100 * (counted[net].macs / base - 1),
            printed_change=100 * (float(printed[net]["paper_flops_g"]) / base_printed - 1),
        )
        for net in PUBLISHED
    )
    return Table2(nets=nets, claims=_claims({facts.net: facts for facts in nets}))


_Figures = Mapping[str, Mapping[str, str]]


def _reason(net: str, name: str, printed: _Figures, ours: _Figures) -> str:
    """Why a figure differs: a misprint where a single digit does and the rest of the row matches; empty where none."""
    a, b = printed[net][name], ours[net][name]
    if a == b:
        return ""
    row = [printed[net][other] == ours[net][other] for other in QUANTITIES if other != name]
    column = [printed[other][name] == ours[other][name] for other in PUBLISHED if other != net]
    if len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1 and all(row):
        return (
            f"misprint: {a} should read {b}; one digit differs, while all {len(row)} other figures of the row and "
            f"{sum(column)} of the {len(column)} others of the column match"
        )
    return f"not explained: {a} is printed, {b} is counted"


# The paper's analytic claims ---------------------------------------------------------------------------------


def _claims(nets: Mapping[str, NetFacts]) -> tuple[Claim, ...]:
    base, e, ed = nets[BASELINE], nets["onenet_e_4"], nets["onenet_ed_4"]
    filters = count_filters(scale=2, levels=2)
    ratios = {kernel: level_ratio(kernel, channels=64) for kernel in (3, 5)}
    with_taps = level_ratio(3, channels=64, taps=9)
    bare = {levels: receptive_field(zoo.onenet_ed(levels, spatial_kernel=0)) for levels in (4, 5)}
    return (
        Claim(
            where="abstract", claim="OneNet_e,4 has 47 % fewer parameters than U-Net_4",
            counted=_saved(e.costs.parameters, base.costs.parameters),
            how="all parameters",
        ),
        Claim(
            where="abstract", claim="OneNet_e,d,4 is 71 % smaller",
            counted=_saved(ed.costs.parameters_used, base.costs.parameters_used),
            how="bytes of the parameters that the forward pass uses",
        ),
        Claim(
            where="text", claim="OneNet_e,4 saves 25 % of U-Net_4's FLOPs",
            counted=_saved(e.costs.macs, base.costs.macs),
            how=f"exact multiply-adds; {_saved(e.costs.paper_flops, base.costs.paper_flops)} in the paper's "
            "convention, which counts the transposed convolutions of both nets four times",
        ),
        Claim(
            where="text", claim="OneNet_e,d,4 saves 78 % of U-Net_4's FLOPs",
            counted=_saved(ed.costs.macs, base.costs.macs),
            how=f"exact multiply-adds; {_saved(ed.costs.paper_flops, base.costs.paper_flops)} in the paper's "
            "convention, which counts U-Net_4's transposed convolutions four times; OneNet_e,d,4 has none",
        ),
        Claim(
            where="§3.1", claim="16 multiplications against 8",
            counted=f"{filters.square} against {filters.channel_wise}",
            how=f"read so: two levels of scale 2 on one channel see {filters.field.height} × {filters.field.width} "
            f"pixels; one 2D filter of that size has {filters.square} weights, one channel-wise filter per level "
            f"{filters.channel_wise} in all. Weights, not work: one value computed alone takes {filters.alone} "
            "multiplications, because the first level's filter runs at several positions",
        ),
        Claim(
            where="§3.3", claim="a 2D block costs k²/2 times a 1D block",
            counted=", ".join(f"{float(ratio):g} for k = {kernel}" for kernel, ratio in ratios.items()),
            how="exact multiply-adds of an encoder level of two convolutions from C to 2C channels, after a pooling "
            f"and after a pixel-unshuffle; with the spatial convolution of 9 taps beside it {float(with_taps):.2f} "
            "for k = 3 and C = 64",
        ),
        Claim(
            where="text", claim="L levels of scale S see S^L pixels",
            counted=", ".join(f"{f.height} × {f.width} for L = {levels}" for levels, f in bare.items()),
            how="OneNet_e,d without any spatial convolution, S = 2; the spatial convolutions add width alone, "
            f"{nets['onenet_ed_5'].field.height} × {nets['onenet_ed_5'].field.width} for L = 5 with 9 taps",
        ),
    )  # fmt: skip


def _saved(value: int, base: int) -> str:
    return f"{100 * (1 - value / base):.1f} %"


class FilterCount(NamedTuple):
    """Multiplications of one filter per 1D level, summed; of one 2D filter over the ``field`` that these see together;
    and of everything that the 1D levels compute for one value of the deepest."""

    channel_wise: int
    square: int
    alone: int
    field: Field


def count_filters(scale: int, levels: int) -> FilterCount:
    """Count the filters of ``levels`` one-channel 1D encoder levels of ``scale``, without a spatial convolution."""
    spec = NetSpec(
        classes=1, in_channels=1, stem=StemSpec(channels=1, repeat=1),
        encoder=tuple(StageSpec(channels=1, scale=scale, repeat=1) for _ in range(levels)),
        decoder=tuple(StageSpec(channels=1, scale=scale, repeat=1, skip=False) for _ in range(levels)),
    )  # fmt: skip
    lowered = smallest(spec)
    filters = [row for row in lowered.rows if row.op == "conv" and row.level.startswith("encoder")]
    field = receptive_field(spec)
    return FilterCount(
        channel_wise=sum(row.macs // row.elements for row in filters),
        square=field.height * field.width,
        alone=sum(row.macs for row in filters),
        field=field,
    )


def level_ratio(kernel: int, channels: int, taps: int = 0) -> Fraction:
    """Multiply-adds of a 2D encoder level with ``kernel`` over those of a 1D one, both of two convolutions from
    ``channels`` to twice as many; the 1D level has a spatial convolution of ``taps`` (0 = none)."""

    def level(kind: str, spatial_kernel: int) -> int:
        spec = NetSpec(
            classes=1, in_channels=channels, stem=StemSpec(channels=channels, repeat=1),
            encoder=(StageSpec(kind=kind, channels=2 * channels, spatial_kernel=spatial_kernel),),
            decoder=(StageSpec(kind="conv2d", channels=channels),),
        )  # fmt: skip
        return costs.by_level(plan(spec, (channels, 2, 2)))["encoder 1"]["macs"]

    return Fraction(level("conv2d", kernel), level("onenet1d", taps))


# Forms -------------------------------------------------------------------------------------------------------

TRUE: dict[str, str] = {
    "parameters": "parameters",
    "parameters_used": "parameters used",
    "macs": "MACs",
    "peak_inference_mib": "peak inference, MiB",
    "peak_training_mib": "peak training, MiB",
}
"""The costs that stand beside the published table, training with a batch of one, and their headings."""


def change(percent: float) -> str:
    """``−28.7 %``; nothing for the net that is compared with."""
    return f"{percent:+.1f} %".replace("-", "−") if percent else ""


def true_numbers(net: NetFacts) -> list[str]:
    """The cells of the second table: TRUE, the receptive field, and both comparisons with U-Net_4."""
    values = [getattr(net.costs, name) for name in TRUE]
    return [
        *(f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" for value in values),
        f"{net.field.height} × {net.field.width}",
        change(net.macs_change),
        change(net.printed_change),
    ]


TRUE_HEADINGS = (*TRUE.values(), "receptive field", "MACs beside U-Net_4", "FLOPS as printed")


def terminal_table(facts: Table2) -> Group:
    """For a terminal: published and counted side by side, the true numbers, the differences and the claims."""
    printed = Table(title=f"{SOURCE}, input 1×3×{RESOLUTION}×{RESOLUTION}: published, and counted here",
                    title_justify="left", box=None, padding=(0, 1, 0, 0))  # fmt: skip
    printed.add_column("net", no_wrap=True)
    marked = {name for _, name, _ in facts.differing}
    for name, quantity in QUANTITIES.items():
        printed.add_column(quantity.title.replace(" (", "\n("), justify="right", no_wrap=True)
        printed.add_column("counted", justify="right", no_wrap=True)
        if name in marked:
            printed.add_column("", no_wrap=True)
    notes: list[str] = []
    for net in facts.nets:
        row: list[str | Text] = [net.label]
        for name, cell in net.cells.items():
            mark = ""
            if not cell.matches:
                notes.append(f"({len(notes) + 1}) {net.label}, {QUANTITIES[name].title}: {cell.reason}.")
                mark = f"≠ ({len(notes)})"
            style = "" if cell.matches else "bold yellow"
            row += [Text(cell.published, style), Text(cell.counted, style), *([Text(mark, style)] * (name in marked))]
        printed.add_row(*row)
    true = ByWidth(
        least=110,
        wide=_true_table(facts, 0, len(TRUE_HEADINGS)),
        narrow=Group(_true_table(facts, 0, len(TRUE)), Text(), _true_table(facts, len(TRUE), len(TRUE_HEADINGS))),
    )
    claims = Table(title="\nThe paper's claims", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for heading in ("where", "claim", "counted", "what is counted"):
        claims.add_column(heading)
    for claim in facts.claims:
        claims.add_row(claim.where, claim.claim, claim.counted, claim.how)
    return Group(printed, Text("\n".join(["", facts.summary, *notes])), true, claims)


def _true_table(facts: Table2, begin: int, end: int) -> Table:
    """Some columns of the true numbers."""
    table = Table(title=None if begin else "\nThe true numbers, one image", title_justify="left", box=None,
                  padding=(0, 2, 0, 0))  # fmt: skip
    table.add_column("net", no_wrap=True)
    for heading in TRUE_HEADINGS[begin:end]:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for net in facts.nets:
        table.add_row(net.label, *true_numbers(net)[begin:end])
    return table


def csv_text(facts: Table2) -> str:
    """One line per net: published and counted figures, costs in the units of COSTS, and the reasons."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    pairs = [f"{name}_{which}" for name in QUANTITIES for which in ("published", "counted")]
    exact = (*TRUE, "paper_flops", "paper_memory_mb")
    writer.writerow([
        "net", "label", *pairs, *exact, "field_height", "field_width", "macs_change_percent", "printed_change_percent",
        "differs",
    ])  # fmt: skip
    for net in facts.nets:
        cells = [figure for cell in net.cells.values() for figure in (cell.published, cell.counted)]
        reasons = "; ".join(f"{name}: {cell.reason}" for name, cell in net.cells.items() if cell.reason)
        writer.writerow([
            net.net, net.label, *cells, *(getattr(net.costs, name) for name in exact), *net.field,
            round(net.macs_change, 3), round(net.printed_change, 3), reasons,
        ])  # fmt: skip
    return out.getvalue()


def to_dict(facts: Table2) -> dict[str, Any]:
    """As JSON-ready values."""
    return {
        "command": "onenet-bench table2 --json",
        "source": SOURCE,
        "input": [1, 3, RESOLUTION, RESOLUTION],
        "summary": facts.summary,
        "columns": {
            name: {"title": quantity.title, "convention": quantity.convention} for name, quantity in QUANTITIES.items()
        },
        "nets": [
            {
                "net": net.net,
                "label": net.label,
                "cells": {name: {**asdict(cell), "matches": cell.matches} for name, cell in net.cells.items()},
                "costs": net.costs.to_dict(),
                "receptive_field": net.field._asdict(),
                "macs_change_percent": net.macs_change,
                "printed_change_percent": net.printed_change,
            }
            for net in facts.nets
        ],
        "claims": [asdict(claim) for claim in facts.claims],
    }


# The page ----------------------------------------------------------------------------------------------------


def write_table2(facts: Table2, out: Path) -> Path:
    """Write the page to ``out``, all of it or nothing, and return ``out``.

    Raises OnenetBenchError where ``out`` cannot be written.
    """
    return write_html(out, build_table2(facts, f"onenet-bench table2 --html {shlex.quote(str(out))}"))


def build_table2(facts: Table2, command: str) -> str:
    """The page as HTML; ``command`` is the one that makes it again. The same facts make the same page."""
    return words.render(
        "table2.html.jinja",
        command=command,
        facts=facts,
        quantities=QUANTITIES,
        nets=[(net, true_numbers(net)) for net in facts.nets],
        notes={(net.net, name): number for number, (net, name, _) in enumerate(facts.differing, start=1)},
        headings=TRUE_HEADINGS,
        conventions={
            COSTS[name].title: COSTS[name].convention.replace("on one batch", "on one image") for name in TRUE
        },
        source=SOURCE,
        side=RESOLUTION,
        version=__version__,
    )
