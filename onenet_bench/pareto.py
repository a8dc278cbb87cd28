"""Fronts: which Records no other beats under the stated objectives.

Every array here has one row per point and one column per objective. Functions that take ``losses`` expect all
columns to be minimised; ``Objective.loss`` turns a value into that form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from onenet_bench.errors import SpaceError, known
from onenet_bench.record import COSTS, SCORES

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One number to be made small or large: a name from the tables COSTS or SCORES."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in COSTS and self.name not in SCORES:
            raise SpaceError(known("objective", self.name, [*SCORES, *COSTS]))

    @property
    def is_score(self) -> bool:
        """Whether it must be trained for (a score) or is counted beforehand (a cost)."""
        return self.name in SCORES

    @property
    def maximise(self) -> bool:
        """The better direction."""
        return (SCORES | COSTS)[self.name].best == "max"

    def loss(self, values: Any) -> Any:
        """``values`` in the form in which smaller is better."""
        return -values if self.maximise else values


def objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """Objectives by name. Raises SpaceError without a score and a cost among them, or with one named twice."""
    chosen = tuple(Objective(name=name) for name in names)
    if len(set(names)) < len(names):
        raise SpaceError(f"each objective is named once, but got {', '.join(names)}")
    if not any(o.is_score for o in chosen) or all(o.is_score for o in chosen):
        raise SpaceError(
            f"a trade-off needs at least one score and one cost, but got {', '.join(names) or 'nothing'}; "
            f"scores: {', '.join(SCORES)}; costs: {', '.join(COSTS)}"
        )
    return chosen


def losses(rows: pd.DataFrame | Mapping[str, Any], chosen: Sequence[Objective]) -> Floats:
    """The columns of ``chosen``, all to be minimised, as (points, objectives)."""
    return np.stack([np.asarray(o.loss(np.asarray(rows[o.name], dtype=float))) for o in chosen], axis=-1)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether ``a`` is at most ``b`` in every loss and below it in one."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def non_dominated(points: Floats) -> npt.NDArray[np.bool_]:
    """For each row of ``points`` (n, m; losses) whether no other dominates it. Equal points stand together.

    Rows with a NaN are on no front. A million rows are fine: most fall to the front of a few. With three objectives
    or more, the time is that of comparing the front with itself.
    """
    mask = np.asarray(~np.isnan(points).any(axis=1))
    rows = _not_dominated_by_a_few(points, np.flatnonzero(mask))
    # Ranks order as values do, and whole numbers add up exactly.
    columns = [np.unique(points[rows, j], return_inverse=True)[1] for j in range(points.shape[1])]
    order = np.lexsort(columns[::-1])
    ranks = np.stack(columns)[:, order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (ranks[:, 1:] != ranks[:, :-1]).any(axis=0)
    mask[:] = False
    mask[rows[order]] = _front_of_distinct(ranks[:, new])[np.cumsum(new) - 1]
    return mask


_FEW = 1024


def _not_dominated_by_a_few(points: Floats, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Those of ``rows`` that are left by the front of a few of them, as long as each of its points takes many."""
    if len(rows) <= 2 * _FEW:
        return rows
    few = points[np.random.default_rng(0).choice(rows, _FEW, replace=False)]
    best = np.unique(few[non_dominated(few)], axis=0)
    takes = [(few >= point).all(axis=1).sum() for point in best]
    columns = points[rows].T.copy()  # (m, rows left)
    for point in best[np.argsort(takes)[::-1]]:
        left = _any_below(columns, point) | (columns == point[:, None]).all(axis=0)
        rows, columns, before = rows[left], columns[:, left], len(rows)
        if len(rows) > 0.999 * before:
            break
    return rows


