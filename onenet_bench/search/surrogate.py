"""A Gaussian process over the features of candidates: what is known of a score before it is trained.

Matérn-5/2 with a length for every group of features (a choice's columns share one) and noise, the same for all values
or for each its own (``noise``). The mean is constant, or linear in a few features, as scores rise with the logarithm of
what a net computes; where it is not known in which ones, several means are believed in, each as far as it explains what
was observed.
Hyperparameters maximise the marginal likelihood times weak priors (Rasmussen & Williams, 2006, chapter 5); the
signal's variance has its closed form. numpy alone: hundreds of trials need no more.

Letters: n observations, d features, g groups of features, q queries, k means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onenet_bench.search.noise import noises

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FITTED_ON = 128
"""The most observations that hyperparameters are fitted on; the posterior takes all."""

SPREAD = 0.25
"""Standard deviation of the prior of a length's logarithm."""

NOISE, NOISE_SPREAD = math.log(0.2), 1.0
"""The prior of the noise's logarithm, as a share of the signal's variance."""

FLAT = 0.3
"""Squared deviations of a feature, in sum, that say that the mean does not change along it."""

LEAST_NOISE = 1e-6
"""Of the noise: without any, long lengths make a covariance that cannot be inverted in double precision."""

BLOCK = 1 << 12
"""Queries that are worked on at a time: few enough to stay in the cache."""

CHUNK = 8
"""Observations whose columns are made, and kept, together."""

KEPT = 1 << 26
"""Kernel entries that are kept at most of each objective: 256 MiB."""

BASIS, RENEWED = 128, 32
"""Of more observations the posterior is written in so many that say the most, and in those since they were chosen,
which is done after so many."""

UNIT = math.sqrt(5)
"""By which distances are multiplied in a Matérn-5/2."""

SUMS = 3
"""Sums of all observations that bound the deviations of very many queries."""

JITTER = 1e-6
"""On the basis's own covariance, which could not be inverted in double precision otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """``lengths`` (g,) in the features' units, ``noise`` as a share of the signal's variance; ``slopes`` (k, d) of all
    means, and the ``beliefs`` (k,) in each, which sum to 1."""

    lengths: Floats
    noise: float
    slopes: Floats
    beliefs: Floats


def usual_lengths(groups: int) -> Floats:
    """Lengths (g,) that are expected of features in [0, 1], each of them worth a little: distances grow with the root
    of the number of groups."""
    return np.full(groups, math.sqrt(groups))


def matern(squares: Any) -> Any:
    """Matérn-5/2 of squared distances, in the precision of ``squares``."""
    root = np.sqrt(5 * squares)
    return (1 + root + root * root / 3) * np.exp(-root)


def squared_distances(a: Any, b: Any) -> Any:
    """(q, d), (n, d) -> (q, n), never below 0."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(squares, 0, out=squares)


# Hyperparameters -----------------------------------------------------------------------------------------


def fit(
    features: Floats, groups: Ints, values: Floats, *,
    expected: Floats | None = None, means: Sequence[tuple[Sequence[int], float]] = (((), 1.0),),
) -> Hyperparameters:  # fmt: skip
    """Hyperparameters for ``values`` (n,) at ``features`` (n, d); ``groups`` (d,) numbers each feature's group.

    ``expected`` (g,) are the lengths that the prior is around, by default the usual ones. Each of the ``means`` is
    linear along some of the features: ridge regression, with ``FLAT`` added to what a feature deviates, so that a few
    nets that are alike do not make a slope. Beside it stands how likely it is before anything was observed; lengths
    and noise, which are remembered, are those by the first. A function of its arguments alone, which are looked at
    anew when n has grown by about a tenth.
    """
    kept = _fitted_on(len(values))
    if kept > FITTED_ON:
        rows = np.linspace(0, kept - 1, FITTED_ON).astype(np.int64)
        features, values = features[rows], values[rows]
    else:
        features, values = features[:kept], values[:kept]
    slopes = np.zeros((len(means), len(groups)))
    for row, (along, _) in zip(slopes, means, strict=True):
        off = features[:, along] - features[:, along].mean(axis=0)  # (n, a)
        row[list(along)] = np.linalg.solve(off.T @ off + FLAT * np.eye(len(along)), off.T @ values)
    expected = usual_lengths(int(groups.max()) + 1) if expected is None else expected
    rest = values - features @ slopes[0]
    lengths, noise = _fit(features.tobytes(), groups.tobytes(), rest.tobytes(), expected.tobytes())
    found = [
        math.log(prior) + _evidence(features / lengths[groups], values, noise, features[:, along])
        for along, prior in means
    ]
    beliefs = np.exp(np.array(found) - max(found))
    return Hyperparameters(lengths=lengths, noise=noise, slopes=slopes, beliefs=beliefs / beliefs.sum())


