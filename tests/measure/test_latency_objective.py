"""Latency as an objective and a budget of a search. Nothing is timed: a stub says what the process would."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onenet_bench import costs, ledger, pareto
from onenet_bench.budget import Budget
from onenet_bench.errors import MeasureError
from onenet_bench.measure import latency
from onenet_bench.measure.latency import Conditions
from onenet_bench.record import Record, Status
from onenet_bench.search import final, frontier, samplers, warm
from onenet_bench.search.core import Core, Job, Search
from onenet_bench.spec import NetSpec
from tests.search.test_core import again, bare, begin, search, trained

CONDITIONS = Conditions(runtime="torch", resolution=16)
LIMIT = 4.0


def milliseconds(spec: NetSpec) -> float:
    return costs.count(spec, 16).macs / 100_000


class Stub:
    """Stands in for the process that measures."""

    def __init__(self) -> None:
        self.measured: Counter[str] = Counter()
        self.fails = False

    def __call__(self, request: Mapping[str, Any], threads: int) -> list[tuple[list[float], list[float]]]:
        specs = [NetSpec.from_dict(spec) for spec, _ in request["nets"]]
        self.measured.update(spec.digest() for spec in specs)
        if self.fails:
            raise MeasureError("a net must run to be timed, but it did not")
        return [([milliseconds(spec)] * request["repeats"], [0.0] * request["repeats"]) for spec in specs]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "_run", made := Stub())
    samplers._fitted.cache_clear()
    return made


def wanted(sampler: str = "nsga2", **changes: Any) -> Search:
    return search(
        sampler, 10, objectives=pareto.objectives(["miou", "latency_ms"]), latency=CONDITIONS,
        budget=(Budget(cost="latency_ms", limit=LIMIT), Budget.parse("parameters <= 6000")), **changes,
    )  # fmt: skip


def told(job: Job) -> Record:
    """As a trial's process makes it: it counts the costs anew, and knows of no latency."""
    return trained(replace(job, costs=replace(job.costs, latency_ms=None)))


def carry_out(core: Core, most: int = 100) -> None:
    while most and (job := core.ask()) is not None:
        most -= 1
        core.tell(told(job))


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_candidate_is_timed_once_and_held_to_its_budget(stub: Stub, tmp_path: Path, sampler: str) -> None:
    book, core = begin(tmp_path / "run", wanted(sampler))
    with book:
        carry_out(core)
    rows = ledger.records(ledger.read(tmp_path / "run"))
    assert sum(row.status is Status.COMPLETE for row in rows) == 10
    for row in rows:
        if row.costs is None or row.spec is None or row.reason.startswith(("duplicate", "over budget: parameters")):
            assert row.status is Status.REJECTED
            continue
        assert row.costs.latency_ms == milliseconds(row.spec)
        assert stub.measured[row.spec.digest()] == 1
        over = row.costs.latency_ms > LIMIT
        assert row.status is (Status.REJECTED if over else Status.COMPLETE)
        assert row.reason.startswith("over budget: latency_ms is ") == over
    timed = {row.spec.digest() for row in rows if row.spec and row.costs and row.costs.latency_ms is not None}
    assert timed == stub.measured.keys()  # who is over another budget, or was seen before, is not timed
    best = pareto.front(ledger.frame(rows), core.search.objectives)
    assert best["latency_ms"].is_monotonic_decreasing  # best score first
    assert 1 <= len(best) <= 10


def test_a_resumed_search_is_one_that_never_stopped(stub: Stub, tmp_path: Path) -> None:
    for name, stops in (("whole", []), ("parts", [2, 3])):
        book, core = begin(tmp_path / name, wanted("frontier"))
        for most in stops:
            carry_out(core, most)
            book.close()
            book, core = again(tmp_path / name, wanted("frontier"))
        carry_out(core)
        book.close()
    whole, parts = (ledger.read(tmp_path / name) for name in ("whole", "parts"))
    assert bare(parts) == bare(whole)
    assert set(stub.measured.values()) == {1}  # the second run of the same search times nothing


