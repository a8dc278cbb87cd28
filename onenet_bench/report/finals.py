"""The final answer of a run: its front and the planned baselines, trained anew with fresh seeds, with their spread.

How sure a place on the front is, is asked of the seeds: the mean of a net's n seeds is taken to lie around its true
score as Student's t says, with the spread of all nets' seeds pooled. A net's probability is the share of DRAWS draws of
all nets at once in which no other beats it.
"""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from rich.markup import escape
from rich.table import Table

from onenet_bench import ledger, pareto
from onenet_bench.record import COSTS, SCORES, Record, Status
from onenet_bench.report import figures
from onenet_bench.report.tables import MISSING, NUMBERS, Run, show
from onenet_bench.spec import NetSpec

DRAWS = 1000
"""For the probability of a place on the front."""

SPLITS = {"test_scores": "test", "scores": "validation"}
"""Fields of a Record, the better evidence first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Scores of one net over its seeds: one per seed, their mean and standard deviation (None below two)."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without values."""
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(values=tuple(values), mean=statistics.fmean(values), deviation=deviation)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.deviation:.3f}" if self.deviation is not None else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A net trained anew. ``searched`` is its score in the search (one seed, validation), None for a baseline;
    ``probability`` is that of standing on the front of all contestants, None where it cannot be said."""

    name: str
    trial: int | None
    spec: NetSpec
    costs: Mapping[str, float | None]
    searched: float | None
    validation: Spread | None
    test: Spread | None
    probability: float | None
    failed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalFacts:
    """The final trainings of a run. ``split`` is the one that decides; ``score`` the first score among the objectives;
    ``ended`` says whether all trainings were made; ``optimism`` is by how much the search's scores of the found nets
    exceed the mean of their fresh seeds on the same validation split, on average. Where the search went on since, its
    front has ``new`` nets that are not among the contestants, and ``gone`` of these stand on it no more."""

    score: str
    costs: tuple[str, ...]
    seeds: tuple[int, ...]
    split: str
    contestants: tuple[Contestant, ...]
    ended: bool
    optimism: float | None
    new: int
    gone: int

    @property
    def ordered(self) -> list[Contestant]:
        """All, dearest first."""
        return sorted(self.contestants, key=lambda c: -(c.costs.get(self.costs[0]) or 0))

    @property
    def found(self) -> list[Contestant]:
        """Those of the search."""
        return [one for one in self.contestants if one.trial is not None]

    @property
    def planned(self) -> list[Contestant]:
        """The baselines."""
        return [one for one in self.contestants if one.trial is None]


def final_facts(run: Run) -> FinalFacts | None:
    """The final trainings in the run's folder; None where there are none. Raises LedgerError for a damaged ledger."""
    folder = run.path / ledger.FINAL
    if not (folder / ledger.FILE).exists():
        return None
    with ledger.understood(folder):
        events = ledger.read(folder)
        asked = [event for event in events if "contestants" in event][-1]
        seeds = tuple(asked["seeds"])
        made: dict[str, dict[int, Record]] = {}
        for record in ledger.records(events):
            if record.spec is not None and record.recipe.seed in seeds:
                made.setdefault(record.spec.digest(), {})[record.recipe.seed] = record
        specs = [NetSpec.from_dict(one["spec"]) for one in asked["contestants"]]
    trainings = [list(made.get(spec.digest(), {}).values()) for spec in specs]
    complete = [[r for r in records if r.status is Status.COMPLETE] for records in trainings]
    field = "test_scores" if all(r.test_scores for records in complete for r in records) else "scores"
    names = [o.name for o in run.objectives]
    score, costs = run.first_pair[0].name, tuple(name for name in names if name in COSTS)
    probabilities = _probabilities(run.objectives, complete, field)
    contestants = []
    for one, spec, records, whole, probability in zip(
        asked["contestants"], specs, trainings, complete, probabilities, strict=True
    ):
        searched = run.record(one["trial"]).scores.get(score) if one["trial"] is not None else None
        contestants.append(
            Contestant(
                name=one["name"], trial=one["trial"], spec=spec,
                costs={name: getattr(records[0].costs, name, None) for name in costs} if records else {},
                searched=searched,
                validation=Spread.of([r.scores[score] for r in whole if score in r.scores]),
                test=Spread.of([r.test_scores[score] for r in whole if score in r.test_scores]),
                probability=probability, failed=len(records) - len(whole),
            )
        )  # fmt: skip
    front, trained = set(run.front["trial"].tolist()), {c.trial for c in contestants if c.trial is not None}
    gaps = [c.searched - c.validation.mean for c in contestants if c.searched is not None and c.validation]
    return FinalFacts(
        score=score, costs=costs, seeds=seeds, split=SPLITS[field], contestants=tuple(contestants),
        ended=sum(map(len, trainings)) == len(specs) * len(seeds),
        optimism=statistics.fmean(gaps) if gaps else None, new=len(front - trained), gone=len(trained - front),
    )  # fmt: skip


