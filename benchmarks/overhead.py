"""What the harness itself costs: per trial, beside a bare Optuna loop and a bare Ray Tune run, and per worker.

    python benchmarks/overhead.py                          # the figures in results/: about an hour
    python benchmarks/overhead.py --few --out /tmp/look    # a look, some two minutes

Trials train nothing here: they are proposed, counted, written down and scheduled, and their score is made up. Every
contestant runs in a fresh process, sizes and contestants in turns; a run that would take longer than its share of the
time is cut, and the table says how far it came. At the end one and two workers train real nets.

Writes overhead.json, .md and .png to ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
SPACE = "levels"
"""11 choices, a million nets: 5,000 different ones within budget are found at once."""

SIZES = (10, 100, 1000, 5000)
SECONDS = 5.0
"""A short trial, for the share that the harness has of it."""


# Trials that train nothing -----------------------------------------------------------------------------------


def made_up(digest: str) -> float:
    """A score between 0 and 1 that is the net's own."""
    return int(hashlib.sha256(digest.encode()).hexdigest()[:8], 16) / 2**32


def idle(asked: Any, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Any:
    """``trial.carry_out`` without the training: its epochs are reported, and a Record comes back."""
    from onenet_bench import costs
    from onenet_bench.recipe import Recipe
    from onenet_bench.record import Machine, Record, Status
    from onenet_bench.spec import NetSpec
    from onenet_bench.task import Task

    spec, task, recipe = NetSpec.from_dict(asked.spec), Task.from_dict(asked.task), Recipe.from_dict(asked.recipe)
    score = made_up(spec.digest())
    history = []
    for epoch in range(1, recipe.epochs + 1):
        history.append({"epoch": epoch, "step": epoch, "loss": 1.0, "seconds": 0.0, "miou": score})
        if not (go_on := on_epoch(history[-1])):
            break
    return Record(
        trial=asked.trial, spec=spec, choices=asked.choices, task=task, recipe=recipe, machine=Machine.here(),
        status=Status.COMPLETE if go_on else Status.STOPPED, scores={"miou": score}, history=tuple(history),
        costs=costs.count(spec, task.resolution, batch=recipe.batch),
    )  # fmt: skip


REST = 0.1
"""Seconds that a trial lasts which only waits: long enough for the next process to be made ready meanwhile, as it is
while a net is trained."""


def rest(asked: Any, on_epoch: Callable[[Mapping[str, Any]], bool]) -> Any:
    """``idle`` after a while."""
    time.sleep(REST)
    return idle(asked, on_epoch)


# Contestants, each in a process of its own -------------------------------------------------------------------


def new_search(sampler: str, trials: int) -> Any:
    """``NAME`` is a sampler, ``NAME+stopping`` one whose trials have twelve epochs and may be stopped early."""
    from onenet_bench import data, space
    from onenet_bench.recipe import Recipe
    from onenet_bench.search.core import Search

    reached = space.load(SPACE)
    task = data.open_task("synthetic", resolution=reached.task["resolution"], train=8, validation=4, test=4)
    sampler, _, stopping = sampler.partition("+")
    return Search(
        space=reached, task=task, recipe=Recipe(epochs=12 if stopping else 1), objectives=reached.objectives,
        budget=reached.budget, sampler=sampler, seed=0, trials=trials, fidelity="auto" if stopping else "off",
    )  # fmt: skip


class Times:
    """Seconds since the beginning, a number per trial that has ended, until ``most`` seconds after the first. The
    ``rested`` seconds of each trial do not count."""

    def __init__(self, most: float, rested: float = 0.0) -> None:
        self._most, self._rested = most, rested
        self._began, self._cpu = time.perf_counter(), time.process_time()
        self.ends: list[float] = []
        self.cpu = 0.0

    def ended(self) -> bool:
        """Note that a trial has; whether there is time for another one."""
        rested = self._rested * (len(self.ends) + 1)
        self.ends.append(time.perf_counter() - self._began - rested)
        self.cpu = time.process_time() - self._cpu
        return self.ends[-1] - self.ends[0] < self._most


class TimeUp(Exception):
    """A contestant has had its share of the time."""


def ours(sampler: str, trials: int, times: Times, folder: Path) -> None:
    """Propose, count, record: the core alone, over its ledger, in one process."""
    from onenet_bench.ledger import Ledger
    from onenet_bench.record import SCHEMA
    from onenet_bench.search import trial
    from onenet_bench.search.core import Core

    search = new_search(sampler, trials)
    with Ledger(folder / "run", create=True) as book:
        book.append("run", {"schema": SCHEMA, **search.to_dict()})
        core = Core(book, [], search)
        while (job := core.ask()) is not None:
            asked = trial.work(core, job, folder, device="cpu", threads=1)
            core.tell(idle(asked, partial(core.report, job.trial)))
            if not times.ended():
                return


def optuna_loop(sampler: str, trials: int, times: Times, folder: Path) -> None:
    """The same choices proposed by Optuna and written down by its SQLite storage."""
    import optuna

    from onenet_bench.search import samplers
    from onenet_bench.search.parameters import distributions

    search = new_search(sampler, trials)
    found = distributions(search.space)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}", directions=["maximize", "minimize", "minimize"],
        sampler=samplers.make(sampler, search, 0),
    )  # fmt: skip
    for _ in range(trials):
        proposed = study.ask(found)
        score = made_up(str(proposed.params))
        study.tell(proposed, [score, 1e3 * score, 1e6 * score])
        if not times.ended():
            return


