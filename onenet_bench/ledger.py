"""Ledger: the append-only book of a run, and its only truth.

A run is a folder; its book is ``ledger.jsonl``, one JSON object per line and event:

=========  ===============================================================================================
run        first line: name, space, task, recipe, sampler, seed, objectives, budget, trials, provenance
resume     the run goes on: provenance
ask        a trial's number, its choices, what the sampler keeps: ``attributes`` of the trial, and new ones of the
           ``study``
report     a trial's epoch: loss and scores so far; with ``stopped_at``, a rung, it is to stop there
pause      the Record of a trial that was stopped so, as it is so far; the trial stays open
promote    a paused trial goes on
retry      a trial was lost with its machine and will be asked for again: reason, attempt
audit      how far early scores agree with final ones, and the rung from which on trials may be stopped
tell       a trial's Record; it has ended
end        why the run ended
=========  ===============================================================================================

A told trial is on the disk before anything else happens: every append is one write, and all but ask, report,
promote and the rejections are followed by an fsync. A last line that a crash has torn is dropped before the next event.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from onenet_bench.errors import LedgerError, MeasureError
from onenet_bench.record import COSTS, SCHEMA, SCORES, Record, Status

FILE = "ledger.jsonl"
FINAL = "final"
"""Folder in a run's in which its final trainings are: a run of their own, with a ledger of its own."""
START = b'{"event":"run"'
"""What a ledger begins with."""
EVENTS = ("run", "resume", "ask", "report", "pause", "promote", "retry", "audit", "tell", "end")


def has_begun(run: Path) -> bool:
    """Whether the folder ``run`` holds a ledger with a whole line, as far as can be read. What died while it wrote its
    first line had not."""
    try:
        with open(run / FILE, "rb") as file:
            return file.readline().endswith(b"\n")
    except OSError:
        return False


def read(run: Path) -> list[dict[str, Any]]:
    """All events of the run in folder ``run``. A torn last line is left out.

    Raises LedgerError where there is no ledger, one of a newer schema, or one that is damaged elsewhere than at its
    end.
    """
    path = run / FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise LedgerError(
            f"a run is a folder with a {FILE}, but {run} has none that can be read ({error.strerror})"
        ) from error
    events: list[dict[str, Any]] = []
    lines = text.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            known_event = event["event"] in EVENTS
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):  # no newline behind it: torn
                break
            raise LedgerError(
                f"every line of a ledger is a JSON event, but line {number} of {path} is not; "
                "restore the file from a copy"
            ) from error
        if not known_event:
            raise LedgerError(
                f"line {number} of {path} is an unknown event {event['event']!r}; known: {', '.join(EVENTS)}"
            )
        events.append(event)
    if not events or events[0]["event"] != "run":
        raise LedgerError(f"a ledger begins with its run, but {path} does not; start the sweep anew")
    schema = events[0].get("schema")
    if not isinstance(schema, int):
        raise LedgerError(f"a run says which schema it has, but {path} says {schema!r}; restore the file from a copy")
    if schema > SCHEMA:
        raise LedgerError(
            f"{path} has schema {schema}, and this version of onenet-bench reads up to {SCHEMA}; install a newer one"
        )
    return events


def read_search(run: Path) -> list[dict[str, Any]]:
    """``read`` for the run of a search. Raises LedgerError for one of ``onenet-bench reproduce`` and for the final
    trainings of a search, too."""
    events = read(run)
    if "table" in events[0]:
        raise LedgerError(
            f"a search has a space and objectives, but {run} is a reproduction of {events[0]['table']}; its page is "
            "made by onenet-bench reproduce"
        )
    if "contestants" in events[0]:
        raise LedgerError(
            f"a search has candidates of its own, but {run} holds the final trainings of one, which that one's report "
            f"shows; name {run.parent}"
        )
    return events


@contextmanager
def understood(run: Path) -> Iterator[None]:
    """Raise LedgerError where the events of the run in folder ``run`` are JSON, and yet say nothing that could be."""
    try:
        yield
    except (LedgerError, MeasureError):  # the latter of a package that is not installed
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, AssertionError) as error:
        raise LedgerError(
            f"the events of a ledger follow from one another, but those of {run / FILE} do not "
            f"({type(error).__name__}: {error}); restore the file from a copy"
        ) from error


