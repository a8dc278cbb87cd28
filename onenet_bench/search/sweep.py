"""A sweep: from a Search to a run's folder, from the start or from where it was left.

A run's folder holds ``ledger.jsonl``, ``samples.npz`` (the validation images that are shown), and per trained
candidate ``predictions/NNNN.npz`` and ``weights/NNNN.safetensors``. Weights are kept for the nets of the front. Trials
that are in flight, or stopped and not given up, have their state in ``checkpoints/NNNN/``. Final trainings are a run of
their own in ``final/``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onenet_bench import data, ledger, pareto, screen
from onenet_bench.data.samples import Samples
from onenet_bench.errors import DataError, LedgerError
from onenet_bench.files import whole
from onenet_bench.ledger import Ledger
from onenet_bench.record import SCHEMA, Machine, provenance
from onenet_bench.search import final as finals
from onenet_bench.search import trial
from onenet_bench.search.core import Core, Search
from onenet_bench.search.display import Display
from onenet_bench.search.final import Final
from onenet_bench.search.stall import stalled
from onenet_bench.search.trial import Ended, Event
from onenet_bench.task import Task


class Engine(Protocol):
    """Trains what a core asks for until it asks for nothing more; artifacts go to the folder."""

    def __call__(self, core: Core | Final, folder: Path, *, heard: Callable[[Event], None]) -> None: ...


def start(
    search: Search, folder: Path, engine: Engine, *, command: str, memory_mib: float | None = None, final: int = 0
) -> Core:  # fmt: skip
    """Begin a run in ``folder`` and carry it out. Returns its core; ``core.ended`` says why it ended.

    ``memory_mib`` is what one trial may take of its device's memory, ``final`` how many times the nets of the front are
    trained anew when the search has ended. Raises SpaceError where the space has no net (within the budget),
    LedgerError where the folder holds a run already or cannot be written, DataError for unusable data.
    """
    asked = search.task
    screen.check(search.space, asked.resolution, search.budget, classes=asked.classes, in_channels=asked.in_channels)
    shown = _shown_images(asked, final)
    if any(o.name == "dice_case_fg" for o in search.objectives) and not any("/" in name for name in shown.names):
        raise DataError(
            f"dice_case_fg is a mean over patients, but {search.task.data} has none; use dice_fg, or data of volumes"
        )
    if os.path.isdir(folder / "weights") and not ledger.has_begun(folder):
        raise LedgerError(f"{folder} holds a training, whose weights stay; take another folder")
    with Ledger(folder, create=True) as book:
        header = {
            "schema": SCHEMA, "name": folder.resolve().name, **search.to_dict(), "command": command,
            "final": final, "machine": Machine.here().to_dict(), "provenance": provenance(),
        }  # fmt: skip
        book.append("run", header)
        _keep(shown, search.task, folder)
        return _carry_out(Core(book, [], search, memory_mib=memory_mib), book, folder, engine, final)


def resume(
    folder: Path, engine: Engine, *, command: str, trials: int | None, window: int | None = None,
    memory_mib: float | None = None, final: int | None = None,
) -> Core:  # fmt: skip
    """Go on with the run in ``folder``, to ``trials`` candidates where given, until its front has stood still for
    ``window``, and with ``final`` trainings of it then; what is None stays what it was. Trials in flight go on from
    their last checkpoint."""
    with Ledger(folder, create=False) as book:
        events = ledger.read_search(folder)
        with ledger.understood(folder):
            search = Search.from_dict(events[0])
        asked = {"trials": trials, "window": window, "final": final}
        said: dict[str, Any] = {"final": 0}
        for event in [events[0], *(event for event in events if event["event"] == "resume"), asked]:
            said |= {name: event[name] for name in asked if event.get(name) is not None}
        final = said.pop("final")
        search = replace(search, **said)
        _keep(_shown_images(search.task, final), search.task, folder)  # the same data must still be there
        with ledger.understood(folder):
            core = Core(book, events[1:], search, memory_mib=memory_mib)
        book.append("resume", {**asked, "command": command, "provenance": provenance()})
        return _carry_out(core, book, folder, engine, final)


def _shown_images(task: Task, final: int) -> Samples:
    """The validation images, of data that can be trained and scored on. Raises DataError."""
    splits = data.load(task)
    data.check_labels(task, splits, "train", "validation", *(["test"] if final else []))
    if final and not task.test:
        print(f"{task.data} has no test split: final trainings are scored on validation alone, which the search sees",
              file=sys.stderr)  # fmt: skip
    return splits.validation


def _keep(images: Samples, task: Task, folder: Path) -> None:
    """The images that the report shows, unless they are there."""
    path = folder / "samples.npz"
    if path.exists():
        return
    with whole(path) as draft:
        np.savez_compressed(
            draft, images=images.images[task.shown], masks=images.masks[task.shown],
            names=np.array([images.names[i] for i in task.shown]),
        )  # fmt: skip


def _carry_out(core: Core, book: Ledger, folder: Path, engine: Engine, final: int) -> Core:
    def stop_where_stalled() -> None:
        if core.search.window and (why := stalled(core.records, core.search.objectives, core.search.window)):
            core.stop(f"{why} (--stop-when-stalled {core.search.window})")

    with Display(core) as display:
        core.on_rejected = display.rejected

        def heard(event: Event) -> None:
            display(event)
            if isinstance(event, Ended):
                stop_where_stalled()

        try:
            stop_where_stalled()
            engine(core, folder, heard=heard)
        except KeyboardInterrupt:
            core.ended = "interrupted"
    book.append("end", {"reason": core.ended})
    if core.ended == "interrupted":
        return core
    try:
        _prune(core, folder)
        if final:
            if any(limit.cost == "latency_ms" for limit in core.search.budget):
                print("timing the planned baselines", file=sys.stderr)
            made = finals.train(core, folder, seeds=final, carry_out=partial(_shown, engine))
            core.ended = "interrupted" if made is not None and made.ended == "interrupted" else core.ended
    except KeyboardInterrupt:
        core.ended = "interrupted"
    return core


def _shown(engine: Engine, final: Final, folder: Path) -> None:
    with Display(final) as display:
        engine(final, folder, heard=display)


def _prune(core: Core, folder: Path) -> None:
    """Delete the weights of nets that are not on the front of all objectives, and the states of trials: all have
    ended."""
    best = set(pareto.front(ledger.frame(core.records), core.search.objectives)["trial"])
    for record in core.records:
        if record.trial not in best and (name := record.artifacts.get("weights")):
            (folder / name).unlink(missing_ok=True)
    for torn in folder.glob("*/.*-[0-9]*.*"):  # what killed processes were writing
        torn.unlink(missing_ok=True)
    shutil.rmtree(folder / trial.STATES, ignore_errors=True)


def find(name: str, home: Path) -> Path:
    """The run called ``name``: a folder, one in ``home``, or ``latest``. Raises LedgerError."""
    if name == "latest":
        found = list(ledger.runs(home))
        if not found:
            raise LedgerError(f"there is no run in {home} yet; start one with onenet-bench sweep")
        return found[-1]
    for folder in (Path(name), home / name):
        if (folder / ledger.FILE).exists():
            return folder
    known_runs = ", ".join(path.name for path in ledger.runs(home)) or "none yet"
    raise LedgerError(f"a run is named by its folder, but {name!r} is none; runs in {home}: {known_runs}")
