"""Nets trained anew: what the page and the terminal say of them, against numbers worked out here."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from onenet_bench import ledger, pareto
from onenet_bench.ledger import Ledger
from onenet_bench.record import SCHEMA, Record, Status
from onenet_bench.report import build_page
from onenet_bench.report.finals import Spread, final_facts, final_rows, final_table, final_words, rows_of
from onenet_bench.report.tables import read_run
from tests.report.conftest import MakeRun, Written, net, scores_of

SEEDS = (1, 2, 3)


def nets_of(run: Written, most: int = 3) -> list[Record]:
    read = read_run(run.path)
    return [read.record(int(trial)) for trial in read.front["trial"]][:most]


def write_final(
    run: Written, scores: Mapping[str, Sequence[float]], *, seeds: Sequence[int] = SEEDS, test: bool = True,
    baseline: bool = True, most: int = 3,
) -> list[Record]:  # fmt: skip
    """Final trainings of ``most`` nets of the front and of one baseline: ``scores`` by name, one a seed."""
    found = nets_of(run, most)
    nets = [{"name": f"trial {r.trial}", "trial": r.trial, "spec": r.spec.to_dict()} for r in found if r.spec]
    by_name = {f"trial {r.trial}": r for r in found}
    if baseline:
        planned = net(2, 8, 0, "conv2d", "conv2d")
        nets.append({"name": "unet, width 8", "trial": None, "spec": planned.to_dict()})
        by_name["unet, width 8"] = replace(found[0], spec=planned)
    records = []
    with Ledger(run.path / ledger.FINAL, create=True) as book:
        head = {"schema": SCHEMA, "name": "final", "contestants": nets, "seeds": list(seeds)}
        book.append("run", head)
        for name, values in scores.items():
            for seed, value in zip(seeds, values, strict=False):
                one = by_name[name]
                number = len(records)
                record = replace(
                    one, trial=number, recipe=replace(one.recipe, seed=seed), history=(),
                    status=Status.COMPLETE if math.isfinite(value) else Status.FAILED,
                    scores=scores_of(value + 0.01) if math.isfinite(value) else {},
                    test_scores=scores_of(value) if test and math.isfinite(value) else {},
                )  # fmt: skip
                records.append(record)
                book.append("ask", {"trial": number})
                book.append("tell", {"record": record.to_dict()})
    return records


@pytest.fixture
def run(make_run: MakeRun) -> Written:
    return make_run()


def test_a_run_without_final_trainings_says_nothing_of_them(example: Written) -> None:
    assert final_facts(read_run(example.path)) is None
    assert 'id="final"' not in build_page(example.path)


def test_means_deviations_and_the_searchs_luck(run: Written) -> None:
    names = [f"trial {r.trial}" for r in nets_of(run)]
    values = {names[0]: (0.8, 0.7, 0.75), names[1]: (0.6, 0.62, 0.61), names[2]: (0.5, 0.4, 0.45)}
    write_final(run, {**values, "unet, width 8": (0.3, 0.31, 0.32)})
    facts = final_facts(read_run(run.path))
    assert facts is not None
    assert facts.split == "test"
    assert facts.ended
    for one in facts.found:
        assert one.test is not None
        assert one.test.mean == pytest.approx(np.mean(values[one.name]))
        assert one.test.deviation == pytest.approx(np.std(values[one.name], ddof=1))
        assert one.validation is not None
        assert one.validation.mean == pytest.approx(np.mean(values[one.name]) + 0.01)
    searched = {f"trial {r.trial}": r.scores["miou"] for r in nets_of(run)}
    lucky = statistics.fmean(searched[name] - np.mean(values[name]) - 0.01 for name in names)
    assert facts.optimism == pytest.approx(lucky)
    assert f"{abs(lucky):.3f} {'higher' if lucky >= 0 else 'lower'}" in final_words(facts)


def test_a_front_that_has_moved_since_says_so(run: Written) -> None:
    found = nets_of(run)
    write_final(run, {f"trial {r.trial}": (0.7, 0.71, 0.72) for r in found}, baseline=False)
    book = run.path / "final" / ledger.FILE
    events = [json.loads(line) for line in book.read_text().splitlines()]
    front = set(read_run(run.path).front["trial"])
    other = next(r for r in run.records if r.status is Status.COMPLETE and r.trial not in front)
    events[0]["contestants"][0]["trial"] = other.trial  # was on it when it was trained
    book.write_text("".join(json.dumps(event) + "\n" for event in events))
    facts = final_facts(read_run(run.path))
    assert facts is not None
    assert (facts.new, facts.gone) == (len(front) - 2, 1)
    said = f"{len(front) - 2} nets of its front are not among them, and 1 of them is no longer on it"
    assert said in final_words(facts)
    assert said in str(final_table(facts).caption)


def test_a_front_of_which_all_nets_were_trained_anew_has_not_moved(run: Written) -> None:
    found = nets_of(run, most=99)
    write_final(run, {f"trial {r.trial}": (0.7,) for r in found}, seeds=(1,), baseline=False, most=99)
    facts = final_facts(read_run(run.path))
    assert facts is not None
    assert "Since then" not in final_words(facts)


def test_rows_are_numbers(run: Written) -> None:
    first, second, _ = (f"trial {r.trial}" for r in nets_of(run))
    write_final(run, {first: (0.70, 0.66), second: (0.69, math.nan)}, seeds=(1, 2))
    facts = final_facts(read_run(run.path))
    assert facts is not None
    rows = json.loads(json.dumps(final_rows(facts), allow_nan=False))
    costs = [row["costs"][facts.costs[0]] for row in rows if row["costs"]]  # not all were trained
    assert costs == sorted(costs, reverse=True)
    by_name = {row["name"]: row for row in rows}
    assert by_name[first]["test"] == {
        "values": [0.70, 0.66], "mean": pytest.approx(0.68), "deviation": pytest.approx(statistics.stdev([0.70, 0.66]))
    }  # fmt: skip
    assert by_name[second]["test"] == {"values": [0.69], "mean": 0.69, "deviation": None}
    assert (by_name[first]["failed"], by_name[second]["failed"]) == (0, 1)
    assert by_name[first]["digest"] == next(r for r in nets_of(run) if f"trial {r.trial}" == first).spec.digest()
    assert [row["probability"] for row in rows] == [c.probability for c in facts.ordered]


def test_the_probability_of_a_place_on_the_front_is_that_of_a_double_loop(run: Written) -> None:
    first, second, third = (f"trial {r.trial}" for r in nets_of(run))
    values = {first: (0.70, 0.66, 0.71), second: (0.69, 0.70, 0.65), third: (0.64, 0.70, 0.66)}
    write_final(run, values, baseline=False)
    read = read_run(run.path)
    facts = final_facts(read)
    assert facts is not None
    pooled = math.sqrt(sum(2 * statistics.variance(v) for v in values.values()) / 6)
    draws = np.random.default_rng(99).standard_t(6, size=(4000, 3))
    parameters = [c.costs["parameters"] for c in facts.contestants]
    on_front = np.zeros(3)
    for draw in draws:
        scores = [np.mean(v) + t * pooled / math.sqrt(3) for v, t in zip(values.values(), draw, strict=True)]
        points = [(-s, float(p or 0)) for s, p in zip(scores, parameters, strict=True)]
        for i, point in enumerate(points):
            on_front[i] += not any(pareto.dominates(other, point) for other in points)
    expected = on_front / len(draws)
    assert [c.probability for c in facts.contestants] == pytest.approx(expected.tolist(), abs=0.05)
    assert 0.1 < expected.min() < 0.9  # the seeds do leave it open
    assert max(c.probability or 0 for c in facts.contestants) == 1.0  # nobody is cheaper than the cheapest


def test_a_net_of_which_a_score_is_not_known_has_no_probability(run: Written) -> None:
    first, second, third = (f"trial {r.trial}" for r in nets_of(run))
    write_final(run, {first: (0.70, 0.66), second: (0.69, 0.70), third: (0.64, 0.70)}, baseline=False)
    path = run.path / "final" / ledger.FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    gone = next(line["record"] for line in lines if line["event"] == "tell")
    del gone["scores"]["miou"], gone["test_scores"]["miou"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = final_facts(read_run(run.path))
    assert facts is not None
    assert [c.probability is None for c in facts.contestants].count(True) == 1


def test_one_seed_says_no_probability_and_a_missing_test_split_leaves_validation(run: Written) -> None:
    names = [f"trial {r.trial}" for r in nets_of(run)]
    write_final(run, {name: (0.5,) for name in names}, seeds=(1,), test=False, baseline=False)
    facts = final_facts(read_run(run.path))
    assert facts is not None
    assert facts.split == "validation"
    assert all(c.probability is None and c.test is None for c in facts.contestants)
    assert "at least two seeds" in final_words(facts)
    assert rows_of(facts)[0]["validation"] == "0.510"


def test_failed_and_missing_trainings_are_counted_and_spoken_of(run: Written) -> None:
    names = [f"trial {r.trial}" for r in nets_of(run)]
    write_final(run, {names[0]: (0.5, math.nan, 0.6), names[1]: (0.4,)})
    facts = final_facts(read_run(run.path))
    assert facts is not None
    assert not facts.ended
    assert [c.failed for c in facts.contestants] == [1, 0, 0, 0]
    assert "Not all of these trainings" in final_words(facts)
    assert facts.planned[0].probability is None
    assert facts.planned[0].test is None


def test_trainings_of_other_seeds_and_of_nets_no_longer_wanted_do_not_count(run: Written) -> None:
    names = [f"trial {r.trial}" for r in nets_of(run)]
    write_final(run, {name: (0.5, 0.52, 0.54) for name in names})
    first = nets_of(run)[0]
    assert first.spec is not None
    wanted = [{"name": names[0], "trial": first.trial, "spec": first.spec.to_dict()}]
    with Ledger(run.path / ledger.FINAL, create=False) as book:
        book.append("resume", {"contestants": wanted, "seeds": [1, 3]})
    facts = final_facts(read_run(run.path))
    assert facts is not None
    assert [c.name for c in facts.contestants] == names[:1]
    assert facts.contestants[0].test == Spread.of([0.5, 0.54])


def test_the_page_holds_every_contestant(run: Written, tmp_path: Path) -> None:
    names = [f"trial {r.trial}" for r in nets_of(run)]
    write_final(run, {**{name: (0.5, 0.52, 0.54) for name in names}, "unet, width 8": (0.3, 0.31, 0.32)})
    page = build_page(run.path)
    section = page.split('<section id="final">')[1].split("</section>")[0]
    assert section.count("<tr") == 1 + 4
    assert "0.520 ± 0.020" in section
    assert "The test split was not looked at in the search." in section
    assert section.count("baseline</span>") == 1


@pytest.mark.parametrize("objectives", [("miou", "macs"), ("miou_fg", "macs", "parameters", "peak_inference_mib")])
def test_80_columns_hold_names_and_numbers(make_run: MakeRun, objectives: tuple[str, ...]) -> None:
    run = make_run(objectives=objectives)
    write_final(run, {f"trial {r.trial}": (0.5, 0.52, 0.54) for r in nets_of(run)})
    facts = final_facts(read_run(run.path))
    assert facts is not None
    out = io.StringIO()
    Console(width=80, file=out).print(final_table(facts))
    assert "…" not in out.getvalue()
    words = out.getvalue().split()
    for row in rows_of(facts):
        told = [row["name"], row["label"], row["searched"], row["validation"], row["test"], row["probability"]]
        assert {word for text in (*told, *row["costs"]) for word in text.split()} <= set(words)
