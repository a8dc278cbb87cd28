"""How fast a search finds the front: samplers replayed on tables whose front is known.

    python benchmarks/search.py                                        # the figures in results/: most of an hour
    python benchmarks/search.py --seeds 3 --trials 40 --out /tmp/look  # a look, some minutes

A Table holds every net of a space that fits a budget, with its exact costs and its scores. A replay runs the
package's own search loop on it: trials look their score up instead of being trained. The tables here are simulated:
the costs are those of the space, the score is a made-up function of the net plus noise, drawn by a seed. So the front
is known, and a sampler is judged by the share of the front's hypervolume that the nets it had trained dominate.

Writes search_simulated.json, .md and .png to ``--out``. GPSampler needs scipy, and is left out where there is none.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import math
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
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
from onenet_bench.ledger import Ledger
from onenet_bench.pareto import Box, losses, non_dominated, objectives
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, Record, Status, provenance
from onenet_bench.screen import SCREENED, screen
from onenet_bench.search import samplers
from onenet_bench.search.core import Core, Search
from onenet_bench.search.frontier import Candidates, FrontierSampler, Net
from onenet_bench.search.parameters import as_parameters, distributions
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

RESULTS = Path(__file__).parent.parent / "results"
MACHINE = Machine.here()
Floats = npt.NDArray[np.float64]
NOISE = 0.008
"""Of a told score, standard deviation."""


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


def simulate(
    space: SearchSpace, *, landscape: int, names: Sequence[str] = (), rugged: float = 1.0, noise: float = NOISE,
    seeds: int = 2,
) -> Table:  # fmt: skip
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
    """A search by a sampler of SAMPLERS, whose trials are looked up."""
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


# Contestants ---------------------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """Who proposes: its name on the page, and a sampler for a whole search; None = the package's of that name."""

    title: str
    make: Callable[[Search], BaseSampler] | None = None
    few: bool = False  # too slow for all seeds and tables


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


def _ours(kind: type[FrontierSampler]) -> Callable[[Search], BaseSampler]:
    return lambda search: kind(
        search.space, resolution=search.task.resolution, classes=search.task.classes, objectives=search.objectives,
        budget=search.budget, seed=search.seed,
    )  # fmt: skip


CONTESTANTS = {
    "random": Contestant("random"),
    "nsga2": Contestant("NSGA-II"),
    "tpe": Contestant("TPE (multivariate, group)"),
    "gp": Contestant("GPSampler", lambda search: GPSampler(seed=search.seed), few=True),
    "frontier": Contestant("frontier"),
    "any_start": Contestant("frontier, random start", _ours(AnyStart)),
    "costs_unknown": Contestant("frontier, costs not known", _ours(CostsUnknown)),
}
MARKS = (10, 20, 40, 80, 100)
"""After how many trained nets the share is printed."""


def enter(contestant: str) -> None:
    """Make a contestant a sampler of the package, one for each search."""
    make = CONTESTANTS[contestant].make
    if make is not None:
        made: dict[int, BaseSampler] = {}

        def keep(search: Search, number: int) -> BaseSampler:
            if number == 0:
                made.clear()
            return made.setdefault(search.seed, make(search))

        samplers.SAMPLERS[contestant] = keep


def course(table: Table, found: Replay, trials: int) -> list[float]:
    """The share of the front's hypervolume after each trained net; the last one stands where a search ended early."""
    shares: list[float] = []
    points = table.box.place(table.values)
    best: list[int] = []
    for row in found.rows:
        if not any((points[b] <= points[row]).all() for b in best):
            best = [b for b in best if not (points[row] <= points[b]).all()] + [row]
            shares.append(table.hypervolume(best) / table.best)
        else:
            shares.append(shares[-1])
    return shares + [shares[-1]] * (trials - len(shares))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a contestant fared on a table: shares (seeds, trials), and the seconds of every proposal after the first
    ten."""

    contestant: str
    shares: Floats
    seconds: list[float]
    rejected: float  # per search

    def quartiles(self) -> Floats:
        """(3, trials)"""
        return np.quantile(self.shares, [0.25, 0.5, 0.75], axis=0)


def run(table: Table, contestant: str, seeds: int, trials: int) -> Standing:
    """All searches of a contestant on a table."""
    enter(contestant)
    began = time.monotonic()
    found = [replay(table, contestant, seed, trials) for seed in range(seeds)]
    shares = np.array([course(table, f, trials) for f in found])
    print(
        f"  {CONTESTANTS[contestant].title}: {np.median(shares[:, -1]):.3f}, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return Standing(
        contestant=contestant, shares=shares, seconds=[s for f in found for s in f.seconds[10:]],
        rejected=statistics.mean(f.rejected for f in found),
    )  # fmt: skip


def reached(standing: Standing, share: float) -> int | None:
    """After how many trained nets the median is at least ``share``."""
    there = np.flatnonzero(standing.quartiles()[1] >= share)
    return int(there[0]) + 1 if len(there) else None


# What a proposal costs -----------------------------------------------------------------------------------

LIMIT = "parameters <= 27k"
"""That leaves 100 999 nets of the space ``levels`` (of 8 classes, at 64 pixels)."""


def time_proposals(told: int, repeats: int) -> dict[str, Any]:
    """Seconds of a frontier proposal after ``told`` trials: the first one of a process that has screened the space
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
        parameters = as_parameters(space, found.choices(found.options[row].tolist()))
        study.add_trial(
            optuna.trial.create_trial(params=parameters, distributions=distributions(space), values=values(row))
        )
    seconds = []
    for _ in range(repeats + 1):
        study.sampler = make()
        trial = study.ask()
        began = time.perf_counter()
        trial.relative_params  # noqa: B018  this is when Optuna asks its sampler
        seconds.append(time.perf_counter() - began)
        choices = space.suggest(trial)
        net = found.net(tuple(options.index(choices[name]) for name, options in space.choices.items()))
        assert net is not None
        assert net.row is not None
        study.tell(trial, values(net.row))
    after = sorted(seconds[1:])
    return {"told": told, "candidates": len(found), "first": seconds[0], "median": statistics.median(after),
            "most": after[-1], "least": after[0], "repeats": repeats}  # fmt: skip


