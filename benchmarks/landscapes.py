"""What each part of the sampler ``frontier`` is worth, over many made-up landscapes.

    python benchmarks/landscapes.py                      # results/landscapes.md and .json, some minutes
    python benchmarks/landscapes.py --landscapes 1 --seeds 1 --out /tmp/look

On one table a sampler can be lucky, in its first nets above all. Here tables are drawn (``simulate`` of search.py): the
costs are those of three spaces, scores are made up anew for each landscape. Noise is normal, or small and now and then
a training fails.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import importlib.metadata
import itertools
import json
import math
import shlex
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from search import CONTESTANTS, LOST, MACHINE, RESULTS, course, replay, simulate

from onenet_bench import space as spaces
from onenet_bench.record import provenance

SPACES = ("hybrid", "medium", "held_out")
NOISES = {"normal": {"noise": 0.03}, "failing": {"noise": 0.012, "failing": 1 / 7}}
FROM, TO = 10, 40
"""The loss is a mean over so many nets trained."""
NAMES = ("nsga2", "tpe", "frontier", "normal", "any_start", "costs_unknown")
FIRST = 200
"""The number of the first landscape. No others are drawn from here on: nothing was chosen on these."""


class Drawn(NamedTuple):
    """A table to be made."""

    space: str
    landscape: int
    noise: str


def losses(drawn: Drawn, seeds: int) -> dict[str, float]:
    """What every contestant lacks of the front's hypervolume, in percent: mean over FROM to TO nets and over seeds.
    Kinds of blocks matter more in pairs on some landscapes than on others."""
    table = simulate(
        spaces.load(drawn.space), landscape=FIRST + drawn.landscape, rugged=1.0 + drawn.landscape % 3, seeds=seeds,
        **NOISES[drawn.noise],
    )  # fmt: skip
    shares = {name: [course(table, replay(table, name, seed, TO), TO) for seed in range(seeds)] for name in NAMES}
    return {name: 100 * (1 - float(np.mean(np.array(courses)[:, FROM - 1 :]))) for name, courses in shares.items()}


def page(facts: dict[str, Any]) -> str:
    """The figures as a page."""
    found = {Drawn(*row["table"]): row["losses"] for row in facts["tables"]}
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    normal, failing = NOISES["normal"]["noise"], NOISES["failing"]["noise"]
    lines = [
        "# What the parts of frontier are worth, over made-up landscapes", "",
        f"`{facts['command']}` on {facts['machine']['cpu']}, {facts['machine']['cores']} cores; {versions}.", "",
        textwrap.fill(
            f"Nothing was trained here: {facts['landscapes']} landscapes on each of {len(SPACES)} spaces, "
            f"{facts['seeds']} searches by every sampler on each table. Told scores have normal noise of {normal:g}, "
            f"or of {failing:g} and one training of seven fails, by up to {LOST:g}. Figures are what is missing of the "
            f"true front's hypervolume, in percent, mean over {FROM} to {TO} nets trained. Behind them, how much "
            "more it is than frontier's, over all tables, with the standard error of the mean, and on how many tables.",
            width=120,
        ), "",
        f"| sampler | {' | '.join(f'{s}, {n}' for s, n in itertools.product(SPACES, NOISES))} | more | on |",
        f"|---|{'---|' * (len(SPACES) * len(NOISES) + 2)}",
    ]  # fmt: skip
    for name in NAMES:
        cells = [
            f"{np.mean([by_name[name] for d, by_name in found.items() if (d.space, d.noise) == group]):.1f}"
            for group in itertools.product(SPACES, NOISES)
        ]
        more = np.array([by_name[name] - by_name["frontier"] for by_name in found.values()])
        error = more.std(ddof=1) / math.sqrt(len(more))
        beside = [f"{more.mean():.2f} ± {error:.2f}", f"{(more > 0).sum()} of {len(more)}"]
        cells += ["", ""] if name == "frontier" else beside
        lines.append(f"| {CONTESTANTS[name].title.removesuffix(', no fidelity')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landscapes", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    drawn = [Drawn(*d) for d in itertools.product(SPACES, range(arguments.landscapes), NOISES)]
    with ProcessPoolExecutor(arguments.workers) as pool:
        found = list(pool.map(losses, drawn, [arguments.seeds] * len(drawn)))
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": asdict(MACHINE),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "optuna")},
        "provenance": provenance(),
        "landscapes": arguments.landscapes,
        "seeds": arguments.seeds,
        "tables": [{"table": list(d), "losses": s} for d, s in zip(drawn, found, strict=True)],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "landscapes.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "landscapes.md").write_text(page(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
