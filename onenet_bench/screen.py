"""Screening: the exact costs of every candidate of a space at once, before anything is trained.

Costs are sums (and peaks are maxima) over the levels of a net, and a level's part depends on a few of the choices
only. So every level is lowered once for every combination of *its* choices, by the same ``plan`` that builds single
nets, and the candidates gather what belongs to them. The numbers are those of ``costs.count`` to the integer (up to
2^53, which float64 holds exactly).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from onenet_bench import costs, memory
from onenet_bench.budget import Budget
from onenet_bench.errors import SpaceError, SpecError
from onenet_bench.plan import plan
from onenet_bench.record import COSTS
from onenet_bench.space import SearchSpace, compose, fill

MOST = 2_000_000
"""Spaces with more combinations than this are sampled."""

SUMS = len(costs.Sums._fields)
ADDED = SUMS + len(costs.Traits._fields)
SCREENED = tuple(name for name in COSTS if name in costs.Sums(*[0] * SUMS).costs() or name == "peak_inference_mib")
"""The costs that are known for every candidate: sums over rows, and the peak that needs neither machine nor batch."""

DEFAULTS = {
    name: parameter.default
    for name, parameter in signature(compose).parameters.items()
    if parameter.default is not parameter.empty and name != "in_channels"
}
NEUTRAL = {**DEFAULTS, "encoder": "conv2d", "decoder_kernel": 0}
"""What stands in for choices that a level does not depend on: nets of these exist, whatever else is chosen."""

Ints = npt.NDArray[np.int64]
PEAK, FOUND, NAME = range(ADDED, ADDED + 3)
"""What is known of a level: its sums and traits, its own peak in elements, whether there is such a net, and its name's
number."""
MOST_COUNTED = 1 << 56
"""Of a level, so that the sums over all levels, in bytes, fit 64 bits."""
CODES = 1 << 62
"""Combinations that a number of 64 bits can tell apart."""
FEW = 1 << 10
"""Combinations in which a net is looked for first, before all are."""
BATCH = 1 << 17
"""Candidates that are gathered at a time, so that memory stays small."""


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Every combination of a space, or a sample of them, with its costs.

    ``options[name]`` are indices into the choice's options, ``costs[name]`` the costs, ``traits[name]`` those of
    ``costs.TRAITS``; all have one entry per combination. ``possible`` marks those that make a net at this resolution
    (costs and traits of the others are NaN), and
    ``distinct`` the first of each net. ``sampled`` says that the space was too large to enumerate.
    """

    space: SearchSpace
    resolution: int
    classes: int
    in_channels: int
    options: Mapping[str, npt.NDArray[np.int16]]
    costs: Mapping[str, npt.NDArray[np.float64]]
    traits: Mapping[str, npt.NDArray[np.float64]]
    possible: npt.NDArray[np.bool_]
    distinct: npt.NDArray[np.bool_]
    sampled: bool

    def __len__(self) -> int:
        return len(self.possible)

    def choices(self, index: int) -> dict[str, Any]:
        """The choices of one combination."""
        return {name: self.space.choices[name][int(at[index])] for name, at in self.options.items()}

    @property
    def refusal(self) -> str:
        """Why the first of the impossible combinations makes no net; empty where all do."""
        if self.possible.all():
            return ""
        choices = self.choices(int(self.possible.argmin()))
        try:
            spec = self.space.spec(choices, classes=self.classes, in_channels=self.in_channels)
            costs.count(spec, self.resolution)
        except SpecError as error:
            return str(error)
        raise AssertionError(f"{choices} make a net, but were screened as impossible")

    def check(self) -> None:
        """Raise SpaceError where no combination makes a net."""
        if not self.possible.any():
            raise SpaceError(
                f"a space holds at least one net, but none of the {len(self):,} combinations of {self.space.name} that "
                f"were counted makes one; the first: {self.refusal}"
            )

    def fits(self, budget: Sequence[Budget]) -> npt.NDArray[np.bool_]:
        """Which combinations make a net within ``budget``. Raises SpaceError for a cost that is not screened."""
        mask = self.possible.copy()
        for limit in budget:
            if limit.cost not in SCREENED:
                raise SpaceError(
                    f"a screening knows {', '.join(SCREENED)}, but the budget asks for {limit.cost}; leave it out"
                )
            mask &= self.costs[limit.cost] <= limit.limit
        return mask

    def frame(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> pd.DataFrame:
        """Choices and costs of some combinations, as a table."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        table = {
            f"choice.{name}": [self.space.choices[name][i] for i in at[index]] for name, at in self.options.items()
        }
        return pd.DataFrame({**table, **{name: values[index] for name, values in self.costs.items()}}, index=index)


def screen(
    space: SearchSpace, resolution: int, *, classes: int, in_channels: int = 3, most: int = MOST, seed: int = 0
) -> Screening:
    """The costs of all combinations of ``space`` for images of ``resolution`` pixels, or of ``most`` drawn at random
    (with replacement, by ``seed``) where there are more.
    """
    sizes = [len(options) for options in space.choices.values()]
    sampled = space.size > most
    number = most if sampled else space.size
    draws = np.random.default_rng(seed)
    chosen = np.empty((len(sizes), number), dtype=np.int16)
    for place, size in enumerate(sizes):
        if sampled:
            chosen[place] = draws.integers(size, size=number, dtype=np.int16)
        else:  # the last decision runs fastest, as in SearchSpace.enumerate
            one = np.arange(size, dtype=np.int16).repeat(math.prod(sizes[place + 1 :]))
            chosen[place] = np.tile(one, number // len(one))
    memo: _Memo = {}
    parts = [
        _Part(space, resolution, classes, in_channels, chosen[:, start : start + BATCH]).count(memo)
        for start in range(0, number, BATCH)
    ]
    possible = np.concatenate([part.possible for part in parts])
    added = [np.concatenate([part.sums[i] for part in parts]) for i in range(ADDED)]
    peaks = np.concatenate([part.peaks for part in parts])
    known = {**costs.Sums(*added[:SUMS]).costs(), "peak_inference_mib": memory.BYTES * peaks / 2**20}
    first = np.zeros(number, dtype=bool)
    first[np.unique(np.concatenate([part.names for part in parts]), return_index=True)[1]] = True
    return Screening(
        space=space,
        resolution=resolution,
        classes=classes,
        in_channels=in_channels,
        options=dict(zip(space.choices, chosen, strict=True)),
        costs={name: np.where(possible, known[name], np.nan) for name in SCREENED},
        traits={name: np.where(possible, v, np.nan) for name, v in costs.Traits(*added[SUMS:]).named().items()},
        possible=possible,
        distinct=first & possible,
        sampled=sampled,
    )


def check(
    space: SearchSpace, resolution: int, budget: Sequence[Budget], *, classes: int, in_channels: int = 3
) -> None:  # fmt: skip
    """Raise SpaceError where ``space`` has no net, or none within ``budget``, as far as that is known: limits on costs
    that are not screened are passed over, and so is the budget of a space that is too large to enumerate."""
    limits = [limit for limit in budget if limit.cost in SCREENED]
    found = screen(space, resolution, classes=classes, in_channels=in_channels, most=FEW)
    if found.fits(limits if space.size <= MOST else ()).any():
        return
    found = screen(space, resolution, classes=classes, in_channels=in_channels, most=MOST)
    found.check()
    if not found.sampled and not found.fits(limits).any():
        least = dict.fromkeys(f"{limit.cost} {np.nanmin(found.costs[limit.cost]):,.10g}" for limit in limits)
        raise SpaceError(
            f"a space holds at least one net within the budget, but {space.name} has none within "
            f"{' and '.join(map(str, limits))}; allow more than the least there are, {', '.join(least)}"
        )


_Memo = dict[tuple[str, int], dict[tuple[int, ...], list[int]]]
"""By level and by how many levels the net has; then by the options of the choices that matter there."""


class _Counted(NamedTuple):
    """What is known of some combinations; all but ``possible`` is zero where there is no net."""

    possible: npt.NDArray[np.bool_]
    sums: list[Ints]
    peaks: Ints  # elements
    names: npt.NDArray[np.uint64]  # equal for equal nets


class _Part:
    """Some combinations of a space, as indices of options (choices, combinations)."""

    def __init__(
        self, space: SearchSpace, resolution: int, classes: int, in_channels: int, chosen: npt.NDArray[np.int16]
    ) -> None:
        self.space, self.resolution, self.classes, self.in_channels = space, resolution, classes, in_channels
        self.chosen = chosen
        self.places = {name: place for place, name in enumerate(space.choices)}
        self.number = chosen.shape[1]

    def count(self, memo: _Memo) -> _Counted:
        """Count them; ``memo`` holds the levels that were lowered already, and gets those that are lowered here."""
        counted = _Counted(
            np.zeros(self.number, dtype=bool),
            [np.zeros(self.number, dtype=np.int64) for _ in range(ADDED)],
            np.zeros(self.number, dtype=np.int64),
            np.zeros(self.number, dtype=np.uint64),
        )
        for depth, rows in self._by_depth():
            found = np.ones(len(rows), dtype=bool)
            sums = np.zeros((ADDED, len(rows)), dtype=np.int64)
            names = np.zeros(len(rows), dtype=np.uint64)
            peaks: dict[str, Ints] = {}
            for level, reach, relevant in self._levels(depth):
                values = self._lowered(level, reach, relevant, rows, memo)  # (rows, ADDED + 3)
                found &= values[:, FOUND] != 0
                sums += values[:, :ADDED].T
                peaks[level] = values[:, PEAK]
                names += values[:, NAME].view(np.uint64)  # levels of a net are never alike: their order says nothing
            rows = rows[found]
            counted.possible[rows] = True
            counted.names[rows] = names[found]
            for into, values in zip(counted.sums, sums, strict=True):
                into[rows] = values[found]
            for level, kept in self._kept(depth, rows).items():
                counted.peaks[rows] = np.maximum(counted.peaks[rows], peaks[level][found] + kept)
        return counted

    # What depends on what ----------------------------------------------------------------------------

    def _by_depth(self) -> Iterator[tuple[int, Ints]]:
        """The rows by depth; those of nets without any level are left out, as there are none."""
        value = self.space.net["depth"]
        if not (isinstance(value, str) and value.startswith("$")):
            options, at = [value], np.zeros(self.number, dtype=np.int16)
        else:
            options, at = list(self.space.choices[value[1:]]), self.chosen[self.places[value[1:]]]
        for option, depth in enumerate(options):
            rows = np.flatnonzero(at == option)
            if len(rows) and isinstance(depth, int) and depth >= 1:
                yield depth, rows

    def _feeds(self, argument: str, *levels: int) -> set[str]:
        """The choices that decide ``argument`` of ``compose``, at ``levels`` (from 0) where it is a list."""
        value = self.space.net.get(argument)
        chosen = [value[i] for i in levels if i < len(value)] if isinstance(value, list) else [value]
        return {v[1:] for v in chosen if isinstance(v, str) and v.startswith("$")}

    def _levels(self, depth: int) -> Iterator[tuple[str, int, list[str]]]:
        """The levels of a net: name, how many levels a net must have to show it, the choices it depends on."""
        everywhere = set().union(*(
            self._feeds(name) for name in ("width", "growth", "max_channels", "repeat", "heads", "output_stride")
        ))  # fmt: skip

        def on(reach: int, *more: set[str]) -> list[str]:
            return sorted(everywhere.union(self._feeds("scale", *range(reach)), *more))

        yield "stem", 1, on(1, self._feeds("stem"), self._feeds("stem_repeat"), self._feeds("encoder", 0))
        for i in range(1, depth + 1):
            own = [self._feeds(name, i - 1) for name in ("encoder", "spatial_kernel", "skips")]
            yield f"encoder {i}", i, on(i, *own)
        kernels = ["decoder_kernel"] if self.space.net.get("decoder_kernel") is not None else ["spatial_kernel"]
        if any(None in self.space.choices[name] for name in self._feeds("decoder_kernel")):
            kernels.append("spatial_kernel")  # which None falls back on
        for i in range(depth, 0, -1):
            reach = min(i + 1, depth)
            own = [self._feeds("decoder", i - 2, i - 1, i) if i > 1 else self._feeds("decoder", i - 1, i)]
            own += [self._feeds(name, i - 1) for name in (*kernels, "skips")]
            if i == depth:  # which takes in the norm that the deepest encoder level ends in
                own.append(self._feeds("encoder", i - 1))
            yield f"decoder {i}", reach, on(reach, *own)
        if depth == 1:
            yield "head", 1, on(1, self._feeds("encoder", 0))

    # Lowering ----------------------------------------------------------------------------------------

    def _groups(self, relevant: list[str], rows: Ints) -> tuple[Ints, Ints]:
        """The group of each row, rows being alike where they agree in the ``relevant`` choices, and the first row of
        each group."""
        codes, size = np.zeros(len(rows), dtype=np.int64), 1
        for name in relevant:
            options = len(self.space.choices[name])
            if size * options > CODES:
                codes, size = pd.factorize(codes)[0], len(rows)
            codes, size = codes * options + self.chosen[self.places[name]][rows], size * options
        groups, unique = pd.factorize(codes)
        first = np.empty(len(unique), dtype=np.int64)
        first[groups[::-1]] = rows[::-1]  # the last one to be written is the first row
        return groups, first

    def _arguments(self, relevant: Collection[str], row: int) -> dict[str, Any]:
        """What ``compose`` gets for a row, with NEUTRAL in the place of every choice that is not ``relevant``."""
        own = {name: self.space.choices[name][self.chosen[self.places[name], row]] for name in relevant}
        filled = {
            argument: fill(value, {**dict.fromkeys(self.space.choices, NEUTRAL.get(argument)), **own})
            for argument, value in self.space.net.items()
        }
        return {**DEFAULTS, **filled}

    def _lowered(self, level: str, reach: int, relevant: list[str], rows: Ints, memo: _Memo) -> Ints:
        """What is known of a level, for every row (rows, ADDED + 3)."""
        groups, first = self._groups(relevant, rows)
        known = memo.setdefault((level, reach), {})
        table = []
        options = self.chosen[[self.places[name] for name in relevant]][:, first].T.tolist()
        for row, key in zip(first.tolist(), map(tuple, options), strict=True):
            if key not in known:
                known[key] = self._lower(level, {**self._arguments(relevant, row), "depth": reach})
            table.append(known[key])
        return np.array(table, dtype=np.int64).reshape(-1, ADDED + 3)[groups]

    def _lower(self, level: str, arguments: dict[str, Any]) -> list[int]:
        """What is known of one level for one combination of its choices."""
        try:
            spec = compose(classes=self.classes, in_channels=self.in_channels, **arguments)
            lowered = plan(spec, (self.in_channels, self.resolution, self.resolution))
        except SpecError:
            return [0] * (ADDED + 3)
        own = [(i, row) for i, row in enumerate(lowered.rows) if row.level == level]
        rows = [row for _, row in own]
        live = memory.live_elements(lowered)
        peak = max((live[i] - self._held(level, arguments) for i, _ in own), default=0)
        # a net is its rows and its choice of heads, which leaves no row where there is a single decoder level
        name = hash((spec.heads, *((row.op, *row[4:]) for row in rows)))
        counted = [*costs.add_up(rows), *costs.traits(rows, self.resolution), peak]
        if max(counted) >= MOST_COUNTED:
            raise SpaceError(
                f"costs of a net fit 64 bits, but {self.space.name} has larger ones at {self.resolution} pixels and "
                f"{self.classes} classes; offer smaller nets, or take fewer pixels or classes"
            )
        return [*counted, 1, name]

    def _held(self, level: str, arguments: Mapping[str, Any]) -> int:
        """Elements of the skips that wait during a level for decoder levels above it."""
        here = int(level.split()[1]) if " " in level else 0
        elements, side = 0, self.resolution
        for j in range(here - 1):  # features 0 (the stem's, never skipped to) … here - 2
            if j and _at(arguments["skips"], j):
                elements += (
                    min(arguments["max_channels"], round(arguments["width"] * arguments["growth"] ** j)) * side**2
                )
            side //= _at(arguments["scale"], j)
        return elements

    def _kept(self, depth: int, rows: Ints) -> dict[str, Ints]:
        """``_held`` of every level, for ``rows`` that are nets."""
        relevant = sorted(set().union(*(
            self._feeds(name, *range(depth)) for name in ("width", "growth", "max_channels", "scale", "skips")
        )))  # fmt: skip
        groups, first = self._groups(relevant, rows)
        arguments = [self._arguments(relevant, row) for row in first.tolist()]
        return {
            level: np.array([self._held(level, a) for a in arguments], dtype=np.int64)[groups]
            for level, *_ in self._levels(depth)
        }


def _at(value: Any, level: int) -> Any:
    return value[level] if isinstance(value, list) else value
