"""Seconds and memory to screen a whole search space, beside counting its candidates one by one.

    python benchmarks/screening.py [--space levels] [--rounds 7] [--sample 4000]

Writes results/screening.json and results/screening.md. Every round takes, in turn and each in a process of its own: the
screening of the whole space, the command ``onenet-bench screen`` with its page, and ``costs.count`` of a random sample
of candidates one by one, extrapolated to the space. The costs of the sample are compared: they must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from onenet_bench import costs, space
from onenet_bench.record import Machine, provenance
from onenet_bench.screen import SCREENED, screen

CLASSES = 8


def screen_space(name: str) -> dict[str, Any]:
    """Screen the whole space."""
    reached = space.load(name)
    start = time.perf_counter()
    found = screen(reached, reached.task["resolution"], classes=CLASSES, most=reached.size)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "candidates": len(found), "distinct": int(found.distinct.sum()),
            "fitting": int((found.fits(reached.budget) & found.distinct).sum())}  # fmt: skip


def count_singly(name: str, sample: int, seed: int) -> dict[str, Any]:
    """Make and count random candidates one by one, and compare them with the screened ones."""
    reached = space.load(name)
    draws = np.random.default_rng(seed)
    chosen = [
        {choice: options[int(draws.integers(len(options)))] for choice, options in reached.choices.items()}
        for _ in range(sample)
    ]
    start = time.perf_counter()
    counted = [
        costs.count(reached.spec(choices, classes=CLASSES, in_channels=3), reached.task["resolution"])
        for choices in chosen
    ]
    seconds = time.perf_counter() - start
    found = screen(reached, reached.task["resolution"], classes=CLASSES, most=reached.size)
    sizes = [len(options) for options in reached.choices.values()]
    places = [np.ravel_multi_index([o.index(c[n]) for n, o in reached.choices.items()], sizes) for c in chosen]
    equal = sum(
        all(found.costs[cost][place] == getattr(alone, cost) for cost in SCREENED)
        for place, alone in zip(places, counted, strict=True)
    )
    return {"seconds": seconds * reached.size / sample, "sample": sample, "equal": equal}


def in_a_process(*words: str) -> dict[str, Any]:
    """What this script prints for ``words``: seconds, peak resident memory and more."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def command(name: str) -> dict[str, Any]:
    """The whole command, page included, as a user waits for it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "page.html"
        words = [sys.executable, "-m", "onenet_bench", "screen", "--space", name, "--out", str(out)]
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"{shlex.join(words)} failed")
        return {"seconds": seconds, "peak_gib": used.ru_maxrss / 2**20, "page_mb": out.stat().st_size / 1e6}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "lower_quartile": low, "upper_quartile": high, "least": min(values), "most": max(values)}


def markdown(facts: dict[str, Any]) -> str:
    """The table."""
    machine, versions = facts["machine"], facts["provenance"]["versions"]

    def row(title: str, key: str) -> str:
        seconds, memory = facts["summary"][key]["seconds"], facts["summary"][key].get("peak_gib")
        cells = [
            f"{s['median']:,.2f} ({s['lower_quartile']:,.2f} – {s['upper_quartile']:,.2f})"
            for s in (seconds, memory)
            if s
        ]
        rate = facts["candidates"] / seconds["median"]
        return f"| {title} | {' | '.join(cells + ['–'] * (2 - len(cells)))} | {rate:,.0f} |"

    names = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    return f"""# Screening a search space

Made by `{facts["command"]}` on {facts["provenance"]["time"]}, commit {facts["provenance"]["commit"]}.

{machine["cpu"]}, {machine["cores"]} cores (one thread used), load {facts["load"][0]:.1f} before and \
{facts["load"][1]:.1f} after; {machine["system"]}; {names}.

The space `{facts["space"]}`: {facts["candidates"]:,} candidates, {facts["distinct"]:,} distinct nets, \
{facts["fitting"]:,} within its budget. Medians over {facts["rounds"]} rounds, quartiles in brackets; memory is the \
peak that the process has in main memory, interpreter and libraries included.

| | seconds | peak GiB | candidates / s |
|---|---:|---:|---:|
{row("`screen()`, all costs of all candidates", "screen")}
{row("`onenet-bench screen`, fronts and page and start included", "command")}
{row(f"one by one, extrapolated from {facts['sample']:,} candidates a round", "single")}

One by one takes {facts["times_longer"]:,.0f} times as long. {facts["equal"]:,} of {facts["compared"]:,} candidates \
that were counted one by one have the very costs of the screening.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--space", default="levels", help="a search space by name")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sample", type=int, default=4000, help="candidates that are counted one by one in a round")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder of the two files")
    parser.add_argument("--part", choices=["screen", "single"], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.part:
        answer = screen_space(said.space) if said.part == "screen" else count_singly(said.space, said.sample, said.seed)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**answer, **({"peak_gib": peak} if said.part == "screen" else {})}))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    before, rounds = os.getloadavg()[0], []
    for seed in range(said.rounds):
        rounds.append({
            "screen": in_a_process("--part", "screen", "--space", said.space),
            "command": command(said.space),
            "single": in_a_process(
                "--part", "single", "--space", said.space, "--sample", str(said.sample), "--seed", str(seed)
            ),
        })  # fmt: skip
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    summary = {
        part: {key: spread([r[part][key] for r in rounds]) for key in ("seconds", "peak_gib") if key in rounds[0][part]}
        for part in rounds[0]
    }
    first = rounds[0]["screen"]
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "provenance": provenance(),
        "machine": asdict(Machine.here()),
        "load": [before, os.getloadavg()[0]],
        "space": said.space,
        **{key: first[key] for key in ("candidates", "distinct", "fitting")},
        "rounds": said.rounds,
        "sample": said.sample,
        "compared": said.rounds * said.sample,
        "equal": sum(r["single"]["equal"] for r in rounds),
        "times_longer": summary["single"]["seconds"]["median"] / summary["screen"]["seconds"]["median"],
        "summary": summary,
        "each": rounds,
    }
    said.out.mkdir(parents=True, exist_ok=True)
    (said.out / "screening.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (said.out / "screening.md").write_text(markdown(facts), encoding="utf-8")
    print(markdown(facts))


if __name__ == "__main__":
    main()
