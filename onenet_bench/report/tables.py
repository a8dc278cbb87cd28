"""What a run's ledger says, as values and as tables: the ground that figures and pages stand on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.table import Table

from onenet_bench import ledger, pareto
from onenet_bench.recipe import Recipe
from onenet_bench.record import COSTS, SCORES, Record, Status
from onenet_bench.task import Task

NUMBERS = SCORES | COSTS
"""Every score and cost by name."""

PAPER = ("paper_flops", "paper_memory_mb")
MEASURED = ("latency_ms",)
COST_GROUPS: dict[str, tuple[str, ...]] = {
    "Exact costs": tuple(name for name in COSTS if name not in PAPER + MEASURED),
    "Measured": MEASURED,
    "The paper's conventions": PAPER,
}
"""The columns of COSTS by where their numbers come from."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its ledger tells it. Rows stand in the order in which the trials ended; behind them those that were
    stopped early and may still go on."""

    path: Path
    head: Mapping[str, Any]
    """The ledger's first event."""
    records: tuple[Record, ...]
    frame: pd.DataFrame
    objectives: tuple[pareto.Objective, ...]
    ended: str | None
    """Why the run ended; None where it did not (yet)."""
    begun: tuple[Mapping[str, Any], ...]
    """The events that began it and took it up again."""
    under_way: tuple[int, ...]
    """Trials that were begun and have neither ended nor been stopped early."""
    audits: tuple[Mapping[str, Any], ...] = ()
    """The audits of early scores, in their order."""
    promoted: int = 0
    """How often a candidate that had been stopped went on."""
    epochs: int = 0
    """Passes over the training images, of all candidates together."""

    @cached_property
    def task(self) -> Task:
        """The question that every net of the run answers."""
        return Task.from_dict(self.head["task"])

    @cached_property
    def recipe(self) -> Recipe:
        """How every net of the run is trained."""
        return Recipe.from_dict(self.head["recipe"])

    @cached_property
    def trials(self) -> int:
        """How many candidates were to be trained, as last asked for."""
        asked = [event["trials"] for event in self.begun if event.get("trials")]
        return int(asked[-1]) if asked else 0

    @cached_property
    def complete(self) -> pd.DataFrame:
        """The candidates with final scores."""
        return self.frame[self.frame["status"] == str(Status.COMPLETE)]

    @cached_property
    def front(self) -> pd.DataFrame:
        """The rows on the front of all objectives, best first objective first."""
        return pareto.front(self.frame, self.objectives)

    @cached_property
    def unranked(self) -> pd.DataFrame:
        """The candidates with final scores of which an objective is not known: they can stand on no front."""
        return self.complete[self.complete[[o.name for o in self.objectives]].isna().any(axis=1)]

    @cached_property
    def first_pair(self) -> tuple[pareto.Objective, pareto.Objective]:
        """The first score and the first cost among the objectives: what the knee refers to."""
        return pairs(self.objectives)[0]

    def count(self, status: Status) -> int:
        """How many trials ended in this way."""
        return int((self.frame["status"] == str(status)).sum())

    def known(self, names: Iterable[str]) -> list[str]:
        """Those of ``names``, scores and costs, that some complete candidate has a number for."""
        return [name for name in names if self.complete[name].notna().any()]

    def record(self, trial: int) -> Record:
        """The Record of a trial that has ended."""
        return self._by_trial[trial]

    @cached_property
    def _by_trial(self) -> dict[int, Record]:
        return {record.trial: record for record in self.records}


def read_run(run: Path) -> Run:
    """Read the run in folder ``run``. Raises LedgerError where there is no ledger that can be read."""
    with ledger.understood(run):
        events = ledger.read_search(run)
        told = ledger.records(events)
        records = [*told, *_paused(events, {record.trial for record in told})]
        known = {record.trial for record in records}
        asked = dict.fromkeys(event["trial"] for event in events if event["event"] == "ask")
        last = [event for event in events if event["event"] in ("run", "resume", "end")][-1]
        return Run(
            path=run,
            head=events[0],
            records=tuple(records),
            frame=ledger.frame(records),
            objectives=pareto.objectives(events[0]["objectives"]),
            ended=str(last.get("reason", "")) if last["event"] == "end" else None,
            begun=tuple(event for event in events if event["event"] in ("run", "resume")),
            under_way=tuple(trial for trial in asked if trial not in known),
            audits=tuple(event for event in events if event["event"] == "audit"),
            promoted=sum(event["event"] == "promote" for event in events),
            epochs=len({(event["trial"], event["epoch"]) for event in events if event["event"] == "report"}),
        )


