"""One trial as an engine carries it out: what it is handed, what it says, and the Record that it ends with.

Engines (``local``, ``cluster``) differ in where a trial's process runs, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, Record, Status, provenance
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

if TYPE_CHECKING:
    from onenet_bench.search.core import Core, Job

ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184",
}
"""What trial processes are started with, beside their threads: a page that was freed is kept, since fetching new ones
from the system costs CPU training about half of its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All that a trial's process needs, as values that travel: a job of a search, and where it runs."""

    trial: int
    choices: dict[str, Any]
    spec: dict[str, Any]
    task: dict[str, Any]
    recipe: dict[str, Any]
    folder: str
    device: str
    threads: int


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


def work(core: Core, job: Job, folder: Path, *, device: str, threads: int) -> Work:
    """``job`` of ``core``'s search, to be carried out in the run's ``folder``."""
    return Work(
        trial=job.trial, choices=dict(job.choices), spec=job.spec.to_dict(), task=core.search.task.to_dict(),
        recipe=core.search.recipe.to_dict(), folder=str(folder), device=device, threads=threads,
    )  # fmt: skip


def carry_out(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    """Train and score; in the trial's own process. ``on_epoch`` hears of every epoch and says whether to go on."""
    import torch

    from onenet_bench.evaluate import evaluate

    torch.set_num_threads(asked.threads)
    return evaluate(
        NetSpec.from_dict(asked.spec), Task.from_dict(asked.task), Recipe.from_dict(asked.recipe), trial=asked.trial,
        choices=asked.choices, device=asked.device, run=Path(asked.folder), on_epoch=on_epoch,
    )  # fmt: skip


def crash(error: Exception) -> str:
    """Why a trial whose process caught ``error`` has no Record of its own."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def failed(core: Core, job: Job, reason: str) -> Record:
    """The Record of a trial that could not make one itself."""
    return Record(
        trial=job.trial, spec=job.spec, choices=job.choices, task=core.search.task, recipe=core.search.recipe,
        machine=Machine.here(), status=Status.FAILED, reason=reason, costs=job.costs, provenance=provenance(),
    )  # fmt: skip
