"""A sweep as a process of its own that can be killed: ``python -m tests.search.killable FOLDER TRIALS WORKERS``.

Begins the run in FOLDER, or goes on with it, with the faults that are planned there. States are written after every
epoch.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from onenet_bench import data, ledger
from onenet_bench.ledger import Ledger
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCHEMA
from onenet_bench.search import local, trial
from onenet_bench.search.core import Core, Search
from onenet_bench.search.trial import Event
from onenet_bench.space import SearchSpace
from tests.search import faults

ROOT = Path(__file__).parents[2]
LIMIT_S = 20.0
"""The wall limit of trials where faults are planned."""

SPACE = SearchSpace.from_dict(
    {
        "name": "tiny",
        "objectives": ["miou", "parameters"],
        "choices": {"width": [*range(2, 60)], "encoder": ["onenet1d", "conv2d"],
                    "decoder": ["onenet1d", "conv2d"], "kernel": [0, 3]},
        "net": {"depth": 1, "width": "$width", "encoder": "$encoder", "decoder": "$decoder",
                "spatial_kernel": "$kernel"},
    }
)  # fmt: skip


def search(trials: int, *, sampler: str = "random", epochs: int = 3) -> Search:
    """Trainings of a few steps each."""
    task = data.open_task("synthetic", resolution=32, train=8, validation=4, test=4)
    return Search(
        space=SPACE, task=task, recipe=Recipe(epochs=epochs, batch=4), objectives=SPACE.objectives, budget=(),
        sampler=sampler, seed=0, trials=trials, fidelity="off",
    )  # fmt: skip


def carry_on(
    folder: Path, wanted: Search, *, workers: int = 1, heard: Callable[[Event], None] = lambda _: None, **options: Any
) -> Core:  # fmt: skip
    """Begin the run in ``folder``, or go on with it, to its end."""
    is_new = not (folder / ledger.FILE).exists()
    with Ledger(folder, create=is_new) as book:
        if is_new or not (folder / ledger.FILE).stat().st_size:
            book.append("run", {"schema": SCHEMA, **wanted.to_dict()})
        else:
            book.append("resume", {"trials": None})
        core = Core(book, ledger.read(folder)[1:], wanted)
        local.run(core, folder, workers=workers, threads=1, device="cpu", heard=heard, **options)
    return core


def drive(folder: Path, trials: int, workers: int) -> subprocess.Popen[str]:
    """The run in ``folder``/run, in a process that works in ``folder``."""
    words = [sys.executable, "-m", "tests.search.killable", "run", str(trials), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def kill(folder: Path, trials: int, workers: int, draw: random.Random, step: int) -> str:
    """Drive the run, and kill the driver when the ledger has grown by up to ``step`` bytes and a moment has passed.
    Returns what the ledger then ended with. Raises AssertionError where a process of it lives on."""
    path = folder / "run" / ledger.FILE
    enough = (path.stat().st_size if path.exists() else 0) + draw.randrange(step)
    with drive(folder, trials, workers) as driver:
        while driver.poll() is None and (path.stat().st_size if path.exists() else 0) <= enough:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        has_ended = driver.poll() is not None
        driver.kill()
    deadline = time.monotonic() + 60
    while (left := left_over(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, "every process ends by itself"
    *lines, torn = path.read_bytes().split(b"\n")
    return "nothing: it had ended" if has_ended else "a torn line" if torn else str(json.loads(lines[-1])["event"])


def left_over(folder: Path) -> list[str]:
    """Processes whose working folder is ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").resolve() == folder.resolve():
                found.append((process / "cmdline").read_text())
    return found


if __name__ == "__main__":
    trial.SAVED_EVERY = 1e-9
    where = Path(sys.argv[1])
    carry_on(
        where, search(int(sys.argv[2])), workers=int(sys.argv[3]),
        **({"carry_out": faults.carry_out, "limit_s": LIMIT_S} if (where / faults.PLAN).exists() else {}),
    )  # fmt: skip
