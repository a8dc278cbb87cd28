"""When the front stands still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from onenet_bench import costs, pareto, space
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, Record, Status
from onenet_bench.search.stall import stalled
from onenet_bench.task import Task

OBJECTIVES = pareto.objectives(["miou", "parameters"])


def records(scores: Sequence[float], widths: Sequence[int] | None = None) -> list[Record]:
    task = Task(
        data="synthetic", content="0", in_channels=3, class_names=("a", "b"), resolution=32, train=8, validation=4,
        test=4,
    )  # fmt: skip
    made = []
    for trial, score in enumerate(scores):
        width = widths[trial] if widths else 2 + trial % 3
        spec = space.compose(classes=2, depth=1, width=width, encoder="conv2d")
        made.append(
            Record(
                trial=trial, spec=spec, choices={}, task=task, recipe=Recipe(), machine=Machine.here(),
                status=Status.COMPLETE, costs=costs.count(spec, 32), scores={"miou": score},
            )
        )  # fmt: skip
    return made


def test_a_front_that_no_longer_moves_has_stalled() -> None:
    assert "over the last 3 trained candidates" in stalled(records([0.5, 0.6, 0.7, 0.4, 0.5, 0.6]), OBJECTIVES, 3)


def test_a_front_that_moves_by_its_last_candidate_has_not() -> None:
    assert stalled(records([0.5, 0.6, 0.7, 0.4, 0.5, 0.9]), OBJECTIVES, 3) == ""


@pytest.mark.parametrize(("gain", "still"), [(0.0005, True), (0.05, False)])
def test_less_than_a_hundredth_is_standing_still(gain: float, still: bool) -> None:
    found = stalled(records([0.5, 0.6, 0.7, 0.7 + gain, 0.1, 0.1], [2, 3, 4, 4, 4, 4]), OBJECTIVES, 3)
    assert bool(found) is still


def test_too_few_candidates_have_not_stalled() -> None:
    assert stalled(records([0.5, 0.5, 0.5, 0.5, 0.5]), OBJECTIVES, 3) == ""


def test_only_complete_candidates_count() -> None:
    rows = records([0.5, 0.6, 0.7, 0.4, 0.5, 0.6])
    stopped = [Record.from_dict({**row.to_dict(), "status": "stopped"}) for row in rows[3:]]
    assert stalled([*rows[:3], *stopped], OBJECTIVES, 3) == ""


def test_what_lacks_an_objective_is_passed_over() -> None:
    made = records([0.5, 0.6, 0.7, 0.4, 0.5, 0.6])
    assert stalled(made, pareto.objectives(["miou", "latency_ms"]), 3) == ""
    timed = [replace(r, costs=replace(r.costs, latency_ms=1.0)) for r in made if r.costs]
    assert stalled([*timed, *made], pareto.objectives(["miou", "latency_ms"]), 3)
