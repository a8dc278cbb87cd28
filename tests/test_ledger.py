"""The book of a run: what is written is read back, whatever happened in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from onenet_bench import costs, ledger, zoo
from onenet_bench.errors import LedgerError
from onenet_bench.ledger import Ledger
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCHEMA, Machine, Record, Status
from onenet_bench.task import Task

TASK = Task(
    data="synthetic", content="0", in_channels=3, class_names=("a", "b"), resolution=32, train=4, validation=2, test=2
)


def record(trial: int = 0, status: Status = Status.COMPLETE, miou: float = 0.5) -> Record:
    spec = zoo.unet(1, width=4 + trial, classes=2)
    return Record(
        trial=trial, spec=spec, choices={"width": 4 + trial}, task=TASK, recipe=Recipe(), machine=Machine.here(),
        status=status, costs=costs.count(spec, 32), scores={"miou": miou} if status is Status.COMPLETE else {},
        per_class={"iou": [0.5, None]}, history=({"epoch": 1, "loss": 0.7},), artifacts={"weights": "w"},
    )  # fmt: skip


def book(run: Path, trials: int = 3) -> list[Record]:
    made = [record(i) for i in range(trials)]
    with Ledger(run, create=True) as file:
        file.append("run", {"schema": SCHEMA, "name": "r"})
        for r in made:
            file.append("ask", {"trial": r.trial, "choices": dict(r.choices), "attributes": {}}, sync=False)
            file.append("tell", {"trial": r.trial, "record": r.to_dict()})
    return made


def test_records_are_read_back_as_they_were(tmp_path: Path) -> None:
    made = book(tmp_path / "run")
    assert ledger.records(ledger.read(tmp_path / "run")) == made


def test_the_table_has_every_cost_score_and_choice(tmp_path: Path) -> None:
    rows = [record(0), record(1, Status.FAILED)]
    table = ledger.frame(rows)
    assert table["parameters"].tolist() == [r.costs.parameters for r in rows if r.costs]
    assert table["choice.width"].tolist() == [4, 5]
    assert table["miou"].isna().tolist() == [False, True]
    assert table["status"].tolist() == ["complete", "failed"]
    assert list(ledger.frame([])["miou"]) == []


def test_a_score_of_a_net_that_was_stopped_early_stands_apart_from_final_ones() -> None:
    table = ledger.frame([record(0), replace(record(1), status=Status.STOPPED)])
    assert table["miou"].isna().tolist() == [False, True]
    assert table["partial.miou"].isna().tolist() == [True, False]


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_torn_last_line_is_dropped_and_the_next_event_stands_alone(tmp_path: Path, cut: int) -> None:
    run = tmp_path / "run"
    made = book(run)
    path = run / ledger.FILE
    os.truncate(path, path.stat().st_size - cut - 1)  # beyond the newline into the last event
    assert ledger.records(ledger.read(run)) == made[:2]
    with Ledger(run, create=False) as file:
        file.append("tell", {"trial": 2, "record": made[2].to_dict()})
    assert ledger.records(ledger.read(run)) == made


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = book(run)
    path = run / ledger.FILE
    os.truncate(path, path.stat().st_size - 1)
    assert ledger.records(ledger.read(run)) == made
    with Ledger(run, create=False) as file:
        file.append("end", {"reason": "x"})
    assert ledger.records(ledger.read(run)) == made
    assert ledger.read(run)[-1]["event"] == "end"


def test_damage_elsewhere_is_named_by_its_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    book(run)
    path = run / ledger.FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:30] + "\n", *lines[3:]]))
    with pytest.raises(LedgerError, match="line 3 of"):
        ledger.read(run)


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        ({"event": "tell"}, "begins with its run"),
        ({"event": "run", "schema": SCHEMA + 1}, "install a newer one"),
        ({"event": "party"}, "unknown event 'party'; known: run, resume"),
    ],
)
def test_other_books_are_refused(tmp_path: Path, first: dict[str, object], sentence: str) -> None:
    (tmp_path / ledger.FILE).write_text(json.dumps(first) + "\n")
    with pytest.raises(LedgerError, match=sentence):
        ledger.read(tmp_path)


def test_a_folder_without_a_book_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"a run is a folder with a ledger\.jsonl, but .* has none"):
        ledger.read(tmp_path)


def test_a_run_is_not_begun_twice(tmp_path: Path) -> None:
    book(tmp_path)
    before = (tmp_path / ledger.FILE).read_bytes()
    with pytest.raises(LedgerError, match="already holds a run; use --resume"):
        Ledger(tmp_path, create=True)
    assert (tmp_path / ledger.FILE).read_bytes() == before


@pytest.mark.parametrize("torn", [b"", b'{"event": "ru'])
def test_a_run_that_died_with_its_first_line_is_begun_anew(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / ledger.FILE).write_bytes(torn)
    assert not ledger.has_begun(tmp_path)
    assert not ledger.has_begun(tmp_path / ledger.FILE)  # no folder
    book(tmp_path)
    assert ledger.has_begun(tmp_path)
    assert ledger.read(tmp_path)[0]["event"] == "run"


@pytest.mark.parametrize("content", ["no ledger, and no newline", '{"event":"run"}\rsaved by another system\r'])
def test_what_is_no_ledger_is_refused_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / ledger.FILE
    path.write_text(content, newline="")
    with Ledger(tmp_path, create=False), pytest.raises(LedgerError, match="does not; start the sweep anew"):
        ledger.read(tmp_path)
    with Ledger(tmp_path, create=True) as file, pytest.raises(LedgerError, match="does not; take another folder"):
        file.append("run", {})
    assert path.read_bytes() == content.encode()


def test_a_ledger_that_is_refused_keeps_its_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / ledger.FILE
    content = b'{"event":"run","schema":1}\nnot JSON\n{"event":"te'
    path.write_bytes(content)
    with Ledger(tmp_path, create=False), pytest.raises(LedgerError, match="line 2"):
        ledger.read(tmp_path)
    assert path.read_bytes() == content


HOLD = """
import sys, time
from pathlib import Path
from onenet_bench.ledger import Ledger
book = Ledger(Path(sys.argv[1]), create=False)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    book(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LedgerError, match="belongs to one process at a time"):
            Ledger(tmp_path, create=False)
        holder.kill()
        holder.wait()
    Ledger(tmp_path, create=False).close()


def test_a_full_disk_is_one_sentence() -> None:
    """/dev/full refuses every write with ENOSPC."""
    file = Ledger.__new__(Ledger)
    file.run = Path("somewhere")
    file._file = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(LedgerError, match="No space left on device"):
            file.append("end", {"reason": "x"})
    finally:
        file.close()


def test_numbers_that_json_lacks_are_never_written(tmp_path: Path) -> None:
    with Ledger(tmp_path, create=True) as file, pytest.raises(ValueError, match="not JSON compliant"):
        file.append("end", {"reason": float("nan")})
