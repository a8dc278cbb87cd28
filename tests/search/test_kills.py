"""Nothing is lost and nothing hangs: trials that misbehave, and processes that are killed, by the local engine."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onenet_bench import ledger
from onenet_bench.errors import LedgerError
from onenet_bench.record import Record, Status
from onenet_bench.search import local, trial
from onenet_bench.search.core import Core
from onenet_bench.search.trial import Epoch, Event, Started
from tests.search import faults
from tests.search.killable import carry_on, drive, kill, search


def rows(folder: Path) -> dict[int, Record]:
    """The Records of a run by trial; every trial has one."""
    events = ledger.read(folder)
    found = ledger.records(events)
    told = [record.trial for record in found]
    assert sorted(told) == sorted({event["trial"] for event in events if event["event"] == "ask"}), "one each"
    return {record.trial: record for record in found}


def timeless(record: Record) -> dict[str, Any]:
    """What a Record says, without what belongs to the moment."""
    values = record.to_dict()
    history = [{**epoch, "seconds": 0} for epoch in values["history"]]
    return {**values, "seconds": 0, "history": history, "provenance": {**values["provenance"], "time": ""}}


def same(folder: Path, other: Path) -> None:
    """Two runs have the same Records, and the same weights to the bit."""
    found, expected = rows(folder), rows(other)
    assert {n: timeless(record) for n, record in found.items()} == {n: timeless(r) for n, r in expected.items()}
    for record in found.values():
        if weights := record.artifacts.get("weights"):
            own, others = (load_file(where / weights) for where in (folder, other))
            assert own.keys() == others.keys()
            assert all(torch.equal(own[name], others[name]) for name in own)


def reports(folder: Path) -> list[tuple[int, int]]:
    """(trial, epoch) of every report of a run."""
    return [(event["trial"], event["epoch"]) for event in ledger.read(folder) if event["event"] == "report"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six trials that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    carry_on(folder, search(6))
    return folder


# Trials that misbehave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [False, True])
def test_every_misbehaviour_is_a_failed_record_with_its_reason_and_the_others_are_trained(
    silent: bool, tmp_path: Path
) -> None:
    """Those that say nothing more are all that there is in their run, so that its limit can be short."""
    names = [name for name, (_, reason) in faults.FAULTS.items() if reason.startswith("it took longer") is silent]
    plan = dict(enumerate(names, start=0 if silent else 1))
    tmp_path.joinpath(faults.PLAN).write_text(json.dumps(plan))
    wanted = search(len(plan) + (0 if silent else 2), sampler="grid")
    carry_on(tmp_path, wanted, workers=2, carry_out=faults.carry_out, limit_s=8 if silent else None)
    found = rows(tmp_path)
    assert len(found) == wanted.trials
    for number, record in found.items():
        if number not in plan:
            assert record.status is Status.COMPLETE
            continue
        assert (plan[number], record.status) == (plan[number], Status.FAILED)
        assert record.reason.startswith(faults.FAULTS[plan[number]][1])
        if plan[number] not in ("exception", "nan") and not silent:
            assert [epoch["epoch"] for epoch in record.history] == [1]
    assert not any(tmp_path.glob("checkpoints/*"))
    assert not multiprocessing.active_children()


def test_a_full_disk_ends_the_sweep_in_a_sentence_and_no_trial_is_to_blame(tmp_path: Path, whole: Path) -> None:
    plan = tmp_path / faults.PLAN
    plan.write_text(json.dumps({"1": "full"}))
    with pytest.raises(LedgerError, match=r"need room on the disk, but .* has none left; make room and use --resume"):
        carry_on(tmp_path, search(6), carry_out=faults.carry_out)
    assert [event["trial"] for event in ledger.read(tmp_path) if event["event"] == "tell"] == [0]
    plan.write_text("{}")
    carry_on(tmp_path, search(6), carry_out=faults.carry_out)
    same(tmp_path, whole)


class _Died(Exception):
    pass


@pytest.mark.parametrize("saved_every", [1e-9, 100.0])
def test_a_trial_in_flight_goes_on_where_it_was_and_ends_the_same(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, saved_every: float
) -> None:
    monkeypatch.setattr(trial, "SAVED_EVERY", saved_every)
    at = (2, 2)  # trial and epoch

    def die(event: Event) -> None:
        if isinstance(event, Epoch) and (event.job.trial, event.progress["epoch"]) == at:
            for _ in range(200 if saved_every < 1 else 0):  # till the state of that epoch is there
                state = tmp_path / trial.state(2) / "state.safetensors"
                if state.exists() and b'\\"epoch\\": 2' in state.read_bytes():
                    break
                time.sleep(0.05)
            raise _Died

    with pytest.raises(_Died):
        carry_on(tmp_path, search(6), heard=die)
    heard: list[tuple[int, int]] = []

    def listen(event: Event) -> None:
        if isinstance(event, Epoch):
            heard.append((event.job.trial, event.progress["epoch"]))

    carry_on(tmp_path, search(6), heard=listen)
    went_on = [(2, 2), (2, 3)]
    assert heard[: heard.index((3, 1))] == (went_on if saved_every < 1 else [(2, 1), *went_on])
    assert reports(tmp_path) == reports(whole)  # once each
    same(tmp_path, whole)
    assert not any(tmp_path.glob("checkpoints/*"))


def test_a_stopped_trial_keeps_its_state_and_ends_the_same_when_it_is_promoted(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core's decisions, made up: trial 1 stops after its first epoch, and is asked for again at the end."""
    stopped: list[Record] = []
    tell, ask, report = Core.tell, Core.ask, Core.report

    def no_more(core: Core, number: int, progress: Any) -> bool:
        return report(core, number, progress) and (number != 1 or bool(stopped))

    def note(core: Core, record: Record) -> None:
        if record.status is Status.STOPPED:
            stopped.append(record)
            assert (tmp_path / trial.state(1) / "state.safetensors").exists()
        else:
            tell(core, record)

    def promote(core: Core) -> Any:
        job = ask(core)
        if job is None and len(stopped) == 1 and 1 in core._running:
            stopped.append(stopped[0])
            return core._running[1]
        return job

    monkeypatch.setattr(Core, "report", no_more)
    monkeypatch.setattr(Core, "tell", note)
    monkeypatch.setattr(Core, "ask", promote)
    carry_on(tmp_path, search(6, sampler="grid"))
    assert [epoch["epoch"] for epoch in stopped[0].history] == [1]
    straight = tmp_path / "straight"
    monkeypatch.undo()
    carry_on(straight, search(6, sampler="grid"))
    same(tmp_path, straight)
    assert [epoch["epoch"] for epoch in rows(tmp_path)[1].history] == [1, 2, 3]


