"""The sampler that knows its costs: what it may propose, what it proposes, and how fast that finds a known front."""

from __future__ import annotations

import gc
import json
import math
import re
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from benchmarks.search import Table, kept, replay, simulate
from onenet_bench import costs, space
from onenet_bench.budget import Budget, excess
from onenet_bench.errors import SpaceError
from onenet_bench.pareto import hypervolume, objectives
from onenet_bench.recipe import Recipe
from onenet_bench.record import Status
from onenet_bench.search import candidates, frontier, samplers, surrogate
from onenet_bench.search.core import Search
from onenet_bench.search.frontier import FrontierSampler
from onenet_bench.search.gain import cells, expected_gain
from onenet_bench.search.parameters import as_parameters, distributions
from onenet_bench.space import SearchSpace
from tests.search.test_core import SPACE as SMALL
from tests.search.test_core import TASK, begin, carry_out, search, trained

CHOICES = {**SMALL.to_dict()["choices"], "kind": ["conv2d", "onenet1d", "separable2d"], "stem_repeat": [1, 2]}
NET = {**SMALL.net, "stem_repeat": "$stem_repeat"}
SPACE = SearchSpace.from_dict({**SMALL.to_dict(), "choices": CHOICES, "net": NET})  # 99 nets of 6000 parameters at most
SIDE = 36  # pixels
BUDGET = (Budget.parse("parameters <= 6000"),)
THREE = ("miou", "parameters", "macs")


def sampler(names: tuple[str, ...] = THREE, **changes: Any) -> FrontierSampler:
    asked = {"resolution": SIDE, "classes": 2, "objectives": objectives(names), "budget": BUDGET, "seed": 3, **changes}
    return FrontierSampler(SPACE, **asked)


def study_of(names: tuple[str, ...] = THREE, **changes: Any) -> optuna.Study:
    directions = ["maximize" if o.maximise else "minimize" for o in objectives(names)]
    return optuna.create_study(directions=directions, sampler=sampler(names, **changes))


def searched(trials: int) -> Search:
    return search("frontier", trials, space=SPACE, task=replace(TASK, resolution=SIDE))


def digest(choices: dict[str, Any]) -> str:
    return SPACE.spec(choices, classes=2, in_channels=3).digest()


def affordable(budget: tuple[Budget, ...] = BUDGET, batch: int | None = None) -> set[str]:
    """The nets within budget, one after the other and without a screening."""
    found = set()
    for choices in SPACE.enumerate():
        spec = SPACE.spec(choices, classes=2, in_channels=3)
        if SIDE % spec.total_scale == 0 and not excess(costs.count(spec, SIDE, batch=batch), budget):
            found.add(spec.digest())
    return found


def values_of(choices: dict[str, Any], names: tuple[str, ...]) -> list[float]:
    """A made-up score, and true costs."""
    counted = costs.count(SPACE.spec(choices, classes=2, in_channels=3), SIDE)
    score = 0.1 * np.log10(counted.macs) + 0.05 * (choices["kind"] == "onenet1d") + 0.01 * choices["depth"]
    known = {"miou": score, "dice": 1 - score, "ce": 2 - score, "latency_ms": counted.macs / 1e5}
    return [float(known.get(name, getattr(counted, name, 0))) for name in names]


def tell_all(study: optuna.Study, names: tuple[str, ...], most: int) -> list[str]:
    """Propose and tell ``most`` nets; their digests."""
    found = []
    for _ in range(most):
        trial = study.ask()
        choices = SPACE.suggest(trial)
        found.append(digest(choices))
        study.tell(trial, values_of(choices, names))
    return found


# What may be proposed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [-math.inf, math.inf])
def test_a_net_of_an_infinite_score_has_failed(score: float) -> None:
    infinite, failed = study_of(), study_of()
    for study in (infinite, failed):
        tell_all(study, THREE, 5)
        choices = SPACE.suggest(trial := study.ask())
        if study is infinite:
            study.tell(trial, [score, *values_of(choices, THREE)[1:]])
        else:
            study.tell(trial, state=TrialState.FAIL)
    assert tell_all(infinite, THREE, 3) == tell_all(failed, THREE, 3)


