"""How fast a search finds the front: samplers replayed on tables whose front is known.

    python benchmarks/search.py                                                   # the figures in results/: hours
    python benchmarks/search.py --on tabular --seeds 3 --few 0 --out /tmp/look    # a look, a minute or two
    python benchmarks/search.py --on tabular --table results/tabular/small_long --name search_small_long
    python benchmarks/search.py --on tabular --table results/tabular/held_out --name search_held_out
    python benchmarks/search.py --on tabular --table results/tabular/medium_long --name search_medium_long

A Table holds every net of a space that fits a budget, with its exact costs and its scores. A replay runs the
package's own search loop on it: trials look their score up, epoch by epoch, instead of being trained. There are tables
of two kinds. One was trained (``onenet-bench tabulate``). The others are simulated: the costs are those of a space,
the score is a made-up function of the net plus noise, drawn by a seed. Either way the front is known, and a sampler is
judged by the share of the front's hypervolume that the nets dominate which it had trained to the end.

Writes search_tabular and search_simulated (.json, .md and .png) to ``--out``. GPSampler needs scipy, BoTorch itself;
either is left out where that is not installed. Both take seconds for a proposal, and get fewer seeds; BoTorch fewer
nets too. A search by GPSampler takes twenty minutes, so they are kept one by one in the folder ``--keep``. One that is
there is taken where its versions and its table are those of today and its first nets are proposed again.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
import plotly.graph_objects as go
from optuna.samplers import BaseSampler, GPSampler
from plotly.subplots import make_subplots

from onenet_bench import space as spaces
from onenet_bench.budget import Budget
from onenet_bench.pareto import Box, losses, non_dominated, objectives
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, Record, Status, provenance
from onenet_bench.screen import SCREENED, screen
from onenet_bench.search import samplers
from onenet_bench.search.candidates import Candidates, Net
from onenet_bench.search.core import Core, Search
from onenet_bench.search.frontier import FrontierSampler, Past
from onenet_bench.search.parameters import as_parameters, distributions
from onenet_bench.search.surrogate import Hyperparameters, Surrogate
from onenet_bench.search.tabulate import read
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

RESULTS = Path(__file__).parent.parent / "results"
MACHINE = Machine.here()
Floats = npt.NDArray[np.float64]
NOISE = 0.008
"""Of a told score, standard deviation."""
LOST = 0.2
"""The most that a training loses that fails."""
PROPOSED_AGAIN = 20
"""Nets of a kept search that must be proposed again for it to count."""
SAMPLES = 64
"""Of a posterior, where gains are averages over some; half of what BoTorch takes by itself."""


# Tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Table:
    """Every net of a space within its budget: ``rows`` by digest, ``costs`` by name (n,), and one score: ``told``
    (seeds, n, epochs) is what a trial reports, ``true`` (n,) what the front is made of, and ``seconds`` (n, epochs) are
    those of the CPU that each epoch took; empty where nothing was trained."""

    search: Search
    rows: Mapping[str, int]
    costs: Mapping[str, Floats]
    told: Floats
    true: Floats
    seconds: Floats

    @property
    def epochs(self) -> int:
        """How long a net is trained."""
        return self.told.shape[2]

    @property
    def score(self) -> str:
        """The score's name."""
        return next(o.name for o in self.search.objectives if o.is_score)

    @cached_property
    def box(self) -> Box:
        """What the hypervolume is a share of: scores from 1 to 0, costs over the range of all nets."""
        return Box.around(self.search.objectives, self.values)

    @cached_property
    def prices(self) -> dict[str, Floats]:
        """What an epoch of each net costs (n, epochs), in the units there are."""
        macs = np.repeat(self.costs["macs"][:, None], self.epochs, axis=1)
        return {"MACs": macs, **({"CPU seconds": self.seconds} if self.seconds.size else {})}

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


