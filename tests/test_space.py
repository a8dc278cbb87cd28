"""Search spaces: the packaged ones, the template, refusals."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import optuna
import pytest

from onenet_bench import costs, space
from onenet_bench.budget import Budget, excess
from onenet_bench.errors import BudgetError, OnenetBenchError, SpaceError, SpecError
from onenet_bench.space import SearchSpace, compose

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "objectives": ["miou", "parameters"],
    "choices": {"width": [4, 8], "kind": ["conv2d", "onenet1d"]},
    "net": {"depth": 1, "width": "$width", "encoder": "$kind"},
}


@pytest.mark.parametrize("name", space.names())
def test_a_packaged_space_has_trainable_candidates_within_its_budget(name: str) -> None:
    reached = space.load(name)
    assert reached.name == name
    fitting = 0
    for choices in list(reached.enumerate())[:: max(1, reached.size // 60)]:
        spec = reached.spec(choices, classes=8, in_channels=3)
        if reached.task["resolution"] % spec.total_scale == 0:  # nothing else may rule a net out
            fitting += not excess(costs.count(spec, reached.task["resolution"]), reached.budget)
    assert fitting >= 10


def test_the_named_spaces_are_there() -> None:
    assert {"depth_scale", "spatial_kernel", "encoder_decoder", "hybrid"} <= set(space.names())


def test_enumeration_is_the_product_of_all_choices() -> None:
    tiny = SearchSpace.from_dict(MINIMAL)
    combinations = list(tiny.enumerate())
    assert len(combinations) == tiny.size == 4
    assert combinations[1] == {"width": 4, "kind": "onenet1d"}
    assert len({tiny.spec(c, classes=2, in_channels=3).digest() for c in combinations}) == 4


def test_a_space_survives_its_own_dictionary() -> None:
    for name in space.names():
        assert SearchSpace.from_dict(space.load(name).to_dict()) == space.load(name)


def test_suggestions_are_options_and_reach_all_of_them() -> None:
    tiny = SearchSpace.from_dict(MINIMAL)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {tuple(tiny.suggest(study.ask()).values()) for _ in range(50)}
    assert seen == {(4, "conv2d"), (4, "onenet1d"), (8, "conv2d"), (8, "onenet1d")}


def test_levels_speak_level_one_first_and_may_be_longer_than_the_net() -> None:
    spec = compose(
        classes=2, depth=2, width=4, encoder=["conv2d", "onenet1d", "separable2d"],
        decoder=["separable2d", "onenet1d", "conv2d"], scale=[4, 2, 3], spatial_kernel=[0, 9, 0],
        skips=[True, False, True],
    )  # fmt: skip
    assert [s.kind for s in spec.encoder] == ["conv2d", "onenet1d"]
    assert [s.scale for s in spec.encoder] == [4, 2]
    assert [s.kind for s in spec.decoder] == ["onenet1d", "separable2d"]  # deepest first
    assert [s.kernel for s in spec.decoder] == [9, 3]
    assert [s.skip for s in spec.decoder] == [False, False]  # said so; and none at the top
    assert spec.stem.kind == "conv2d"


REFUSED = {
    "choice unused": ({"net": {"depth": 1, "width": "$width"}}, "'kind' of tiny is not both"),
    "choice missing": ({"net": {**MINIMAL["net"], "scale": "$s"}}, "'s' of tiny is not both"),
    "twice": ({"choices": {**MINIMAL["choices"], "width": [4, 4]}}, r"'width' of tiny has \[4, 4\]"),
    "too many": (
        {"choices": {**MINIMAL["choices"], "width": list(range(32769))}},
        "at most 32,768 options, but 'width' of tiny has 32,769; leave some out",
    ),
    "no list": ({"choices": {**MINIMAL["choices"], "width": 4}}, "a list of options, but 'width' is 4"),
    "argument": ({"net": {**MINIMAL["net"], "deph": 2}}, r"argument in \[net\] 'deph'; known: .*depth"),
    "task field": ({"task": {"size": 3}}, r"field in \[task\] 'size'; known: resolution"),
    "recipe field": ({"recipe": {"epoch": 3}}, r"field in \[recipe\] 'epoch'; known: .*epochs"),
    "recipe value": ({"recipe": {"epochs": 0}}, "at least one epoch or step"),
    "field": ({"choice": {}}, "field of a space 'choice'; known: "),
    "objectives": ({"objectives": ["miou"]}, "at least one score and one cost"),
    "no objectives": ({"objectives": []}, "needs 'objectives', but tiny has none"),
    "budget": ({"budget": ["parameters < 5"]}, "COST <= NUMBER"),
    "budget's cost": ({"budget": ["weight <= 5"]}, "unknown cost 'weight'; known: .*macs"),
    "objectives' type": ({"objectives": "miou"}, "objectives of a space is a list of texts, but got 'miou'"),
    "budget's list": ({"budget": 3}, "budget of a space is a list of texts, but got 3"),
    "budget's type": ({"budget": [5]}, r"budget of a space is a list of texts, but got \[5\]"),
    "recipe's type": ({"recipe": {"epochs": "12"}}, "epochs of a recipe is a whole number, but got '12'"),
    "rate's type": ({"recipe": {"learning_rate": "x"}}, "learning_rate of a recipe is a number, but got 'x'"),
    "text's type": ({"recipe": {"augmentation": 3}}, "augmentation of a recipe is a text, but got 3"),
    "task's type": ({"task": {"resolution": "64"}}, r"resolution in \[task\] is a whole number, but tiny has '64'"),
    "pixels": ({"task": {"resolution": 10**9}}, r"resolution in \[task\] is 1 to 65,536, but tiny has 1,000,000,000"),
    "no pixels": ({"task": {"resolution": 0}}, r"resolution in \[task\] is 1 to 65,536, but tiny has 0"),
    "no images": ({"task": {"train": 0}}, r"train in \[task\] is 1 to 16,777,216, but tiny has 0"),
    "images": ({"task": {"validation": 10**30}}, r"validation in \[task\] is 1 to 16,777,216, but tiny has 1,000"),
    "fewer than none": ({"task": {"test": -1}}, r"test in \[task\] is 0 to 16,777,216, but tiny has -1"),
    "no depth": (
        {"net": {"width": "$width", "encoder": "$kind"}},
        "how deep and how wide nets are, but tiny lacks 'depth'",
    ),
    "equal options": (
        {"choices": {**MINIMAL["choices"], "width": [4, 4.0]}},
        r"distinct options, but 'width' of tiny has \[4, 4\.0\]",
    ),
    "no number": ({"choices": {**MINIMAL["choices"], "width": [4, float("nan")]}}, "a finite number.* offers nan"),
    "a date": (
        {"choices": {**MINIMAL["choices"], "width": [date(2026, 1, 1)]}},
        "'width' of tiny offers datetime.date",
    ),
    "a table as an option": ({"choices": {**MINIMAL["choices"], "width": [[{"a": 1}]]}}, "or a list of these"),
    "name": ({"name": ["a"]}, r"name of a space is a text, but got \['a'\]"),
    "summary": ({"summary": 3}, "summary of a space is a text, but got 3"),
    "table": ({"net": 3}, r"\[net\] of a space is a table, but got 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spaces_that_cannot_be_are_refused_in_a_sentence(case: str) -> None:
    change, sentence = REFUSED[case]
    with pytest.raises(OnenetBenchError, match=sentence):
        SearchSpace.from_dict({**MINIMAL, **change})


def test_a_file_says_no_seed(tmp_path: Path) -> None:
    path = tmp_path / "seeded.toml"
    text = (space.folder() / "depth_scale.toml").read_text()
    path.write_text(text + "\n[recipe]\nseed = 7\n")
    with pytest.raises(SpaceError, match=r"is that of --seed, but \[recipe\] of depth_scale has one; leave it out"):
        space.load(str(path))


@pytest.mark.parametrize("argument", ["depth", "width", "growth", "max_channels"])
def test_a_number_that_is_none_is_named(argument: str) -> None:
    with pytest.raises(SpecError, match=f"{argument} must be a number, but got '8'"):
        compose(**{"classes": 2, "depth": 1, "width": 8, argument: "8"})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("depth", 2.0),
        ("growth", float("inf")),
        ("growth", 1e300),
        ("depth", 1100),
        ("repeat", 257),
        ("stem_repeat", 10**9),
    ],
)  # fmt: skip
def test_numbers_that_make_no_net_are_named(argument: str, value: float) -> None:
    with pytest.raises(SpecError, match="but got"):
        compose(**{"classes": 2, "depth": 4, "width": 8, argument: value})


def test_spaces_are_found_by_name_or_file(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"unknown space 'depth_scales'; known: depth_scale.*ending in \.toml"):
        space.load("depth_scales")
    with pytest.raises(SpaceError, match=r"a space must be readable TOML, but .* is not"):
        space.load(str(tmp_path / "none.toml"))
    copy = tmp_path / "mine.toml"
    copy.write_text((space.folder() / "hybrid.toml").read_text())
    assert space.load(str(copy)) == space.load("hybrid")
    copy.write_text(copy.read_text(), encoding="utf-8-sig")  # as some editors do
    assert space.load(str(copy)) == space.load("hybrid")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("macs <= 20M", 20e6), ("macs<=1.5e3", 1500), ("parameters <= 2_000", 2000), ("macs <= 3k", 3000)],
)
def test_budgets_read_as_people_write_them(text: str, limit: float) -> None:
    assert Budget.parse(text).limit == limit


@pytest.mark.parametrize(
    "text", ["macs", "macs <= ", "macs <= lots", "macs >= 3", "<= 3", "macs <= 3 pounds", "macs <= 20_", "macs <= 2__0"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="COST <= NUMBER"):
        Budget.parse(text)


@pytest.mark.parametrize("limit", [0, 0.1, 1600000, 2939904, 123456789, 1 / 3, 1.5e-7, 123456789012345678, 1e300])
def test_a_budget_is_written_down_exactly(limit: float) -> None:
    budget = Budget(cost="macs", limit=float(limit))
    assert Budget.parse(str(budget)) == budget


def test_an_excess_names_cost_value_and_limit() -> None:
    counted = costs.count(compose(classes=2, depth=1, width=4), 16)
    assert excess(counted, [Budget.parse("parameters <= 1")]) == f"parameters is {counted.parameters:,}, over 1"
    close = replace(counted, macs=2939905)
    assert excess(close, [Budget(cost="macs", limit=2939904)]) == "macs is 2,939,905, over 2,939,904"
    assert excess(counted, [Budget.parse("parameters <= 1M"), Budget.parse("latency_ms <= 0")]) == ""
