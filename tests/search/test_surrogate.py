"""The Gaussian process against its textbook formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from onenet_bench.search import surrogate
from onenet_bench.search.surrogate import Hyperparameters, Many, Surrogate, fit, minimise, usual_lengths

GROUPS = np.array([0, 1, 1, 2])
LENGTHS, NOISE = np.array([0.7, 1.5, 0.4]), 0.03
SLOPES = np.array([[0.0, 0.0, 0.0, 0.8]])
NOBODY = np.empty((0, 4))


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    features = draws.random((n, 4))
    return features, 3 + np.sin(4 * features[:, 0]) + features[:, 3] ** 2 + draws.normal(0, 0.05, n)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Matérn-5/2, number by number."""
    r = math.sqrt(sum(((x - y) / LENGTHS[g]) ** 2 for x, y, g in zip(a, b, GROUPS, strict=True)))
    return (1 + math.sqrt(5) * r + 5 * r * r / 3) * math.exp(-math.sqrt(5) * r)


def made(features: np.ndarray, values: np.ndarray, pending: np.ndarray = NOBODY, **other: Any) -> Surrogate:
    one = {"lengths": LENGTHS, "noise": NOISE, "slopes": SLOPES, "beliefs": np.ones(1)}
    hyperparameters = Hyperparameters(**{**one, **other})
    return Surrogate(hyperparameters, features, GROUPS, values, pending)


def test_the_posterior_is_the_textbooks() -> None:
    features, values = data(12)
    queries = data(5, seed=1)[0]
    mean, deviation = made(features, values).predict(queries)
    rest = values - 0.8 * features[:, 3]
    y = (rest - rest.mean()) / rest.std()
    covariance = np.array([[correlation(a, b) for b in features] for a in features]) + NOISE * np.eye(12)
    signal = (y @ np.linalg.solve(covariance, y) + 1) / 13
    for query, m, s in zip(queries, mean, deviation, strict=True):
        cross = np.array([correlation(query, a) for a in features])
        line = rest.mean() + 0.8 * query[3]
        assert m == pytest.approx(line + rest.std() * (cross @ np.linalg.solve(covariance, y)))
        left = signal * (1 - cross @ np.linalg.solve(covariance, cross))
        assert s == pytest.approx(rest.std() * math.sqrt(left))


def test_pending_nets_move_no_mean_and_make_their_surroundings_surer() -> None:
    features, values = data(10)
    pending, queries = data(2, seed=1)[0], data(50, seed=2)[0]
    before, after = made(features, values), made(features, values, pending)
    np.testing.assert_allclose(after.predict(queries)[0], before.predict(queries)[0])
    assert (after.predict(queries)[1] < before.predict(queries)[1]).all()
    believed = np.concatenate([values, before.predict(pending)[0]])  # as if it had been told
    told = made(np.concatenate([features, pending]), believed)
    ratio = after.predict(queries)[1] / told.predict(queries)[1]  # pending ones leave the signal's variance alone
    np.testing.assert_allclose(ratio, ratio[0])


def test_the_likelihoods_value_and_gradient() -> None:
    features, values = data(15)
    y = (values - values.mean()) / values.std()
    squares = np.stack([
        ((part[:, None] - part[None]) ** 2).sum(axis=2) for part in (features[:, :1], features[:, 1:3], features[:, 3:])
    ])  # fmt: skip
    theta, expected = np.append(np.log(LENGTHS), math.log(NOISE)), np.array([0.1, 0.9, -0.4, -2.0])

    def negative(at: np.ndarray) -> tuple[float, np.ndarray]:
        return surrogate._negative_log_posterior(at, expected, squares.reshape(3, -1), y)

    value, gradient = negative(theta)
    for j in range(4):
        step = 1e-5 * np.eye(4)[j]
        up, down = (negative(theta + s)[0] for s in (step, -step))
        assert gradient[j] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-6)
    # the value, up to a constant: a Gaussian's log density at the best signal variance, and the priors
    other = theta + np.array([0.3, -0.5, 0.2, 1.0])
    difference = negative(other)[0] - value

    def written_out(at: np.ndarray) -> float:
        r = np.sqrt((squares / np.exp(2 * at[:3])[:, None, None]).sum(axis=0))
        k = (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r) + math.exp(at[3]) * np.eye(15)
        grid = np.exp(np.linspace(-6, 6, 200_001))
        quadratic, logdet = y @ np.linalg.solve(k, y), np.linalg.slogdet(k)[1]
        density = (-0.5 * (quadratic / grid + logdet + 15 * np.log(grid)) - 0.5 * (1 / grid + np.log(grid))).max()
        off = (at - expected) / np.array([*[surrogate.SPREAD] * 3, surrogate.NOISE_SPREAD])
        return float(-density + 0.5 * (off**2).sum())

    assert difference == pytest.approx(written_out(other) - written_out(theta), rel=1e-6)


