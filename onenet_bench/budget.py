"""Budgets: what a net may cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from onenet_bench.errors import BudgetError, known
from onenet_bench.record import COSTS, Costs

_FORM = re.compile(
    r"\s*(?P<cost>[a-z_0-9]+)\s*<=\s*(?P<limit>[0-9][0-9_]*(\.[0-9]*)?([eE][+-]?[0-9]+)?)\s*(?P<suffix>[kMG])?\s*"
)
_SUFFIX = {None: 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A ceiling on one cost, e.g. ``parameters <= 2e6`` (k, M and G may follow the number)."""

    cost: str
    limit: float

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise BudgetError(known("cost", self.cost, COSTS))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``COST <= NUMBER``. Raises BudgetError."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise BudgetError(f"a budget reads COST <= NUMBER, such as 'parameters <= 2e6', but got {text!r}")
        return cls(cost=match["cost"], limit=float(match["limit"]) * _SUFFIX[match["suffix"]])

    def __str__(self) -> str:
        return f"{self.cost} <= {self.limit:g}"


def excess(costs: Costs, budgets: Sequence[Budget]) -> str:
    """Which budgets ``costs`` exceeds, in words; empty where none. A cost that is not known exceeds nothing."""
    over = []
    for budget in budgets:
        value = getattr(costs, budget.cost)
        if value is not None and value > budget.limit:
            over.append(f"{budget.cost} is {value:,.6g}, over {budget.limit:,.6g}")
    return "; ".join(over)