def _paused(events: Iterable[Mapping[str, Any]], told: set[int]) -> list[Record]:
    """The Records of candidates that were stopped early and not ``told`` yet: a search tells them when it ends."""
    paused: dict[int, Record] = {}
    for event in events:
        if event["event"] == "pause":
            paused[event["trial"]] = Record.from_dict(event["record"])
        elif event["event"] == "promote":
            paused.pop(event["trial"], None)
    return [record for trial, record in paused.items() if trial not in told]


def pairs(chosen: Sequence[pareto.Objective]) -> list[tuple[pareto.Objective, pareto.Objective]]:
    """Every (score, cost) among ``chosen``."""
    return [(s, c) for s in chosen if s.is_score for c in chosen if not c.is_score]


def knee_of(frame: pd.DataFrame, pair: Sequence[pareto.Objective]) -> int | None:
    """The trial at the knee of the front of two objectives, None where there is none."""
    rows = pareto.front(frame, pair)
    if rows.empty:
        return None
    found = pareto.knee(pareto.Box.around(pair, rows).place(rows))
    return None if found is None else int(rows["trial"].iloc[found])


def number(record: Record, name: str) -> float | None:
    """A score or cost of ``record`` by name."""
    return record.scores.get(name) if name in SCORES else getattr(record.costs, name, None)


def plain(value: Any) -> str:
    """A stored value for people: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def lower(title: str) -> str:
    """``title`` within a sentence; abbreviations keep their capitals."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


# Numbers for people ----------------------------------------------------------------------------------------