def simulate(
    space: SearchSpace, *, landscape: int, names: Sequence[str] = (), rugged: float = 1.0, noise: float = NOISE,
    failing: float = 0.0, seeds: int = 2,
) -> Table:  # fmt: skip
    """A table of ``space`` with a made-up score, drawn by ``landscape``.

    It saturates in the logarithms of MACs and parameters and in what a logit can see, each kind is worth something
    at each level, and so is each pair of kinds that follow each other (``rugged`` times as much as usual). Told
    scores differ from it by ``noise`` (standard deviation), a number per net and seed; a share of them, those
    ``failing``, are up to LOST lower. A training has one epoch.
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
        pairs = sum(drawn(0.010 * rugged, *pair) for pair in itertools.pairwise(stages))
        kernels = sum(drawn(0.004, "kernel", i) * math.log1p(s.kernel) for i, s in enumerate(spec.encoder))
        seen, step = 1, 1
        for stage in spec.encoder:
            seen, step = seen + stage.repeat * (stage.kernel // 2 * 2) * step, step * stage.scale
        return single + pairs + kernels + 0.10 * (1 - math.exp(-(seen + step) / 24))

    tastes = np.array([taste(spec) for spec in specs])
    macs, parameters = np.log(costs["macs"]), np.log(costs["parameters"])
    rise = [1 - np.exp(-(x - x.min() + 0.2) / (0.35 * (x.max() - x.min()))) for x in (macs, parameters)]
    true = np.clip(0.22 + 0.22 * rise[0] + 0.16 * rise[1] + tastes, 0.02, 0.95)
    by_seed = np.random.default_rng([landscape, 23])
    told = true + by_seed.normal(0, noise, (seeds, len(true)))
    told -= (by_seed.random(told.shape) < failing) * by_seed.uniform(0, LOST, told.shape)
    task = Task(
        data="synthetic", content="simulated", in_channels=3, class_names=tuple(map(str, range(classes))),
        resolution=resolution, train=1, validation=1, test=1,
    )  # fmt: skip
    return Table(
        search=Search(
            space=space, task=task, recipe=Recipe(epochs=1),
            objectives=objectives(names) if names else space.objectives, budget=space.budget, sampler="random",
            seed=0, trials=1, fidelity="off",
        ),
        rows={spec.digest(): i for i, spec in enumerate(specs)}, costs=costs, told=np.clip(told, 0, 1)[..., None],
        true=true, seconds=np.empty((len(true), 0)),
    )  # fmt: skip


def tabulated(folder: Path) -> Table:
    """The table in ``folder``, which must be whole: a net's true score is the mean of its seeds' at the end."""
    found = read(folder)
    asked = found.question
    told = np.moveaxis(found.curves("miou"), 1, 0)
    return Table(
        search=Search(
            space=asked.space, task=asked.task, recipe=asked.recipe, objectives=asked.space.objectives,
            budget=asked.space.budget, sampler="random", seed=0, trials=1, fidelity="off",
        ),
        rows={digest: row for row, digest in enumerate(found.nets.index)},
        costs={name: found.nets[name].to_numpy(dtype=float) for name in SCREENED}, told=told,
        true=told[:, :, -1].mean(axis=0), seconds=np.diff(found.curves("cpu_seconds").mean(axis=1), axis=1, prepend=0),
    )  # fmt: skip


# Replays -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One search on a table: the nets in the order in which their training ended, how many epochs all trials together
    had been trained by then (``spent``), what all training had cost after each net's worth of epochs (``bills``, a
    number per unit), the seconds until each new net was proposed, rejections included, and how many were proposed
    (``started``) and rejected, and whether the audit allowed trials to be stopped."""

    rows: list[int]
    spent: list[int]
    bills: list[dict[str, float]]
    seconds: list[float]
    started: int
    rejected: int
    audit: bool | None


class Unwritten:
    """A ledger that forgets, but for the audits."""

    def __init__(self) -> None:
        self.audits: list[Mapping[str, Any]] = []

    def append(self, event: str, values: Mapping[str, Any], *, sync: bool = True) -> None:
        if event == "audit":
            self.audits.append(values)


class Forgetful(dict[str, int]):
    """Which nets were seen, for a search that takes every combination for another net."""

    def get(self, key: str, default: Any = None) -> Any:
        return default


def replay(table: Table, contestant: str, seed: int, trials: int) -> Replay:
    """A search by a contestant, or a sampler of the package's, that trains as many epochs as ``trials`` whole
    trainings have."""
    who = CONTESTANTS.get(contestant, Contestant(contestant))
    enter(contestant, table)
    search = replace(table.search, sampler=who.sampler or contestant, seed=seed, trials=10**6, fidelity=who.fidelity)
    told, length = table.told[seed % len(table.told)], table.epochs
    book = Unwritten()
    core = Core(book, [], search)  # type: ignore[arg-type]
    if not who.canonical:
        core._seen = Forgetful()
    reached: dict[int, int] = {}
    rows, spent, seconds, epochs = [], [], [], 0
    bill, bills = dict.fromkeys(table.prices, 0.0), []
    while epochs < trials * length:
        began = time.perf_counter()
        job = core.ask()
        if job is None:
            break
        if job.trial not in reached:
            seconds.append(time.perf_counter() - began)
        row = table.rows[job.spec.digest()]
        going_on, epoch = True, reached.get(job.trial, 0)
        while going_on and epoch < length:
            epoch, epochs = epoch + 1, epochs + 1
            bill = {unit: bill[unit] + float(price[row, epoch - 1]) for unit, price in table.prices.items()}
            if epochs % length == 0:
                bills.append(bill)
            scores = {table.score: float(told[row, epoch - 1])}
            going_on = core.report(job.trial, {"epoch": epoch, "step": epoch, "loss": 0.0, "seconds": 0.0, **scores})
        reached[job.trial] = epoch
        whole = epoch == length
        if whole:
            rows.append(row)
            spent.append(epochs)
        core.tell(
            Record(
                trial=job.trial, spec=job.spec, choices=job.choices, task=search.task, recipe=search.recipe,
                machine=MACHINE, status=Status.COMPLETE if whole else Status.STOPPED, costs=job.costs, scores=scores,
            )
        )  # fmt: skip
    return Replay(
        rows=rows, spent=spent, bills=bills, seconds=seconds, started=len(reached),
        rejected=sum(record.status is Status.REJECTED for record in core.records),
        audit=any(audit["first"] is not None for audit in book.audits) if book.audits else None,
    )  # fmt: skip


