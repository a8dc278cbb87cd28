"""How fast a search finds the front: the samplers replayed on a table whose front is known.

    python benchmarks/search.py                                     # the figures in results/
    python benchmarks/search.py --seeds 3 --trials 40 --out /tmp    # a look, some minutes

A Table holds every net of a space that fits a budget, with its exact costs and its scores; a replay runs the
package's own search loop, whose trials look their score up instead of being trained. The table here is simulated: the
costs are those of the space, the score is a made-up function of the net, drawn by a seed, plus noise. Nothing is
trained, so the front is known, and a sampler may be judged by the share of its hypervolume that it has found.

Writes search_simulated.json, .md and .html to ``--out``. GPSampler needs scipy, and is left out where there is none.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import importlib.util
import json
import math
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna

from onenet_bench import space as spaces
from onenet_bench.budget import Budget
from onenet_bench.ledger import Ledger
from onenet_bench.pareto import Box, Objective, losses, non_dominated, objectives
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, Record, Status, provenance
from onenet_bench.screen import SCREENED, screen
from onenet_bench.search import frontier, samplers
from onenet_bench.search.core import Core, Search
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

RESULTS = Path(__file__).parent.parent / "results"
Floats = npt.NDArray[np.float64]


# Tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Table:
    """Every net of a space within its budget: ``rows`` by digest, ``costs`` by name (n,), and one score: ``told``
    (seeds, n) is what a trial is told, ``true`` (n,) what the front is made of."""

    search: Search
    rows: Mapping[str, int]
    costs: Mapping[str, Floats]
    told: Floats
    true: Floats

    @property
    def score(self) -> str:
        """The score's name."""
        return next(o.name for o in self.search.objectives if o.is_score)

    @cached_property
    def box(self) -> Box:
        """What the hypervolume is a share of: scores from 1 to 0, costs over the range of all nets."""
        return Box.around(self.search.objectives, self.values)

    @property
    def values(self) -> dict[str, Floats]:
        """True scores and costs of all nets."""
        return {**self.costs, self.score: self.true}

    def hypervolume(self, rows: Sequence[int]) -> float:
        """The share of the box that these nets dominate, by their true scores."""
        return self.box.hypervolume({name: values[list(rows)] for name, values in self.values.items()})

    @cached_property
    def front(self) -> npt.NDArray[np.intp]:
        """The nets of the true front."""
        return np.flatnonzero(non_dominated(losses(self.values, self.search.objectives)))

    @cached_property
    def best(self) -> float:
        """The true front's hypervolume."""
        return self.hypervolume(self.front.tolist())


def simulate(space: SearchSpace, *, landscape: int, names: Sequence[str] = (), rugged: float = 1.0, noise: float = 0.008,
             seeds: int = 2) -> Table:  # fmt: skip
    """A table of ``space`` with a made-up score, drawn by ``landscape``.

    It saturates in the logarithms of MACs and parameters and in what a logit can see, each kind is worth something
    at each level, and so is each pair of kinds that follow each other (``rugged`` times as much as usual). Told
    scores differ from it by ``noise`` (standard deviation), a number per net and seed.
    """
    classes, resolution = 8, int(space.task["resolution"])
    screening = screen(space, resolution, classes=classes)
    kept = np.flatnonzero(screening.fits(space.budget) & screening.distinct)
    specs = [space.spec(screening.choices(i), classes=classes, in_channels=3) for i in kept.tolist()]
    costs = {name: screening.costs[name][kept] for name in SCREENED}
    draws = np.random.default_rng([landscape, 17])
    worth: dict[Any, float] = {}

    def drawn(deviation: float, *key: object) -> float:
        if key not in worth:
            worth[key] = float(draws.normal(0, deviation))
        return worth[key]

    def taste(spec: NetSpec) -> float:
        stages = [("down", i, s.kind) for i, s in enumerate(spec.encoder)]
        stages += [("up", len(spec.decoder) - i, s.kind) for i, s in enumerate(spec.decoder)]
        single = sum(drawn(0.025, *stage) for stage in stages)
        pairs = sum(drawn(0.010 * rugged, *pair) for pair in zip(stages, stages[1:], strict=False))
        kernels = sum(drawn(0.004, "kernel", i) * math.log1p(s.kernel) for i, s in enumerate(spec.encoder))
        seen, step = 1, 1
        for stage in spec.encoder:
            seen, step = seen + stage.repeat * (stage.kernel // 2 * 2) * step, step * stage.scale
        return single + pairs + kernels + 0.10 * (1 - math.exp(-(seen + step) / 24))

    tastes = np.array([taste(spec) for spec in specs])
    macs, parameters = np.log(costs["macs"]), np.log(costs["parameters"])
    rise = [1 - np.exp(-(x - x.min() + 0.2) / (0.35 * (x.max() - x.min()))) for x in (macs, parameters)]
    true = np.clip(0.22 + 0.22 * rise[0] + 0.16 * rise[1] + tastes, 0.02, 0.95)
    told = np.clip(true + np.random.default_rng([landscape, 23]).normal(0, noise, (seeds, len(true))), 0, 1)
    task = Task(
        data="synthetic", content="simulated", in_channels=3, class_names=tuple(map(str, range(classes))),
        resolution=resolution, train=1, validation=1, test=1,
    )  # fmt: skip
    return Table(
        search=Search(
            space=space, task=task, recipe=Recipe(), objectives=objectives(names) if names else space.objectives,
            budget=space.budget, sampler="random", seed=0, trials=1,
        ),
        rows={spec.digest(): i for i, spec in enumerate(specs)}, costs=costs, told=told, true=true,
    )  # fmt: skip


# Replays -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One search on a table: the nets in the order in which they were trained, the seconds until each was proposed,
    rejections included, and how many proposals were rejected."""

    rows: list[int]
    seconds: list[float]
    rejected: int


def replay(table: Table, sampler: str, seed: int, trials: int) -> Replay:
    """A search of the package, whose trials are looked up."""
    search = replace(table.search, sampler=sampler, seed=seed, trials=trials)
    told = table.told[seed % len(table.told)]
    rows, seconds = [], []
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "run", create=True) as book:
        core = Core(book, [], search)
        while True:
            began = time.perf_counter()
            job = core.ask()
            if job is None:
                break
            seconds.append(time.perf_counter() - began)
            rows.append(table.rows[job.spec.digest()])
            core.tell(
                Record(
                    trial=job.trial, spec=job.spec, choices=job.choices, task=search.task, recipe=search.recipe,
                    machine=MACHINE, status=Status.COMPLETE, costs=job.costs,
                    scores={table.score: float(told[rows[-1]])},
                )
            )  # fmt: skip
    rejected = sum(record.status is Status.REJECTED for record in core.records)
    return Replay(rows=rows, seconds=seconds, rejected=rejected)


MACHINE = Machine.here()
