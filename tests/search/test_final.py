"""Final trainings: who is trained anew, with which seeds, and how they go on after an interruption.

Scores are made up by an engine that trains nothing; one test trains for real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onenet_bench import cli, data, ledger, space
from onenet_bench.errors import RecipeError
from onenet_bench.ledger import Ledger
from onenet_bench.pareto import objectives
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, Record, Status
from onenet_bench.report import build_page
from onenet_bench.report.finals import final_facts, final_words
from onenet_bench.report.tables import read_run
from onenet_bench.search import final, sweep
from onenet_bench.search.baselines import baselines
from onenet_bench.search.core import Core, Search
from onenet_bench.search.display import Display
from onenet_bench.search.engines import Orders
from onenet_bench.search.trial import Ended, Event

SPACE = space.SearchSpace.from_dict(
    {
        "name": "tiny",
        "objectives": ["miou", "parameters"],
        "choices": {"width": [2, 3, 4, 5], "kind": ["conv2d", "onenet1d"]},
        "net": {"depth": 1, "width": "$width", "encoder": "$kind"},
        "budget": ["parameters <= 3000"],
    }
)


def search(trials: int = 6) -> Search:
    task = data.open_task("synthetic", resolution=32, train=8, validation=4, test=4)
    return Search(
        space=SPACE, task=task, recipe=Recipe(epochs=1, batch=4, seed=5), objectives=objectives(["miou", "parameters"]),
        budget=SPACE.budget, sampler="grid", seed=0, trials=trials, fidelity="off",
    )  # fmt: skip


def pretend(most: int | None = None, *, failing: int = 0, test: bool = True) -> Callable[..., None]:
    """An engine that tells made-up scores (the first are ``failing``), and is interrupted after ``most`` of them, with
    one more in flight. Without ``test`` there is no test split."""

    def engine(core: Core | final.Final, folder: Path, *, heard: Callable[[Event], None]) -> None:
        done = 0
        while (job := core.ask()) is not None:
            if done == most:
                raise KeyboardInterrupt
            done += 1
            recipe = job.recipe or core.search.recipe
            score = (job.costs.parameters % 97) / 100 + recipe.seed / 1000
            record = Record(
                trial=job.trial, spec=job.spec, choices=job.choices, task=core.search.task, recipe=recipe,
                machine=Machine.here(), status=Status.COMPLETE, costs=job.costs, scores={"miou": score},
                test_scores={"miou": score - 0.01} if job.test and test else {},
            )  # fmt: skip
            if done <= failing:
                record = replace(record, status=Status.FAILED, reason="it failed", scores={}, test_scores={})
            core.tell(record)
            heard(Ended(record))

    return engine


def made(run: Path) -> list[Record]:
    return ledger.records(ledger.read(run / ledger.FINAL))


def test_the_front_and_the_baselines_are_trained_with_seeds_that_the_search_has_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = sweep.start(search(), tmp_path / "run", pretend(), command="test", final=3)
    said = [line.split("  ")[1].split()[0] for line in capsys.readouterr().err.splitlines() if "complete" in line]
    assert said == ["trial"] * core.search.trials + ["retraining"] * len(made(tmp_path / "run"))
    front = read_run(tmp_path / "run").front
    expected = {r.spec.digest() for r in core.records if r.spec and r.trial in set(front["trial"])}
    expected |= {b.spec.digest() for b in baselines(core.search)}
    assert len(expected) > len(front)
    records = made(tmp_path / "run")
    assert sorted((r.spec.digest(), r.recipe.seed) for r in records if r.spec) == sorted(
        (digest, seed) for digest in expected for seed in (6, 7, 8)
    )
    assert [r.recipe.seed for r in records] == sorted(r.recipe.seed for r in records)  # every net once, then again
    assert all(r.test_scores for r in records)
    assert not any(r.test_scores for r in core.records)
    facts = final_facts(read_run(tmp_path / "run"))
    assert facts is not None
    assert facts.ended


def test_the_front_shown_meanwhile_is_of_nets_and_not_of_their_seeds(tmp_path: Path) -> None:
    seen: list[Core | final.Final] = []

    def engine(core: Core | final.Final, folder: Path, *, heard: Callable[[Event], None]) -> None:
        seen.append(core)
        pretend()(core, folder, heard=heard)

    sweep.start(search(), tmp_path / "run", engine, command="test", final=3)
    trained = [r for r in seen[-1].records if r.spec]
    means = {
        r.spec.label(): np.mean([o.scores["miou"] for o in trained if o.spec == r.spec]) for r in trained if r.spec
    }
    scores, _, labels = (list(column.cells) for column in Display(seen[-1])._front().columns)
    assert len(set(labels)) == len(labels) > 1
    assert scores == [f"{means[str(label)]:.3f}" for label in labels]


def test_without_final_nothing_is_trained_anew(tmp_path: Path) -> None:
    sweep.start(search(), tmp_path / "run", pretend(), command="test")
    assert not (tmp_path / "run" / ledger.FINAL).exists()


@pytest.mark.parametrize("most", range(0, 6, 2))
def test_an_interruption_costs_no_training_and_doubles_none(tmp_path: Path, most: int) -> None:
    run = tmp_path / "run"
    sweep.start(search(), run, pretend(), command="test")
    core = sweep.resume(run, pretend(most), command="again", trials=None, final=2)
    assert core.ended == "interrupted"
    assert len(made(run)) == most
    core = sweep.resume(run, pretend(), command="again", trials=None, final=2)
    assert core.ended != "interrupted"
    facts = final_facts(read_run(run))
    assert facts is not None
    assert facts.ended
    asked = [event["trial"] for event in ledger.read(run / ledger.FINAL) if event["event"] == "ask"]
    assert asked == list(range(len(facts.contestants) * 2))
    assert sorted(r.trial for r in made(run)) == asked


def test_what_failed_is_trained_again_when_it_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    sweep.start(search(), run, pretend(), command="test")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as engine:
        engine.setattr(Orders, "make", lambda _: pretend(failing=99))
        assert cli.app(["sweep", "--resume", str(run), "--final", "1"], standalone_mode=False) == 1
    said, reason = capsys.readouterr()
    assert not cli.app(["sweep", "--resume", str(run), "--final", "0"], standalone_mode=False)
    capsys.readouterr()
    assert reason.endswith(f"every final training failed; {run}/final/ledger.jsonl says why\n")
    number = len(made(run))
    assert f"{number} trainings failed; sweep --resume RUN --final 1 trains what is missing." in " ".join(said.split())
    assert ledger.read(run / ledger.FINAL)[-1]["reason"] == f"{number} final trainings were made; {number} failed"
    sweep.resume(run, pretend(2), command="again", trials=None, final=1)
    assert capsys.readouterr().err.startswith(f"1/{number}  retraining {number}  complete")
    sweep.resume(run, pretend(), command="again", trials=None, final=1)
    records = made(run)
    assert sorted(r.trial for r in records) == list(range(2 * number))
    assert [r.status for r in records] == [Status.FAILED] * number + [Status.COMPLETE] * number
    facts = final_facts(read_run(run))
    assert facts is not None
    assert [c.failed for c in facts.contestants] == [0] * number
    assert "failed" not in final_words(facts)


def test_one_failed_final_training_fails_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    sweep.start(search(), run, pretend(), command="test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Orders, "make", lambda _: pretend(failing=1))
    assert not cli.app(["sweep", "--resume", str(run), "--final", "1"], standalone_mode=False)
    facts = final_facts(read_run(run))
    assert facts is not None
    assert sum(c.failed for c in facts.contestants) == 1
    assert "1 training failed; sweep --resume RUN --final 1 trains what is missing." in final_words(facts)


def test_final_trainings_once_asked_for_are_made_by_whoever_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    core = sweep.start(search(), run, pretend(3), command="test", final=2)
    assert core.ended == "interrupted"
    sweep.resume(run, pretend(), command="again", trials=None)
    records = made(run)
    assert {r.recipe.seed for r in records} == {6, 7}
    sweep.resume(run, pretend(0), command="again", trials=None, final=0)
    sweep.resume(run, pretend(0), command="again", trials=None)
    assert made(run) == records


def test_ctrl_c_before_the_first_final_training_is_an_interruption_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(core: Core) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(final, "contestants", interrupted)
        core = sweep.start(search(), tmp_path / "run", pretend(), command="test", final=1)
    assert core.ended == "interrupted"
    assert sweep.resume(tmp_path / "run", pretend(), command="again", trials=None).ended != "interrupted"
    assert made(tmp_path / "run")


def test_without_a_test_split_it_is_said_who_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = search(trials=2)
    rng = np.random.default_rng(0)
    for kind, high in (("images", 256), ("masks", 2)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, high, (32, 32, 3) if kind == "images" else (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / kind / f"{i}.png")
    (tmp_path / "data" / "train.txt").write_text("0\n1\n")
    (tmp_path / "data" / "validation.txt").write_text("2\n3\n")
    task = data.open_task(f"folder:{tmp_path / 'data'}", resolution=32)
    sweep.start(replace(wanted, task=task), tmp_path / "run", pretend(test=False), command="test", final=1)
    assert f"{task.data} has no test split: final trainings are scored on validation alone" in capsys.readouterr().err
    facts = final_facts(read_run(tmp_path / "run"))
    assert facts is not None
    assert "places are judged by validation, which the search had seen" in final_words(facts)
    assert "test split was not looked at" not in build_page(tmp_path / "run")


def test_more_seeds_later_train_only_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sweep.start(search(), run, pretend(), command="test", final=1)
    before = len(made(run))
    sweep.resume(run, pretend(), command="again", trials=None, final=3)
    assert len(made(run)) == 3 * before
    sweep.resume(run, pretend(0), command="again", trials=None, final=2)  # fewer: they are all there already
    assert len(made(run)) == 3 * before


def test_a_front_that_moved_is_trained_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sweep.start(search(trials=1), run, pretend(), command="test", final=1)
    before = {r.spec.digest() for r in made(run) if r.spec}
    core = sweep.resume(run, pretend(), command="again", trials=7, final=1)
    after = [r.spec.digest() for r in made(run) if r.spec]
    assert len(after) == len(set(after))
    front = set(read_run(run).front["trial"])
    assert {r.spec.digest() for r in core.records if r.spec and r.trial in front} <= set(after)
    assert before < set(after)


def test_a_machine_that_dies_is_forgiven_twice(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run", create=True) as book:
        core = Core(book, [], search(trials=1))
        pretend()(core, tmp_path, heard=lambda event: None)

        def lose(runs: final.Final, folder: Path) -> None:
            job = runs.ask()
            assert job is not None
            for _ in range(2):
                assert runs.lost(job.trial, "its node died")
                again = runs.ask()
                assert again is not None
                assert (again.trial, again.spec) == (job.trial, job.spec)
            assert not runs.lost(job.trial, "its node died")
            raise KeyboardInterrupt

        done = final.train(core, tmp_path / "run", seeds=1, carry_out=lose)
        assert done is not None
        assert done.ended == "interrupted"


def test_zero_seeds_are_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run", create=True) as book, pytest.raises(RecipeError, match="at least one seed"):
        final.train(Core(book, [], search()), tmp_path, seeds=0, carry_out=lambda runs, folder: None)


def test_a_search_without_a_front_has_nobody_to_train(tmp_path: Path) -> None:
    with Ledger(tmp_path / "run", create=True) as book:
        core = Core(book, [], search())
        assert final.train(core, tmp_path / "run", seeds=1, carry_out=lambda runs, folder: None) is None


def test_baselines_take_no_more_memory_than_a_trial_may(tmp_path: Path) -> None:
    run, limit = tmp_path / "run", 2.0
    sweep.start(replace(search(), budget=()), run, pretend(), command="test", memory_mib=limit, final=1)
    planned = [record for record in made(run) if not record.choices["net"].startswith("trial")]
    assert planned
    assert max(record.costs.peak_training_mib for record in planned if record.costs) <= limit


def test_a_search_that_stands_still_ends_and_stays_ended_until_it_is_told_not_to(tmp_path: Path) -> None:
    asked = replace(search(trials=8), window=1)
    core = sweep.start(asked, tmp_path / "run", pretend(), command="test")
    assert "over the last 1 trained candidates" in core.ended
    assert len(core.records) < 8
    again = sweep.resume(tmp_path / "run", pretend(), command="again", trials=8)
    assert len(again.records) == len(core.records)
    assert again.ended == core.ended

    further = sweep.resume(tmp_path / "run", pretend(), command="again", trials=None, window=0)
    assert len(further.records) == 8
    assert (
        "over the last" not in sweep.resume(tmp_path / "run", pretend(), command="again", trials=None).ended
    )  # it remembers


@pytest.mark.slow
def test_real_final_trainings_score_the_test_split(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sweep.start(search(trials=2), run, Orders(workers=2, threads=1).make(), command="test", final=1)
    records = made(run)
    assert records
    assert all(r.status is Status.COMPLETE for r in records)
    assert all(0 <= r.test_scores["miou"] <= 1 for r in records)
    assert any(r.test_scores["miou"] != r.scores["miou"] for r in records)
    assert all((run / ledger.FINAL / r.artifacts["weights"]).exists() for r in records)