# Contestants ---------------------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """Who proposes: its name on the page, and a sampler for a whole search; None = the package's (``sampler``, by
    default of the contestant's name)."""

    title: str
    make: Callable[[Search, Table], BaseSampler] | None = None
    sampler: str = ""
    fidelity: str = "off"
    canonical: bool = True
    few: int = 0  # how much training a search may spend that is too slow for all seeds and tables
    searches: int = 10**6  # at most
    foreign: bool = False  # nothing of the package's own sampler is in it
    on: str = "both"  # kinds of tables

    def spends(self, trials: int) -> int:
        """How much training its searches may spend where a search has ``trials`` nets' worth."""
        return min(trials, self.few or trials)


class CostsUnknown(FrontierSampler):
    """Without known costs: every objective is learnt, from the choices alone."""

    known = ()
    featured = ()


class AnyStart(FrontierSampler):
    """Without the stratified start: the first nets are drawn at random."""

    def _spread(
        self, found: Candidates, tried: Sequence[Net], rows: npt.NDArray[np.int64], draws: np.random.Generator
    ) -> int:
        return int(draws.choice(rows))


class EveryCombination(FrontierSampler):
    """Without canonical specs: combinations that make the same net are candidates each."""

    canonical = False


class NormalNoise(FrontierSampler):
    """Without outliers: all told scores are taken to be as sure."""

    outliers = False


class Told(FrontierSampler):
    """Somebody who was told things about ``table``."""

    def __init__(self, *, table: Table, **search: Any) -> None:
        super().__init__(**search)
        self._table = table
        self._everything: Past | None = None

    def _all(self, found: Candidates, past: Past) -> Past:
        """As if all nets had been trained, and told their true scores."""
        if self._everything is None:
            rows = [self._table.rows[found.spec(row).digest()] for row in range(len(found))]
            values = np.stack([self._table.values[o.name][rows] for o in self._objectives], axis=1)
            nets = [net for options in found.options.tolist() if (net := found.net(tuple(options)))]
            self._everything = replace(past, told=nets, values=values)
        return replace(self._everything, pending=past.pending)


class Informed(Told):
    """The ceiling: its surrogate has learnt from the true scores of all nets before the first proposal."""

    def _surrogates(self, found: Candidates, past: Past) -> list[Surrogate]:
        return super()._surrogates(found, self._all(found, past))

    def _propose(self, found: Candidates, past: Past, draws: np.random.Generator) -> int:
        untried = np.ones(len(found), dtype=bool)
        untried[list(past.rows)] = False
        return self._best(found, past, untried)


class Expectant(Told):
    """Its surrogate learns from its own nets alone, by hyperparameters that were fitted to the true scores of all."""

    def _hyperparameters(self, found: Candidates, past: Past) -> list[Hyperparameters]:
        return super()._hyperparameters(found, self._all(found, past))


class Botorch(FrontierSampler):
    """BoTorch's own way to know costs: its Gaussian process for scores, deterministic models for costs, and
    qLogNoisyExpectedHypervolumeImprovement of every untried net; candidates, features and start are the sampler's."""

    def _best(self, found: Candidates, past: Past, untried: npt.NDArray[np.bool_]) -> int:
        import torch
        from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import ModelList, SingleTaskGP
        from botorch.models.deterministic import GenericDeterministicModel
        from botorch.sampling.get_sampler import get_sampler
        from gpytorch.mlls import ExactMarginalLogLikelihood

        learnt = next(o for o in self._objectives if o.is_score)
        box = Box.around([learnt], {learnt.name: past.values[:, self._objectives.index(learnt)]})
        loss = box.place({learnt.name: past.values[:, self._objectives.index(learnt)]})  # (n, 1), 1 is the worst
        told = torch.tensor(np.stack([net.features for net in past.told + past.pending]))  # (n, d)
        learner = SingleTaskGP(told[: len(loss)], torch.tensor(-loss))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(learner.likelihood, learner))
        costs = [found.encoding.column(o.name) for o in self._objectives if o is not learnt]
        known = GenericDeterministicModel(lambda x: -x[..., costs], num_outputs=len(costs))
        both = ModelList(learner, known)
        draws = get_sampler(both.posterior(told), torch.Size([SAMPLES]), seed=self._seed)
        gain = qLogNoisyExpectedHypervolumeImprovement(
            both, [-1.0] * (1 + len(costs)), told, draws, prune_baseline=True
        )
        rows = np.flatnonzero(untried)
        with torch.no_grad():
            parts = torch.tensor(found.features[rows].astype(np.float64))[:, None].split(SAMPLES)  # (b, 1, d) each
            gains = torch.cat([gain(part) for part in parts]).numpy()
        return int(rows[gains.argmax()])


def _ours(kind: Callable[..., FrontierSampler]) -> Callable[[Search, Table], BaseSampler]:
    def make(search: Search, table: Table) -> BaseSampler:
        return kind(
            space=search.space, resolution=search.task.resolution, classes=search.task.classes,
            objectives=search.objectives, budget=search.budget, seed=search.seed,
        )  # fmt: skip

    return make


