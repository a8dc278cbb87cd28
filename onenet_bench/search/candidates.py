"""What a sampler chooses from: the distinct nets of a space that fit a budget, with their exact costs and as the
surrogate sees them.

All of them up to WHOLE. Of more, a sample that is drawn anew every now and then: small samples that are renewed often
find as good fronts as large ones, in a fraction of the time.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onenet_bench import costs
from onenet_bench.budget import Budget
from onenet_bench.errors import SpecError
from onenet_bench.plan import plan
from onenet_bench.screen import MOST, SCREENED, Screening, screen
from onenet_bench.search.surrogate import Floats, Ints, Many, Singles, usual_lengths
from onenet_bench.space import SearchSpace, is_ordered
from onenet_bench.spec import NetSpec

COMBINATIONS = 1 << 18
"""Combinations at a time of a space that is too large to be enumerated …"""

SCREENED_ANEW = 50
"""… and after how many trials they are drawn anew."""

REDRAWN = 4
"""So often they are drawn before there is said to be no net left."""

WHOLE = 1 << 17
"""So many nets are looked at for every proposal. Of more …"""

DRAWN = 1 << 14
"""… so many are, …"""

DRAWN_ANEW = 10
"""… which are drawn anew after so many trials."""

SHORTER = {"extent": 3.5}
"""How many times as short as usual the length is along which scores are expected to change, of features that they rise
and fall with."""

GROUPS = 1024
"""Groups of candidates whose costs are alike, at most."""

WHOLE_COSTS, WEIGHTS = ("parameters", "macs", "activation_bytes"), (1, 2**21 - 9, 2**42 - 11)
"""Costs that are whole numbers, and by what each is multiplied to tell nets apart."""

Question = tuple[str, int, int, int]
"""A space in JSON, the resolution, the classes and the channels of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """A net as the surrogate sees it, ``features`` (d,), and its ``row`` if it is one of the candidates."""

    row: int | None
    features: Floats


class Groups(NamedTuple):
    """All candidates, group by group: their ``rows``, where in these each group ``starts``, and the ``least`` values
    (groups, columns) of each."""

    rows: Ints
    starts: Ints
    least: Singles


class Encoding:
    """How the surrogate sees the nets of a space, as ``features`` (rows, d) that run from 0 to 1: an ordered choice by
    rank, another one column per option, and logarithms of ``featured`` costs and traits within ``ranges``.

    ``groups`` (d,) numbers the choice, cost or trait behind each column, and ``lengths`` (groups,) says how far scores
    are expected to be alike along each.
    """

    def __init__(self, question: Question, featured: Sequence[str], ranges: Mapping[str, tuple[float, float]]) -> None:
        text, self.resolution, self.classes, self.in_channels = question
        self.space = _space(text)
        self._featured, self._ranges = tuple(featured), ranges
        columns = [1 if is_ordered(options) else len(options) for options in self.space.choices.values()]
        self.groups: Ints = np.repeat(np.arange(len(columns) + len(featured)), columns + [1] * len(featured))
        shorter = [1.0] * len(columns) + [SHORTER.get(name, 1.0) for name in featured]
        self.lengths = usual_lengths(len(shorter)) / shorter
        self._nets: dict[tuple[int, ...], tuple[NetSpec, dict[str, float], Singles] | None] = {}

    def choices(self, options: Sequence[int]) -> dict[str, Any]:
        """Indices of options as a space's choices."""
        return {name: values[at] for (name, values), at in zip(self.space.choices.items(), options, strict=True)}

    def spec(self, options: Sequence[int]) -> NetSpec:
        """The spec that ``options`` make. Raises SpecError where they make none."""
        return self.space.spec(self.choices(options), classes=self.classes, in_channels=self.in_channels)

    def column(self, name: str) -> int:
        """Where a cost or trait stands among the features."""
        return len(self.groups) - len(self._featured) + self._featured.index(name)

    def features(self, options: npt.NDArray[np.int16], known: Mapping[str, Floats]) -> Singles:
        """Of indices of options (rows, choices) and ``known`` costs and traits (rows,)."""
        columns: list[Floats] = []
        for i, values in enumerate(self.space.choices.values()):
            if is_ordered(values):
                columns.append(options[:, i, None] / max(1, len(values) - 1))
            else:  # two different options are 1 apart
                columns.append((options[:, i, None] == np.arange(len(values))) / math.sqrt(2))
        for name, (lowest, highest) in self._ranges.items():
            span = math.log(highest / lowest) or 1.0
            columns.append(np.log(known[name] / lowest)[:, None] / span)
        return np.concatenate(columns, axis=1).astype(np.float32)

    def net(self, options: tuple[int, ...]) -> tuple[NetSpec, dict[str, float], Singles] | None:
        """Spec, costs and features (d,) of the net that ``options`` make; None where they make none."""
        if options not in self._nets:
            try:
                spec = self.spec(options)
                lowered = plan(spec, (self.in_channels, self.resolution, self.resolution))
            except SpecError:
                self._nets[options] = None
                return None
            counted = costs.count_plan(lowered)
            known = {name: float(getattr(counted, name)) for name in SCREENED}
            told = {**known, **costs.traits(lowered.rows, self.resolution).named()}
            features = self.features(
                np.array([options], dtype=np.int16), {name: np.array([value]) for name, value in told.items()}
            )
            self._nets[options] = spec, known, features[0]
        return self._nets[options]


