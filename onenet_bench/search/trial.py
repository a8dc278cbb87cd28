"""One trial as an engine carries it out: what it is handed, what it says, and the Record that it ends with.

A trial's state is written to ``checkpoints/NNNN`` in the run's folder: at the end of an epoch, no sooner than
``SAVED_EVERY`` seconds after the last time, and when it is told to stop. A trial that is asked for again goes on from
there, and ends as one that was never interrupted. The state is deleted once the trial has ended for good (``tidy``); a
stopped one keeps its own until the search ends, for it may be promoted.

Engines (``local``, ``cluster``) differ in where a trial's process runs, and in nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onenet_bench.measure.latency import ENVIRONMENT as ENVIRONMENT
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, Record, Status, provenance
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

if TYPE_CHECKING:
    from onenet_bench.data import Splits
    from onenet_bench.search.core import Core, Job
    from onenet_bench.search.final import Final

STATES = "checkpoints"
"""The folder of all trials' states, in the run's."""

SAVED_EVERY = 20.0
"""Seconds of training that a trial loses at most, beside the epoch that it is in, when its process is killed. Writing
the state of a small net takes 15 ms, that of a U-Net of 31 million weights a second."""

PIXELS_OF = "ONENET_BENCH_PIXELS_OF"
"""The environment variable that names, as JSON, the task whose pixels a server of processes loads before it forks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All that a trial's process needs, as values that travel: a job of a search, and where it runs. With ``test`` the
    test split is scored too."""

    trial: int
    choices: dict[str, Any]
    spec: dict[str, Any]
    task: dict[str, Any]
    recipe: dict[str, Any]
    folder: str
    device: str
    threads: int
    compiled: bool = False
    test: bool = False
    saved_every: float = SAVED_EVERY

    def to_json(self) -> str:
        """As text that travels."""
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Work:
        """The inverse of ``to_json``."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Started:
    """A trial has begun."""

    job: Job


@dataclass(frozen=True, slots=True)
class Epoch:
    """A trial has finished an epoch."""

    job: Job
    progress: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial has ended, whichever way."""

    record: Record


Event = Started | Epoch | Ended

CarryOut = Callable[[Work, Callable[[Mapping[str, Any]], bool]], Record]
"""What a trial's process does with its Work: as ``carry_out``."""


def work(core: Core | Final, job: Job, folder: Path, *, device: str, threads: int, compiled: bool = False) -> Work:
    """``job`` of ``core``'s search, to be carried out in the run's ``folder``."""
    return Work(
        trial=job.trial, choices=dict(job.choices), spec=job.spec.to_dict(), task=core.search.task.to_dict(),
        recipe=(job.recipe or core.search.recipe).to_dict(), folder=str(folder), device=device, threads=threads,
        compiled=compiled, saved_every=SAVED_EVERY, test=job.test,
    )  # fmt: skip


def carry_out(
    asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool], splits: Splits | None = None
) -> Record:  # fmt: skip
    """Train and score; in the trial's own process. ``on_epoch`` hears of every epoch and says whether to go on; of the
    last one before an interruption it hears again. ``splits`` are the task's pixels where the engine has brought them.

    Raises LedgerError where the disk is full.
    """
    import torch

    from onenet_bench.evaluate import evaluate
    from onenet_bench.training import Checkpointing

    torch.set_num_threads(asked.threads)
    task = Task.from_dict(asked.task)
    return evaluate(
        NetSpec.from_dict(asked.spec), task, Recipe.from_dict(asked.recipe), trial=asked.trial,
        choices=asked.choices, device=asked.device, run=Path(asked.folder), on_epoch=on_epoch, again=True,
        test=asked.test, compiled=asked.compiled, splits=splits or pixels(task),
        checkpoints=Checkpointing(folder=Path(asked.folder) / state(asked.trial), seconds=asked.saved_every),
    )  # fmt: skip


@lru_cache(maxsize=1)
def pixels(task: Task) -> Splits:
    """The task's pixels, loaded once in a process and in those that are forked from it. Raises DataError."""
    from onenet_bench import data

    return data.load(task)


def state(number: int) -> str:
    """The folder of a trial's state, in the run's."""
    return f"{STATES}/{number:04d}"


def tidy(folder: Path, record: Record) -> None:
    """Delete the state of a trial that was told, in the run's ``folder``, unless it was stopped and may go on."""
    if record.status is not Status.STOPPED:
        shutil.rmtree(folder / state(record.trial), ignore_errors=True)


def crash(error: Exception) -> str:
    """Why a trial whose process caught ``error`` has no Record of its own."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def failed(core: Core | Final, job: Job, reason: str, history: Sequence[Mapping[str, Any]] = ()) -> Record:
    """The Record of a trial that could not make one itself. ``history`` are the epochs that it reported."""
    return Record(
        trial=job.trial, spec=job.spec, choices=job.choices, task=core.search.task,
        recipe=job.recipe or core.search.recipe, machine=Machine.here(), status=Status.FAILED, reason=reason,
        costs=job.costs, history=tuple(history), seconds=history[-1]["seconds"] if history else 0.0,
        provenance=provenance(),
    )  # fmt: skip


@contextmanager
def environment(values: Mapping[str, str], *, over: bool = True) -> Iterator[None]:
    """``values`` in the environment while the block runs; what is set already stays unless ``over``."""
    values = {name: value for name, value in values.items() if over or name not in os.environ}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
