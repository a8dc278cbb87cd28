"""Tables 1 and 3 of the OneNet paper: the published accuracies, quoted, beside those of a reproduction's ledger.

``reproduction_facts`` says everything that the table, the JSON and the page show. Ours stand beside the published
figures (``published``) under their own names and definitions; nothing here compares the two, for they are not the same
quantity (``STATEMENT``).

A reproduction's folder holds a ledger: its ``run`` names table and settings, ``run`` and ``resume`` say what was asked
for and which data were absent, and every ``tell`` has a Record and the scores of its weights on the test split.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onenet_bench import __version__, ledger
from onenet_bench.errors import LedgerError
from onenet_bench.recipe import PAPER
from onenet_bench.record import SCORES, Record, Status
from onenet_bench.report import words
from onenet_bench.report.html_file import write_html
from onenet_bench.report.published import (
    BATCHES,
    CHANNELS,
    DATA,
    MASKS,
    QUANTITIES,
    RESOLUTION,
    SOURCE,
    TABLES,
    WIDTH,
    PublishedTable,
)  # fmt: skip
from onenet_bench.report.tables import ByWidth

STATEMENT = (
    "The published mAP, mIoU and DSC came from an evaluator that is wrong: it hands maps of class indices to "
    "torchmetrics as if they were one-hot, so that the rows of an image become its classes. What comes out depends on "
    "the version of torchmetrics (a perfect binary prediction has an mIoU of 0.156 up to 1.6 and 1.0 from 1.7.4 on), "
    "its Dice reaches 15 on a perfect prediction of 21 classes, its mAP is the ratio of true to predicted pixels where "
    "the IoU is at least ½ and can exceed 1, and all of it is averaged batch by batch. The published figures are "
    "therefore quoted beside ours, under one heading, and are not the same metric: a difference between the two says "
    "nothing about the nets, and neither does an agreement."
)

READINGS = (
    "Input of 512 pixels and masks of 256 are read as nets whose decoder ends a level early, at half the input's side.",
    "The rate falls “×0.1 every 20 epochs from epoch 50”: epochs 0 to 49 have the rate itself, 50 to 69 a tenth, 70 to "
    "89 a hundredth, and so on.",
    "Batches are of “32 or 64” images; 32 is the default here.",
    "OneNet in Table 1 is read as Table 3’s C, without the spatial convolution, because its published figures on PET_S "
    "and Lung are C’s.",
    "Ours are scores of the last epoch’s weights on the test split, which no decision has seen: VOC’s val.txt, the "
    "pets’ test.txt, and 15 % of the decathlon’s labelled patients. Of which split the published figures are is not "
    "known here.",
    "All seeds share one split. The spread is the standard deviation over seeds, with n − 1 below the line; the paper "
    "prints single figures.",
    "The published L_CE is taken for the loss that is minimised, so the cross-entropy with the background at a "
    "quarter stands beside it. The authors’ code has 8 where the paper says a quarter.",
)
"""Where the paper leaves something open, or says two things: what is done here."""


# Facts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Ours:
    """A score over the seeds that have one. ``spread`` is None for a single seed."""

    score: str  # a key of SCORES
    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where there is none."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds, of a sample."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.4f}" + ("" if self.spread is None else f" ± {self.spread:.4f}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A method on a data set. ``missing`` says, in sentences, why there is no score where one was asked for.

    ``marks`` are the numbers, from 1, of what ``Reproduction.deviations`` says of this cell alone.
    """

    method: str
    data: str
    published: Mapping[str, str]  # by quantity
    ours: Mapping[str, Ours]
    seeds: tuple[int, ...]  # that are complete
    missing: tuple[str, ...]
    asked: bool
    marks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """What is not as in the paper. ``everywhere``: in all cells, and not only in those marked with its number."""

    sentence: str
    everywhere: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Reproduction:
    """Everything about a reproduction. ``settings`` are its ledger's, ``sizes`` say how many images were used."""

    table: str
    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]  # data set by data set, in the order of the published table
    deviations: tuple[Deviation, ...]
    absent: Mapping[str, str]  # by data set: what is missing and where to get it
    sizes: Mapping[str, str]  # by data set
    command: str
    machines: tuple[str, ...]
    commits: tuple[str, ...]

    @property
    def smoke(self) -> bool:
        """Whether this only tried the code path."""
        return bool(self.settings["smoke"])

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return not any(cell.missing for cell in self.cells)

    @property
    def summary(self) -> str:
        """The outcome in a sentence."""
        asked = [cell for cell in self.cells if cell.asked]
        whole = sum(not cell.missing for cell in asked)
        smoke = "Smoke run, no number means anything: " if self.smoke else ""
        seeds = len({seed for cell in self.cells for seed in cell.seeds})
        return (
            f"{smoke}{whole} of {len(asked)} cells that were asked for are complete, of {len(self.cells)} that the "
            f"paper prints; {seeds} seed{'s' if seeds != 1 else ''}."
        )