class Candidates:
    """Distinct nets of a space that fit a budget, one row each: all of them, or so many as are drawn.

    ``options`` (rows, choices) are indices into the choices' options, ``costs`` the screened costs, ``features``
    (rows, d) those of their ``encoding``. ``is_part`` says that they are not all of the space's.
    """

    def __init__(self, screening: Screening, rows: Ints, encoding: Encoding, *, is_part: bool) -> None:
        self.encoding, self.is_part = encoding, is_part
        choices = screening.space.choices
        self.options = np.stack([screening.options[name][rows] for name in choices], axis=1)
        self.costs = {name: screening.costs[name][rows] for name in SCREENED}
        traits = {name: values[rows] for name, values in screening.traits.items()}
        self.features = features = encoding.features(self.options, {**self.costs, **traits})
        # By what is learnt of them. Not from self, which would then live on until the garbage is collected.
        self.many: defaultdict[str, Many] = defaultdict(lambda: Many(features))
        sizes = [len(options) for options in choices.values()]
        self._places = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        # By numbers that several may share: in huge spaces by their options, and by whole costs.
        self._by_options = _Numbered([*self.options.T], self._places)
        self._by_costs = _Numbered([self.costs[name] for name in WHOLE_COSTS], WEIGHTS)
        self._nets: dict[tuple[int, ...], Net | None] = {}
        self._grouped: dict[tuple[int, ...], Groups] = {}
        self.fitting: dict[Any, bool] = {}

    def __len__(self) -> int:
        return len(self.options)

    def spec(self, row: int) -> NetSpec:
        """A candidate's."""
        return self.encoding.spec(self.options[row])

    def grouped(self, columns: tuple[int, ...]) -> Groups:
        """Groups that are alike in these ``columns`` of the features: cut into as many quantiles by each."""
        if columns not in self._grouped:
            known, codes = self.features[:, columns], np.zeros(len(self), dtype=np.int64)
            cuts = int(GROUPS ** (1 / max(1, len(columns))) + 1e-9)
            for values in known.T:
                place = np.empty(len(self), dtype=np.int64)
                place[np.argsort(values, kind="stable")] = np.arange(len(self))
                codes = codes * cuts + place * cuts // len(self)
            rows = np.argsort(codes, kind="stable")
            starts = np.flatnonzero(np.diff(codes[rows], prepend=-1))
            self._grouped[columns] = Groups(rows, starts, np.minimum.reduceat(known[rows], starts, axis=0))
        return self._grouped[columns]

    def net(self, options: tuple[int, ...]) -> Net | None:
        """The net that ``options`` make, by whichever combination it is a candidate; None where they make none."""
        if options not in self._nets:
            self._nets[options] = self._find(options)
        return self._nets[options]

    def _find(self, options: tuple[int, ...]) -> Net | None:
        for row in self._by_options.rows(options):
            if (self.options[row] == options).all():
                return self._row(int(row))
        if (made := self.encoding.net(options)) is None:
            return None
        spec, known, features = made
        for row in self._by_costs.rows([int(known[name]) for name in WHOLE_COSTS]):
            if self.spec(int(row)).digest() == spec.digest():
                return self._row(int(row))
        return Net(row=None, features=features.astype(np.float64))

    def _row(self, row: int) -> Net:
        return Net(row=row, features=self.features[row].astype(np.float64))