CONTESTANTS = {
    "random": Contestant("random"),
    "nsga2": Contestant("NSGA-II"),
    "tpe": Contestant("TPE (multivariate, group)"),
    "nsga2_again": Contestant("NSGA-II, duplicates trained again", sampler="nsga2", canonical=False, on="tabular"),
    "tpe_again": Contestant("TPE, duplicates trained again", sampler="tpe", canonical=False, on="tabular"),
    "gp": Contestant("GPSampler", lambda search, _: GPSampler(seed=search.seed), few=100, searches=3, foreign=True),
    "botorch": Contestant("BoTorch qLogNEHVI, costs known", _ours(Botorch), few=30),
    "mo_asha": Contestant("MO-ASHA over random", sampler="random", fidelity="auto", on="tabular"),
    "frontier": Contestant("frontier, no fidelity"),
    "whole": Contestant("frontier", sampler="frontier", fidelity="auto", on="tabular"),
    "costs_unknown": Contestant("frontier, costs not known", _ours(CostsUnknown), fidelity="auto"),
    "any_start": Contestant("frontier, random start", _ours(AnyStart), fidelity="auto"),
    "every": Contestant(
        "frontier, combinations not nets", _ours(EveryCombination), fidelity="auto", canonical=False, on="tabular"
    ),
    "normal": Contestant("frontier, normal noise", _ours(NormalNoise), fidelity="auto"),
    "informed": Contestant(
        "frontier, told all scores beforehand",
        lambda search, table: _ours(partial(Informed, table=table))(search, table),
        on="tabular",
    ),
    "expectant": Contestant(
        "frontier, told what to expect",
        lambda search, table: _ours(partial(Expectant, table=table))(search, table),
        on="tabular",
    ),
}
NEEDED = {"gp": "scipy", "botorch": "botorch"}
"""Packages of contestants that others can do without."""
MARKS = (10, 15, 20, 25, 30, 40, 50, 80, 100)
"""After how many nets' worth of training the share is printed."""


def enter(contestant: str, table: Table) -> None:
    """Make a contestant a sampler of the package, one for each search on ``table``."""
    make = CONTESTANTS[contestant].make if contestant in CONTESTANTS else None
    if make is not None:
        made: dict[int, BaseSampler] = {}

        def keep(search: Search, number: int) -> BaseSampler:
            if number == 0:
                made.clear()
            return made.setdefault(search.seed, make(search, table))

        samplers.SAMPLERS[contestant] = keep


def course(table: Table, found: Replay, trials: int) -> list[float]:
    """The share of the front's hypervolume once 1, 2, … nets' worth of epochs had been trained."""
    points = table.box.place(table.values)
    best: list[int] = []
    shares, share, at = [], 0.0, 0
    for worth in range(1, trials + 1):
        before = len(best)
        while at < len(found.rows) and found.spent[at] <= worth * table.epochs:
            row, at = found.rows[at], at + 1
            if not any((points[b] <= points[row]).all() for b in best):
                best, before = [b for b in best if not (points[row] <= points[b]).all()] + [row], -1
        if before < 0:
            share = table.hypervolume(best) / table.best
        shares.append(share)
    return shares


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a contestant fared on a table: shares (seeds, trials), what the training had cost by then, in each unit, and
    the seconds of every proposal after the first ten. Of the other numbers, means over searches."""

    contestant: str
    shares: Floats
    bills: Mapping[str, Floats]  # (seeds, trials) each
    seconds: list[float]
    rejected: float
    started: float
    finished: float
    audited: float  # the share of searches in which trials could be stopped

    @property
    def marks(self) -> list[int]:
        """Those of ``MARKS`` that its searches come to."""
        return [mark for mark in MARKS if mark <= self.shares.shape[1]]

    def quartiles(self) -> Floats:
        """(3, trials)"""
        return np.quantile(self.shares, [0.25, 0.5, 0.75], axis=0)

    def until(self, share: float) -> list[float | None]:
        """After how many nets' worth of training the seeds have ``share``: quartiles, None where they never do."""
        found = np.quantile(self._first(share), [0.25, 0.5, 0.75], method="higher")
        return [float(worth) if np.isfinite(worth) else None for worth in found]

    def _first(self, share: float) -> Floats:
        """After how many nets' worth each seed has ``share`` (seeds,); inf where it never does."""
        there = self.shares >= share
        return np.where(there.any(axis=1), there.argmax(axis=1) + 1.0, np.inf)

    def paid_until(self, share: float) -> dict[str, float | None]:
        """What the training until ``share`` had cost: the median over seeds, None where it is never."""
        paid = {}
        for unit, bills in self.bills.items():
            by_seed = [row[int(n) - 1] if n < math.inf else n for row, n in zip(bills, self._first(share), strict=True)]
            median = float(np.quantile(by_seed, 0.5, method="higher"))
            paid[unit] = median if median < math.inf else None
        return paid


class Question(NamedTuple):
    """A table, and what is special about it: a simulated one's objectives, ruggedness and share of trainings that fail,
    or a trained one's folder."""

    title: str
    names: tuple[str, ...] = ()
    rugged: float = 1.0
    failing: float = 0.0
    folder: str = ""

    @property
    def kind(self) -> str:
        return "tabular" if self.folder else "simulated"


@lru_cache(maxsize=1)
def make_table(question: Question) -> Table:
    if question.folder:
        return tabulated(Path(question.folder))
    return simulate(
        spaces.load("hybrid"), landscape=LANDSCAPE, names=question.names, rugged=question.rugged,
        failing=question.failing,
    )  # fmt: skip