def _evidence(points: Floats, values: Floats, noise: float, along: Floats) -> float:
    """The logarithm of the likelihood of ``values`` (n,) at ``points`` (n, d), features over lengths, with slopes
    ``along`` some features (n, a) integrated out (normal, of the variance that makes them ridge regression's), up to
    what does not depend on these."""
    n = len(values)
    y, off = standardised(values)[0], along - along.mean(axis=0)
    covariance = matern(squared_distances(points, points)) + off @ off.T / FLAT
    covariance[np.diag_indices(n)] += noise
    factor = np.linalg.cholesky(covariance)
    explained = np.linalg.solve(factor, y)
    return -0.5 * (n + 1) * math.log(float(explained @ explained) + 1) - float(np.log(np.diag(factor)).sum())


def _fitted_on(number: int) -> int:
    """The largest number of a slowly growing sequence that is at most ``number``."""
    step = 1 << max(0, number.bit_length() - 4)
    return number // step * step


@lru_cache(maxsize=64)
def _fit(features: bytes, groups: bytes, values: bytes, expected: bytes) -> tuple[Floats, float]:
    """Lengths and noise."""
    y = standardised(np.frombuffer(values))[0]  # (n,)
    x = np.frombuffer(features).reshape(len(y), -1)  # (n, d)
    group = np.frombuffer(groups, dtype=np.int64)
    at = np.append(np.log(np.frombuffer(expected)), NOISE)
    g = len(at) - 1
    squares = np.stack([squared_distances(x[:, group == i], x[:, group == i]) for i in range(g)])  # (g, n, n)
    squares = squares.reshape(g, -1)

    def loss(theta: Floats) -> tuple[float, Floats]:
        return _negative_log_posterior(theta, at, squares, y)

    starts = [at + np.append(np.full(g, shift), noise) for shift in (0.0, -1.0) for noise in (0.0, 2.0)]
    best = minimise(loss, min(starts, key=lambda start: loss(start)[0]))
    return np.exp(best[:-1]), max(math.exp(best[-1]), LEAST_NOISE)


def _negative_log_posterior(theta: Floats, expected: Floats, squares: Floats, y: Floats) -> tuple[float, Floats]:
    """Its value and gradient at ``theta`` (g + 1,): logarithms of lengths and of the noise, whose prior is around
    ``expected``.

    ``squares`` (g, n * n): squared distances within each group of features. The signal's variance is the one that
    maximises the likelihood, under a prior worth one observation of variance 1.
    """
    n = len(y)
    weights = np.exp(-2 * theta[:-1])  # (g,)
    root = np.sqrt(5 * (weights @ squares)).reshape(n, n)
    decay = np.exp(-root)
    covariance = (1 + root + root * root / 3) * decay
    noise = math.exp(theta[-1])
    covariance[np.diag_indices(n)] += noise
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # no such lengths: a wall for the line search
        return math.inf, np.zeros_like(theta)
    inverse = np.linalg.inv(covariance)
    alpha = inverse @ y
    variance = (float(y @ alpha) + 1) / (n + 1)
    if variance <= 0:  # rounding: rows that are equal, and hardly any noise
        return math.inf, np.zeros_like(theta)
    off = theta - expected
    spread = np.append(np.full(len(weights), SPREAD), NOISE_SPREAD)
    value = (
        0.5 * (n + 1) * math.log(variance)
        + float(np.log(np.diag(factor)).sum())
        + 0.5 * float(((off / spread) ** 2).sum())
    )
    inner = inverse - np.outer(alpha, alpha) / variance  # the gradient by the covariance, twice
    by_lengths = weights * (squares @ (inner * (5 / 3) * (1 + root) * decay).ravel())
    gradient = 0.5 * np.append(by_lengths, noise * np.trace(inner)) + off / spread**2
    return value, gradient


