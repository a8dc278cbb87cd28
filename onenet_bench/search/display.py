"""Progress of a sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from onenet_bench import ledger, pareto
from onenet_bench.record import Record, Status
from onenet_bench.report.tables import show
from onenet_bench.search.core import Core
from onenet_bench.search.final import Final
from onenet_bench.search.trial import Ended, Epoch, Event, Started

SILENCE_S = 10.0
"""After so many seconds without a line a rejected candidate is one, where there is no terminal."""


class Display:
    """Shows trials done, time left, what runs now and the current front. Use as a context manager."""

    def __init__(self, core: Core | Final) -> None:
        self._core = core
        self._noun, verb = ("retraining", "trained anew") if isinstance(core, Final) else ("trial", "trained")
        self._console = Console(file=sys.stderr)
        self._running: dict[int, str] = {}
        self._began = time.monotonic()
        self._already = len(self._trained())
        self._bar = Progress(
            TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=core.search.trials, completed=self._already, left="")
        self._said = self._began  # when the last line was written, where there is no terminal
        self._best = self._front()
        self._live = Live(console=self._console, transient=True, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._running[event.job.trial] = f"{event.job.spec.label()}  ({event.job.costs.parameters:,} parameters)"
        elif isinstance(event, Epoch):
            score = event.progress.get(self._score, float("nan"))
            label = event.job.spec.label()
            self._running[event.job.trial] = f"{label}  epoch {event.progress['epoch']}, {self._score} {score:.3f}"
        elif isinstance(event, Ended):
            self._running.pop(event.record.trial, None)
            done = len(self._trained())
            self._bar.update(self._task, completed=done, left=self._left(done))
            if self._console.is_terminal:
                self._best = self._front()
            else:
                self._say(self._line(event.record, done))

    def rejected(self, record: Record) -> None:
        """A candidate was rejected: worth a line where nothing else was for a while."""
        if not self._console.is_terminal and time.monotonic() - self._said >= SILENCE_S:
            number = len(self._core.records) - len(self._trained())
            self._say(f"{number} candidates were rejected so far, trial {record.trial} last: {record.reason}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._said = time.monotonic()

    @property
    def _score(self) -> str:
        return next(o.name for o in self._core.search.objectives if o.is_score)

    def _trained(self) -> list[Record]:
        return [r for r in self._core.records if r.status is not Status.REJECTED]

    def _left(self, done: int) -> str:
        fresh = done - self._already
        if not fresh or done >= self._core.search.trials:
            return ""
        seconds = (time.monotonic() - self._began) / fresh * (self._core.search.trials - done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _line(self, record: Record, done: int) -> str:
        said = [f"{done}/{self._core.search.trials}", f"{self._noun} {record.trial}", str(record.status)]
        if record.spec is not None:
            said.append(record.spec.label())
        if record.costs is not None:
            said.append(f"{record.costs.parameters:,} parameters, {record.costs.macs:,} MACs")
        if record.status is Status.COMPLETE:
            said.append(f"{self._score} {record.scores.get(self._score, float('nan')):.3f} in {record.seconds:.0f} s")
        else:
            said.append(record.reason)
        return "  ".join(part for part in (*said, self._left(done)) if part)

    def _render(self) -> Group:
        running = Table.grid(padding=(0, 2))
        for trial, text in sorted(self._running.items()):
            running.add_row(Text(f"{self._noun} {trial}", style="bold"), Text(text))
        counts: dict[str, int] = {}
        for record in self._core.records:
            counts[record.status] = counts.get(record.status, 0) + 1
        summary = Text("  ".join(f"{n} {status}" for status, n in counts.items()), style="dim")
        return Group(self._bar, summary, running, self._best)

    def _front(self) -> Table:
        objectives = self._core.search.objectives
        known, title = ledger.frame(self._core.records), "the front so far"
        if isinstance(self._core, Final):
            complete = known[known["status"] == "complete"]
            means = {o.name: (o.name, "mean") for o in objectives}
            known = complete.groupby("digest", as_index=False).agg(label=("label", "first"), **means)
            title = "the front of means so far"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
        for o in objectives:
            table.add_column(o.name, justify="right")
        table.add_column("net")
        best = pareto.front(known, objectives)
        for _, row in best.head(12).iterrows():
            values = [show(o.name, row[o.name]) for o in objectives]
            table.add_row(*values, str(row["label"]))
        return table
