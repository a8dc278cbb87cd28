"""The core: proposals, rejections, and resuming as if nothing had happened. No training: scores are made up."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from onenet_bench import costs, data, ledger, pareto
from onenet_bench.budget import Budget
from onenet_bench.errors import LedgerError, MeasureError, SpaceError
from onenet_bench.ledger import Ledger
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCHEMA, Machine, Record, Status
from onenet_bench.report import tables
from onenet_bench.search import fidelity, sweep
from onenet_bench.search.core import MOST_REJECTIONS, RETRIES, Core, Job, Search
from onenet_bench.search.samplers import SAMPLERS
from onenet_bench.search.trial import failed
from onenet_bench.space import SearchSpace
from onenet_bench.task import Task

SPACE = SearchSpace.from_dict(
    {
        "name": "small",
        "objectives": ["miou", "parameters", "macs"],
        "choices": {"depth": [1, 2], "scale": [2, 3], "width": [2, 4, 6, 8, 10, 12], "kind": ["conv2d", "onenet1d"],
                    "kernel": [0, 3]},
        "net": {"depth": "$depth", "scale": "$scale", "width": "$width", "encoder": "$kind", "decoder": "conv2d",
                "spatial_kernel": "$kernel"},
    }
)  # fmt: skip
TASK = Task(
    data="synthetic", content="0", in_channels=3, class_names=("a", "b"), resolution=16, train=4, validation=2, test=2
)  # 16 is a multiple of 2 and 4, and of neither 3 nor 9


def search(sampler: str, trials: int = 20, **changes: Any) -> Search:
    made = Search(
        space=SPACE, task=TASK, recipe=Recipe(), objectives=SPACE.objectives,
        budget=(Budget.parse("parameters <= 6000"),), sampler=sampler, seed=3, trials=trials,
    )  # fmt: skip
    return replace(made, **changes)


def trained(job: Job) -> Record:
    """A Record with a score that is a function of the spec."""
    score = float(np.random.default_rng(int(job.spec.digest(), 16)).uniform(0.2, 0.3)) + 0.1 * np.log10(job.costs.macs)
    return Record(
        trial=job.trial, spec=job.spec, choices=job.choices, task=TASK, recipe=Recipe(), machine=Machine.here(),
        status=Status.COMPLETE, costs=job.costs, scores={"miou": min(score, 1.0)},
    )  # fmt: skip


def begin(run: Path, wanted: Search) -> tuple[Ledger, Core]:
    book = Ledger(run, create=True)
    book.append("run", {"schema": SCHEMA, **wanted.to_dict()})
    return book, Core(book, [], wanted)


def again(run: Path, wanted: Search) -> tuple[Ledger, Core]:
    book = Ledger(run, create=False)
    return book, Core(book, ledger.read(run)[1:], wanted)


def carry_out(core: Core, most: int | None = None) -> int:
    """Tell whatever is asked, one after the other; how many were trained."""
    for done in itertools.count():
        if done == most or (job := core.ask()) is None:
            return done
        core.tell(trained(job))
    raise AssertionError


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_options_that_are_lists_are_no_matter_for_warnings(sampler: str, tmp_path: Path) -> None:
    choices = {**SPACE.choices, "kernel": ([0, 0], [5, 3])}
    wanted = search(sampler, 14, space=replace(SPACE, choices=choices))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        book, core = begin(tmp_path, wanted)
        carry_out(core, 12)
        book.close()
        book, core = again(tmp_path, wanted)
        carry_out(core)
        book.close()


def bare(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What the events say, without what belongs to the moment."""
    return [
        (e["event"], e["trial"], str(e["choices"]))
        if e["event"] == "ask"
        else (e["event"], e["trial"], e["record"]["status"], e["record"]["reason"], str(e["record"]["scores"]))
        for e in events
        if e["event"] in ("ask", "tell")
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_candidate_is_accounted_for_once(tmp_path: Path, sampler: str) -> None:
    wanted = search(sampler)
    book, core = begin(tmp_path, wanted)
    assert carry_out(core) == 20
    book.close()
    rows = ledger.records(ledger.read(tmp_path))
    assert [r.trial for r in rows] == list(range(len(rows)))
    complete = [r for r in rows if r.status is Status.COMPLETE]
    assert len({r.spec.digest() for r in complete if r.spec}) == 20
    for row in rows:
        if row.status is Status.COMPLETE:
            assert row.costs is not None
            assert row.costs.parameters <= 6000
        else:
            assert row.status is Status.REJECTED
            assert row.reason.split(":")[0].split(" of ")[0] in ("impossible", "duplicate", "over budget")
            assert row.provenance["versions"]["optuna"]
    assert core.ended == "20 candidates were trained"


def test_all_three_kinds_of_rejection_occur(tmp_path: Path) -> None:
    book, core = begin(tmp_path, search("grid", trials=1000))
    carry_out(core)
    book.close()
    assert core.ended == f"all {SPACE.size} combinations were tried"
    reasons = {r.reason.split(" of ")[0].split(":")[0] for r in core.records if r.status is Status.REJECTED}
    assert reasons == {"impossible", "duplicate", "over budget"}
    assert len(core.records) == SPACE.size
    # every distinct, possible, affordable net was trained once: counted independently
    affordable = set()
    for choices in SPACE.enumerate():
        spec = SPACE.spec(choices, classes=2, in_channels=3)
        if 16 % spec.total_scale == 0 and costs.count(spec, 16).parameters <= 6000:
            affordable.add(spec.digest())
    assert {r.spec.digest() for r in core.records if r.status is Status.COMPLETE and r.spec} == affordable


def test_a_grid_of_more_combinations_than_can_be_tried_is_refused() -> None:
    many = {f"width_{i}": tuple(range(1, 100)) for i in range(10)}
    huge = replace(
        SPACE, choices=many, net={"depth": 2, "width": "$width_0", "scale": [f"${n}" for n in list(many)[1:]]}
    )
    with pytest.raises(SpaceError, match="a grid has at most 2,000,000 combinations, but small has 90,438,"):
        search("grid", space=huge)


def test_a_search_that_finds_nothing_new_ends(tmp_path: Path) -> None:
    def hear(record: Record) -> None:
        assert record.trial < 20 * MOST_REJECTIONS, "it goes on"

    book, core = begin(tmp_path, search("random", trials=1000))
    core.on_rejected = hear
    carry_out(core)
    book.close()
    last = core.records[-MOST_REJECTIONS:]
    duplicates = [record.reason for record in last if record.reason.startswith("duplicate of trial ")]
    assert len(duplicates) > 1
    other = next(record.reason for record in reversed(last) if record.reason not in duplicates)
    assert core.ended == (
        f"300 proposals in a row could not be trained: the space seems exhausted ({len(duplicates)} duplicates; "
        f"the last of the others: {other})"
    )
    for record, trial in zip(core.records, core._study.trials, strict=True):
        if record.status is Status.REJECTED:  # a duplicate says nothing against the choices
            taught = TrialState.FAIL if record.reason.startswith("duplicate") else TrialState.PRUNED
            assert trial.state is taught


def test_a_search_that_can_train_nothing_says_why_and_tells_of_each_candidate(tmp_path: Path) -> None:
    heard: list[Record] = []

    def hear(record: Record) -> None:
        heard.append(record)
        assert len(heard) <= MOST_REJECTIONS, "it goes on"

    book = Ledger(tmp_path, create=True)
    core = Core(book, [], search("random", budget=(), task=replace(TASK, resolution=36)), memory_mib=0.001)
    core.on_rejected = hear
    assert core.ask() is None
    book.close()
    assert heard == core.records
    assert len(heard) == MOST_REJECTIONS
    assert core.ended == f"300 proposals in a row could not be trained; the last one: {heard[-1].reason}"
    assert "does not fit: peak_training_mib is " in core.ended


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stop", [0, 1, 7, 18])
def test_a_resumed_search_goes_on_as_one_never_interrupted(tmp_path: Path, sampler: str, stop: int) -> None:
    wanted = search(sampler)
    book, core = begin(tmp_path / "whole", wanted)
    carry_out(core)
    book.close()
    book, core = begin(tmp_path / "parts", wanted)
    carry_out(core, most=stop)
    if stop:
        core.ask()  # in flight when the process dies: it must run again, under its number
    book.close()
    book, core = again(tmp_path / "parts", wanted)
    carry_out(core)
    book.close()
    assert bare(ledger.read(tmp_path / "parts")) == bare(ledger.read(tmp_path / "whole"))


DAMAGE: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "a trial ends twice": lambda events: events.append(next(e for e in events if e["event"] == "tell")),
    "a Record without a net": lambda events: events[2]["record"].pop("spec"),
    "a net that cannot be": lambda events: events[2]["record"]["spec"].update(stem="x"),
    "a Record that is a number": lambda events: events[2].update(record=3),
    "a header without objectives": lambda events: events[0].pop("objectives"),
    "a header whose objectives are a number": lambda events: events[0].update(objectives=2),
    "a proposal that is missing": lambda events: events.remove(next(e for e in events if e["event"] == "ask")),
    "a schema that is a text": lambda events: events[0].update(schema="one"),
    "proposals without a number": lambda events: [e.pop("trial") for e in events if e["event"] == "ask"],  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_ledger_that_makes_no_sense_is_one_sentence(tmp_path: Path, damage: str) -> None:
    book, core = begin(tmp_path, search("grid", trials=3, task=data.open_task("synthetic", resolution=32, train=4)))
    carry_out(core)
    book.close()
    events = ledger.read(tmp_path)
    assert [e["event"] for e in events[:3]] == ["run", "ask", "tell"]
    tables.read_run(tmp_path)
    lines = len(events)
    DAMAGE[damage](events)
    (tmp_path / ledger.FILE).write_text("".join(json.dumps(event) + "\n" for event in events))
    uses = [
        lambda: sweep.resume(tmp_path, lambda *_, **__: None, command="again", trials=None),
        lambda: tables.read_run(tmp_path),
    ]
    for use in uses[: 1 if "missing" in damage else 2]:  # a report can do without a proposal
        with pytest.raises(LedgerError, match="restore the") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert len((tmp_path / ledger.FILE).read_text().splitlines()) <= lines + 1


def test_what_a_package_lacks_is_no_damage_of_the_ledger(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="needs the package"), ledger.understood(tmp_path):
        raise MeasureError("the runtime needs the package onnx")


def test_a_reproduction_is_no_search(tmp_path: Path) -> None:
    with Ledger(tmp_path, create=True) as book:
        book.append("run", {"schema": SCHEMA, "table": "table1"})
    for use in (tables.read_run, lambda run: sweep.resume(run, lambda *_, **__: None, command="again", trials=None)):
        with pytest.raises(
            LedgerError, match="is a reproduction of table1; its page is made by onenet-bench reproduce"
        ):
            use(tmp_path)  # type: ignore[operator]


def test_final_trainings_are_no_search(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run" / "final", create=True) as book:
        book.append("run", {"schema": SCHEMA, "contestants": [], "seeds": [1]})
    with pytest.raises(LedgerError, match=f"holds the final trainings of one, .* name {tmp_path / 'run'}$"):
        tables.read_run(tmp_path / "run" / "final")


def test_a_failed_trial_keeps_the_epochs_of_before_it_was_taken_up_again(tmp_path: Path) -> None:
    wanted = search("grid", trials=1)
    book, core = begin(tmp_path, wanted)
    with book:
        job = core.ask()
        assert job is not None
        epoch = {"epoch": 1, "step": 1, "loss": 1.0, "seconds": 7.0, "miou": 0.2}
        core.report(job.trial, epoch)
    book, core = again(tmp_path, wanted)
    with book:
        job = core.ask()
        assert job is not None
        core.tell(failed(core, job, "its process died"))
    (row,) = (r for r in core.records if r.status is Status.FAILED)
    assert row.history == (epoch,)
    assert row.seconds == 7.0
    assert core.ask() is None
    assert core.ended == "1 candidate was trained; 1 of the trainings failed"


def share_of_good_proposals(run: Path, sampler: str) -> float:
    """Where wide 1D nets with a kernel score far better, how often such are proposed after the first 40."""

    def good(choices: Any) -> bool:
        return bool(choices["kind"] == "onenet1d" and choices["width"] >= 8 and choices["kernel"] == 3)

    wanted = search(sampler, trials=60, budget=(), task=replace(TASK, resolution=36), objectives=SPACE.objectives[:2])
    book, core = begin(run, wanted)
    while (job := core.ask()) is not None:
        core.tell(replace(trained(job), scores={"miou": 0.9 if good(job.choices) else 0.1}))
    book.close()
    proposed = [good(r.choices) for r in core.records[40:]]
    return sum(proposed) / len(proposed)


def test_samplers_learn_from_what_they_are_told(tmp_path: Path) -> None:
    shares = {name: share_of_good_proposals(tmp_path / name, name) for name in ("random", "tpe", "nsga2")}
    assert shares["tpe"] > 1.5 * shares["random"], shares
    assert shares["nsga2"] > 1.5 * shares["random"], shares


def test_a_rejection_cut_off_before_it_was_told_is_told_on_resuming(tmp_path: Path) -> None:
    wanted = search("grid", trials=1000)
    book, core = begin(tmp_path, wanted)
    carry_out(core)
    book.close()
    path = tmp_path / ledger.FILE
    lines = path.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"status":"rejected"' in line)
    path.write_text("".join(lines[:cut]))
    book, core = again(tmp_path, wanted)
    book.close()
    assert [r.status for r in core.records][-1] is Status.REJECTED
    assert bare(ledger.read(tmp_path)) == bare([json.loads(line) for line in lines[: cut + 1]])


def test_failed_and_stopped_trials_never_enter_the_study_as_complete(tmp_path: Path) -> None:
    book, core = begin(tmp_path, search("tpe", trials=3))
    for status, job in zip((Status.FAILED, Status.STOPPED, Status.COMPLETE), iter(core.ask, None), strict=False):
        core.tell(replace(trained(job), status=status, reason="x"))
    book.close()
    states = [t.state.name for t in core._study.trials if t.state.name in ("COMPLETE", "RUNNING")]
    assert states == ["COMPLETE"]
    best = pareto.front(ledger.frame(core.records), core.search.objectives)
    assert best["status"].tolist() == ["complete"]


def test_a_score_that_is_missing_fails_in_the_study(tmp_path: Path) -> None:
    book, core = begin(tmp_path, search("tpe", trials=1))
    job = core.ask()
    assert job is not None
    core.tell(replace(trained(job), scores={}))
    book.close()
    assert core._study.trials[job.trial].state.name == "FAIL"


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(SpaceError, match="unknown sampler 'gp'; known: frontier, grid, nsga2, random, tpe"):
        search("gp")


def test_a_search_survives_its_own_dictionary() -> None:
    wanted = search("tpe")
    assert Search.from_dict(wanted.to_dict()) == wanted


# Stopped early and promoted --------------------------------------------------------------------------------

EPOCHS = 9  # rungs at 1/9 and 1/3: epochs 1 and 3


def curve(job: Job, epoch: int) -> float:
    """A score that grows as 1/epochs shrinks, and ends as a Record's."""
    return trained(job).scores["miou"] * (1 - 1 / (epoch + 1)) / (1 - 1 / (EPOCHS + 1))


def luck(job: Job, epoch: int) -> float:
    """A score that says nothing about the last one."""
    return float(np.random.default_rng([int(job.spec.digest(), 16), epoch]).uniform(0, 1))


class Workers:
    """What engines do, without processes: ``count`` trials at once, an epoch in turn, from their ``checkpoints``.
    The last word of one that is told to stop comes when it had ``late`` more turns."""

    def __init__(
        self, core: Core, count: int = 1, checkpoints: dict[int, int] | None = None, score: Any = curve, late: int = 0
    ) -> None:
        self.core, self.count, self.score, self.late = core, count, score, late
        self.stopping: dict[int, int] = {}  # turns that are left to them
        self.checkpoints = checkpoints if checkpoints is not None else {}  # epochs by trial
        self.busy: list[Job] = []

    def turn(self) -> bool:
        """One epoch of one trial; False if there is nothing to do."""
        while len(self.busy) < self.count and (job := self.core.ask()) is not None:
            self.busy.append(job)
        if not self.busy:
            return False
        job = self.busy.pop(0)
        if job.trial in self.stopping:
            self._stop(job)
            return True
        epoch = self.checkpoints.get(job.trial, 0) + 1
        go_on = epoch > EPOCHS or self.core.report(job.trial, self.progress(job, epoch))
        self.checkpoints[job.trial] = min(epoch, EPOCHS)
        if go_on and epoch < EPOCHS:
            self.busy.append(job)
        elif not go_on:
            self.stopping[job.trial] = self.late
            self._stop(job)
        else:
            self.core.tell(self.record(job, min(epoch, EPOCHS)))
        return True

    def _stop(self, job: Job) -> None:
        if self.stopping[job.trial]:
            self.stopping[job.trial] -= 1
            self.busy.append(job)
        else:
            del self.stopping[job.trial]
            self.core.tell(self.record(job, self.checkpoints[job.trial]))

    def progress(self, job: Job, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "step": epoch, "loss": 1.0, "seconds": float(epoch), "miou": self.score(job, epoch)}

    def record(self, job: Job, epoch: int) -> Record:
        history = tuple(self.progress(job, e) for e in range(1, epoch + 1))
        return replace(
            trained(job), status=Status.COMPLETE if epoch == EPOCHS else Status.STOPPED, history=history, seconds=epoch,
            scores={"miou": history[-1]["miou"]},
        )  # fmt: skip


def halving(trials: int = 30, **changes: Any) -> Search:
    changes = {"sampler": "random", "budget": (), "recipe": Recipe(epochs=EPOCHS), **changes}
    return search(trials=trials, **{"task": replace(TASK, resolution=36), **changes})


def finish(workers: Workers) -> Core:
    while workers.turn():
        pass
    return workers.core


def whole(events: list[dict[str, Any]]) -> list[Any]:
    """The events without what belongs to the moment: all else is to be the same."""
    told = ("status", "reason", "scores", "history", "costs", "digest", "choices")
    return [
        {**event, "record": {name: event["record"][name] for name in told}} if "record" in event else event
        for event in events
        if event["event"] != "run"
    ]


@pytest.fixture
def few_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "AUDITED", 4)


def kinds(events: list[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in events:
        found[event["event"]] = found.get(event["event"], 0) + 1
    return found


@pytest.mark.usefixtures("few_audited")
@pytest.mark.parametrize(
    ("sampler", "trials", "seed", "step"),
    [("random", 16, 0, 1), ("nsga2", 60, 5, 19), ("frontier", 16, 0, 11)],  # nsga2 comes to several generations
)
def test_cut_at_any_event_a_search_goes_on_as_one_never_interrupted(
    tmp_path: Path, sampler: str, trials: int, seed: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = halving(trials=trials, sampler=sampler, seed=seed)
    book, core = begin(tmp_path / "whole", wanted)
    finish(Workers(core))
    book.close()
    lines = (tmp_path / "whole" / ledger.FILE).read_text().splitlines(keepends=True)
    events = ledger.read(tmp_path / "whole")
    assert {"ask", "report", "pause", "promote", "audit", "tell"} <= set(kinds(events))
    monkeypatch.setattr("onenet_bench.search.core.provenance", dict)  # asks git each time
    for cut in range(1, len(lines), step):
        folder = tmp_path / "cut"
        folder.mkdir(exist_ok=True)
        (folder / ledger.FILE).write_text("".join(lines[:cut]))
        book, core = again(folder, wanted)
        checkpoints = {e["trial"]: e["epoch"] for e in events[:cut] if e["event"] == "report"}
        if events[cut - 1]["event"] == "report" and cut % 2:  # killed after the report and before the checkpoint
            checkpoints[events[cut - 1]["trial"]] -= 1
        workers = Workers(core, checkpoints=checkpoints)
        for _ in range(3):
            workers.turn()
        book.close()
        found = ledger.read(folder)
        assert len(found) > cut or core.ended
        assert whole(found) == whole(events[: len(found)]), cut


@pytest.mark.usefixtures("few_audited")
@pytest.mark.parametrize(("seed", "turns", "late"), [(0, 60, 0), (1, 60, 0), (0, 60, 6), (0, 9999, 6), (1, 9999, 6)])
def test_with_several_workers_and_kills_every_trial_is_told_once_under_its_number(
    tmp_path: Path, seed: int, turns: int, late: int
) -> None:
    draws = np.random.default_rng(seed)
    wanted = halving(seed=seed)
    book, core = begin(tmp_path, wanted)
    checkpoints: dict[int, int] = {}
    while True:
        workers = Workers(core, 4, checkpoints, late=late)
        for _ in range(draws.integers(turns)):
            if not workers.turn():
                break
        if core.ended:
            break
        for job in workers.busy:  # killed; some of them before their last checkpoint
            checkpoints[job.trial] = max(0, checkpoints.get(job.trial, 0) - int(draws.integers(2)))
        book.close()
        book, core = again(tmp_path, wanted)
    book.close()
    events = ledger.read(tmp_path)
    rows = ledger.records(events)
    assert sorted(r.trial for r in rows) == list(range(len(rows)))
    trained_ones = [r for r in rows if r.status is not Status.REJECTED]
    assert len(trained_ones) == len({r.spec.digest() for r in trained_ones if r.spec}) == 30
    paused, promoted = ([e["trial"] for e in events if e["event"] == kind] for kind in ("pause", "promote"))
    assert promoted
    for row in trained_ones:
        epochs = [e["epoch"] for e in events if e["event"] == "report" and e["trial"] == row.trial]
        assert epochs == list(range(1, len(epochs) + 1))  # each reported once, however often it was trained
        assert [e["epoch"] for e in row.history] == epochs
        assert (row.status is Status.STOPPED) == (paused.count(row.trial) > promoted.count(row.trial))
        assert (row.status is Status.COMPLETE) == (len(epochs) == EPOCHS)


@pytest.mark.usefixtures("few_audited")
def test_a_stopped_trial_is_open_until_the_search_ends_and_never_complete(tmp_path: Path) -> None:
    book, core = begin(tmp_path, halving())
    workers = Workers(core)
    while not core._paused:
        assert workers.turn()
    trial, record = next(iter(core._paused.items()))
    entry = core._study.trials[trial]
    assert entry.state.name == "RUNNING"
    assert trial not in {r.trial for r in core.records}
    assert re.fullmatch(r"stopped at epoch \d: not among the best \d of \d that got there", record.reason)
    finish(workers)
    book.close()
    assert not core._paused
    states = {r.trial: core._study.trials[r.trial].state.name for r in core.records if r.status is Status.STOPPED}
    assert states
    assert set(states.values()) == {"PRUNED"}
    stopped = {r.trial for r in core.records if r.status is Status.STOPPED}
    table = ledger.frame(core.records).set_index("trial")
    assert not stopped & set(pareto.front(ledger.frame(core.records), core.search.objectives)["trial"])
    assert table.loc[sorted(stopped), "miou"].isna().all()
    assert table.loc[sorted(stopped), "partial.miou"].notna().all()
    assert table.loc[[t for t in table.index if t not in stopped], "partial.miou"].isna().all()


def test_nobody_is_stopped_where_early_scores_say_nothing(tmp_path: Path) -> None:
    book, core = begin(tmp_path, halving())
    finish(Workers(core, score=luck))
    book.close()
    events = ledger.read(tmp_path)
    audits = [e for e in events if e["event"] == "audit"]
    assert [len(a["trials"]) for a in audits] == [9, 18]
    assert {a["first"] for a in audits} == {None}
    assert [r.status for r in core.records if r.status is not Status.REJECTED] == [Status.COMPLETE] * 30


def test_without_fidelity_nobody_is_stopped_or_audited(tmp_path: Path) -> None:
    book, core = begin(tmp_path, halving(fidelity="off"))
    finish(Workers(core))
    book.close()
    assert kinds(ledger.read(tmp_path)).keys() == {"run", "ask", "report", "tell"}


def test_a_ledger_from_before_there_was_fidelity_goes_on_without() -> None:
    old = search("tpe").to_dict()
    del old["fidelity"]
    assert Search.from_dict(old).fidelity == "off"
    assert search("tpe").fidelity == "auto"
    with pytest.raises(SpaceError, match="unknown fidelity 'on'; known: auto, off"):
        search("tpe", fidelity="on")


# Lost, stopped from outside, too large ---------------------------------------------------------------------


def test_a_lost_trial_is_asked_for_again_so_many_times(tmp_path: Path) -> None:
    wanted = search("random", trials=2)
    book, core = begin(tmp_path, wanted)
    job = core.ask()
    assert job is not None
    for attempt in range(1, RETRIES + 1):
        assert core.lost(job.trial, "its node died")
        assert not core.ended
        if attempt == 1:  # counted on, whatever happens in between
            book.close()
            book, core = again(tmp_path, wanted)
        found = core.ask()
        assert found is not None
        assert (found.trial, found.spec) == (job.trial, job.spec)
    assert not core.lost(job.trial, "its node died")
    core.tell(replace(trained(job), status=Status.FAILED, reason="its node died"))
    other = core.ask()
    assert other is not None
    core.tell(trained(other))
    book.close()
    events = ledger.read(tmp_path)
    retries = [(e["trial"], e["attempt"], e["reason"]) for e in events if e["event"] == "retry"]
    assert retries == [(job.trial, 1, "its node died"), (job.trial, 2, "its node died")]
    counted = {r.trial: r.provenance.get("retries") for r in ledger.records(events) if r.status is not Status.REJECTED}
    assert counted == {job.trial: RETRIES, other.trial: None}


@pytest.mark.usefixtures("few_audited")
def test_a_trial_lost_after_it_was_told_to_stop_is_paused(tmp_path: Path) -> None:
    book, core = begin(tmp_path, halving())
    workers = Workers(core)
    while not core._halving.stopped:  # the last turn would tell: do it by hand
        while not workers.busy:
            job = core.ask()
            assert job is not None
            workers.busy.append(job)
        job = workers.busy[0]
        epoch = workers.checkpoints.get(job.trial, 0) + 1
        if core.report(job.trial, workers.progress(job, epoch)):
            workers.turn()
    assert not core.report(job.trial, workers.progress(job, epoch))  # said again: decided as before
    assert core.lost(job.trial, "its node died")
    assert list(core._paused) == [job.trial]
    assert core._paused[job.trial].scores == {"miou": curve(job, epoch)}
    found = core.ask()
    assert found is None or found.trial != job.trial
    book.close()
    assert "retry" not in kinds(ledger.read(tmp_path))


@pytest.mark.usefixtures("few_audited")
def test_a_search_that_is_stopped_ends_when_nothing_runs(tmp_path: Path) -> None:
    book, core = begin(tmp_path, halving())
    workers = Workers(core, 2)
    while len(core._paused) < 3:
        assert workers.turn()
    before, running = core._proposed, {job.trial for job in workers.busy}
    core.stop("the front stands still")
    assert core.ask() is None
    assert core.ended == ""
    finish(workers)
    book.close()
    assert core.ended == "the front stands still"
    assert core._proposed == before
    assert running <= {r.trial for r in core.records}
    assert sum(r.status is Status.STOPPED for r in core.records) >= 3


def test_an_epoch_that_a_ledger_has_twice_counts_once(tmp_path: Path) -> None:
    book, core = begin(tmp_path, halving())
    workers = Workers(core)
    for _ in range(3):
        workers.turn()
    book.close()
    events = ledger.read(tmp_path)[1:]
    twice = [event for event in events for _ in range(1 + (event["event"] == "report"))]
    assert len(twice) == len(events) + 3
    again = Core(book, twice, core.search)
    assert again._reported == core._reported
    assert again.ask() == core._running[0]


def test_a_trial_that_was_begun_goes_on_where_there_is_less_memory_now(tmp_path: Path) -> None:
    book, core = begin(tmp_path, halving())
    begun, new = core.ask(), core.ask()
    assert begun is not None
    assert new is not None
    core.report(begun.trial, {"epoch": 1, "step": 1, "loss": 1.0, "seconds": 1.0, "miou": 0.5})
    book.close()
    with Ledger(tmp_path, create=False) as book:
        core = Core(book, ledger.read(tmp_path)[1:], core.search, memory_mib=0.001)
        assert core.ask() == begun
    assert [(r.trial, r.reason.split(":")[0]) for r in core.records] == [(new.trial, "does not fit")]


@pytest.mark.parametrize("sampler", ["random", "frontier"])
def test_what_does_not_fit_the_device_is_rejected_before_it_starts(tmp_path: Path, sampler: str) -> None:
    wanted = search(sampler, budget=())
    needs = sorted(
        costs.count(SPACE.spec(choices, classes=2, in_channels=3), 16, batch=16).peak_training_mib or 0
        for choices in SPACE.enumerate() if choices["scale"] == 2
    )  # fmt: skip
    limit = needs[len(needs) // 2]
    book = Ledger(tmp_path, create=True)
    book.append("run", {"schema": SCHEMA, **wanted.to_dict()})
    core = Core(book, [], wanted, memory_mib=limit)
    carry_out(core)
    book.close()
    complete = [r.costs.peak_training_mib or 0 for r in core.records if r.status is Status.COMPLETE and r.costs]
    assert 0 < max(complete) <= limit
    reasons = [r.reason for r in core.records if r.reason.startswith("does not fit: peak_training_mib is ")]
    assert bool(reasons) == (sampler == "random")  # frontier knows it beforehand
