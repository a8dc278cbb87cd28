"""What the page's script reads: the nets in detail, and the figures as they are first shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from onenet_bench import pareto
from onenet_bench.costs import by_level
from onenet_bench.plan import plan
from onenet_bench.record import COSTS, SCORES, Record, Status
from onenet_bench.report import figures, finals, tables
from onenet_bench.report.tables import NUMBERS, Run, number, plain, show
from onenet_bench.report.words import figure_json
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

CURVE_POINTS = 12_000
"""What the learning curves of all nets together may hold."""


def data(
    run: Run, front: list[int], knee: int | None, growth: figures.HypervolumeFacts | None,
    final: finals.FinalFacts | None,
) -> dict[str, Any]:  # fmt: skip
    """The nets in detail, the front of every score and cost, and the figures as they are first shown."""
    scores = run.known(SCORES)
    costs = [name for name in run.known(COSTS) if (run.complete[name] > 0).any()]
    fronts = {}
    for score in scores:
        for cost in costs:
            found = figures.pair_front(run.frame, pareto.Objective(name=score), pareto.Objective(name=cost))
            fronts[f"{score}/{cost}"] = {"trials": found.trials, "line": found.line, "knee": found.knee}
    axes = {
        **{name: figures.score_axis(name, run.complete[name].dropna().tolist()) for name in scores},
        **{name: figures.cost_axis(name, run.complete[name][run.complete[name] > 0].tolist()) for name in costs},
    }
    panels = []
    for pair in tables.pairs(run.objectives):
        if pair[0].name in scores and pair[1].name in costs:
            rest = [o for o in run.objectives if o not in pair]
            figure = figures.plot_front(figures.front_facts(run.frame, [*pair, *rest]))
            panels.append({"score": pair[0].name, "cost": pair[1].name, "figure": _unfilled(figure_json(figure))})
    opened = [record for record in run.records if opens(record)]
    points = max(10, min(120, CURVE_POINTS // max(1, len(opened))))
    return {
        "name": str(run.head["name"]),
        "nets": {
            str(record.trial): {**_net(run, record, points), "hover": figures.hover(row)}
            for record, row in zip(run.records, run.frame.to_dict("records"), strict=True)
            if opens(record)
        },
        "objectives": [o.name for o in run.objectives],
        "front": front,
        "knee": knee,
        "scores": {name: SCORES[name].title for name in scores},
        "costs": {name: COSTS[name].title for name in costs},
        "fronts": fronts,
        "axes": axes,
        "panels": panels,
        "hypervolume": figure_json(figures.plot_hypervolume(growth)) if growth else None,
        "final": figure_json(finals.plot_final(final)) if final else None,
        "curve": run.first_pair[0].name,
        "curve_title": SCORES[run.first_pair[0].name].title,
        "classes": list(run.task.class_names),
        "csv": run.complete.convert_dtypes().to_csv(index=False, lineterminator="\r\n"),
    }


def _unfilled(figure: dict[str, Any]) -> dict[str, Any]:
    """``figure`` without its points: the script fills them in from the nets, for whichever axes are chosen."""
    filled = ("x", "y", "text", "customdata")
    traces = [{key: value for key, value in trace.items() if key not in filled} for trace in figure["data"]]
    return {**figure, "data": traces}


def opens(record: Record) -> bool:
    """Whether there is more to say about a candidate than a line in a list."""
    return record.spec is not None and record.costs is not None and record.status is not Status.REJECTED


def _net(run: Run, record: Record, points: int) -> dict[str, Any]:
    """One net in detail. Numbers that people read are text already."""
    assert record.spec is not None  # it opens
    score = run.first_pair[0].name
    curve = figures.spread(range(len(record.history)), points)
    per_class = {
        name: [None if value is None else f"{value:.3f}" for value in values]
        for name, values in record.per_class.items()
    }
    return {
        "trial": record.trial,
        "label": record.spec.label(),
        "digest": record.spec.digest(),
        "status": str(record.status),
        "reason": record.reason,
        "seconds": tables.duration(record.seconds),
        "values": {name: number(record, name) for name in NUMBERS if number(record, name) is not None},
        "scores": [
            [SCORES[name].title, show(name, value)] for name in SCORES if (value := record.scores.get(name)) is not None
        ],
        "costs": [
            [COSTS[name].title, show(name, value)]
            for name in COSTS
            if (value := getattr(record.costs, name)) is not None
        ],
        "choices": [[name, plain(value)] for name, value in record.choices.items()],
        "levels": [list(level.values()) for level in levels(record.spec, run.task)],
        "per_class": per_class,
        "curve": {
            "epoch": [record.history[i].get("epoch", i + 1) for i in curve],
            "loss": [_short(record.history[i].get("loss")) for i in curve],
            "score": [_short(record.history[i].get(score)) for i in curve],
        },
    }


def _short(value: Any) -> float | None:
    """A number to five significant digits; None for what is none or not finite."""
    return float(f"{value:.5g}") if isinstance(value, int | float) and np.isfinite(value) else None


def levels(spec: NetSpec, task: Task) -> list[dict[str, Any]]:
    """Every level of ``spec`` in order of execution: its name, what it is in words, and what it costs on ``task``.

    Raises SpecError where the net does not take the task's images.
    """
    words = {"stem": f"{spec.stem.kind} {spec.stem.channels} ch ×{spec.stem.repeat}"}
    for i, stage in enumerate(spec.encoder, start=1):
        words[f"encoder {i}"] = f"{stage.kind} {stage.channels} ch ↓{stage.scale} k{stage.kernel} ×{stage.repeat}"
    for j, stage in enumerate(spec.decoder):
        words[f"decoder {spec.decoder_level(j)}"] = (
            f"{stage.kind} {stage.channels} ch ↑{stage.scale} k{stage.kernel} ×{stage.repeat}"
            + ("" if stage.skip else ", no skip")
            + (", plain" if stage.plain else "")
        )
    costs = by_level(plan(spec, (task.in_channels, task.resolution, task.resolution)))
    return [{"name": name, "words": words.get(name, ""), **numbers} for name, numbers in costs.items()]