def test_what_matters_gets_the_shorter_length() -> None:
    features, values = data(60)
    lengths = fit(features, GROUPS, values).lengths
    assert lengths[0] < 0.5 * lengths[1]
    assert lengths[2] < 0.5 * lengths[1]


def test_lengths_are_around_those_that_are_expected() -> None:
    features, values = data(6)
    expected = np.array([1.0, 1.0, 0.2])
    few, usual = (fit(features, GROUPS, values, expected=e).lengths for e in (expected, None))
    np.testing.assert_allclose(np.log(few / expected), 0, atol=3 * surrogate.SPREAD)
    np.testing.assert_allclose(np.log(usual / math.sqrt(3)), 0, atol=3 * surrogate.SPREAD)


def test_a_line_reaches_beyond_what_was_observed() -> None:
    """Nets of the lower half of the costs say what the dearest will have; those that cost alike say little."""
    features, _ = data(20)
    features[:, 0] /= 2
    values = 2 * features[:, 0] + np.random.default_rng(1).normal(0, 0.02, 20)
    found = fit(features, GROUPS, values, means=[([0], 1.0)])
    deviations = ((features[:, 0] - features[:, 0].mean()) ** 2).sum()
    assert found.slopes[0, 0] == pytest.approx(2 * deviations / (deviations + surrogate.FLAT), abs=0.05)
    assert not found.slopes[0, 1:].any()
    dearest = np.array([[1.0, 0.5, 0.5, 0.5]])
    without = fit(features, GROUPS, values)
    far, short = (Surrogate(h, features, GROUPS, values, NOBODY).predict(dearest)[0] for h in (found, without))
    assert abs(far - 2) < 0.5 * abs(short - 2)
    alike = np.column_stack([0.5 + 0.01 * features[:, 0], features[:, 1:]])
    assert abs(fit(alike, GROUPS, values, means=[([0], 1.0)]).slopes[0, 0]) < 0.1


def test_a_plane_has_the_slopes_of_its_features() -> None:
    features, _ = data(40)
    values = 5 + 2 * features[:, 0] - features[:, 3] + np.random.default_rng(1).normal(0, 0.02, 40)
    means = [([0, 3], 1.0)]
    slopes = fit(1 + 9 * features, GROUPS, 9 * values, means=means).slopes  # so far apart that little is shrunk
    assert slopes[0] == pytest.approx([2, 0, 0, -1], abs=0.03)


def test_a_mean_is_believed_in_as_far_as_it_explains_what_was_observed() -> None:
    features, _ = data(24)
    noise = np.random.default_rng(1).normal(0, 0.02, 24)
    means = [([0, 3], 0.75), ([0], 0.25)]
    line, plane = 2 * features[:, 0] + noise, 2 * features[:, 0] - 2 * features[:, 3] + noise
    beliefs = {name: fit(features, GROUPS, y, means=means).beliefs for name, y in (("line", line), ("plane", plane))}
    assert beliefs["plane"][0] > 0.95
    assert beliefs["line"][1] > 0.5  # though it was thought a third as likely
    few = fit(features[:2], GROUPS, line[:2], means=means).beliefs
    np.testing.assert_allclose(few, [0.75, 0.25], atol=0.15)
    for found in (*beliefs.values(), few):
        assert found.sum() == pytest.approx(1)


def test_beliefs_are_the_likelihoods_with_slopes_integrated_out() -> None:
    features, values = data(12)
    means = [([0, 3], 0.6), ([0], 0.4)]
    found = fit(features, GROUPS, values, means=means)
    y = (values - values.mean()) / values.std()
    points = features / found.lengths[GROUPS]
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    kernel = (1 + math.sqrt(5) * distances + 5 * distances**2 / 3) * np.exp(-math.sqrt(5) * distances)
    likely = []
    for along, prior in means:
        off = features[:, along] - features[:, along].mean(axis=0)
        k = kernel + found.noise * np.eye(12) + off @ off.T / surrogate.FLAT
        variance = (y @ np.linalg.solve(k, y) + 1) / 13  # the likeliest, by a prior worth an observation of variance 1
        likely.append(prior * variance ** (-13 / 2) / math.sqrt(np.linalg.det(k)))
    np.testing.assert_allclose(found.beliefs, np.array(likely) / sum(likely), rtol=1e-9)