def engine(name: str, work: Callable[..., Any] = idle) -> Callable[[str, int, Times, Path], None]:
    """A whole sweep by one of our engines, one trial at a time, which is ``work``."""

    def run(sampler: str, trials: int, times: Times, folder: Path) -> None:
        from onenet_bench.ledger import Ledger
        from onenet_bench.record import SCHEMA
        from onenet_bench.search import cluster, local, trial
        from onenet_bench.search.core import Core

        def heard(event: Any) -> None:
            if isinstance(event, trial.Ended) and not times.ended():
                raise TimeUp

        search = new_search(sampler, trials)
        carry_out: Any = {"local": local.run, "ray": cluster.run}[name]
        with Ledger(folder / "run", create=True) as book:
            book.append("run", {"schema": SCHEMA, **search.to_dict()})
            core = Core(book, [], search)
            carry_out(core, folder / "run", workers=1, threads=1, device="cpu", heard=heard, carry_out=work)

    return run


def tune_run(reuse: bool) -> Callable[[str, int, Times, Path], None]:
    """As many trials by Ray Tune and its own random search, one at a time. With ``reuse`` they share a process."""

    def run(sampler: str, trials: int, times: Times, folder: Path) -> None:
        from ray import tune

        from onenet_bench.search import connection, trial

        class Clock(tune.Callback):  # type: ignore[misc]
            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                bell.over = not times.ended() or bell.over

        class Bell(tune.Stopper):  # type: ignore[misc]
            over = False

            def __call__(self, trial_id: str, result: Any) -> bool:
                return False

            def stop_all(self) -> bool:
                return self.over

        bell = Bell()

        def train(config: dict[str, Any]) -> None:
            score = made_up(str(sorted(config.items())))
            tune.report({"miou": score, "parameters": 1e3 * score, "macs": 1e6 * score})

        choices = {n: tune.choice(list(options)) for n, options in new_search(sampler, trials).space.choices.items()}
        with (
            connection.scratch() as scratch, trial.environment(connection.QUIET),
            connection.to(None, cpus=1, variables={}, folder=scratch),
        ):  # fmt: skip
            tune.Tuner(
                tune.with_resources(train, {"cpu": 1}), param_space=choices,
                tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1, reuse_actors=reuse),
                run_config=tune.RunConfig(storage_path=str(scratch), verbose=0, callbacks=[Clock()], stop=bell),
            ).fit()  # fmt: skip

    return run


class Contestant(NamedTuple):
    """A row of the table: what it is called, what it does, and by which sampler; by how much its share of the time is
    larger than the others', and how long each of its trials waits, which is not counted."""

    title: str
    run: Callable[[str, int, Times, Path], None]
    sampler: str
    share: int = 1
    rest: float = 0.0


WHOLE = 12
"""The share of those who are to carry out all 5,000 trials."""

CONTESTANTS = {
    "core-random": Contestant("core and ledger, random", ours, "random", WHOLE),
    "optuna-random": Contestant("Optuna, SQLite, random", optuna_loop, "random", WHOLE),
    "core-tpe": Contestant("core and ledger, tpe", ours, "tpe"),
    "optuna-tpe": Contestant("Optuna, SQLite, tpe", optuna_loop, "tpe"),
    "core-stopping": Contestant("core and ledger, random, 12 epochs, stopping", ours, "random+stopping"),
    "core-frontier": Contestant("core and ledger, frontier", ours, "frontier"),
    "local-random": Contestant("local engine, random", engine("local"), "random", WHOLE),
    "local-frontier": Contestant("local engine, frontier", engine("local"), "frontier"),
    "rest-random": Contestant("local engine, random, waiting", engine("local", rest), "random", 3, REST),
    "rest-frontier": Contestant("local engine, frontier, waiting", engine("local", rest), "frontier", 3, REST),
    "ray-random": Contestant("Ray engine, random", engine("ray"), "random", WHOLE),
    "tune-reuse": Contestant("bare Ray Tune, processes reused", tune_run(True), "random", WHOLE),
    "tune": Contestant("bare Ray Tune, as it comes", tune_run(False), "random"),
}


