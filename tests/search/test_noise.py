"""Scores that are far too low, beside a textbook's formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onenet_bench.search import noise as noise_module
from onenet_bench.search import surrogate
from onenet_bench.search.noise import DEGREES, ODDS, SHARE, noises
from onenet_bench.search.surrogate import LEAST_NOISE, Covariance, Hyperparameters, Surrogate, squared_distances

GROUPS = np.arange(2)
NOISE = 0.1
H = Hyperparameters(lengths=np.full(2, 0.8), noise=NOISE, slopes=np.zeros((1, 2)), beliefs=np.ones(1))
NOBODY = np.empty((0, 2))


def scored(n: int, *bad: int, by: float = 0.5, deviation: float = 0.005) -> tuple[np.ndarray, np.ndarray]:
    """Features and losses that are smooth in them, but for the ``bad`` ones, which are higher."""
    draws = np.random.default_rng(0)
    features = draws.random((n, 2))
    losses = truth(features) + draws.normal(0, deviation, n)
    losses[list(bad)] += by
    return features, losses


def truth(features: np.ndarray) -> np.ndarray:
    return 0.5 - 0.3 * features[:, 0] + 0.1 * np.sin(3 * features[:, 1])


def made(features: np.ndarray, losses: np.ndarray, *, outliers: bool = True, pending: np.ndarray = NOBODY) -> Surrogate:
    return Surrogate(H, features, GROUPS, losses, pending, outliers=outliers)


def alone(features: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float]:
    """``noises`` of one mean, its covariance made here."""
    covariance = surrogate.matern(squared_distances(features / 0.8, features / 0.8))
    y = (losses - losses.mean()) / losses.std()

    def solve(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inverse = np.linalg.inv(covariance + np.diag(noise))
        return (inverse @ y)[None], np.diag(inverse)

    return noises(solve, y[None], np.array([losses.std()]), np.ones(1), NOISE, LEAST_NOISE)


def test_a_training_that_failed_moves_little() -> None:
    features, losses = scored(20, 4)
    queries = np.random.default_rng(1).random((200, 2))
    off = [
        np.abs(made(features, losses, outliers=outliers).predict(queries)[0] - truth(queries)).max()
        for outliers in (True, False)
    ]
    assert off[0] < off[1] / 2
    found, usual = alone(features, losses)
    assert usual == pytest.approx(SHARE * NOISE)
    assert found.argmax() == 4
    assert found[4] > 10 * np.delete(found, 4).max()
    assert usual in found  # those that are better than expected


def test_a_training_that_went_too_well_is_believed() -> None:
    assert (alone(*scored(20, 4, by=-0.3))[0] <= NOISE).all()


def test_noise_that_is_normal_stays_normal() -> None:
    features, losses = scored(120, deviation=0.03)
    found, of_another = alone(features, losses)
    assert (found == NOISE).all()
    assert of_another == NOISE
    queries = np.random.default_rng(1).random((20, 2))
    for got, wanted in zip(
        made(features, losses).predict(queries), made(features, losses, outliers=False).predict(queries), strict=True
    ):
        np.testing.assert_allclose(got, wanted)


def test_noises_are_where_the_expectation_maximises_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the usual one over the mean weight of a Student-t, given the posterior that they lead to."""
    monkeypatch.setattr(noise_module, "ROUNDS", 60)
    features, losses = scored(20, 4, 9)
    found, usual = alone(features, losses)
    covariance = surrogate.matern(squared_distances(features / 0.8, features / 0.8))
    y = (losses - losses.mean()) / losses.std()
    every = np.linalg.inv(covariance + np.diag(found))
    variance = (y @ every @ y + 1) / 21
    posterior = covariance - covariance @ every @ covariance
    off = y - covariance @ every @ y
    squares = off**2 / variance + np.diag(posterior)
    weights = np.where(off > 0, (DEGREES + 1) / (DEGREES + squares / usual), 1)
    np.testing.assert_allclose(found, usual / weights, rtol=1e-3)


