"""Fidelity: which candidates are worth being trained to the end, and whether that can be said earlier at all.

Successive halving, asynchronous, for several objectives (ASHA: Li et al., arXiv 1810.05934). A candidate that reaches
a rung, a share of the recipe, goes on if it is among the best third of those that did; if not, it stops, keeps its
checkpoint, and is promoted once the rung has grown so far that it is. Best is not the highest score, by which every
small net would lose: a rung is ranked by fronts of (score so far, costs, which are known), and within a front by the
room that its points have to themselves.

Nobody is stopped before an *audit* has found that the order at a rung is the order at the end: among the first nets,
which train in full, and among those of like cost alone too, since large nets being better than small ones says
nothing about whom to stop.

Letters: n points, m objectives; all are losses (to be minimised).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onenet_bench.errors import SpaceError, known
from onenet_bench.pareto import Objective, non_dominated
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCORES, Costs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

FIDELITIES = {
    "auto": "stop weak candidates early, where an audit of the first ones shows that this can be trusted",
    "off": "train every candidate to the end",
}
"""How much training a candidate gets."""

REDUCTION = 3
"""One in so many goes on at a rung."""

DENOMINATORS = (27, 9, 3)
"""Rungs are the first epochs that have seen 1/27, 1/9 and 1/3 of the recipe; of two at the same epoch the later one."""

AUDITED = 9
"""Candidates that are trained in full before the audit; after one that fails, it is held again at twice as many."""

AGREEMENT = 0.6
"""Kendall's tau that a rung needs, and every later one too, over all audited nets and over pairs of like cost: by its
lower bound, for of nine nets' true tau little is known."""

BOUND = 1.28
"""Standard errors (of the jackknife) from an estimate to its lower bound, which is one-sided, of 90 %."""

BANDS = 3
"""Parts of equal size into which the audited nets are cut by cost; those in one are of like cost."""


# Ranking -------------------------------------------------------------------------------------------------


def best(points: Floats, most: int) -> Ints:
    """Rows of the ``most`` best ``points`` (n, m), best first: front by front (Goldberg's non-dominated sorting), and
    within a front those with the most ``room``; of equals the earlier row."""
    chosen: list[Ints] = []
    left = np.arange(len(points))
    while most > 0 and len(left):
        first = non_dominated(points[left])
        front = left[first]
        front = front[np.argsort(-room(points[front]), kind="stable")][:most]
        chosen.append(front)
        left, most = left[~first], most - len(front)
    return np.concatenate([np.zeros(0, dtype=np.intp), *chosen])


def room(points: Floats) -> Floats:
    """How far apart the neighbours of each of ``points`` (n, m) are, summed over the objectives, each as a share of
    its range (crowding distance: Deb et al., 2002). Infinite for the lowest and the highest of an objective."""
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        values = column[order]
        if values[0] == values[-1]:
            continue
        gaps = np.full(len(values), math.inf)
        gaps[1:-1] = (values[2:] - values[:-2]) / (values[-1] - values[0])
        distance[order] += gaps
    return distance


def kendall(x: npt.ArrayLike, y: npt.ArrayLike, bands: npt.ArrayLike | None = None) -> float | None:
    """Kendall's tau-b of two rankings of the same things, over all pairs, or over those in one band alone; None where
    no such pair differs in ``x``, or none in ``y``."""
    first, second = (np.sign(np.subtract.outer(values, values)) for values in (x, y))
    pairs = np.triu(np.ones_like(first, dtype=bool), 1)
    if bands is not None:
        pairs &= np.equal.outer(bands, bands)
    a, b = first[pairs], second[pairs]
    scale = math.sqrt(np.count_nonzero(a) * np.count_nonzero(b))
    return float((a * b).sum() / scale) if scale else None