def _front_of_distinct(ranks: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """The same for distinct points of whole numbers (m, n) in lexicographic order, where nobody dominates somebody
    earlier."""
    if len(ranks) <= 2:  # each must be below all earlier ones in its last objective
        last = ranks[-1]
        lowest = np.minimum.accumulate(np.concatenate(([last.max(initial=0) + 1], last[:-1])))
        return np.asarray(last < lowest)
    mask = np.zeros(ranks.shape[1], dtype=bool)
    left, sums = np.arange(ranks.shape[1]), ranks.sum(axis=0)
    while len(left):
        best = sums.argmin()  # whoever dominated it would have a smaller sum
        mask[left[best]] = True
        above = _any_below(ranks, ranks[:, best])
        left, sums, ranks = left[above], sums[above], ranks[:, above]
    return mask


def _any_below(columns: npt.NDArray[Any], point: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of the points in ``columns`` (m, n) are below ``point`` (m) in some objective."""
    below: npt.NDArray[np.bool_] = columns[0] < point[0]
    for column, limit in zip(columns[1:], point[1:], strict=True):
        below |= column < limit
    return below


def front(frame: pd.DataFrame, chosen: Sequence[Objective]) -> pd.DataFrame:
    """The rows of ``frame`` on the front of ``chosen``, best first objective first. Incomplete rows are left out."""
    rows = frame[frame["status"] == "complete"] if "status" in frame else frame
    if rows.empty:
        return rows
    points = losses(rows, chosen)
    return rows[non_dominated(points)].sort_values(chosen[0].name, ascending=not chosen[0].maximise)


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """What the hypervolume is a share of: from ``best`` to ``worst`` (the reference point) in each objective.

    Costs span orders of magnitude, so they are taken as logarithms: each axis runs from 0 (best) to 1 (worst).
    """

    objectives: tuple[Objective, ...]
    best: tuple[float, ...]
    worst: tuple[float, ...]

    @classmethod
    def around(cls, chosen: Sequence[Objective], rows: pd.DataFrame | Mapping[str, Any]) -> Box:
        """Scores from 1 down to 0 (cross-entropies from 0 up to the worst seen), costs over the range of ``rows``."""
        best, worst = [], []
        for o in chosen:
            values = np.asarray(rows[o.name], dtype=float)
            values = values[np.isfinite(values)]
            if o.is_score and o.maximise:
                best.append(1.0)
                worst.append(0.0)
            else:
                best.append(0.0 if o.is_score else float(values.min()))
                worst.append(float(values.max()))
        return cls(objectives=tuple(chosen), best=tuple(best), worst=tuple(worst))

    def place(self, rows: pd.DataFrame | Mapping[str, Any]) -> Floats:
        """The points of ``rows`` in the box's axes, (n, m): 0 is the best corner, 1 the worst."""
        columns = []
        for o, best, worst in zip(self.objectives, self.best, self.worst, strict=True):
            values = np.asarray(rows[o.name], dtype=float)
            if not o.is_score:
                values, best, worst = np.log(values), math.log(best), math.log(worst)
            columns.append((values - best) / (worst - best) if worst != best else np.zeros_like(values))
        return np.stack(columns, axis=-1)

    def hypervolume(self, rows: pd.DataFrame | Mapping[str, Any]) -> float:
        """The share of the box that the points of ``rows`` dominate, 0 to 1."""
        points = self.place(rows)
        return hypervolume(points[~np.isnan(points).any(axis=1)], np.ones(len(self.objectives)))


def hypervolume(points: Floats, reference: Floats) -> float:
    """Exact volume between ``points`` (n, m; losses) and ``reference`` (m): what the points dominate.

    Points beyond the reference in any objective add nothing. By slicing along the last objective (HSO; While et
    al., 2006): fine for the up to four objectives and few hundred points of a front.
    """
    points = points[(points < reference).all(axis=1)]
    if len(points) == 0:
        return 0.0
    points = np.unique(points[non_dominated(points)], axis=0)
    if points.shape[1] == 1:
        return float(reference[0] - points[:, 0].min())
    if points.shape[1] == 2:  # sorted by the first, the second falls
        widths = reference[0] - points[:, 0]
        heights = np.concatenate(([reference[1]], points[:-1, 1])) - points[:, 1]
        return float((widths * heights).sum())
    points = points[np.argsort(points[:, -1], kind="stable")]
    tops = np.append(points[1:, -1], reference[-1])
    return math.fsum(
        (tops[i] - points[i, -1]) * hypervolume(points[: i + 1, :-1], reference[:-1])
        for i in range(len(points))
        if tops[i] > points[i, -1]
    )


def knee(points: Floats) -> int | None:
    """Index of the knee of a two-objective front (n, 2; losses in comparable units, e.g. ``Box.place``).

    The point farthest below the line between the two ends of the front (the farthest-from-chord rule); None where
    no point lies below it.
    """
    if len(points) < 3:
        return None
    first, last = points[points[:, 0].argmin()], points[points[:, 1].argmin()]
    span = last - first
    if (span == 0).any():
        return None
    unit = (points - first) / span
    unit[:, 1] = 1 - unit[:, 1]  # both ends on the diagonal from (0, 1) to (1, 0)
    gain = 1 - unit.sum(axis=1)
    best = int(gain.argmax())
    return best if gain[best] > 1e-9 else None
