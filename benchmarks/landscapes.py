"""What each part of the sampler ``frontier`` is worth, over many made-up landscapes.

    python benchmarks/landscapes.py                      # results/landscapes.md and .json, some minutes
    python benchmarks/landscapes.py --landscapes 1 --seeds 1 --out /tmp/look

On one table a sampler can be lucky, above all in its first nets. Here tables are drawn (``simulate`` of search.py): the
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
AFTER = 25
"""Nets that a search trains."""
NAMES = ("nsga2", "tpe", "frontier", "normal", "any_start", "costs_unknown")
FIRST = 200
"""The number of the first landscape. No others are drawn from here on: nothing was chosen on these."""


class Drawn(NamedTuple):
    """A table to be made."""

    space: str
    landscape: int
    noise: str


def shares(drawn: Drawn, seeds: int) -> dict[str, list[float]]:
    """What every contestant has of the front's hypervolume after ``AFTER`` nets, seed by seed. Kinds of blocks matter
    more in pairs on some landscapes than on others."""
    rugged = 1.0 + drawn.landscape % 3
    table = simulate(
        spaces.load(drawn.space), landscape=FIRST + drawn.landscape, rugged=rugged, seeds=seeds, **NOISES[drawn.noise]
    )
    return {
        name: [course(table, replay(table, name, seed, AFTER), AFTER)[-1] for seed in range(seeds)] for name in NAMES
    }


def page(facts: dict[str, Any]) -> str:
    found = {Drawn(*row["table"]): row["shares"] for row in facts["tables"]}
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    normal, failing = NOISES["normal"]["noise"], NOISES["failing"]["noise"]
    lines = [
        "# What the parts of frontier are worth, over made-up landscapes", "",
        f"`{facts['command']}` on {facts['machine']['cpu']}, {facts['machine']['cores']} cores; {versions}.", "",
        textwrap.fill(
            f"Nothing was trained here: {facts['landscapes']} landscapes on each of {len(SPACES)} spaces, "
            f"{facts['seeds']} searches by every sampler on each table. Told scores have normal noise of {normal:g}, or "
            f"of {failing:g} and one training of seven fails, by up to {LOST:g}. Shares are of the true front's "
            f"hypervolume after {AFTER} nets, means over landscapes and searches. Behind them, on how many tables a "
            "sampler's mean is above frontier's: of one that is as good it would be half.", width=120,
        ), "",
        f"| sampler | {' | '.join(f'{s}, {n}' for s, n in itertools.product(SPACES, NOISES))} | above frontier's |",
        f"|---|{'---|' * (len(SPACES) * len(NOISES) + 1)}",
    ]  # fmt: skip
    for name in NAMES:
        means = {drawn: float(np.mean(by_name[name])) for drawn, by_name in found.items()}
        cells = [
            f"{np.mean([m for d, m in means.items() if (d.space, d.noise) == group]):.3f}"
            for group in itertools.product(SPACES, NOISES)
        ]
        above = sum(means[drawn] > np.mean(by_name["frontier"]) for drawn, by_name in found.items())
        last = "" if name == "frontier" else f"{above} of {len(found)}"
        title = CONTESTANTS[name].title.removesuffix(", no fidelity")
        lines.append(f"| {title} | {' | '.join(cells)} | {last} |")
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
        found = list(pool.map(shares, drawn, [arguments.seeds] * len(drawn)))
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": asdict(MACHINE),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "optuna")},
        "provenance": provenance(),
        "landscapes": arguments.landscapes,
        "seeds": arguments.seeds,
        "tables": [{"table": list(d), "shares": s} for d, s in zip(drawn, found, strict=True)],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "landscapes.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "landscapes.md").write_text(page(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