def kendall_bound(x: npt.ArrayLike, y: npt.ArrayLike, bands: npt.ArrayLike | None = None) -> float | None:
    """What Kendall's tau of the things that x and y were drawn from is at least, with 90 % confidence.

    From the taus without one of the n each (jackknife: Efron, Stein, 1981); None where one of them is not defined.
    """
    columns = [np.asarray(values) for values in (x, y, bands) if values is not None]
    n = len(columns[0])
    found = [kendall(*columns), *(kendall(*(np.delete(column, out) for column in columns)) for out in range(n))]
    taus = [tau for tau in found if tau is not None]
    return taus[0] - BOUND * math.sqrt((n - 1) * np.var(taus[1:])) if len(taus) == n + 1 else None


# Rungs ---------------------------------------------------------------------------------------------------


class Rung:
    """A share of the recipe, one ``denominator``-th: the losses that trials had, score by score, on reaching it."""

    def __init__(self, denominator: int) -> None:
        self.denominator = denominator
        self.epoch = 0  # at which it is reached; 0 until somebody has
        self.losses: dict[int, tuple[float, ...]] = {}
        self.ranked: tuple[int, list[int]] = 0, []  # how many they were when the best were last worked out, and those


class Halving:
    """The rungs of a search for ``objectives``, lowest first, and who is stopped at them.

    There is none, and so nobody is stopped, where ``fidelity`` is off; nor is a net of which some cost among the
    objectives is not known. ``first`` is the rung from which on stopping is allowed, None while it is not.
    ``stopped`` are the trials that are told to stop, and then wait for their promotion, each with its rung.
    """

    def __init__(self, objectives: Sequence[Objective], recipe: Recipe, fidelity: str) -> None:
        check(fidelity)
        self._scores = [o for o in objectives if o.is_score]
        self._costs = [o for o in objectives if not o.is_score]
        self._recipe = recipe
        self._prices: dict[int, tuple[float, ...]] = {}  # logarithms
        self.rungs = [Rung(d) for d in DENOMINATORS] if fidelity == "auto" else []
        self.first: int | None = None
        self.stopped: dict[int, int] = {}

    def enter(self, trial: int, costs: Costs) -> None:
        """Note what a candidate costs; needed before anything is decided, and not before its epochs are noted."""
        prices = [getattr(costs, o.name) for o in self._costs]
        if None not in prices:
            self._prices[trial] = tuple(math.log(max(price, 1e-9)) for price in prices)

    def reach(self, trial: int, progress: Mapping[str, Any]) -> int | None:
        """Note a trial's epoch; the rung that it reached with it, or None."""
        done, whole = length(self._recipe, progress)
        reached = [number for number, rung in enumerate(self.rungs) if done * rung.denominator >= whole]
        if not reached or done >= whole or any(o.name not in progress for o in self._scores):
            return None
        rung = self.rungs[reached[-1]]
        if trial in rung.losses:
            return None
        rung.losses[trial] = tuple(float(o.loss(progress[o.name])) for o in self._scores)
        rung.epoch = rung.epoch or progress["epoch"]
        return reached[-1]

    def goes_on(self, trial: int, rung: int) -> bool:
        """Whether a trial that has reached ``rung`` may leave it."""
        return self.first is None or rung < self.first or trial not in self._prices or trial in self.best(rung)

    def best(self, rung: int) -> list[int]:
        """The trials that may leave ``rung``, best first: a third of those that reached it, and one at least."""
        at = self.rungs[rung]
        size, found = at.ranked
        if size != len(at.losses):
            trials = [trial for trial in at.losses if trial in self._prices]
            points = np.array([at.losses[trial] + self._prices[trial] for trial in trials])  # (n, m)
            found = [trials[row] for row in best(points, math.ceil(len(trials) / REDUCTION))]
            at.ranked = len(at.losses), found
        return found

    def promotable(self, waiting: Container[int]) -> int | None:
        """The stopped trial that is the first to go on: of those ``waiting`` the best that may leave its rung, of the
        highest rung. One that was just told to stop may not have come to it yet."""
        for rung in sorted(set(self.stopped.values()), reverse=True):
            for trial in self.best(rung):
                if self.stopped.get(trial) == rung and trial in waiting:
                    return trial
        return None

    def why(self, trial: int) -> str:
        """Why a trial is stopped, in words."""
        rung = self.stopped[trial]
        at, kept = self.rungs[rung], len(self.best(rung))
        return f"stopped at epoch {at.epoch}: not among the best {kept} of {len(at.losses)} that got there"

    def ended(self, trial: int, *, failed: bool) -> None:
        """A trial waits for nothing any more; nobody is measured by one that has ``failed``."""
        self.stopped.pop(trial, None)
        for rung in self.rungs:
            if failed and trial in rung.losses:
                del rung.losses[trial]
                rung.ranked = 0, []

    def audit(self, final: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
        """How far the order at each rung is that of the ``final`` scores (trial → scores), as JSON-ready values.

        ``first`` is the rung from which on all agree, None where the last does not; ``reason`` says it in words.
        """
        rows: list[dict[str, Any]] = []
        first, agreed = None, True
        for number, rung in reversed(list(enumerate(self.rungs))):
            if rung.losses:
                here = [self._agreement(rung, at, final) for at in range(len(self._scores))]
                agreed = agreed and all(row["passed"] for row in here)
                first = number if agreed else first
                rows = here + rows
        return {"trials": sorted(final), "needed": AGREEMENT, "rungs": rows, "first": first,
                "reason": self._verdict(first, rows)}  # fmt: skip

    def _agreement(self, rung: Rung, at: int, final: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
        """One score at one rung."""
        score = self._scores[at]
        trials = [t for t in rung.losses if t in self._prices and score.name in final.get(t, {})]
        early = [rung.losses[t][at] for t in trials]
        late = [float(score.loss(final[t][score.name])) for t in trials]
        price = np.array([math.fsum(self._prices[t]) for t in trials])
        band = np.empty(len(trials), dtype=int)
        band[np.argsort(price, kind="stable")] = np.arange(len(trials)) * BANDS // max(1, len(trials))
        bounds = [kendall_bound(early, late), kendall_bound(early, late, band)]
        by_band = [kendall(np.array(early)[band == b], np.array(late)[band == b]) for b in range(BANDS)]
        passed = len(trials) >= AUDITED and all(bound is not None and bound >= AGREEMENT for bound in bounds)
        return {
            "share": f"1/{rung.denominator}", "epoch": rung.epoch, "score": score.name, "nets": len(trials),
            "kendall": kendall(early, late), "kendall_bound": bounds[0],
            "like_cost": kendall(early, late, band), "like_cost_bound": bounds[1], "bands": by_band, "passed": passed,
        }  # fmt: skip

    def _verdict(self, first: int | None, rows: Sequence[Mapping[str, Any]]) -> str:
        if first is not None:
            return f"candidates may be stopped from epoch {self.rungs[first].epoch} on"
        if not rows:
            return "nobody is stopped: no epoch before the last was reported"
        row = [row for row in rows if not row["passed"]][-1]
        bounds = (row["kendall_bound"], row["like_cost_bound"])
        over_all, like_cost = ("not defined" if bound is None else f"≥ {bound:.2f}" for bound in bounds)
        title = SCORES[row["score"]].title
        return (
            f"nobody is stopped: at epoch {row['epoch']} Kendall's τ for {title} is {over_all}, and {like_cost} among "
            f"nets of like cost, where ≥ {AGREEMENT} is asked of both"
        )


def length(recipe: Recipe, progress: Mapping[str, Any]) -> tuple[int, int]:
    """How far a training is, and how far it goes: in steps where the recipe is, else in epochs."""
    return (progress["step"], recipe.steps) if recipe.steps else (progress["epoch"], recipe.epochs)


def check(fidelity: str) -> None:
    """Raise SpaceError unless ``fidelity`` is one."""
    if fidelity not in FIDELITIES:
        raise SpaceError(known("fidelity", fidelity, FIDELITIES))
