"""What a screening says: what a space holds, what of it fits a budget, and where to begin.

No accuracy is known before training, so the fronts are of two plain kinds. The *least* nets of two costs: no other is
as low in both and lower in one. The *most* of one cost for another, among the nets that fit: what a multiply-add or a
byte can buy. And the *largest that fit*: no other within the budget has more parameters and more MACs, the two usual
stand-ins for what a net can learn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onenet_bench.budget import Budget
from onenet_bench.pareto import non_dominated
from onenet_bench.record import COSTS
from onenet_bench.report.figures import log_ticks
from onenet_bench.report.tables import lower
from onenet_bench.screen import SCREENED, Screening

COMPARED = ("parameters", "macs", "activation_bytes", "peak_inference_mib")
"""Costs that are held against each other, beside those of the budget. The paper's conventions are no such costs."""
PAIRS = (("macs", "parameters"), ("peak_inference_mib", "parameters"), ("peak_inference_mib", "macs"))
"""(x, y) of the charts that are shown first."""
SIZE = ("parameters", "macs")
"""What a largest net has most of."""
BUCKETED = ("macs", "parameters", "peak_inference_mib")
"""Costs by which the nets are put into buckets, beside those of the budget."""
BINS = 48
"""Intervals of a cost, in histograms and along the sides of density maps."""
DRAWN = 60
"""Points of a front that are drawn and listed; its line has all of them."""
LISTED = 10
"""Largest nets that are listed."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """One ceiling of the budget: distinct nets within it, whatever the others say; how many more would fit without
    it; and the least of its cost in the space."""

    cost: str
    at_most: float
    within: int
    more_without: int
    least: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option of a choice: its share of the combinations that make a net and of those that fit (None where none
    does), and the share of its own combinations that fit."""

    option: Any
    share: float
    share_of_fitting: float | None
    fits: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A choice. ``moved`` is how far the budget moves its options' shares: half the sum of the differences, 0 to 1."""

    name: str
    moved: float
    options: tuple[Option, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Distinct nets by one cost. ``nets`` and ``fitting`` have a number for each interval between ``edges``, which
    are evenly spaced as logarithms."""

    cost: str
    edges: tuple[float, ...]
    nets: tuple[int, ...]
    fitting: tuple[int, ...]
    limit: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Least, median and most of a cost."""

    least: float
    median: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Distinct nets whose cost is over ``above`` and at most ``at_most`` (None = no bound), and what other costs they
    reach."""

    above: float | None
    at_most: float | None
    nets: int
    fitting: int
    others: Mapping[str, Range]


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticFront:
    """A front of two costs, cheapest x first. ``nets`` are indices of the screening, one for each pair of costs, and
    ``alike`` says how many distinct nets have this very pair."""

    kind: str  # least, most or largest
    x: str
    y: str
    nets: tuple[int, ...]
    alike: tuple[int, ...]

    @property
    def title(self) -> str:
        """The front in words."""
        x, y = title(self.x), title(self.y)
        words = {
            "least": f"least {x} and {y}",
            "most": f"most {y} for its {x}",
            "largest": "largest that fit",
        }
        return words[self.kind]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two costs against each other: distinct nets per cell, ``nets[y, x]``, whose sides are the histograms' intervals,
    and both fronts."""

    x: str
    y: str
    nets: npt.NDArray[np.int64]
    fitting: npt.NDArray[np.int64]
    least: StaticFront
    most: StaticFront


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """A net of a front."""

    label: str
    digest: str
    choices: Mapping[str, Any]
    costs: Mapping[str, float]
    fits: bool


@dataclass(frozen=True, kw_only=True)
class ScreeningFacts:
    """Everything about a screening. Nets are distinct ones; ``fitting_share`` is that of the combinations that make
    a net, which a sample estimates within ``margin`` (95 %; 0 where all were counted)."""

    space: str
    summary: str
    resolution: int
    classes: int
    in_channels: int
    combinations: int
    counted: int
    sampled: bool
    impossible: int
    impossible_because: str
    distinct: int
    all_used: bool  # every net uses all of its parameters
    fitting: int
    fitting_share: float
    margin: float
    limits: tuple[Limit, ...]
    choices: tuple[Choice, ...]
    histograms: tuple[Histogram, ...]
    buckets: Mapping[str, tuple[Bucket, ...]]
    pairs: tuple[Pair, ...]
    largest: StaticFront
    nets: Mapping[int, Net]

    @property
    def fronts(self) -> tuple[StaticFront, ...]:
        """The largest nets, and both fronts of PAIRS."""
        pairs = [next(pair for pair in self.pairs if (pair.x, pair.y) == chosen) for chosen in PAIRS]
        return (self.largest, *(pair.most for pair in pairs), *(pair.least for pair in pairs))


def screening_facts(screening: Screening, budget: Sequence[Budget]) -> ScreeningFacts:
    """What ``screening`` says under ``budget``.

    Raises SpaceError where no combination makes a net, and for a budget on a cost that is not screened.
    """
    fits = screening.fits(budget)
    screening.check()
    possible = int(screening.possible.sum())
    counted = _Counted.of(screening, fits)
    limits = {b.cost: min(other.limit for other in budget if other.cost == b.cost) for b in budget}
    share = float(fits.sum() / possible)
    pairs = tuple(_pair(counted, x, y) for x, y in itertools.permutations(dict.fromkeys([*COMPARED, *limits]), 2))
    largest = counted.front("largest", SIZE, (-1, -1), within=True)
    on_fronts = {i for front in (largest, *(f for p in pairs for f in (p.least, p.most))) for i in front.nets}
    return ScreeningFacts(
        space=screening.space.name,
        summary=screening.space.summary,
        resolution=screening.resolution,
        classes=screening.classes,
        in_channels=screening.in_channels,
        combinations=screening.space.size,
        counted=len(screening),
        sampled=screening.sampled,
        impossible=len(screening) - possible,
        impossible_because=screening.refusal,
        distinct=len(counted.nets),
        all_used=bool((counted.costs["parameters"] == counted.costs["parameters_used"]).all()),
        fitting=int(counted.fits.sum()),
        fitting_share=share,
        margin=1.96 * math.sqrt(share * (1 - share) / possible) if screening.sampled else 0.0,
        limits=tuple(_limit(counted, budget, place) for place in range(len(budget))),
        choices=_choices(screening, fits),
        histograms=tuple(_histogram(counted, name, limits.get(name)) for name in SCREENED),
        buckets={name: _buckets(counted, name, limits.get(name)) for name in dict.fromkeys([*BUCKETED, *limits])},
        pairs=pairs,
        largest=largest,
        nets={i: _net(screening, i, bool(fits[i])) for i in sorted(on_fronts)},
    )


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """The distinct nets of a screening: their indices, their costs, whether they fit, and for each cost the edges of
    BINS intervals, even as logarithms, and the interval of every net."""

    nets: Rows
    costs: Mapping[str, npt.NDArray[np.float64]]
    fits: npt.NDArray[np.bool_]
    edges: Mapping[str, npt.NDArray[np.float64]]
    places: Mapping[str, Rows]

    @classmethod
    def of(cls, screening: Screening, fits: npt.NDArray[np.bool_]) -> _Counted:
        nets = np.flatnonzero(screening.distinct)
        values = {name: screening.costs[name][nets] for name in SCREENED}
        edges = {}
        for name, column in values.items():
            low, high = column.min(), column.max()
            edges[name] = (
                np.geomspace(low, high, BINS + 1) if low < high else np.geomspace(low / 1.1, high * 1.1, BINS + 1)
            )
        places = {
            name: np.clip(np.searchsorted(edges[name], values[name], "right") - 1, 0, BINS - 1) for name in SCREENED
        }
        return cls(nets=nets, costs=values, fits=fits[nets], edges=edges, places=places)

    def front(self, kind: str, pair: tuple[str, str], signs: tuple[int, int], within: bool) -> StaticFront:
        """The nets that none beats in both costs, each times its sign; of those ``within`` the budget, or of all."""
        rows = np.flatnonzero(self.fits) if within else np.arange(len(self.nets))
        points = np.stack([sign * self.costs[name][rows] for name, sign in zip(pair, signs, strict=True)], axis=1)
        on = np.flatnonzero(non_dominated(points))
        _, first, alike = np.unique(points[on], axis=0, return_index=True, return_counts=True)
        return StaticFront(
            kind=kind,
            x=pair[0],
            y=pair[1],
            nets=tuple(self.nets[rows[on[first]]].tolist()),
            alike=tuple(alike.tolist()),
        )


def _pair(counted: _Counted, x: str, y: str) -> Pair:
    cells = counted.places[y] * BINS + counted.places[x]
    shape = (BINS, BINS)
    return Pair(
        x=x,
        y=y,
        nets=np.bincount(cells, minlength=BINS * BINS).reshape(shape),
        fitting=np.bincount(cells[counted.fits], minlength=BINS * BINS).reshape(shape),
        least=counted.front("least", (x, y), (1, 1), within=False),
        most=counted.front("most", (x, y), (1, -1), within=True),
    )


def _limit(counted: _Counted, budget: Sequence[Budget], place: int) -> Limit:
    own = budget[place]
    others = np.ones(len(counted.nets), dtype=bool)
    for other in (*budget[:place], *budget[place + 1 :]):
        others &= counted.costs[other.cost] <= other.limit
    return Limit(
        cost=own.cost,
        at_most=own.limit,
        within=int((counted.costs[own.cost] <= own.limit).sum()),
        more_without=int(others.sum() - counted.fits.sum()),
        least=float(counted.costs[own.cost].min()),
    )


def _choices(screening: Screening, fits: npt.NDArray[np.bool_]) -> tuple[Choice, ...]:
    """The choices, those first whose shares the budget moves most. Combinations are counted, and not distinct nets:
    an option that makes no difference to some nets would otherwise lose them to the option that comes first."""
    found = []
    for name, at in screening.options.items():
        options = screening.space.choices[name]
        overall = np.bincount(at[screening.possible], minlength=len(options))
        fitting = np.bincount(at[fits], minlength=len(options))
        shares, of_fitting = overall / overall.sum(), fitting / max(1, fitting.sum())
        found.append(
            Choice(
                name=name,
                moved=float(abs(shares - of_fitting).sum() / 2) if fitting.any() else 0.0,
                options=tuple(
                    Option(
                        option=option,
                        share=float(shares[i]),
                        share_of_fitting=float(of_fitting[i]) if fitting.any() else None,
                        fits=float(fitting[i] / overall[i]) if overall[i] else None,
                    )
                    for i, option in enumerate(options)
                ),
            )
        )
    return tuple(sorted(found, key=lambda choice: -choice.moved))


def _histogram(counted: _Counted, name: str, limit: float | None) -> Histogram:
    places = counted.places[name]
    return Histogram(
        cost=name,
        edges=tuple(counted.edges[name].tolist()),
        nets=tuple(np.bincount(places, minlength=BINS).tolist()),
        fitting=tuple(np.bincount(places[counted.fits], minlength=BINS).tolist()),
        limit=limit,
    )


def _buckets(counted: _Counted, name: str, limit: float | None) -> tuple[Bucket, ...]:
    """Buckets between round numbers and the limit; empty ones are left out."""
    values = counted.costs[name]
    low, high = float(values.min()), float(values.max())
    edges = {
        *(log_ticks(low, high) if low < high else []),
        *([limit] if limit is not None and low <= limit < high else []),
    }
    bounds = [None, *sorted(edges), None]
    places = np.searchsorted(sorted(edges), values, "left")  # (above, at_most]
    buckets = []
    for place, (above, at_most) in enumerate(itertools.pairwise(bounds)):
        rows = np.flatnonzero(places == place)
        if len(rows):
            others = {
                other: counted.costs[other][rows] for other in dict.fromkeys([*BUCKETED, *COMPARED]) if other != name
            }
            buckets.append(
                Bucket(
                    above=above,
                    at_most=at_most,
                    nets=len(rows),
                    fitting=int(counted.fits[rows].sum()),
                    others={
                        other: Range(least=float(v.min()), median=float(np.median(v)), most=float(v.max()))
                        for other, v in others.items()
                    },
                )
            )
    return tuple(buckets)


def _net(screening: Screening, index: int, fits: bool) -> Net:
    choices = screening.choices(index)
    spec = screening.space.spec(choices, classes=screening.classes, in_channels=screening.in_channels)
    return Net(
        label=spec.label(),
        digest=spec.digest(),
        choices=choices,
        costs={name: _whole(values[index]) for name, values in screening.costs.items()},
        fits=fits,
    )


def _whole(value: float) -> float:
    """``value``, as an int where it is a whole number."""
    return int(value) if float(value).is_integer() else float(value)


def title(name: str) -> str:
    """A cost within a sentence."""
    return lower(COSTS[name].title)


def to_dict(facts: ScreeningFacts) -> dict[str, Any]:
    """As JSON-ready values: all but the density maps. Fronts name their nets by index."""
    values = {name: getattr(facts, name) for name in (
        "space", "summary", "resolution", "classes", "in_channels", "combinations", "counted", "sampled", "impossible",
        "impossible_because", "distinct", "all_used", "fitting", "fitting_share", "margin",
    )}  # fmt: skip
    return {
        **values,
        "limits": [asdict(limit) for limit in facts.limits],
        "choices": [asdict(choice) for choice in facts.choices],
        "histograms": [asdict(histogram) for histogram in facts.histograms],
        "buckets": {name: [asdict(bucket) for bucket in buckets] for name, buckets in facts.buckets.items()},
        "fronts": [{**asdict(front), "title": front.title} for front in facts.fronts],
        "nets": {str(i): asdict(facts.nets[i]) for i in sorted({i for front in facts.fronts for i in front.nets})},
    }
