"""The local engine: a process per trial, ``workers`` at a time, on this machine.

Each trial runs in a fresh process forked from a server that has torch loaded already: it starts in a moment, has a
memory of its own, and takes nobody with it when it dies. Threads and the allocator's thresholds are set for all of
them before the server starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from onenet_bench.record import Record, usable_cores
from onenet_bench.search import trial
from onenet_bench.search.core import Core, Job
from onenet_bench.search.trial import Ended, Epoch, Event, Started, Work


def run(
    core: Core, folder: Path, *, workers: int, threads: int, device: str, heard: Callable[[Event], None]
) -> None:  # fmt: skip
    """Train what ``core`` asks for until it asks for nothing more. Artifacts go to ``folder``.

    On KeyboardInterrupt, or any other exception, the running trials are ended and stay open in the ledger.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["onenet_bench.evaluate"])
    open_jobs: dict[Connection, tuple[Job, ForkServerProcess]] = {}
    with _environment({**trial.ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}):
        try:
            while True:
                while len(open_jobs) < workers and (job := core.ask()) is not None:
                    ours, theirs = context.Pipe()
                    asked = trial.work(core, job, folder, device=device, threads=threads)
                    process = context.Process(target=_work, args=(theirs, asked))
                    process.start()
                    theirs.close()
                    open_jobs[ours] = (job, process)
                    heard(Started(job))
                if not open_jobs:
                    return
                for connection in wait(list(open_jobs)):
                    assert isinstance(connection, Connection)
                    _listen(core, connection, open_jobs, heard)
        finally:
            for _, process in open_jobs.values():
                process.kill()
                process.join()


def _listen(
    core: Core, connection: Connection, open_jobs: dict[Connection, tuple[Job, ForkServerProcess]],
    heard: Callable[[Event], None],
) -> None:  # fmt: skip
    """One message of one trial, or its death."""
    job, process = open_jobs[connection]
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        kind, content = "lost", _death(process.exitcode)
    if kind == "epoch":
        go_on = core.report(job.trial, content)
        with suppress(BrokenPipeError, ConnectionResetError):  # it died since; the next message says so
            connection.send(go_on)
        heard(Epoch(job, content))
        return
    record = Record.from_dict(content) if kind == "record" else trial.failed(core, job, content)
    del open_jobs[connection]
    connection.close()
    process.join()
    core.tell(record)
    heard(Ended(record))


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended without a word, with exit code {code}"


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """``values`` in the environment of what is started inside; what the user has set himself stays."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _work(connection: Connection, asked: Work) -> None:
    """The trial's process. The terminal's Ctrl-C is the driver's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def on_epoch(progress: Mapping[str, Any]) -> bool:
        connection.send(("epoch", dict(progress)))
        return bool(connection.recv())

    try:
        connection.send(("record", trial.carry_out(asked, on_epoch).to_dict()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver is gone
    except Exception as error:  # noqa: BLE001  the border of the process: one bad trial must not end the sweep
        connection.send(("lost", trial.crash(error)))


def plan_workers(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Processes and threads for each: as many one-thread processes as cores where nothing is said, since on CPUs
    two of them train 1.3 to 1.6 times as many images a second as one with two threads."""
    cores = usable_cores()
    workers = workers or max(1, cores // (threads or 1))
    return workers, threads or max(1, cores // workers)