def test_of_several_means_the_prediction_is_their_mixture() -> None:
    features, values = data(12)
    pending, queries = data(2, seed=2)[0], data(30, seed=1)[0]
    slopes, beliefs = np.array([[0, 0, 0, 0.8], [1.5, 0, 0, -1]]), np.array([0.7, 0.3])
    mean, deviation = made(features, values, pending, slopes=slopes, beliefs=beliefs).predict(queries)
    alone = [made(features, values, pending, slopes=one[None]).predict(queries) for one in slopes]
    wanted = 0.7 * alone[0][0] + 0.3 * alone[1][0]
    np.testing.assert_allclose(mean, wanted)
    squares = [s**2 + (m - wanted) ** 2 for m, s in alone]
    np.testing.assert_allclose(deviation, np.sqrt(0.7 * squares[0] + 0.3 * squares[1]))


def test_fits_predict_better_than_the_prior() -> None:
    features, values = data(60)
    queries, truth = data(200, seed=1)
    before = Hyperparameters(
        lengths=usual_lengths(3), noise=math.exp(surrogate.NOISE), slopes=np.zeros((1, 4)), beliefs=np.ones(1)
    )
    errors = [
        float(np.sqrt(np.mean((Surrogate(h, features, GROUPS, values, NOBODY).predict(queries)[0] - truth) ** 2)))
        for h in (fit(features, GROUPS, values), before)
    ]
    assert errors[0] < 0.8 * errors[1]
    assert errors[0] < 0.1 < values.std()


def test_hyperparameters_stay_for_a_while_and_are_fitted_on_a_part_of_many() -> None:
    features, values = data(700)
    kept = [n for n in range(2, 700) if surrogate._fitted_on(n) != surrogate._fitted_on(n - 1)]
    assert kept[:6] == [2, 3, 4, 5, 6, 7]
    assert all(b - a <= max(1, a / 7) for a, b in pairwise(kept))
    assert fit(features[:200], GROUPS, values[:200]).lengths is fit(features[:201], GROUPS, values[:201]).lengths
    part = np.linspace(0, surrogate._fitted_on(700) - 1, surrogate.FITTED_ON).astype(int)
    assert fit(features[part], GROUPS, values[part]).lengths is fit(features, GROUPS, values).lengths


def test_minimise_finds_rosenbrocks_valley() -> None:
    def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = 1 - x[0], x[1] - x[0] ** 2
        return float(a**2 + 100 * b**2), np.array([-2 * a - 400 * x[0] * b, 200 * b])

    np.testing.assert_allclose(minimise(rosenbrock, np.array([-1.2, 1.0]), steps=200), [1, 1], atol=1e-2)


SEVERAL = {"slopes": np.array([[0, 0, 0, 0.8], [1.5, 0, 0, -1]]), "beliefs": np.array([0.7, 0.3])}


@pytest.mark.parametrize("means", [{}, SEVERAL], ids=["one", "several"])
def test_a_glance_bounds_what_is_predicted(means: dict[str, Any]) -> None:
    queries = data(3000, seed=1)[0].astype(np.float32)
    many = Many(queries)
    every, told = data(101)
    every[::2] = queries[:51]  # as near as can be
    for n in (1, 7, 8, 9, 100, 101):  # whole chunks are kept from one to the next
        features, values = every[:n], told[:n]
        exact = made(features, values, **means).predict(queries.astype(np.float64))
        least, most = made(features, values, **means).glance(many)
        assert (least <= exact[0]).all()
        assert (most >= exact[1]).all()
        np.testing.assert_allclose(least, exact[0], atol=1e-2)
        np.testing.assert_array_equal(made(features, values, **means).glance(Many(queries)), (least, most))
    assert len(many._kept) == 101 // surrogate.CHUNK
    other = made(every, told, lengths=2 * LENGTHS, **means)
    np.testing.assert_array_equal(other.glance(many), other.glance(Many(queries)))
    assert len(many._kept) == 101 // surrogate.CHUNK  # for these lengths alone