def one(question: Question, contestant: str, seed: int, trials: int, keep: Path) -> tuple[Replay, list[float]]:
    """One search, in a process of its own or not; of a foreign contestant, the one in the folder ``keep``."""
    table = make_table(question)
    if not CONTESTANTS[contestant].foreign:
        found = replay(table, contestant, seed, trials)
    else:
        file = f"{question.title.replace(' ', '_')}-{contestant}-{seed}-{trials}.json"
        found = kept(keep / file, table, contestant, seed, trials)
    return found, course(table, found, trials)


def kept(file: Path, table: Table, contestant: str, seed: int, trials: int) -> Replay:
    """The search that ``file`` holds; where it is of other versions or another table, or its first nets are not those
    that are proposed today, a new one, kept there."""
    told = b"".join(part.tobytes() for part in (table.told, table.seconds, *table.costs.values()))
    made_of = {
        **{package: importlib.metadata.version(package) for package in ("optuna", "torch", "scipy")},
        "table": hashlib.sha256(told).hexdigest(),
    }
    if file.exists() and (written := json.loads(file.read_text(encoding="utf-8")))["made_of"] == made_of:
        found = Replay(**written["replay"])
        if found.rows[:PROPOSED_AGAIN] == replay(table, contestant, seed, min(trials, PROPOSED_AGAIN)).rows:
            return found
    replayed = replay(table, contestant, seed, trials)
    whole = file.with_suffix(".part")
    facts = {"made_of": made_of, "machine": asdict(MACHINE), "replay": asdict(replayed)}
    whole.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    whole.replace(file)
    return replayed


def stand(contestant: str, searches: Sequence[tuple[Replay, list[float]]]) -> Standing:
    """What a contestant's searches come to."""
    found = [replayed for replayed, _ in searches]
    shares = np.array([shares for _, shares in searches])
    bills = [f.bills + f.bills[-1:] * (shares.shape[1] - len(f.bills)) for f in found]  # where no net was left
    return Standing(
        contestant=contestant, shares=shares,
        bills={unit: np.array([[bill[unit] for bill in row] for row in bills]) for unit in bills[0][0]},
        seconds=[s for f in found for s in f.seconds[10:]],
        rejected=statistics.mean(f.rejected for f in found), started=statistics.mean(f.started for f in found),
        finished=statistics.mean(len(f.rows) for f in found), audited=statistics.mean(bool(f.audit) for f in found),
    )  # fmt: skip


# What a proposal costs -----------------------------------------------------------------------------------

LIMIT = "parameters <= 27k"
"""That leaves 100 999 nets of the space ``levels`` (of 8 classes, at 64 pixels)."""


