"""The Ray engine: the same core, its trials carried out by Ray Tune on one machine or many.

Tune places the processes of trials, watches over them and brings back what they say. What is tried next, what is
stopped and what became of it is decided by the core, in the driver, as with the local engine: ``suggest`` of the
Searcher is ``core.ask``, a result is ``core.report`` or ``core.tell``, and the ledger is the only truth. The answer to
a trial's last word is the next one, which its process goes on with: what is a trial to Tune, with a folder, a place and
a process to be made ready, is to the core as many as that process carries out. Tune keeps nothing that is ever read
again; a run that goes on starts a fresh Tuner for what remains.

A trial writes into the run's folder where its node sees it, which it finds out by a mark in there. Elsewhere it works
in a folder of its own, and what it leaves there travels home with its messages.

``ray`` is imported when a run begins, and not before.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onenet_bench import data
from onenet_bench.errors import LedgerError, RecipeError
from onenet_bench.files import whole
from onenet_bench.recipe import Recipe
from onenet_bench.record import Record, usable_cores
from onenet_bench.search import client, connection, trial
from onenet_bench.search.core import Core, Job
from onenet_bench.search.desk import Desk
from onenet_bench.search.fidelity import length
from onenet_bench.search.trial import CarryOut, Ended, Epoch, Event, Started, Work
from onenet_bench.task import Task

FINISHED = "FINISHED"
"""What Tune calls the end of a search."""

MARK = ".driver"
"""The file in a run's folder by which a node knows that it sees the driver's own."""

IN_STORE = 2 * 2**30
"""Bytes of pixels that travel through Ray's object store, once to a node; a node opens larger data for itself."""