def minimise(loss: Callable[[Floats], tuple[float, Floats]], start: Floats, *, steps: int = 30) -> Floats:
    """BFGS with a backtracking line search, for a handful of variables (Nocedal & Wright, 2006, chapter 6)."""
    x = start
    value, gradient = loss(x)
    inverse = np.eye(len(x))
    for _ in range(steps):
        if np.abs(gradient).max() < 1e-2:
            break
        step = -inverse @ gradient
        slope = float(step @ gradient)
        if slope >= 0:  # rounding has spoilt the curvature: steepest descent
            inverse = np.eye(len(x))
            step, slope = -gradient, -float(gradient @ gradient)
        length = min(1.0, 2.0 / float(np.abs(step).max()))  # nothing changes by more than e^2 at once
        while True:
            after, gradient_after = loss(x + length * step)
            if after <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-6:
                return x
        moved, turned = length * step, gradient_after - gradient
        curvature = float(moved @ turned)
        if curvature > 1e-12:
            left = np.eye(len(x)) - np.outer(moved, turned) / curvature
            inverse = left @ inverse @ left.T + np.outer(moved, moved) / curvature
        x, value, gradient = x + moved, after, gradient_after
    return x


def standardised(values: Floats) -> tuple[Floats, float, float]:
    """``values`` with mean 0 and standard deviation 1, and what these were."""
    mean, deviation = float(values.mean()), float(values.std())
    deviation = deviation if deviation > 0 else 1.0
    return (values - mean) / deviation, mean, deviation


# The posterior -------------------------------------------------------------------------------------------