class _Numbered:
    """Rows by a number: the sum of their ``values`` (columns of whole numbers, each (rows,)) times ``weights``."""

    def __init__(self, values: Sequence[npt.NDArray[Any]], weights: Sequence[int]) -> None:
        self._weights = weights
        numbers = np.zeros(len(values[0]), dtype=np.uint64)
        for column, weight in zip(values, weights, strict=True):
            numbers += column.astype(np.uint64) * np.uint64(weight % 2**64)
        self._order = np.argsort(numbers, kind="stable")
        self._numbers = numbers[self._order]

    def rows(self, values: Sequence[int]) -> Ints:
        """Those that have the number of ``values`` (columns,), in ascending order."""
        number = np.uint64(sum(map(mul, values, self._weights)) % 2**64)
        first, after = self._numbers.searchsorted(number, "left"), self._numbers.searchsorted(number, "right")
        return self._order[first:after]


def candidates(
    question: Question, budget: tuple[Budget, ...], featured: tuple[str, ...], *,
    canonical: bool, seed: int, number: int, further: int = 0,
) -> Candidates:  # fmt: skip
    """The nets that trial ``number`` chooses from, ``featured`` the costs and traits among their features.

    Where not ``canonical``, combinations that make the same net are candidates each. Made once per process, or by the
    ``seed`` and every now and then where there are too many for all; ``further`` draws these anew.
    """
    asked = (question, budget, canonical)
    scaled_by = combinations = 0
    if is_drawn(question):
        scaled_by, combinations = _scaled_by(*asked, seed), _draw(seed, number // SCREENED_ANEW + further)
    nets = _draw(seed, number // DRAWN_ANEW + further) if len(_fitting(*asked, combinations)[1]) > WHOLE else 0
    return _candidates(*asked, featured, scaled_by, combinations, nets)


def is_drawn(question: Question) -> bool:
    """Whether the space is too large to be enumerated."""
    return _space(question[0]).size > MOST


@lru_cache(maxsize=2)
def _scaled_by(question: Question, budget: tuple[Budget, ...], canonical: bool, seed: int) -> int:
    """The draw by which costs are scaled: the first one that has a net."""
    draws = [_draw(seed, number) for number in range(REDRAWN)]
    return next((draw for draw in draws if len(_fitting(question, budget, canonical, draw)[1])), draws[0])


def _draw(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


@lru_cache(maxsize=2)
def _space(text: str) -> SearchSpace:
    return SearchSpace.from_dict(json.loads(text))


@lru_cache(maxsize=2)
def _fitting(question: Question, budget: tuple[Budget, ...], canonical: bool, draw: int) -> tuple[Screening, Ints]:
    """A space as it was screened, or a ``draw`` of it, and the rows of its nets that fit."""
    text, resolution, classes, in_channels = question
    space = _space(text)
    most = MOST if space.size <= MOST else COMBINATIONS
    screening = screen(space, resolution, classes=classes, in_channels=in_channels, most=most, seed=draw)
    return screening, np.flatnonzero(screening.fits(budget) & (screening.distinct | (not canonical)))


@lru_cache(maxsize=2)
def _encoding(
    question: Question, budget: tuple[Budget, ...], canonical: bool, featured: tuple[str, ...], scaled_by: int
) -> Encoding:
    screening, rows = _fitting(question, budget, canonical, scaled_by)
    known = {**screening.costs, **screening.traits}
    values = {name: known[name][rows] for name in featured}
    ranges = {name: (v.min(), v.max()) for name, v in values.items()} if len(rows) else {}
    return Encoding(question, featured, ranges)


@lru_cache(maxsize=2)
def _candidates(
    question: Question, budget: tuple[Budget, ...], canonical: bool, featured: tuple[str, ...], scaled_by: int,
    combinations: int, nets: int,
) -> Candidates:  # fmt: skip
    encoding = _encoding(question, budget, canonical, featured, scaled_by)
    screening, rows = _fitting(question, budget, canonical, combinations)
    if nets:
        rows = np.sort(np.random.default_rng(nets).choice(rows, DRAWN, replace=False))
    return Candidates(screening, rows, encoding, is_part=bool(combinations or nets))