def _probabilities(
    objectives: Sequence[pareto.Objective], complete: Sequence[Sequence[Record]], field: str
) -> list[float | None]:
    """Of each net, to be on the front; None for all where no net has two seeds, and for a net that has none, or of
    which a score or a cost is not known."""

    def is_known(o: pareto.Objective, record: Record) -> bool:
        return o.name in getattr(record, field) if o.is_score else getattr(record.costs, o.name) is not None

    at = [i for i, rows in enumerate(complete) if rows and all(is_known(o, r) for o in objectives for r in rows)]
    freedom = sum(len(complete[i]) - 1 for i in at)
    if not freedom:
        return [None] * len(complete)
    draws = np.random.default_rng(0).standard_t(freedom, size=(DRAWS, len(at)))
    columns = []  # (DRAWS, nets) of losses
    for o in objectives:
        if o.is_score:
            values = [[getattr(r, field)[o.name] for r in complete[i]] for i in at]
            pooled = math.sqrt(sum((len(v) - 1) * statistics.variance(v) for v in values if len(v) > 1) / freedom)
            means = np.array([statistics.fmean(v) for v in values])
            errors = np.array([pooled / math.sqrt(len(v)) for v in values])
            drawn = means + draws * errors
        else:
            drawn = np.tile([float(getattr(complete[i][0].costs, o.name)) for i in at], (DRAWS, 1))
        columns.append(np.asarray(o.loss(drawn)))
    points = np.stack(columns, axis=-1)  # (DRAWS, nets, objectives)
    share = np.mean([pareto.non_dominated(drawn) for drawn in points], axis=0)
    probabilities: list[float | None] = [None] * len(complete)
    for i, p in zip(at, share, strict=True):
        probabilities[i] = float(p)
    return probabilities


# For readers -----------------------------------------------------------------------------------------------


def rows_of(facts: FinalFacts) -> list[dict[str, Any]]:
    """The contestants as text, dearest first: what the page and the terminal show."""
    return [
        {
            "name": c.name,
            "trial": c.trial,
            "label": c.spec.label(),
            "searched": MISSING if c.searched is None else f"{c.searched:.3f}",
            "validation": str(c.validation or MISSING),
            "test": str(c.test or MISSING),
            "probability": MISSING if c.probability is None else f"{c.probability:.0%}",
            "costs": [show(name, c.costs.get(name)) for name in facts.costs],
            "failed": c.failed,
        }
        for c in facts.ordered
    ]


def final_words(facts: FinalFacts) -> str:
    """What the final trainings say, in sentences."""
    said = [
        f"{_many(len(facts.found), 'net')} of the front and {_many(len(facts.planned), 'planned baseline')} were "
        f"trained with {_many(len(facts.seeds), 'fresh seed')}."
    ]
    if missing := _missing(facts):
        said.append(missing)
    if facts.split != "test":
        said.append("There are no scores on a test split: places are judged by validation, which the search had seen.")
    if any(c.probability is not None for c in facts.contestants):
        sure = [sum((c.probability or 0) >= 0.5 for c in who) for who in (facts.found, facts.planned)]
        said.append(
            f"More likely than not on the front of all of them: {sure[0]} of {len(facts.found)} found, {sure[1]} of "
            f"{len(facts.planned)} planned."
        )
    elif len(facts.seeds) < 2:
        said.append("How sure a place on the front is takes at least two seeds.")
    if facts.optimism is not None:
        said.append(
            f"In the search the found nets had scored {abs(facts.optimism):.3f} "
            f"{'higher' if facts.optimism >= 0 else 'lower'} on validation, on average, than with fresh seeds."
        )
    return " ".join(said)