def time_proposals(told: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of a frontier proposal after ``told`` trials: the first one of a process that has screened the space
    already, and those that follow it, each after one more trial was told."""
    space = spaces.load("levels")
    names = objectives(["miou", "parameters", "macs"])
    budget = (*space.budget, Budget.parse(LIMIT))

    def make() -> FrontierSampler:
        return FrontierSampler(space, resolution=64, classes=8, objectives=names, budget=budget)

    found = make()._candidates(0)
    draws = np.random.default_rng(told)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=make())
    size = np.log(found.costs["macs"] / found.costs["macs"].min())

    def values(row: int) -> list[float]:
        kinds = found.options[row, :6]
        score = 0.7 - 0.5 * math.exp(-size[row] / 2) + 0.02 * ((kinds == 1).sum() - (kinds == 0).sum())
        return [score + draws.normal(0, 0.008), found.costs["parameters"][row], found.costs["macs"][row]]

    for row in draws.choice(len(found), told, replace=False).tolist():
        parameters = as_parameters(space, found.encoding.choices(found.options[row].tolist()))
        study.add_trial(
            optuna.trial.create_trial(params=parameters, distributions=distributions(space), values=values(row))
        )
    seconds = []
    for _ in range(repeats + 1):
        study.sampler = make()
        trial = study.ask()
        began = time.process_time()
        trial.relative_params  # noqa: B018  this is when Optuna asks its sampler
        seconds.append(time.process_time() - began)
        choices = space.suggest(trial)
        net = found.net(tuple(options.index(choices[name]) for name, options in space.choices.items()))
        assert net is not None
        assert net.row is not None
        study.tell(trial, values(net.row))
    after = sorted(seconds[1:])
    return {"told": told, "candidates": len(found), "first": seconds[0], "median": statistics.median(after),
            "most": after[-1], "least": after[0], "repeats": repeats}  # fmt: skip


# What is written -----------------------------------------------------------------------------------------


QUESTIONS = (
    Question("three objectives", ("miou", "parameters", "macs")),
    Question(
        "three objectives, rugged: pairs of kinds matter three times as much", ("miou", "parameters", "macs"), 3.0
    ),
    Question("three objectives, one training of seven fails", ("miou", "parameters", "macs"), failing=1 / 7),
    Question("two objectives", ("miou", "macs")),
    Question("four objectives", ("miou", "parameters", "macs", "peak_inference_mib")),
)
LANDSCAPE = 11
"""Another one than the sampler was made on."""

RIVALS = ("nsga2", "tpe")
AGAIN = ("nsga2_again", "tpe_again")
TABLES = ("medium", "small")


def summary(table: Table, standings: Sequence[Standing]) -> dict[str, Any]:
    """The figures of one table."""
    by_name = {s.contestant: s for s in standings}
    bars = {name: float(by_name[name].quartiles()[1, -1]) for name in (*RIVALS, *AGAIN, *NEEDED) if name in by_name}
    return {
        "nets": len(table.true),
        "front": len(table.front),
        "epochs": table.epochs,
        "hypervolume": table.best,
        "reference_worst": dict(zip((o.name for o in table.box.objectives), table.box.worst, strict=True)),
        "reference_best": dict(zip((o.name for o in table.box.objectives), table.box.best, strict=True)),
        "worth_until": {
            name: {"share": bar, **{s.contestant: s.until(bar) for s in standings}} for name, bar in bars.items()
        },
        "paid": {
            name: {unit: float(np.median(bills[:, -1])) for unit, bills in by_name[name].bills.items()} for name in bars
        },
        "paid_until": {name: {s.contestant: s.paid_until(bar) for s in standings} for name, bar in bars.items()},
        "contestants": {
            s.contestant: {
                "title": CONTESTANTS[s.contestant].title,
                "seeds": len(s.shares),
                "share_after": {
                    str(mark): dict(zip(("q1", "median", "q3"), s.quartiles()[:, mark - 1].tolist(), strict=True))
                    for mark in s.marks
                },
                "worst_seed_after": {str(mark): float(s.shares[:, mark - 1].min()) for mark in s.marks},
                "median_course": s.quartiles()[1].round(5).tolist(),
                "proposal_ms": {"median": 1e3 * statistics.median(s.seconds), "most": 1e3 * max(s.seconds)},
                "started": s.started,
                "finished": s.finished,
                "rejected": s.rejected,
                "audits_passed": s.audited,
            }
            for s in standings
        },
    }


SHARES = f"""\
Shares are of the true front's hypervolume (scores from 0 to 1, logarithms of costs over the range of all nets; the
reference point is mIoU 0 at the highest cost of each kind), by the true scores of the nets that were trained to the
end. Proposals over budget, impossible ones and duplicates are rejected and cost nothing, for all samplers alike; but
where a row says so duplicates are trained again, as they are with Optuna alone, which recognises none.
Median over seeds, quartiles in brackets; searches by GPSampler and BoTorch are few, BoTorch's short too, for a proposal
of theirs takes seconds. Those by GPSampler are kept in `results/searches/`; their first {PROPOSED_AGAIN} nets were
proposed again for this page. Milliseconds are those of a new proposal after the first ten, on a machine with other
work."""

PAID = """\
The same in what training costs, as parts of what the rival's searches had paid at the end (medians). An epoch's MACs
are those of one pass forward through the net."""

SIMULATED = """\
Nothing was trained here. The space is `hybrid` (block kinds level by level) with its exact costs. The score is made up
(`simulate` in `benchmarks/search.py`): it saturates in MACs, parameters and receptive field, each kind is worth
something at each level, and so is each pair that follows each other; what a trial is told has noise of {noise:g}.
Trainings that fail lose up to {lost:g}, evenly spread.

A made-up score is kinder than a real one. What this shows is that the sampler uses what it is given, not how much
training it saves on images."""

TABULAR = """\
Every net in `results/tabular/{folder}/` was trained, with {trained} seeds. A replayed search looks up what one of the
seeds scored, epoch by epoch; the true score of a net is the mean of its seeds at the end, the told one's among
them. Columns are training spent, in nets' worth: epochs of all trials, stopped ones too, over the {epochs} of one
whole training. CPU seconds are those that an epoch took when the table was made; nets are so small that much of them is
the same for all. With fidelity a search stops weak nets at rungs once an audit allows it; only nets trained to the end
count. What frontier's surrogate sees of a net, what it expects of scores before it has any, how it takes scores that
are far too low and how sure an audit must be was chosen {chosen}.
The first nets of frontier's searches are nearly the same whatever the seed, so that its quartiles do not show how lucky
this start is; the row with a random start does.

