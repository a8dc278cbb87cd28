"""Fidelity: ranks, rungs, and the audit. Rules that are known to be wrong are run beside the right one, and fail."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optuna.study._multi_objective import _fast_non_domination_rank

from onenet_bench import pareto
from onenet_bench.recipe import Recipe
from onenet_bench.search import fidelity
from onenet_bench.search.fidelity import AUDITED, Halving, best, kendall, length, room

OBJECTIVES = pareto.objectives(["miou", "parameters", "macs"])
Rule = Callable[[Any, int], Any]


# Ranks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_come_front_by_front(m: int, seed: int) -> None:
    points = np.random.default_rng([seed, m]).integers(0, 6, (40, m)).astype(float)  # with ties and equal points
    depth: dict[int, int] = {}  # by brute force: one more than the deepest that dominates it
    for row in sorted(range(40), key=lambda i: points[i].sum()):
        above = [depth[i] for i in depth if pareto.dominates(points[i].tolist(), points[row].tolist())]
        depth[row] = 1 + max(above, default=-1)
    order = best(points, 40).tolist()
    assert sorted(order) == list(range(40))
    ranks = [depth[row] for row in order]
    assert ranks == sorted(ranks)
    assert [depth[row] for row in range(40)] == _fast_non_domination_rank(points).tolist()
    for most in (0, 1, 7, 23):
        assert best(points, most).tolist() == order[:most]


def test_within_a_front_those_with_the_most_room_come_first() -> None:
    points = np.array([[0.0, 10], [1, 9], [1.5, 8.5], [5, 4], [10, 0]])
    # by hand: the gap between a point's neighbours in each objective, over the range of 10
    assert room(points) == pytest.approx([math.inf, 0.15 + 0.15, 0.4 + 0.5, 0.85 + 0.85, math.inf])
    assert best(points, 5).tolist() == [0, 4, 3, 2, 1]
    assert room(np.ones((3, 2))).tolist() == [0, 0, 0]


def test_kendall_is_what_the_pairs_say() -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        x, y = draws.integers(0, 5, (2, 12)).tolist()
        band = draws.integers(0, 3, 12).tolist()
        for bands in (None, band):
            agree, in_x, in_y = 0, 0, 0
            for i in range(12):
                for j in range(i):
                    if bands is None or bands[i] == bands[j]:
                        a, b = (x[i] > x[j]) - (x[i] < x[j]), (y[i] > y[j]) - (y[i] < y[j])
                        agree, in_x, in_y = agree + a * b, in_x + abs(a), in_y + abs(b)
            assert kendall(x, y, bands) == pytest.approx(agree / math.sqrt(in_x * in_y))
    assert kendall([1, 2, 3, 4], [2, 3, 5, 9]) == 1
    assert kendall([1, 2, 3, 4], [9, 5, 3, 2]) == -1
    assert kendall([1, 1, 1], [1, 2, 3]) is None
    assert kendall([], []) is None


# Who may leave a rung --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [9, 36])
@pytest.mark.parametrize("correlation", [0.3, 0.7])
def test_the_lower_bound_of_tau_holds_nine_times_in_ten(n: int, correlation: float) -> None:
    """On pairs from a normal distribution, whose tau is known: 2/π·arcsin of the correlation."""
    draws = np.random.default_rng([n, 7])
    held = 0
    for _ in range(400):
        x, noise = draws.normal(size=(2, n))
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        bound = fidelity.kendall_bound(x.tolist(), y.tolist())
        tau = kendall(x, y)
        assert bound is not None
        assert tau is not None
        assert bound <= tau
        held += bound <= 2 / math.pi * math.asin(correlation)
    assert 0.85 < held / 400 < 0.96


def by_score_alone(points: Any, most: int) -> Any:
    """What a scheduler of one metric does."""
    return np.argsort(points[:, 0], kind="stable")[:most]


def order_read_as_ranks(points: Any, most: int) -> Any:
    """The place in a sorted list taken for a rank: those are kept whose *index* is named first."""
    ranks = best(points, len(points))
    return np.flatnonzero(ranks < most)


def small_nets_survive(rule: Rule, seed: int) -> bool:
    """Larger nets have higher scores; whether any of the smallest half, by no other beaten, may go on."""
    draws = np.random.default_rng(seed)
    size = np.sort(draws.uniform(0, 1, 30))
    points = np.stack([-(0.3 + 0.5 * size), size], axis=1)  # a front, all of them
    return bool(set(rule(points, 10)) & set(range(15)))


def who_dominates_all_is_kept(rule: Rule, seed: int) -> bool:
    draws = np.random.default_rng(seed)
    points = draws.uniform(0, 1, (draws.integers(1, 40), 3))
    winner = int(draws.integers(len(points)))
    points[winner] = -0.1
    return winner in rule(points, math.ceil(len(points) / 3))


CHECKS = {"small nets survive": small_nets_survive, "who dominates all is kept": who_dominates_all_is_kept}
RULES: dict[str, tuple[Rule, set[str]]] = {
    "ours": (best, set(CHECKS)),
    "by score alone": (by_score_alone, {"who dominates all is kept"}),
    "order read as ranks": (order_read_as_ranks, {"small nets survive"}),
}


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_keeps(name: str) -> None:
    rule, passes = RULES[name]
    assert {check for check, holds in CHECKS.items() if all(holds(rule, seed) for seed in range(50))} == passes


def costs(parameters: float, macs: float) -> Any:
    return SimpleNamespace(parameters=parameters, macs=macs)


def opened(epochs: int = 27, first: int | None = 0) -> Halving:
    made = Halving(OBJECTIVES, Recipe(epochs=epochs), "auto")
    made.first = first
    return made


@pytest.mark.parametrize("seed", range(10))
def test_a_trial_that_dominates_its_rung_is_never_stopped_whenever_it_comes(seed: int) -> None:
    draws = np.random.default_rng(seed)
    halving = opened()
    stopped = 0
    for trial in range(40):
        if trial == 10 + seed:
            halving.enter(trial, costs(9, 9))
            rung = halving.reach(trial, {"epoch": 1, "miou": 0.95})
            assert rung == 0
            assert halving.goes_on(trial, rung)
        else:
            halving.enter(trial, costs(*draws.uniform(10, 1000, 2)))
            rung = halving.reach(trial, {"epoch": 1, "miou": draws.uniform(0, 0.9)})
            assert rung == 0
            stopped += not halving.goes_on(trial, rung)
    assert stopped >= 15


def test_rungs_are_the_first_epochs_with_a_share_of_the_recipe() -> None:
    def reached(recipe: Recipe, steps: int = 1) -> dict[int, int]:
        halving = Halving(OBJECTIVES, recipe, "auto")
        whole = recipe.steps // steps or recipe.epochs
        return {
            epoch: halving.rungs[rung].denominator
            for epoch in range(1, whole + 1)
            if (rung := halving.reach(0, {"epoch": epoch, "step": epoch * steps, "miou": 0.5})) is not None
        }

    assert reached(Recipe(epochs=27)) == {1: 27, 3: 9, 9: 3}
    assert reached(Recipe(epochs=300)) == {12: 27, 34: 9, 100: 3}
    assert reached(Recipe(epochs=12)) == {1: 27, 2: 9, 4: 3}
    assert reached(Recipe(epochs=3)) == {1: 3}
    assert reached(Recipe(epochs=2)) == {1: 3}
    assert reached(Recipe(epochs=1)) == {}
    assert reached(Recipe(steps=270), steps=10) == {1: 27, 3: 9, 9: 3}
    halving = Halving(OBJECTIVES, Recipe(epochs=27), "off")
    assert halving.reach(0, {"epoch": 1, "miou": 0.5}) is None
    assert length(Recipe(steps=270), {"epoch": 1, "step": 10}) == (10, 270)


def test_a_stopped_trial_is_promoted_once_its_rung_has_grown_and_the_highest_rung_comes_first() -> None:
    halving = opened()
    for trial, score in enumerate([0.9, 0.8, 0.7]):  # one may go on: the first came when it was alone
        halving.enter(trial, costs(10, 10))
        assert halving.reach(trial, {"epoch": 1, "miou": score}) == 0
        if not halving.goes_on(trial, 0):
            halving.stopped[trial] = 0
    assert halving.stopped == {1: 0, 2: 0}
    assert halving.promotable(halving.stopped) is None
    halving.enter(3, costs(10, 10))
    halving.reach(3, {"epoch": 1, "miou": 0.6})
    halving.stopped[3] = 0
    assert halving.promotable(halving.stopped) == 1  # two of four
    for trial, score in ((0, 0.9), (4, 0.8), (5, 0.7), (6, 0.6)):
        halving.enter(trial, costs(10, 10))
        halving.reach(trial, {"epoch": 3, "miou": score})
        halving.stopped |= {trial: 1} if trial else {}
    assert halving.promotable(halving.stopped) == 4
    assert halving.promotable({1}) == 1  # the others have not come to stop yet
    halving.ended(4, failed=True)  # then there are three of them, and it is too early again
    assert halving.promotable(halving.stopped) == 1


def test_who_has_failed_is_no_measure_of_others() -> None:
    halving = opened()
    halving.enter(0, costs(1, 1))
    halving.reach(0, {"epoch": 1, "miou": 0.99})
    halving.enter(1, costs(2, 2))
    assert halving.reach(1, {"epoch": 1, "miou": 0.5}) == 0
    assert not halving.goes_on(1, 0)
    halving.ended(0, failed=True)
    assert halving.goes_on(1, 0)


def test_who_has_a_cost_or_a_score_that_is_not_known_goes_on() -> None:
    halving = opened()
    for trial in range(6):
        halving.enter(trial, costs(10, 10))
        halving.reach(trial, {"epoch": 1, "miou": 0.5 + trial / 100})
    halving.enter(6, SimpleNamespace(parameters=1e9, macs=None))
    assert halving.reach(6, {"epoch": 1, "miou": 0.1}) == 0
    assert halving.goes_on(6, 0)
    halving.enter(7, costs(1e9, 1e9))
    assert halving.reach(7, {"epoch": 1}) is None
    assert halving.reach(7, {"epoch": 2, "miou": 0.1}) == 0  # the first that has a score
    assert not halving.goes_on(7, 0)


# The audit -------------------------------------------------------------------------------------------------


def audited(early: Callable[[int, int], float], late: Callable[[int], float], number: int = AUDITED) -> dict[str, Any]:
    """An audit of nets 0, 1, … of rising cost, with ``early`` scores by (net, epoch) and ``late`` ones."""
    halving = opened(first=None)
    for trial in range(number):
        halving.enter(trial, costs(10.0 ** (1 + trial), 10.0 ** (1 + trial)))
        for epoch in range(1, 28):
            halving.reach(trial, {"epoch": epoch, "miou": early(trial, epoch)})
    return halving.audit({trial: {"miou": late(trial)} for trial in range(number)})


def late(trial: int) -> float:
    return 0.3 + 0.05 * trial + 0.12 * (trial % 3 == 0)


def test_an_audit_finds_the_rung_from_which_on_scores_agree() -> None:
    found = audited(lambda trial, epoch: late(trial) / 2, late)
    assert found["first"] == 0
    assert found["reason"] == "candidates may be stopped from epoch 1 on"
    assert [(row["share"], row["epoch"], row["nets"]) for row in found["rungs"]] == [
        ("1/27", 1, 9), ("1/9", 3, 9), ("1/3", 9, 9),
    ]  # fmt: skip
    assert all(row["kendall"] == row["like_cost"] == 1 and row["bands"] == [1, 1, 1] for row in found["rungs"])
    found = audited(lambda trial, epoch: late(trial) * (1 if epoch >= 3 else -1), late)
    assert found["first"] == 1
    assert [row["passed"] for row in found["rungs"]] == [False, True, True]
    found = audited(lambda trial, epoch: late(trial) * (1 if epoch < 9 else -1), late)  # better early than late: luck
    assert found["first"] is None
    assert [row["passed"] for row in found["rungs"]] == [True, True, False]


def test_what_only_tells_large_nets_from_small_ones_is_not_trusted() -> None:
    found = audited(
        lambda trial, epoch: 0.1 * (trial // 30) + 0.001 * (trial * 11 % 30),
        lambda trial: 0.1 * (trial // 30) + 0.001 * (trial % 30),
        number=90,
    )
    for row in found["rungs"]:
        assert row["kendall_bound"] >= fidelity.AGREEMENT
        assert abs(row["like_cost"]) < 0.2
        assert row["bands"] == [row["like_cost"]] * 3
    assert found["first"] is None


def test_what_only_tells_nets_of_like_cost_apart_is_not_trusted() -> None:
    found = audited(
        lambda trial, epoch: 0.01 * trial - 0.1 * (trial // 3), lambda trial: 0.1 * (trial // 3) + 0.01 * trial
    )
    assert all(row["like_cost"] == 1 and row["kendall"] < 0 for row in found["rungs"])
    assert found["first"] is None
    assert found["reason"] == (
        "nobody is stopped: at epoch 9 Kendall's τ for mIoU is ≥ -0.50, and ≥ 1.00 among nets of like cost, where "
        "≥ 0.6 is asked of both"
    )


def test_the_reason_names_a_score_that_is_not_trusted() -> None:
    halving = Halving(pareto.objectives(["miou", "ce", "parameters", "macs"]), Recipe(epochs=27), "auto")
    for trial in range(AUDITED):
        halving.enter(trial, costs(10.0 ** (1 + trial), 10.0 ** (1 + trial)))
        for epoch in range(1, 28):
            halving.reach(trial, {"epoch": epoch, "miou": -late(trial), "ce": 1 - late(trial)})
    found = halving.audit({trial: {"miou": late(trial), "ce": 1 - late(trial)} for trial in range(AUDITED)})
    assert [row["passed"] for row in found["rungs"][-2:]] == [False, True]
    assert "Kendall's τ for mIoU is ≥ -1.00, and ≥ -1.00 among nets" in found["reason"]


@pytest.mark.parametrize(
    ("early", "final", "number"),
    [
        (lambda trial, epoch: 0.5, late, AUDITED),
        (lambda trial, epoch: late(trial), lambda trial: 0.5, AUDITED),
        (lambda trial, epoch: late(trial), late, AUDITED - 1),
    ],
    ids=["constant early", "constant late", "too few"],
)
def test_what_cannot_be_told_is_not_trusted(early: Any, final: Any, number: int) -> None:
    assert audited(early, final, number)["first"] is None


def test_an_audit_without_early_scores_says_so() -> None:
    halving = Halving(OBJECTIVES, Recipe(epochs=1), "auto")
    found = halving.audit({trial: {"miou": late(trial)} for trial in range(AUDITED)})
    assert (found["first"], found["rungs"]) == (None, [])
    assert found["reason"] == "nobody is stopped: no epoch before the last was reported"


# All of it, on simulated learning curves ---------------------------------------------------------------------


def curves(seed: int, *, trust: bool) -> tuple[Any, Any, Any]:
    """Scores (nets, epochs), parameters and macs of made-up nets: larger ones are better, some more than others.
    With ``trust`` their early scores are low and a little noisy; without, they are noise."""
    draws = np.random.default_rng(seed)
    size, quality, depth = draws.uniform(0, 1, (3, 600))
    final = 0.3 + 0.25 * size**0.5 + 0.3 * quality
    share = np.arange(1, 28) / 27
    grown = final[:, None] * (1 - np.exp(-5 * share)) + draws.normal(0, 0.01, (600, 27)) * (1 - share)
    scores = grown if trust else draws.uniform(0, 0.5, (600, 27))
    scores[:, -1] = final
    return scores, 10 ** (4 + 2 * size), 10 ** (6 + 2 * size + 0.5 * depth)


def replay(table: tuple[Any, Any, Any], seed: int, fidelity: str, workers: int, epochs: int) -> tuple[list[int], Any]:
    """``workers`` train nets in random order, an epoch at a time, for ``epochs`` in all: who was trained to the end,
    and the halving."""
    scores, parameters, macs = table
    halving = Halving(OBJECTIVES, Recipe(epochs=27), fidelity)
    new = iter(np.random.default_rng(seed).permutation(len(scores)).tolist())
    done: dict[int, int] = {}
    final: dict[int, dict[str, float]] = {}
    clock: list[tuple[float, int | None]] = [(worker / workers, None) for worker in range(workers)]
    for _ in range(epochs):
        now, trial = heapq.heappop(clock)
        if trial is None:
            trial = halving.promotable(halving.stopped)
            if trial is None:
                trial = next(new)
                halving.enter(trial, costs(parameters[trial], macs[trial]))
            else:
                del halving.stopped[trial]
        epoch = done[trial] = done.get(trial, 0) + 1
        score = float(scores[trial, epoch - 1])
        rung = halving.reach(trial, {"epoch": epoch, "miou": score})
        following: int | None = trial
        if epoch == 27:
            following, final[trial] = None, {"miou": score}
            if halving.rungs and halving.first is None and len(final) in (AUDITED, 2 * AUDITED):
                halving.first = halving.audit(final)["first"]
        elif rung is not None and not halving.goes_on(trial, rung):
            following, halving.stopped[trial] = None, rung
        heapq.heappush(clock, (now + 1 + 1e-6 * trial, following))
    return list(final), halving


@pytest.mark.parametrize("workers", [1, 8])
def test_for_the_same_training_the_front_is_better_where_early_scores_can_be_trusted(workers: int) -> None:
    gains = []
    for seed in range(8):
        table = curves(seed, trust=True)
        rows = {"miou": table[0][:, -1], "parameters": table[1], "macs": table[2]}
        box = pareto.Box.around(OBJECTIVES, rows)
        shares = []
        for name in ("auto", "off"):
            trials, halving = replay(table, seed, name, workers, 27 * 60)
            assert (halving.first is not None) == (name == "auto")
            shares.append(box.hypervolume({key: values[trials] for key, values in rows.items()}))
        gains.append(shares[0] / shares[1])
    assert np.median(gains) > 1.02, gains
    assert min(gains) > 1, gains


def test_where_early_scores_are_noise_all_is_as_without() -> None:
    for seed in range(6):
        table = curves(seed, trust=False)
        trials, halving = replay(table, seed, "auto", 4, 27 * 30)
        assert halving.first is None
        assert trials == replay(table, seed, "off", 4, 27 * 30)[0]