# Processes that are killed -----------------------------------------------------------------------------------


def test_without_its_server_the_engine_goes_on(tmp_path: Path, whole: Path) -> None:
    """The server is killed while a trial runs; that trial ends, and the next ones come from another server."""
    servers: list[int] = []

    def strike(event: Event) -> None:
        server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        if server not in servers:
            servers.append(server)
        if isinstance(event, Epoch) and event.job.trial == 1 and len(servers) == 1:
            os.kill(server, signal.SIGKILL)

    carry_on(tmp_path, search(6), heard=strike)
    assert len(servers) == 2
    same(tmp_path, whole)


def test_a_process_that_dies_before_its_trial_has_begun_is_replaced(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = local._Engine._start
    begun = 0

    def dead_at_first(engine: Any) -> Any:
        nonlocal begun
        worker = start(engine)
        begun += 1
        if begun in (3, 4):  # trial 2's, and its first replacement's
            worker.process.kill()
            worker.process.join()
        return worker

    monkeypatch.setattr(local._Engine, "_start", dead_at_first)
    started: list[int] = []
    carry_on(
        tmp_path, search(6), heard=lambda event: started.append(event.job.trial) if isinstance(event, Started) else None
    )
    assert started == [number for number, epoch in reports(whole) if epoch == 1]
    same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 3), (2, 2)])
def test_a_driver_that_is_killed_at_any_moment_leaves_a_run_that_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: Path, workers: int, kills: int
) -> None:
    draw = random.Random(workers)
    for _ in range(kills):
        kill(tmp_path, 6, workers, draw, step=12_000)
    with drive(tmp_path, 6, workers) as driver:
        _, said = driver.communicate()
        assert driver.returncode == 0, said
    if workers == 1:
        same(tmp_path / "run", whole)
    states = [record.status for record in rows(tmp_path / "run").values() if record.status is not Status.REJECTED]
    assert states == [Status.COMPLETE] * 6
