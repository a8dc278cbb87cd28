"""Samplers by name: one that knows its costs, Optuna's own, and a grid in shuffled order.

A fresh sampler is made for every proposal from (seed, trial number), so that a resumed search proposes what an
uninterrupted one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from onenet_bench.errors import SpaceError, known
from onenet_bench.screen import MOST
from onenet_bench.search.frontier import FrontierSampler
from onenet_bench.search.parameters import as_parameters, distributions
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec

if TYPE_CHECKING:
    from onenet_bench.measure.latency import Conditions
    from onenet_bench.measure.latency_model import Predictor
    from onenet_bench.search.core import Search

POPULATION = 16
"""Of NSGA-II: searches here have tens to hundreds of trials, not thousands."""


@runtime_checkable
class Exhaustive(Protocol):
    """A sampler that proposes nothing twice, and so comes to an end of its own."""

    def ended(self, study: Study, number: int) -> str:
        """Why there is nothing to propose for trial ``number``; empty where there is something."""
        ...


class GridSampler(BaseSampler):
    """Every combination once, in an order shuffled by ``seed`` so that a part of the grid covers all of it."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = space
        self._order = _shuffled(space.size, seed)

    def ended(self, study: Study, number: int) -> str:
        return f"all {self._space.size} combinations were tried" if number >= self._space.size else ""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        sizes = [len(options) for options in self._space.choices.values()]
        place = np.unravel_index(int(self._order[trial.number % self._space.size]), sizes)
        chosen = {
            name: options[int(at)] for (name, options), at in zip(self._space.choices.items(), place, strict=True)
        }
        return as_parameters(self._space, chosen)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise SpaceError(f"a grid decides all choices together, but {param_name!r} was asked for alone")


@lru_cache(maxsize=1)  # a sampler is made for every proposal
def _shuffled(size: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(size)


class NSGAII(NSGAIISampler):
    """Optuna's, with parents in the order of their numbers.

    Optuna returns them in the order of their ranks the first time and by number from its cache afterwards, so that
    a study rebuilt in the middle of a generation would go another way.
    """

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


def _frontier(search: Search, number: int) -> BaseSampler:
    return FrontierSampler(
        search.space, resolution=search.task.resolution, classes=search.task.classes,
        in_channels=search.task.in_channels, objectives=search.objectives, budget=search.budget, recipe=search.recipe,
        seed=search.seed, predict=_predictor(search), earlier=search.earlier,
    )  # fmt: skip


def _predictor(search: Search) -> Callable[[NetSpec], float] | None:
    """What latencies are predicted by; None where no budget asks, or nothing was fitted to this machine yet."""
    if search.latency is None or not any(budget.cost == "latency_ms" for budget in search.budget):
        return None
    model, resolution = _fitted(search.latency), search.latency.resolution
    return None if model is None else lambda spec: model.predict_ms(spec, resolution)


@lru_cache
def _fitted(conditions: Conditions) -> Predictor | None:
    """Once per process, which a study needs: its proposals follow from what was known at first."""
    from onenet_bench.measure.latency_model import fitted

    return fitted(conditions)


def _tpe(search: Search, number: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(multivariate=True, group=True, seed=_seed(search.seed, number))


SAMPLERS: dict[str, Callable[[Search, int], BaseSampler]] = {
    "frontier": _frontier,
    "random": lambda search, number: RandomSampler(seed=_seed(search.seed, number)),
    "grid": lambda search, number: GridSampler(search.space, search.seed),
    "nsga2": lambda search, number: NSGAII(population_size=POPULATION, seed=_seed(search.seed, number)),
    "tpe": _tpe,
}
"""Name -> sampler for (search, the trial's number)."""


def make(name: str, search: Search, number: int) -> BaseSampler:
    """The sampler that proposes trial ``number``. Raises SpaceError as ``check`` does."""
    check(name, search.space)
    return SAMPLERS[name](search, number)


def check(name: str, space: SearchSpace) -> None:
    """Raise SpaceError unless ``name`` is a sampler, and one that ``space`` is not too large for."""
    if name not in SAMPLERS:
        raise SpaceError(known("sampler", name, SAMPLERS))
    if name == "grid" and space.size > MOST:
        raise SpaceError(
            f"a grid has at most {MOST:,} combinations, but {space.name} has {space.size:,}; take another sampler"
        )


def _seed(*parts: int) -> int:
    words: Sequence[int] = np.random.SeedSequence(parts).generate_state(1).tolist()
    return words[0]
