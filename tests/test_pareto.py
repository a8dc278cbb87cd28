"""Fronts and hypervolumes against brute force and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onenet_bench.errors import SpaceError
from onenet_bench.pareto import Box, Objective, dominates, front, hypervolume, knee, non_dominated, objectives

POINTS = hnp.arrays(
    float,
    st.tuples(st.integers(0, 14), st.integers(2, 4)),
    elements=st.integers(0, 6).map(float),  # small integers: many ties and equal points
)


@given(POINTS)
@settings(max_examples=200)
def test_the_front_is_what_nobody_dominates(points: np.ndarray) -> None:
    wanted = [not any(dominates(q, p) for q in points) for p in points]
    assert non_dominated(points).tolist() == wanted


SHAPES: dict[str, Callable[[np.random.Generator, int, int], Any]] = {
    "a cloud": lambda draw, n, m: draw.random((n, m)),
    "many ties": lambda draw, n, m: draw.integers(0, 12, (n, m)).astype(float),
    "all on the front": lambda draw, n, m: np.c_[x := draw.random((n, m - 1)), 1 - x.sum(axis=1)],
    "far apart": lambda draw, n, m: 10.0 ** draw.uniform(-12, 15, (n, m)),
    "with gaps": lambda draw, n, m: np.where(draw.random((n, m)) < 0.1, math.nan, draw.normal(size=(n, m))),
}


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_so_is_the_front_of_thousands(shape: str, m: int) -> None:
    """More points than are compared one by one; the oracle compares all pairs."""
    draw = np.random.default_rng(m)
    points = SHAPES[shape](draw, 2200, m)
    points[draw.integers(2200, size=40)] = points[draw.integers(2200, size=40)]  # equal points
    wanted = np.array(
        [not ((points <= p).all(axis=1) & (points < p).any(axis=1)).any() and not np.isnan(p).any() for p in points]
    )
    np.testing.assert_array_equal(non_dominated(points), wanted)


def test_points_with_nan_are_on_no_front() -> None:
    assert non_dominated(np.array([[0.0, math.nan], [1.0, 1.0]])).tolist() == [False, True]


@given(POINTS)
@settings(max_examples=200)
def test_hypervolume_counts_the_unit_cells_that_are_dominated(points: np.ndarray) -> None:
    """On an integer grid the volume is a number of cells, counted one by one."""
    m, top = points.shape[1], 7
    cells = np.stack(np.meshgrid(*[np.arange(top)] * m, indexing="ij"), axis=-1).reshape(-1, m)
    wanted = sum(bool((points <= cell).all(axis=1).any()) for cell in cells) if len(points) else 0
    assert hypervolume(points, np.full(m, float(top))) == pytest.approx(wanted)


def test_points_beyond_the_reference_add_nothing() -> None:
    assert hypervolume(np.array([[0.5, 2.0]]), np.ones(2)) == 0


@given(POINTS, st.permutations(range(4)))
@settings(max_examples=50)
def test_hypervolume_does_not_depend_on_the_order_of_objectives(points: np.ndarray, order: list[int]) -> None:
    order = [i for i in order if i < points.shape[1]]
    reference = np.full(points.shape[1], 7.0)
    assert hypervolume(points[:, order], reference) == pytest.approx(hypervolume(points, reference))


def test_a_knee_is_the_point_farthest_below_the_chord() -> None:
    assert knee(np.array([[0.0, 1.0], [0.1, 0.2], [0.6, 0.15], [1.0, 0.0]])) == 1
    assert knee(np.array([[0.0, 1.0], [1.0, 0.0]])) is None
    assert knee(np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])) is None  # on the chord
    assert knee(np.array([[0.0, 1.0], [0.9, 0.9], [1.0, 0.0]])) is None  # above it


FRAME = pd.DataFrame(
    {
        "status": ["complete", "complete", "complete", "stopped", "rejected"],
        "miou": [0.5, 0.7, 0.6, 0.9, math.nan],
        "parameters": [100.0, 10000.0, 20000.0, 50.0, 10.0],
    }
)


def test_only_complete_rows_reach_the_front_best_score_first() -> None:
    assert front(FRAME, objectives(["miou", "parameters"])).index.tolist() == [1, 0]


def test_a_box_takes_costs_as_logarithms() -> None:
    box = Box.around(objectives(["miou", "parameters"]), FRAME[:2])
    assert box.worst == (0.0, 10000.0)
    assert box.best == (1.0, 100.0)
    middle = {"miou": [0.25], "parameters": [1000.0]}
    np.testing.assert_allclose(box.place(middle), [[0.75, 0.5]])
    assert box.hypervolume(middle) == pytest.approx(0.25 * 0.5)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["miou"], "at least one score and one cost, but got miou"),
        (["macs", "parameters"], "at least one score"),
        ([], "but got nothing"),
        (["miou", "macs", "miou"], "named once"),
        (["miou", "speed"], "unknown objective 'speed'; known: "),
    ],
)
def test_objectives_that_are_no_trade_off_are_refused(names: list[str], sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence):
        objectives(names)


def test_directions_come_from_the_tables() -> None:
    assert Objective(name="miou").maximise
    assert not Objective(name="ce").maximise
    assert not Objective(name="macs").maximise
    assert Objective(name="ce").is_score
