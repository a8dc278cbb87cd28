"""The final answer: the nets of the front and the planned baselines, trained anew and scored on the test split.

The scores of a search flatter its front, which is the best of many noisy numbers. So its nets are trained again, at
full length, with seeds that the search has not used, and so are the baselines.

The trainings are a run of their own in the run's folder ``final``, with its own ledger: carried out by the same
engines and resumed like any other. Asked for again, with more seeds, after the front has moved or where some failed, it
trains what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onenet_bench import costs, ledger, pareto
from onenet_bench.errors import MeasureError, RecipeError
from onenet_bench.ledger import Ledger
from onenet_bench.measure.latency import latency_ms
from onenet_bench.record import SCHEMA, Machine, Record, Status, provenance
from onenet_bench.search.baselines import baselines
from onenet_bench.search.core import RETRIES, Core, Job, Search
from onenet_bench.search.trial import failed
from onenet_bench.spec import NetSpec


def contestants(core: Core) -> list[dict[str, Any]]:
    """Who is trained anew, JSON-ready: the nets of the front by rising cost, then the baselines that are not among
    them. ``trial`` is the search's, None for a baseline."""
    front = pareto.front(ledger.frame(core.records), core.search.objectives)
    cost = next(o.name for o in core.search.objectives if not o.is_score)
    by_trial = {record.trial: record for record in core.records}
    nets = {}
    for trial in front.sort_values(cost)["trial"].tolist():
        spec = by_trial[trial].spec
        assert spec is not None  # it was trained
        nets[spec.digest()] = {"name": f"trial {trial}", "trial": trial, "spec": spec.to_dict()}
    for name, spec in baselines(core.sought):
        nets.setdefault(spec.digest(), {"name": name, "trial": None, "spec": spec.to_dict()})
    return list(nets.values())


def train(core: Core, run: Path, *, seeds: int, carry_out: Callable[[Final, Path], None]) -> Final | None:
    """Train the contestants of the search in ``run`` ``seeds`` times each, as far as that has not been done.

    ``carry_out`` is an engine: it trains what it is given, in a folder. None where the search has no front. Raises
    RecipeError unless ``seeds`` is positive.
    """
    if seeds < 1:
        raise RecipeError(f"final trainings need at least one seed, but got {seeds}")
    if not any(record.status is Status.COMPLETE for record in core.records):
        return None
    folder = run / ledger.FINAL
    nets, chosen = contestants(core), [core.search.recipe.seed + 1 + i for i in range(seeds)]
    asked = {"contestants": nets, "seeds": chosen}
    new = not ledger.has_begun(folder)
    with Ledger(folder, create=new) as book:
        events = [] if new else ledger.read(folder)
        total = len(nets) * seeds
        with ledger.understood(folder):
            final = Final(book, events, replace(core.search, trials=total), nets, chosen)
        if new:
            head = {"schema": SCHEMA, "name": f"{run.resolve().name}, final", **core.search.to_dict(), "trials": total}
            book.append("run", {**head, **asked, "machine": Machine.here().to_dict(), "provenance": provenance()})
        else:
            book.append("resume", {"trials": total, **asked, "provenance": provenance()})
        try:
            carry_out(final, folder)
        except KeyboardInterrupt:
            final.ended = "interrupted"
        book.append("end", {"reason": final.ended})
    return final


class Final:
    """The final trainings in progress, asked for and told as a search's core is. Seeds vary slowest, so that every
    net has been trained once before any is trained twice."""

    def __init__(
        self, book: Ledger, events: list[dict[str, Any]], search: Search, contestants: list[dict[str, Any]],
        seeds: list[int],
    ) -> None:  # fmt: skip
        self.search = search
        self.ended = ""
        self._ledger = book
        names = {NetSpec.from_dict(one["spec"]).digest(): one["name"] for one in contestants}
        self._wanted = {(digest, seed): name for seed in seeds for digest, name in names.items()}
        self._specs = {NetSpec.from_dict(one["spec"]).digest(): NetSpec.from_dict(one["spec"]) for one in contestants}
        asked = {event["trial"]: (event["digest"], event["seed"]) for event in events if event["event"] == "ask"}
        told = {record.trial: record for record in ledger.records(events)}
        whole = {trial: record for trial, record in told.items() if record.status is Status.COMPLETE}
        self.records = [record for trial, record in whole.items() if asked[trial] in self._wanted]
        self._next = len(asked)
        open_ = {key: trial for trial, key in asked.items() if trial not in told}  # in flight when it was cut off
        done = {asked[trial] for trial in whole}
        self._queue = [(open_.get(key), *key) for key in self._wanted if key not in done]
        self._running: dict[int, Job] = {}
        self._lost = {event["trial"]: event["attempt"] for event in events if event["event"] == "retry"}
        self._epochs = {event["trial"]: event["epoch"] for event in events if event["event"] == "report"}  # the last

    def ask(self) -> Job | None:
        """The next training, or None: ``ended`` then says why, and is empty while others still run."""
        while self._queue:
            trial, digest, seed = self._queue.pop(0)
            name = self._wanted[digest, seed]
            if trial is None:
                trial, self._next = self._next, self._next + 1
                self._ledger.append("ask", {"trial": trial, "digest": digest, "seed": seed, "choices": {"net": name}})
            recipe, task, spec = replace(self.search.recipe, seed=seed), self.search.task, self._specs[digest]
            counted = costs.count_training(spec, task.resolution, recipe)
            job = Job(trial=trial, choices={"net": name}, spec=spec, costs=counted, recipe=recipe, test=True)
            try:
                if self.search.latency is not None:
                    counted = replace(counted, latency_ms=latency_ms(spec, self.search.latency))
            except MeasureError as error:
                self._running[trial] = job
                self.tell(failed(self, job, f"cannot be timed: {error}"))
                continue
            self._running[trial] = replace(job, costs=counted)
            return self._running[trial]
        if not self._running:
            failures = sum(record.status is not Status.COMPLETE for record in self.records)
            self.ended = f"{len(self._wanted)} final trainings were made" + (f"; {failures} failed" if failures else "")
        return None

    def report(self, trial: int, progress: Mapping[str, Any]) -> bool:
        """Note an epoch, once. Final trainings are never stopped."""
        if progress["epoch"] > self._epochs.get(trial, 0):
            self._epochs[trial] = progress["epoch"]
            self._ledger.append("report", {"trial": trial, **progress}, sync=False)
        return True

    def tell(self, record: Record) -> None:
        """A training has ended. It is on the disk when this returns."""
        record = replace(record, costs=self._running[record.trial].costs)  # with what only a run could tell
        self._ledger.append("tell", {"trial": record.trial, "record": record.to_dict()})
        del self._running[record.trial]
        self.records.append(record)

    def lost(self, trial: int, reason: str) -> bool:
        """A training's machine has died. Whether it is asked for again; after ``RETRIES`` times it is not."""
        attempt = self._lost[trial] = self._lost.get(trial, 0) + 1
        if attempt > RETRIES:
            return False
        self._ledger.append("retry", {"trial": trial, "reason": reason, "attempt": attempt})
        job = self._running.pop(trial)
        assert job.recipe is not None
        self._queue.insert(0, (trial, job.spec.digest(), job.recipe.seed))
        return True