*Told all scores beforehand* is no rival but the ceiling of what learning can do here: its surrogate has seen the true
score of every net. It knows what nets of like choices and costs have in common; what a single net has beyond that is
mostly the noise of its few seeds, which no model can know before the net is trained. *Told what to expect* learns from
its own nets alone, by hyperparameters that were fitted to all true scores: where it is no faster than frontier, what a
search lacks is no better expectation but more, or surer, scores."""


SEEN = ("small", "medium", "small_long", "held_out")
"""Tables that were looked at when what frontier expects was chosen."""
CHOSEN = {
    True: "with an eye on this table and others, and a glance at the simulated spaces: a little kind to it",
    False: "before this table was made, on others: it is the one to trust",
}


def first_words(facts: Mapping[str, Any], title: str) -> list[str]:
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    return [
        f"# {title}", "",
        f"`{facts['command']}` on {facts['machine']['cpu']}, {facts['machine']['cores']} cores, which others used too; "
        f"a thread per search; {versions}.", "",
    ]  # fmt: skip


def standings_table(title: str, table: Mapping[str, Any]) -> list[str]:
    """The contestants on one table, and after how much training they have what the rivals have at the end."""
    marks = list(next(iter(table["contestants"].values()))["share_after"])
    lines = ["", f"## {title[0].upper()}{title[1:]}", ""]
    lines += [f"{table['nets']:,} nets, {table['front']} on the front.", ""]
    lines += [f"| sampler | seeds | {' | '.join(f'after {m}' for m in marks)} | started | finished | rejected | "
              "audits passed | ms per proposal |"]  # fmt: skip
    lines += [f"|---|---|{'---|' * len(marks)}---|---|---|---|---|"]
    for name, c in table["contestants"].items():
        shares = [f"{s['median']:.3f} ({s['q1']:.3f} to {s['q3']:.3f})" for s in c["share_after"].values()]
        shares += [""] * (len(marks) - len(shares))
        audited = f"{c['audits_passed']:.0%}" if CONTESTANTS[name].fidelity == "auto" and table["epochs"] > 1 else ""
        last = [
            *(f"{c[n]:.0f}" for n in ("started", "finished", "rejected")),
            audited,
            f"{c['proposal_ms']['median']:,.0f}",
        ]
        lines.append(f"| {' | '.join([c['title'], str(c['seeds']), *shares, *last])} |")
    lines += ["", "Nets' worth of training until a search has what a rival's median has at the end: median over seeds, "
              "quartiles in brackets.", ""]  # fmt: skip
    ours = [name for name in table["contestants"] if name not in (*RIVALS, *AGAIN, *NEEDED, "random")]
    lines += [f"| rival | its share at the end | {' | '.join(CONTESTANTS[n].title for n in ours)} |"]
    lines += [f"|---|---|{'---|' * len(ours)}"]
    for rival, row in table["worth_until"].items():
        cells = []
        for name in ours:
            low, middle, high = ("never" if w is None else f"{w:.0f}" for w in row[name])
            cells.append(f"{middle} ({low} to {high})")
        lines.append(f"| {CONTESTANTS[rival].title} | {row['share']:.3f} | {' | '.join(cells)} |")
    lines += ["", PAID, "", f"| rival | unit | {' | '.join(CONTESTANTS[n].title for n in ours)} |"]
    lines += [f"|---|---|{'---|' * len(ours)}"]
    for rival, row in table["paid_until"].items():
        for unit, whole in table["paid"][rival].items():
            cells = ["never" if (paid := row[name][unit]) is None else f"{paid / whole:.2f}" for name in ours]
            lines.append(f"| {CONTESTANTS[rival].title} | {unit} | {' | '.join(cells)} |")
    return lines


def simulated_page(facts: Mapping[str, Any]) -> str:
    lines = first_words(facts, "Samplers on simulated spaces whose front is known")
    lines += [SIMULATED.format(**facts), "", SHARES]
    for title, table in facts["tables"].items():
        lines += standings_table(title, table)
    lines += ["", "## What a proposal costs", ""]
    lines += [
        f"frontier over {facts['proposals'][0]['candidates']:,} candidates of `levels` ({LIMIT}), three objectives, "
        "one thread; milliseconds of the CPU. The first proposal of a process looks up and fits everything; after it "
        "come those that each follow one more finished trial. Screening the space's million combinations comes before, "
        "once.", "",
        "| finished trials | median | least | most | first |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for p in facts["proposals"]:
        times = [f"{1e3 * p[name]:,.0f}" for name in ("median", "least", "most", "first")]
        lines.append(f"| {p['told']:,} | {' | '.join(times)} |")
    return "\n".join(lines) + "\n"


def tabular_page(facts: Mapping[str, Any]) -> str:
    lines = first_words(facts, "Samplers on spaces of which every net was trained")
    for title, table in facts["tables"].items():
        words = TABULAR.format(**table, folder=title, chosen=CHOSEN[title in SEEN])
        lines += [words, "", SHARES, *standings_table(title, table), "", *verdicts(table), ""]
    return "\n".join(lines)


def _paid(table: Mapping[str, Any], rival: str, name: str) -> str:
    """In brackets, what a search had paid for what the rival has at the end, as parts of what the rival had paid."""
    paid = [
        f"{spent / table['paid'][rival][unit]:.2f} of its {unit}"
        for unit, spent in table["paid_until"][rival][name].items()
        if spent is not None
    ]
    return f" ({' and '.join(paid)})"


def verdicts(table: Mapping[str, Any]) -> list[str]:
    """What was to be shown, and whether it is."""
    lines = ["### What was to be shown", ""]
    best = max(RIVALS, key=lambda rival: table["worth_until"][rival]["share"])
    asked = {best: ("a quarter", 4), **({"gp": ("half", 2)} if "gp" in table["worth_until"] else {})}
    for rival, (words, part) in asked.items():
        row, trials = table["worth_until"][rival], len(table["contestants"][rival]["median_course"])
        most = trials // part
        for name in ("whole", "frontier"):
            needed = row[name][1]
            said = (
                f"needs {needed:.0f} nets' worth{_paid(table, rival, name)}" if needed is not None else "never has it"
            )
            lines.append(
                f"- What {CONTESTANTS[rival].title} has after {trials} nets ({row['share']:.3f}), for at most {words} "
                f"of the training ({most}): {CONTESTANTS[name].title} {said} (median): "
                f"**{'reached' if needed is not None and needed <= most else 'not reached'}**."
            )
    return lines


COLOURS = dict(
    zip(
        CONTESTANTS,
        ("#8c8c8c", "#56b4e9", "#0072b2", "#ddcc77", "#aa4499", "#009e73", "#117733", "#999933", "#d55e00", "#000000",
         "#e69f00", "#cc79a7", "#882255", "#6699cc", "#44aa99", "#332288"),
        strict=True,
    )
)  # fmt: skip


def draw(standings: Mapping[str, Sequence[Standing]]) -> go.Figure:
    """Median share against training, the quartiles as bands, one panel per table."""
    rows = (len(standings) + 1) // 2
    figure = make_subplots(
        rows=rows, cols=min(2, len(standings)), subplot_titles=[t.split(":")[0] for t in standings], shared_xaxes=True
    )
    for panel, shown in enumerate(standings.values()):
        where = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        for s in shown:
            low, middle, high = s.quartiles()
            x = list(range(1, len(middle) + 1))
            title, colour = CONTESTANTS[s.contestant].title, COLOURS[s.contestant]
            figure.add_scatter(
                x=x + x[::-1], y=[*high, *low[::-1]], fill="toself", fillcolor=colour, opacity=0.15, line_width=0,
                hoverinfo="skip", showlegend=False, **where,
            )  # fmt: skip
            figure.add_scatter(
                x=x, y=middle, name=title, legendgroup=title, showlegend=panel == 0, line={"color": colour}, **where
            )
    figure.update_yaxes(range=[0.5, 1.005], title_text="share of the front's hypervolume")
    figure.update_xaxes(title_text="nets' worth of training")
    figure.update_layout(
        height=150 + 400 * rows, width=1200, template="plotly_white", legend={"orientation": "h", "y": -0.12}
    )
    return figure


def measure(
    questions: Sequence[Question], arguments: argparse.Namespace, few: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[Standing]]]:  # fmt: skip
    """All searches of all contestants on some tables: the figures and the standings by title."""
    tables, standings = {}, {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        for question in questions:
            began = time.monotonic()
            found = {
                name: [
                    pool.submit(one, question, name, seed, contestant.spends(arguments.trials), arguments.keep)
                    for seed in range(min(contestant.searches, arguments.few if contestant.few else arguments.seeds))
                ]
                for name, contestant in CONTESTANTS.items()
                if contestant.on in ("both", question.kind)
                and (not contestant.few or (name in few and question in (QUESTIONS[0], questions[0])))
                and (not question.names or name != "whole")
            }
            standings[question.title] = []
            for name, futures in found.items():
                standing = stand(name, [future.result() for future in futures])
                standings[question.title].append(standing)
                print(f"  {question.title}, {CONTESTANTS[name].title}: {np.median(standing.shares[:, -1]):.3f}, "
                      f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
            table = make_table(question)
            facts = {"space": table.search.space.name, "trained": len(table.told)}
            tables[question.title] = {**facts, **summary(table, standings[question.title])}
    return tables, standings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=("tabular", "simulated", "both"), default="both")
    parser.add_argument("--table", type=Path, nargs="*", default=[RESULTS / "tabular" / name for name in TABLES])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--few", type=int, default=8, help="seeds of the slow ones, on the first table alone")
    parser.add_argument("--keep", type=Path, default=RESULTS / "searches", help="folder of GPSampler's searches")
    parser.add_argument("--trials", type=int, default=100, help="how much training a search may spend, in nets' worth")
    parser.add_argument("--workers", type=int, default=2, help="searches at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the files, without ending (search_tabular or search_simulated)")
    arguments = parser.parse_args()
    if arguments.name and arguments.on == "both":
        parser.error("one --name is for one page: say --on tabular or --on simulated with it")
    for folder in (arguments.out, arguments.keep):
        folder.mkdir(parents=True, exist_ok=True)
    needed = {name: package for name, package in NEEDED.items() if importlib.util.find_spec(package)}
    needed = needed if arguments.few else {}
    packages = ["numpy", "optuna", *(["torch", *needed.values()] if needed else [])]
    pages = {
        "tabular": (tabular_page, [Question(folder.name, folder=str(folder)) for folder in arguments.table]),
        "simulated": (simulated_page, QUESTIONS),
    }
    from picture import write_png

    for kind in pages if arguments.on == "both" else [arguments.on]:
        page, questions = pages[kind]
        tables, standings = measure(questions, arguments, list(needed))
        facts = {
            "command": shlex.join(["python", *sys.argv]),
            "machine": asdict(MACHINE),
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "provenance": provenance(),
            "tables": tables,
        }
        if kind == "simulated":
            proposals = [time_proposals(told, 40 if told <= 500 else 5) for told in (10, 50, 100, 200, 500, 1000, 2000)]
            facts |= {"noise": NOISE, "lost": LOST, "landscape": LANDSCAPE, "proposals": proposals}
        stem = arguments.out / (arguments.name or f"search_{kind}")
        stem.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(page(facts), encoding="utf-8")
        write_png(draw(standings), stem.with_suffix(".png"))


if __name__ == "__main__":
    main()