@pytest.mark.parametrize("by", [0.02, 0.05, 0.1])
def test_the_likelier_noise_is_taken(by: float) -> None:
    """By the densities of all scores, each predicted by a posterior that was told the others alone."""
    features, losses = scored(12, 4, by=by, deviation=0.04)
    found, _ = alone(features, losses)
    covariance = surrogate.matern(squared_distances(features / 0.8, features / 0.8))
    y = (losses - losses.mean()) / losses.std()
    usual = SHARE * NOISE

    def predicted(noise: np.ndarray, i: int) -> tuple[float, float]:
        """How far score i is off, and the variance of the posterior there, without noise."""
        others = np.delete(np.arange(len(y)), i)
        inverse = np.linalg.inv(covariance[np.ix_(others, others)] + np.diag(noise[others]))
        cross = covariance[i, others]
        return y[i] - cross @ inverse @ y[others], 1 - cross @ inverse @ cross

    tailed = np.full(len(y), usual)
    for _ in range(8):
        every = np.linalg.inv(covariance + np.diag(tailed))
        variance = (y @ every @ y + 1) / (len(y) + 1)
        off = y - covariance @ every @ y
        squares = off**2 / variance + np.diag(covariance - covariance @ every @ covariance)
        tailed = usual / np.where(off > 0, (DEGREES + 1) / (DEGREES + squares / usual), 1)
    normal = np.full(len(y), NOISE)
    by_normal, by_tail = 0.0, math.log(ODDS)
    for i in range(len(y)):
        signal = (y @ np.linalg.inv(covariance + np.diag(normal)) @ y + 1) / (len(y) + 1)
        off_by, left = predicted(normal, i)
        square = signal * (left + NOISE)
        by_normal += math.log(math.exp(-(off_by**2) / square / 2) / math.sqrt(2 * math.pi * square))
        signal = (y @ np.linalg.inv(covariance + np.diag(tailed)) @ y + 1) / (len(y) + 1)
        off_by, left = predicted(tailed, i)
        square = signal * (left + usual)
        t = off_by**2 / square
        by_tail += math.log(
            math.gamma((DEGREES + 1) / 2)
            / (math.gamma(DEGREES / 2) * math.sqrt(DEGREES * math.pi * square))
            * (1 + t / DEGREES) ** (-(DEGREES + 1) / 2)
        )
    np.testing.assert_allclose(found, tailed if by_tail > by_normal else normal)


def test_a_basis_of_all_observations_is_exact() -> None:
    """Its formulas are those of the whole covariance where nothing is left out."""
    features, losses = scored(30)
    y = np.stack([losses, losses**2])
    noise = np.random.default_rng(2).uniform(0.05, 3, 30)
    exact, through = (Covariance(features, features, exact=exact) for exact in (True, False))
    kernel = surrogate.matern(squared_distances(np.random.default_rng(1).random((9, 2)), features))
    (got, got_explained, falls), (wanted, explained, by) = through.posterior(y, noise), exact.posterior(y, noise)
    np.testing.assert_allclose(kernel @ got.T, kernel @ wanted.T, rtol=1e-4)
    np.testing.assert_allclose(got_explained, explained, rtol=1e-4)
    np.testing.assert_allclose(kernel @ falls @ kernel.T, kernel @ by @ kernel.T, rtol=1e-4)
    for got, wanted in zip(through.solve(y, noise), exact.solve(y, noise), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


@pytest.mark.parametrize("basis", [128, 32], ids=["all", "basis"])
def test_each_score_counts_by_its_own_noise(monkeypatch: pytest.MonkeyPatch, basis: int) -> None:
    """Far from each other each net is known by its own score alone, and a pending one as if by a usual one."""
    monkeypatch.setattr(surrogate, "BASIS", basis)
    features, losses = np.arange(40)[:, None] * np.ones(2) * 9, scored(40)[1]
    pending = np.array([[-9.0, -9.0]])
    noise = np.random.default_rng(2).uniform(0.05, 3, 40)
    monkeypatch.setattr(surrogate, "noises", lambda *_: (noise, 0.02))
    queries = np.concatenate([features, pending])
    far = made(features, losses, pending=pending)
    mean, deviation = far.predict(queries)
    signal = (((losses - losses.mean()) ** 2 / (1 + noise)).sum() + losses.var()) / 41
    np.testing.assert_allclose(mean[:-1] - losses.mean(), (losses - losses.mean()) / (1 + noise), atol=1e-6)
    left = 1 - 1 / (1 + np.append(noise, 0.02))
    np.testing.assert_allclose(deviation, np.sqrt(signal * left), rtol=1e-3)
    least, most = far.glance(surrogate.Many(queries.astype(np.float32)))
    assert (least <= mean).all()
    assert (most >= deviation).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_observations_are_enough(n: int) -> None:
    mean, deviation = made(*scored(n)).predict(np.random.default_rng(1).random((4, 2)))
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
    equal = made(scored(n)[0], np.full(n, 0.5)).predict(np.random.default_rng(1).random((4, 2)))
    assert np.isfinite(equal).all()
