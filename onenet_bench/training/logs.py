"""Logs of a training, an epoch at a time: a CSV file, or TensorBoard's event files.

An epoch is the dict that ``onenet_bench.evaluate`` hands over: epoch, step, loss, seconds and the scores. What a
resumed training does again replaces what stood there.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from onenet_bench.errors import RecipeError
from onenet_bench.files import whole
from onenet_bench.record import SCORES

Log = Callable[[Mapping[str, Any]], None]
"""Called with every epoch."""

COLUMNS = ("epoch", "step", "loss", "seconds", *SCORES)
WRITERS = ("tensorboardX", "torch.utils.tensorboard")
"""Modules with a ``SummaryWriter``; the first that can be imported is used."""


@contextmanager
def csv_log(folder: Path) -> Iterator[Log]:
    """``log.csv``: a row per epoch, empty where there is no score. The file is whole after every epoch. Raises
    RecipeError where something else has its name."""
    path = folder / "log.csv"
    _rows(path)

    def write(epoch: Mapping[str, Any]) -> None:
        rows = [row for row in _rows(path) if int(row["epoch"]) < epoch["epoch"]]
        with whole(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
            table.writeheader()
            table.writerows([*rows, epoch])

    yield write


def _rows(path: Path) -> list[dict[str, Any]]:
    """Those of a log; none where there is no file yet."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} must be a log of epochs, but cannot be read: {error}; move it away") from error
    for row in rows:
        if not str(row.get("epoch")).isdecimal():
            raise RecipeError(f"{path} must be a log of epochs, but it has the row {row}; move it away")
    return rows


@contextmanager
def tensorboard_log(folder: Path) -> Iterator[Log]:
    """``tensorboard/``: loss and scores over steps. Raises RecipeError where no package for it can be imported."""
    make = _summary_writer()
    writer: Any = None

    def write(epoch: Mapping[str, Any]) -> None:
        nonlocal writer
        if writer is None:
            writer = make(str(folder / "tensorboard"), purge_step=epoch["step"], flush_secs=1)
        for name, value in epoch.items():
            if name not in ("epoch", "step", "seconds"):
                writer.add_scalar(name, value, epoch["step"])

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def _summary_writer() -> Callable[..., Any]:
    reasons = []
    for name in WRITERS:
        try:
            make: Callable[..., Any] = import_module(name).SummaryWriter
            return make
        except Exception as error:  # noqa: BLE001  a protobuf of another age raises whatever it likes
            reasons.append(f"{name}: {' '.join(str(error).split())}")
    raise RecipeError(
        f"a TensorBoard log needs the package tensorboardX or tensorboard, but neither can be imported "
        f"({'; '.join(reasons)}); install one, or log to csv"
    )


LOGS: dict[str, Callable[[Path], AbstractContextManager[Log]]] = {"csv": csv_log, "tensorboard": tensorboard_log}
"""Kinds of log, opened in a folder."""