def test_a_search_trains_every_affordable_net_once_and_ends(tmp_path: Path) -> None:
    book, core = begin(tmp_path, searched(1000))
    carry_out(core)
    book.close()
    assert Counter(r.status for r in core.records) == {Status.COMPLETE: len(affordable())}  # nothing was rejected
    assert {r.spec.digest() for r in core.records if r.spec} == affordable()
    assert core.ended == "all nets of small within parameters <= 6000 were tried"


@pytest.mark.parametrize("names", [
    ("miou", "macs"), ("miou", "parameters", "macs", "peak_inference_mib"), ("miou", "dice", "macs"), ("ce", "macs"),
    ("miou", "latency_ms"), ("parameters", "miou", "latency_ms"),
])  # fmt: skip
def test_any_objectives_and_only_new_nets_within_budget(names: tuple[str, ...]) -> None:
    found = tell_all(study_of(names), names, 25)
    assert len(set(found)) == 25
    assert set(found) <= affordable()


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_options_may_be_lists(tmp_path: Path) -> None:
    kinds = [["conv2d", "onenet1d"], ["onenet1d", "onenet1d"], ["onenet1d", "conv2d"]]
    lists = SearchSpace.from_dict(
        {**SPACE.to_dict(), "choices": {"kinds": kinds, "width": [2, 4]}, "budget": [],
         "net": {"depth": 2, "width": "$width", "encoder": "$kinds"}}
    )  # fmt: skip
    book, core = begin(tmp_path, replace(searched(100), space=lists, budget=()))
    carry_out(core)
    book.close()
    assert Counter(r.status for r in core.records) == {Status.COMPLETE: 6}


def test_a_study_whose_nets_have_all_been_tried_is_told_so() -> None:
    study = study_of()
    assert set(tell_all(study, THREE, len(affordable()))) == affordable()
    with pytest.raises(SpaceError, match="all nets of small within parameters <= 6000 were tried"):
        SPACE.suggest(study.ask())


def test_nets_that_others_tried_are_known_whatever_their_choices() -> None:
    """As with an earlier run's trials: here the last combination of every third net; candidates are the first."""
    study, last = study_of(), {digest(choices): choices for choices in SPACE.enumerate()}
    first = {digest(choices): choices for choices in reversed(list(SPACE.enumerate()))}
    told = set(sorted(affordable())[::3])
    assert sum(first[name] != last[name] for name in told) > 5
    for name in told:
        study.add_trial(
            create_trial(
                params=as_parameters(SPACE, last[name]), distributions=distributions(SPACE),
                values=values_of(last[name], THREE),
            )
        )  # fmt: skip
    assert set(tell_all(study, THREE, len(affordable()) - len(told))) == affordable() - told


def test_pending_trials_are_not_proposed_twice() -> None:
    """Not even those whose choices Optuna has not noted yet."""
    study = study_of()
    tell_all(study, THREE, 12)
    running = [study.ask() for _ in range(20)]
    for trial in running:
        assert trial.relative_params
    found = [digest(SPACE.suggest(trial)) for trial in running]
    assert len(set(found)) == 20


def test_before_anything_was_told_proposals_are_spread() -> None:
    study = study_of()
    counted = [costs.count(SPACE.spec(SPACE.suggest(study.ask()), classes=2, in_channels=3), SIDE) for _ in range(16)]
    price = np.log([c.parameters * c.macs for c in counted])
    within = affordable()
    nets = {digest(c): SPACE.spec(c, classes=2, in_channels=3) for c in SPACE.enumerate()}
    every = np.log([c.parameters * c.macs for c in (costs.count(nets[name], SIDE) for name in within)])
    assert price[0] == every.min()
    assert price[1] == every.max()
    quarters = Counter(np.searchsorted(np.quantile(every, [0.25, 0.5, 0.75]), price).tolist())
    assert all(quarters[i] >= 2 for i in range(4))


def test_a_budget_on_the_memory_of_training_is_held_too() -> None:
    recipe = Recipe(batch=5)
    limit = (*BUDGET, Budget.parse("peak_training_mib <= 1.9"))
    within = affordable(limit, batch=5)
    assert 30 < len(within) < 0.8 * len(affordable())
    study = study_of(budget=limit, recipe=recipe)
    assert set(tell_all(study, THREE, len(within))) == within
    with pytest.raises(SpaceError, match=r"within parameters <= 6000 and peak_training_mib <= 1.9 were tried"):
        SPACE.suggest(study.ask())
    with pytest.raises(SpaceError, match="depends on the recipe"):
        study_of(budget=limit)


