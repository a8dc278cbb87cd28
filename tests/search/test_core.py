"""The core: proposals, rejections, and resuming as if nothing had happened. No training: scores are made up."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onenet_bench import costs, ledger, pareto
from onenet_bench.budget import Budget
from onenet_bench.errors import SpaceError
from onenet_bench.ledger import Ledger
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCHEMA, Machine, Record, Status
from onenet_bench.search.core import Core, Job, Search
from onenet_bench.search.samplers import SAMPLERS
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


def test_a_search_that_finds_nothing_new_ends(tmp_path: Path) -> None:
    book, core = begin(tmp_path, search("random", trials=1000))
    carry_out(core)
    book.close()
    assert "the space seems exhausted" in core.ended


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
