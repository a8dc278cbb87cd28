"""Figures: facts first, then the drawing of them.

A facts value says everything that its figure shows and can be compared in a test; the ``plot_`` function beside it
decides nothing but looks. Figures are drawn for a transparent background; the page sets the colour of their text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from onenet_bench import pareto
from onenet_bench.record import COSTS, SCORES
from onenet_bench.report.tables import MISSING, NUMBERS, knee_of, show, si

FRONT, DOMINATED, KNEE = "#1f78b4", "#78828e", "#d95f02"
"""Colours that keep apart for colour-blind readers and on light and dark paper."""


# The front of one score and one cost -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFront:
    """The front of one score and one cost.

    ``trials`` from the cheapest to the dearest. ``line`` holds the corners (cost, score) of the best score that is
    to be had at each cost, up to the dearest candidate. ``knee`` is the trial farthest from the line between the
    two ends, the cost taken as a logarithm.
    """

    trials: tuple[int, ...]
    line: tuple[tuple[float, float], ...]
    knee: int | None


def pair_front(frame: pd.DataFrame, score: pareto.Objective, cost: pareto.Objective) -> PairFront:
    """The front of the complete rows of a ledger's ``frame`` under ``score`` and ``cost``."""
    rows = _plotted(frame, score, cost)
    front = pareto.front(rows, (score, cost)).sort_values([cost.name, "trial"])
    line: list[tuple[float, float]] = []
    for x, y in zip(front[cost.name], front[score.name], strict=True):
        if line and y != line[-1][1]:
            line.append((float(x), line[-1][1]))
        if not line or y != line[-1][1]:
            line.append((float(x), float(y)))
    if line and (dearest := float(rows[cost.name].max())) > line[-1][0]:
        line.append((dearest, line[-1][1]))
    return PairFront(
        trials=tuple(int(trial) for trial in front["trial"]),
        line=tuple(line),
        knee=knee_of(front, (score, cost)),
    )


