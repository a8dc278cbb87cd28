"""Latency predicted from the plan: no machine is needed once the model is fitted to one.

A net's latency is taken as a sum over the rows of the plan that is run (``models.deploy.deployed_plan`` for the
deployed form): for each kind of row a price per multiply-add, per byte that is read or written, and per row, all of
them at least 0; and one price per byte of weights and per run. Prices are fitted to ``probes``, nets of one level each
that are measured once per place and conditions, so that layers are timed where they stand: runtimes fuse neighbours
and choose layouts for several layers at once. Errors count in proportion to the latency.

How far it is off is judged on whole nets that were measured under the same conditions, at whatever resolution, none of
which the model has seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onenet_bench.errors import MeasureError, SpecError
from onenet_bench.measure import latency
from onenet_bench.measure.latency import Conditions, Latency
from onenet_bench.models.deploy import LANES, deployed_plan
from onenet_bench.plan import Plan, Row, plan
from onenet_bench.spec import NetSpec, StageSpec, StemSpec

Floats = NDArray[np.float64]

KINDS = {
    "pointwise": "convolutions of kernel = stride",
    "conv": "convolutions of a kernel larger than the stride",
    "depthwise": "convolutions of one channel each",
    "spatial": "spatial convolutions along the flattened axis, and what mirrors their ends",
    "up": "transposed convolutions",
    "maxpool": "max pooling",
    "shuffle": "pixel-shuffle and -unshuffle",
    "join": "concatenation and sums",
    "plain": "ReLU, norms and normalisation on their own",
}
"""What has a price of its own."""

_KIND_OF = {
    "spatial": "spatial", "edges": "spatial", "beyond": "spatial", "up": "up", "maxpool": "maxpool",
    "shuffle": "shuffle", "unshuffle": "shuffle", "concat": "join", "add": "join", "relu": "plain",
    "norm": "plain", "normalise": "plain",
}  # fmt: skip

PROBES, SEED = 32, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Predicted against measured, on ``nets`` that the model has not seen: relative errors, and whether it puts nets
    in the right order (Spearman's rank correlation)."""

    nets: int
    median_error: float
    p90_error: float
    rank_correlation: float


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Prices in ms, fitted for ``conditions``; their resolution plays no part."""

    conditions: Conditions
    prices: Floats

    def predict_ms(self, spec: NetSpec, resolution: int) -> float:
        """The latency of ``spec``. Raises SpecError where the resolution does not fit the net."""
        return float(amounts(spec, replace(self.conditions, resolution=resolution)) @ self.prices)

    def judge(self, measured: Sequence[Latency]) -> Judgement | None:
        """Against nets that were measured; None with fewer than two of them."""
        if len(measured) < 2:
            return None
        predicted = np.array([self.predict_ms(one.spec, one.conditions.resolution) for one in measured])
        return judgement(predicted, np.array([one.median_ms for one in measured]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: microseconds per million multiply-adds, per MB and per row."""
        kinds = self.prices[:-2].reshape(-1, 3) * 1e3
        return {
            "conditions": asdict(self.conditions),
            "prices_us": {
                kind: dict(zip(("per_million_macs", "per_mb", "per_row"), row, strict=True))
                for kind, row in zip(KINDS, kinds.tolist(), strict=True)
            },
            "us_per_mb_of_weights": 1e3 * float(self.prices[-2]),
            "us_per_run": 1e3 * float(self.prices[-1]),
        }


def fit(conditions: Conditions) -> Predictor:
    """The predictor for ``conditions``; measures the probes that were not measured here yet.

    Raises MeasureError where they cannot be.
    """
    wanted = probes(conditions)
    known = _known(conditions)
    missing = [probe for probe in wanted if _name(*probe) not in known]
    if missing:
        latency.measure_each(missing)
        known = _known(conditions)
    found = [known[_name(*probe)] for probe in wanted if _name(*probe) in known]
    if len(found) < len(wanted):
        raise MeasureError("the predictor is fitted to measurements that are kept, but they could not be; set "
                           "ONENET_BENCH_CACHE to a folder that can be written")  # fmt: skip
    return Predictor(conditions=conditions, prices=_prices(found))


def fitted(conditions: Conditions) -> Predictor | None:
    """The same without measuring; None where a probe is missing."""
    known = _known(conditions)
    found = [known.get(_name(*probe)) for probe in probes(conditions)]
    return None if None in found else Predictor(conditions=conditions, prices=_prices([one for one in found if one]))


def judges(conditions: Conditions) -> list[Latency]:
    """The nets that were measured here under ``conditions`` at any resolution, without the probes."""
    known = _known(conditions)
    for probe in probes(conditions):
        known.pop(_name(*probe), None)
    return list(known.values())


def _known(conditions: Conditions) -> dict[tuple[str, int], Latency]:
    """What was measured, by net and resolution; the last where it was more than once."""
    found = latency.cached(conditions)
    return {_name(one.spec, one.conditions): one for one in found if len(one.wall_ms) >= latency.REPEATS}


