"""The page of a screening: the facts of ``onenet_bench.report.survey``, drawn."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from onenet_bench import __version__
from onenet_bench.record import COSTS
from onenet_bench.report import survey, survey_words, words
from onenet_bench.report.figures import AXIS, DOMINATED, FRONT, KNEE, LOOKS, cost_axis, spread
from onenet_bench.report.html_file import write_html
from onenet_bench.report.survey import Histogram, Pair, ScreeningFacts, StaticFront, title
from onenet_bench.report.tables import NBSP, plain, show, show_apart, show_limit

LEAST, LARGEST = "#1b9e77", "#e7b416"
"""Colours of two fronts; the third has KNEE's, what fits FRONT's and the rest DOMINATED's."""


# Figures -------------------------------------------------------------------------------------------------------


def plot_histogram(histogram: Histogram) -> go.Figure:
    """Draw how many nets have how much of a cost, what fits in colour."""
    edges = np.array(histogram.edges)
    spans = [f"{show(histogram.cost, low)} – {show(histogram.cost, high)}" for low, high in itertools.pairwise(edges)]
    rest = [all_ - fit for all_, fit in zip(histogram.nets, histogram.fitting, strict=True)]

    def bars(name: str, counts: Sequence[int], colour: str) -> go.Bar:
        return go.Bar(
            meta=name, x=(edges[1:] + edges[:-1]) / 2, width=np.diff(edges), y=list(counts),
            marker={"color": colour, "line": {"width": 0}}, hoverinfo="text",
            text=[f"{span}<br>{n:,} net{'s' * (n != 1)}, {fit:,} fit"
                  for span, n, fit in zip(spans, histogram.nets, histogram.fitting, strict=True)],
            textposition="none",
        )  # fmt: skip

    axis = _narrow(cost_axis(histogram.cost, [histogram.edges[0], histogram.edges[-1]]))
    figure = go.Figure([bars("fitting", histogram.fitting, FRONT), bars("rest", rest, DOMINATED)])
    if histogram.limit is not None and _shows(axis, histogram.limit):
        figure.add_vline(x=histogram.limit, line={"color": KNEE, "width": 1.5, "dash": "dash"})
    ticks = {"nticks": 4} if max(histogram.nets) > 3 else {"dtick": 1}  # there is no half net
    figure.update_layout(
        **{**LOOKS, "margin": {"l": 40, "r": 10, "t": 8, "b": 30}},
        barmode="stack",
        bargap=0,
        showlegend=False,
        xaxis={**axis, "title": None},
        yaxis={**AXIS, **ticks, "rangemode": "tozero", "tickformat": "~s"},
    )
    return figure


def plot_pair(facts: ScreeningFacts, pair: Pair) -> go.Figure:
    """Draw two costs against each other: the density of all nets in grey and of those that fit over it, the limits,
    both fronts and the largest nets. Each trace's ``meta`` is its role."""
    histograms = {histogram.cost: histogram for histogram in facts.histograms}
    x, y = (np.array(histograms[name].edges) for name in (pair.x, pair.y))
    most = max(1, int(pair.nets.max()))

    def density(role: str, counts: npt.NDArray[np.int64], rgb: str, **hover: Any) -> go.Heatmap:
        shade = np.log10(np.where(counts > 0, counts, np.nan)).astype(np.float32)
        return go.Heatmap(
            meta=role, x=x, y=y, z=shade, zmin=-0.2, zmax=math.log10(most) + 0.1, showscale=False,
            colorscale=[[0, f"rgba({rgb},0.18)"], [1, f"rgba({rgb},0.95)"]], hoverongaps=False, **hover,
        )  # fmt: skip

    forms = {name: f".3{'s' if COSTS[name].unit in ('', 'B') else 'g'}" for name in (pair.x, pair.y)}
    around = [
        f"{title(name)} around %{{{axis}:{forms[name]}}}{NBSP}{COSTS[name].unit}"
        for axis, name in (("x", pair.x), ("y", pair.y))
    ]
    figure = go.Figure(
        [
            density(
                "nets", pair.nets, "128,138,148",
                customdata=np.stack([pair.nets, pair.fitting], axis=2).astype(np.int32),
                text=np.where(pair.nets == 1, "net", "nets"),
                hovertemplate="<br>".join(
                    ["%{customdata[0]:,} %{text}, %{customdata[1]:,} fit", *around]) + "<extra></extra>",
            ),
            density("fitting", pair.fitting, "31,120,180", hoverinfo="skip"),
        ]
    )  # fmt: skip
    axes = [cost_axis(name, [side[0], side[-1]]) for name, side in ((pair.x, x), (pair.y, y))]
    for limit in facts.limits:
        for name, line in ((pair.x, figure.add_vline), (pair.y, figure.add_hline)):
            if limit.cost == name and _shows(axes[name == pair.y], limit.at_most):
                line(limit.at_most, line={"color": KNEE, "width": 1.5, "dash": "dash"})
    for front, colour in ((pair.least, LEAST), (pair.most, KNEE)):
        figure.add_trace(_steps(facts, pair, front, colour))
    for front, colour, symbol, size in (
        (pair.least, LEAST, "circle", 8), (pair.most, KNEE, "circle", 7), (facts.largest, LARGEST, "star", 12),
    ):  # fmt: skip
        drawn = spread(range(len(front.nets)), survey.DRAWN)
        nets = [front.nets[i] for i in drawn]
        figure.add_trace(
            go.Scatter(
                meta=front.kind, mode="markers", customdata=nets, hoverinfo="text",
                x=[facts.nets[i].costs[pair.x] for i in nets], y=[facts.nets[i].costs[pair.y] for i in nets],
                text=[_hover(facts, front, i) for i in drawn],
                marker={"color": colour, "symbol": symbol, "size": size, "line": {"color": "#ffffff", "width": 1}},
            )
        )  # fmt: skip
    figure.update_layout(
        **{**LOOKS, "margin": {"l": 50, "r": 12, "t": 8, "b": 44}},
        showlegend=False,
        xaxis=_narrow(axes[0]),
        yaxis=axes[1],
    )
    return figure


