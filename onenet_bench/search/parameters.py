"""A space's choices as Optuna's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from onenet_bench.space import SearchSpace, is_ordered, lists_allowed


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The Optuna distributions that ``space.suggest`` draws from."""
    with lists_allowed():
        return {
            name: IntDistribution(0, len(options) - 1)
            if is_ordered(options)
            else CategoricalDistribution(list(options))
            for name, options in space.choices.items()
        }


def as_parameters(space: SearchSpace, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Choices as Optuna's parameters: ordered ones by rank."""
    return {
        name: options.index(choices[name]) if is_ordered(options) else choices[name]
        for name, options in space.choices.items()
    }
