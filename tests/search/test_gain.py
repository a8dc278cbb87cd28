"""Expected gain against what it is defined by: volumes of fronts, and means over draws."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from onenet_bench.pareto import hypervolume
from onenet_bench.search.gain import cells, expected_gain, expected_improvement


def some_points(draws: np.random.Generator, m: int, *, ties: bool) -> np.ndarray:
    points = draws.random((int(draws.integers(0, 12)), m)) * 1.1
    return np.round(points * 4) / 4 if ties else points


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_cells_are_disjoint_and_fill_what_the_points_leave(m: int, ties: bool) -> None:
    draws = np.random.default_rng(m)
    for _ in range(40):
        points = some_points(draws, m, ties=ties)
        lower, upper = cells(points, np.ones(m))
        inside = np.prod(np.clip(upper, 0, 1) - np.clip(lower, 0, 1), axis=1).sum()
        assert inside + hypervolume(points, np.ones(m)) == pytest.approx(1)
        for z in draws.random((30, m)):  # in general position
            free = not (points <= z).all(axis=1).any()
            assert ((lower < z) & (z < upper)).all(axis=1).sum() == free


@pytest.mark.parametrize(("gaussian", "known"), [(1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (3, 1)])
def test_gain_is_the_mean_growth_of_the_hypervolume(gaussian: int, known: int) -> None:
    """Over draws that are spread evenly: the middles of equally likely parts of each Gaussian."""
    draws = np.random.default_rng(10 * gaussian + known)
    m, number = gaussian + known, {1: 160, 2: 14, 3: 6}[gaussian]
    middles = [NormalDist().inv_cdf((i + 0.5) / number) for i in range(number)]
    spread = np.array(list(itertools.product(middles, repeat=gaussian)))
    for _ in range(2):
        points = draws.random((5, m)) * 0.7 + 0.3
        mean, deviation = draws.random(gaussian) * 0.4 + 0.2, draws.random(gaussian) * 0.2 + 0.02
        price = draws.random(known) * 0.5
        expected = expected_gain(cells(points, np.ones(m)), mean[None], deviation[None], price[None])[0]
        before = hypervolume(points, np.ones(m))
        growth = [hypervolume(np.vstack([points, [*(mean + deviation * z), *price]]), np.ones(m)) for z in spread]
        assert expected == pytest.approx(np.mean(growth) - before, rel=0.03)


def test_gain_of_a_score_that_is_certain_is_what_it_adds() -> None:
    draws = np.random.default_rng(0)
    points, queries = draws.random((8, 3)), draws.random((50, 3))
    gains = expected_gain(cells(points, np.ones(3)), queries[:, :1], np.full((50, 1), 1e-9), queries[:, 1:])
    added = [hypervolume(np.vstack([points, q]), np.ones(3)) - hypervolume(points, np.ones(3)) for q in queries]
    np.testing.assert_allclose(gains, added, atol=1e-8)


def test_many_queries_are_the_same_as_one_by_one() -> None:
    draws = np.random.default_rng(1)
    boxes = cells(draws.random((30, 3)) ** 0.3, np.ones(3))
    mean, deviation, price = draws.random((5000, 1)), draws.random((5000, 1)) + 0.01, draws.random((5000, 2))
    together = expected_gain(boxes, mean, deviation, price)
    rows = draws.choice(5000, 20)
    alone = [expected_gain(boxes, mean[[i]], deviation[[i]], price[[i]])[0] for i in rows]
    np.testing.assert_allclose(together[rows], alone, rtol=1e-12)


@pytest.mark.parametrize("t", [-36.9, -20.0, -5.3, -1.0, -0.001, 0.0, 0.7, 4.0, 60.0])
def test_expected_improvement_is_its_integral(t: float) -> None:
    """By Gauss-Legendre over the Gaussian's part below ``best``, which for t < 0 is all in the first few 1/|t|."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    deep = min(40.0, 40 / max(1.0, -t)) if t < 0 else t + 40
    x = (nodes + 1) / 2 * deep  # how far the loss is below best, in deviations
    density = np.exp(-((t - x) ** 2) / 2) / math.sqrt(2 * math.pi)
    integral = float((x * density * weights).sum() * deep / 2)
    assert expected_improvement(2.0, 0.5, 2.0 + 0.5 * t) / 0.5 == pytest.approx(integral, rel=2e-6)


def test_nothing_improves_on_less_than_everything() -> None:
    assert expected_improvement(0.3, 0.1, -math.inf) < 1e-300
