"""A sweep: from a Search to a run's folder, from the start or from where it was left.

A run's folder holds ``ledger.jsonl``, ``samples.npz`` (the validation images that are shown), and per trained
candidate ``predictions/NNNN.npz`` and ``weights/NNNN.safetensors``. Weights are kept for the nets of the front.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from onenet_bench import data, ledger, pareto
from onenet_bench.errors import DataError, LedgerError
from onenet_bench.ledger import Ledger
from onenet_bench.record import SCHEMA, Machine, provenance
from onenet_bench.search import local
from onenet_bench.search.core import Core, Search
from onenet_bench.search.display import Display


def start(search: Search, folder: Path, *, command: str, workers: int, threads: int, device: str) -> Core:
    """Begin a run in ``folder`` and carry it out. Returns its core; ``core.ended`` says why it ended.

    Raises LedgerError where the folder holds a run already or cannot be written, DataError for unusable data.
    """
    shown = data.load(search.task).validation
    if any(o.name == "dice_case_fg" for o in search.objectives) and not any("/" in name for name in shown.names):
        raise DataError(
            f"dice_case_fg is a mean over patients, but {search.task.data} has none; use dice_fg, or data of volumes"
        )
    with Ledger(folder, create=True) as book:
        header = {
            "schema": SCHEMA, "name": folder.resolve().name, **search.to_dict(), "command": command,
            "machine": asdict(Machine.here()), "provenance": provenance(),
        }  # fmt: skip
        book.append("run", header)
        np.savez_compressed(
            folder / "samples.npz",
            images=shown.images[search.task.shown],
            masks=shown.masks[search.task.shown],
            names=np.array([shown.names[i] for i in search.task.shown]),
        )
        return _carry_out(Core(book, [], search), book, folder, workers, threads, device)


def resume(folder: Path, *, trials: int | None, workers: int, threads: int, device: str) -> Core:
    """Go on with the run in ``folder``, to ``trials`` candidates where given. Trials in flight run again."""
    with Ledger(folder, create=False) as book:
        events = ledger.read(folder)
        search = Search.from_dict(events[0])
        for event in events:
            if event["event"] == "resume" and event["trials"] is not None:
                search = replace(search, trials=event["trials"])
        if trials is not None:
            search = replace(search, trials=trials)
        data.load(search.task)  # the same data must still be there
        book.append("resume", {"trials": trials, "provenance": provenance()})
        return _carry_out(Core(book, events[1:], search), book, folder, workers, threads, device)


def _carry_out(core: Core, book: Ledger, folder: Path, workers: int, threads: int, device: str) -> Core:
    with Display(core) as display:
        try:
            local.run(core, folder, workers=workers, threads=threads, device=device, heard=display)
        except KeyboardInterrupt:
            core.ended = "interrupted"
    book.append("end", {"reason": core.ended})
    if core.ended != "interrupted":
        _prune(core, folder)
    return core


def _prune(core: Core, folder: Path) -> None:
    """Delete the weights of nets that are not on the front of all objectives."""
    best = set(pareto.front(ledger.frame(core.records), core.search.objectives)["trial"])
    for record in core.records:
        if record.trial not in best and (name := record.artifacts.get("weights")):
            (folder / name).unlink(missing_ok=True)


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
