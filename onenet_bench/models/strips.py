"""A deployed net strip by strip: what stays within its own rows of the image is done for one horizontal strip after
another, so that what a convolution makes is still in the cache when the next one reads it.

Convolutions of kernel = stride, ReLUs, norms, shuffles and concatenations need no row beyond a strip's; of a spatial
convolution in banded form only the few channels that reach over into a neighbour do. What needs the others
(convolutions of a larger kernel, flattened spatial ones) is done for the whole, on strips put together again; what is
made so is cut up where strips read it. Either costs a copy. So a net, or a part of it, is done in strips only where
more is read out of the cache than is copied.

The outcome is a Plan again, of the same rows for each strip and two more kinds: ``strip`` copies a strip out of a
tensor, ``stack`` puts the strips of one together. Rows of one name share their weights. The results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onenet_bench.memory import BYTES, IN_PLACE
from onenet_bench.plan import Plan, Row

STRIP = 4 << 20
"""Bytes of the largest tensor's strip, float32, at least: with fewer, weights are read too often, and one image's
tensors stay in a cache as they are."""

STRIPS = 8
"""At most: every one takes its time to export."""

PAYS = 2
"""How many bytes must be read out of the cache for each one that is copied. 1.4 gains nothing (ResNet50-U-Net)."""

MOVES = frozenset({"relu", "add", "norm", "concat", "shuffle", "unshuffle", "up"})
"""Rows that are done for the whole where all of their readers are: they would only be put together later."""


def in_strips(deployed: Plan) -> Plan:
    """``deployed``, executed strip by strip where that pays; itself where it does not.

    The rows of the other strips have their parameters ``again``.
    """
    cut = _worthwhile(deployed)
    if not cut:
        return deployed
    rows = deployed.rows
    height = math.gcd(*(size for index in cut for size in (rows[index].h_in, rows[index].h_out)))
    most = BYTES * max(rows[index].elements for index in cut) // STRIP
    strips = max((k for k in range(1, min(STRIPS, most) + 1) if height % k == 0), default=1)
    return _Cutting(deployed, cut, strips).plan() if strips > 1 else deployed


def is_local(row: Row) -> bool:
    """Whether a strip of what a row makes needs no more than the same strip of what it reads."""
    if row.op in ("conv", "maxpool"):
        return row.kernel <= row.stride
    return row.op not in ("spatial", "beyond")


def _worthwhile(deployed: Plan) -> set[int]:
    """The rows that are done in strips: groups of neighbours that read more from each other than is copied for them,
    and whose largest tensor is worth two strips."""
    rows = deployed.rows
    readers: dict[int, list[int]] = {index: [] for index in range(-1, len(rows))}
    for index, row in enumerate(rows):
        for source in row.inputs:
            readers[source].append(index)
    cut: set[int] = set()
    for index in range(len(rows) - 1, -1, -1):
        pointless = rows[index].op in MOVES and readers[index] and cut.isdisjoint(readers[index])
        if is_local(rows[index]) and not pointless:
            cut.add(index)
    worth = set()
    for group in _groups(rows, cut):
        saved = copied = 0
        read = group | {source for index in group for source in rows[index].inputs}
        for source in read:
            within = not group.isdisjoint(readers[source])
            size = rows[source].elements if source >= 0 else math.prod(deployed.shape)
            if (source in group) != within or not group.issuperset(readers[source]):
                copied += size
            elif rows[source].op not in IN_PLACE:
                saved += size
        if saved > PAYS * copied and BYTES * max(rows[index].elements for index in group) >= 2 * STRIP:
            worth |= group
    return worth


def _groups(rows: Sequence[Row], cut: set[int]) -> list[set[int]]:
    """The rows of ``cut`` in groups of those that read each other."""
    group_of: dict[int, set[int]] = {}
    for index in sorted(cut):
        own = {index}
        for source in rows[index].inputs:
            own |= group_of.get(source, set())
        for member in own:
            group_of[member] = own
    return list({id(group): group for group in group_of.values()}.values())


class _Cutting:
    """The rows of a plan with those of ``cut`` once per strip, in the order of execution: round by round what is done
    for the whole, then strip after strip all that needs nothing whole that is still to come."""

    def __init__(self, deployed: Plan, cut: set[int], strips: int) -> None:
        self.deployed, self.cut, self.strips = deployed, cut, strips
        self.rows: list[Row] = []
        self.whole: dict[int, int] = {-1: -1}  # row → the new row that makes all of its tensor
        self.part: dict[tuple[int, int], int] = {}  # row and strip → the new row that makes this strip of its tensor

    def plan(self) -> Plan:
        rounds = self._rounds()
        for number in range(max(rounds.values()) + 1):
            now = [index for index, found in rounds.items() if found == number]
            for index in now:
                if index not in self.cut:
                    row = self.deployed.rows[index]
                    self.whole[index] = self._add(row._replace(inputs=tuple(map(self._stacked, row.inputs))))
            for strip in range(self.strips):
                for index in now:
                    if index in self.cut:
                        self._add_part(index, strip)
        output = self._stacked(self.deployed.output)
        return replace(self.deployed, rows=tuple(self.rows), output=output)

    def _rounds(self) -> Mapping[int, int]:
        """In which round a row is done: what needs a whole tensor, after the round of its strips."""
        rounds: dict[int, int] = {-1: 0}
        for index, row in enumerate(self.deployed.rows):
            rounds[index] = max(
                rounds[source] + (source in self.cut and index not in self.cut) for source in row.inputs
            )
        del rounds[-1]
        return rounds

    def _add(self, row: Row) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def _add_part(self, index: int, strip: int) -> None:
        row = self.deployed.rows[index]
        inputs = tuple(self._strip(source, strip) for source in row.inputs)
        self.part[index, strip] = self._add(
            row._replace(
                inputs=inputs, h_in=row.h_in // self.strips, h_out=row.h_out // self.strips,
                macs=row.macs // self.strips, again=strip > 0,
            )
        )  # fmt: skip

    def _strip(self, source: int, strip: int) -> int:
        """The new row that makes a strip of a row's tensor."""
        if (source, strip) not in self.part:
            like = self._moved(source, "strip", (self.whole[source],), self.strips)
            self.part[source, strip] = self._add(like._replace(h_out=like.h_in // self.strips, kernel=strip))
        return self.part[source, strip]

    def _stacked(self, source: int) -> int:
        """The new row that makes all of a row's tensor."""
        if source not in self.whole:
            parts = tuple(self.part[source, strip] for strip in range(self.strips))
            like = self._moved(source, "stack", parts, 1)
            self.whole[source] = self._add(like._replace(h_in=like.h_in // self.strips))
        return self.whole[source]

    def _moved(self, source: int, op: str, inputs: tuple[int, ...], groups: int) -> Row:
        """A row that copies of the tensor of ``source`` all of it, so far."""
        if source < 0:
            (name, level), (c, h, w) = ("image", "stem"), self.deployed.shape
        else:
            row = self.deployed.rows[source]
            (name, level), (c, h, w) = (row.name, row.level), (row.c_out, row.h_out, row.w_out)
        return Row(
            name=f"{name}.{op}", op=op, level=level, inputs=inputs, c_in=c, h_in=h, w_in=w, c_out=c, h_out=h, w_out=w,
            kernel=0, stride=1, groups=groups, bias=False, parameters=0, macs=0, runs=True,
        )  # fmt: skip
