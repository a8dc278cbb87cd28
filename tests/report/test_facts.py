"""Facts of figures, against brute force and closed forms. What a drawing looks like is not tested; what it says is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onenet_bench.pareto import Objective, objectives
from onenet_bench.record import COSTS, SCORES
from onenet_bench.report.figures import (
    cost_axis,
    front_facts,
    hypervolume_facts,
    log_ticks,
    pair_front,
    plot_front,
    plot_hypervolume,
    score_axis,
    spread,
)
from onenet_bench.report.tables import read_run
from tests.report.conftest import MakeRun

MIOU, CE, PARAMETERS = Objective(name="miou"), Objective(name="ce"), Objective(name="parameters")


def table(points: Sequence[tuple[float, float]], score: str = "miou", **more: Sequence[float]) -> pd.DataFrame:
    """A ledger's frame of complete rows with (cost, score) ``points``; trials are numbered from 100."""
    count = len(points)
    values = {name: [math.nan] * count for name in [*COSTS, *SCORES]}
    values |= {"parameters": [x for x, _ in points], score: [y for _, y in points]}
    values |= {name: list(column) for name, column in more.items()}
    return pd.DataFrame(
        {
            "trial": range(100, 100 + count),
            "status": "complete",
            "label": [f"net <{i}>" for i in range(count)],
            **values,
        }
    )


points = st.lists(
    st.tuples(st.sampled_from([10.0, 20.0, 35.0, 400.0, 5000.0]), st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.9])),
    min_size=1,
    max_size=14,
)  # few values, so that ties are common


@given(points, st.booleans())
def test_the_front_is_what_brute_force_finds(cloud: list[tuple[float, float]], is_loss: bool) -> None:
    score = CE if is_loss else MIOU
    sign = -1 if is_loss else 1
    found = pair_front(table(cloud, score.name), score, PARAMETERS)
    expected = {
        100 + i
        for i, (x, y) in enumerate(cloud)
        if not any(u <= x and sign * v >= sign * y and (u < x or sign * v > sign * y) for u, v in cloud)
    }
    assert set(found.trials) == expected
    costs = [cloud[trial - 100][0] for trial in found.trials]
    assert costs == sorted(costs)


@given(points)
def test_the_step_line_is_the_best_score_at_each_cost(cloud: list[tuple[float, float]]) -> None:
    line = pair_front(table(cloud), MIOU, PARAMETERS).line
    assert line[0][0] == min(x for x, _ in cloud)
    assert line[-1][0] == max(x for x, _ in cloud)
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        assert (x0 == x1) != (y0 == y1), "each piece runs along one axis"
    for cost in [x for x, _ in cloud] + [x + 1 for x, _ in cloud]:
        attained = max(y for x, y in line if x <= cost)
        assert attained == max((y for x, y in cloud if x <= cost), default=None)


def test_rows_without_a_place_in_the_plane_are_left_out() -> None:
    frame = table([(10, 0.5), (20, 0.9), (30, 0.95), (math.nan, 0.99), (40, math.nan), (0, 0.1)])
    frame.loc[2, "status"] = "stopped"
    facts = front_facts(frame, [MIOU, PARAMETERS])
    assert facts.trials == (100, 101)
    assert facts.front.trials == (100, 101)


def test_the_knee_is_farthest_from_the_chord() -> None:
    cloud = [(1e3, 0.30), (1e4, 0.55), (3e4, 0.80), (1e6, 0.86), (1e7, 0.90), (2e4, 0.10)]
    distances = {}
    for i, (x, y) in enumerate(cloud[:5]):  # the last is dominated
        u, v = (math.log10(x) - 3) / 4, (y - 0.3) / 0.6
        distances[100 + i] = (v - u) / math.sqrt(2)
    assert pair_front(table(cloud), MIOU, PARAMETERS).knee == max(distances, key=distances.__getitem__) == 102


@pytest.mark.parametrize("cloud", [[(10, 0.5)], [(10, 0.5), (20, 0.6)], [(10, 0.1), (100, 0.2), (1000, 0.3)]])
def test_a_front_without_a_bend_has_no_knee(cloud: list[tuple[float, float]]) -> None:
    assert pair_front(table(cloud), MIOU, PARAMETERS).knee is None


@given(points)
def test_elsewhere_holds_what_only_a_third_objective_keeps(cloud: list[tuple[float, float]]) -> None:
    third = [float(1 + hash((i, x, y)) % 7) for i, (x, y) in enumerate(cloud)]
    frame = table(cloud, macs=third)
    facts = front_facts(frame, objectives(["miou", "parameters", "macs"]))
    rows = [(x, -y, z) for (x, y), z in zip(cloud, third, strict=True)]
    whole = {
        100 + i
        for i, a in enumerate(rows)
        if not any(all(p <= q for p, q in zip(b, a, strict=True)) and b != a for b in rows)
    }
    assert set(facts.elsewhere) == whole - set(facts.front.trials)
    assert front_facts(frame, [MIOU, PARAMETERS]).elsewhere == ()


def test_hover_tells_every_known_number_and_is_escaped() -> None:
    facts = front_facts(table([(1_920_000, 0.5), (20, 0.25)], macs=[3e9, math.nan]), [MIOU, PARAMETERS])
    assert facts.hover[0].startswith("<b>net &lt;0&gt;</b><br>trial 100<br>")
    assert "mIoU: 0.500" in facts.hover[0]
    assert "Parameters: 1.92\u00a0M" in facts.hover[0]
    assert "MACs: 3.00\u00a0G" in facts.hover[0]
    assert "MACs" not in facts.hover[1]