class Surrogate:
    """The posterior, given ``values`` (n,) at ``features`` (n, d) and hyperparameters. ``pending`` (p, d) are
    candidates whose values are not known yet: they are taken to be as predicted, which makes their surroundings
    surer and moves no mean (Ginsbourger et al., 2010, the kriging believer). With ``outliers`` values are losses, and
    some of them may be far too high (see ``noise``).

    It is exact up to BASIS observations. Of more, all are learnt from, through a basis of m of them (Snelson &
    Ghahramani, 2006; FITC in Quiñonero-Candela & Rasmussen, 2005), so that neither a prediction's time nor what
    ``Many`` keeps grows with n."""

    def __init__(
        self, hyperparameters: Hyperparameters, features: Floats, groups: Ints, values: Floats, pending: Floats, *,
        outliers: bool = False,
    ) -> None:  # fmt: skip
        self._scales = 1 / hyperparameters.lengths[groups]  # (d,)
        self._slopes, self._beliefs = hyperparameters.slopes, hyperparameters.beliefs
        rests = [standardised(values - features @ slopes) for slopes in self._slopes]
        y = np.stack([rest for rest, *_ in rests])  # (k, n)
        self._mean, self._deviation = (np.array([rest[i] for rest in rests])[:, None] for i in (1, 2))  # (k, 1)
        n, p = len(values), len(pending)
        told = features * self._scales  # (n, d)
        seen = np.concatenate([told, pending * self._scales])  # (n + p, d)
        rows = np.arange(n) if n <= BASIS else basis(told)
        self._points = np.concatenate([told[rows], seen[n:]])  # (m + p, d)
        covariance = Covariance(told[rows], told, exact=n <= BASIS)
        noise, one = np.full(n, hyperparameters.noise), hyperparameters.noise
        if outliers:
            solve = partial(covariance.solve, y)
            noise, one = noises(solve, y, self._deviation[:, 0], self._beliefs, one, LEAST_NOISE)
        self._noise = np.append(noise[rows], np.full(p, one))  # (m + p,)
        at, explained, inverse = covariance.posterior(y, noise)
        self._weights = np.hstack([at, np.zeros((len(y), p))])
        if p:
            every = np.append(noise, np.full(p, one))
            more = Covariance(self._points, seen, exact=n <= BASIS)
            *_, inverse = more.posterior(np.hstack([y, np.zeros((len(y), p))]), every)
        self._inverse = inverse
        signals = (explained + 1) / (n + 1) * self._deviation[:, 0] ** 2
        self._signal = math.sqrt(float(self._beliefs @ signals))

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation (q,), without noise, at ``features`` (q, d)."""
        kernel = matern(squared_distances(features * self._scales, self._points))  # (q, n + p), of a basis (q, m + p)
        left = 1 - np.einsum("ij,ij->i", kernel @ self._inverse, kernel)
        means = self._mean + self._slopes @ features.T + self._deviation * (self._weights @ kernel.T)  # (k, q)
        mean = self._beliefs @ means
        return mean, np.sqrt(self._signal**2 * np.maximum(left, 1e-12) + self._apart(means) ** 2)

    def _apart(self, means: Floats) -> Floats:
        """How far the means (k, q) are from each other: the standard deviation (q,) by the beliefs in them."""
        return np.asarray(np.sqrt(self._beliefs @ (means - self._beliefs @ means) ** 2))

    def glance(self, many: Many) -> tuple[Floats, Floats]:
        """What very many queries can be at best, in single precision: a lower bound of their means and an upper bound
        of their deviations (q,).

        The deviations know the most similar observation alone, or SUMS of all observations; whatever else is known
        can only lower them.
        """
        k = len(self._weights)
        rows = np.vstack([self._weights, self._telling()])  # (k + SUMS, m + p)
        weights = rows.astype(np.float32)
        sums = np.zeros((len(rows), len(many)), dtype=np.float32)
        off = many.rounding(self._scales)
        falls = np.zeros(len(many))
        for start in range(0, len(self._points), CHUNK):
            part = slice(start, start + CHUNK)
            kernel, most = many.kernel(self._scales, self._points[part])
            sums += weights[:, part] @ kernel
            alike = np.maximum(most.astype(np.float64) - off, 0)
            np.maximum(falls, alike**2 / (1 + self._noise[part].max() + JITTER), out=falls)
        slack = off * np.abs(rows).sum(axis=1)[:, None]  # (k + SUMS, 1)
        least = sums[:k].astype(np.float64) - slack[:k]
        least = self._mean + many.lines(self._slopes) + self._deviation * least  # (k, q): at most 2 slacks below
        together = np.zeros(len(many))
        for told, less in zip(sums[k:], slack[k:, 0], strict=True):
            together += np.maximum(np.abs(told.astype(np.float64)) - less, 0) ** 2
        left = np.maximum(1 - np.maximum(falls, together), 0)
        apart = self._apart(least) + 2 * float((self._deviation * slack[:k]).max())
        return self._beliefs @ least, np.sqrt(self._signal**2 * left + apart**2)

    def _telling(self) -> Floats:
        """Weights (SUMS, m + p) of sums of correlations whose squares are, together, no more than what the variance of
        a point falls by, k · inverse · k; and not much less where many observations say the same.

        Those of inverse · W, orthonormal as W's columns are not, for W the covariance's largest eigenvectors nearly.
        """
        m = len(self._points)
        own = matern(squared_distances(self._points, self._points))
        w = np.cos(np.pi / m * np.outer(np.arange(m) + 0.5, np.arange(min(SUMS, m))))  # (m, SUMS)
        for _ in range(3):
            w = np.linalg.qr(own @ w)[0]
        reach = self._inverse @ w
        inner = w.T @ reach
        inner[np.diag_indices(len(inner))] *= 1 + 1e-9  # for its rounding
        return np.linalg.solve(np.linalg.cholesky(inner), reach.T)


def basis(points: Floats) -> Ints:
    """The rows of ``points`` (n, d), features over lengths, that a posterior is written in: BASIS of the first
    n - n mod RENEWED, and all after them, which changes with every RENEWED observations only.

    Each is the one that those before it explain the least: a Cholesky decomposition of the covariance that pivots.
    """
    n = len(points) // RENEWED * RENEWED
    return np.concatenate([_pivots(points[:n].tobytes(), points.shape[1]), np.arange(n, len(points))])


@lru_cache(maxsize=8)
def _pivots(points: bytes, d: int) -> Ints:
    x = np.frombuffer(points).reshape(-1, d)  # (n, d)
    unexplained = np.ones(len(x))  # of the variance, 1 everywhere
    columns = np.empty((len(x), BASIS))  # of the Cholesky factor
    rows = np.empty(BASIS, dtype=np.int64)
    for i in range(BASIS):
        rows[i] = row = int(unexplained.argmax())
        column = matern(squared_distances(x, x[row : row + 1]))[:, 0] - columns[:, :i] @ columns[row, :i]
        columns[:, i] = column / math.sqrt(max(unexplained[row], JITTER))
        unexplained -= columns[:, i] ** 2
        unexplained[rows[: i + 1]] = -1.0  # chosen
    return rows


class Covariance:
    """Of what was ``seen`` (n, d), in the basis ``points`` (m, d): all of it where ``exact``, else a part, and what
    this leaves unexplained of an observation is noise."""

    def __init__(self, points: Floats, seen: Floats, *, exact: bool) -> None:
        self._exact, self._own = exact, matern(squared_distances(points, points))
        if not exact:
            self._own[np.diag_indices(len(points))] += JITTER
            self._root = np.linalg.inv(np.linalg.cholesky(self._own))  # (m, m): root · own · rootᵀ = 1
            self._reach = self._root @ matern(squared_distances(points, seen))  # (m, n)
            self._unexplained = np.maximum(1 - (self._reach * self._reach).sum(axis=0), 0)  # (n,)

    def posterior(self, y: Floats, noise: Floats) -> tuple[Floats, Floats, Floats]:
        """Of the posterior that was told ``y`` (k, n) with ``noise`` (n,): the weights (k, m) of its means, the squared
        lengths (k,) of y by the inverse covariance, and the matrix (m, m) by which the variance of a point falls, given
        its correlations with the basis."""
        if self._exact:
            inverse = np.linalg.inv(self._own + np.diag(noise))
            weights = y @ inverse
            return weights, (y * weights).sum(axis=1), inverse
        every, inner = self._inner(noise)
        at = (y / every) @ self._reach.T @ inner  # (k, m)
        explained = ((y / every) * (y - at @ self._reach)).sum(axis=1)
        return at @ self._root, explained, self._root.T @ (np.eye(len(inner)) - inner) @ self._root

    def solve(self, y: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """The inverse covariance's products (k, n) with ``y`` (k, n), and its diagonal (n,)."""
        if self._exact:
            inverse = np.linalg.inv(self._own + np.diag(noise))
            return y @ inverse, np.diag(inverse)
        every, inner = self._inner(noise)
        reach = self._reach / every  # (m, n)
        products = y / every - (y @ reach.T @ inner) @ reach
        return products, 1 / every - np.einsum("in,in->n", reach, inner @ reach)

    def _inner(self, noise: Floats) -> tuple[Floats, Floats]:
        every = noise + self._unexplained  # (n,)
        return every, np.linalg.inv(np.eye(len(self._reach)) + (self._reach / every) @ self._reach.T)