# What is written -----------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A table, and what is special about it."""

    title: str
    names: tuple[str, ...]
    rugged: float


QUESTIONS = (
    Question("three objectives", ("miou", "parameters", "macs"), 1.0),
    Question(
        "three objectives, rugged: pairs of kinds matter three times as much", ("miou", "parameters", "macs"), 3.0
    ),
    Question("two objectives", ("miou", "macs"), 1.0),
    Question("four objectives", ("miou", "parameters", "macs", "peak_inference_mib"), 1.0),
)
LANDSCAPE = 11
"""Another one than the sampler was made on."""


def summary(table: Table, standings: Sequence[Standing], trials: int) -> dict[str, Any]:
    """The figures of one table."""
    marks = [mark for mark in MARKS if mark <= trials]
    by_name = {s.contestant: s for s in standings}
    bars = {name: float(by_name[name].quartiles()[1, -1]) for name in ("nsga2", "tpe", "gp") if name in by_name}
    return {
        "nets": len(table.true),
        "front": len(table.front),
        "hypervolume": table.best,
        "reference_worst": dict(zip((o.name for o in table.box.objectives), table.box.worst, strict=True)),
        "reference_best": dict(zip((o.name for o in table.box.objectives), table.box.best, strict=True)),
        "trials_until_the_median_has": {
            f"{name}'s median after {trials}": {"share": bar, **{s.contestant: reached(s, bar) for s in standings}}
            for name, bar in bars.items()
        },
        "contestants": {
            s.contestant: {
                "title": CONTESTANTS[s.contestant].title,
                "seeds": len(s.shares),
                "share_after": {
                    str(mark): dict(zip(("q1", "median", "q3"), s.quartiles()[:, mark - 1].tolist(), strict=True))
                    for mark in marks
                },
                "worst_seed_after": {str(mark): float(s.shares[:, mark - 1].min()) for mark in marks},
                "median_course": s.quartiles()[1].round(5).tolist(),
                "proposal_ms": {"median": 1e3 * statistics.median(s.seconds), "most": 1e3 * max(s.seconds)},
                "rejected_per_search": s.rejected,
            }
            for s in standings
        },
    }


ABOUT = """\
Nothing was trained here. The space is `hybrid` (block kinds level by level) with its exact costs. The score is made up
(`simulate` in `benchmarks/search.py`): it saturates in MACs, parameters and receptive field, each kind is worth
something at each level, and so is each pair that follows each other; what a trial is told has noise of {noise:g}.
Shares are of the true front's hypervolume (scores from 0 to 1, logarithms of costs over the space's range), by the true
scores of the nets that were trained. Proposals over budget, impossible ones and duplicates are rejected and cost
nothing, for all samplers alike. Median over seeds, quartiles in brackets.

A made-up score is kinder than a real one. What this shows is that the sampler uses what it is given, not how much
training it saves on images."""


