"""Budgets: what a net may cost, and the two files that hold nets to it.

``budgets.toml`` is written by people: nets, inputs and ceilings. ``budgets.lock`` beside it is written by
``onenet-bench check --update``: the exact counts of every net, layer by layer. They are two files, as with Cargo and
uv, so that no machine ever rewrites a person's comments, and a diff shows by its file name whether a promise was
changed or a count.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from onenet_bench.errors import BudgetError, known
from onenet_bench.files import read_toml, whole
from onenet_bench.record import COSTS, Costs
from onenet_bench.task import MOST_SIDE

_FORM = re.compile(
    r"\s*(?P<cost>[a-z_0-9]+)\s*<=\s*(?P<limit>[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE](?P<power>[+-]?[0-9]{1,9}))?"
    r"\s*(?P<suffix>[kMG])?\s*"
)
_POWER = {None: 0, "k": 3, "M": 6, "G": 9}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A ceiling on one cost, e.g. ``parameters <= 2e6`` (k, M and G may follow the number)."""

    cost: str
    limit: float

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise BudgetError(known("cost", self.cost, COSTS))
        if not math.isfinite(self.limit):
            raise BudgetError(f"a ceiling is a finite number, but that on {self.cost} is {self.limit}; lower it")

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """Read ``COST <= NUMBER``. Raises BudgetError, for what is no text too."""
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise BudgetError(
                "a budget reads COST <= NUMBER, such as 'parameters <= 2e6' or 'macs <= 20M' (k, M or G), but got "
                f"{text!r}"
            )
        power = int(match["power"] or 0) + _POWER[match["suffix"]]  # of ten; a product would be rounded twice
        return cls(cost=match["cost"], limit=float(f"{match['limit']}e{power}"))

    def __str__(self) -> str:
        short = f"{self.limit:g}"
        return f"{self.cost} <= {short if float(short) == self.limit else repr(self.limit)}"


def excess(costs: Costs, budgets: Sequence[Budget]) -> str:
    """Which budgets ``costs`` exceeds, in words; empty where none. A cost that is not known exceeds nothing."""
    over = []
    for budget in budgets:
        value = getattr(costs, budget.cost)
        if value is not None and value > budget.limit:
            numbers = [f"{n:,.0f}" if n == int(n) else f"{n:,.6g}" for n in (value, budget.limit)]
            over.append(f"{budget.cost} is {numbers[0]}, over {numbers[1]}")
    return "; ".join(over)


# budgets.toml --------------------------------------------------------------------------------------------

KEYS = {
    "net": "a net of the zoo, the path of a spec.toml, or package.module:function",
    "resolution": "of a net of the zoo or a spec.toml: side of the square input, or [height, width]",
    "input": "of a module: the shape of one input without the batch, e.g. [3, 256, 256]",
    "args": "of a module: keyword arguments of the function",
    "budget": 'ceilings, e.g. ["parameters <= 2M", "peak_inference_mib <= 64"]',
}
"""What a ``[[net]]`` may say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetBudget:
    """One ``[[net]]`` of budgets.toml. Its counts are always locked; ``ceilings`` are held on top.

    ``size`` is (height, width) for a spec and the whole shape of one input, without the batch, for a module.
    """

    net: str
    size: tuple[int, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    ceilings: tuple[Budget, ...] = ()

    @property
    def is_module(self) -> bool:
        """Whether the net is a function to import, and not a spec."""
        return _is_module(self.net)

    @property
    def title(self) -> str:
        """The question in one line, and the entry's key in the lock: ``onenet_e_4 @ 256x256``."""
        args = ", ".join(f"{name}={value!r}" for name, value in sorted(self.args.items()))
        return f"{self.net}{f'({args})' if args else ''} @ {'x'.join(map(str, self.size))}"


def read_budgets(path: Path) -> tuple[NetBudget, ...]:
    """The entries of a budgets file. Raises BudgetError that names the file and the entry."""
    if path.suffix != ".toml":
        raise BudgetError(f"a budgets file ends in .toml, so that its lock can stand beside it, but got {path}")
    values = read_toml(path, "a budgets file", BudgetError, "write one with a [[net]] per net")
    if unknown := sorted(set(values) - {"net"}):
        raise BudgetError(f"{path} holds [[net]] tables and nothing else, but got {unknown[0]!r}; move it into one")
    tables = values.get("net")
    if not isinstance(tables, list) or not tables:
        raise BudgetError(f"{path} must hold at least one [[net]], but holds none; add one with net and resolution")
    entries: dict[str, NetBudget] = {}
    for number, table in enumerate(tables, start=1):
        try:
            entry = _entry(table)
            if entry.title in entries:
                raise BudgetError(f"every net stands once, but {entry.title} stands twice; join the two budgets")
        except BudgetError as error:
            raise BudgetError(f"{path}, net {number}: {error}") from error
        entries[entry.title] = entry
    return tuple(entries.values())


