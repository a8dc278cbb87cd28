r"""The local engine: a process per trial, ``workers`` at a time, on this machine.

Each trial runs in a fresh process forked from a server that has torch and the pixels loaded already: it starts in a
moment, has a memory of its own, and takes nobody with it when it dies. One process waits ready for the next trial.
Threads and the allocator's thresholds are set for all of them before the server starts.

Driver and process talk over a socket, in JSON, a message a line:

==============================  =========================================================================
the driver                      the process
==============================  =========================================================================
the Work                        ``["begun", null]``
``true`` to go on, else stop    ``["epoch", {…}]``
\                               and last ``["record", {…}]``, ``["lost", reason]`` or ``["full", reason]``
==============================  =========================================================================

The socket is also the process's leash: when the driver's end closes, however the driver died, the process ends itself.
A process that dies, says what is no message, or takes longer than it may, is a failed Record.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onenet_bench.errors import LedgerError, OnenetBenchError
from onenet_bench.record import Record, usable_cores
from onenet_bench.search import trial
from onenet_bench.search.core import Core, Job
from onenet_bench.search.trial import CarryOut, Ended, Epoch, Event, Started, Work

if TYPE_CHECKING:
    from onenet_bench.search.final import Final

REPLACED = 2
"""How often a process that dies before its trial has begun is replaced: the server may be gone with it."""

UNKNOWN = 255
"""The exit code of a process whose server was gone before it."""

MOST_WAIT_S = 3600.0
"""For longer the system does not wait at a time."""

LONGEST = 2**24
"""Bytes of a message; whatever says more is not a trial."""


def run(
    core: Core | Final, folder: Path, *, workers: int, threads: int, device: str, heard: Callable[[Event], None],
    limit_s: float | None = None, compiled: bool = False, carry_out: CarryOut = trial.carry_out,
) -> None:  # fmt: skip
    """Train what ``core`` asks for until it asks for nothing more. Artifacts go to ``folder``.

    A trial that takes longer than ``limit_s`` seconds, counted anew each time that it is begun or gone on with, is
    killed. ``carry_out`` is what a trial's process does with its Work; a process imports it by its name.

    On KeyboardInterrupt, or any other exception, the running trials are ended and stay open in the ledger. Raises
    LedgerError where the disk is full, OnenetBenchError where no process can be started.
    """
    engine = _Engine(core=core, folder=folder, threads=threads, device=device, heard=heard, limit_s=limit_s,
                     compiled=compiled, carry_out=carry_out)  # fmt: skip
    task = json.dumps(core.search.task.to_dict())
    wanted = {**trial.ENVIRONMENT, "OMP_NUM_THREADS": str(threads), trial.PIXELS_OF: task}
    with trial.environment(wanted, over=False):
        try:
            while True:
                while len(engine.busy) < workers and (job := core.ask()) is not None:
                    engine.begin(job)
                if not engine.busy:
                    return
                engine.listen()
        finally:
            engine.end()


@dataclass(eq=False, kw_only=True, slots=True)
class _Worker:
    """A trial's process, from the driver's side. Without a job it waits for one."""

    process: ForkServerProcess
    line: socket.socket
    job: Job | None = None
    tries: int = 0
    has_begun: bool = False
    unread: bytes = b""  # of a message that is not whole yet
    history: list[dict[str, Any]] = field(default_factory=list)
    ends_at: float = math.inf

    def kill(self) -> None:
        """End the process, whatever it does. Where the server is gone its exit code is unknown, and it may live."""
        if self.process.exitcode in (None, UNKNOWN) and self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        self.line.close()


@dataclass(kw_only=True)
class _Engine:
    """The processes of a run: ``busy`` with a trial, one ``ready`` for the next, and those ``leaving``."""

    core: Core | Final
    folder: Path
    threads: int
    device: str
    heard: Callable[[Event], None]
    limit_s: float | None
    compiled: bool
    carry_out: CarryOut
    busy: list[_Worker] = field(default_factory=list)
    ready: _Worker | None = None
    leaving: list[_Worker] = field(default_factory=list)

    def begin(self, job: Job, tries: int = 0) -> None:
        """Hand a trial to a process."""
        worker, self.ready = self.ready or self._start(), None
        worker.job, worker.tries = job, tries
        worker.ends_at = time.monotonic() + (self.limit_s or math.inf)
        asked = trial.work(
            self.core, job, self.folder, device=self.device, threads=self.threads, compiled=self.compiled
        )
        self.busy.append(worker)
        _send(worker.line, asked.to_json())
        if not tries:
            self.heard(Started(job))
        self.ready = self._start()

    def _start(self) -> _Worker:
        """A process that waits for its Work. It need not import the program that runs here, unless that is where
        ``carry_out`` comes from."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["onenet_bench.search.preload"])
        for left in reversed(range(REPLACED + 1)):
            ours, theirs = socket.socketpair()
            with theirs:
                process = context.Process(target=_work, args=(theirs, self.carry_out))
                try:
                    with _sheltered(), _main_left_out(unless=self.carry_out.__module__ == "__main__"):
                        forkserver.ensure_running()
                    with _main_left_out(unless=self.carry_out.__module__ == "__main__"):
                        process.start()
                except (OSError, EOFError) as error:  # the server has died
                    ours.close()
                    if not left:
                        raise OnenetBenchError(
                            f"a trial needs a process of its own, but none could be started ({error!r}); look for what "
                            "ends processes here, such as a limit of memory, and use --resume"
                        ) from error
                else:
                    ours.setblocking(False)
                    return _Worker(process=process, line=ours)
        raise AssertionError

    def listen(self) -> None:
        """Wait until a trial says something, dies or has had its time."""
        left = min(worker.ends_at for worker in self.busy) - time.monotonic()
        by_line: dict[object, _Worker] = {worker.line: worker for worker in self.busy}
        lines = [worker.line for worker in self.busy]
        for line in wait(lines, None if left == math.inf else min(max(0.0, left), MOST_WAIT_S)):
            self._hear(by_line[line])
        now = time.monotonic()
        for worker in [worker for worker in self.busy if worker.ends_at <= now]:
            self._fail(worker, f"it took longer than the limit of {self.limit_s:g} s")
        self.leaving = [worker for worker in self.leaving if worker.process.is_alive()]

    def _hear(self, worker: _Worker) -> None:
        """What there is to read of a process: messages, parts of them, or its end."""
        try:
            read = worker.line.recv(2**20)
        except BlockingIOError:
            return
        except ConnectionResetError:
            read = b""
        if not read:
            return self._died(worker)
        *messages, worker.unread = (worker.unread + read).split(b"\n")
        try:
            for message in messages:
                if worker in self.busy:  # nothing that it says after its last word counts
                    self._take(worker, message)
            if len(worker.unread) > LONGEST:
                raise _NoMessageError(worker.unread)
        except _NoMessageError as error:
            self._fail(worker, str(error))

    def _take(self, worker: _Worker, message: bytes) -> None:
        job = worker.job
        assert job is not None
        kind, content = _parse(message, job)
        if kind == "begun":
            worker.has_begun = True
        elif kind == "epoch":
            if not worker.history or content["epoch"] > worker.history[-1]["epoch"]:
                worker.history.append(content)
            _send(worker.line, json.dumps(self.core.report(job.trial, content)))
            self.heard(Epoch(job, content))
        elif kind == "record":
            self._end(worker, content)
        elif kind == "full":
            raise LedgerError(content)
        else:
            self._fail(worker, content)

    def _died(self, worker: _Worker) -> None:
        worker.process.join(timeout=10)
        if not worker.has_begun and worker.tries < REPLACED:
            assert worker.job is not None
            self._leave(worker)
            self.begin(worker.job, worker.tries + 1)
        else:
            self._fail(worker, _death(worker.process.exitcode))

    def _fail(self, worker: _Worker, reason: str) -> None:
        assert worker.job is not None
        self._end(worker, trial.failed(self.core, worker.job, reason, worker.history))

    def _end(self, worker: _Worker, record: Record) -> None:
        self._leave(worker)
        self.core.tell(record)
        trial.tidy(self.folder, record)
        self.heard(Ended(record))

    def _leave(self, worker: _Worker) -> None:
        """Let go of a process; nobody waits for its end."""
        self.busy.remove(worker)
        worker.kill()
        self.leaving.append(worker)

    def end(self) -> None:
        """End all processes."""
        for worker in [*self.busy, *([self.ready] if self.ready else []), *self.leaving]:
            worker.kill()
            worker.process.join()


