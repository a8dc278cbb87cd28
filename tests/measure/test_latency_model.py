"""The predictor: its arithmetic against brute force, its fit against a machine whose prices are known."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onenet_bench import costs, zoo
from onenet_bench.errors import MeasureError
from onenet_bench.measure import latency, latency_model
from onenet_bench.measure.latency import Conditions
from onenet_bench.models.deploy import deployed_plan
from onenet_bench.plan import OPS
from onenet_bench.spec import NetSpec

CONDITIONS = Conditions(runtime="torch", form="trained", resolution=64)
WHOLE = ["unet_4", "mobilenet_unet", "onenet_e_4", "onenet_ed_4", "resnet34_unet"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A machine without noise whose prices are those of the model; gives how many nets each measurement had."""
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path))
    prices = np.random.default_rng(0).uniform(0.01, 1, 3 * len(latency_model.KINDS) + 2)
    asked: list[int] = []

    def run(request: Mapping[str, Any], threads: int) -> list[tuple[list[float], list[float]]]:
        asked.append(len(request["nets"]))
        times = [
            float(latency_model.amounts(NetSpec.from_dict(spec), Conditions(**conditions)) @ prices)
            for spec, conditions in request["nets"]
        ]
        return [([time] * request["repeats"], [0.0] * request["repeats"]) for time in times]

    monkeypatch.setattr(latency, "_run", run)
    return asked


def test_prices_that_are_true_are_found(machine: list[int]) -> None:
    predictor = latency_model.fit(CONDITIONS)
    assert machine == [latency_model.PROBES]
    assert predictor.judge(latency_model.judges(CONDITIONS)) is None
    latency.measure([zoo.get(name) for name in WHOLE], CONDITIONS)
    judged = latency_model.judges(replace(CONDITIONS, resolution=32))
    assert [one.spec for one in judged] == [zoo.get(name) for name in WHOLE]
    judgement = predictor.judge(judged)
    assert judgement is not None
    assert (judgement.nets, judgement.rank_correlation) == (5, pytest.approx(1))
    assert judgement.p90_error < 0.02  # kinds that no probe tells apart share their prices


def test_probes_are_measured_once(machine: list[int]) -> None:
    assert latency_model.fitted(CONDITIONS) is None
    first = latency_model.fit(CONDITIONS)
    again, elsewhere = latency_model.fit(CONDITIONS), latency_model.fitted(replace(CONDITIONS, resolution=128))
    assert elsewhere is not None
    assert np.array_equal(first.prices, again.prices)
    assert np.array_equal(first.prices, elsewhere.prices)
    assert machine == [latency_model.PROBES]
    assert latency_model.fitted(replace(CONDITIONS, threads=2)) is None


def test_what_cannot_be_kept_cannot_be_fitted(
    machine: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept"), pytest.raises(MeasureError, match="set ONENET_BENCH_CACHE"):
        latency_model.fit(CONDITIONS)


def test_probes_hold_every_kind_of_layer() -> None:
    probes = latency_model.probes(Conditions(runtime="torch"))
    assert len({(spec.digest(), under.resolution) for spec, under in probes}) == latency_model.PROBES
    for form in latency.FORMS:
        amounts = sum(latency_model.amounts(spec, replace(under, form=form)) for spec, under in probes)
        present = np.asarray(amounts)[:-2].reshape(-1, 3)[:, 2] > 0
        assert present.all(), (form, list(latency_model.KINDS))
    assert latency_model._KIND_OF.keys() | {"conv", "linear"} >= OPS.keys()


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("form", latency.FORMS)
def test_amounts_add_up_to_the_nets_own(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_model, "LANES", 1)
    spec = zoo.get(name)
    amounts = latency_model.amounts(spec, replace(CONDITIONS, form=form, batch=3))
    counted = costs.count(spec, 64)
    if form == "deployed":
        counted = costs.count_plan(deployed_plan(spec, (3, 64, 64)))
    assert amounts[:-2].reshape(-1, 3)[:, 0].sum() == pytest.approx(3e-6 * counted.macs)
    assert amounts[-2] == pytest.approx(4e-6 * counted.parameters_used)
    assert amounts[-1] == 1


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 6))
@settings(max_examples=60)
def test_non_negative_least_squares_is_that_of_brute_force(seed: int, columns: int, more: int) -> None:
    draws = np.random.default_rng(seed)
    a, b = draws.normal(size=(columns + more, columns)), draws.normal(size=columns + more)
    if seed % 5 == 0:
        a[:, -1] = 0  # a kind that no net has
    best = np.inf
    for chosen in itertools.product([False, True], repeat=columns):
        x = np.zeros(columns)
        x[list(chosen)] = np.linalg.lstsq(a[:, list(chosen)], b, rcond=None)[0]
        if (x >= 0).all():
            best = min(best, float(np.linalg.norm(a @ x - b)))
    found = latency_model.non_negative(a, b)
    assert (found >= 0).all()
    assert np.linalg.norm(a @ found - b) == pytest.approx(best, rel=1e-8)


def test_a_judgement_is_what_it_says() -> None:
    measured = np.array([1.0, 2.0, 4.0, 10.0, 20.0])
    judgement = latency_model.judgement(np.array([1.1, 1.0, 4.0, 30.0, 25.0]), measured)
    assert judgement.nets == 5
    assert judgement.median_error == pytest.approx(0.25)  # of 0.1, 0.5, 0, 2, 0.25
    assert judgement.p90_error == pytest.approx(0.5 + 0.6 * 1.5)
    assert judgement.rank_correlation == pytest.approx(1 - 6 * (1 + 1 + 0 + 1 + 1) / (5 * 24))  # no ties


def test_the_command_says_how_far_it_is_off(machine: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    from onenet_bench.cli import app

    how = ["--runtime", "torch", "--form", "trained", "--resolution", "64"]
    app(["latency", "--fit", *how], standalone_mode=False)
    assert "how far it is off is known once two other nets" in capsys.readouterr().out
    app(["latency", "--fit", *WHOLE, *how], standalone_mode=False)
    said = capsys.readouterr().out
    assert re.search(r"unet_4 +\S+ +.* +1\.00 ", said)
    assert re.search(r"predicted *$", said, re.MULTILINE)  # a heading of the last column
    assert re.search(
        r"on 5 other nets measured here: median error \d%, 90th percentile \d%, rank correlation 1\.0", said
    )
    app(["latency", "--fit", *how, "--json"], standalone_mode=False)
    facts = json.loads(capsys.readouterr().out)
    assert facts["nets"] == []
    assert facts["judgement"]["nets"] == 5
    assert facts["predictor"]["prices_us"].keys() == latency_model.KINDS.keys()
