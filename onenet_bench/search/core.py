"""The core of a search: ask, report, tell, over the ledger.

The ledger is the only truth. The Optuna study lives in memory and is rebuilt from the ledger's events; trials
that were asked for and never told run again under their number. Engines (``local``) only execute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from onenet_bench import costs
from onenet_bench.budget import Budget, excess
from onenet_bench.errors import RecipeError, SpecError
from onenet_bench.ledger import Ledger
from onenet_bench.pareto import Objective, objectives
from onenet_bench.recipe import Recipe
from onenet_bench.record import Costs, Machine, Record, Status, provenance
from onenet_bench.search import samplers
from onenet_bench.search.parameters import as_parameters, distributions
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

STALLED = 20
"""After so many rejections in a row chance proposes instead of the sampler, until a candidate can be trained."""

MOST_REJECTIONS = 300
"""After so many rejections in a row the search ends, unless its sampler knows its own end."""

STATES = {
    Status.COMPLETE: TrialState.COMPLETE,
    Status.STOPPED: TrialState.PRUNED,  # a partial score never enters the study as complete
    Status.FAILED: TrialState.FAIL,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A candidate to be trained."""

    trial: int
    choices: Mapping[str, Any]
    spec: NetSpec
    costs: Costs


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a run is to find out, and how: the first line of its ledger.

    ``trials`` counts candidates that are trained, whatever becomes of them; rejected ones are free.
    """

    space: SearchSpace
    task: Task
    recipe: Recipe
    objectives: tuple[Objective, ...]
    budget: tuple[Budget, ...]
    sampler: str
    seed: int
    trials: int

    def __post_init__(self) -> None:
        samplers.check(self.sampler)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "space": self.space.to_dict(),
            "task": self.task.to_dict(),
            "recipe": self.recipe.to_dict(),
            "objectives": [o.name for o in self.objectives],
            "budget": [str(b) for b in self.budget],
            "sampler": self.sampler,
            "seed": self.seed,
            "trials": self.trials,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Search:
        """The inverse of ``to_dict``; other keys are passed over."""
        return cls(
            space=SearchSpace.from_dict(values["space"]),
            task=Task.from_dict(values["task"]),
            recipe=Recipe.from_dict(values["recipe"]),
            objectives=objectives(values["objectives"]),
            budget=tuple(Budget.parse(text) for text in values["budget"]),
            sampler=values["sampler"],
            seed=values["seed"],
            trials=values["trials"],
        )


class Core:
    """One search in progress. ``events`` are those already in the ledger (all of them, from the first on)."""

    def __init__(self, ledger: Ledger, events: Iterable[Mapping[str, Any]], search: Search) -> None:
        self.search = search
        self.ended = ""
        self.records: list[Record] = []
        self._ledger = ledger
        self._machine, self._provenance = Machine.here(), provenance()
        self._seen: dict[str, int] = {}  # digest -> trial
        self._started = 0
        self._idle = self._idle_before = 0  # rejections in a row
        self._running: dict[int, Job] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["maximize" if o.maximise else "minimize" for o in search.objectives],
            sampler=samplers.make(search.sampler, search, 0),
        )
        self._distributions = distributions(search.space)
        untold: dict[int, Mapping[str, Any]] = {}
        for event in events:
            self._replay(event, untold)
        for number, choices in untold.items():
            self._admit(number, choices)
        self._waiting = list(self._running)

    # Asking ------------------------------------------------------------------------------------------

    def ask(self) -> Job | None:
        """The next candidate to train, or None: ``ended`` then says why, and is empty while others still run."""
        if self._waiting:
            return self._running[self._waiting.pop(0)]
        search = self.search
        while True:
            number = len(self._study.get_trials(deepcopy=False))
            sampler = samplers.make(search.sampler, search, number)
            if self._started >= search.trials:
                self.ended = f"{search.trials} candidates were trained"
            elif isinstance(sampler, samplers.Exhaustive):
                self.ended = sampler.ended(self._study, number)
            elif self._idle >= MOST_REJECTIONS:
                self.ended = f"{MOST_REJECTIONS} proposals in a row could not be trained: the space seems exhausted"
            elif self._idle >= STALLED:
                sampler = samplers.make("random", search, number)
            if self.ended:
                return None
            self._study.sampler = sampler
            choices = search.space.suggest(self._study.ask())
            attributes = self._study.get_trials(deepcopy=False)[number].system_attrs
            self._ledger.append("ask", {"trial": number, "choices": choices, "attributes": attributes}, sync=False)
            self._asked()
            if job := self._admit(number, choices):
                return job

    def _asked(self) -> None:
        """Every proposal counts as good until it is rejected, which happens before the next one."""
        self._idle_before, self._idle = self._idle, 0

    def _admit(self, number: int, choices: Mapping[str, Any]) -> Job | None:
        """A job; or None, and the candidate is a rejected Record."""
        job, spec, counted, reason = self._examine(number, choices)
        if job is not None:
            self._running[number] = job
            self._seen[job.spec.digest()] = number
            self._started += 1
            return job
        record = Record(
            trial=number, spec=spec, choices=dict(choices), task=self.search.task, recipe=self.search.recipe,
            machine=self._machine, status=Status.REJECTED, reason=reason, costs=counted,
            provenance=self._provenance,
        )  # fmt: skip
        self._ledger.append("tell", {"trial": number, "record": record.to_dict()}, sync=False)
        self._told(record)
        return None

    def _examine(self, number: int, choices: Mapping[str, Any]) -> tuple[Job | None, NetSpec | None, Costs | None, str]:
        """A job, or the reason why the candidate is not worth training."""
        try:
            spec = self.search.space.spec(
                choices, classes=self.search.task.classes, in_channels=self.search.task.in_channels
            )
        except SpecError as error:
            return None, None, None, f"impossible: {error}"
        try:
            recipe = self.search.recipe
            counted = costs.count(
                spec, self.search.task.resolution, batch=recipe.batch, precision=recipe.precision,
                deep_supervision=recipe.deep_supervision > 0,
            )  # fmt: skip
        except (SpecError, RecipeError) as error:
            return None, spec, None, f"impossible: {error}"
        if (first := self._seen.get(spec.digest())) is not None:
            return None, spec, counted, f"duplicate of trial {first}"
        if over := excess(counted, self.search.budget):
            return None, spec, counted, f"over budget: {over}"
        return Job(trial=number, choices=dict(choices), spec=spec, costs=counted), spec, counted, ""

    # Reporting and telling ---------------------------------------------------------------------------

    def report(self, trial: int, progress: Mapping[str, Any]) -> bool:
        """Note a trial's epoch; whether it shall go on."""
        self._ledger.append("report", {"trial": trial, **progress}, sync=False)
        return True

    def tell(self, record: Record) -> None:
        """A trial has ended. It is on the disk when this returns."""
        self._ledger.append("tell", {"trial": record.trial, "record": record.to_dict()})
        self._running.pop(record.trial)
        self._told(record)

    def _told(self, record: Record) -> None:
        self.records.append(record)
        values = None
        if record.status is Status.REJECTED:
            self._idle = self._idle_before + 1
            # A duplicate teaches nothing; what is impossible or over budget is to be avoided.
            state = TrialState.FAIL if record.reason.startswith("duplicate") else TrialState.PRUNED
        else:
            state = STATES[record.status]
        if state is TrialState.COMPLETE:
            found = {**record.scores, **(record.costs.to_dict() if record.costs else {})}
            values = [found.get(o.name) for o in self.search.objectives]
            if any(v is None for v in values):
                state, values = TrialState.FAIL, None
        self._study.tell(record.trial, values, state)  # type: ignore[arg-type]

    # Rebuilding --------------------------------------------------------------------------------------

    def _replay(self, event: Mapping[str, Any], untold: dict[int, Mapping[str, Any]]) -> None:
        if event["event"] == "ask":
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    params=as_parameters(self.search.space, event["choices"]),
                    distributions=self._distributions,
                    system_attrs=event["attributes"],
                )
            )
            self._asked()
            untold[event["trial"]] = event["choices"]
        elif event["event"] == "tell":
            record = Record.from_dict(event["record"])
            del untold[record.trial]
            if record.status is not Status.REJECTED and record.spec is not None:
                self._seen[record.spec.digest()] = record.trial
                self._started += 1
            self._told(record)