_PREFIXES = ("", "k", "M", "G", "T", "P")
NBSP = "\u00a0"
MISSING = "–"


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and a decimal prefix: ``1.92 M``. Whole numbers below 1000 stay
    as they are."""
    if value == 0 or (abs(value) < 1000 and float(value).is_integer()):
        return f"{value:.0f}{NBSP}{unit}".rstrip(NBSP)
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    group = min(max(exponent // 3, 0), len(_PREFIXES) - 1)
    decimals = max(0, digits - 1 - (exponent - 3 * group))
    return f"{rounded / 10 ** (3 * group):,.{decimals}f}{NBSP}{_PREFIXES[group]}{unit}".rstrip(NBSP)


def show(name: str, value: float | None) -> str:
    """A score or cost for people, with its unit; a dash where it is not known."""
    if value is None or math.isnan(value):
        return MISSING
    if name in SCORES:
        return f"{value:.3f}"
    unit = COSTS[name].unit
    return si(value, unit) if unit in ("", "B") else f"{value:,.{_decimals(value)}f}{NBSP}{unit}"


def show_apart(name: str, *values: float) -> list[str]:
    """``show`` of each of ``values``; with as many more digits as it takes where different ones would look the same."""
    shown = [show(name, value) for value in values]
    for digits in (12,) if COSTS[name].unit in ("", "B") else (6, 9, 12):
        if len(set(shown)) < len(set(values)):
            shown = [_in_full(name, value, digits) for value in values]
    return shown


def show_limit(name: str, value: float) -> str:
    """A limit on a cost: rounded where that is no other number, else in full."""
    return show(name, value) if float(f"{value:.2e}") == value else _in_full(name, value)


def _in_full(name: str, value: float, digits: int = 12) -> str:
    return f"{value:,.{digits}g}{NBSP}{COSTS[name].unit}".rstrip(NBSP)


def _decimals(value: float) -> int:
    """Decimals that show three significant digits of ``value``, at most three."""
    return min(3, max(0, 2 - math.floor(math.log10(value)))) if value > 0 else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """One unit for a whole column, so that its numbers can be compared at a glance."""

    divisor: float
    unit: str
    decimals: int

    @classmethod
    def of(cls, name: str, values: Iterable[float]) -> Scale:
        """The unit in which the smallest of ``values`` is still at least 0.1."""
        if name in SCORES:
            return cls(divisor=1.0, unit=SCORES[name].unit, decimals=3)
        known = [value for value in values if value > 0]
        unit, smallest = COSTS[name].unit, min(known, default=1.0)
        group = 0
        if unit in ("", "B"):
            while group + 1 < len(_PREFIXES) and smallest >= 0.1 * 1000 ** (group + 1):
                group += 1
        decimals = _decimals(smallest / 1000**group) if group or unit not in ("", "B") else 0
        return cls(divisor=1000.0**group, unit=_PREFIXES[group] + unit, decimals=decimals)

    def show(self, value: float | None) -> str:
        """``value`` in this unit, without naming it."""
        if value is None or math.isnan(value):
            return MISSING
        return f"{value / self.divisor:,.{self.decimals}f}"


def duration(seconds: float) -> str:
    """A length of time: ``42 s``, ``3 min 10 s``, ``14 min``, ``2 h 5 min``."""
    total = round(seconds)
    for size, big, small, name in ((3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            rest = total % size // small if total < 10 * size else 0
            return f"{total // size:,}{NBSP}{big}" + (f" {rest}{NBSP}{name}" if rest else "")
    return f"{total}{NBSP}s"


@dataclass(frozen=True, kw_only=True, slots=True)
class ByWidth:
    """``wide`` in a terminal of at least ``least`` columns, else ``narrow``."""

    least: int
    wide: RenderableType
    narrow: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.wide if options.max_width >= self.least else self.narrow


# The front in a terminal -----------------------------------------------------------------------------------


def front_rows(run: Path) -> list[dict[str, Any]]:
    """The front of the run in folder ``run``, best first objective first, as JSON-ready rows: trial, digest, label,
    knee, every objective that is a score, every cost (units as in COSTS; None = not known).

    ``knee`` refers to the first score and the first cost among the objectives.
    """
    return _front_rows(read_run(run))


def _front_rows(run: Run) -> list[dict[str, Any]]:
    knee = knee_of(run.front, run.first_pair)
    rows = []
    for trial in run.front["trial"]:
        record = run.record(int(trial))
        rows.append(
            {
                "trial": record.trial,
                "digest": record.spec.digest() if record.spec else None,
                "label": record.spec.label() if record.spec else "",
                "knee": record.trial == knee,
                **{o.name: record.scores.get(o.name) for o in run.objectives if o.is_score},
                **{name: getattr(record.costs, name, None) for name in COSTS},
            }
        )
    return rows


def front_table(run: Path) -> Table:
    """The front of the run in folder ``run`` for a terminal: the objectives, then the exact costs beside them."""
    read = read_run(run)
    rows = _front_rows(read)
    names = list(dict.fromkeys([*(o.name for o in read.objectives), "parameters", "macs", "peak_inference_mib"]))
    score, cost = (NUMBERS[o.name].title for o in read.first_pair)
    table = Table(
        title=f"{escape(str(read.head['name']))}: {len(rows)} of {len(read.complete)} nets on the front",
        caption=f"* knee of {score} against {cost}" if any(row["knee"] for row in rows) else None,
    )
    if not rows:
        table.caption = "no net is complete yet, so there is no front"
    table.add_column("Trial", justify="right")
    table.add_column("Net", overflow="fold")
    for name in names:
        table.add_column(NUMBERS[name].title.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        mark = "*" if row["knee"] else ""
        table.add_row(f"{mark}{row['trial']}", escape(row["label"]), *(show(name, row[name]) for name in names))
    return table


# Why candidates were not trained to the end ----------------------------------------------------------------

_CHANGING = re.compile(r"\b[0-9a-f]{16}\b|\d(?:[\d,._]*\d)?(?:e[+-]?\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonGroup:
    """Candidates that ended for one reason. ``reason`` has an ellipsis where their numbers differ."""

    status: Status
    reason: str
    trials: tuple[int, ...]


def reason_groups(records: Iterable[Record]) -> list[ReasonGroup]:
    """The Records that are not complete, grouped by status and by reason, largest group first.

    Reasons that differ in their numbers alone are one: ``macs is 3,000, over 2,000`` and ``macs is 4,000, over
    2,000`` become ``macs is …, over 2,000``.
    """
    found: dict[tuple[Status, str], list[Record]] = {}
    for record in records:
        if record.status is not Status.COMPLETE:
            skeleton = _CHANGING.sub("\0", record.reason.replace("\0", ""))
            found.setdefault((record.status, skeleton), []).append(record)
    groups = []
    for (status, skeleton), members in found.items():
        numbers = zip(*(_CHANGING.findall(member.reason.replace("\0", "")) for member in members), strict=True)
        shared = iter([values[0] if len(set(values)) == 1 else "…" for values in numbers])
        reason = re.sub("\0", lambda _, shared=shared: next(shared), skeleton)  # type: ignore[misc]
        groups.append(
            ReasonGroup(status=status, reason=reason or "no reason given", trials=tuple(m.trial for m in members))
        )
    order = [Status.REJECTED, Status.STOPPED, Status.FAILED]
    return sorted(groups, key=lambda group: (order.index(group.status), -len(group.trials), group.reason))
