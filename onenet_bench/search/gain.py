"""Expected gain in hypervolume of nets whose costs are known and whose scores are Gaussians.

Everything is a loss (to be minimised). With probability P(loss <= z) a net dominates the point z, so its expected
gain is the integral of that product of probabilities over all that is not dominated yet. Cut into boxes, it is a sum
of products: of a difference of two expected improvements along a Gaussian objective, and of a length along a known
one. That is exact, for any number of objectives of either kind.

Letters: n points, m objectives (u Gaussian ones first, then m - u known ones), c cells, q queries.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from onenet_bench.pareto import non_dominated

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating[Any]]  # singles or doubles
Ints = npt.NDArray[np.int64]

BLOCK = 1 << 17
"""Products of a query and a cell that are made at a time."""


def cells(points: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """What ``points`` (n, m) leave undominated below ``reference`` (m), as disjoint boxes: lower and upper corners,
    (c, m) each. Lower corners may be -inf.

    By local upper bounds and the points that define them, coordinate by coordinate (Klamroth, Lacour &
    Vanderpooten, 2015; Lacour, Klamroth & Fonseca, 2017). Along the first objective no box has a lower end.
    """
    m = len(reference)
    points = points[(points < reference).all(axis=1)]
    points = np.unique(points[non_dominated(points)], axis=0)
    upper = reference[None].copy()  # (c, m)
    defining = np.full((1, m, m), -math.inf)  # (c, k, m): the point that defines coordinate k
    defining[0, range(m), range(m)] = reference
    for point in points:
        hit = (point < upper).all(axis=1)
        uppers, definings = [upper[~hit]], [defining[~hit]]
        for j in range(m):
            others = [k for k in range(m) if k != j]
            # Of equal coordinates the later one counts as larger, as if a perturbation had set them apart.
            rows = np.flatnonzero(hit)[(point[j] >= defining[hit][:, others, j]).all(axis=1)]
            bounds, definers = upper[rows], defining[rows]
            bounds[:, j], definers[:, j] = point[j], point
            uppers.append(bounds)
            definings.append(definers)
        upper, defining = np.concatenate(uppers), np.concatenate(definings)
    lower = np.full_like(upper, -math.inf)
    for j in range(1, m):
        lower[:, j] = defining[:, :j, j].max(axis=1)
    full = (lower < upper).all(axis=1)
    return lower[full], upper[full]


def expected_gain(boxes: tuple[Floats, Floats], mean: Reals, deviation: Reals, known: Reals) -> Floats:
    """Expected gain (q,) over ``boxes`` (from ``cells``) of nets with independent Gaussian losses, ``mean`` and
    ``deviation`` (q, u), and ``known`` ones (q, m - u)."""
    lower, upper = (corners.astype(mean.dtype) for corners in boxes)  # (c, m)
    gains = np.empty(len(mean))
    u = mean.shape[1]
    edges = [_edges(lower[:, j], upper[:, j]) for j in range(u)]
    block = max(1, BLOCK // len(upper))
    for start in range(0, len(mean), block):
        part = slice(start, start + block)
        means, deviations, costs = (np.ascontiguousarray(a[part].T) for a in (mean, deviation, known))
        product = np.ones((1, 1), dtype=mean.dtype)
        for j, cost in enumerate(costs, start=u):
            length = np.maximum(lower[:, j, None], cost)  # (c, block): whole rows at a time are quick
            np.subtract(upper[:, j, None], length, out=length)
            product = np.multiply(product, np.maximum(length, 0, out=length), out=length)
        for j, (distinct, above, below) in enumerate(edges):
            up_to = expected_improvement(means[j], deviations[j], distinct[:, None])  # (edges, block)
            length = up_to[above]
            if below is not None:
                length -= up_to[below]
            product = np.multiply(product, length, out=length)
        gains[part] = product.sum(axis=0)
    return gains


def _edges(lower: Reals, upper: Reals) -> tuple[Reals, Ints, Ints | None]:
    """The different edges of boxes along an objective, and for each box (c,) where its upper and lower ones are among
    them; None in place of the lower where all are -inf, which nothing lies below."""
    if (lower == -math.inf).all():
        return *np.unique(upper, return_inverse=True), None
    distinct, place = np.unique(np.stack([upper, lower]), return_inverse=True)
    above, below = place.reshape(2, -1)
    return distinct, above, below


def expected_improvement(mean: Reals, deviation: Reals, best: Reals) -> Reals:
    """E max(0, best - loss) of Gaussian losses, elementwise; to a millionth of its value, however small, up to 37
    deviations away. -inf improves on nothing."""
    t = (best - mean) / deviation
    far = np.minimum(np.abs(t), FARTHEST) * FINENESS
    place = far.astype(np.int32)
    logarithms, steps = _table(np.result_type(t))
    tail = np.exp(logarithms[place] + (far - place.astype(far.dtype)) * steps[place])
    return np.asarray(deviation * (tail + np.maximum(t, 0)))


FARTHEST, FINENESS = 37, 512


@lru_cache(maxsize=2)
def _table(precision: np.dtype[Any]) -> tuple[Floats, Floats]:
    """Logarithms of phi(t) - t Phi(-t) at t = 0, 1/FINENESS, …, FARTHEST, and the steps between them."""
    points = [i / FINENESS for i in range(FARTHEST * FINENESS + 2)]
    values = [math.exp(-t * t / 2) / math.sqrt(2 * math.pi) - t * math.erfc(t / math.sqrt(2)) / 2 for t in points]
    logarithms = np.log(np.array(values))
    return logarithms[:-1].astype(precision), np.diff(logarithms).astype(precision)