class _NoMessageError(Exception):
    """A process said something that is no message."""

    def __init__(self, said: bytes) -> None:
        super().__init__(f"its process said what is no message: {said[:60]!r}")


SOUND: dict[str, Callable[[Any, Job], bool]] = {
    "begun": lambda content, job: content is None,
    "epoch": lambda content, job: isinstance(content["epoch"], int) and isinstance(content["seconds"], float),
    "record": lambda content, job: content.trial == job.trial,
    "lost": lambda content, job: isinstance(content, str),
    "full": lambda content, job: isinstance(content, str),
}
"""Kind of message → whether its content is what such a message holds."""


def _parse(message: bytes, job: Job) -> tuple[str, Any]:
    """(kind, content) of a message about ``job``; a record's content is a Record."""
    try:
        kind, content = json.loads(message)
        if kind == "record":
            content = Record.from_dict(content)
        is_sound = SOUND[kind](content, job)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _NoMessageError(message) from error
    if not is_sound:
        raise _NoMessageError(message)
    return kind, content


def _send(line: socket.socket, message: str) -> None:
    with suppress(OSError):  # whoever listened has died; that is heard next
        line.sendall(message.encode() + b"\n")


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended without a word, with exit code {code}"


@contextmanager
def _sheltered() -> Iterator[None]:
    """What is started inside does not hear of Ctrl-C; this process does, afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_left_out(*, unless: bool) -> Iterator[None]:
    """Processes started inside do not import this program's main file, which would take them a tenth of a second."""
    main = sys.modules["__main__"]
    if not unless:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# The trial's process -----------------------------------------------------------------------------------------