class _Told(NamedTuple):
    record: Record
    test: Mapping[str, Any] | None  # images, scores, per_class; None where training failed


def reproduction_facts(run: Path) -> Reproduction:
    """What the ledger in folder ``run`` says. Raises LedgerError where it is none of a reproduction."""
    events = ledger.read(run)
    header = events[0]
    if header.get("table") not in TABLES:
        raise LedgerError(
            f"a reproduction's ledger names a table, but that in {run} does not; name a folder that "
            "'onenet-bench reproduce' has made"
        )
    asked: set[tuple[str, str, int]] = set()
    absent: dict[str, str] = {}
    command = ""
    told: dict[tuple[str, str, int], _Told] = {}
    with ledger.understood(run):
        for event in events:
            if event["event"] in ("run", "resume"):
                wanted = event["asked"]
                asked |= {(d, m, s) for d in wanted["data"] for m in wanted["methods"] for s in wanted["seeds"]}
                absent = {name: why for name, why in absent.items() if name not in wanted["data"]} | event["absent"]
                command = event["command"]
            elif event["event"] == "tell":
                record = Record.from_dict(event["record"])
                key = (record.choices["data"], record.choices["method"], record.recipe.seed)
                told[key] = _Told(record, event["test"])
        table, settings = TABLES[header["table"]], header["settings"]
        deviations = [Deviation(sentence=sentence, everywhere=True) for sentence in _everywhere(settings)]
    cells = []
    for data in table.data:
        for method in table.rows:
            of_cell = {
                seed: one for (d, m, seed), one in sorted(told.items(), key=_by_seed) if (d, m) == (data, method)
            }
            wanted_seeds = sorted(seed for d, m, seed in asked if (d, m) == (data, method))
            marks = []
            for sentence in _of_cell(table, method, data, [one.record for one in of_cell.values()]):
                deviation = Deviation(sentence=sentence, everywhere=False)
                if deviation not in deviations:
                    deviations.append(deviation)
                marks.append(deviations.index(deviation) + 1)
            cells.append(_cell(table, method, data, of_cell, wanted_seeds, absent, tuple(marks)))
    records = [one.record for one in told.values()]
    return Reproduction(
        table=header["table"],
        settings=settings,
        cells=tuple(cells),
        deviations=tuple(deviations),
        absent=absent,
        sizes={record.choices["data"]: _size(record) for record in records},
        command=command,
        machines=tuple(dict.fromkeys(_machine(record) for record in records)),
        commits=tuple(dict.fromkeys(_commit(record) for record in records)),
    )


def _by_seed(item: tuple[tuple[str, str, int], _Told]) -> int:
    return item[0][2]


def _cell(
    table: PublishedTable, method: str, data: str, told: Mapping[int, _Told], wanted: list[int],
    absent: Mapping[str, str], marks: tuple[int, ...],
) -> Cell:  # fmt: skip
    complete = {seed: one.test for seed, one in told.items() if one.record.status is Status.COMPLETE and one.test}
    ours = {}
    for name in table.quantities:
        score = QUANTITIES[name].of_volumes if DATA[data].volumes else QUANTITIES[name].score
        values = {seed: test["scores"].get(score) for seed, test in complete.items()}
        ours[name] = Ours(score=score, by_seed={seed: v for seed, v in values.items() if v is not None})
    missing = []
    left = [seed for seed in wanted if seed not in complete]
    if left and data in absent:
        missing.append(f"{DATA[data].label} is absent")
    else:
        missing += [f"seed {seed} failed: {told[seed].record.reason}" for seed in left if seed in told]
        waiting = [str(seed) for seed in left if seed not in told]
        if waiting:
            missing.append(f"not trained yet: seed{'s' if len(waiting) > 1 else ''} {', '.join(waiting)}")
    return Cell(
        method=method, data=data, published=table.figures(method, data), ours=ours, seeds=tuple(complete),
        missing=tuple(missing), asked=bool(wanted), marks=marks,
    )  # fmt: skip


