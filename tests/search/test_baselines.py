"""The planned baselines: the paper's families at the width that the budget allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from onenet_bench import costs, space, zoo
from onenet_bench.budget import Budget
from onenet_bench.recipe import Recipe
from onenet_bench.search.baselines import FAMILIES, baselines
from onenet_bench.search.core import Search
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task


def search(budget: str, resolution: int = 64, classes: int = 4) -> Search:
    reached = space.load("depth_scale")
    task = Task(
        data="synthetic", content="0", in_channels=3, class_names=tuple(f"c{i}" for i in range(classes)),
        resolution=resolution, train=8, validation=4, test=4,
    )  # fmt: skip
    return Search(
        space=reached, task=task, recipe=Recipe(), objectives=reached.objectives, sampler="random", seed=0, trials=4,
        budget=(Budget.parse(budget),) if budget else (),
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_widest_net_of_a_family_keeps_the_budget_and_one_channel_more_breaks_it(family: str) -> None:
    asked = search("parameters <= 300k")
    found = {b.name: b.spec for b in baselines(asked)}
    name = next(name for name in found if name.startswith(f"{family}, "))
    width = int(name.rpartition(" ")[2])
    assert costs.count(found[name], 64).parameters <= 300_000
    assert f"{family}, width {width // 2}" in found
    wider = replace(asked, budget=(Budget.parse("parameters <= 10M"),))
    arguments = FAMILIES[family]
    again = space.compose(classes=4, in_channels=3, depth=4, width=width + 1, **arguments)
    assert costs.count(again, 64).parameters > 300_000
    assert {b.name for b in baselines(wider)} != set(found)


@pytest.mark.parametrize(
    ("family", "net"), [("unet", "unet_4"), ("onenet_e", "onenet_e_4"), ("onenet_ed", "onenet_ed_4_spatial")]
)
def test_without_a_budget_the_encoders_are_those_of_the_paper(family: str, net: str) -> None:
    found = {b.name: b.spec for b in baselines(search(""))}
    spec, paper = found[f"{family}, width 64"], zoo.get(net)
    assert spec.encoder == paper.encoder
    assert (spec.stem.kind, spec.stem.channels, spec.stem.repeat) == (
        paper.stem.kind, paper.stem.channels, paper.stem.repeat,
    )  # fmt: skip


def test_a_resolution_that_halves_only_twice_gives_nets_of_two_levels() -> None:
    found = baselines(search("parameters <= 300k", resolution=36))
    assert found
    assert {len(b.spec.encoder) for b in found} == {2}


def test_a_family_that_cannot_keep_the_budget_is_left_out() -> None:
    assert baselines(search("parameters <= 20")) == ()


def test_deep_supervision_has_baselines_with_heads_at_every_level() -> None:
    plain = search("parameters <= 300k")
    found = baselines(replace(plain, recipe=Recipe(deep_supervision=0.4)))
    assert len(found) == len(baselines(plain))
    assert {b.spec.heads for b in found} == {"all"}


def test_a_budget_on_latency_is_held_by_running_the_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def milliseconds(spec: NetSpec, _: Any) -> float:
        timed.append(spec)
        return float(spec.stem.channels)

    monkeypatch.setattr("onenet_bench.search.baselines.latency_ms", milliseconds)
    found = {b.name for b in baselines(search("latency_ms <= 13"))}
    assert found == {f"{family}, width {width}" for family in FAMILIES for width in (13, 6)}
    assert len(timed) <= 7 * len(FAMILIES)  # by halving
