"""The Ray engine, on Rays of its own and on a cluster of two nodes that can be killed.

Most trials here train nothing: ``fake`` reports epochs and leaves a state, as a training does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onenet_bench import costs, data, ledger
from onenet_bench.errors import LedgerError, RecipeError
from onenet_bench.ledger import Ledger
from onenet_bench.models import load_checkpoint
from onenet_bench.recipe import Recipe
from onenet_bench.record import SCHEMA, Machine, Record, Status
from onenet_bench.search import cluster, connection, local, trial
from onenet_bench.search.cluster import Cluster
from onenet_bench.search.core import Core, Search
from onenet_bench.search.trial import Ended, Epoch, Event, Work
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

ROOT = Path(__file__).parent.parent.parent

SPACE = SearchSpace.from_dict(
    {
        "name": "tiny",
        "objectives": ["miou", "parameters"],
        "choices": {"width": [2, 3, 4, 5, 6, 7, 8], "kind": ["conv2d", "onenet1d"], "depth": [1, 2, 3]},
        "net": {"depth": "$depth", "width": "$width", "encoder": "$kind"},
    }
)


def search(trials: int, **changes: Any) -> Search:
    task = data.open_task("synthetic", resolution=32, train=8, validation=4, test=4)
    made = Search(
        space=SPACE, task=task, recipe=Recipe(epochs=9, batch=4), objectives=SPACE.objectives, budget=(),
        sampler="grid", seed=0, trials=trials, fidelity="off",
    )  # fmt: skip
    return replace(made, **changes)


def carry_out(wanted: Search, folder: Path, engine: Callable[..., None], **asked: Any) -> Core:
    """Begin a run, or go on with the one in ``folder``."""
    new = not (folder / ledger.FILE).exists()
    with Ledger(folder, create=new) as book:
        events = [] if new else ledger.read(folder)[1:]
        if new:
            book.append("run", {"schema": SCHEMA, **wanted.to_dict()})
        core = Core(book, events, wanted)
        engine(core, folder, **{"workers": 1, "threads": 1, "device": "cpu", "heard": lambda event: None, **asked})
    return core


def fake(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool], seconds: float = 0.0) -> Record:
    """Nine epochs of a made-up score, from where the trial's state says."""
    spec, task, recipe = NetSpec.from_dict(asked.spec), Task.from_dict(asked.task), Recipe.from_dict(asked.recipe)
    state = Path(asked.folder) / trial.state(asked.trial) / "state"
    state.parent.mkdir(parents=True, exist_ok=True)
    done = int(state.read_text()) if state.exists() else 0
    counted = costs.count(spec, task.resolution, batch=recipe.batch)
    best = float(np.random.default_rng(int(spec.digest(), 16)).uniform(0.3, 0.9))
    history: list[dict[str, Any]] = []
    go_on = True
    for epoch in range(1, 10):
        history.append({"epoch": epoch, "step": epoch, "loss": 1.0, "seconds": float(epoch), "miou": best * epoch / 9})
        if epoch > done:
            time.sleep(seconds)
            go_on = on_epoch(history[-1])
            state.write_text(str(epoch))
        if not go_on:
            break
    here = Path(asked.folder) / "predictions" / f"{asked.trial:04d}.npz"
    here.parent.mkdir(exist_ok=True)
    here.write_text(f"trial {asked.trial}, gone on from epoch {done}")
    return Record(
        trial=asked.trial, spec=spec, choices=asked.choices, task=task, recipe=recipe, machine=Machine.here(),
        status=Status.COMPLETE if go_on else Status.STOPPED, costs=counted, scores={"miou": history[-1]["miou"]},
        history=tuple(history), artifacts={"predictions": f"predictions/{asked.trial:04d}.npz"},
    )  # fmt: skip


def slow(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    return fake(asked, on_epoch, 0.15)


def patient(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool], gate: str) -> Record:
    """Goes no further than epoch 4 before the file ``gate`` is there (or two minutes are over)."""

    def say(progress: Mapping[str, Any]) -> bool:
        go_on = on_epoch(progress)
        deadline = time.monotonic() + 120
        while progress["epoch"] == 4 and not Path(gate).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return go_on

    return fake(asked, say)