def _everywhere(settings: Mapping[str, Any]) -> Iterable[str]:
    """How the settings differ from the paper's protocol, a sentence each."""
    if settings["smoke"]:
        yield "A smoke run: drawn pixels in tiny trees, tiny nets, hardly any training. No number here means anything."
    for name, paper in PAPER.to_dict().items():
        value = settings["recipe"].get(name, paper)
        if name == "batch" and value not in BATCHES:
            yield f"batch is {value}, and {' or '.join(map(str, BATCHES))} in the paper"
        elif name not in ("batch", "seed") and value != paper:
            yield f"{name} is {value}, and {paper} in the paper"
    resolution, masks = settings["resolution"], settings["resolution"] // settings["output_stride"]
    if resolution != RESOLUTION:
        yield f"inputs are {resolution} pixels wide and high, and {RESOLUTION} in the paper"
    if masks != MASKS:
        yield f"masks are {masks} pixels wide and high, and {MASKS} in the paper"
    if settings["width"] != WIDTH:
        yield f"nets begin with {settings['width']} channels, and with {WIDTH} in the paper"


def _of_cell(table: PublishedTable, method: str, data: str, records: list[Record]) -> Iterable[str]:
    """How a cell differs from the paper's, a sentence each."""
    if table.rows[method].pretrained and not any("weights" in record.provenance for record in records):
        yield f"{table.rows[method].label} starts from scratch, and from ImageNet weights in the paper"
    outputs, label = {record.task.classes for record in records}, DATA[data].label
    for classes in outputs - {DATA[data].classes}:
        yield f"{label} has {classes} classes, and {DATA[data].classes} outputs in the paper"
    for channels in {record.task.in_channels for record in records} - {CHANNELS}:
        yield f"{label} has {channels} channel{'s' if channels > 1 else ''}, and {CHANNELS} in the paper"


def _size(record: Record) -> str:
    task, what = record.task, "slices" if DATA[record.choices["data"]].volumes else "images"
    return f"{task.train:,} training, {task.validation:,} validation and {task.test:,} test {what}"


def _machine(record: Record) -> str:
    where = record.machine
    return f"{where.cpu}, {where.cores} cores{f', {where.gpu}' if where.gpu else ''}"


def _commit(record: Record) -> str:
    commit = record.provenance.get("commit")
    return f"{commit[:12]}{' with changes' if record.provenance.get('dirty') else ''}" if commit else "no commit known"


# Forms -------------------------------------------------------------------------------------------------------


def definitions(facts: Reproduction) -> dict[str, str]:
    """What each of our scores in the table means, by its name."""
    used = dict.fromkeys(ours.score for cell in facts.cells for ours in cell.ours.values())
    return {score: _DEFINED.get(score, SCORES[score].convention) for score in used}


_DEFINED = {"ce_weighted": "mean over the split's valid pixels in nats, those of the background counted a quarter"}


def terminal_table(facts: Reproduction) -> Group:
    """For a terminal: a block for every data set, then deviations, absent data and the statement."""
    table = TABLES[facts.table]
    parts: list[ByWidth | Text] = [Text(f"{table.title} of {SOURCE}. {facts.summary}")]
    for data in table.data:
        title = f"\n{DATA[data].label}: {DATA[data].title}{_comma(facts.sizes.get(data))}"
        cells = [cell for cell in facts.cells if cell.data == data]
        parts += [Text(title), ByWidth(least=150, wide=_block(table, cells), narrow=_narrow_block(table, cells))]
    lines = [
        f"({number}) {deviation.sentence}{' (everywhere)' if deviation.everywhere else ''}"
        for number, deviation in enumerate(facts.deviations, start=1)
    ]
    parts.append(Text("\n".join(["", "Not as in the paper:", *(lines or ["nothing"])])))
    parts += [Text(f"\n{DATA[name].label} is absent: {why}") for name, why in facts.absent.items()]
    parts.append(Text(f"\n{STATEMENT}"))
    return Group(*parts)


