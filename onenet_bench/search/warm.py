"""A warm start: what an earlier run has trained is known to a new search from its beginning.

The Records travel in the new run's header, so that a resumed search knows them too, whatever became of the old run.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from onenet_bench import ledger
from onenet_bench.errors import MeasureError, SpaceError
from onenet_bench.measure.latency import Conditions, latency_ms
from onenet_bench.record import Record, Status
from onenet_bench.search.core import Search
from onenet_bench.task import Task


def earlier(run: Path, search: Search) -> tuple[Record, ...]:
    """The Records of the nets that ``run`` has trained, for ``search``: without histories and pictures.

    Where latency is an objective, that of each net is measured here under the conditions of ``search``, unless it was
    before. Raises SpaceError where the run trained other nets, on other data or in another way; its budget and
    objectives may differ. Raises LedgerError where there is no run.
    """
    if search.sampler != "frontier":
        raise SpaceError(f"a warm start needs the sampler frontier, but got {search.sampler}; choose frontier")
    events = ledger.read_search(run)
    with ledger.understood(run):
        theirs = _asked(Search.from_dict(events[0]).to_dict())  # fields that it lacks had a default's value
        found = [*map(Record.from_dict, events[0].get("earlier", ())), *ledger.records(events)]
    for what, ours in _asked(search.to_dict()).items():
        if theirs[what] != ours:
            raise SpaceError(
                f"a warm start needs a run over the same space, task and recipe, but the {what} of {run} is another; "
                f"choose another run, or search as it did"
            )
    known = [
        replace(record, history=(), per_class={}, artifacts={})
        for record in found
        if record.status is not Status.REJECTED
    ]
    if search.latency is not None and any(o.name == "latency_ms" for o in search.objectives):
        print(f"timing the nets of {run}", file=sys.stderr)
        known = [_timed(record, search.latency) for record in known]
    return tuple(known)


def _timed(record: Record, conditions: Conditions) -> Record:
    """``record`` with the latency of its net here; None where it cannot be timed, or was not trained to the end."""
    if record.spec is None or record.costs is None:
        return record
    latency = None
    if record.status is Status.COMPLETE:
        with suppress(MeasureError):
            latency = latency_ms(record.spec, conditions)
    return replace(record, costs=replace(record.costs, latency_ms=latency))


def _asked(header: dict[str, Any]) -> dict[str, Any]:
    """What decides a score, of a run's header."""
    return {
        "space": {name: header["space"][name] for name in ("choices", "net")},
        "task": Task.from_dict(header["task"]).digest(),
        "recipe": {name: value for name, value in header["recipe"].items() if name != "seed"},
    }
