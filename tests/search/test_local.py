"""The local engine, with real processes and real (tiny) trainings."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onenet_bench import data, ledger, pareto
from onenet_bench.budget import Budget
from onenet_bench.errors import DataError
from onenet_bench.evaluate import evaluate
from onenet_bench.models import load_checkpoint
from onenet_bench.recipe import Recipe
from onenet_bench.record import Status
from onenet_bench.search import display, local, sweep
from onenet_bench.search.core import Core, Search
from onenet_bench.search.engines import Orders
from onenet_bench.search.local import plan_workers
from onenet_bench.search.trial import Ended, Epoch, Event
from onenet_bench.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "name": "tiny",
        "objectives": ["miou", "parameters"],
        "choices": {"width": [2, 3, 4], "kind": ["conv2d", "onenet1d"]},
        "net": {"depth": 1, "width": "$width", "encoder": "$kind"},
    }
)


def search(trials: int = 4, **recipe: float) -> Search:
    task = data.open_task("synthetic", resolution=32, train=8, validation=4, test=4)
    return Search(
        space=SPACE, task=task, recipe=replace(Recipe(epochs=2, batch=4), **recipe), objectives=SPACE.objectives,
        budget=(), sampler="grid", seed=0, trials=trials,
    )  # fmt: skip


def run(wanted: Search, folder: Path, workers: int = 2) -> Core:
    return sweep.start(wanted, folder, Orders(workers=workers, threads=1).make(), command="test")


def test_a_sweep_trains_scores_and_keeps_what_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    core = run(search(), folder)
    assert core.ended == "4 candidates were trained"
    events = ledger.read(folder)
    rows = ledger.records(events)
    assert [r.status for r in rows] == [Status.COMPLETE] * 4
    reports = [e for e in events if e["event"] == "report"]
    assert sorted((e["trial"], e["epoch"]) for e in reports) == [(t, e) for t in range(4) for e in (1, 2)]
    shown = np.load(folder / "samples.npz")
    for row in rows:
        assert 0 <= row.scores["miou"] <= 1
        assert row.history[-1]["miou"] == row.scores["miou"]
        predictions = np.load(folder / row.artifacts["predictions"])["predictions"]
        assert predictions.shape == shown["masks"].shape
        assert predictions.max() < core.search.task.classes
    kept = [r for r in rows if (folder / r.artifacts["weights"]).exists()]
    front = pareto.front(ledger.frame(rows), core.search.objectives)
    assert {r.trial for r in kept} == set(front["trial"])
    net, facts = load_checkpoint(folder / kept[0].artifacts["weights"])
    assert net.spec == kept[0].spec
    assert facts["task"] == core.search.task.to_dict()


def test_a_rejected_candidate_is_a_line_where_there_was_none_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0

    def later() -> float:
        nonlocal now
        now += display.SILENCE_S / 2
        return now

    monkeypatch.setattr(display.time, "monotonic", later)
    core = run(replace(search(), budget=(Budget.parse("peak_training_mib <= 0.001"),)), tmp_path / "run")
    assert core.ended == "all 6 combinations were tried"
    lines = [
        f"{number + 1} candidates were rejected so far, trial {number} last: {record.reason}"
        for number, record in enumerate(core.records)
    ]
    assert len(lines) == 6
    assert capsys.readouterr().err.splitlines() == lines[1::2]  # a line asks for the time too


def test_the_same_seed_gives_the_same_scores_whatever_the_workers(tmp_path: Path) -> None:
    scores = []
    for workers in (1, 2):
        core = run(search(trials=3), tmp_path / str(workers), workers)
        scores.append({r.trial: dict(r.scores) for r in core.records})
    assert scores[0] == scores[1]


def test_a_diverging_candidate_is_a_failed_record_and_the_sweep_goes_on(tmp_path: Path) -> None:
    core = run(search(trials=2, learning_rate=1e30), tmp_path / "run")
    assert [r.status for r in core.records] == [Status.FAILED] * 2
    assert all("a loss is finite, but it was" in r.reason for r in core.records)


def test_a_killed_worker_is_a_failed_record_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[int] = []

    class Murderous(sweep.Display):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Epoch) and not victims:
                victims.append(event.job.trial)
                for child in multiprocessing.active_children():  # one worker: the only child
                    child.kill()

    monkeypatch.setattr(sweep, "Display", Murderous)
    core = run(search(trials=3), tmp_path / "run", workers=1)
    states = {r.trial: r.status for r in core.records}
    assert [states.pop(victims[0])] == [Status.FAILED]
    assert list(states.values()) == [Status.COMPLETE] * 2
    assert "ended by SIGKILL, which the system sends when memory runs out" in core.records[0].reason


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(sweep.Display):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Ended):
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "Display", Impatient)
        core = run(search(), tmp_path / "run")
    assert core.ended == "interrupted"
    assert not multiprocessing.active_children()
    assert ledger.read(tmp_path / "run")[-1] == {"event": "end", "reason": "interrupted"}
    core = sweep.resume(tmp_path / "run", Orders(workers=2, threads=1).make(), command="again", trials=5)
    assert core.ended == "5 candidates were trained"
    rows = ledger.records(ledger.read(tmp_path / "run"))
    assert sorted(r.trial for r in rows) == [0, 1, 2, 3, 4]
    whole = run(search(trials=5), tmp_path / "whole")
    assert {r.trial: r.scores for r in rows} == {r.trial: r.scores for r in whole.records}


def test_a_score_over_patients_needs_patients(tmp_path: Path) -> None:
    wanted = replace(search(), objectives=pareto.objectives(["dice_case_fg", "macs"]))
    with pytest.raises(DataError, match="a mean over patients, but synthetic has none; use dice_fg"):
        run(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("split", "final"), [("train", 0), ("validation", 0), ("test", 1)])
def test_no_search_is_spent_on_a_split_without_a_pixel_that_counts(split: str, final: int, tmp_path: Path) -> None:
    for index, part in enumerate(("train", "validation", "test")):
        for folder, pixels in (("images", np.full((8, 8), index)), ("masks", np.eye(8) if part != split else 255)):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.save(tmp_path / folder / f"{part}.npy", np.broadcast_to(pixels, (8, 8)).astype(np.uint8))
        (tmp_path / f"{part}.txt").write_text(part)
    task = data.open_task(f"folder:{tmp_path}", resolution=8)
    engine = Orders(workers=1, threads=1).make()
    with pytest.raises(DataError, match=f"all of the {split} split of folder:.* are 255, which counts nowhere"):
        sweep.start(replace(search(), task=task), tmp_path / "run", engine, command="test", final=final)
    assert not (tmp_path / "run").exists()
    net, recipe = SPACE.spec(dict(width=2, kind="conv2d"), classes=2, in_channels=1), Recipe(epochs=1)
    with pytest.raises(DataError, match=f"all of the {split} split"):
        evaluate(net, task, recipe, test=bool(final))


def test_an_exception_outside_training_is_a_failed_record_too(tmp_path: Path) -> None:
    wanted = search(trials=1)
    wanted = replace(wanted, task=replace(wanted.task, in_channels=1))  # the data has 3
    core = run(wanted, tmp_path / "run")
    assert [r.status for r in core.records] == [Status.FAILED]
    assert "channels" in core.records[0].reason


INTERRUPTED = """
import importlib, os, signal
importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT)
import onenet_bench.search.preload
print("loaded")
"""


def test_an_interrupt_while_trials_are_prepared_is_not_their_servers_to_handle() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "loaded\n", "")


@pytest.mark.parametrize(
    ("asked", "planned"), [((None, None), (4, 1)), ((2, None), (2, 2)), ((None, 4), (1, 4)), ((3, 2), (3, 2))]
)
def test_workers_fill_the_cores(
    asked: tuple[int | None, int | None], planned: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 4)
    assert plan_workers(*asked) == planned