def _missing(facts: FinalFacts) -> str:
    """What the final trainings lack, and how to make it, in a sentence; empty where they lack nothing."""
    said = []
    if not facts.ended:
        said.append("not all of these trainings have been made yet")
    if failed := sum(c.failed for c in facts.contestants):
        said.append(f"{_many(failed, 'training')} failed")
    if facts.new or facts.gone:
        said.append(
            f"since then the search has gone on: {_many(facts.new, 'net')} of its front {_are(facts.new)} not among "
            f"them, and {facts.gone} of them {_are(facts.gone)} no longer on it"
        )
    if not said:
        return ""
    words = "; ".join([*said, f"sweep --resume RUN --final {len(facts.seeds)} trains what is missing."])
    return words[0].upper() + words[1:]


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def final_rows(facts: FinalFacts) -> list[dict[str, Any]]:
    """The contestants as JSON-ready numbers, dearest first."""
    return [
        {
            "name": c.name, "trial": c.trial, "digest": c.spec.digest(), "label": c.spec.label(),
            "searched": c.searched, "validation": c.validation and asdict(c.validation),
            "test": c.test and asdict(c.test), "probability": c.probability, "costs": dict(c.costs), "failed": c.failed,
        }
        for c in facts.ordered
    ]  # fmt: skip


def final_table(facts: FinalFacts) -> Table:
    """The same for a terminal: of two lines a net, so that 80 columns hold it."""
    table = Table(
        title=f"{SCORES[facts.score].title} of nets trained anew: mean ± standard deviation over fresh seeds; in the "
        "search it was one seed's, on validation",
        title_justify="left", caption=_missing(facts) or None, caption_justify="left", box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("Net", overflow="fold")
    costs = (NUMBERS[name].title.replace(" ", "\n") for name in facts.costs)
    for heading in ("in the\nsearch", "validation", "test", "likely\non the\nfront", *costs):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows_of(facts):
        failed = f"  ({row['failed']} failed)" if row["failed"] else ""
        net = f"[bold]{escape(row['name'])}[/]{failed}\n{escape(row['label'])}"
        spreads = (row[split].replace(" ±", "\n±") for split in ("validation", "test"))
        table.add_row(net, row["searched"], *spreads, row["probability"], *row["costs"])
    return table


def plot_final(facts: FinalFacts) -> go.Figure:
    """Mean and spread over seeds against the first cost: what was found beside what was planned."""
    cost = facts.costs[0]
    figure = go.Figure()
    shown: list[tuple[float, Spread]] = []
    for who, name, colour, symbol in (
        (facts.found, "found", figures.FRONT, "circle"), (facts.planned, "baseline", figures.KNEE, "diamond-open"),
    ):  # fmt: skip
        points = [(c, spread) for c in who if (spread := c.test if facts.split == "test" else c.validation) is not None]
        shown += [(float(c.costs[cost] or 0), spread) for c, spread in points]
        figure.add_trace(
            go.Scatter(
                name=name, mode="markers",
                x=[c.costs[cost] for c, _ in points], y=[spread.mean for _, spread in points],
                error_y={"type": "data", "array": [spread.deviation or 0 for _, spread in points], "thickness": 1.2},
                marker={"color": colour, "symbol": symbol, "size": 9},
                text=[f"<b>{html.escape(c.name)}</b><br>{html.escape(c.spec.label())}<br>{s}" for c, s in points],
                hoverinfo="text",
            )
        )  # fmt: skip
    low_high = [s.mean + sign * (s.deviation or 0) for _, s in shown for sign in (-1, 1)]
    figure.update_layout(
        **figures.LOOKS, showlegend=False, xaxis=figures.cost_axis(cost, [x for x, _ in shown if x > 0]),
        yaxis=figures.score_axis(facts.score, low_high),
    )  # fmt: skip
    return figure