def _entry(table: Any) -> NetBudget:
    if not isinstance(table, Mapping):
        raise BudgetError(f"a net is a [[net]] table, but got {table!r}")
    if unknown := sorted(set(table) - set(KEYS)):
        raise BudgetError(known("key", unknown[0], KEYS))
    net = table.get("net")
    if not isinstance(net, str) or not net:
        raise BudgetError(f"'net' is {KEYS['net']}, but got {net!r}")
    module = _is_module(net)
    foreign = [key for key in (("resolution",) if module else ("input", "args")) if key in table]
    if foreign:
        raise BudgetError(f"{foreign[0]!r} is {KEYS[foreign[0]]}, but {net} is none; leave it out")
    args = table.get("args", {})
    if not isinstance(args, Mapping):
        raise BudgetError(f"'args' is a table, such as {{ width = 32 }}, but got {args!r}")
    budget = table.get("budget", [])
    if not isinstance(budget, list) or not all(isinstance(text, str) for text in budget):
        raise BudgetError(f"'budget' is a list of ceilings, such as [\"parameters <= 2M\"], but got {budget!r}")
    size = table.get("input" if module else "resolution")
    if not module and isinstance(size, int):
        size = [size, size]
    whole = isinstance(size, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)
    if not whole or not size or (not module and len(size) != 2):
        key = "input" if module else "resolution"
        raise BudgetError(f"{key!r}, {KEYS[key]}, is in whole numbers of at least 1, but got {table.get(key)!r}")
    if not module and max(size) > MOST_SIDE:
        raise BudgetError(f"a side of 'resolution' has at most {MOST_SIDE} pixels, but got {max(size)}; lower it")
    return NetBudget(net=net, size=tuple(size), args=dict(args), ceilings=tuple(map(Budget.parse, budget)))


def _is_module(net: str) -> bool:
    return ":" in net and not net.endswith(".toml")