def records(events: list[dict[str, Any]]) -> list[Record]:
    """The Records among ``events``, in the order in which the trials ended. Raises LedgerError where one ends twice."""
    found: dict[int, Record] = {}
    for event in events:
        if event["event"] == "tell":
            record = Record.from_dict(event["record"])
            if record.trial in found:
                raise LedgerError(
                    f"a trial ends once, but {record.trial} does so twice; restore the ledger from a copy"
                )
            found[record.trial] = record
    return [*found.values()]


def frame(rows: list[Record]) -> pd.DataFrame:
    """A table of ``rows``: trial, status, reason, digest, label, seconds, every cost and score (NaN where there
    is none), and ``choice.NAME`` for every choice. Scores are final ones; those of a net that was stopped early stand
    in ``partial.NAME`` instead."""
    columns = ["trial", "status", "reason", "digest", "label", "seconds", *COSTS, *SCORES]
    table = pd.DataFrame(
        [
            {
                "trial": row.trial,
                "status": str(row.status),
                "reason": row.reason,
                "digest": row.spec.digest() if row.spec else None,
                "label": row.spec.label() if row.spec else "",
                "seconds": row.seconds,
                **{name: getattr(row.costs, name, None) for name in COSTS},
                **{name: row.scores.get(name) if row.status is Status.COMPLETE else None for name in SCORES},
                **{f"partial.{name}": value for name, value in row.scores.items() if row.status is Status.STOPPED},
                **{f"choice.{name}": value for name, value in row.choices.items()},
            }
            for row in rows
        ]
    )
    for name in columns:
        if name not in table:
            table[name] = pd.Series(dtype=float)
    numbers = [*COSTS, *SCORES]
    table[numbers] = table[numbers].astype(float)
    return table


class Ledger:
    """A run's book, open for appending by one process.

    The lock is the operating system's and dies with its owner.
    """

    _whole = False  # whether its last line is known to be

    def __init__(self, run: Path, *, create: bool) -> None:
        self.run = run
        path = run / FILE
        try:
            if create:
                run.mkdir(parents=True, exist_ok=True)
                if has_begun(run):
                    raise LedgerError(f"{run} already holds a run; use --resume {run} or another name")
            flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0)
            self._file = os.open(path, flags, 0o644)
        except OSError as error:
            raise LedgerError(f"the run's folder must be writable, but {path} is not ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise LedgerError(
                f"a run belongs to one process at a time, but another one holds {run}; wait for it"
            ) from error

    def _mend(self) -> None:
        """Drop a torn last line, so that the next event does not continue it. Raises LedgerError where the only line
        does not begin as a ledger does."""
        size = os.fstat(self._file).st_size
        at, tail = size, b""
        while at > 0 and b"\n" not in tail:
            at = max(0, at - 65536)
            tail = os.pread(self._file, size - at, at)
        end = tail.rfind(b"\n")
        torn = tail[end + 1 :]
        if not torn:
            return
        if at + end < 0 and (b"\r" in torn or not START.startswith(torn.replace(b" ", b"")[: len(START)])):
            raise LedgerError(f"a ledger begins with its run, but {self.run / FILE} does not; take another folder")
        try:
            json.loads(torn)
        except ValueError:
            os.ftruncate(self._file, at + end + 1)
        else:  # whole, and only its newline is missing
            os.write(self._file, b"\n")
        os.fsync(self._file)

    def append(self, event: str, values: Mapping[str, Any], *, sync: bool = True) -> None:
        """Write one event, with one write, and see it and all before it to the disk (``sync``).

        Without ``sync`` it survives the death of the process and not that of the machine. Raises LedgerError where
        the disk is full or gone.
        """
        line = json.dumps({"event": event, **values}, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            if not self._whole:
                self._mend()
                self._whole = True
            while line:
                line = line[os.write(self._file, line) :]
            if sync:
                os.fsync(self._file)
        except OSError as error:
            raise LedgerError(
                f"every event must reach the disk, but {self.run / FILE} cannot be written ({error.strerror}); "
                "what was written before is safe: make room and use --resume"
            ) from error

    def close(self) -> None:
        """Give the run back."""
        os.close(self._file)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def runs(folder: Path) -> Iterator[Path]:
    """The runs in ``folder``, newest last."""
    found = [path.parent for path in folder.glob(f"*/{FILE}")]
    yield from sorted(found, key=lambda run: (run / FILE).stat().st_mtime)