def _name(spec: NetSpec, conditions: Conditions) -> tuple[str, int]:
    return spec.digest(), conditions.resolution


def _prices(measured: Sequence[Latency]) -> Floats:
    rows = np.stack([amounts(one.spec, one.conditions) for one in measured])
    times = np.array([one.median_ms for one in measured])
    return non_negative(rows / times[:, None], np.ones(len(times)))


# What is counted -----------------------------------------------------------------------------------------


def amounts(spec: NetSpec, conditions: Conditions) -> Floats:
    """What a net has of everything that has a price: per kind 10^6 multiply-adds, MB and rows; MB of weights; 1."""
    shape = (spec.in_channels, conditions.resolution, conditions.resolution)
    lowered: Plan = deployed_plan(spec, shape) if conditions.form == "deployed" else plan(spec, shape)
    rows = [row for row in lowered.rows if row.runs]
    kinds = list(KINDS)
    found = np.zeros((len(kinds), 3))
    for row in rows:
        moved = row.c_in * row.h_in * row.w_in + row.elements
        found[kinds.index(kind(row))] += conditions.batch * 1e-6 * _macs(row), conditions.batch * 4e-6 * moved, 1
    return np.append(found.ravel(), [4e-6 * sum(row.parameters for row in rows), 1.0])


def kind(row: Row) -> str:
    """The key of ``KINDS`` for a row."""
    if row.op != "conv":
        return _KIND_OF[row.op]
    if row.groups == row.c_in > 1:
        return "depthwise"
    return "conv" if row.kernel > row.stride else "pointwise"


def _macs(row: Row) -> float:
    """Multiply-adds with channels padded to ``LANES``: what is padded counts as done."""
    if row.op not in ("conv", "up"):
        return row.macs
    taken_in, given = (-(-channels // LANES) * LANES / channels for channels in (row.c_in // row.groups, row.c_out))
    return row.macs * given * (taken_in if row.op == "conv" and kind(row) != "depthwise" else 1)


# Probes --------------------------------------------------------------------------------------------------


def probes(conditions: Conditions) -> list[tuple[NetSpec, Conditions]]:
    """Nets of one level each, of all block kinds, and the conditions for them: the same ones always."""
    draw = random.Random(SEED)
    kinds = ("onenet1d", "conv2d", "separable2d", "bottleneck2d")
    channels = (4, 8, 16, 24, 32, 48, 64, 96, 128)

    def stage(kind: str, scale: int, skip: bool) -> StageSpec:
        return StageSpec(
            kind=kind, channels=draw.choice(channels), scale=scale, repeat=draw.choice((1, 2)), skip=skip,
            spatial_kernel=draw.choice((0, 3, 9) if kind == "onenet1d" else (3, 3, 5)),
        )  # fmt: skip

    found: list[tuple[NetSpec, Conditions]] = []
    while len(found) < PROBES:
        scale = draw.choice((2, 2, 3, 4))
        spec = NetSpec(
            classes=draw.choice((2, 4, 8)),
            stem=StemSpec(kind=draw.choice(("onenet1d", "conv2d")), channels=draw.choice(channels),
                          repeat=draw.choice((1, 2))),
            encoder=(stage(kinds[len(found) % 4], scale, True),),
            decoder=(stage(kinds[len(found) // 4 % 4], scale, draw.random() < 0.5),),
        )  # fmt: skip
        under = replace(conditions, resolution=12 * draw.choice((2, 4, 8, 12)))
        try:
            plan(spec, (3, under.resolution, under.resolution))
        except SpecError:
            continue  # a pixel-shuffle of channels that do not divide
        found.append((spec, under))
    return found


# Arithmetic ----------------------------------------------------------------------------------------------


def judgement(predicted: Floats, measured: Floats) -> Judgement:
    """How far ``predicted`` (n,) is from ``measured`` (n,)."""
    errors = np.abs(predicted / measured - 1)
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (predicted, measured)]).astype(np.float64)
    return Judgement(
        nets=len(errors),
        median_error=float(np.median(errors)),
        p90_error=float(np.percentile(errors, 90)),
        rank_correlation=float(np.asarray(np.corrcoef(ranks))[0, 1]),
    )


def non_negative(a: Floats, b: Floats) -> Floats:
    """The x >= 0 (k,) with the least |a x - b|, for ``a`` (n, k): Lawson & Hanson, 1974, chapter 23."""
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1
    a = a / scale
    x = np.zeros(a.shape[1])
    free = np.zeros(len(x), dtype=bool)
    for _ in range(10 * len(x)):
        slope = np.where(free, -np.inf, a.T @ (b - a @ x))
        if slope.max() <= 1e-10 * np.linalg.norm(b):
            break
        free[slope.argmax()] = True
        while True:
            best = np.zeros(len(x))
            best[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            below = free & (best <= 0)
            if not below.any():
                break
            x += (x[below] / (x[below] - best[below])).min() * (best - x)
            free &= x > 1e-14
            x[~free] = 0
        x = best
    return np.asarray(x / scale)
