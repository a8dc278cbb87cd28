"""A warm start: an earlier run's nets are observations, are not proposed again, and travel in the header."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onenet_bench import ledger
from onenet_bench.budget import Budget
from onenet_bench.errors import SpaceError
from onenet_bench.ledger import Ledger
from onenet_bench.record import Status
from onenet_bench.search.core import Core, Search
from onenet_bench.search.warm import earlier
from tests.search.test_core import begin, carry_out, trained
from tests.search.test_frontier import affordable, sampler, searched


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run of 12 nets, of which one failed and one was stopped."""
    book, core = begin(tmp_path / "old", searched(12))
    while (job := core.ask()) is not None:
        record = trained(job)
        status = {3: Status.FAILED, 5: Status.STOPPED}.get(job.trial, Status.COMPLETE)
        core.tell(replace(record, status=status, history=({"epoch": 1, "miou": 0.1},)))
    book.close()
    return tmp_path / "old"


def warm(old: Path, trials: int = 1000) -> Search:
    wanted = searched(trials)
    return replace(wanted, earlier=earlier(old, wanted), seed=8)


def test_what_was_trained_is_known_and_not_proposed_again(old: Path, tmp_path: Path) -> None:
    search = warm(old)
    assert len(search.earlier) == 12
    book, core = begin(tmp_path / "new", search)
    past = sampler(earlier=search.earlier)._past(core._study, sampler()._candidates(0))
    complete = [r for r in search.earlier if r.status is Status.COMPLETE]
    assert past.values[:, 0].tolist() == [r.scores["miou"] for r in complete]
    assert len(past.told) == 10
    assert len(past.rows) == 12
    assert past.failed.sum() == 1
    carry_out(core)
    book.close()
    before = {r.spec.digest() for r in search.earlier if r.spec}
    assert {r.spec.digest() for r in core.records if r.spec} == affordable() - before


def test_a_run_from_before_a_field_of_the_recipe_existed_is_known(old: Path) -> None:
    path = old / ledger.FILE
    head, *rest = path.read_text().splitlines(keepends=True)
    values = json.loads(head)
    del values["recipe"]["keep"], values["recipe"]["patience"]
    path.write_text(json.dumps(values) + "\n" + "".join(rest))
    assert len(earlier(old, searched(1000))) == 12


def test_a_run_from_before_a_task_said_what_is_white_is_known(old: Path) -> None:
    search = searched(1000)
    assert len(earlier(old, replace(search, task=replace(search.task, white=4000)))) == 12


def test_it_begins_where_the_other_ended(old: Path, tmp_path: Path) -> None:
    """With the proposal of a search that has trained the same nets itself."""
    book, core = begin(tmp_path / "new", warm(old))
    ours = core.ask()
    book.close()
    with Ledger(old, create=False) as book:
        theirs = Core(book, ledger.read(old), searched(1000)).ask()
    assert ours is not None
    assert theirs is not None
    assert ours.spec == theirs.spec


def test_it_survives_the_header_and_a_resumed_search_goes_on_the_same(old: Path, tmp_path: Path) -> None:
    search = warm(old, trials=8)
    assert Search.from_dict(json.loads(json.dumps(search.to_dict()))) == search
    book, core = begin(tmp_path / "whole", search)
    carry_out(core)
    book.close()
    whole = [r.spec for r in core.records]
    book, core = begin(tmp_path / "part", search)
    for _ in range(3):
        job = core.ask()
        assert job is not None
        core.tell(trained(job))
    book.close()
    (old / "ledger.jsonl").unlink()
    with Ledger(tmp_path / "part", create=False) as book:
        events = ledger.read(tmp_path / "part")
        core = Core(book, events, Search.from_dict(events[0]))
        carry_out(core)
    assert [r.spec for r in core.records] == whole


def test_a_second_warm_start_knows_what_the_first_knew(old: Path, tmp_path: Path) -> None:
    book, core = begin(tmp_path / "new", warm(old, trials=3))
    carry_out(core)
    book.close()
    assert len(earlier(tmp_path / "new", searched(5))) == 15


@pytest.mark.parametrize(("changes", "said"), [
    ({"task": {"content": "other"}}, "but the task of .* is another"),
    ({"recipe": {"learning_rate": 0.5}}, "but the recipe of .* is another"),
    ({"space": {"net": {"depth": "$depth", "scale": "$scale", "width": "$width", "encoder": "$kind",
                        "spatial_kernel": "$kernel", "stem_repeat": "$stem_repeat", "repeat": 1}}},
     "but the space of .* is another"),
])  # fmt: skip
def test_another_question_is_refused(old: Path, changes: dict[str, dict[str, Any]], said: str) -> None:
    wanted = searched(5)
    for name, values in changes.items():
        wanted = replace(wanted, **{name: replace(getattr(wanted, name), **values)})
    with pytest.raises(SpaceError, match=said):
        earlier(old, wanted)


def test_other_seeds_budgets_and_objectives_are_not(old: Path) -> None:
    wanted = searched(5)
    wanted = replace(
        wanted, recipe=replace(wanted.recipe, seed=9), objectives=wanted.objectives[:2],
        budget=(Budget.parse("macs <= 1M"),),
    )  # fmt: skip
    assert len(earlier(old, wanted)) == 12
    with pytest.raises(SpaceError, match="needs the sampler frontier, but got random"):
        earlier(old, replace(wanted, sampler="random"))


def test_records_that_lack_an_objective_or_are_another_spaces_teach_nothing(old: Path) -> None:
    records = warm(old).earlier
    found = sampler()._candidates(0)
    past = sampler(earlier=[replace(r, scores={"dice": 0.5}) for r in records])._past(_Empty(), found)  # type: ignore[arg-type]
    assert not past.told
    assert len(past.rows) == 12
    past = sampler(earlier=[replace(r, choices={"colour": 1}) for r in records])._past(_Empty(), found)  # type: ignore[arg-type]
    assert not past.rows
    assert np.array(past.values).size == 0


class _Empty:
    def get_trials(self, deepcopy: bool) -> list[Any]:
        return []
