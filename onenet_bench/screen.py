"""Screening: the exact costs of every candidate of a space at once, before anything is trained.

Costs are sums (and peaks are maxima) over the levels of a net, and a level's part depends on a few of the choices
only. So every level is lowered once for every combination of *its* choices, by the same ``plan`` that builds single
nets, and the candidates gather what belongs to them. The numbers are those of ``costs.count`` to the integer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

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

SCREENED = tuple(name for name in COSTS if name not in ("latency_ms", "peak_training_mib"))
"""The costs that are known for every candidate: all but the one that needs a machine and the one that needs a batch."""

DEFAULTS = {
    name: parameter.default
    for name, parameter in signature(compose).parameters.items()
    if parameter.default is not parameter.empty and name != "in_channels"
}
Ints = npt.NDArray[np.int64]
SUMS = len(costs.Sums._fields)
BATCH = 1 << 17
"""Candidates that are gathered at a time, so that memory stays small."""


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Every combination of a space, or a sample of them, with its costs.

    ``options[name]`` are indices into the choice's options, ``costs[name]`` the costs; both have one entry per
    combination. ``possible`` marks those that make a net at this resolution (the costs of the others are NaN), and
    ``distinct`` the first of each net. ``sampled`` says that the space was too large to enumerate.
    """

    space: SearchSpace
    resolution: int
    options: Mapping[str, npt.NDArray[np.int16]]
    costs: Mapping[str, npt.NDArray[np.float64]]
    possible: npt.NDArray[np.bool_]
    distinct: npt.NDArray[np.bool_]
    sampled: bool

    def __len__(self) -> int:
        return len(self.possible)

    def choices(self, index: int) -> dict[str, Any]:
        """The choices of one combination."""
        return {name: self.space.choices[name][int(at[index])] for name, at in self.options.items()}

    def fits(self, budget: Sequence[Budget]) -> npt.NDArray[np.bool_]:
        """Which combinations make a net within ``budget``. Raises SpaceError for a cost that is not screened."""
        mask = self.possible.copy()
        for limit in budget:
            if limit.cost not in SCREENED:
                raise SpaceError(f"a screening knows {', '.join(SCREENED)}, but the budget asks for {limit.cost}")
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
    (with replacement, by ``seed``) where there are more."""
    sizes = [len(options) for options in space.choices.values()]
    sampled = space.size > most
    number = most if sampled else space.size
    draws = np.random.default_rng(seed)
    options: dict[str, npt.NDArray[np.int16]] = {}
    for place, (name, size) in enumerate(zip(space.choices, sizes, strict=True)):
        if sampled:
            options[name] = draws.integers(size, size=number, dtype=np.int16)
        else:  # the last decision runs fastest, as in SearchSpace.enumerate
            one = np.arange(size, dtype=np.int16).repeat(math.prod(sizes[place + 1 :]))
            options[name] = np.tile(one, number // len(one))
    parts = [
        _Part(
            space, resolution, classes, in_channels, {name: at[start : start + BATCH] for name, at in options.items()}
        )
        for start in range(0, number, BATCH)
    ]
    tables: dict[Any, Any] = {}  # of levels that were lowered already
    numbers = [part.count(tables) for part in parts]
    possible = np.concatenate([n[0] for n in numbers])
    sums = costs.Sums(*(np.concatenate([n[1][i] for n in numbers]) for i in range(SUMS)))
    peaks = np.concatenate([n[2] for n in numbers])
    known = {**sums.costs(), "peak_inference_mib": memory.BYTES * peaks / 2**20}
    names = np.concatenate([n[3] for n in numbers])
    names[~possible] = 0
    first = np.zeros(number, dtype=bool)
    first[np.unique(names, return_index=True)[1]] = True
    return Screening(
        space=space,
        resolution=resolution,
        options=options,
        costs={name: np.where(possible, known[name], np.nan) for name in SCREENED},
        possible=possible,
        distinct=first & possible,
        sampled=sampled,
    )


class _Part:
    """Some combinations of a space, and how ``compose`` would read them."""

    def __init__(
        self, space: SearchSpace, resolution: int, classes: int, in_channels: int, options: Mapping[str, Any]
    ) -> None:
        self.space, self.resolution, self.options = space, resolution, options
        self.classes, self.in_channels = classes, in_channels
        self.number = len(next(iter(options.values())))

    def count(self, tables: dict[Any, Any]) -> tuple[npt.NDArray[np.bool_], list[Ints], Ints, npt.NDArray[np.uint64]]:
        """Which are possible; the sums; the peaks in elements; a number for each net."""
        possible = np.zeros(self.number, dtype=bool)
        sums = [np.zeros(self.number, dtype=np.int64) for _ in range(SUMS)]
        peaks = np.zeros(self.number, dtype=np.int64)
        names = np.zeros(self.number, dtype=np.uint64)
        for depth, rows in self._groups("depth"):
            found = np.ones(len(rows), dtype=bool)
            kept = self._kept(int(depth), rows)
            for level, reach, relevant in self._levels(int(depth)):
                table, codes = self._lowered(level, reach, relevant, rows, tables)
                values = table[codes]  # (rows, SUMS + 3): sums, peak, whether there is a net, its number
                found &= values[:, SUMS + 1] != 0
                for i in range(SUMS):
                    sums[i][rows] += values[:, i]
                peaks[rows] = np.maximum(peaks[rows], values[:, SUMS] + kept[level])
                names[rows] = names[rows] * np.uint64(0x9E3779B97F4A7C15) + values[:, SUMS + 2].view(np.uint64)
            possible[rows] = found
        return possible, sums, peaks, names

    # What depends on what ----------------------------------------------------------------------------

    def _feeds(self, argument: str, *levels: int) -> set[str]:
        """The choices that decide ``argument`` of ``compose``, at ``levels`` (from 0) where it is a list."""
        value = self.space.net.get(argument)
        chosen = [value[i] for i in levels if i < len(value)] if isinstance(value, list) else [value]
        return {v[1:] for v in chosen if isinstance(v, str) and v.startswith("$")}

    def _levels(self, depth: int) -> Iterator[tuple[str, int, list[str]]]:
        """The levels of a net: name, how many levels a net must have to show it, the choices it depends on."""
        decoder_kernel = "decoder_kernel" if self.space.net.get("decoder_kernel") is not None else "spatial_kernel"
        everywhere = set().union(*(
            self._feeds(name) for name in ("width", "growth", "max_channels", "repeat", "heads", "output_stride")
        ))  # fmt: skip

        def on(reach: int, *more: set[str]) -> list[str]:
            return sorted(everywhere.union(self._feeds("scale", *range(reach)), *more))

        yield "stem", 1, on(1, self._feeds("stem"), self._feeds("stem_repeat"), self._feeds("encoder", 0))
        for i in range(1, depth + 1):
            own = [self._feeds(name, i - 1) for name in ("encoder", "spatial_kernel", "skips")]
            yield f"encoder {i}", i, on(i, *own)
        for i in range(depth, 0, -1):
            reach = min(i + 1, depth)
            own = [self._feeds("decoder", i - 2, i - 1, i) if i > 1 else self._feeds("decoder", i - 1, i)]
            own += [self._feeds(name, i - 1) for name in (decoder_kernel, "skips")]
            yield f"decoder {i}", reach, on(reach, *own)
        if depth == 1:
            yield "head", 1, on(1)

    # Lowering ----------------------------------------------------------------------------------------

    def _codes(self, relevant: list[str], rows: Ints) -> Ints:
        """One number for each combination of the ``relevant`` choices."""
        codes = np.zeros(len(rows), dtype=np.int64)
        for name in relevant:
            codes = codes * len(self.space.choices[name]) + self.options[name][rows]
        return codes

    def _arguments(self, relevant: list[str], code: int) -> dict[str, Any]:
        """What ``compose`` gets for a code; choices that are not relevant stand at their first option."""
        choices = {name: options[0] for name, options in self.space.choices.items()}
        for name in reversed(relevant):
            code, at = divmod(code, len(self.space.choices[name]))
            choices[name] = self.space.choices[name][at]
        return {**DEFAULTS, **fill(self.space.net, choices)}

    def _lowered(
        self, level: str, reach: int, relevant: list[str], rows: Ints, tables: dict[Any, Any]
    ) -> tuple[Ints, Ints]:
        """A level's numbers for every combination of its choices that occurs, and which of them each row has."""
        codes = self._codes(relevant, rows)
        size = math.prod(len(self.space.choices[name]) for name in relevant)
        table, done = tables.setdefault(
            (level, reach), (np.zeros((size, SUMS + 3), dtype=np.int64), np.zeros(size, dtype=bool))
        )
        seen = np.zeros(size, dtype=bool)
        seen[codes] = True
        for code in np.flatnonzero(seen & ~done):
            table[code] = self._lower(level, {**self._arguments(relevant, int(code)), "depth": reach})
        done |= seen
        return table, codes

    def _lower(self, level: str, arguments: dict[str, Any]) -> list[int]:
        """Sums, own peak in elements, whether there is such a net, a number for it: one level, one combination."""
        try:
            spec = compose(classes=self.classes, in_channels=self.in_channels, **arguments)
            lowered = plan(spec, (self.in_channels, self.resolution, self.resolution))
        except SpecError:
            return [0] * (SUMS + 3)
        own = [(i, row) for i, row in enumerate(lowered.rows) if row.level == level]
        live = memory.live_elements(lowered)
        peak = max((live[i] - self._held(level, arguments) for i, _ in own), default=0)
        return [*costs.add_up(row for _, row in own), peak, 1, hash(tuple((row.op, *row[4:]) for _, row in own))]

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
        """``_held`` of every level, for all ``rows``."""
        relevant = sorted(set().union(*(
            self._feeds(name, *range(depth)) for name in ("width", "growth", "max_channels", "scale", "skips")
        )))  # fmt: skip
        unique, inverse = np.unique(self._codes(relevant, rows), return_inverse=True)
        arguments = [self._arguments(relevant, code) for code in unique.tolist()]
        return {
            level: np.array([self._held(level, a) for a in arguments], dtype=np.int64)[inverse]
            for level, *_ in self._levels(depth)
        }

    def _groups(self, argument: str) -> Iterator[tuple[Any, Ints]]:
        """The rows by the value of ``argument``, which is one value for a whole net."""
        value = self.space.net[argument]
        if not (isinstance(value, str) and value.startswith("$")):
            yield value, np.arange(self.number)
            return
        for at, option in enumerate(self.space.choices[value[1:]]):
            rows = np.flatnonzero(self.options[value[1:]] == at)
            if len(rows):
                yield option, rows


def _at(value: Any, level: int) -> Any:
    return value[level] if isinstance(value, list) else value
