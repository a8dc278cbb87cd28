"""A screening against ``costs.count``, one net at a time: to the integer, over whole spaces and random templates."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onenet_bench import costs, space
from onenet_bench import screen as screening
from onenet_bench.budget import Budget, excess
from onenet_bench.errors import SpaceError, SpecError
from onenet_bench.plan import plan
from onenet_bench.record import Costs
from onenet_bench.screen import BATCH, SCREENED, Screening, screen
from onenet_bench.space import SearchSpace


def single(screening: Screening, index: int) -> tuple[Costs, str, dict[str, int]] | None:
    """Costs, digest and traits of one combination, counted alone; None where it makes no net."""
    try:
        spec = screening.space.spec(
            screening.choices(index), classes=screening.classes, in_channels=screening.in_channels
        )
        lowered = plan(spec, (screening.in_channels, screening.resolution, screening.resolution))
        traits = costs.traits(lowered.rows, screening.resolution).named()
        return costs.count_plan(lowered), spec.digest(), traits
    except SpecError:
        return None


def assert_equals_singles(screening: Screening, indices: Iterable[int]) -> int:
    """Every one of ``indices`` is as it is when counted alone; how many of them make a net."""
    nets = 0
    for index in indices:
        alone = single(screening, index)
        assert screening.possible[index] == (alone is not None), screening.choices(index)
        for name in SCREENED:
            value = screening.costs[name][index]
            if alone is None:
                assert math.isnan(value)
            else:
                assert value == getattr(alone[0], name), (name, screening.choices(index))
        for name in costs.TRAITS:
            trait = screening.traits[name][index]
            assert math.isnan(trait) if alone is None else trait == alone[2][name], (name, screening.choices(index))
        nets += alone is not None
    return nets


def assert_distinct_are_first_digests(screening: Screening) -> None:
    seen: set[str] = set()
    for index in range(len(screening)):
        alone = single(screening, index)
        first = alone is not None and alone[1] not in seen
        assert screening.distinct[index] == first, screening.choices(index)
        if alone is not None:
            seen.add(alone[1])


def screened(name: str, **how: Any) -> Screening:
    reached = space.load(name)
    return screen(reached, reached.task["resolution"], classes=8, **how)


@pytest.fixture(scope="module")
def levels() -> Screening:
    return screened("levels")


@pytest.mark.parametrize("name", ["depth_scale", "encoder_decoder", "spatial_kernel"])
def test_every_candidate_of_a_space_costs_what_it_costs_alone(name: str) -> None:
    screening = screened(name)
    assert list(map(screening.choices, range(len(screening)))) == list(screening.space.enumerate())
    assert assert_equals_singles(screening, range(len(screening))) > 100
    assert_distinct_are_first_digests(screening)


def test_so_do_candidates_of_larger_spaces(levels: Screening) -> None:
    assert len(levels) == 1_032_192 > 4 * BATCH
    draws = np.random.default_rng(3)
    assert assert_equals_singles(levels, draws.integers(len(levels), size=1500).tolist()) == 1500
    hybrid = screened("hybrid")
    assert assert_equals_singles(hybrid, draws.integers(len(hybrid), size=1000).tolist()) == 1000
    assert_distinct_are_first_digests(hybrid)


# Random templates --------------------------------------------------------------------------------------------

BAD = 0.06
"""How often an option is one of which there is no net."""
ARGUMENTS: dict[str, tuple[list[Any], list[Any]]] = {
    "depth": ([1, 2, 3], [0, 4]),
    "width": ([1, 2, 3, 5, 8], [0]),
    "growth": ([1.0, 1.3, 2.0, 5.0, 9.0], [0.1]),
    "max_channels": ([4, 7, 1024], [0]),
    "scale": ([2, 2, 3, 4], [5, 0]),
    "encoder": (["onenet1d", "onenet1d", "conv2d", "separable2d", "bottleneck2d"], ["resnet_basic", "conv3d"]),
    "decoder": (["onenet1d", "onenet1d", "conv2d", "separable2d", "bottleneck2d"], ["resnet_bottleneck", "conv3d"]),
    "spatial_kernel": ([0, 1, 3, 9, 33], [4]),
    "decoder_kernel": ([0, 3, 17, None], [6]),
    "repeat": ([1, 2, 3], [0]),
    "stem": (["onenet1d", "conv2d", None], ["resnet", "conv3d"]),
    "stem_repeat": ([1, 2], [0]),
    "skips": ([True, False], []),
    "output_stride": ([1, 2], [3]),
    "heads": (["top", "all"], ["none"]),
}
"""What [net] may say: options of which there are nets, and others."""
LISTS = ("scale", "encoder", "decoder", "spatial_kernel", "decoder_kernel", "skips")
MOST = 400


def random_space(draw: random.Random) -> SearchSpace:
    """Any template: scalars and lists (also too short), choices and constants, whole lists as options, choices that
    decide about two things, options that make no net."""
    choices: dict[str, tuple[Any, ...]] = {}

    def option(argument: str) -> Any:
        good, bad = ARGUMENTS[argument]
        return draw.choice(bad if bad and draw.random() < BAD else good)

    def slot(argument: str, whole_list: bool = False) -> Any:
        def one() -> Any:
            return [option(argument) for _ in range(draw.randint(2, 4))] if whole_list else option(argument)

        shared = [
            name for name in choices if name.startswith(argument) and isinstance(choices[name][0], list) == whole_list
        ]
        if shared and draw.random() < 0.25:
            return f"${draw.choice(shared)}"
        options = {repr(value): value for value in (one() for _ in range(draw.randint(2, 3)))}
        size = math.prod(map(len, choices.values())) * len(options)
        if size > MOST or (draw.random() < 0.3 and choices):
            return next(iter(options.values()))
        name = f"{argument}_{len(choices)}"
        choices[name] = tuple(options.values())
        return f"${name}"

    net: dict[str, Any] = {}
    arguments = ["depth", "width", *draw.sample(list(ARGUMENTS)[2:], draw.randint(2, 7))]
    draw.shuffle(arguments)
    for argument in arguments:
        kind = draw.random()
        if argument in LISTS and kind < 0.55:
            net[argument] = [slot(argument) for _ in range(draw.randint(2, 4) if draw.random() < 0.85 else 1)]
        else:
            net[argument] = slot(argument, whole_list=argument in LISTS and kind > 0.85)
    if "repeat" not in net and draw.random() < 0.2:
        net["repeat"] = net["depth"]  # one decision about two things
    return SearchSpace(name="random", choices=choices, net=net)


TRAPS: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "first option of another level makes no net": (
        {"e": ["resnet_basic", "conv2d"], "d": ["conv3d", "onenet1d"]},
        {"encoder": ["$e", "conv2d"], "decoder": ["$d", "conv2d"]},
    ),
    "first kernel of another level makes no net": ({"k": [4, 3]}, {"spatial_kernel": ["$k", 0]}),
    "no level": ({"d": [0, 1, 2]}, {"depth": "$d"}),
    "a list that is too short": ({"d": [1, 2, 3]}, {"depth": "$d", "skips": [True], "scale": [2, 2]}),
    "a scale of nothing": ({"s": [0, 2]}, {"scale": ["$s", 2]}),
    "heads that leave no row": ({"h": ["top", "all"], "d": [1, 2], "o": [1, 2]},
                                {"depth": "$d", "heads": "$h", "output_stride": "$o"}),
    "a decoder kernel that may fall back": ({"k": [0, 9], "d": [None, 3]},
                                            {"spatial_kernel": "$k", "decoder_kernel": "$d", "decoder": "onenet1d"}),
    "an even kernel that no level reads": ({"d": [0, 3]}, {"encoder": "conv2d", "decoder": "onenet1d",
                                                           "spatial_kernel": 2, "decoder_kernel": "$d"}),
    "a bottom that takes in a norm, or none": ({"e": ["onenet1d", "conv2d"], "o": [1, 2]},
                                               {"depth": 1, "growth": 4.0, "repeat": 1, "encoder": "$e",
                                                "decoder": "onenet1d", "output_stride": "$o"}),
    "a kernel that reaches past what it mirrors": ({"k": [7, 9], "e": ["onenet1d", "conv2d"], "d": [2, 3]},
                                                   {"depth": "$d", "width": 1, "growth": 1.0, "scale": [4, 3, 2],
                                                    "encoder": "$e", "spatial_kernel": "$k"}),
    "skips that wait while the deep levels peak": ({"s": [True, False], "t": [True, False], "g": [2.0, 5.0, 9.0]},
                                                   {"depth": 3, "skips": [True, "$s", "$t"], "growth": "$g",
                                                    "max_channels": 100000}),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_so_do_the_candidates_of_templates_with_traps(trap: str) -> None:
    choices, net = TRAPS[trap]
    options = {name: tuple(values) for name, values in choices.items()}
    screening = screen(SearchSpace(name=trap, choices=options, net={"depth": 2, "width": 4, **net}), 24, classes=3)
    assert assert_equals_singles(screening, range(len(screening)))
    assert_distinct_are_first_digests(screening)


@pytest.mark.parametrize("seed", range(60))
def test_so_do_the_candidates_of_any_template(seed: int) -> None:
    draw = random.Random(seed)
    screening = screen(
        random_space(draw), draw.choice([24, 24, 48, 32]), classes=draw.randint(1, 4), in_channels=draw.choice([1, 3])
    )
    assert_equals_singles(screening, range(len(screening)))
    assert_distinct_are_first_digests(screening)


def test_random_templates_reach_what_they_should() -> None:
    """Nets and impossible ones; lists, scalars, whole lists as options; nets that stand in a space twice."""
    spaces = [random_space(random.Random(seed)) for seed in range(60)]
    screenings = [screen(s, 24, classes=2) for s in spaces]
    assert sum(s.possible.any() and not s.possible.all() for s in screenings) >= 15
    assert sum(s.possible.sum() > s.distinct.sum() for s in screenings) >= 15
    assert sum(bool(s.possible.all()) for s in screenings) >= 10
    for argument in LISTS:
        values = [s.net[argument] for s in spaces if argument in s.net]
        assert any(isinstance(value, list) for value in values)
        assert any(isinstance(value, str) and value.startswith("$") for value in values)
    assert any(isinstance(options[0], list) for s in spaces for options in s.choices.values())


# Samples, budgets, refusals ----------------------------------------------------------------------------------


def test_a_space_that_is_too_large_is_sampled_and_says_so() -> None:
    sample = screened("hybrid", most=600, seed=4)
    assert sample.sampled
    assert len(sample) == 600
    assert assert_equals_singles(sample, range(600)) == 600
    assert_distinct_are_first_digests(sample)
    again, other = screened("hybrid", most=600, seed=4), screened("hybrid", most=600, seed=5)
    for name in SCREENED:
        np.testing.assert_array_equal(sample.costs[name], again.costs[name])
    assert not np.array_equal(sample.costs["macs"], other.costs["macs"])
    assert all(set(at) == set(range(len(sample.space.choices[name]))) for name, at in sample.options.items())
    whole = screened("hybrid", most=sample.space.size)
    assert not whole.sampled
    assert len(whole) == sample.space.size


def test_more_combinations_than_a_number_can_tell_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for numbers in (1, 7, 30):
        monkeypatch.setattr("onenet_bench.screen.CODES", numbers)
        screening = screened("depth_scale")
        assert assert_equals_singles(screening, range(len(screening)))
    many = range(1, 20_001)
    vast = SearchSpace(
        name="vast",
        choices={
            "width": tuple(many), "most": tuple(many), "growth": tuple(1 + n / 20_000 for n in many),
            "taps": tuple(2 * n + 1 for n in many), "scale": (2, 3, 4), "encoder": ("onenet1d", "conv2d"),
            "skips": (True, False), "repeat": (1, 2, 3), "heads": ("top", "all"),
        },
        net={
            "depth": 2, "width": "$width", "max_channels": "$most", "growth": "$growth", "spatial_kernel": "$taps",
            "scale": ["$scale", 2], "encoder": "$encoder", "skips": "$skips", "repeat": "$repeat", "heads": "$heads",
        },
    )  # fmt: skip
    monkeypatch.undo()
    assert vast.size > 2**63
    sample = screen(vast, 24, classes=3, most=300)
    assert sample.sampled
    assert assert_equals_singles(sample, range(300)) == 298
    for index in np.flatnonzero(~sample.possible).tolist():
        spec = vast.spec(sample.choices(index), classes=3, in_channels=3)
        with pytest.raises(SpecError, match="reaches no further than the tensor that it mirrors"):
            plan(spec, (3, 24, 24))


def test_a_budget_lets_through_what_does_not_exceed_it() -> None:
    screening = screened("depth_scale")
    exact = int(screening.costs["macs"][screening.distinct][7])  # a limit that one net meets exactly
    budget = [Budget(cost="macs", limit=exact), Budget.parse("peak_inference_mib <= 0.2")]
    fits = screening.fits(budget)
    wanted = [(alone := single(screening, i)) is not None and not excess(alone[0], budget) for i in range(len(fits))]
    assert fits.tolist() == wanted
    assert 0 < fits.sum() < screening.possible.sum()
    np.testing.assert_array_equal(screening.fits([]), screening.possible)


def test_a_frame_has_choices_and_costs() -> None:
    screening = screened("depth_scale")
    frame = screening.frame(screening.distinct)
    assert len(frame) == screening.distinct.sum()
    for index in (frame.index[0], frame.index[-1]):
        choices = {f"choice.{name}": value for name, value in screening.choices(index).items()}
        assert {name: frame.loc[index, name] for name in choices} == choices
        assert frame.loc[index, "macs"] == screening.costs["macs"][index]


def test_what_cannot_be_screened_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"a screening knows parameters, .*asks for latency_ms; leave it out"):
        screened("depth_scale").fits([Budget.parse("latency_ms <= 3")])
    for depth in (2.5, 2.0, 0):
        odd = SearchSpace(name="odd", choices={"w": (4, 8)}, net={"width": "$w", "depth": depth})
        assert not screen(odd, 8, classes=2).possible.any()


# The command -------------------------------------------------------------------------------------------------


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onenet_bench", "screen", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_counts_and_fronts_and_writes_the_page(tmp_path: Path) -> None:
    words = ["--space", "depth_scale", "--budget", "macs <= 2M", "--budget", "parameters <= 5k"]
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(call(*words, "--json", cwd=tmp_path).stdout)
    assert said["combinations"] == said["counted"] == 540
    assert said["impossible"] + said["distinct"] == 540  # every choice of this space shows in the net
    assert not said["sampled"]
    printed = " ".join(done.stdout.split())
    for words_of, name in (
        ("make no net", "impossible"),
        ("distinct nets", "distinct"),
        ("within the budget", "fitting"),
    ):
        assert f"{words_of} {said[name]} " in printed
    largest = next(front for front in said["fronts"] if front["kind"] == "largest")
    assert largest["nets"]
    for index in largest["nets"]:
        net = said["nets"][str(index)]
        assert net["costs"]["macs"] <= 2e6
        assert net["costs"]["parameters"] <= 5e3
        assert net["label"] in done.stdout
    page = (tmp_path / said["report"]).read_text(encoding="utf-8")
    assert said["report"] == "reports/screen-depth_scale.html"
    assert "onenet-bench screen --space depth_scale --budget &#39;macs &lt;= 2M&#39;" in page


def test_the_command_samples_and_says_so(tmp_path: Path) -> None:
    words = ["--space", "hybrid", "--most", "200", "--resolution", "32", "--classes", "3", "--channels", "1"]
    done = call(*words, "--budget", "macs <= 9M", "--out", "here.html", cwd=tmp_path)
    assert "drawn at random 200 more combinations than are enumerated (--most)" in " ".join(done.stdout.split())
    assert "one 1x32x32 image, 3 classes" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["here.html"]
    assert "200 of its 10,368 combinations were drawn" in (tmp_path / "here.html").read_text(encoding="utf-8")


TYPOS = {
    "kind": ({"encoder": ["conv2d", "onenet_1d"]}, {}, "the 2 combinations .* unknown block kind 'onenet_1d'"),
    "depth": ({"depth": "$depth"}, {"depth": [40, 41]}, "the 4 combinations .* 1 to 30 levels here, but got depth=40"),
    "circle": ({}, {"width": ["$width", "b"]}, r"width must be a number, but got '\$width'"),
    "of many": ({"scale": 7, "max_channels": "$n"}, {"n": list(range(1, 3000))}, "the 2,000 combinations .* got 7"),
}


@pytest.mark.parametrize("case", TYPOS)
def test_a_space_without_any_net_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "MOST", 2000)
    net, choices, sentence = TYPOS[case]
    reached = SearchSpace(
        name="typo", choices={"width": (4, 8), **{name: tuple(options) for name, options in choices.items()}},
        net={"depth": 2, "width": "$width", **net},
    )  # fmt: skip
    with pytest.raises(SpaceError, match=sentence):
        screening.check(reached, 28, (), classes=2)


def test_a_net_within_the_budget_is_looked_for_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to as many as are enumerated; of a larger space nothing is said that is not known."""
    monkeypatch.setattr(screening, "FEW", 3)
    reached = space.load("hybrid")
    known = screen(reached, 64, classes=8)
    least = int(known.costs["macs"].min())
    limits = [Budget(cost="macs", limit=least), Budget(cost="latency_ms", limit=1e-9)]
    assert not screen(reached, 64, classes=8, most=screening.FEW).fits(limits[:1]).any()
    screening.check(reached, 64, limits, classes=8)
    tight = [Budget(cost="macs", limit=least - 1)]
    with pytest.raises(SpaceError, match=rf"none within macs <= {least - 1}; .* least there are, macs {least:,}$"):
        screening.check(reached, 64, tight, classes=8)
    monkeypatch.setattr(screening, "MOST", 10_000)
    screening.check(reached, 64, tight, classes=8)


WRONG = {
    "unknown space": (["--space", "depth"], "unknown space 'depth'; known: depth_scale"),
    "no net": (
        ["--space", "hybrid", "--resolution", "63"],
        "none of the 10,368 .*multiple of 4.* got 63; use 60 or 64",
    ),
    "budget": (["--budget", "small"], "a budget reads COST <= NUMBER"),
    "cost": (["--budget", "latency_ms <= 3"], "asks for latency_ms; leave it out"),
    "file": (["--out", "/proc/here.html"], "must be writable, but /proc/here.html is not"),
    "classes": (["--classes", "0"], "greater than or equal to 1"),
    "too large": (["--classes", "9" * 20], "costs of a net fit 64 bits, but depth_scale has larger ones at"),
    "most": (["--most", "0"], "greater than or equal to 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(case: str, tmp_path: Path) -> None:
    words, sentence = WRONG[case]
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