COMBINATIONS = {"MOST": 100, "COMBINATIONS": 80, "SCREENED_ANEW": 8}
NETS = {"WHOLE": 98, "DRAWN": 60, "DRAWN_ANEW": 8}


@pytest.mark.parametrize("limits", [COMBINATIONS, NETS, {**COMBINATIONS, "WHOLE": 20, "DRAWN": 18, "DRAWN_ANEW": 4}])
def test_a_space_too_large_is_sampled_anew_every_now_and_then(
    limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(candidates, name, value)
    forget()
    study = study_of()
    found = tell_all(study, THREE, 24)
    assert len(set(found)) == 24
    assert set(found) <= affordable()
    often = limits.get("DRAWN_ANEW", 8)
    per_draw = [sampler()._candidates(number) for number in (0, often - 1, often)]
    assert per_draw[0] is per_draw[1]
    assert {tuple(o) for o in per_draw[0].options} != {tuple(o) for o in per_draw[2].options}
    assert {len(drawn) for drawn in per_draw} <= set(range(limits.get("DRAWN", 80) + 1))
    priced = [per_draw[0].encoding.column(name) for name in frontier.FEATURED]
    for options in map(tuple, per_draw[2].options.tolist()):  # costs are scaled alike in all draws
        first, last = per_draw[0].net(options), per_draw[2].net(options)
        assert first is not None
        assert last is not None
        assert np.array_equal(first.features[priced], last.features[priced])
    assert found == tell_all(study_of(), THREE, 24)


def forget() -> None:
    """What was found under other limits."""
    for made in (candidates._fitting, candidates._encoding, candidates._candidates, candidates._scaled_by):
        made.cache_clear()


def test_a_space_too_large_is_drawn_anew_before_it_is_said_to_have_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 6: the first draw has no net within the budget, the later ones have some."""
    few = (Budget.parse("parameters <= 600"),)
    monkeypatch.setattr(candidates, "MOST", 100)
    monkeypatch.setattr(candidates, "COMBINATIONS", 12)
    forget()
    wanted = replace(searched(1000), budget=few, seed=6)
    draws = [sampler(budget=few, seed=6)._candidates(0, further) for further in range(candidates.REDRAWN)]
    there = {found.spec(row).digest() for found in draws for row in range(len(found))}
    assert len(draws[0]) == 0 < len(there)
    book, core = begin(tmp_path, wanted)
    carry_out(core)
    book.close()
    assert {r.spec.digest() for r in core.records if r.spec} == there
    assert re.fullmatch(r"in 4 draws of [\d,]+ combinations from small was no net within parameters <= 600 that had "
                        "not been tried", core.ended)  # fmt: skip
    forget()


def test_nets_that_are_drawn_are_drawn_anew_before_a_search_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "WHOLE", 50)
    monkeypatch.setattr(candidates, "DRAWN", 6)
    forget()
    memory = (Budget.parse("peak_training_mib <= 1000000"),)
    book, core = begin(tmp_path, replace(searched(1000), budget=memory))
    carry_out(core)
    book.close()
    assert core.ended == (
        "in 4 draws of 6 nets from small was no net within peak_training_mib <= 1e+06 that had not been tried"
    )
    assert len([r for r in core.records if r.status is Status.COMPLETE]) > 6
    forget()


def test_a_space_is_looked_at_in_whole_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "WHOLE", 99)
    monkeypatch.setattr(candidates, "DRAWN", 60)
    assert len(sampler()._candidates(0)) == len(affordable()) == 99


def test_candidates_go_with_the_last_who_uses_them() -> None:
    """Not with the next collection of garbage, which hundreds of megabytes do not bring about."""
    found = sampler()._candidates(0)
    assert len(found.many["miou"]) == len(found)
    gone = weakref.ref(found)
    gc.disable()
    try:
        candidates._candidates.cache_clear()
        del found
        assert gone() is None
    finally:
        gc.enable()


def test_what_cannot_work_is_said() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler())
    with pytest.raises(SpaceError, match="the study must have the directions of miou, parameters, macs"):
        SPACE.suggest(study.ask())
    study = study_of(budget=(Budget.parse("parameters <= 10"),))
    with pytest.raises(SpaceError, match="small has no net within parameters <= 10"):
        SPACE.suggest(study.ask())


def test_a_parameter_that_is_none_of_the_spaces_is_drawn() -> None:
    study = study_of()
    trial = study.ask()
    SPACE.suggest(trial)
    assert 0 <= trial.suggest_float("other", 0, 1) <= 1


# The same again ------------------------------------------------------------------------------------------


def test_one_seed_one_sequence() -> None:
    found = [tell_all(study_of(seed=seed), THREE, 16) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_a_fresh_sampler_goes_on_as_one_that_was_there_all_along() -> None:
    whole = tell_all(study_of(), THREE, 20)
    study, found = study_of(), []
    for _ in range(20):
        surrogate._fit.cache_clear()
        candidates._candidates.cache_clear()
        study.sampler = sampler()
        found += tell_all(study, THREE, 1)
    assert found == whole


# What is proposed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("miou", "macs"), THREE, ("miou", "dice", "macs"), ("miou", "latency_ms")])
def test_the_proposal_gains_most_of_all(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the gains of all candidates, worked out with neither bounds nor portions."""
    monkeypatch.setattr(frontier, "EXAMINED", 4)
    study = study_of(names)
    tell_all(study, names, 14)
    for _ in range(3):
        running = study.ask()
        found = sampler(names)._candidates(0)
        past = sampler(names)._past(study, found)
        unknown = [i for i, name in enumerate(names) if name in ("miou", "dice", "latency_ms")]
        columns = [found.encoding.column(name) for name in names if name in ("macs", "parameters")]
        losses = past.values[:, unknown].copy()
        for j, i in enumerate(unknown):
            if names[i] == "latency_ms":
                logs = np.log(losses[:, j])
                losses[:, j] = (logs - logs.min()) / (logs.max() - logs.min())
            else:
                losses[:, j] = 1 - losses[:, j]
        told = np.array([net.features for net in past.told])
        pending = np.array([net.features for net in past.pending]).reshape(-1, told.shape[1])
        along = [found.encoding.column(name) for name in ("macs", "extent", "encoder_macs")]
        groups = int(found.encoding.groups[-1]) + 1
        expected = np.full(groups, math.sqrt(groups))
        expected[found.encoding.groups[along[1]]] /= 3.5  # scores rise and fall with what a logit sees
        means = [(along, 0.75), (along[:1], 0.25)]
        fits = [surrogate.fit(told, found.encoding.groups, y, expected=expected, means=means) for y in losses.T]
        models = [
            surrogate.Surrogate(fitted, told, found.encoding.groups, y, pending, outliers=True)
            for fitted, y in zip(fits, losses.T, strict=True)
        ]
        seen = np.concatenate([told, pending])
        points = np.hstack([np.stack([m.predict(seen)[0] for m in models], axis=1), seen[:, columns]])
        features = found.features.astype(float)
        mean, deviation = (np.stack([m.predict(features)[i] for m in models], axis=1) for i in range(2))
        gains = expected_gain(cells(points, np.ones(len(names))), mean, deviation, features[:, columns])
        gains[list(past.rows)] = -1
        proposed = found.net(sampler(names)._options(_suggested(study, running)))
        assert proposed is not None
        assert gains[proposed.row] == pytest.approx(gains.max(), rel=1e-6)
        assert gains.max() > np.median(gains)


def _suggested(study: optuna.Study, trial: optuna.Trial) -> Any:
    SPACE.suggest(trial)
    return study.trials[trial.number]


@pytest.mark.parametrize("first", [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED])
def test_a_rejected_duplicate_does_not_make_its_net_a_failure(first: TrialState) -> None:
    study = study_of()
    choices = {"depth": 1, "scale": 2, "width": 6, "kind": "conv2d", "kernel": 0, "stem_repeat": 1}
    for state in (first, TrialState.FAIL):
        values = [0.5, 1.0, 1.0] if state is TrialState.COMPLETE else None
        study.add_trial(
            create_trial(
                params=as_parameters(SPACE, choices), distributions=distributions(SPACE), values=values, state=state
            )
        )
    past = sampler()._past(study, sampler()._candidates(0))
    assert len(past.rows) == 1
    assert len(past.told) == (first is TrialState.COMPLETE)
    assert len(past.pending) == (first is TrialState.RUNNING)
    assert not past.failed.any()


def test_partial_scores_are_no_scores(tmp_path: Path) -> None:
    """A net that was stopped early teaches nothing and is not proposed again."""
    book, core = begin(tmp_path, searched(12))
    while (job := core.ask()) is not None:
        core.tell(replace(trained(job), status=Status.STOPPED if job.trial % 2 else Status.COMPLETE))
    book.close()
    past = sampler()._past(core._study, sampler()._candidates(0))
    assert len(past.told) == len(past.ended) == 6
    assert len(past.rows) == 12
    assert not past.failed.any()


# How fast it finds a known front -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> Table:
    hybrid = space.load("hybrid").to_dict()
    cut = {**hybrid["choices"], "encoder_1": ["onenet1d", "conv2d"], "decoder_1": ["onenet1d", "conv2d"]}
    return simulate(SearchSpace.from_dict({**hybrid, "choices": cut}), landscape=5)


def test_the_table_is_what_it_says(table: Table) -> None:
    assert 1000 < len(table.true) == len(table.rows)
    assert table.hypervolume(range(len(table.true))) == pytest.approx(table.best)
    assert 5 < len(table.front) < len(table.true) / 4
    for digest_, row in list(table.rows.items())[::200]:
        spec = next(s for s in map(_hybrid_spec(table), table.search.space.enumerate()) if s.digest() == digest_)
        assert costs.count(spec, 64).macs == table.costs["macs"][row]
    points = table.box.place({name: v[table.front] for name, v in table.values.items()})
    assert hypervolume(points, np.ones(3)) == pytest.approx(table.best)
    assert np.std(table.told[:, :, 0] - table.true) == pytest.approx(0.008, rel=0.1)


def _hybrid_spec(table: Table) -> Any:
    return lambda choices: table.search.space.spec(choices, classes=8, in_channels=3)


def test_it_finds_more_of_the_front_than_chance(table: Table) -> None:
    """By far: the worst of five seeds beats the best of chance's after 30 nets, and nearly that after as many."""
    ours, chance = (
        [table.hypervolume(replay(table, name, seed, 30).rows) / table.best for seed in range(5)]
        for name in ("frontier", "random")
    )
    assert min(ours) > max(chance)
    assert np.median(ours) > np.median(chance) + 0.1


def test_a_kept_search_is_run_again_where_anything_that_made_it_has_changed(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "search.json"
    first = kept(file, table, "random", 0, 6)
    assert first.rows == replay(table, "random", 0, 6).rows
    monkeypatch.setattr("benchmarks.search.PROPOSED_AGAIN", 3)
    written = json.loads(file.read_text())
    written["replay"]["rows"][3:] = [-1]  # what no search has

    def is_run(table: Table, seed: int = 0) -> bool:
        """Whether another search is made, and not the one from the file."""
        file.write_text(json.dumps(written))
        return -1 not in kept(file, table, "random", seed, 6).rows

    assert not is_run(table)
    assert is_run(replace(table, told=table.told + 1e-9))
    assert is_run(replace(table, costs={**table.costs, "macs": table.costs["macs"] + 1}))
    assert is_run(table, seed=1)  # other nets are proposed
    with monkeypatch.context() as changed:
        changed.setattr("importlib.metadata.version", lambda package: "older")
        assert is_run(table)
    assert not is_run(table)


def test_what_failed_is_avoided_and_so_is_what_is_like_it(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nets with many activations run out of memory: how many of 40 do, with and without the lesson."""
    activations = table.costs["activation_bytes"]
    directions = ["maximize", "minimize", "minimize"]

    def failures() -> int:
        study, failed = optuna.create_study(directions=directions), []
        for number in range(40):
            study.sampler = samplers.make("frontier", table.search, number)
            trial = study.ask()
            choices = table.search.space.suggest(trial)
            row = table.rows[table.search.space.spec(choices, classes=8, in_channels=3).digest()]
            if activations[row] > np.quantile(activations, 0.5):
                failed.append(row)
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, [table.told[0][row, 0], *(table.costs[name][row] for name in THREE[1:])])
        assert len(set(failed)) == len(failed)
        return len(failed)

    learnt = failures()
    monkeypatch.setattr(FrontierSampler, "_succeeds", lambda self, found, past, features: np.ones(len(features)))
    assert learnt < 0.6 * failures()