def exactly(monkeypatch: pytest.MonkeyPatch, *of: Any) -> Surrogate:
    with monkeypatch.context() as patch:
        patch.setattr(surrogate, "BASIS", len(of[0]))
        return made(*of)


def test_many_observations_are_told_through_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "BASIS", 128)
    features, values = data(300)
    queries = data(500, seed=1)[0]
    mean, deviation = made(features, values).predict(queries)
    true_mean, true_deviation = exactly(monkeypatch, features, values).predict(queries)
    few_mean = made(features[:128], values[:128]).predict(queries)[0]
    off, few_off = np.abs(mean - true_mean), np.abs(few_mean - true_mean)
    assert (off < true_deviation).all()
    assert off.mean() < few_off.mean() / 5  # the others are not forgotten
    np.testing.assert_allclose(deviation, true_deviation, rtol=0.5)  # a little less sure
    assert len(made(features, values)._points) == 128 + 300 % surrogate.RENEWED


def test_a_basis_of_all_observations_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas of a basis are those of the posterior where nothing is left out: all of 32, and the 8 after."""
    features, values = data(40)
    pending, queries = data(3, seed=2)[0], data(50, seed=1)[0]
    wanted = made(features, values, pending, **SEVERAL).predict(queries)
    monkeypatch.setattr(surrogate, "BASIS", 32)
    got = made(features, values, pending, **SEVERAL)
    assert len(got._points) == 43
    np.testing.assert_allclose(got.predict(queries), wanted, rtol=1e-4)


def test_a_glance_knows_what_many_noisy_observations_say_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single one, however near, says nearly nothing where scores are noise."""
    features, values = data(100)
    queries = data(3000, seed=1)[0].astype(np.float32)
    noisy = made(features, values, lengths=10 * LENGTHS, noise=2.0)
    most, deviation = noisy.glance(Many(queries))[1], noisy.predict(queries.astype(float))[1]
    assert (most >= deviation).all()
    assert (most < 1.2 * deviation).all()
    monkeypatch.setattr(noisy, "_telling", lambda: np.zeros((1, 100)))
    assert (noisy.glance(Many(queries))[1] > 3 * deviation).all()


def test_a_glance_bounds_what_a_basis_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "BASIS", 64)
    queries = data(3000, seed=1)[0].astype(np.float32)
    features, values = data(200)
    features[::2] = queries[:100]
    made_of = made(features, values, queries[100:103].astype(np.float64), **SEVERAL)
    least, most = made_of.glance(Many(queries))
    mean, deviation = made_of.predict(queries.astype(np.float64))
    assert (least <= mean).all()
    assert (most >= deviation).all()
    np.testing.assert_allclose(least, mean, atol=1e-2)


def test_the_basis_covers_what_was_observed_and_stays_for_a_while() -> None:
    """Copies of a point say nothing new: one of each comes first."""
    places = np.random.default_rng(0).random((surrogate.BASIS, 3)) * 5
    points = np.repeat(places, 2, axis=0)
    rows = surrogate.basis(points)
    assert sorted(row // 2 for row in rows.tolist()) == list(range(surrogate.BASIS))
    more = np.concatenate([points, points[:31]])
    assert surrogate.basis(more).tolist() == [*rows.tolist(), *range(len(points), len(more))]


def test_one_observation_is_enough() -> None:
    mean, deviation = made(*data(1)).predict(data(4, seed=1)[0])
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()


def test_next_to_no_noise_can_be_inverted_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one net of many has failed, and long lengths with no noise at all explain that best."""
    features = np.random.default_rng(0).integers(0, 2, (95, 4)).astype(float)
    values = (np.arange(95) == 3).astype(float)
    monkeypatch.setattr(surrogate, "minimise", lambda loss, start: np.log([2e3, 1e4, 6e3, 1e-15]))
    surrogate._fit.cache_clear()
    mean, deviation = Surrogate(fit(features, GROUPS, values), features, GROUPS, values, NOBODY).predict(features)
    surrogate._fit.cache_clear()
    assert -0.1 < mean.min() <= mean.max() < 1
    assert deviation.max() < 1


def test_equal_rows_without_noise_can_be_fitted() -> None:
    """Where the noise becomes next to none, rounding makes their quadratic form negative."""
    draws = np.random.default_rng(0)
    for _ in range(4):
        features = draws.integers(0, 2, (128, 2)) / 5  # four different rows
        found = fit(features, np.arange(2), features @ draws.normal(size=2))
        assert np.isfinite(found.lengths).all()