# budgets.lock --------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """What one layer weighs: the counts that are locked."""

    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What a net costs now: all costs that can be counted for it, the layers that they are the sums of, and the
    operators that could not be counted."""

    costs: Mapping[str, int | float]
    layers: Mapping[str, Layer]
    uncounted: tuple[str, ...] = ()


def total(layers: Mapping[str, Layer]) -> Layer:
    """The sum of all layers."""
    return Layer(*(sum(layer[i] for layer in layers.values()) for i in range(len(Layer._fields))))


SCHEMA = 1
"""Version of the lock."""

_HEAD = """\
# Written by `onenet-bench check --update`; not meant to be edited.
# Exact counts of one inference of one image, and of every layer: [parameters, macs].
"""
_ANEW = "write it anew with onenet-bench check --update"


def lock_path(budgets: Path) -> Path:
    """Where the lock of a budgets file lies: ``budgets.lock`` beside ``budgets.toml``."""
    return budgets.with_suffix(".lock")


def lock_text(nets: Mapping[str, Mapping[str, Layer]]) -> str:
    """The lock of ``nets`` (title to layers): sorted by title and one line per layer, so that diffs are small."""
    lines = [f"{_HEAD}\nschema = {SCHEMA}"]
    for title, layers in sorted(nets.items()):
        sums = total(layers)
        lines += ["", f"[net.{_quoted(title)}]", *(f"{name} = {getattr(sums, name)}" for name in Layer._fields)]
        lines += ["", f"[net.{_quoted(title)}.layers]"]
        lines += [f"{_quoted(name)} = [{layer.parameters}, {layer.macs}]" for name, layer in layers.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes, and DEL, which JSON lets pass."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_lock(path: Path) -> dict[str, dict[str, Layer]]:
    """Title to layers; empty where there is no lock yet. Raises BudgetError for a lock that was damaged."""
    if not path.exists():
        return {}
    values = read_toml(path, "a lock", BudgetError, _ANEW)
    if values.get("schema") != SCHEMA:
        raise BudgetError(f"a lock of schema {SCHEMA} is needed, but {path} has {values.get('schema')!r}; {_ANEW}")
    nets: dict[str, dict[str, Layer]] = {}
    try:
        for title, net in values.get("net", {}).items():
            nets[title] = {name: Layer(*map(_count, numbers)) for name, numbers in net["layers"].items()}
            sums, said = total(nets[title]), Layer(net["parameters"], net["macs"])
            if sums != said:
                raise ValueError(f"{title} says {tuple(said)}, and its layers add up to {tuple(sums)}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BudgetError(
            f"a lock is written by onenet-bench alone, but {path} was damaged ({error}); {_ANEW}"
        ) from error
    return nets


def _count(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{number!r} is no count")
    return number


def write_lock(path: Path, nets: Mapping[str, Mapping[str, Layer]]) -> None:
    """Put the lock of ``nets`` in the place of ``path``: whole or not at all, whatever happens meanwhile.

    A lock that says the same already is left alone. Raises BudgetError where the folder cannot be written.
    """
    text = lock_text(nets).encode()
    try:
        if path.exists() and path.read_bytes() == text:
            return
        with whole(path, durable=True) as draft:
            draft.write_bytes(text)
    except OSError as error:
        raise BudgetError(
            f"the lock's folder must be writable, but {path} cannot be written ({error.strerror or error}); "
            "what stood there still stands"
        ) from error


# The comparison ------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """How a limit fared. A lock is exact: whatever differs from it is a finding."""

    OK = "ok"
    HEAVIER = "heavier"
    LIGHTER = "lighter"
    MOVED = "moved"  # as heavy as locked, in other layers
    UNLOCKED = "unlocked"  # not in the lock yet
    STALE = "stale"  # in the lock, and no longer in the budgets
    OVER = "over"  # a ceiling


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One layer that weighs something else than in the lock; None = there is no such layer."""

    layer: str
    cost: str
    before: int | None
    after: int | None

    @property
    def difference(self) -> int:
        """By how much the layer grew."""
        return (self.after or 0) - (self.before or 0)

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.layer}: {self.cost} {self.after:,} (new)"
        if self.after is None:
            return f"{self.layer}: {self.cost} {self.before:,} (gone)"
        return f"{self.layer}: {self.cost} {from_to(self.before, self.after)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One limit of one net: a locked count (``exact``) or a ceiling, what the net weighs now, and the verdict.

    ``limit`` is None where the lock does not hold the net, ``value`` is None where only the lock does.
    ``changes`` are the layers that differ from the lock, those that moved the sum most first.
    """

    net: str
    cost: str
    exact: bool
    limit: int | float | None
    value: int | float | None
    verdict: Verdict
    changes: tuple[Change, ...] = ()


def from_to(before: float, after: float) -> str:
    """``800 -> 1,200 (+50 %)``."""
    if not before:
        return f"{number(before)} -> {number(after)}"
    percent = 100 * (after - before) / before
    shown = f"{percent:+,.0f}" if abs(percent) >= 100 else f"{percent:+.3g}"
    return f"{number(before)} -> {number(after)} ({shown} %)"


def number(value: float) -> str:
    """Every digit of it, so that a ceiling can be copied from it."""
    return f"{int(value) if value == int(value) else value:,}"


def compare(
    counted: Mapping[str, Counted],
    ceilings: Mapping[str, Sequence[Budget]],
    locked: Mapping[str, Mapping[str, Layer]],
) -> tuple[Finding, ...]:
    """Hold every net (by title) to its lock and its ceilings. Every ceiling's cost must be among the net's costs."""
    findings: list[Finding] = []
    for title, now in counted.items():
        for cost in Layer._fields:
            findings.append(_against_lock(title, cost, now.layers, locked.get(title)))
        for ceiling in ceilings.get(title, ()):
            value = now.costs[ceiling.cost]
            verdict = Verdict.OVER if value > ceiling.limit else Verdict.OK
            findings.append(
                Finding(net=title, cost=ceiling.cost, exact=False, limit=ceiling.limit, value=value, verdict=verdict)
            )
    for title in locked:
        if title not in counted:
            for cost in Layer._fields:
                findings.append(_against_lock(title, cost, None, locked[title]))
    return tuple(findings)


def _against_lock(
    title: str, cost: str, now: Mapping[str, Layer] | None, locked: Mapping[str, Layer] | None
) -> Finding:
    value: int | None = None if now is None else getattr(total(now), cost)
    limit: int | None = None if locked is None else getattr(total(locked), cost)
    changes: list[Change] = []
    if now is None or value is None:
        verdict = Verdict.STALE
    elif locked is None or limit is None:
        verdict = Verdict.UNLOCKED
    else:
        for name in dict.fromkeys((*now, *locked)):
            before = getattr(locked[name], cost) if name in locked else None
            after = getattr(now[name], cost) if name in now else None
            if (before or 0) != (after or 0):
                changes.append(Change(layer=name, cost=cost, before=before, after=after))
        changes.sort(key=lambda change: change.difference, reverse=value >= limit)
        same = Verdict.MOVED if changes else Verdict.OK
        verdict = Verdict.HEAVIER if value > limit else Verdict.LIGHTER if value < limit else same
    return Finding(net=title, cost=cost, exact=True, limit=limit, value=value, verdict=verdict, changes=tuple(changes))