class Many:
    """Very many queries (q, d), in single precision. Most observations stay from one posterior to the next, and so do
    the kernel's columns: they are kept by the CHUNK, up to KEPT entries."""

    def __init__(self, features: npt.NDArray[np.float32]) -> None:
        self._features = features
        self._kept: dict[bytes, tuple[Singles, Singles]] = {}
        self._kept_for = b""
        self._right = np.empty((0, 0), dtype=np.float32)  # (d + 2, q): the queries' side of squared distances

    def __len__(self) -> int:
        return len(self._features)

    def kernel(self, scales: Floats, points: Floats) -> tuple[Singles, Singles]:
        """Correlations (n, q) with ``points`` (n, d), which are scaled already, and the largest for each query."""
        if scales.tobytes() != self._kept_for:
            self._kept, self._kept_for = {}, scales.tobytes()
            queries = (self._features * (scales * UNIT).astype(np.float32)).T
            norms = np.einsum("ij,ij->j", queries, queries)
            self._right = np.vstack([queries, norms, np.ones_like(norms)])
        key = points.tobytes()
        if key in self._kept:
            return self._kept[key]
        made = self._make(points)
        if len(points) == CHUNK and (len(self._kept) + 1) * CHUNK * len(self) <= KEPT:
            self._kept[key] = made
        return made

    def _make(self, points: Floats) -> tuple[Singles, Singles]:
        points = (points * UNIT).astype(np.float32)
        left = np.column_stack([-2 * points, np.ones(len(points), np.float32), (points * points).sum(axis=1)])
        roots, powers = np.empty((2, len(points), BLOCK), dtype=np.float32)
        kernel, most = np.empty((len(points), len(self)), dtype=np.float32), np.empty(len(self), dtype=np.float32)
        for start in range(0, len(self), BLOCK):
            part = slice(start, min(start + BLOCK, len(self)))
            root, power = (a[:, : part.stop - start] for a in (roots, powers))
            np.matmul(left, self._right[:, part], out=root)  # (n, block): squared distances, in one product of matrices
            np.abs(root, out=root)  # rounding may have taken zeros below
            np.sqrt(root, out=root)
            np.exp(np.negative(root, out=power), out=power)
            made = np.multiply(root, np.float32(1 / 3), out=kernel[:, part])
            made += 1
            made *= root
            made += 1
            made *= power
            made.max(axis=0, out=most[part])
        return kernel, most

    def lines(self, slopes: Floats) -> Floats:
        """The features (q, d) times their slopes (k, d): (k, q)."""
        at = np.flatnonzero(slopes.any(axis=0))
        return slopes[:, at] @ self._features[:, at].T.astype(np.float64)

    def rounding(self, scales: Floats) -> float:
        """By how much an entry of the kernel may be off: as far as its polynomial, its exponential (2.5 units in the
        last place) and the largest square are."""
        return 2.0**-24 * (9 + 2 * UNIT**2 * float((scales**2).sum()))


def similarity(queries: Any, points: Any, lengths: Floats) -> Floats:
    """The correlations (q, n) between features (q, d) and (n, d) by ``lengths`` (d,)."""
    return np.asarray(matern(squared_distances(queries / lengths, points / lengths)), dtype=np.float64)
