"""Drivers of a Ray sweep killed at random moments, and the ledgers counted.

    python -m tests.soak_cluster [--runs 10] [--kills 3] [--trials 12] [--seed 0]

On a cluster of two nodes on this machine. Every run is begun, killed and resumed ``--kills`` times, then carried to
its end; each of its candidates must be told exactly once, and those told before a kill must stay as they were. Exits
with 1 at the first run that is not so. Writes ``results/soak_cluster.md``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onenet_bench import ledger
from onenet_bench.search import cluster, connection, trial
from onenet_bench.search.cluster import Cluster
from tests.search.test_cluster import Nodes, accounted, below, carry_out, fake, kill, search, start_driver, told
from tests.soak import write


def one(folder: Path, nodes: Nodes, kills: int, trials: int, draws: np.random.Generator) -> str:
    """A run that is killed ``kills`` times; how far it had come each time."""
    came = []
    for _ in range(kills):
        driver = start_driver(folder, nodes, trials)
        try:
            before = told(folder)
            while driver.poll() is None and told(folder) == before:  # Ray takes its time to begin
                time.sleep(0.02)
            time.sleep(float(draws.uniform(0, 3)))
        finally:
            kill([driver.pid, *below(driver.pid)])
            driver.wait()
        came.append(told(folder))
        finished = {row.trial: row for row in ledger.records(ledger.read(folder))}
    carry_out(search(trials), folder, cluster.run, cluster=Cluster(address=nodes.address), workers=2, carry_out=fake)
    rows = {row.trial: row for row in accounted(folder, trials)}
    assert {number: rows[number] for number in finished} == finished
    return f"killed with {came} of {trials} told, all {trials} accounted for once"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draws = np.random.default_rng(arguments.seed)
    began = time.monotonic()
    command = shlex.join(["python", "-m", "tests.soak_cluster", *sys.argv[1:]])
    lines = [
        "# The soak of a cluster", "", f"Part of `make soak`: `{command}`", "",
        f"{arguments.runs} runs of the Ray engine on two nodes of this machine, two trials at once. The driver of each "
        f"was killed {arguments.kills} times and begun again, and then let end.", "",
    ]  # fmt: skip
    with connection.scratch() as scratch, tempfile.TemporaryDirectory() as home:
        nodes = Nodes(scratch)
        try:
            with trial.environment(nodes.environment):
                for number in range(arguments.runs):
                    folder = Path(home, str(number))
                    said = one(folder, nodes, arguments.kills, arguments.trials, draws)
                    lines.append(f"- Run {number + 1}: {said}.")
                    print(lines[-1], flush=True)
        finally:
            nodes.end()
    write("soak_cluster.md", [*lines, "", f"Took {time.monotonic() - began:.0f} s in all."])


if __name__ == "__main__":
    main()
