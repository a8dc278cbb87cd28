"""The core of a search: ask, report, tell, over the ledger.

The ledger is the only truth. The Optuna study lives in memory and is rebuilt from the ledger's events; trials
that were asked for and never told go on under their number. Engines (``local``, ``cluster``) only execute.

A trial that ``fidelity`` stops early is paused: open in the study, where samplers see it as pending, until it is
promoted or the search ends. Only then is it told, as stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from onenet_bench import costs
from onenet_bench.budget import Budget, excess
from onenet_bench.errors import LedgerError, MeasureError, RecipeError, SpecError
from onenet_bench.ledger import Ledger
from onenet_bench.measure.latency import Conditions, latency_ms
from onenet_bench.pareto import Objective, objectives
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCORES, Costs, Machine, Record, Status, provenance
from onenet_bench.search import fidelity, samplers
from onenet_bench.search.fidelity import Halving
from onenet_bench.search.parameters import as_parameters, distributions
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

STALLED = 20
"""After so many rejections in a row chance proposes instead of the sampler, until a candidate can be trained."""

MOST_REJECTIONS = 300
"""After so many rejections in a row the search ends, unless its sampler knows its own end."""

RETRIES = 2
"""How often a trial that was lost with its machine is asked for again."""

DUPLICATE = "duplicate"
"""What the reason of a candidate starts with whose net was started before."""

STATES = {
    Status.COMPLETE: TrialState.COMPLETE,
    Status.STOPPED: TrialState.PRUNED,  # a partial score never enters the study as complete
    Status.FAILED: TrialState.FAIL,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A candidate to be trained; from its last checkpoint on, where it has one. ``recipe`` is the search's where None;
    with ``test`` the test split is scored too."""

    trial: int
    choices: Mapping[str, Any]
    spec: NetSpec
    costs: Costs
    recipe: Recipe | None = None
    test: bool = False


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a run is to find out, and how: the first line of its ledger.

    ``trials`` counts candidates that are trained, whatever becomes of them; rejected ones are free. ``fidelity`` is
    a name in ``fidelity.FIDELITIES``. The search ends early when its front has stood still for ``window`` complete
    candidates (0: never).
    """

    space: SearchSpace
    task: Task
    recipe: Recipe
    objectives: tuple[Objective, ...]
    budget: tuple[Budget, ...]
    sampler: str
    seed: int
    trials: int
    fidelity: str = "auto"
    window: int = 0
    latency: Conditions | None = None
    """How candidates are timed; None where no objective and no budget asks for it."""
    earlier: tuple[Record, ...] = ()
    """Of another run: what the sampler frontier starts from (see ``warm``)."""

    def __post_init__(self) -> None:
        samplers.check(self.sampler, self.space)
        fidelity.check(self.fidelity)
        named = {o.name for o in self.objectives} | {b.cost for b in self.budget}
        if "supervision_macs" in named and not self.recipe.deep_supervision:
            raise RecipeError(
                "supervision_macs are those of deep supervision, but the recipe has none; set "
                "deep_supervision in the space's [recipe] above 0"
            )
        if self.latency is None and "latency_ms" in named:
            object.__setattr__(self, "latency", Conditions(resolution=self.task.resolution))

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
            "fidelity": self.fidelity,
            "window": self.window,
            "latency": asdict(self.latency) if self.latency else None,
            "earlier": [record.to_dict() for record in self.earlier],
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
            fidelity=values.get("fidelity", "off"),  # runs from before there was any
            window=values.get("window", 0),
            latency=Conditions(**values["latency"]) if values.get("latency") else None,
            earlier=tuple(map(Record.from_dict, values.get("earlier", ()))),
        )


class Core:
    """One search in progress. ``events`` are those already in the ledger (all of them, from the first on).

    With ``memory_mib``, what one trial may take of its device's memory, candidates whose training is predicted to
    take more are rejected.
    """

    def __init__(
        self, ledger: Ledger, events: Iterable[Mapping[str, Any]], search: Search, *, memory_mib: float | None = None
    ) -> None:  # fmt: skip
        self.search = search
        self.ended = ""
        self.records: list[Record] = []
        self.on_rejected: Callable[[Record], None] | None = None
        """Hears of each rejected candidate, between which minutes may pass where they are timed."""
        self._ledger = ledger
        self._machine, self._provenance = Machine.here(), provenance()
        self._memory = () if memory_mib is None else (Budget(cost="peak_training_mib", limit=memory_mib),)
        self.sought = replace(search, budget=(*search.budget, *self._memory))  # what every net is to hold
        self._proposed = 0
        self._idle: list[str] = []  # why what was proposed in a row could not be trained
        self._idle_before = self._idle
        self._spent, self._promoting = "", True  # why nothing new is proposed any more; whether stopped ones go on
        self._seen: dict[str, int] = {}  # digest -> trial, of all that were started
        self._running: dict[int, Job] = {}
        self._paused: dict[int, Record] = {}
        self._reported: dict[int, list[Mapping[str, Any]]] = {}  # epochs of those that run or are paused
        self._retries: dict[int, int] = {}
        self._halving = Halving(search.objectives, search.recipe, search.fidelity)
        self._final: dict[int, Mapping[str, float]] = {}  # scores of those that were trained to the end
        self._next_audit = fidelity.AUDITED
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["maximize" if o.maximise else "minimize" for o in search.objectives],
            sampler=samplers.make(search.sampler, self.sought, 0),
        )
        self._distributions = distributions(search.space)
        untold: dict[int, Mapping[str, Any]] = {}
        for event in events:
            self._replay(event, untold)
        for number, choices in untold.items():
            self._admit(number, choices)
        for number in set(self._running) & set(self._halving.stopped):  # told to stop, and cut off
            self._pause(self._cut_off(number))
        self._audit()
        self._waiting = sorted(self._running)

    # Asking ------------------------------------------------------------------------------------------

    def ask(self) -> Job | None:
        """The next candidate to train, or None: ``ended`` then says why, and is empty while others still run.

        Those that were in flight or lost come first, then those that are promoted, then new ones.
        """
        if self._waiting:
            return self._running[self._waiting.pop(0)]
        if self._promoting and (trial := self._halving.promotable(self._paused)) is not None:
            self._ledger.append("promote", {"trial": trial}, sync=False)
            return self._promote(trial)
        while (sampler := self._sampler()) is not None:
            number = self._proposed
            self._study.sampler = sampler
            before = self._kept()
            choices = self.search.space.suggest(self._study.ask())
            attributes = self._study._storage.get_trial(self._identity(number)).system_attrs
            new = {name: value for name, value in self._kept().items() if before.get(name) != value}
            asked = {"trial": number, "choices": choices, "attributes": attributes, **({"study": new} if new else {})}
            self._ledger.append("ask", asked, sync=False)
            self._asked()
            if job := self._admit(number, choices):
                return job
        if not self._running:
            self._end(self._spent)
        return None

    def stop(self, reason: str) -> None:
        """Propose and promote nothing more; what runs is trained to its end."""
        self._spent, self._promoting = reason, False

    def _sampler(self) -> BaseSampler | None:
        """What proposes the next candidate; None where there is to be none, and ``_spent`` says why."""
        search, number = self.sought, self._proposed
        if not self._spent and len(self._seen) >= search.trials:
            trained = len(self._seen)
            self._spent = f"{trained} candidate{'s were' if trained != 1 else ' was'} trained"
        if self._spent:
            return None
        sampler = samplers.make(search.sampler, search, number)
        if isinstance(sampler, samplers.Exhaustive):
            self._spent = sampler.ended(self._study, number)
        elif len(self._idle) >= MOST_REJECTIONS:
            self._spent = _out_of(self._idle)
        elif len(self._idle) >= STALLED:
            sampler = samplers.make("random", search, number)
        return None if self._spent else sampler

    def _asked(self) -> None:
        """Every proposal counts as good until it is rejected, which happens before the next one."""
        self._proposed += 1
        self._idle_before, self._idle = self._idle, []

    def _admit(self, number: int, choices: Mapping[str, Any]) -> Job | None:
        """A job; or None, and the candidate is a rejected Record."""
        job, spec, counted, reason = self._examine(number, choices)
        if job is not None:
            self._start(job)
            return job
        record = Record(
            trial=number, spec=spec, choices=dict(choices), task=self.search.task, recipe=self.search.recipe,
            machine=self._machine, status=Status.REJECTED, reason=reason, costs=counted,
            provenance=self._provenance,
        )  # fmt: skip
        self._ledger.append("tell", {"trial": number, "record": record.to_dict()}, sync=False)
        self._told(record)
        if self.on_rejected is not None:
            self.on_rejected(record)
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
            counted = costs.count_training(spec, self.search.task.resolution, self.search.recipe)
        except (SpecError, RecipeError) as error:
            return None, spec, None, f"impossible: {error}"
        if (first := self._seen.get(spec.digest())) is not None:
            return None, spec, counted, f"{DUPLICATE} of trial {first}"
        if over := excess(counted, self.search.budget):
            return None, spec, counted, f"over budget: {over}"
        is_new = number not in self._reported  # else it was admitted before the run was interrupted
        if is_new and (over := excess(counted, self._memory)):
            return None, spec, counted, f"does not fit: {over}"
        if self.search.latency is not None:
            try:
                counted = replace(counted, latency_ms=latency_ms(spec, self.search.latency))
            except MeasureError as error:
                if is_new:
                    return None, spec, counted, f"cannot be timed: {error}"
            if is_new and (over := excess(counted, self.search.budget)):
                return None, spec, counted, f"over budget: {over}"
        return Job(trial=number, choices=dict(choices), spec=spec, costs=counted), spec, counted, ""

    def _start(self, job: Job) -> None:
        self._running[job.trial] = job
        self._seen[job.spec.digest()] = job.trial
        self._reported.setdefault(job.trial, [])
        self._halving.enter(job.trial, job.costs)

    def _end(self, reason: str) -> None:
        """Nothing runs, and nothing will: those that wait for a promotion wait in vain."""
        for trial, record in sorted(self._paused.items()):
            self._ledger.append("tell", {"trial": trial, "record": record.to_dict()}, sync=len(self._paused) == 1)
            del self._paused[trial]
            self._told(record)
        failed = sum(record.status is Status.FAILED for record in self.records)
        self.ended = f"{reason}; {failed} of the trainings failed" if failed else reason

    # Reporting and telling ---------------------------------------------------------------------------

    def report(self, trial: int, progress: Mapping[str, Any]) -> bool:
        """Note a trial's epoch; whether it shall go on. Where not, it is told as stopped next.

        An epoch that was reported before, as a trial does that goes on from a checkpoint, changes nothing.
        """
        if not self._knows(trial, progress):
            rung = self._halving.reach(trial, progress)
            if rung is None or self._halving.goes_on(trial, rung):
                decided = {}
            else:
                decided = {"stopped_at": rung}
                self._halving.stopped[trial] = rung
            self._ledger.append("report", {"trial": trial, **progress, **decided}, sync=False)
            self._reported[trial].append(progress)
        return trial not in self._halving.stopped

    def _knows(self, trial: int, progress: Mapping[str, Any]) -> bool:
        reported = self._reported[trial]
        return bool(reported) and progress["epoch"] <= reported[-1]["epoch"]

    def tell(self, record: Record) -> None:
        """A trial has ended, or was stopped as it was told to. It is on the disk when this returns."""
        if retries := self._retries.get(record.trial):
            record = replace(record, provenance={**record.provenance, "retries": retries})
        record = replace(record, costs=self._running[record.trial].costs)  # with what only a run could tell
        reported = self._reported[record.trial]
        if record.status is Status.FAILED and len(record.history) < len(reported):  # of before it was taken up again
            record = replace(record, history=tuple(reported), seconds=max(record.seconds, reported[-1]["seconds"]))
        if record.status is Status.STOPPED and record.trial in self._halving.stopped:
            self._pause(record)
            return
        self._ledger.append("tell", {"trial": record.trial, "record": record.to_dict()})
        del self._running[record.trial]
        self._told(record)
        self._audit()

    def _told(self, record: Record) -> None:
        self.records.append(record)
        self._reported.pop(record.trial, None)
        values = None
        if record.status is Status.REJECTED:
            self._idle = [*self._idle_before, record.reason][-MOST_REJECTIONS:]
            # A duplicate teaches nothing; what is impossible or over budget is to be avoided.
            state = TrialState.FAIL if record.reason.startswith(DUPLICATE) else TrialState.PRUNED
        else:
            state = STATES[record.status]
        if state is TrialState.COMPLETE:
            found = {**record.scores, **(record.costs.to_dict() if record.costs else {})}
            values = [found.get(o.name) for o in self.search.objectives]
            if any(v is None for v in values):
                state, values = TrialState.FAIL, None
        if state is TrialState.COMPLETE:
            self._final[record.trial] = record.scores
        self._halving.ended(record.trial, failed=state is TrialState.FAIL)
        self._study.tell(record.trial, values, state)  # type: ignore[arg-type]

    def lost(self, trial: int, reason: str) -> bool:
        """A trial's machine has died, which was not the trial's fault. Whether it stays open, to be asked for again;
        after ``RETRIES`` times it does not, and is to be told as failed."""
        if trial in self._halving.stopped:
            self._pause(self._cut_off(trial))
            return True
        attempt = self._retries.get(trial, 0) + 1
        if attempt > RETRIES:
            return False
        self._ledger.append("retry", {"trial": trial, "reason": reason, "attempt": attempt})
        self._retries[trial] = attempt
        self._waiting.append(trial)
        return True

    # Stopping early and going on ---------------------------------------------------------------------

    def _pause(self, record: Record) -> None:
        """A trial was stopped as it was told to."""
        record = replace(record, reason=self._halving.why(record.trial))
        self._ledger.append("pause", {"trial": record.trial, "record": record.to_dict()})
        self._paused[record.trial] = record
        del self._running[record.trial]

    def _cut_off(self, trial: int) -> Record:
        """The Record of a trial that was told to stop and did not come to make one: from what it reported."""
        job, reported = self._running[trial], self._reported[trial]
        return Record(
            trial=trial, spec=job.spec, choices=job.choices, task=self.search.task, recipe=self.search.recipe,
            machine=self._machine, status=Status.STOPPED, costs=job.costs,
            scores={name: reported[-1][name] for name in SCORES if name in reported[-1]},
            history=tuple(reported), seconds=reported[-1]["seconds"], provenance=self._provenance,
        )  # fmt: skip

    def _promote(self, trial: int) -> Job:
        record = self._paused.pop(trial)
        assert record.spec is not None
        assert record.costs is not None
        del self._halving.stopped[trial]
        self._running[trial] = Job(trial=trial, choices=record.choices, spec=record.spec, costs=record.costs)
        return self._running[trial]

    def _audit(self) -> None:
        """Whether candidates may be stopped early, once enough were trained to the end; until they may, again with
        twice as many."""
        if self._halving.rungs and self._halving.first is None and len(self._final) >= self._next_audit:
            found = self._halving.audit(self._final)
            self._ledger.append("audit", found)
            self._audited(found)

    def _audited(self, found: Mapping[str, Any]) -> None:
        self._halving.first = found["first"]
        self._next_audit = 2 * len(found["trials"])

    # Rebuilding --------------------------------------------------------------------------------------

    def _replay(self, event: Mapping[str, Any], untold: dict[int, Mapping[str, Any]]) -> None:
        """One event; ``untold`` gathers the choices of those in flight that were never paused."""
        kind, trial = event["event"], event.get("trial", -1)
        if kind == "ask":
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    params=as_parameters(self.search.space, event["choices"]),
                    distributions=self._distributions,
                    system_attrs=event["attributes"],
                )
            )
            if trial != self._proposed:
                raise LedgerError(
                    f"proposals are numbered in turn, but {trial} stands where {self._proposed} should; restore the "
                    "ledger from a copy"
                )
            for name, value in event.get("study", {}).items():
                self._study._storage.set_study_system_attr(self._study._study_id, name, value)
            self._asked()
            untold[trial] = event["choices"]
        elif kind == "report":
            progress = {name: value for name, value in event.items() if name not in ("event", "trial", "stopped_at")}
            if trial not in self._reported or not self._knows(trial, progress):  # older versions wrote it twice
                self._halving.reach(trial, progress)
                self._reported.setdefault(trial, []).append(progress)
                if "stopped_at" in event:  # as it was decided then, whatever would be now
                    self._halving.stopped[trial] = event["stopped_at"]
        elif kind == "retry":
            self._retries[trial] = event["attempt"]
        elif kind == "pause":
            record = Record.from_dict(event["record"])
            self._started(record)
            self._paused[trial] = record
            untold.pop(trial, None)
            self._running.pop(trial, None)
        elif kind == "promote":
            if trial in self._paused:  # older versions promoted trials that had not stopped yet, and ended by it
                self._promote(trial)
        elif kind == "audit":
            self._audited(event)
        elif kind == "tell":
            record = Record.from_dict(event["record"])
            if record.status is not Status.REJECTED:
                self._started(record)
            untold.pop(trial, None)
            self._running.pop(trial, None)
            self._paused.pop(trial, None)
            self._told(record)

    def _started(self, record: Record) -> None:
        """A Record of a candidate that was once admitted."""
        if record.spec is not None:
            self._seen[record.spec.digest()] = record.trial
        if record.costs is not None:
            self._halving.enter(record.trial, record.costs)

    def _kept(self) -> dict[str, Any]:
        """What samplers keep in the study: NSGA-II the parents of each generation."""
        return dict(self._study._storage.get_study_system_attrs(self._study._study_id))

    def _identity(self, trial: int) -> int:
        return self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, trial)


def _out_of(reasons: Sequence[str]) -> str:
    """Why a search ends whose last proposals were all rejected, for these ``reasons``."""
    said = f"{len(reasons)} proposals in a row could not be trained"
    others = [reason for reason in reasons if not reason.startswith(DUPLICATE)]
    duplicates = len(reasons) - len(others)
    if not duplicates:
        return f"{said}; the last one: {others[-1]}"
    last = f"; the last of the others: {others[-1]}" if others else ""
    return f"{said}: the space seems exhausted ({duplicates} duplicate{'s' if duplicates > 1 else ''}{last})"
