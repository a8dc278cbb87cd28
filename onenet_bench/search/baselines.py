"""What a search must beat: the paper's families, scaled to what its candidates may cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from onenet_bench import costs
from onenet_bench.budget import excess
from onenet_bench.errors import MeasureError, RecipeError, SpecError
from onenet_bench.measure.latency import latency_ms
from onenet_bench.search.core import Search
from onenet_bench.space import compose
from onenet_bench.spec import NetSpec

FAMILIES: dict[str, Mapping[str, Any]] = {
    "unet": {"encoder": "conv2d", "decoder": "conv2d", "stem_repeat": 2},
    "mobilenet_unet": {"encoder": "separable2d", "decoder": "conv2d", "stem_repeat": 3},
    "onenet_e": {"encoder": "onenet1d", "decoder": "conv2d", "spatial_kernel": 9, "stem_repeat": 3},
    "onenet_ed": {"encoder": "onenet1d", "decoder": "onenet1d", "spatial_kernel": 9, "stem_repeat": 3},
}
"""Family -> what ``compose`` needs to build it (OneNet, arXiv 2411.09838, §3 and Table 2)."""

DEPTH, WIDEST = 4, 64
"""The paper's: its nets have four levels and begin with 64 channels."""


class Baseline(NamedTuple):
    """A net that was planned, not found."""

    name: str
    spec: NetSpec


def baselines(search: Search) -> tuple[Baseline, ...]:
    """Of every family the widest net that keeps the search's budget, and one of half its width.

    Four levels, as the paper's, or as many as the resolution can be halved; at most the paper's 64 channels, and its
    output size where the space has one. A family of which not even one channel fits is left out.
    """
    found = []
    for family, arguments in FAMILIES.items():
        widest = bisect_left(range(1, WIDEST + 1), True, key=lambda width: not _fits(search, arguments, width))
        found += [
            Baseline(f"{family}, width {width}", net)
            for width in dict.fromkeys((widest, widest // 2))
            if width and (net := _net(search, arguments, width)) is not None
        ]
    return tuple(found)


def _net(search: Search, arguments: Mapping[str, Any], width: int) -> NetSpec | None:
    """The net that takes the task's images, with as many levels as it can have."""
    kept = {name: value for name, value in search.space.net.items() if name == "output_stride" and value in (1, 2)}
    if search.recipe.deep_supervision:
        kept["heads"] = "all"
    for depth in range(DEPTH, 0, -1):
        if search.task.resolution % 2**depth == 0:
            return compose(
                classes=search.task.classes, in_channels=search.task.in_channels, depth=depth, width=width,
                **kept, **arguments,
            )  # fmt: skip
    return None


def _fits(search: Search, arguments: Mapping[str, Any], width: int) -> bool:
    net = _net(search, arguments, width)
    if net is None:
        return False
    try:
        counted = costs.count_training(net, search.task.resolution, search.recipe)
    except (SpecError, RecipeError):  # a level of a single pixel cannot be mirrored, one head not be supervised deeply
        return False
    if excess(counted, search.budget):
        return False
    if search.latency is not None and any(budget.cost == "latency_ms" for budget in search.budget):
        try:
            counted = replace(counted, latency_ms=latency_ms(net, search.latency))
        except MeasureError:
            return False
    return not excess(counted, search.budget)
