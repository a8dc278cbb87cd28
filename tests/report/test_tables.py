"""Reading a run, numbers for people, and the front in a terminal."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from onenet_bench.errors import LedgerError
from onenet_bench.ledger import Ledger
from onenet_bench.record import COSTS, Status
from onenet_bench.report import front_rows, front_table
from onenet_bench.report.tables import COST_GROUPS, Scale, duration, read_run, reason_groups, show, show_apart, si
from tests.report.conftest import MakeRun


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1000, "1.00 k"), (999_600, "1.00 M"), (12_345, "12.3 k"),
        (1_920_000, "1.92 M"), (31_040_912, "31.0 M"), (104_761_678_336, "105 G"), (0.0123, "0.0123"), (2.5, "2.50"),
    ],
)  # fmt: skip
def test_si(value: float, text: str) -> None:
    assert si(value).replace("\u00a0", " ") == text


@given(st.floats(1, 1e17))
def test_si_reads_back_to_three_digits(value: float) -> None:
    number, _, prefix = si(value).partition("\u00a0")
    read = float(number.replace(",", "")) * 1000.0 ** ("kMGTP".index(prefix) + 1 if prefix else 0)
    assert read == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("miou", 0.84249, "0.842"), ("parameters", 1_920_000, "1.92 M"), ("activation_bytes", 10_340_000, "10.3 MB"),
        ("peak_inference_mib", 2.0468, "2.05 MiB"), ("latency_ms", 1234.5, "1,234 ms"), ("latency_ms", None, "–"),
        ("miou", math.nan, "–"),
    ],
)  # fmt: skip
def test_show_names_the_unit(name: str, value: float | None, text: str) -> None:
    assert show(name, value).replace("\u00a0", " ") == text


def test_different_numbers_look_different_side_by_side() -> None:
    assert show_apart("parameters", 1_000.0, 1_004) == ["1,000", "1,004"]
    assert show_apart("parameters", 1_000.0, 1_000) == [show("parameters", 1_000)] * 2
    assert show_apart("peak_inference_mib", 2.0, 2.5) == [show("peak_inference_mib", 2.0), "2.50\u00a0MiB"]
    assert show_apart("peak_inference_mib", 2.001, 2.0015) == ["2.001\u00a0MiB", "2.0015\u00a0MiB"]
    assert show_apart("peak_inference_mib", 1 / 3, 0.3334) == ["0.333333\u00a0MiB", "0.3334\u00a0MiB"]
    assert show_apart("macs", 5_012_345, 5_012_346) == ["5,012,345", "5,012,346"]


def test_a_column_has_one_unit() -> None:
    scale = Scale.of("parameters", [2_580, 1_016_290])
    assert (scale.unit, scale.show(2_580), scale.show(1_016_290)) == ("k", "2.58", "1,016.29")
    assert Scale.of("parameters", [600_000, 5_000_000]).show(600_000) == "0.600"
    assert Scale.of("parameters", [12, 900]).show(12) == "12"
    assert Scale.of("activation_bytes", [5e6]).unit == "MB"
    assert Scale.of("latency_ms", [math.nan, 3.25]).show(3.25) == "3.25"
    assert Scale.of("latency_ms", []).show(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (42.4, "42 s"), (190, "3 min 10 s"), (878, "14 min"), (7500, "2 h 5 min"), (3600, "1 h"),
     (400_000, "111 h")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


def test_every_cost_stands_in_one_group() -> None:
    assert sorted(name for names in COST_GROUPS.values() for name in names) == sorted(COSTS)
    assert all(name.startswith("paper_") for name in COST_GROUPS["The paper's conventions"])
    assert not any(name.startswith("paper_") for name in COST_GROUPS["Exact costs"])


def test_front_rows_are_the_undominated_records(make_run: MakeRun) -> None:
    run = make_run(objectives=("miou", "macs", "parameters"))
    rows = front_rows(run.path)

    def price(trial: int) -> tuple[float, float, float]:
        record = run.records[trial]
        assert record.costs is not None
        return -record.scores["miou"], record.costs.macs, record.costs.parameters

    def beats(a: int, b: int) -> bool:
        return price(a) != price(b) and all(x <= y for x, y in zip(price(a), price(b), strict=True))

    trials = [record.trial for record in run.complete()]
    expected = {trial for trial in trials if not any(beats(other, trial) for other in trials)}
    assert {row["trial"] for row in rows} == expected
    assert [row["miou"] for row in rows] == sorted((row["miou"] for row in rows), reverse=True)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row in rows:
        record = run.records[row["trial"]]
        assert record.spec is not None
        assert record.costs is not None
        assert (row["digest"], row["label"]) == (record.spec.digest(), record.spec.label())
        assert {name: row[name] for name in COSTS} == {name: getattr(record.costs, name) for name in COSTS}
    assert sum(row["knee"] for row in rows) == 1


def test_the_table_for_the_terminal(make_run: MakeRun) -> None:
    run = make_run(name="[bold]run")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(front_table(run.path))
    text = console.export_text()
    rows = front_rows(run.path)
    assert f"[bold]run: {len(rows)} of {len(run.complete())} nets on the front" in text
    for row in rows:
        line = next(line for line in text.splitlines() if row["label"] in line and f"{row['miou']:.3f}" in line)
        assert (f"*{row['trial']} " in line) == row["knee"]
        assert si(row["macs"]) in line
    assert "knee of mIoU against Parameters" in text


def test_a_front_of_nothing_says_so(make_run: MakeRun) -> None:
    run = make_run(complete=0)
    assert front_rows(run.path) == []
    assert front_table(run.path).row_count == 0
    assert "no net is complete yet" in str(front_table(run.path).caption)


def test_a_run_knows_how_far_it_came(make_run: MakeRun) -> None:
    done = read_run(make_run("done").path)
    assert done.ended == "40 candidates were trained"
    assert done.under_way == ()
    cut = make_run("cut", ended=False, under_way=2)
    assert read_run(cut.path).ended is None
    assert read_run(cut.path).under_way == (40, 41)
    with Ledger(cut.path, create=False) as book:
        book.append("end", {"reason": "stopped by hand"})
        book.append("resume", {"trials": 50, "provenance": {}})
        book.append("resume", {"trials": None, "provenance": {}})
    again = read_run(cut.path)
    assert (again.ended, len(again.begun), again.trials) == (None, 3, 50)
    counts = {status: done.count(status) for status in Status}
    assert sum(counts.values()) == 40
    assert all(counts.values()), "the example has every kind"


def test_no_ledger_is_an_error(make_run: MakeRun) -> None:
    run = make_run().path
    (run / "ledger.jsonl").unlink()
    with pytest.raises(LedgerError, match="a run is a folder with a ledger"):
        front_rows(run)


def test_reasons_that_differ_in_numbers_are_one(make_run: MakeRun) -> None:
    base = make_run(trials=1).records[0]
    reasons = [
        (Status.FAILED, "out of memory"),
        (Status.REJECTED, "parameters is 2,000,001, over 2,000,000"),
        (Status.REJECTED, "parameters is 3e+07, over 2,000,000"),
        (Status.REJECTED, "seen before as c31dacb668a728cd"),
        (Status.REJECTED, "parameters is 5, over 2,000,000"),
        (Status.STOPPED, ""),
    ]
    records = [replace(base, trial=i, status=s, reason=reason) for i, (s, reason) in enumerate(reasons)]
    records.append(replace(base, trial=9, status=Status.COMPLETE))
    assert [(group.status, group.reason, group.trials) for group in reason_groups(records)] == [
        (Status.REJECTED, "parameters is …, over 2,000,000", (1, 2, 4)),
        (Status.REJECTED, "seen before as c31dacb668a728cd", (3,)),
        (Status.STOPPED, "no reason given", (5,)),
        (Status.FAILED, "out of memory", (0,)),
    ]