def _shows(axis: dict[str, Any], value: float) -> bool:
    """Whether ``value`` lies within the range of a logarithmic axis."""
    low, high = axis["range"]
    return bool(10**low < value < 10**high)


def _narrow(axis: dict[str, Any]) -> dict[str, Any]:
    """A logarithmic axis with at most five ticks, those at rounder numbers where there are such."""
    ticks = dict(zip(axis["tickvals"], axis["ticktext"], strict=True))
    if all(math.isclose(float(f"{value:.0e}"), value) for value in ticks):  # 1, 2, …, 9 times a power of ten
        for digits in ("1235", "13", "1"):
            if len(ticks) > 5:
                ticks = {value: text for value, text in ticks.items() if f"{value:.0e}"[0] in digits}
    step = math.ceil(len(ticks) / 5)
    return {**axis, "tickvals": list(ticks)[::step], "ticktext": list(ticks.values())[::step]}


def _steps(facts: ScreeningFacts, pair: Pair, front: StaticFront, colour: str) -> go.Scatter:
    """A front's step line: from each net across to the next one's x, and then up or down to it."""
    return go.Scatter(
        meta=f"{front.kind} line", mode="lines", hoverinfo="skip",
        line={"color": colour, "width": 1.5, "shape": "hv"},
        x=[facts.nets[i].costs[pair.x] for i in front.nets], y=[facts.nets[i].costs[pair.y] for i in front.nets],
    )  # fmt: skip


def _hover(facts: ScreeningFacts, front: StaticFront, place: int) -> str:
    """What a point says: the net, its front, its costs and its choices. Safe to show as markup."""
    net = facts.nets[front.nets[place]]
    lines = [f"<b>{html.escape(net.label)}</b>", f"<i>{front.title}</i>"]
    if front.alike[place] > 1:
        lines.append(f"and {front.alike[place] - 1:,} more with the same two costs")
    shown = [f"{COSTS[name].title}: {show(name, net.costs[name])}" for name in survey.COMPARED]
    lines += shown + ([] if net.fits else ["over the budget"])
    choices = [html.escape(f"{name} {plain(value)}") for name, value in net.choices.items()]
    lines += ["   ".join(choices[i : i + 3]) for i in range(0, len(choices), 3)]
    return "<br>".join(lines)


# The page ------------------------------------------------------------------------------------------------------


def write_screening(facts: ScreeningFacts, out: Path, command: str) -> Path:
    """Write the page of ``facts`` to ``out``, all of it or nothing, and return ``out``; ``command`` is the one that
    makes it again. Raises OnenetBenchError where ``out`` cannot be written.
    """
    return write_html(out, build_screening(facts, command))


def build_screening(facts: ScreeningFacts, command: str) -> str:
    """The page as HTML. The same facts make the same page."""
    figures = {
        "histograms": {h.cost: words.figure_json(plot_histogram(h)) for h in facts.histograms},
        "pairs": {f"{pair.x}/{pair.y}": words.figure_json(plot_pair(facts, pair)) for pair in facts.pairs},
    }
    listed = _listed(facts)
    largest = [facts.nets[index] for index in spread(facts.largest.nets, survey.LISTED)]
    compared = list(dict.fromkeys(pair.x for pair in facts.pairs))
    return words.render(
        "screening.html.jinja",
        command=command,
        scripts=("charts.js", "screening.js"),
        data=figures,
        facts=facts,
        survey=survey,
        said=survey_words,
        listed=list(zip(listed, survey_words.costs_texts([facts.nets[i] for i, _ in listed], compared), strict=True)),
        largest=list(
            zip(
                largest,
                spread(facts.largest.alike, survey.LISTED),
                survey_words.costs_texts(largest, compared),
                strict=True,
            )
        ),
        histograms=[h for h in facts.histograms if h.cost != "parameters_used" or not facts.all_used],
        compared=compared,
        colours={"fits": FRONT, "rest": DOMINATED, "least": LEAST, "most": KNEE, "largest": LARGEST},
        columns=COSTS,
        show=show,
        show_apart=show_apart,
        show_limit=show_limit,
        version=__version__,
    )


def _listed(facts: ScreeningFacts) -> list[tuple[int, list[tuple[StaticFront, int]]]]:
    """The nets of the fronts that are shown first, largest nets first: index, and the fronts with how many nets are
    alike there."""
    places: dict[int, list[tuple[StaticFront, int]]] = {}
    for front in facts.fronts:
        for place in spread(range(len(front.nets)), survey.DRAWN):
            places.setdefault(front.nets[place], []).append((front, front.alike[place]))
    return list(places.items())