def test_nets_that_are_predicted_well_over_the_ceiling_are_not_proposed(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowest = {}
    for known in (False, True):
        predictor = SimpleNamespace(predict_ms=lambda spec, resolution: 1.2 * milliseconds(spec)) if known else None
        monkeypatch.setattr(samplers, "_fitted", lambda conditions, predictor=predictor: predictor)
        book, core = begin(tmp_path / str(known), wanted("frontier"))
        with book:
            carry_out(core)
        slowest[known] = max(r.costs.latency_ms for r in core.records if r.costs and r.costs.latency_ms)
    assert slowest[True] <= LIMIT * frontier.UNSURE / 1.2 < slowest[False]


def test_a_net_that_cannot_be_timed_is_rejected(stub: Stub, tmp_path: Path) -> None:
    book, core = begin(tmp_path / "run", wanted())
    stub.fails = True
    with book:
        assert core.ask() is None
    timed = [row for row in core.records if row.spec and row.spec.digest() in stub.measured]
    assert timed[0].reason == "cannot be timed: a net must run to be timed, but it did not"


def test_what_was_admitted_is_trained_to_its_end_whatever_a_new_measurement_says(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, outcome in (("slower", {"fails": False}), ("broken", {"fails": True})):
        asked = wanted()
        book, core = begin(tmp_path / name, asked)
        with book:
            job = core.ask()
            assert job is not None
            core.report(job.trial, {"epoch": 1, "step": 1, "loss": 1.0, "seconds": 1.0, "miou": 0.2})
        monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / f"another-{name}"))
        stub.fails = outcome["fails"]
        book, core = again(tmp_path / name, replace(asked, budget=(Budget(cost="latency_ms", limit=1e-6),)))
        with book:
            assert job.trial not in [record.trial for record in core.records]
            taken_up = core.ask()
            assert taken_up is not None
            assert taken_up.trial == job.trial
        stub.fails = False


def test_a_warm_start_knows_latencies_of_its_own_conditions_alone(stub: Stub, tmp_path: Path) -> None:
    asked = wanted("frontier")
    book, core = begin(tmp_path / "run", asked)
    with book:
        carry_out(core, 3)
    stub.measured.clear()
    assert [r.costs and r.costs.latency_ms for r in warm.earlier(tmp_path / "run", asked)] == [
        r.costs and r.costs.latency_ms for r in core.records if r.status is Status.COMPLETE
    ]
    assert not stub.measured  # the same place and conditions
    other = replace(asked, latency=replace(CONDITIONS, runtime="onnxruntime"))
    known = warm.earlier(tmp_path / "run", other)
    assert stub.measured == Counter(r.spec.digest() for r in known if r.spec)
    stub.fails = True
    known = warm.earlier(tmp_path / "run", replace(asked, latency=replace(CONDITIONS, threads=2)))
    assert [r.costs and r.costs.latency_ms for r in known] == [None] * 3


def test_final_trainings_keep_their_latency(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, core = begin(tmp_path / "run", wanted())
    with book:
        carry_out(core)

    def train_all(finals: final.Final, folder: Path) -> None:
        stub.fails = True
        monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "another"))
        number = len(finals._queue)
        finals._queue[1:] = finals._queue[1:3]
        assert finals.ask() is None  # none can be timed
        assert [r.status for r in finals.records] == [Status.FAILED] * min(3, number)
        raise KeyboardInterrupt

    final.train(core, tmp_path / "broken", seeds=1, carry_out=train_all)
    (first, *_) = ledger.records(ledger.read(tmp_path / "broken" / ledger.FINAL))
    assert first.reason == "cannot be timed: a net must run to be timed, but it did not"
    stub.fails = False
    final.train(core, tmp_path / "run", seeds=1, carry_out=lambda finals, _: carry_out(finals))  # type: ignore[arg-type]
    made = ledger.records(ledger.read(tmp_path / "run" / ledger.FINAL))
    assert len(made) >= 1
    for row in made:
        assert row.spec is not None
        assert row.costs is not None
        assert row.costs.latency_ms == milliseconds(row.spec)


def test_a_search_says_how_it_times() -> None:
    asked = wanted()
    assert Search.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    plain = search("random")
    assert plain.latency is None
    assert Search.from_dict({k: v for k, v in plain.to_dict().items() if k != "latency"}).latency is None  # older ones
    for changes in ({"objectives": asked.objectives}, {"budget": asked.budget}):
        assert search("random", **changes).latency == Conditions(resolution=16)


def test_the_command_asks_for_a_runtime_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from onenet_bench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["onenet-bench", "sweep", "--latency", "tvm"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "unknown runtime 'tvm'; known: onnxruntime, torch" in capsys.readouterr().err