NODE_DIED = ("its node has died", "is unavailable")
"""What Ray says of a process that did not end alone; the latter while it does not know yet that the node is dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where trials run, and what each of them takes.

    ``address`` None starts a Ray of our own on this machine, which ends with the run; "auto" or HOST:PORT takes one
    that runs, from one of its machines, "ray://HOST:PORT" from anywhere. ``cpus`` of a trial are as many as its
    threads where None. ``gpus`` may be a part of one, for nets so small that several share it; None = one where the
    device is a GPU.
    """

    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.address is not None and "://" in self.address and not self.is_door:
            raise RecipeError(f"a cluster's address is auto, HOST:PORT or ray://HOST:PORT, but got {self.address}")
        for name in ("cpus", "gpus"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise RecipeError(f"a trial takes 0 or more {name.upper()[:-1]}s, but got {value:g}")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise RecipeError(f"a trial takes a part of one GPU or whole ones, but got {self.gpus:g}")

    @property
    def is_door(self) -> bool:
        """Whether the address is that of Ray's client, behind which this process is none of the cluster's."""
        return self.address is not None and self.address.startswith("ray://")


def run(
    core: Core, folder: Path, *, workers: int | None, threads: int, device: str, heard: Callable[[Event], None],
    cluster: Cluster | None = None, limit_s: float | None = None, compiled: bool = False,
    carry_out: CarryOut | None = None,
) -> None:  # fmt: skip
    """Train what ``core`` asks for until it asks for nothing more, ``workers`` at a time, or as many as fit.

    A trial that takes longer than ``limit_s`` seconds, counted anew each time that it is begun or gone on with, is
    killed. ``carry_out`` is what a trial's process does with its Work, if not a training; it must be importable there.

    On KeyboardInterrupt, or any other exception, the running trials are ended and stay open in the ledger.

    Raises:
        RecipeError: Ray is not installed, the cluster is not there, or it cannot hold a single trial.
        LedgerError: the disk is full.
    """
    if importlib.util.find_spec("ray") is None:
        raise RecipeError("the Ray engine needs Ray, which is not installed: pip install 'onenet-bench[ray]'")
    if device.startswith("cuda:"):
        raise RecipeError(f"Ray hands out the GPUs itself, but got --device {device}; use --device cuda")
    cluster = cluster or Cluster()
    takes = {
        "CPU": float(threads) if cluster.cpus is None else cluster.cpus,
        "GPU": float(device == "cuda") if cluster.gpus is None else cluster.gpus,
    }
    variables = {**trial.ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    variables = {name: os.environ.get(name, value) for name, value in variables.items()}
    wanted = workers or max(1, usable_cores() // threads)
    folder = folder.resolve()
    cpus = wanted * takes["CPU"]
    with (
        _quietly() as scratch,
        connection.to(cluster.address, cpus=cpus, variables=variables, folder=scratch) as interrupts,
    ):
        most = connection.capacity(takes)
        driver = _Driver(
            core=core, folder=folder, threads=threads, device=device, heard=heard, workers=min(workers or most, most),
            remote=cluster.address is not None, limit_s=limit_s, compiled=compiled, interrupts=interrupts,
        )  # fmt: skip
        mark = secrets.token_hex(8)
        (folder / MARK).write_text(mark)
        splits = None if carry_out else _pixels(core.search.task)
        try:
            if cluster.is_door:
                client.run(driver, _tune_away, mark, takes, splits, carry_out)
            else:
                _tune(driver, mark, takes, splits, carry_out, scratch=scratch)
        finally:
            (folder / MARK).unlink(missing_ok=True)


@contextmanager
def _quietly() -> Iterator[Path]:
    """A folder for Ray's files, in Tune's environment and without standard output, where Ray tells of dead workers."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere),
        connection.scratch() as scratch, trial.environment(connection.QUIET),
    ):  # fmt: skip
        yield scratch


# The driver's side -------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Driver:
    """The core's end of the conversation. ``live`` are the trials in Tune's hands, by the names of their processes."""

    core: Core
    folder: Path
    workers: int
    threads: int
    device: str
    heard: Callable[[Event], None]
    remote: bool  # there may be nodes that do not see the folder
    limit_s: float | None
    compiled: bool
    interrupts: connection.Interrupts
    live: dict[str, Job] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)
    waiting: bool = False  # the core had nothing, and has heard nothing since
    error: BaseException | None = None  # the first that the core raised: Tune wraps them, or only logs them

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes down what it is made of, for a restoring that never happens

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            self.interrupts.check()
            yield
        except BaseException as error:
            self.error = self.error or error
            raise

    def ask(self, name: str) -> dict[str, Any] | str | None:
        """What the next trial needs, for the process that Tune calls ``name``; None where there is nothing now,
        FINISHED where there will be nothing more."""
        if len(self.live) >= self.workers or (self.waiting and self.live):
            return None
        with self._noting():
            job = self.core.ask()
            self.waiting = job is None
            if job is None:
                return None if self.live else FINISHED
            self.live[name], self.histories[name] = job, []
            asked = trial.work(
                self.core, job, self.folder, device=self.device, threads=self.threads, compiled=self.compiled
            )
            self.heard(Started(job))
            files = _states(self.folder, job.trial) if self.remote else {}
            return {"name": name, "asked": asked.to_json(), "files": files, "limit_s": self.limit_s}

    def hear(self, name: str, kind: str, content: Any, files: Mapping[str, bytes]) -> bool | dict[str, Any] | None:
        """One message of one trial, and what it has left behind on its node. After an epoch: whether it shall go on;
        after its last word: what the next one needs, where there is one now."""
        if name not in self.live:
            return None
        job, history = self.live[name], self.histories[name]
        self.waiting = False
        with self._noting():
            _unpack(self.folder, files)
            if kind == "begun":
                self.begun[name] = time.monotonic()
            elif kind == "epoch":
                return self._epoch(job, history, content)
            elif kind == "full":
                raise LedgerError(content)
            else:
                said, last = content
                if last is not None:
                    self._epoch(job, history, last)
                ended = Record.from_dict(said) if kind == "record" else trial.failed(self.core, job, said, history)
                self._end(name, ended)
                following = self.ask(name)
                return following if isinstance(following, dict) else None
        return None

    def _epoch(self, job: Job, history: list[dict[str, Any]], progress: dict[str, Any]) -> bool:
        """Whether a trial that has come so far shall go on."""
        if not history or progress["epoch"] > history[-1]["epoch"]:
            history.append(progress)
        go_on = self.core.report(job.trial, progress)
        self.heard(Epoch(job, progress))
        return go_on

    def lost(self, name: str, said: str) -> None:
        """A trial's process has died; ``said`` is Ray's account of it."""
        job = self.live.get(name)
        if job is None:  # after its last word
            return
        self.waiting = False
        with self._noting():
            if any(words in said for words in NODE_DIED) and self.core.lost(job.trial, "its node died"):
                self._forget(name)
                return
            late = self.limit_s is not None and time.monotonic() - self.begun.get(name, math.inf) >= self.limit_s
            reason = f"it took longer than the limit of {self.limit_s:g} s" if late else _death(said)
            self._end(name, trial.failed(self.core, job, reason, self.histories[name]))

    def _end(self, name: str, record: Record) -> None:
        self.core.tell(record)
        trial.tidy(self.folder, record)
        self._forget(name)
        self.heard(Ended(record))

    def _forget(self, name: str) -> None:
        del self.live[name], self.histories[name]
        self.begun.pop(name, None)


def _death(said: str) -> str:
    if "OutOfMemoryError" in said or "running low on memory" in said:
        return "out of memory: Ray ended its process because the node's memory ran out"
    if any(words in said for words in NODE_DIED):
        return "its node died, and those that had it before did too"
    found = re.search(r"Worker exit detail: (.*?)\. Some common causes", said, re.DOTALL)
    detail = found[1] if found else (said.strip().splitlines() or ["no word of why"])[-1][:300]
    return f"its process was ended, as the system does when memory runs out ({detail})"


def _tune_away(driver: client.Absent, mark: str, *arguments: Any) -> None:
    """``_tune`` in a process of the cluster."""
    with _quietly() as scratch:
        _tune(driver, mark, *arguments, scratch=scratch)


def _tune(
    driver: _Driver | client.Absent, mark: str, takes: Mapping[str, float], splits: data.Splits | None,
    carry_out: CarryOut | None, *, scratch: Path,
) -> None:  # fmt: skip
    """Run a fresh Tuner whose every decision is the driver's."""
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    class Proposals(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> Any:
            return driver.ask(trial_id)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Its record came with its last word."""

        def save(self, checkpoint_path: str) -> None:
            """The ledger is the only truth."""

        def restore(self, checkpoint_path: str) -> None:
            """The ledger is the only truth."""

    class Decisions(FIFOScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
            kind, content, files = result["said"]
            answer = driver.hear(trial.trial_id, kind, content, files)
            desk.say.remote(trial.trial_id, answer)
            # A trial that is to stop ends by itself, with a record and a state.
            return str(TrialScheduler.CONTINUE if kind in ("begun", "epoch") or answer else TrialScheduler.STOP)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            with open(trial.error_file, encoding="utf-8") as file:
                driver.lost(trial.trial_id, file.read())

    class Forgetting(tune.Callback):  # type: ignore[misc]
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            result["said"] = None  # else Tune would keep every trial's last word

    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here).remote()
    desk.__ray_ready__.remote()  # connects, which the first answer would wait for
    carried = tune.with_parameters(_carry_out_all, carry_out=carry_out, splits=splits, desk=desk, mark=mark)
    tuner = tune.Tuner(
        tune.with_resources(carried, {name.lower(): amount for name, amount in takes.items()}),
        tune_config=tune.TuneConfig(
            search_alg=Proposals(), scheduler=Decisions(), num_samples=-1, reuse_actors=True,
            trial_name_creator=_name, trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(scratch), verbose=0, callbacks=[Forgetting()]),
    )  # fmt: skip
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        tuner.fit()
    except Exception:
        if driver.error is not None:
            raise driver.error from None
        raise
    finally:
        logger.setLevel(level)


def _name(tuned: Any) -> str:
    return str(tuned.trial_id)


def _pixels(task: Task) -> data.Splits | None:
    """The task's pixels as Ray can share them: plain arrays. None where there are too many."""
    splits = data.load(task)
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    if sum(part.images.nbytes + part.masks.nbytes for part in parts.values()) > IN_STORE:
        return None
    return data.Splits(
        **{
            name: replace(part, images=np.asarray(part.images), masks=np.asarray(part.masks))
            for name, part in parts.items()
        }
    )


# The trial's side --------------------------------------------------------------------------------------------


def _carry_out_all(
    config: Mapping[str, Any], *, carry_out: CarryOut | None, splits: data.Splits | None, desk: Any, mark: str
) -> None:  # fmt: skip
    """Trials one after the other, in a process of Ray's, as long as there is a next one."""
    import ray
    from ray import tune

    def say(kind: str, content: Any, files: Mapping[str, bytes]) -> Any:
        """A message to the driver, and its answer."""
        answer = desk.hear.remote(config["name"])
        tune.report({"said": (kind, content, files)})  # does not return where this was the last trial
        return ray.get(answer)

    following: Mapping[str, Any] = config
    while following:
        following = say(*_carry_out(following, say, carry_out, splits, mark))


def _carry_out(
    config: Mapping[str, Any], say: Callable[..., Any], carry_out: CarryOut | None, splits: data.Splits | None,
    mark: str,
) -> tuple[str, Any, Mapping[str, bytes]]:  # fmt: skip
    """One trial, and its last word."""
    work = Work.from_json(config["asked"])
    recipe = Recipe.from_dict(work.recipe)
    last: dict[str, Any] | None = None  # of the epochs; it travels with the last word, for nobody is stopped at it
    with _workplace(work, mark, config["files"]) as (asked, luggage):

        def on_epoch(progress: Mapping[str, Any]) -> bool:
            nonlocal last
            done, whole = length(recipe, progress)
            if done >= whole:
                last = dict(progress)
                return True
            return bool(say("epoch", dict(progress), luggage()))

        if config["limit_s"] is not None:
            say("begun", None, luggage())
            signal.setitimer(signal.ITIMER_REAL, config["limit_s"])  # whose signal ends the process, whatever it does
        said: tuple[str, Any]
        try:
            record = carry_out(asked, on_epoch) if carry_out else trial.carry_out(asked, on_epoch, splits)
            said = "record", (record.to_dict(), last)
        except LedgerError as error:
            said = "full", str(error)
        except Exception as error:  # noqa: BLE001  the border of the process: one bad trial must not end the sweep
            said = "lost", (trial.crash(error), last)
        signal.setitimer(signal.ITIMER_REAL, 0)
        left = luggage()
    if work.device != "cpu":
        import torch

        torch.cuda.empty_cache()  # the process stays, and others share the GPU
    return *said, left


@contextmanager
def _workplace(
    asked: Work, mark: str, files: Mapping[str, bytes]
) -> Iterator[tuple[Work, Callable[[], dict[str, bytes]]]]:
    """Where a trial works, and what of it has to travel each time that it is asked.

    In the run's folder nothing has to. Elsewhere ``files`` are what the trial left when it ran before.
    """
    seen = None
    with suppress(OSError):
        seen = Path(asked.folder, MARK).read_text()
    if seen == mark:
        yield asked, dict
        return
    with tempfile.TemporaryDirectory(prefix="onenet-trial-") as folder:
        _unpack(Path(folder), files)
        packed = _stamps(Path(folder))

        def luggage() -> dict[str, bytes]:
            now = _stamps(Path(folder))
            fresh = [place for place, stamp in now.items() if packed.get(place) != stamp]
            packed.update(now)
            return {place: Path(folder, place).read_bytes() for place in fresh}

        yield replace(asked, folder=folder), luggage


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file that is whole, by its place below ``folder``."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def _states(folder: Path, number: int) -> dict[str, bytes]:
    """The checkpoint that trial ``number`` has left in the run's folder."""
    places = (folder / trial.state(number)).glob("[!.]*")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in places}


def _unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put ``files`` below ``folder``, each whole or not at all."""
    for place, content in files.items():
        with whole(folder / place) as draft:
            draft.write_bytes(content)
