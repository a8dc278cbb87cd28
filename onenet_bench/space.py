"""SearchSpace: which nets can be reached, and how a trial's choices become one.

A space is a TOML file::

    name = "…"
    summary = "…"
    objectives = ["miou", "parameters", "macs"]     # names of scores and costs
    budget = ["parameters <= 2e6"]                  # what a candidate may cost
    [choices]                                       # every list is one decision
    width = [8, 16]
    [net]                                           # arguments of ``compose``; "$width" is the choice's value
    width = "$width"
    [task]                                          # optional: resolution, train, validation, test
    [recipe]                                        # optional: fields of Recipe
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, TypeVar

from onenet_bench.budget import Budget
from onenet_bench.errors import SpaceError, SpecError, known
from onenet_bench.files import read_toml
from onenet_bench.pareto import Objective, objectives
from onenet_bench.recipe import Recipe
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from onenet_bench.task import MOST_SIDE

T = TypeVar("T")

MOST_OPTIONS = 2**15
"""Of a choice: their indices fit 16 bits."""

MOST_IMAGES = 2**24
"""Of a split: as many of MOST_SIDE still have a number of elements that fits 64 bits."""

MOST_LEVELS = 30
"""Of a net: half a billion pixels become one."""


class Suggests(Protocol):
    """What a space needs of an Optuna trial."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