def _block(table: PublishedTable, cells: list[Cell]) -> Table:
    """The cells of a data set, a line each."""
    block = Table(box=None, padding=(0, 1))
    block.add_column("net")
    for name, ours in cells[0].ours.items():
        block.add_column(QUANTITIES[name].title, justify="right")
        block.add_column(f"our {ours.score}", justify="right")
    block.add_column("seeds", justify="right")
    block.add_column("")
    for cell in cells:
        row = [table.rows[cell.method].label]
        for name, ours in cell.ours.items():
            row += [cell.published[name], str(ours)]
        block.add_row(*row, str(len(cell.seeds)), _notes(cell))
    return block


def _narrow_block(table: PublishedTable, cells: list[Cell]) -> Table:
    """The same, a line for every quantity."""
    block = Table(box=None, padding=(0, 1))
    block.add_column("net", no_wrap=True)
    for heading in ("published", "ours", "seeds"):
        block.add_column(heading, justify="right", no_wrap=True)
    block.add_column("")
    for cell in cells:
        first, *rest = [
            (f"{QUANTITIES[name].title} {cell.published[name]}", f"{ours.score} {ours}")
            for name, ours in cell.ours.items()
        ]
        block.add_row(table.rows[cell.method].label, *first, str(len(cell.seeds)), _notes(cell))
        for pair in rest:
            block.add_row("", *pair)
    return block


def _notes(cell: Cell) -> str:
    return " ".join([*(f"({mark})" for mark in cell.marks), *cell.missing]) if cell.asked else "not asked for"


def _comma(text: str | None) -> str:
    return f", {text}" if text else ""


def to_dict(facts: Reproduction) -> dict[str, Any]:
    """As JSON-ready values."""
    table = TABLES[facts.table]
    return {
        "command": facts.command,
        "source": f"{SOURCE}, {table.title}",
        "summary": facts.summary,
        "complete": facts.complete,
        "smoke": facts.smoke,
        "statement": STATEMENT,
        "settings": dict(facts.settings),
        "deviations": [asdict(deviation) for deviation in facts.deviations],
        "readings": list(READINGS),
        "definitions": definitions(facts),
        "absent": dict(facts.absent),
        "sizes": dict(facts.sizes),
        "cells": [
            {
                "data": cell.data, "method": cell.method, "label": table.rows[cell.method].label, "asked": cell.asked,
                "seeds": list(cell.seeds), "missing": list(cell.missing), "marks": list(cell.marks),
                "quantities": {
                    name: {
                        "published": cell.published[name], "score": ours.score, "mean": ours.mean,
                        "spread": ours.spread, "by_seed": {str(seed): v for seed, v in ours.by_seed.items()},
                    }
                    for name, ours in cell.ours.items()
                },
            }
            for cell in facts.cells
        ],
    }  # fmt: skip


# The page ----------------------------------------------------------------------------------------------------


def write_reproduction(facts: Reproduction, out: Path) -> Path:
    """Write the page to ``out``, all of it or nothing, and return ``out``.

    Raises OnenetBenchError where ``out`` cannot be written.
    """
    return write_html(out, build_reproduction(facts))


def build_reproduction(facts: Reproduction) -> str:
    """The page as HTML. The same facts make the same page."""
    table = TABLES[facts.table]
    return words.render(
        "reproduce.html.jinja",
        command=facts.command,
        facts=facts,
        table=table,
        blocks=[
            (
                DATA[data].label,
                DATA[data].title + _comma(facts.sizes.get(data)),
                [c for c in facts.cells if c.data == data],
            )
            for data in table.data
        ],
        titles={name: quantity.title for name, quantity in QUANTITIES.items()},
        scores={name: column.title for name, column in SCORES.items()},
        definitions={SCORES[name].title: convention for name, convention in definitions(facts).items()},
        absent={DATA[name].label: why for name, why in facts.absent.items()},
        readings=READINGS,
        statement=STATEMENT,
        source=SOURCE,
        version=__version__,
    )