def test_the_drawing_shows_every_point_once_and_the_line() -> None:
    cloud = [(1e3, 0.30), (1e4, 0.55), (3e4, 0.80), (1e6, 0.86), (1e7, 0.90), (2e4, 0.10)]
    facts = front_facts(table(cloud, macs=[9, 8, 7, 6, 5, 1]), objectives(["miou", "parameters", "macs"]))
    traces = {trace.meta: trace for trace in plot_front(facts).data}
    shown = [trial for role in ("dominated", "elsewhere", "front") for trial in traces[role].customdata]
    assert sorted(shown) == sorted(facts.trials)
    assert list(traces["front"].customdata) == list(facts.front.trials)
    assert list(traces["elsewhere"].customdata) == list(facts.elsewhere) == [105]
    assert list(traces["knee"].customdata) == [facts.front.knee]
    told = {trial: text for role in traces if role != "line" for trial, text in zip(
        traces[role].customdata, traces[role].text, strict=True)}  # fmt: skip
    assert told == dict(zip(facts.trials, facts.hover, strict=True))
    assert list(zip(traces["line"].x, traces["line"].y, strict=True)) == list(facts.front.line)
    for role in ("dominated", "elsewhere", "front", "knee"):
        for trial, x, y in zip(traces[role].customdata, traces[role].x, traces[role].y, strict=True):
            assert (x, y) == cloud[trial - 100]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e3, 1e6, [1e3, 1e4, 1e5, 1e6]), (2e3, 1.1e6, [3e3, 1e4, 3e4, 1e5, 3e5, 1e6]), (2.9, 31, [3, 5, 10, 20, 30]),
        (1, 1e12, [1, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12]), (560e3, 605e3, [560e3, 570e3, 580e3, 590e3, 600e3]),
    ],
)  # fmt: skip
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(1e-3, 1e12), st.floats(1.001, 1e14))
def test_ticks_lie_on_the_axis_are_few_and_can_be_told_apart(low: float, ratio: float) -> None:
    high = low * ratio
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    assert low * (1 - 1e-9) <= ticks[0]
    assert ticks[-1] <= high * (1 + 1e-9)
    axis = cost_axis("parameters", [low, high])
    assert len(set(axis["ticktext"])) == len(axis["tickvals"])


def test_an_axis_names_its_cost_and_unit() -> None:
    axis = cost_axis("peak_inference_mib", [0.5, 8.0])
    assert axis["title"]["text"] == "Peak inference memory (MiB)"
    assert axis["type"] == "log"
    assert axis["range"][0] < math.log10(0.5)
    assert math.log10(8.0) < axis["range"][1]


@pytest.mark.parametrize("scores", [(0.0,), (0.0, 0.001), (0.003, 0.02), (0.0, 0.9), (0.98, 1.0), (0.999,), (0.0, 1.0)])
def test_a_score_axis_has_no_tick_that_no_score_can_have(scores: tuple[float, ...]) -> None:
    low, high = score_axis("miou", scores)["range"]
    assert low < min(scores)
    assert max(scores) < high
    finest = (high - low) / 8  # of at most eight ticks
    assert low > -finest
    assert high < 1 + finest
    assert score_axis("ce", [0.9, 1.6])["range"][1] > 1.6


def test_the_hypervolume_grows_as_computed_by_hand() -> None:
    # Costs 10, 100, 1000 lie at 0, 1/2, 1 of their axis; scores 0.2, 0.6, 0.9 at 0.8, 0.4, 0.1.
    frame = table([(1000, 0.9), (100, 0.6), (50, 0.99), (10, 0.2), (100, 0.5)])
    frame.loc[2, "status"] = "stopped"
    facts = hypervolume_facts(frame, [MIOU, PARAMETERS])
    assert facts is not None
    assert facts.trials == (100, 101, 102, 103, 104)
    assert facts.values == pytest.approx((0.0, 0.5 * 0.6, 0.3, 0.5 * 0.2 + 0.5 * 0.6, 0.4))
    assert facts.reference() == "mIoU 0, Parameters 1.00\u00a0k"
    drawn = plot_hypervolume(facts).data[0]
    assert list(drawn.x) == [1, 2, 3, 4, 5]
    assert list(drawn.y) == list(facts.values)


@pytest.mark.parametrize("names", [["miou", "parameters"], ["ce", "macs"], ["miou", "parameters", "macs"]])
def test_the_hypervolume_of_each_beginning_is_the_boxes_own(make_run: MakeRun, names: list[str]) -> None:
    run = read_run(make_run(objectives=names).path)
    facts = hypervolume_facts(run.frame, run.objectives)
    assert facts is not None
    assert all(a <= b for a, b in itertools.pairwise(facts.values))
    assert 0 < facts.final < 1
    for end in (1, 9, 20, len(run.frame)):
        told = run.frame[:end]
        expected = facts.box.hypervolume(told[told["status"] == "complete"])
        assert facts.values[end - 1] == pytest.approx(expected)


def test_one_net_spans_no_box() -> None:
    assert hypervolume_facts(table([(10, 0.5)]), [MIOU, PARAMETERS]) is None
    assert hypervolume_facts(table([]), [MIOU, PARAMETERS]) is None


@given(st.integers(0, 40), st.integers(3, 9), st.data())
def test_spread_keeps_the_ends_and_what_must_stay(count: int, most: int, data: st.DataObject) -> None:
    items = list(np.random.default_rng(count).permutation(count))
    keep = [data.draw(st.sampled_from(items))] if items else []
    chosen = spread(items, most, keep)
    assert len(chosen) == min(count, most)
    assert [item for item in items if item in chosen] == chosen
    if items:
        assert chosen[0] == items[0]
        assert chosen[-1] == items[-1]
        assert set(keep) <= set(chosen)