def faulty(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    """What can go wrong in a process, by the trial's number."""
    if asked.trial == 1:
        fake(asked, on_epoch)
        raise ValueError("an exception  in\nthe trial")
    if asked.trial == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.trial == 3:
        on_epoch({"epoch": 1, "step": 1, "loss": 1.0, "seconds": 1.0, "miou": 0.5})
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(1000)
    return fake(asked, on_epoch)


def ranked(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    Path(asked.folder, "niceness").write_text(str(os.nice(0)))
    return fake(asked, on_epoch)


def placed(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    with Path(asked.folder, "places").open("a") as file:
        file.write(f"{os.getpid()} in {os.getcwd()}\n")  # which is a folder of Tune's trial
    return fake(asked, on_epoch)


def sharing(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    """Writes down its process and its GPU, and waits (a minute at most) until three trials have."""
    book, deadline = Path(asked.folder, "shared"), time.monotonic() + 60
    with book.open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    while len(book.read_text().splitlines()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    return fake(asked, on_epoch)


def full(asked: Work, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Record:
    raise LedgerError("no room")


def accounted(folder: Path, trials: int) -> list[Record]:
    """The records of a run that is over, every asked trial exactly once."""
    events = ledger.read(folder)
    asked = [event["trial"] for event in events if event["event"] == "ask"]
    rows = ledger.records(events)
    assert Counter(asked) == Counter(row.trial for row in rows)
    assert len(set(asked)) == len(asked)
    assert sum(row.status is not Status.REJECTED for row in rows) == trials
    return rows


def bare(folder: Path) -> list[dict[str, Any]]:
    """The events of a run without what belongs to the moment."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "provenance", "machine", "time")}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return [strip(event) for event in ledger.read(folder)]


# Processes ---------------------------------------------------------------------------------------------------


def parents() -> dict[int, int]:
    """Every process that is no zombie, and its parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def below(pid: int) -> list[int]:
    """The processes that ``pid`` has started, and those that they have."""
    found, new = [], [pid]
    table = parents()
    while new:
        new = [child for child, parent in table.items() if parent in new]
        found += new
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 20
    while set(pids) & parents().keys():
        assert time.monotonic() < deadline, f"{set(pids) & parents().keys()} did not end"
        time.sleep(0.05)


def is_raylet(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet")


def free_ports() -> tuple[int, int]:
    """Two where nobody listens: below those that the system gives to connections, and beside those that Ray keeps for
    itself, 52365 among them, which it refuses by another name."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            while True:
                with suppress(OSError):  # taken
                    free.bind(("127.0.0.1", secrets.choice(range(20_000, 32_000))))
                    break
        return one.getsockname()[1], other.getsockname()[1]


class Nodes:
    """A Ray cluster of two nodes with a CPU each, on this machine."""

    def __init__(self, scratch: Path) -> None:
        port, door = free_ports()
        self.address, self.door = f"127.0.0.1:{port}", f"ray://127.0.0.1:{door}"
        token = scratch / "token"
        token.touch(mode=0o600)
        token.write_text("0123456789abcdef" * 4)
        self.environment = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "2", "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "180",
            # a node that refuses connections counts as dead after two seconds, not after fifteen; a slow one does not
            "RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "20000", "RAY_health_check_failure_threshold": "4",
            "RAY_worker_niceness": "0",  # else trials starve beside the other tests
        }  # fmt: skip
        self._scratch = scratch
        self._started: list[subprocess.Popen[bytes]] = []
        self.is_broken = False
        try:
            self.head = self._start(
                "--head", f"--port={port}", f"--ray-client-server-port={door}", "--include-dashboard=false",
                f"--temp-dir={scratch}",
            )  # fmt: skip
            self.other = self.add()
        except BaseException:
            self.end()
            raise

    def add(self, *words: str) -> int:
        """Another node; the process that started it."""
        return self._start(f"--address={self.address}", *words)

    def _start(self, *words: str) -> int:
        said = self._scratch / f"said-{len(self._started)}.txt"
        with said.open("wb") as file:
            command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *words]
            started = subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, **self.environment, "PYTHONPATH": str(ROOT)}
            )
        self._started.append(started)
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in said.read_bytes():
            assert started.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        return started.pid

    def kill_raylet(self, pid: int) -> None:
        """What a machine that loses its power does to its Ray."""
        self.is_broken = True
        raylet = next(child for child in below(pid) if is_raylet(child))
        kill([raylet, *below(raylet)])

    def end(self) -> None:
        pids: set[int] = set()
        while new := {pid for started in self._started for pid in (started.pid, *below(started.pid))} - pids:
            for pid in new:  # or they would start others meanwhile
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            pids |= new
        kill(list(pids))
        for started in self._started:
            started.wait()
        self._started, self.is_broken = [], True


@pytest.fixture(scope="module")
def clusters() -> Iterator[Callable[[], Nodes]]:
    """The cluster of this module's tests; another one after a test that has broken it, whichever runs first."""
    before = set(below(os.getpid()))
    made: list[Nodes] = []
    with ExitStack() as scratches:

        def whole() -> Nodes:
            if not made or made[-1].is_broken:
                if made:
                    made[-1].end()
                made.append(Nodes(scratches.enter_context(connection.scratch())))
            return made[-1]

        try:
            yield whole
        finally:
            if made:
                made[-1].end()
    assert not left(before)


@pytest.fixture
def nodes(clusters: Callable[[], Nodes]) -> Iterator[Nodes]:
    found = clusters()
    with trial.environment(found.environment):
        yield found


def at_work(nodes: Nodes) -> set[int]:
    """The nodes' workers that are not idle, Ray's own services among them."""
    pids = [pid for node in (nodes.head, nodes.other) for pid in below(node)]
    return {pid for pid in pids if (words := command(pid)).startswith(b"ray::") and not words.startswith(b"ray::IDLE")}


def left(before: set[int]) -> list[bytes]:
    """Ray's processes below this one that were not there before. The fork server, which is told where Ray lies, is
    none of them."""
    own = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    new = [pid for pid in below(os.getpid()) if pid not in before and pid != own]
    return [words for pid in new if b"ray" in (words := command(pid))]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# The same core -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_its_own_ray_ends_as_one_of_the_local_engine(tmp_path: Path) -> None:
    """Real trainings; Ray's processes are gone afterwards, and so is what it wrote."""
    wanted = search(3, recipe=Recipe(epochs=2, batch=4))
    before = set(below(os.getpid()))
    ours = carry_out(wanted, tmp_path / "ray", cluster.run)
    assert ours.ended == "3 candidates were trained"
    assert not left(before)
    carry_out(wanted, tmp_path / "local", local.run)
    assert [row.status for row in accounted(tmp_path / "ray", 3)] == [Status.COMPLETE] * len(ours.records)
    assert bare(tmp_path / "ray") == bare(tmp_path / "local")

    def files(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("[pw]*/*")}

    found = files(tmp_path / "ray")
    assert found.keys() == files(tmp_path / "local").keys()
    assert len(found) == 6
    assert {path.name for path in (tmp_path / "ray").iterdir()} == {
        path.name for path in (tmp_path / "local").iterdir()
    }


@pytest.mark.slow
def test_a_process_goes_on_with_the_next_trial(tmp_path: Path) -> None:
    """To Tune, to whom every trial of its own is some ten milliseconds of work, they are one."""
    carry_out(search(3), tmp_path / "run", cluster.run, carry_out=placed)
    accounted(tmp_path / "run", 3)
    places = (tmp_path / "run" / "places").read_text().splitlines()
    assert len(places) == 3
    assert len(set(places)) == 1


@pytest.mark.slow
def test_trials_of_its_own_ray_yield_to_nobody(tmp_path: Path) -> None:
    """Ray gives its workers a niceness of 15 unless told otherwise, and beside other work they starve."""
    carry_out(search(1), tmp_path / "run", cluster.run, carry_out=ranked)
    assert int((tmp_path / "run" / "niceness").read_text()) == os.nice(0)


@pytest.mark.slow
def test_stopping_and_promoting_are_the_same_too(tmp_path: Path, nodes: Nodes) -> None:
    wanted = search(24, fidelity="auto")
    carry_out(wanted, tmp_path / "ray", cluster.run, cluster=Cluster(address=nodes.address), carry_out=fake)
    carry_out(wanted, tmp_path / "local", local.run, carry_out=fake)
    events = Counter(event["event"] for event in ledger.read(tmp_path / "ray"))
    assert events["pause"] > 3
    assert events["promote"] > 0
    assert bare(tmp_path / "ray") == bare(tmp_path / "local")


@pytest.mark.slow
def test_a_run_from_outside_the_cluster_is_the_same_too(tmp_path: Path, nodes: Nodes) -> None:
    """Through the door of Ray's client: what was trained, what failed, and an error of the driver's own."""
    door = Cluster(address=nodes.door)
    carry_out(search(4), tmp_path / "ray", cluster.run, cluster=door, carry_out=fake)
    carry_out(search(4), tmp_path / "local", local.run, carry_out=fake)
    accounted(tmp_path / "ray", 4)
    assert bare(tmp_path / "ray") == bare(tmp_path / "local")
    carry_out(search(5), tmp_path / "faulty", cluster.run, cluster=door, carry_out=faulty, limit_s=2.0)
    assert {row.trial for row in accounted(tmp_path / "faulty", 5) if row.status is Status.FAILED} == {1, 2, 3}
    real = carry_out(search(1, recipe=Recipe(epochs=2, batch=4)), tmp_path / "real", cluster.run, cluster=door)
    assert [len(row.history) for row in real.records if row.status is Status.COMPLETE] == [2]
    with pytest.raises(LedgerError, match=r"^no room$"):
        carry_out(search(1), tmp_path / "full", cluster.run, cluster=door, carry_out=full)


@pytest.mark.slow
def test_ctrl_c_outside_the_cluster_leaves_nothing_behind_the_door(tmp_path: Path, nodes: Nodes) -> None:
    def interrupting(event: Event) -> None:
        if isinstance(event, Epoch) and event.progress["epoch"] == 3:
            raise KeyboardInterrupt

    door, services = Cluster(address=nodes.door), at_work(nodes)
    with pytest.raises(KeyboardInterrupt):
        carry_out(search(3), tmp_path / "run", cluster.run, cluster=door, workers=2, carry_out=slow, heard=interrupting)
    deadline = time.monotonic() + 60
    while busy := at_work(nodes) - services:
        assert time.monotonic() < deadline, [command(pid) for pid in busy]
        time.sleep(0.1)
    carry_out(search(3), tmp_path / "run", cluster.run, cluster=door, workers=2, carry_out=slow)
    assert {row.status for row in accounted(tmp_path / "run", 3)} <= {Status.COMPLETE, Status.REJECTED}


@pytest.mark.slow
def test_what_goes_wrong_in_a_trial_is_a_failed_record(tmp_path: Path, nodes: Nodes) -> None:
    heard: list[Event] = []
    carry_out(
        search(5), tmp_path / "run", cluster.run, cluster=Cluster(address=nodes.address), carry_out=faulty, limit_s=2.0,
        heard=heard.append,
    )  # fmt: skip
    rows = {row.trial: row for row in accounted(tmp_path / "run", 5)}
    failed = {number: row.reason for number, row in rows.items() if row.status is Status.FAILED}
    assert failed.keys() == {1, 2, 3}
    assert failed[1] == "ValueError: an exception in the trial"
    assert failed[2].startswith("its process was ended")
    assert failed[3] == "it took longer than the limit of 2 s"
    assert [row["epoch"] for row in rows[1].history] == [*range(1, 10)], "it had come to its last epoch"
    assert [row["epoch"] for row in rows[3].history] == [1]
    assert [event.record.trial for event in heard if isinstance(event, Ended)] == [*rows]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_sentence(tmp_path: Path, nodes: Nodes) -> None:
    with pytest.raises(LedgerError, match=r"^no room$"):
        carry_out(search(5), tmp_path / "run", cluster.run, cluster=Cluster(address=nodes.address), carry_out=full)


@pytest.mark.slow
def test_nodes_that_do_not_see_the_folder_send_what_they_leave(
    tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real trainings. The driver's mark has another name here, so that nobody finds it."""
    wanted = search(2, recipe=Recipe(epochs=2, batch=4))
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "MARK", ".elsewhere")
        patch.setattr(trial, "SAVED_EVERY", 0.0)
        core = carry_out(wanted, tmp_path / "ray", cluster.run, cluster=Cluster(address=nodes.address))
    carry_out(wanted, tmp_path / "local", local.run)
    assert bare(tmp_path / "ray") == bare(tmp_path / "local")
    for row in core.records:
        net, _ = load_checkpoint(tmp_path / "ray" / row.artifacts["weights"])
        assert net.spec == row.spec
        assert np.load(tmp_path / "ray" / row.artifacts["predictions"])["predictions"].shape == (4, 32, 32)
    assert not list((tmp_path / "ray" / "checkpoints").iterdir())


# Interruptions -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_either_engine_goes_on_with(
    tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster that Ray finds by itself, as it does on the cluster's machines."""
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)

    def impatient(event: Event) -> None:
        if isinstance(event, Epoch) and event.job.trial == 2 and event.progress["epoch"] == 4:
            signal.raise_signal(signal.SIGINT)

    wanted = search(6)
    with pytest.raises(KeyboardInterrupt):
        carry_out(
            wanted, tmp_path / "run", cluster.run, cluster=Cluster(address="auto"), carry_out=slow, heard=impatient
        )
    assert [row.trial for row in ledger.records(ledger.read(tmp_path / "run"))] == [0, 1]
    carry_out(wanted, tmp_path / "run", local.run, carry_out=slow)
    rows = accounted(tmp_path / "run", 6)
    left = {row.trial: (tmp_path / "run" / row.artifacts["predictions"]).read_text() for row in rows if row.artifacts}
    assert left[2] in ("trial 2, gone on from epoch 3", "trial 2, gone on from epoch 4")
    assert left[3] == "trial 3, gone on from epoch 0"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["connect", "disconnect"])
def test_ctrl_c_while_ray_begins_or_ends_is_heard_of_when_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Else this process would die of what is left of Ray."""
    import ray

    before, whole = set(below(os.getpid())), getattr(ray._private.worker, part)

    def impatient(*args: Any, **words: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        whole(*args, **words)
        done.append(part)

    done: list[str] = []
    monkeypatch.setattr(f"ray._private.worker.{part}", impatient)
    with pytest.raises(KeyboardInterrupt):
        carry_out(search(1), tmp_path / "run", cluster.run, carry_out=fake)
    assert part in done
    assert not ray.is_initialized()
    assert not left(before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 9])
def test_ctrl_c_that_somebody_swallows_ends_the_run_all_the_same(tmp_path: Path, at: int, nodes: Nodes) -> None:
    def swallowing(event: Event) -> None:
        if isinstance(event, Epoch) and event.progress["epoch"] == at:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        carry_out(
            search(1), tmp_path, cluster.run, cluster=Cluster(address=nodes.address), carry_out=fake, heard=swallowing
        )
    assert len(ledger.records(ledger.read(tmp_path))) == (at == 9)


def drive(folder: str, address: str, trials: int) -> None:
    """A driver, as a process of its own."""
    carry_out(search(trials), Path(folder), cluster.run, cluster=Cluster(address=address), workers=2, carry_out=slow)


def start_driver(folder: Path, nodes: Nodes, trials: int) -> subprocess.Popen[bytes]:
    code = f"from tests.search.test_cluster import drive; drive({str(folder)!r}, {nodes.address!r}, {trials})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **nodes.environment})


def told(folder: Path) -> int:
    path = folder / ledger.FILE
    return path.read_bytes().count(b'{"event":"tell"') if path.exists() else 0


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(tmp_path: Path, nodes: Nodes) -> None:
    driver = start_driver(tmp_path / "run", nodes, 8)
    try:
        deadline = time.monotonic() + 120
        while told(tmp_path / "run") < 3:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        kill([driver.pid, *below(driver.pid)])
        driver.wait()
    finished = {row.trial: row for row in ledger.records(ledger.read(tmp_path / "run"))}
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    carry_out(search(8), tmp_path / "run", cluster.run, cluster=Cluster(address=nodes.address), carry_out=slow)
    carry_out(search(8), tmp_path / "copy", local.run, workers=2, carry_out=slow)
    for folder in (tmp_path / "run", tmp_path / "copy"):
        rows = {row.trial: row for row in accounted(folder, 8)}
        assert {number: rows[number] for number in finished} == finished


@pytest.mark.slow
def test_a_trial_that_fits_on_no_node_is_refused(tmp_path: Path, nodes: Nodes) -> None:
    with pytest.raises(RecipeError, match=r"it takes 1 CPUs, 0.25 GPUs, and the largest has 1 CPUs, 0 GPUs"):
        carry_out(search(1), tmp_path / "run", cluster.run, cluster=Cluster(address=nodes.address, gpus=0.25))


@pytest.mark.slow
def test_small_nets_share_a_gpu(tmp_path: Path) -> None:
    """On a node that says it has one: how Ray places trials does not depend on its being there."""
    with connection.scratch() as scratch:
        made = Nodes(scratch)
        try:
            made.add("--num-gpus=1")
            with trial.environment(made.environment):
                packed = Cluster(address=made.address, cpus=0.25, gpus=1 / 3)
                carry_out(search(3), tmp_path / "run", cluster.run, workers=3, cluster=packed, carry_out=sharing)
        finally:
            made.end()
    accounted(tmp_path / "run", 3)
    processes, gpus = zip(*map(str.split, (tmp_path / "run" / "shared").read_text().splitlines()), strict=True)
    assert len(set(processes)) == 3  # at the same time, or the first would have gone on with the next
    assert set(gpus) == {"0"}


@pytest.mark.slow
def test_a_node_that_dies_takes_no_trial_with_it(tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trial goes on elsewhere from the state that had travelled home."""
    monkeypatch.setattr(cluster, "MARK", ".elsewhere")
    gate = tmp_path / "gate"
    midway: set[int] = set()

    def murderous(event: Event) -> None:
        if isinstance(event, Epoch) and event.progress["epoch"] == 4:
            midway.add(event.job.trial)
        if isinstance(event, Ended):
            midway.discard(event.record.trial)  # tired of waiting
        if len(midway) == 2 and not gate.exists():
            nodes.kill_raylet(nodes.other)
            gate.touch()

    carry_out(
        search(6), tmp_path / "run", cluster.run, cluster=Cluster(address=nodes.address), workers=2,
        carry_out=partial(patient, gate=str(gate)), heard=murderous,
    )  # fmt: skip
    rows = accounted(tmp_path / "run", 6)
    assert gate.exists()
    assert {row.reason for row in rows if row.status is not Status.REJECTED} == {""}
    retries = [event for event in ledger.read(tmp_path / "run") if event["event"] == "retry"]
    assert [(event["reason"], event["attempt"]) for event in retries] == [("its node died", 1)]
    again = next(row for row in rows if row.trial == retries[0]["trial"])
    assert again.provenance["retries"] == 1
    said = (tmp_path / "run" / again.artifacts["predictions"]).read_text()
    assert int(said.rpartition(" ")[2]) > 0
    assert [row["epoch"] for row in again.history] == [*range(1, 10)]


@pytest.mark.slow
def test_a_cluster_that_is_gone_is_one_sentence_outside_of_it(tmp_path: Path, nodes: Nodes) -> None:
    def murderous(event: Event) -> None:
        if isinstance(event, Epoch):
            nodes.end()

    with pytest.raises(RecipeError, match="the cluster has ended the run, go on with --resume"):
        carry_out(
            search(2), tmp_path / "run", cluster.run, cluster=Cluster(address=nodes.door), carry_out=slow,
            heard=murderous,
        )  # fmt: skip
    carry_out(search(2), tmp_path / "run", local.run, carry_out=slow)
    accounted(tmp_path / "run", 2)


# Refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"is auto, HOST:PORT or ray://HOST:PORT, but got http://far:8265$"):
        Cluster(address="http://far:8265")
    with pytest.raises(RecipeError, match="a trial takes 0 or more CPUs, but got -1"):
        Cluster(cpus=-1)
    with pytest.raises(RecipeError, match=r"a part of one GPU or whole ones, but got 1\.5"):
        Cluster(gpus=1.5)
    with pytest.raises(RecipeError, match="Ray hands out the GPUs itself, but got --device cuda:1; use --device cuda"):
        carry_out(search(1), tmp_path / "gpu", cluster.run, device="cuda:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"which is not installed: pip install 'onenet-bench\[ray\]'"):
        carry_out(search(1), tmp_path / "none", cluster.run)


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (1, 2), (3, 4), (4, 4)])
def test_a_door_whose_process_dies_at_birth_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, calls: int
) -> None:
    asked = []

    def init(**words: Any) -> None:
        asked.append(words)
        if len(asked) <= failures:
            raise ConnectionAbortedError("Initialization failure from server")

    monkeypatch.setattr("ray.init", init)
    refused = pytest.raises(RecipeError, match="at ray://far:1, but it cannot be reached")
    with (
        refused if failures == 4 else nullcontext(),
        connection.to("ray://far:1", cpus=1, variables={}, folder=tmp_path),
    ):
        assert failures < 4
    assert len(asked) == calls
    assert {words["address"] for words in asked} == {"ray://far:1"}


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(RecipeError, match=f"needs a Ray at {address}, but it cannot be reached"):
        carry_out(search(1), tmp_path / "run", cluster.run, cluster=Cluster(address=address))
    assert time.monotonic() - began < 60, "Ray itself would ask for minutes"


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nobody_listens_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    from onenet_bench.cli import main

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(f"127.0.0.1:{free.getsockname()[1]}")
    asked = ["sweep", "--engine", "ray", "--address", address, "--epochs", "1", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["onenet-bench", *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"needs a Ray at {address}, but it cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_door_that_is_not_there_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def init(**words: Any) -> None:
        asked.append(words)
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr("ray.init", init)
    with (
        pytest.raises(RecipeError, match="it cannot be reached"),
        connection.to("ray://far:1", cpus=1, variables={}, folder=tmp_path),
    ):
        pytest.fail("there is nobody")
    assert len(asked) == 1
