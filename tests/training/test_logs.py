import csv
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from onenet_bench.errors import RecipeError
from onenet_bench.training import logs


def epochs(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {"epoch": n, "step": 20 * n, "loss": 1 / n, "seconds": 1.5 * n, "miou": n / 10, "map50": 0.0}
        for n in range(first, last + 1)
    ]


def test_a_csv_log_has_a_row_per_epoch_and_a_resumed_one_replaces_its_own(tmp_path: Path) -> None:
    for part in (epochs(1, 4), epochs(3, 5)):  # the state was of epoch 2
        with logs.csv_log(tmp_path) as write:
            for epoch in part:
                write(epoch)
    with (tmp_path / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == logs.COLUMNS
    for row, epoch in zip(rows, epochs(1, 5), strict=True):
        assert {name: float(value) for name, value in row.items() if value} == epoch
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_log_that_a_spreadsheet_has_saved_goes_on_and_another_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with logs.csv_log(tmp_path) as write:
        write(epochs(1, 1)[0])
        path.write_text("\ufeff" + path.read_text())
        write(epochs(2, 2)[0])
        assert [row["epoch"] for row in csv.DictReader(path.read_text().splitlines())] == ["1", "2"]
        for foreign in ("a,b\n1,2\n", "epoch,loss\nx,1\n"):
            path.write_text(foreign)
            with pytest.raises(RecipeError, match=r"log\.csv must be a log of epochs, but it has the row"):
                write(epochs(2, 2)[0])
            assert path.read_text() == foreign


def test_what_is_no_log_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    (tmp_path / "folder" / "log.csv").mkdir(parents=True)
    for folder, reason in ((tmp_path, "it has the row"), (tmp_path / "folder", "cannot be read: ")):
        with pytest.raises(RecipeError, match=rf"log\.csv must be a log of epochs, but {reason}"), logs.csv_log(folder):
            pass


def test_a_tensorboard_log_has_loss_and_scores_over_steps(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    with logs.tensorboard_log(tmp_path) as write:
        for epoch in epochs(1, 3):
            write(epoch)
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, found, starts = path.read_bytes(), {}, []
    while content:  # TFRecord: length, its checksum, that many bytes, their checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = events.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        starts += [event.step] if event.session_log.status else []
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    expected = {(name, e["step"]): e[name] for e in epochs(1, 3) for name in ("loss", "miou", "map50")}
    assert found == pytest.approx(expected)
    assert starts == [20]  # what an interrupted training said about later steps is void


def test_without_a_package_for_it_a_tensorboard_log_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in logs.WRITERS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match="needs the package tensorboardX or tensorboard, but neither can be imported"):
        logs.tensorboard_log(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())