def one(name: str, trials: int, most: float, out: str) -> None:
    """Run a contestant here, and write what was measured to ``out``."""
    import logging
    from contextlib import suppress

    logging.disable(logging.CRITICAL)
    contestant = CONTESTANTS[name]
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        times = Times(contestant.share * most, contestant.rest)
        with suppress(TimeUp):
            contestant.run(contestant.sampler, trials, times, Path(folder))
        book = Path(folder, "run", "ledger.jsonl")
        size = book.stat().st_size if book.exists() else None
    facts = {"ends": times.ends, "cpu": times.cpu, "rss_mib": rss_mib(), "ledger_bytes": size}
    Path(out).write_text(json.dumps(facts), encoding="utf-8")


def rss_mib() -> float:
    """What this process holds now, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


# Measuring ---------------------------------------------------------------------------------------------------


def in_a_process(function: str, *arguments: Any) -> Any:
    """What ``function(*arguments, out)`` of this module writes to ``out``, in a fresh interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "facts.json"))
        code = f"from benchmarks import overhead; overhead.{function}(*{[*arguments, out]!r})"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        if not Path(out).exists():
            raise RuntimeError(f"{function}{arguments} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return json.loads(Path(out).read_text(encoding="utf-8"))


def measure(sizes: tuple[int, ...], share: float) -> Iterator[dict[str, Any]]:
    """A row per contestant and size; a contestant that was cut has no larger ones. ``share`` is in seconds."""
    cut: dict[str, int] = {}
    for turn, size in enumerate(sizes):
        names = [*CONTESTANTS][turn:] + [*CONTESTANTS][:turn]
        runs: dict[str, list[dict[str, Any]]] = {}
        for again in range(3 if size <= 10 else 1):
            for name in names:
                of_ray = "Ray" in CONTESTANTS[name].title  # which takes long to start
                if name not in cut and not (again and of_ray):
                    found = in_a_process("one", name, size, share)
                    runs.setdefault(name, []).append(found)
                    if len(found["ends"]) < size:
                        cut[name] = len(found["ends"])
                    print(name, size, len(found["ends"]), f"{found['ends'][-1]:.2f} s", flush=True)
        yield from (summary(name, size, found) for name, found in runs.items())


def summary(name: str, size: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds per trial: the mean from the first end to the last (what comes before is the start), and among the
    last tenth. Medians over the runs."""

    def rate(ends: list[float]) -> float:
        return 1000 * (ends[-1] - ends[0]) / (len(ends) - 1)

    def median(values: list[float]) -> float:
        return statistics.median(values)

    done = min(len(run["ends"]) for run in found)
    tail = max(2, done // 10 + 1)
    return {
        "contestant": name, "trials": size, "done": done,
        "ms_per_trial": median([rate(run["ends"]) for run in found]),
        "ms_at_the_end": median([rate(run["ends"][-tail:]) for run in found]),
        "start_s": median([run["ends"][0] for run in found]),
        "cpu_ms_per_trial": median([1000 * run["cpu"] / len(run["ends"]) for run in found]),
        "rss_mib": median([run["rss_mib"] for run in found]),
        "ledger_bytes_per_trial": found[0]["ledger_bytes"] and found[0]["ledger_bytes"] / done,
    }  # fmt: skip


def real(workers: int, trials: int, out: str) -> None:
    """A real sweep by the local engine: how long it takes from the first start to the last end."""
    from onenet_bench import data, space
    from onenet_bench.ledger import Ledger
    from onenet_bench.recipe import Recipe
    from onenet_bench.record import SCHEMA
    from onenet_bench.search import local, trial
    from onenet_bench.search.core import Core, Search

    reached = space.load("depth_scale")
    task = data.open_task("synthetic", **reached.task)
    data.load(task)
    search = Search(
        space=reached, task=task, recipe=Recipe(epochs=2), objectives=reached.objectives, budget=reached.budget,
        sampler="random", seed=0, trials=trials,
    )  # fmt: skip
    seconds: list[float] = []

    def heard(event: Any) -> None:
        if isinstance(event, trial.Ended):
            seconds.append(event.record.seconds)

    with tempfile.TemporaryDirectory(prefix="overhead-") as folder, Ledger(Path(folder, "run"), create=True) as book:
        book.append("run", {"schema": SCHEMA, **search.to_dict()})
        core = Core(book, [], search)
        began = time.perf_counter()
        local.run(core, Path(folder, "run"), workers=workers, threads=1, device="cpu", heard=heard)
        wall = time.perf_counter() - began
    Path(out).write_text(json.dumps({"wall": wall, "trained": sum(seconds), "trials": len(seconds)}), encoding="utf-8")


def scaling(trials: int) -> dict[str, Any]:
    """Trials per hour of one and of two single-threaded workers, twice each, in turns."""
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for workers in (1, 2, 2, 1):
        runs[workers].append(in_a_process("real", workers, trials))
        print("real trials,", workers, "at a time:", runs[workers][-1], flush=True)
    rate = {n: statistics.mean(3600 * run["trials"] / run["wall"] for run in found) for n, found in runs.items()}
    return {"runs": runs, "trials_per_hour": rate, "ratio": rate[2] / rate[1]}


# Pages -------------------------------------------------------------------------------------------------------


def at(rows: list[dict[str, Any]], name: str, size: int) -> dict[str, Any] | None:
    """A contestant's row, if it was begun."""
    return next((r for r in rows if (r["contestant"], r["trials"]) == (name, size)), None)


def cut(*rows: dict[str, Any] | None) -> str:
    """How far contestants came whose time was over before."""
    done = [f"{row['done']:,}" for row in rows if row and row["done"] < row["trials"]]
    return f" (cut at {' and '.join(done)})" if done else ""


def targets(rows: list[dict[str, Any]], scaled: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, and what was."""

    def compare(ours: str, theirs: str, size: int, most: float) -> None:
        first, second = at(rows, ours, size), at(rows, theirs, size)
        found.append(
            {
                "what": f"{CONTESTANTS[ours].title} ÷ {CONTESTANTS[theirs].title}, at {size:,} trials"
                + cut(first, second),
                "at_most": most,
                "found": first["ms_per_trial"] / second["ms_per_trial"] if first and second else None,
            }
        )

    found: list[dict[str, Any]] = []
    for name in ("rest-random", "rest-frontier"):
        row = at(rows, name, 1000)
        share = row and row["ms_per_trial"] / (1000 * SECONDS)
        title = f"{CONTESTANTS[name].title}: share of a {SECONDS:g}-second trial at 1,000 trials{cut(row)}"
        found.append({"what": title, "at_most": 0.02, "found": share})
    for ours, theirs, size, most in (
        ("core-random", "optuna-random", 100, 1.0), ("core-tpe", "optuna-tpe", 100, 1.0),
        ("core-random", "optuna-random", 1000, 1.0), ("local-random", "optuna-random", 100, 1.0),
        ("local-random", "optuna-random", 1000, 1.0), ("ray-random", "tune", 10, 1.2),
        ("ray-random", "tune-reuse", 100, 1.2), ("ray-random", "tune-reuse", 1000, 1.2),
    ):  # fmt: skip
        compare(ours, theirs, size, most)
    title = "trials per hour of two workers ÷ those of one"
    return [*found, {"what": title, "at_least": 1.6, "found": scaled["ratio"]}]


def verdict(target: dict[str, Any]) -> str:
    if target["found"] is None:
        return "not measured"
    reached = target["found"] <= target["at_most"] if "at_most" in target else target["found"] >= target["at_least"]
    return "reached" if reached else "**not reached**"


def markdown(facts: dict[str, Any]) -> str:
    """The page for people."""
    machine, versions, rows = facts["machine"], facts["provenance"]["versions"], facts["rows"]
    lines = [
        "# What the harness costs", "",
        f"Made by `{facts['command']}` on {facts['provenance']['time']}, commit {facts['provenance']['commit']}"
        f"{' with local changes' if facts['provenance']['dirty'] else ''}.", "",
        f"{machine['cpu']}, {machine['cores']} cores, load {facts['load'][0]:.1f} before and {facts['load'][1]:.1f} "
        f"after; {machine['system']}; " + ", ".join(f"{n} {v}" for n, v in versions.items()) + ".", "",
        f"Trials of the space `{SPACE}` (11 choices) that train nothing, one at a time. Milliseconds of wall time per "
        "trial, from the end of the first trial to the end of the last; *at the end* is over the last tenth. A run is "
        f"cut after {facts['share_s']:g} s, or {WHOLE * facts['share_s']:g} s where all {SIZES[-1]:,} trials are to be "
        "carried out, which the column of trials shows. The core alone proposes, counts and records; the engines also "
        "start processes and schedule. What starts once (imports, Ray) stands apart. Trials that wait last "
        f"{REST:g} s, which are taken off, and have three times as long before they are cut: the local engine forks "
        "the next process during a trial, and one that does nothing ends before that is done. The Ray "
        "engine's processes go on with the next trial by themselves, and are one trial to Tune; bare Tune makes one of "
        "each. It writes neither files nor checkpoints here, and has no ledger.", "",
        "| contestant | trials | ms per trial | at the end | start, s | CPU of the driver, ms | driver, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, contestant in CONTESTANTS.items():
        for r in (row for row in rows if row["contestant"] == name):
            done = f"{r['done']:,}" if r["done"] == r["trials"] else f"{r['done']:,} of {r['trials']:,}"
            lines.append(
                f"| {contestant.title} | {done} | {r['ms_per_trial']:.2f} | {r['ms_at_the_end']:.2f} | "
                f"{r['start_s']:.1f} | {r['cpu_ms_per_trial']:.1f} | {r['rss_mib']:.0f} |"
            )
    lines += ["", "## Targets", "", "| what | target | found | |", "|---|---:|---:|---|"]
    for target in facts["targets"]:
        bound = f"≤ {target['at_most']:g}" if "at_most" in target else f"≥ {target['at_least']:g}"
        found = "" if target["found"] is None else f"{target['found']:.3g}"
        lines.append(f"| {target['what']} | {bound} | {found} | {verdict(target)} |")
    rate = facts["scaling"]["trials_per_hour"]
    bytes_per_trial = [r["ledger_bytes_per_trial"] for r in rows if r["ledger_bytes_per_trial"]]
    lines += [
        "", "## Real trials", "",
        f"The local engine on nets of `depth_scale`, two epochs each, one thread per worker: {rate[1]:,.0f} trials per "
        f"hour with one worker, {rate[2]:,.0f} with two.", "",
        f"The ledger grew by {min(bytes_per_trial) / 1024:.1f} to {max(bytes_per_trial) / 1024:.1f} KiB per trained "
        "trial, rejections included.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def plot(facts: dict[str, Any]) -> Any:
    """Cost per trial against the number of trials, both in logarithms."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, contestant in CONTESTANTS.items():
        rows = [row for row in facts["rows"] if row["contestant"] == name]
        of_this_project = name.startswith(("core", "local", "rest", "ray"))
        figure.add_scatter(
            x=[row["done"] for row in rows], y=[row["ms_per_trial"] for row in rows], name=contestant.title,
            mode="lines+markers", line={"dash": "solid" if of_this_project else "dot"},
        )  # fmt: skip
    figure.add_hline(y=20 * SECONDS, line_dash="dash")
    figure.add_annotation(  # which is placed by logarithms
        x=1, xref="paper", y=math.log10(20 * SECONDS), text=f"2 % of a {SECONDS:g}-second trial", showarrow=False,
        yshift=10,
    )  # fmt: skip
    figure.update_xaxes(type="log", dtick=1, title="trials")
    figure.update_yaxes(type="log", dtick=1, title="ms per trial")
    figure.update_layout(template="plotly_white", height=600, title="What the harness costs per trial")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", action="store_true", help="10 and 100 trials, and less time for each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    share = 15.0 if arguments.few else 60.0
    before = os.getloadavg()[0]
    rows = list(measure(SIZES[:2] if arguments.few else SIZES, share))
    scaled = scaling(4 if arguments.few else 12)

    from onenet_bench.record import Machine, provenance

    made = provenance()
    made["versions"]["ray"] = importlib.metadata.version("ray")
    facts = {
        "command": shlex.join(["python", *sys.argv]), "machine": asdict(Machine.here()), "provenance": made,
        "load": [before, os.getloadavg()[0]], "share_s": share, "rows": rows, "scaling": scaled,
        "targets": targets(rows, scaled),
    }  # fmt: skip
    (arguments.out / "overhead.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "overhead.md").write_text(markdown(facts), encoding="utf-8")
    from picture import write_png

    write_png(plot(facts), arguments.out / "overhead.png")


if __name__ == "__main__":
    main()
