"""Trials that misbehave as a plan says: what stands in for ``trial.carry_out`` in the engines' tests and in the soak.

The plan is ``faults.json`` in the run's folder: trial number → fault. A fault strikes after the trial's first epoch.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from onenet_bench.record import Record
from onenet_bench.search import trial
from onenet_bench.search.trial import Work

PLAN = "faults.json"


def _raise() -> NoReturn:
    raise KeyError("a bug")


def _memory() -> None:
    np.ones(2**50)


def _busy() -> NoReturn:
    while True:
        pass


def _full() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line() -> socket.socket:
    """This process's line to its driver."""
    return next(thing for thing in gc.get_objects() if isinstance(thing, socket.socket) and thing.fileno() >= 0)


def _half_a_message() -> None:
    _line().sendall(b'["epoch", {"epo')
    time.sleep(1e6)


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "exception": (_raise, "KeyError: 'a bug'"),
    "nan": (lambda: None, "a loss is finite, but it was"),  # by its learning rate, see below
    "memory": (_memory, "out of memory: Unable to allocate 8.00 PiB"),
    "hang": (lambda: time.sleep(1e6), "it took longer than the limit of"),
    "busy": (_busy, "it took longer than the limit of"),
    "half a message": (_half_a_message, "it took longer than the limit of"),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process was ended by SIGKILL"),
    "exit": (lambda: os._exit(3), "its process ended without a word, with exit code 3"),
    "garbage": (lambda: _line().sendall(b"\xff\x00{\n"), "its process said what is no message: b'\\xff\\x00{'"),
    "stranger's record": (
        lambda: _line().sendall(b'["record", {"trial": 0}]\n'),
        "its process said what is no message",
    ),
    "flood": (lambda: _line().sendall(b"x" * (2**24 + 1)), "its process said what is no message: b'xxxxx"),
}
"""Fault → (what it does, and what the reason of the failed Record begins with)."""

FULL = {"full": (_full, "a trial's files need room on the disk")}
"""The fault that is not the trial's, and ends the sweep."""


def carry_out(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    """The trial, with its fault."""
    name = json.loads(Path(asked.folder, PLAN).read_text(encoding="utf-8")).get(str(asked.trial))
    if name == "nan":
        asked = replace(asked, recipe={**asked.recipe, "learning_rate": 1e30})
    strike = {**FAULTS, **FULL}[name][0] if name else lambda: None

    def then_strike(progress: Mapping[str, Any]) -> bool:
        go_on = on_epoch(progress)
        strike()
        return go_on

    return trial.carry_out(asked, then_strike)