def markdown(facts: Mapping[str, Any]) -> str:
    """The page."""
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = [
        "# Samplers on simulated spaces whose front is known", "",
        f"`{facts['command']}` on {facts['machine']['cpu']}, {facts['machine']['cores']} cores, which others used too; "
        f"one thread; {versions}.", "", ABOUT.format(**facts),
    ]  # fmt: skip
    for title, table in facts["tables"].items():
        first = next(iter(table["contestants"].values()))
        marks = list(first["share_after"])
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += [f"{table['nets']:,} nets, {table['front']} on the front.", ""]
        lines += [f"| sampler | seeds | {' | '.join(f'after {m}' for m in marks)} | ms per proposal | rejected |"]
        lines += [f"|---|---|{'---|' * len(marks)}---|---|"]
        for c in table["contestants"].values():
            shares = [f"{s['median']:.3f} ({s['q1']:.3f} to {s['q3']:.3f})" for s in c["share_after"].values()]
            last = [f"{c['proposal_ms']['median']:,.0f}", f"{c['rejected_per_search']:.0f}"]
            lines.append(f"| {' | '.join([c['title'], str(c['seeds']), *shares, *last])} |")
        lines.append("")
        for bar, counts in table["trials_until_the_median_has"].items():
            ours = [
                f"{CONTESTANTS[name].title} after {counts[name] or 'more than all'}"
                for name in counts
                if name in ("frontier", "any_start", "costs_unknown")
            ]
            lines.append(f"- {bar}, {counts['share']:.3f}, is reached by the medians of {'; '.join(ours)} nets.")
    lines += ["", "## What a proposal costs", ""]
    lines += [
        f"frontier over {facts['proposals'][0]['candidates']:,} candidates of `levels` ({LIMIT}), three objectives, "
        "one thread; milliseconds. The first proposal of a process looks up and fits everything; after it come those "
        "that each follow one more finished trial. Screening the space's million combinations comes before, once.", "",
        "| finished trials | median | least | most | first |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for p in facts["proposals"]:
        times = [f"{1e3 * p[name]:,.0f}" for name in ("median", "least", "most", "first")]
        lines.append(f"| {p['told']:,} | {' | '.join(times)} |")
    return "\n".join(lines) + "\n"


COLOURS = ("#8c8c8c", "#56b4e9", "#0072b2", "#009e73", "#d55e00", "#e69f00", "#cc79a7")


def draw(standings: Mapping[str, Sequence[Standing]], trials: int) -> go.Figure:
    """Median share against trained nets, the quartiles as bands, one panel per table."""
    figure = make_subplots(rows=2, cols=2, subplot_titles=[t.split(":")[0] for t in standings], shared_xaxes=True)
    colours = dict(zip(CONTESTANTS, COLOURS, strict=True))
    for panel, shown in enumerate(standings.values()):
        where = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        for s in shown:
            low, middle, high = s.quartiles()
            x = list(range(1, trials + 1))
            title, colour = CONTESTANTS[s.contestant].title, colours[s.contestant]
            figure.add_scatter(
                x=x + x[::-1], y=[*high, *low[::-1]], fill="toself", fillcolor=colour, opacity=0.15, line_width=0,
                hoverinfo="skip", showlegend=False, **where,
            )  # fmt: skip
            figure.add_scatter(
                x=x, y=middle, name=title, legendgroup=title, showlegend=panel == 0, line={"color": colour}, **where
            )
    figure.update_yaxes(range=[0.5, 1.005], title_text="share of the front's hypervolume")
    figure.update_xaxes(title_text="nets trained")
    figure.update_layout(height=900, width=1200, template="plotly_white", legend={"orientation": "h", "y": -0.08})
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--few", type=int, default=3, help="seeds of GPSampler, on the first table alone (0 for none)")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with_gp = importlib.util.find_spec("scipy") is not None and arguments.few > 0
    tables, standings = {}, {}
    for question in QUESTIONS:
        table = simulate(
            spaces.load("hybrid"), landscape=LANDSCAPE, names=question.names, rugged=question.rugged, noise=NOISE
        )
        print(question.title, f"{len(table.true)} nets", flush=True)
        standings[question.title] = [
            run(table, name, arguments.few if contestant.few else arguments.seeds, arguments.trials)
            for name, contestant in CONTESTANTS.items()
            if not contestant.few or (with_gp and question is QUESTIONS[0])
        ]
        tables[question.title] = summary(table, standings[question.title], arguments.trials)
    proposals = [time_proposals(told, 40 if told <= 500 else 5) for told in (10, 50, 100, 200, 500, 1000, 2000)]
    packages = ["numpy", "optuna", *(["scipy", "torch"] if with_gp else [])]
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": asdict(MACHINE),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "provenance": provenance(),
        "noise": NOISE,
        "landscape": LANDSCAPE,
        "tables": tables,
        "proposals": proposals,
    }
    (arguments.out / "search_simulated.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "search_simulated.md").write_text(markdown(facts), encoding="utf-8")
    from picture import write_png

    write_png(draw(standings, arguments.trials), arguments.out / "search_simulated.png")


if __name__ == "__main__":
    main()