def _plotted(frame: pd.DataFrame, score: pareto.Objective, cost: pareto.Objective) -> pd.DataFrame:
    """The rows that have a place in the plane: complete, with both numbers, the cost above 0."""
    return frame[(frame["status"] == "complete") & frame[score.name].notna() & (frame[cost.name] > 0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontFacts:
    """What ``plot_front`` shows. ``trials``, ``x`` (costs), ``y`` (scores) and ``hover`` run in parallel.

    ``elsewhere``: trials that this front does not hold and the front of all the run's objectives does.
    """

    score: pareto.Objective
    cost: pareto.Objective
    trials: tuple[int, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    hover: tuple[str, ...]
    front: PairFront
    elsewhere: tuple[int, ...]


def front_facts(frame: pd.DataFrame, objectives: Sequence[pareto.Objective]) -> FrontFacts:
    """The plane of the first score and the first cost among ``objectives``, for a ledger's ``frame``.

    Further objectives decide which nets stand on the whole front (``elsewhere``).
    """
    score = next(o for o in objectives if o.is_score)
    cost = next(o for o in objectives if not o.is_score)
    rows = _plotted(frame, score, cost)
    found = pair_front(frame, score, cost)
    whole = pareto.front(rows, objectives)["trial"] if len(objectives) > 2 else ()
    return FrontFacts(
        score=score,
        cost=cost,
        trials=tuple(int(trial) for trial in rows["trial"]),
        x=tuple(float(value) for value in rows[cost.name]),
        y=tuple(float(value) for value in rows[score.name]),
        hover=tuple(hover(row) for row in rows.to_dict("records")),
        front=found,
        elsewhere=tuple(sorted({int(trial) for trial in whole} - set(found.trials))),
    )


def hover(row: dict[Any, Any]) -> str:
    """What a point says: label, trial, every score and every cost that is known. Safe to show as markup."""
    lines = [f"<b>{html.escape(str(row['label']))}</b>", f"trial {row['trial']}"]
    lines += [f"{NUMBERS[n].title}: {text}" for n in NUMBERS if (text := show(n, row[n])) != MISSING]
    return "<br>".join(lines)


def plot_front(facts: FrontFacts) -> go.Figure:
    """Draw a front: dominated nets grey, the front a step line with points, its knee ringed.

    Each trace's ``meta`` is the role by which the page's script finds it.
    """
    place = {trial: index for index, trial in enumerate(facts.trials)}
    on_front = set(facts.front.trials) | set(facts.elsewhere)

    def points(trials: Collection[int], role: str, name: str, marker: dict[str, Any]) -> go.Scatter:
        at = [place[trial] for trial in trials]
        return go.Scatter(
            meta=role,
            name=name,
            x=[facts.x[i] for i in at],
            y=[facts.y[i] for i in at],
            text=[facts.hover[i] for i in at],
            customdata=list(trials),
            mode="markers",
            hoverinfo="text",
            marker=marker,
        )

    dominated = [trial for trial in facts.trials if trial not in on_front]
    knee = [facts.front.knee] if facts.front.knee is not None else []
    figure = go.Figure(
        [
            go.Scatter(
                meta="line",
                name="best score at each cost",
                x=[x for x, _ in facts.front.line],
                y=[y for _, y in facts.front.line],
                mode="lines",
                line={"color": FRONT, "width": 1.5},
                hoverinfo="skip",
                showlegend=False,
            ),
            points(dominated, "dominated", "dominated", {"color": DOMINATED, "size": 8, "opacity": 0.9}),
            points(
                facts.elsewhere,
                "elsewhere",
                "on the front of all objectives",
                {"color": "rgba(0,0,0,0)", "size": 9, "line": {"color": FRONT, "width": 2}},
            ),
            points(facts.front.trials, "front", "on this front", {"color": FRONT, "size": 10}),
            points(
                knee,
                "knee",
                "knee",
                {"color": "rgba(0,0,0,0)", "size": 19, "line": {"color": KNEE, "width": 2.5}},
            ).update(hoverinfo="skip"),
            points(
                [],
                "selected",
                "shown beside",
                {"symbol": "square-open", "size": 26, "color": DOMINATED, "line": {"width": 1.5}},
            ).update(hoverinfo="skip", showlegend=False),
        ]
    )
    figure.update_layout(
        **LOOKS,
        legend={"orientation": "h", "x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom", "itemclick": False,
                "itemdoubleclick": False},
        xaxis=cost_axis(facts.cost.name, facts.x),
        yaxis=score_axis(facts.score.name, facts.y),
    )  # fmt: skip
    return figure


# Axes ------------------------------------------------------------------------------------------------------

LOOKS: dict[str, Any] = {
    "template": None,
    "font": {"size": 13},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 50, "r": 16, "t": 34, "b": 44},
    "hoverlabel": {"align": "left", "font": {"size": 12}},
    "hovermode": "closest",
    "dragmode": "zoom",
}
AXIS: dict[str, Any] = {
    "gridcolor": "rgba(128,138,148,0.22)",
    "linecolor": "rgba(128,138,148,0.6)",
    "zeroline": False,
    "automargin": True,
    "showline": True,
    "ticks": "outside",
    "tickcolor": "rgba(128,138,148,0.6)",
}


def _title(name: str) -> dict[str, Any]:
    column = NUMBERS[name]
    unit = f" ({column.unit})" if column.unit and column.unit != "B" else ""
    better = "lower is better" if column.best == "min" else "higher is better"
    return {"text": column.title + unit + (f" · {better}" if name in SCORES else ""), "standoff": 10}


def cost_axis(name: str, values: Collection[float]) -> dict[str, Any]:
    """A logarithmic axis for the cost ``name`` around ``values``, as plotly takes it."""
    axis = {**AXIS, "type": "log", "title": _title(name)}
    if not values:
        return axis
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.05 * (high - low), 0.02)
    low, high = low - margin, high + margin
    ticks = log_ticks(10**low, 10**high)
    unit = COSTS[name].unit if COSTS[name].unit == "B" else ""
    return {**axis, "range": [low, high], "tickvals": ticks, "ticktext": _tick_texts(ticks, unit)}


def _tick_texts(ticks: Sequence[float], unit: str) -> list[str]:
    """With as many significant digits as it takes to tell the ticks apart."""
    for digits in range(1, 6):
        texts = [si(tick, unit, digits) for tick in ticks]
        if all(math.isclose(float(f"{tick:.{digits - 1}e}"), tick) for tick in ticks):
            break
    return texts


def log_ticks(low: float, high: float) -> list[float]:
    """Three to nine round numbers from ``low`` to ``high``: decades, parts of decades, or evenly spaced."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    if len(powers) > 9:
        return powers[:: math.ceil(len(powers) / 9)]
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), range(1, 10)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 4 <= len(ticks) <= 9:
            return ticks
    unit = 10 ** math.floor(math.log10((high - low) / 3))
    step = max(unit * factor for factor in (1, 2, 5) if unit * factor <= (high - low) / 3)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def score_axis(name: str, values: Collection[float]) -> dict[str, Any]:
    """A linear axis for the score ``name`` around ``values``, as plotly takes it."""
    axis = {**AXIS, "title": _title(name), "nticks": 8}
    if not values:
        return axis
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.005)
    bottom, top = low - margin, high + margin
    if low >= 0:  # so little below 0, and above a share of 1, that there is no tick
        bottom = max(bottom, -0.06 * top)
    if high <= 1 and not SCORES[name].unit:
        top = min(top, 1 + 0.06 * (1 - bottom))
    return {**axis, "range": [bottom, top]}


# Hypervolume over trials -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class HypervolumeFacts:
    """The share of ``box`` that the run's nets dominate after each trial that has ended, in order of ending."""

    box: pareto.Box
    trials: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def final(self) -> float:
        """The share at the end."""
        return self.values[-1]

    def reference(self) -> str:
        """The reference point in words."""
        return ", ".join(
            f"{NUMBERS[o.name].title} {worst:g}" if o.is_score else f"{NUMBERS[o.name].title} {show(o.name, worst)}"
            for o, worst in zip(self.box.objectives, self.box.worst, strict=True)
        )


def hypervolume_facts(frame: pd.DataFrame, objectives: Sequence[pareto.Objective]) -> HypervolumeFacts | None:
    """The growth of the hypervolume over the rows of a ledger's ``frame``.

    None with fewer than two complete nets: the box spans the costs that were seen, and one net spans nothing.
    """
    names = [o.name for o in objectives]
    usable = (frame["status"] == "complete") & frame[names].notna().all(axis=1)
    if usable.sum() < 2:
        return None
    box = pareto.Box.around(objectives, frame[usable])
    places = box.place(frame)
    values: list[float] = []
    front = np.empty((0, len(objectives)))
    for place, counts in zip(places, usable, strict=True):
        value = values[-1] if values else 0.0
        if counts and not (front <= place).all(axis=1).any():
            front = np.vstack([front, place])
            front = front[pareto.non_dominated(front)]
            value = pareto.hypervolume(front, np.ones(len(objectives)))
        values.append(value)
    return HypervolumeFacts(box=box, trials=tuple(int(trial) for trial in frame["trial"]), values=tuple(values))


def plot_hypervolume(facts: HypervolumeFacts) -> go.Figure:
    """Draw the growth of the hypervolume as steps."""
    order = list(range(1, len(facts.trials) + 1))
    figure = go.Figure(
        go.Scatter(
            x=order,
            y=list(facts.values),
            mode="lines",
            line={"color": FRONT, "width": 2, "shape": "hv"},
            fill="tozeroy",
            fillcolor="rgba(31,120,180,0.12)",
            text=[f"after {n} candidates (trial {t}): {v:.3f}"
                  for n, t, v in zip(order, facts.trials, facts.values, strict=True)],
            hoverinfo="text",
        )
    )  # fmt: skip
    whole = {"dtick": 1} if len(order) < 10 else {}  # there is no half candidate
    figure.update_layout(
        **LOOKS,
        showlegend=False,
        xaxis={**AXIS, **whole, "title": {"text": "Candidates that have ended", "standoff": 10}, "rangemode": "tozero"},
        yaxis={**AXIS, "title": {"text": "Hypervolume", "standoff": 10}, "rangemode": "tozero", "nticks": 6},
    )
    return figure


def spread(items: Sequence[int], most: int, keep: Iterable[int] = ()) -> list[int]:
    """At most ``most`` of ``items``, evenly spread with both ends, those in ``keep`` preferred; in order."""
    if len(items) <= most:
        return list(items)
    places = {round(i * (len(items) - 1) / (most - 1)) for i in range(most)}
    for item in keep:
        at = items.index(item)
        if at not in places:
            inner = places - {0, len(items) - 1} - {items.index(other) for other in keep}
            places.remove(min(inner, key=lambda place: abs(place - at)))
            places.add(at)
    return [items[place] for place in sorted(places)]
