"""Tables of whole spaces: which nets, what is kept, and going on with one."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from onenet_bench import costs, data, files, space
from onenet_bench.budget import Budget
from onenet_bench.errors import LedgerError, SpaceError
from onenet_bench.evaluate import evaluate
from onenet_bench.recipe import Recipe
from onenet_bench.record import Status
from onenet_bench.search import tabulate as tables
from onenet_bench.search.tabulate import Question, distinct, lines, read, tabulate
from onenet_bench.space import SearchSpace
from tests.test_cli import COMMAND, processes_in

SPACE = SearchSpace.from_dict(
    {
        "name": "two",
        "objectives": ["miou", "macs"],
        "budget": ["macs <= 1M"],
        "choices": {"width": [2, 3, 64], "kernel": [0, 3]},
        "net": {"depth": 1, "width": "$width", "encoder": "conv2d", "spatial_kernel": "$kernel", "repeat": 1},
    }
)
RECIPE = Recipe(epochs=2, batch=4, seed=7)


def question(*seeds: int, **changes: object) -> Question:
    task = data.open_task("synthetic", resolution=32, train=4, validation=2, test=1)
    return replace(Question(space=SPACE, task=task, recipe=RECIPE, seeds=seeds), **changes)  # type: ignore[arg-type]


def test_every_affordable_net_once_by_its_first_combination() -> None:
    rows = distinct(question(0))
    assert [row.choices for row in rows.values()] == [{"width": 2, "kernel": 0}, {"width": 3, "kernel": 0}]
    for digest, row in rows.items():
        assert digest == row.spec.digest()
        assert row.costs["macs"] == costs.count(row.spec, 32).macs <= 1e6
    assert len(distinct(question(0, space=replace(SPACE, budget=())))) == 3


def test_a_table_of_more_nets_than_anybody_trains_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_NETS", 1)
    with pytest.raises(SpaceError, match=r"at most 1 nets, but .* has 2; offer less, or set a budget"):
        distinct(question(0))


def test_a_table_is_made_gone_on_with_and_holds_what_a_training_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
    heard: list[tuple[int, int]] = []
    begun = tabulate(question(0), tmp_path, command="made so", heard=lambda done, of: heard.append((done, of)))
    assert heard == [(1, 2), (2, 2)]
    assert begun.facts["command"] == "made so"
    book = tmp_path / tables.SCORED
    whole = book.read_text()
    book.write_text(whole[: whole.rstrip("\n").rfind("\n") + 9])  # the last training is torn
    found = tabulate(question(0, 1), tmp_path, command="and on", heard=lambda done, of: heard.append((done, of)))
    assert heard[2:] == [(2, 4), (3, 4), (4, 4)]
    assert found.facts["seeds"] == [0, 1]
    assert [(added["seeds"], added["command"]) for added in found.facts["added"]] == [([1], "and on")]
    card = (tmp_path / tables.CARD).read_text()
    assert "- Made by `made so`" in card
    assert "- Seeds 1 added by `and on`" in card
    again = tabulate(question(0, 1), tmp_path, command="once more")
    assert again.facts == found.facts  # nothing was added
    curves = found.curves("miou")
    assert curves.shape == (2, 2, 2)
    assert not np.isnan(curves).any()
    before = begun.scores.set_index(["net", "seed", "epoch"])["miou"]
    after = found.scores.set_index(["net", "seed", "epoch"])["miou"]
    pd.testing.assert_series_equal(before.sort_index(), after[after.index.isin(before.index)].sort_index())
    spec = next(iter(distinct(question(0)).values())).spec
    record = evaluate(spec, question(0).task, replace(RECIPE, seed=1))
    assert curves[0, 1] == pytest.approx([epoch["miou"] for epoch in record.history], abs=1e-4)
    assert found.nets["macs"].iloc[0] == costs.count(spec, 32).macs


def test_a_killed_table_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    book = tmp_path / "table" / tables.SCORED
    (tmp_path / "two.toml").write_text(
        'name = "two"\nobjectives = ["miou", "macs"]\n[choices]\nwidth = [2, 3]\n'
        '[net]\ndepth = 1\nwidth = "$width"\nrepeat = 1\n[task]\nresolution = 32\ntrain = 4\nvalidation = 2\ntest = 1\n'
    )
    words = [*COMMAND, "tabulate", "--space", "two.toml", "--seeds", "0,1,2,3", "--epochs", "20", "--out", "table"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 120
        while not (book.exists() and book.read_text().count("\n") > 1):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.kill()
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_in(tmp_path)
    done = tables._mend(book, 20)
    assert 1 <= len(done) < 8
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert len(tables._mend(book, 20)) == 8


def test_a_failed_training_is_one_row_without_scores(tmp_path: Path) -> None:
    asked = question(0)
    row = next(iter(distinct(asked).values()))
    record = replace(evaluate(row.spec, asked.task, replace(RECIPE, seed=0)), status=Status.FAILED)
    tables._begin(asked, distinct(asked), tmp_path, "")
    with (tmp_path / tables.SCORED).open("a") as book:
        book.write(lines(record, [0.1, 0.2]))
    assert tables._mend(tmp_path / tables.SCORED, 2) == {(row.spec.digest(), 0)}
    found = read(tmp_path)
    assert len(found.scores) == 1
    assert found.scores["miou"].isna().all()
    assert np.isnan(found.curves("miou")).all()


def test_the_card_is_about_nets_that_could_be_trained(tmp_path: Path) -> None:
    """Of the first every training fails."""
    asked = question(0, 1, space=replace(SPACE, budget=()))
    nets = distinct(asked)
    tables._begin(asked, nets, tmp_path, "")
    with (tmp_path / tables.SCORED).open("a") as book:
        for i, row in enumerate(nets.values()):
            for seed in asked.seeds:
                record = evaluate(row.spec, asked.task, replace(RECIPE, seed=seed))
                book.write(lines(record if i else replace(record, status=Status.FAILED), [0.1] * RECIPE.epochs))
    found = read(tmp_path)
    ends = found.curves("miou")[1:, :, -1].mean(axis=1)
    card = tables.card(found)
    assert f"lies between {ends.min():.3f} and {ends.max():.3f}, standard deviation" in " ".join(card.split())
    assert "nan" not in card


def test_another_question_is_not_mixed_in(tmp_path: Path) -> None:
    asked = question(0)
    tables._begin(asked, distinct(asked), tmp_path, "")
    for other in (
        question(0, recipe=replace(RECIPE, batch=2)),
        question(0, space=replace(SPACE, budget=(Budget.parse("macs <= 2M"),))),
        question(0, task=replace(asked.task, content="other")),
    ):
        with pytest.raises(LedgerError, match=r"was begun for another (recipe|space|task)"):
            tables._begin(other, distinct(other), tmp_path, "")
    tables._begin(question(0, recipe=replace(RECIPE, seed=3)), distinct(asked), tmp_path, "")
    tables._begin(question(0, task=replace(asked.task, white=4000)), distinct(asked), tmp_path, "")  # of the content


def test_what_makes_no_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="a table is a folder with"):
        read(tmp_path)
    with pytest.raises(SpaceError, match="one or more seeds, each once"):
        question(0, 0)
    with pytest.raises(SpaceError, match="has 30 steps; say epochs"):
        question(0, recipe=replace(RECIPE, steps=30))
    with pytest.raises(SpaceError, match="has a patience of 1; leave it out"):
        question(0, recipe=replace(RECIPE, patience=1))
    dear = replace(SPACE, budget=(Budget.parse("peak_training_mib <= 0.001"),))
    with pytest.raises(SpaceError, match=r"of two none can be trained within peak_training_mib <= 0\.001; allow more"):
        tabulate(question(0, space=dear), tmp_path / "dear", command="")
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_said_and_kept(tmp_path: Path) -> None:
    asked = question(0)
    tables._begin(asked, distinct(asked), tmp_path, "")
    book, stated = tmp_path / tables.SCORED, tmp_path / tables.QUESTION
    first, second = (f"{name},0,{epoch},1,1\n" for name, epoch in (("a", 1), ("a", 2)))
    third = first.replace("a", "b")
    for text, why in (
        ("", "begin with net,seed,epoch"),
        (first, "begin with net,seed,epoch"),
        (tables.HEADER + "no epoch\n", "those from 2 of"),
        (tables.HEADER + "a,b,c,d\n", "those from 2 of"),
        (tables.HEADER + first + third, "those from 2 of"),  # a line is lost
        (tables.HEADER + (first + second) * 2, "those from 4 of"),  # there twice
    ):
        book.write_text(text)
        with pytest.raises(LedgerError, match=why + r".*; restore"):
            tabulate(asked, tmp_path, command="")
        assert book.read_text() == text
    book.write_text(tables.HEADER)
    for text in ("{", "[]", "{}"):
        stated.write_text(text)
        for use in (lambda: read(tmp_path), lambda: tabulate(asked, tmp_path, command="")):
            with pytest.raises(LedgerError, match=r"is damaged .*; restore it from a copy"):
                use()
        assert stated.read_text() == text


def test_a_table_has_a_folder_and_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("of something else")
    with pytest.raises(LedgerError, match=r"holds README\.md; give another --out"):
        tabulate(question(0), tmp_path, command="")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with files.alone(tmp_path, LedgerError("taken")), pytest.raises(LedgerError, match="another one fills"):
        tabulate(question(0), tmp_path, command="")
    with pytest.raises(LedgerError, match="must be writable"):
        tabulate(question(0), Path("/proc/table"), command="")


@pytest.mark.parametrize("objective", ["latency_ms", "supervision_macs", "dice_case_fg"])
def test_what_a_table_does_not_hold_is_no_objective_of_it(objective: str) -> None:
    others = ["miou", "macs"] if objective == "dice_case_fg" else ["miou"]
    space_ = SearchSpace.from_dict({**SPACE.to_dict(), "objectives": [*others, objective]})
    with pytest.raises(SpaceError, match=f"a table has no {objective}"):
        question(0, space=space_)


@pytest.mark.parametrize("name", ["net", "label", "macs"])
def test_no_choice_is_called_as_a_column_of_its_own_is(name: str) -> None:
    values = {**SPACE.to_dict(), "choices": {name: [2, 3]}, "net": {"depth": 1, "width": f"${name}"}}
    with pytest.raises(SpaceError, match=f"a table has a column of its own called {name}, but two has a choice"):
        question(0, space=SearchSpace.from_dict(values))


def test_a_net_that_cannot_be_trained_by_the_recipe_is_left_out() -> None:
    """Deep supervision needs a second head."""
    values = {**SPACE.to_dict(), "choices": {"depth": [1, 2]}, "net": {"depth": "$depth", "width": 2, "heads": "all"}}
    asked = question(0, space=SearchSpace.from_dict(values), recipe=replace(RECIPE, deep_supervision=0.5))
    assert [row.choices for row in distinct(asked).values()] == [{"depth": 2}]


@pytest.mark.parametrize("name", ["small", "small_long", "medium", "medium_long", "held_out"])
def test_a_kept_table_is_that_of_its_space(name: str) -> None:
    """And of the costs that are counted today; its card is the one that is written today."""
    folder = Path(__file__).parents[2] / "results" / "tabular" / name
    found = read(folder)
    card = (folder / tables.CARD).read_text()
    assert card == tables.card(found)
    (epochs,) = (line.strip("| ").split(" | ")[1:] for line in card.splitlines() if line.startswith("| epoch"))
    assert len(epochs) == tables.SHOWN
    assert epochs[-1] == str(found.question.recipe.epochs)
    asked = found.question
    assert asked.space == space.load(asked.space.name)
    assert name.startswith(asked.space.name)
    rows = distinct(asked)
    assert list(rows) == found.nets.index.tolist()
    for name in ("parameters", "macs", "peak_inference_mib"):
        assert [row.costs[name] for row in rows.values()] == pytest.approx(found.nets[name].tolist())
    curves = found.curves("miou")
    assert curves.shape == (len(rows), len(asked.seeds), asked.recipe.epochs)
    assert np.isfinite(curves).all()
    assert found.facts["task_digest"] == data.open_task(asked.task.data, **asked.space.task).digest()