def compose(
    *, classes: int, in_channels: int = 3, depth: int, width: int, growth: float = 2.0, max_channels: int = 1024,
    scale: int | list[int] = 2, encoder: str | list[str] = "onenet1d", decoder: str | list[str] = "conv2d",
    spatial_kernel: int | list[int] = 0, decoder_kernel: int | list[int] | None = None, repeat: int = 2,
    stem: str | None = None, stem_repeat: int = 1, skips: bool | list[bool] = True, output_stride: int = 1,
    heads: str = "top",
) -> NetSpec:  # fmt: skip
    """A U-Net from a few decisions. Lists speak level by level, level 1 (the largest images) first; they may be
    longer than ``depth``. Widths grow by ``growth`` per level up to ``max_channels``. The stem is of the first
    encoder level's family; kernels apply to 1D levels, 2D levels have 3x3. The top decoder level has no skip, as
    in the paper. Raises SpecError for nets that cannot exist.
    """
    for name, value in (("depth", depth), ("width", width), ("growth", growth), ("max_channels", max_channels)):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise SpecError(f"{name} must be a number, but got {value!r}")
    if not isinstance(depth, int):
        raise SpecError(f"depth must be a whole number, but got {depth!r}")
    if growth > 100:
        raise SpecError(f"a level is at most 100 times as wide as the one before, but got growth={growth:g}")
    if not 1 <= depth <= MOST_LEVELS:
        raise SpecError(f"a U-Net has 1 to {MOST_LEVELS} levels here, but got depth={depth}")

    def levels(what: str, value: T | list[T]) -> list[T]:
        chosen = value if isinstance(value, list) else [value] * depth
        if len(chosen) < depth:
            raise SpecError(f"{what} must speak for all {depth} levels, but has {len(chosen)}: {chosen}")
        return chosen[:depth]

    def stage(kind: str, channels: int, scale: int, kernel: int, skip: bool) -> StageSpec:
        return StageSpec(
            kind=kind, channels=channels, scale=scale, spatial_kernel=kernel if kind == "onenet1d" else None,
            repeat=repeat, skip=skip,
        )  # fmt: skip

    widths = [min(max_channels, round(width * growth**i)) for i in range(depth + 1)]
    scales = levels("scale", scale)
    kinds = levels("encoder", encoder)
    kernels = levels("spatial_kernel", spatial_kernel)
    up_kinds = levels("decoder", decoder)
    up_kernels = kernels if decoder_kernel is None else levels("decoder_kernel", decoder_kernel)
    skipped = levels("skips", skips)
    bottom_up = reversed(range(1 if output_stride == 2 else 0, depth))
    return NetSpec(
        classes=classes, in_channels=in_channels, heads=heads, output_stride=output_stride,
        stem=StemSpec(
            kind=stem or ("onenet1d" if kinds[0] == "onenet1d" else "conv2d"), channels=widths[0], repeat=stem_repeat
        ),
        encoder=tuple(stage(kinds[i], widths[i + 1], scales[i], kernels[i], True) for i in range(depth)),
        decoder=tuple(
            stage(up_kinds[i], widths[i], scales[i], up_kernels[i], i > 0 and skipped[i]) for i in bottom_up
        ),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A space as a value. ``choices`` maps each decision to its options, ``net`` is the template of ``compose``."""

    name: str
    choices: Mapping[str, tuple[Any, ...]]
    net: Mapping[str, Any]
    summary: str = ""
    objectives: tuple[Objective, ...] = ()
    budget: tuple[Budget, ...] = ()
    task: Mapping[str, int] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        for name, options in self.choices.items():
            if len(options) > MOST_OPTIONS:
                raise SpaceError(
                    f"a choice offers at most {MOST_OPTIONS:,} options, but {name!r} of {self.name} has "
                    f"{len(options):,}; leave some out"
                )
            if strange := [o for o in options if not _is_plain(o)]:
                raise SpaceError(
                    f"an option is a finite number, a text, true, false or a list of these, but {name!r} of "
                    f"{self.name} offers {strange[0]!r}"
                )
            if not options or any(o in options[:i] for i, o in enumerate(options)):
                raise SpaceError(f"a choice offers distinct options, but {name!r} of {self.name} has {list(options)}")
        if unknown := sorted(set(self.net) - set(_ARGUMENTS)):
            raise SpaceError(f"{self.name}: {known('argument in [net]', unknown[0], _ARGUMENTS)}")
        if unknown := sorted(set(self.task) - set(_TASK_FIELDS)):
            raise SpaceError(f"{self.name}: {known('field in [task]', unknown[0], _TASK_FIELDS)}")
        if missing := sorted({"depth", "width"} - set(self.net)):
            raise SpaceError(f"[net] says how deep and how wide nets are, but {self.name} lacks {missing[0]!r}; add it")
        for name, value in self.task.items():
            if type(value) is not int:
                raise SpaceError(f"{name} in [task] is a whole number, but {self.name} has {value!r}")
            least, most = _TASK_FIELDS[name]
            if not least <= value <= most:
                raise SpaceError(f"{name} in [task] is {least} to {most:,}, but {self.name} has {value:,}")
        used = {v.removeprefix("$") for v in _leaves(self.net) if isinstance(v, str) and v.startswith("$")}
        if missing := sorted(used ^ set(self.choices)):
            raise SpaceError(
                f"every choice is used in [net] as $NAME and every $NAME is a choice, but {missing[0]!r} of "
                f"{self.name} is not both"
            )

    @property
    def size(self) -> int:
        """Combinations of choices; different ones may give the same net."""
        return math.prod(len(options) for options in self.choices.values())

    def spec(self, choices: Mapping[str, Any], *, classes: int, in_channels: int) -> NetSpec:
        """The net that ``choices`` make. Raises SpecError where they make none."""
        return compose(classes=classes, in_channels=in_channels, **fill(self.net, choices))

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """A trial's choices. Numbers in rising order are suggested by rank, so that samplers see their order."""
        with lists_allowed():
            return {
                name: options[trial.suggest_int(name, 0, len(options) - 1)]
                if is_ordered(options)
                else trial.suggest_categorical(name, list(options))
                for name, options in self.choices.items()
            }

    def enumerate(self) -> Iterator[dict[str, Any]]:
        """All combinations of choices, the last decision running fastest."""
        for values in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, values, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values, in the form of the TOML file."""
        return {
            "name": self.name,
            "summary": self.summary,
            "objectives": [o.name for o in self.objectives],
            "budget": [str(b) for b in self.budget],
            "choices": {name: list(options) for name, options in self.choices.items()},
            "net": dict(self.net),
            "task": dict(self.task),
            "recipe": self.recipe.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchSpace:
        """The inverse of ``to_dict``. Raises SpaceError."""
        names = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise SpaceError(known("field of a space", unknown[0], names))
        for required in ("name", "objectives", "choices", "net"):
            if not values.get(required):
                raise SpaceError(f"a space needs {required!r}, but {values.get('name', 'this one')} has none")
        for text in ("name", "summary"):
            if not isinstance(values.get(text, ""), str):
                raise SpaceError(f"{text} of a space is a text, but got {values[text]!r}")
        for table in ("choices", "net", "task", "recipe"):
            if not isinstance(values.get(table, {}), Mapping):
                raise SpaceError(f"[{table}] of a space is a table, but got {values[table]!r}")
        for name, options in values["choices"].items():
            if not isinstance(options, list):
                raise SpaceError(f"a choice is a list of options, but {name!r} is {options!r}")
        for name in ("objectives", "budget"):
            texts = values.get(name, [])
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise SpaceError(f"{name} of a space is a list of texts, but got {texts!r}")
        recipe = values.get("recipe", {})
        if unknown := sorted(set(recipe) - {f.name for f in fields(Recipe)}):
            raise SpaceError(known("field in [recipe]", unknown[0], [f.name for f in fields(Recipe)]))
        return cls(
            name=values["name"],
            summary=values.get("summary", ""),
            objectives=objectives(values["objectives"]),
            budget=tuple(Budget.parse(text) for text in values.get("budget", ())),
            choices={name: tuple(options) for name, options in values["choices"].items()},
            net=dict(values["net"]),
            task=dict(values.get("task", {})),
            recipe=Recipe(**recipe),
        )

    @classmethod
    def from_toml(cls, path: Path) -> SearchSpace:
        """Read a space from a file. Raises SpaceError."""
        values = read_toml(path, "a space", SpaceError, "onenet-bench spaces lists those that are there")
        space = cls.from_dict(values)
        if "seed" in values.get("recipe", {}):
            raise SpaceError(f"a search's seed is that of --seed, but [recipe] of {space.name} has one; leave it out")
        return space


_ARGUMENTS = [name for name in signature(compose).parameters if name not in ("classes", "in_channels")]
_TASK_FIELDS = {
    "resolution": (1, MOST_SIDE), "train": (1, MOST_IMAGES), "validation": (1, MOST_IMAGES), "test": (0, MOST_IMAGES),
}  # fmt: skip
"""Each with the least and the most that it may be."""


@contextmanager
def lists_allowed() -> Iterator[None]:
    """Without Optuna's warning of every option that is a list: it is about storages other than memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Choices for a categorical distribution", UserWarning)
        yield


def is_ordered(options: Sequence[Any]) -> bool:
    """Whether ``options`` are numbers in rising order."""
    numbers = all(isinstance(o, int | float) and not isinstance(o, bool) for o in options)
    return numbers and list(options) == sorted(options)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for v in value.values():
            yield from _leaves(v)
    elif isinstance(value, list):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def _is_plain(value: Any) -> bool:
    """Whether a ledger can hold ``value``, and an option can be found again by it."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | bool | int | None) or (isinstance(value, float) and math.isfinite(value))


def fill(value: Any, choices: Mapping[str, Any]) -> Any:
    """``value``, a template such as [net], with every "$name" replaced by that choice."""
    if isinstance(value, Mapping):
        return {name: fill(v, choices) for name, v in value.items()}
    if isinstance(value, list):
        return [fill(v, choices) for v in value]
    if isinstance(value, str) and value.startswith("$"):
        return choices[value[1:]]
    return value


def folder() -> Path:
    """Where the packaged spaces lie: inside an installed wheel, or at the top of a checkout."""
    installed = Path(__file__).parent / "search_spaces"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "search_spaces"


def names() -> list[str]:
    """The packaged spaces."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str) -> SearchSpace:
    """A packaged space by name, or any space by the path of its TOML file. Raises SpaceError."""
    if name.endswith(".toml") or "/" in name:
        return SearchSpace.from_toml(Path(name))
    if name not in names():
        raise SpaceError(f"{known('space', name, names())}; a file is named by its path, ending in .toml")
    return SearchSpace.from_toml(folder() / f"{name}.toml")