def _work(line: socket.socket, carry_out: CarryOut) -> None:
    """One trial. The terminal's Ctrl-C is the driver's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leash, args=(line,), daemon=True).start()
    stream = line.makefile("rwb")

    def say(kind: str, content: Any) -> None:
        stream.write(json.dumps([kind, content]).encode() + b"\n")
        stream.flush()

    def on_epoch(progress: Mapping[str, Any]) -> bool:
        say("epoch", dict(progress))
        return stream.readline() == b"true\n"

    asked = stream.readline()
    if not asked:
        return
    say("begun", None)
    with suppress(OSError):  # where memory runs out the system is to end this process, and not the driver
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        say("record", carry_out(Work.from_json(asked), on_epoch).to_dict())
    except LedgerError as error:
        say("full", str(error))
    except Exception as error:  # noqa: BLE001  the border of the process: one bad trial must not end the sweep
        say("lost", trial.crash(error))


def _leash(line: socket.socket) -> None:
    """End this process when the driver's end of its line is closed."""
    poll = select.poll()
    poll.register(line, 0)  # nothing but hang-ups
    poll.poll()
    os._exit(1)


def plan_workers(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Processes and threads for each: as many one-thread processes as cores where nothing is said, since on CPUs
    two of them train 1.3 to 1.6 times as many images a second as one with two threads."""
    cores = usable_cores()
    workers = workers or max(1, cores // (threads or 1))
    return workers, threads or max(1, cores // workers)
