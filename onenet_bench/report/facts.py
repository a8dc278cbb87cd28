"""What a run's page says: everything but its images, as JSON-ready values."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from onenet_bench import __version__
from onenet_bench.budget import Budget
from onenet_bench.recipe import Recipe
from onenet_bench.record import COSTS, SCORES, Record, Status
from onenet_bench.report import details, figures, finals, tables
from onenet_bench.report.tables import MISSING, NUMBERS, Run, Scale, lower, number, plain, show, show_limit
from onenet_bench.task import Task

GALLERY = 6
"""Nets of the front whose predictions are shown without asking."""
LISTED = 200
"""Candidates listed per reason."""


def page_facts(run: Run) -> dict[str, Any]:
    """Everything on the page of ``run`` but its images, JSON-ready. ``data`` is what the page's script reads."""
    front = [int(trial) for trial in run.front["trial"]]
    knee = tables.knee_of(run.front, run.first_pair)
    growth = figures.hypervolume_facts(run.frame, run.objectives)
    columns = _columns(run)
    final = finals.final_facts(run)
    return {
        "title": str(run.head["name"]),
        "state": _state(run),
        "asked": _asked(run),
        "space": [
            {
                "title": title,
                "rows": [(name, plain(value)) for name, value in _table(run.head["space"].get(key)).items()],
            }
            for key, title in (("choices", "What a candidate could choose from"), ("net", "How a net is made of it"))
        ],
        "tiles": _tiles(run, front, growth),
        "leaders": _leaders(run, front, knee),
        "unranked": _unranked(run),
        "final": _final(final),
        "pair": [NUMBERS[o.name].title for o in run.first_pair],
        "candidates": {
            "groups": columns,
            "rows": _rows(run, columns, set(front), knee),
            "conventions": [
                {"name": name, "title": NUMBERS[name].title, "text": NUMBERS[name].convention}
                for group in columns
                for name in (column["name"] for column in group["columns"])
            ],
            "uncounted": sorted({op for record in run.records if record.costs for op in record.costs.uncounted}),
        },
        "reference": growth.reference() if growth else None,
        "reasons": _reasons(run),
        "fidelity": _fidelity(run),
        "gallery": {"trials": figures.spread(front, GALLERY, [knee] if knee is not None else []), "of": len(front)},
        "provenance": _provenance(run),
        "data": details.data(run, front, knee, growth, final),
    }


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _state(run: Run) -> dict[str, Any]:
    """Whether the run has ended, in words."""
    rejected = run.count(Status.REJECTED)
    trained = len(run.records) - rejected
    progress = f"{trained} of {run.trials} candidates went into training"
    progress += f", {rejected} more were rejected before it" if rejected else ""
    if open_ := len(run.under_way):
        progress += f"; {open_} {'was' if open_ == 1 else 'were'} under way"
    if run.ended is None:
        text = f"The run has not ended: it was cut off, or is still going. So far {progress}."
    elif run.ended == "interrupted":
        text = f"The run was interrupted by hand. Until then {progress}."
    else:
        text = f"The run has ended: {run.ended or 'no reason given'}."
    if resumed := len(run.begun) - 1:
        text += f" It was taken up again {'once' if resumed == 1 else f'{resumed} times'}."
    return {"text": text, "ended": run.ended not in (None, "interrupted")}


def _asked(run: Run) -> list[tuple[str, str]]:
    """What was asked, by name."""
    space = run.head["space"]
    named = ": ".join(str(space[key]) for key in ("name", "summary") if space.get(key))
    aims = [f"{lower(NUMBERS[o.name].title)} as {'high' if o.maximise else 'low'} as possible" for o in run.objectives]
    budgets = [Budget.parse(text) for text in run.head.get("budget") or ()]
    limits = [
        f"{lower(COSTS[budget.cost].title)} at most {show_limit(budget.cost, budget.limit)}" for budget in budgets
    ]
    return [
        ("Search space", named or "not named"),
        ("Data", describe_task(run.task)),
        ("Training", describe_recipe(run.recipe)),
        ("Objectives", "; ".join(aims)),
        ("Budget", "; ".join(limits) or "none"),
        (
            "Sampler",
            f"{run.head['sampler']}, seed {run.head['seed']}, {run.trials} candidate{'s' * (run.trials != 1)} to train",
        ),
        *([("Warm start", f"{len(known)} trainings of an earlier run")] if (known := run.head.get("earlier")) else []),
        *([("Latency", describe_latency(timed))] if (timed := run.head.get("latency")) else []),
    ]


def describe_latency(conditions: Mapping[str, Any]) -> str:
    """How nets were timed, in a line."""
    where = conditions["device"] if conditions["device"] != "cpu" else f"CPU, threads: {conditions['threads']}"
    return (
        f"{conditions['runtime']}, {conditions['form']} form, {where}, batch {conditions['batch']}, "
        f"{conditions['resolution']} × {conditions['resolution']} pixels, float32"
    )


def describe_task(task: Task) -> str:
    """The data in a line."""
    parts = f"{task.train} training, {task.validation} validation"
    parts += f" and {task.test} test images" if task.test else " images"
    names = ", ".join(task.class_names[:8]) + (", …" if task.classes > 8 else "")
    size = f"{task.in_channels} × {task.resolution} × {task.resolution}"
    return f"{task.data}: {parts} of {size} pixels, {task.classes} classes ({names}), seed {task.seed}"


def describe_recipe(recipe: Recipe) -> str:
    """The training in a line."""
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"
    augmentation = "no augmentation" if recipe.augmentation == "none" else recipe.augmentation
    return (
        f"{length}, batch {recipe.batch}, {recipe.optimiser}, learning rate {recipe.learning_rate:g} "
        f"({recipe.schedule}), weight decay {recipe.weight_decay:g}, background weight "
        f"{recipe.background_weight:g}, {augmentation}, {recipe.precision}, seed {recipe.seed}"
    )


def _tiles(run: Run, front: list[int], growth: figures.HypervolumeFacts | None) -> list[dict[str, str]]:
    """The headline numbers: name, value, what it means."""
    return [
        {"name": "trained", "value": str(run.count(Status.COMPLETE)), "note": "to the end of the recipe"},
        {"name": "rejected", "value": str(run.count(Status.REJECTED)), "note": "before training"},
        {"name": "stopped early", "value": str(run.count(Status.STOPPED)), "note": "on purpose, not scored"},
        {"name": "failed", "value": str(run.count(Status.FAILED)), "note": "with an error"},
        {"name": "on the front", "value": str(len(front)), "note": "beaten by no other net"},
        {
            "name": "hypervolume",
            "value": f"{growth.final:.3f}" if growth else tables.MISSING,
            "note": "of the objectives’ box" if growth else "needs two nets",
        },
        {
            "name": "time",
            "value": tables.duration(sum(record.seconds for record in run.records)),
            "note": "summed over candidates"
            + (", failed ones to their last epoch" if run.count(Status.FAILED) else ""),
        },
    ]


def _unranked(run: Run) -> str:
    """Which trained nets cannot be compared, in a sentence; empty where all can."""
    if not (number := len(run.unranked)):
        return ""
    missing = [NUMBERS[o.name].title for o in run.objectives if run.unranked[o.name].isna().any()]
    return (
        f"{number} of {len(run.complete)} trained nets {'is' if number == 1 else 'are'} not ranked, for "
        f"{' and '.join(missing)} could not be told, as where no image that it is a mean over holds its classes."
    )


def _leaders(run: Run, front: list[int], knee: int | None) -> list[dict[str, Any]]:
    """The nets of the front that one would name first: most accurate, knee, least of the first cost."""
    if not front:
        return []
    score, cost = run.first_pair
    rows = run.front.set_index("trial")
    losses = score.loss(rows[score.name])
    best = int(rows[losses == losses.min()][cost.name].idxmin())
    cheapest = rows[rows[cost.name] == rows[cost.name].min()]
    smallest = int(score.loss(cheapest[score.name]).idxmin())
    roles: dict[int, list[str]] = {}
    for trial, role in (
        (best, f"best {SCORES[score.name].title}"),
        (knee, "knee"),
        (smallest, f"least {lower(COSTS[cost.name].title)}"),
    ):
        if trial is not None:
            roles.setdefault(trial, []).append(role)
    names = [o.name for o in run.objectives]
    names += [name for name in ("parameters", "macs", "peak_inference_mib") if name not in names]
    top = run.record(best)
    leaders = []
    for trial, its_roles in roles.items():
        record = run.record(trial)
        leaders.append(
            {
                "trial": trial,
                "label": _label(record),
                "roles": " and ".join(its_roles),
                "numbers": [
                    {"title": NUMBERS[name].title, "text": show(name, number(record, name)),
                     "beside": _beside(name, number(record, name), number(top, name)) if trial != best else ""}
                    for name in names
                ],
            }
        )  # fmt: skip
    return leaders


def _final(facts: finals.FinalFacts | None) -> dict[str, Any] | None:
    """The nets that were trained anew."""
    if facts is None:
        return None
    return {
        "words": finals.final_words(facts),
        "score": SCORES[facts.score].title,
        "cost": COSTS[facts.costs[0]].title,
        "costs": [COSTS[name].title for name in facts.costs],
        "rows": finals.rows_of(facts),
        "split": facts.split,
    }


def _beside(name: str, value: float | None, reference: float | None) -> str:
    """``value`` compared with ``reference``: a difference for scores, a ratio for costs."""
    if value is None or reference is None or not reference:
        return ""
    if name in SCORES:
        return f"{value - reference:+.3f}".replace("-", "−")
    share = 100 * value / reference
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"


def _label(record: Record) -> str:
    return record.spec.label() if record.spec else "no net"


def _columns(run: Run) -> list[dict[str, Any]]:
    """The numeric columns of the table of candidates, in groups, each with one unit."""
    scores = tuple(dict.fromkeys([*(o.name for o in run.objectives if o.is_score), *run.known(SCORES)]))
    groups = {"Scores": scores} | tables.COST_GROUPS
    out = []
    for group, names in groups.items():
        chosen = [name for name in names if name in run.known(NUMBERS)]
        if chosen:
            out.append({"name": group, "columns": [_column(run, name, group) for name in chosen]})
    return out


def _column(run: Run, name: str, group: str) -> dict[str, Any]:
    """One column. Scores that are no objective are ``extra``: shown on demand."""
    scale = Scale.of(name, [float(value) for value in run.complete[name]])
    title = NUMBERS[name].title
    if group in tables.COST_GROUPS:
        title = title.removesuffix(", paper's convention")
    return {
        "name": name,
        "title": title,
        "unit": scale.unit,
        "convention": NUMBERS[name].convention,
        "extra": name in SCORES and name not in (o.name for o in run.objectives),
    }


def _rows(run: Run, groups: list[dict[str, Any]], front: set[int], knee: int | None) -> list[dict[str, Any]]:
    """The complete candidates, best first score first."""
    names = [column["name"] for group in groups for column in group["columns"]]
    scales = {name: Scale.of(name, [float(value) for value in run.complete[name]]) for name in names}
    score = run.first_pair[0].name
    ordered = run.complete.sort_values([score, "trial"], ascending=[not run.first_pair[0].maximise, True])
    rows = []
    for trial in ordered["trial"]:
        record = run.record(int(trial))
        rows.append(
            {
                "trial": record.trial,
                "label": _label(record),
                "front": record.trial in front,
                "knee": record.trial == knee,
                "numbers": [
                    {"value": number(record, name), "text": scales[name].show(number(record, name))} for name in names
                ],
            }
        )
    return rows


def _reasons(run: Run) -> list[dict[str, Any]]:
    """Why candidates were not trained to the end."""
    words = {Status.REJECTED: "Rejected", Status.STOPPED: "Stopped early", Status.FAILED: "Failed"}
    groups = []
    for group in tables.reason_groups(run.records):
        listed = [run.record(trial) for trial in group.trials[:LISTED]]
        groups.append(
            {
                "status": str(group.status),
                "word": words[group.status],
                "reason": group.reason,
                "count": len(group.trials),
                "left_out": len(group.trials) - len(listed),
                "candidates": [
                    {
                        "trial": record.trial,
                        "label": _label(record),
                        "reason": record.reason,
                        "choices": ", ".join(f"{name} {plain(value)}" for name, value in record.choices.items()),
                        "opens": details.opens(record),
                    }
                    for record in listed
                ],
            }
        )
    return groups


def _fidelity(run: Run) -> dict[str, Any] | None:
    """What the audits of early scores found, and what stopping early saved; None where the run did not ask."""
    if run.head.get("fidelity", "off") == "off":
        return None
    begun = len(run.records) - run.count(Status.REJECTED) + len(run.under_way)
    whole = run.recipe.epochs * begun if not run.recipe.steps else 0
    last = run.audits[-1] if run.audits else None
    said = f"After {len(last['trials'])} nets trained in full: {last['reason']}." if last else (
        "Too few nets were trained in full for an audit of their early scores, so nobody was stopped."
    )  # fmt: skip
    if last and last["first"] is not None and whole:
        said += (
            f" In all {run.epochs:,} epochs were trained, of {whole:,} that all of these candidates would have taken"
        )
        said += f"; {run.promoted} that had been stopped went on later." if run.promoted else "."
    return {
        "words": said,
        "needed": last["needed"] if last else None,
        "rows": [
            {
                **row,
                "score": SCORES[row["score"]].title,
                **{name: _at_least(row[name], row.get(f"{name}_bound")) for name in ("kendall", "like_cost")},
                "bands": " · ".join(MISSING if tau is None else f"{tau:.2f}" for tau in row["bands"]),
            }
            for row in (last["rungs"] if last else ())
        ],
    }


def _at_least(tau: float | None, bound: float | None) -> str:
    """A rank correlation, and its lower bound where there is one."""
    if tau is None:
        return MISSING
    return f"{tau:.2f}" if bound is None else f"{tau:.2f} (≥ {bound:.2f})"


def _provenance(run: Run) -> dict[str, Any]:
    head = run.head
    made = [_table(event.get("provenance")) for event in run.begun]
    machines = [_table(head.get("machine"))]
    for record in run.records:
        if record.machine.to_dict() not in machines:
            machines.append(record.machine.to_dict())
    return {
        "rows": [
            ("Begun", made[0].get("time") or "not recorded"),
            *(("Machine", _machine(machine)) for machine in machines if machine),
            *(("Versions", versions) for versions in dict.fromkeys(map(_versions, made))),
            *(("Commit", commit) for commit in dict.fromkeys(map(_commit, made))),
            ("Seed", f"{head['seed']} (sampler), {run.recipe.seed} (training), {run.task.seed} (data)"),
            ("Data", f"content {run.task.content}, task {run.task.digest()}"),
            ("Ledger", f"schema {head['schema']}, {run.path.name}/ledger.jsonl"),
            ("Page", f"onenet-bench {__version__}"),
        ],
        "commands": [_command(event) for event in run.begun],
        "remake": f"onenet-bench report {shlex.quote(str(run.path))}",
    }  # fmt: skip


def _versions(made: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in _table(made.get("versions")).items() if number) or (
        "not recorded"
    )


def _commit(made: Mapping[str, Any]) -> str:
    commit = made.get("commit")
    return f"{commit}{' with uncommitted changes' * bool(made.get('dirty'))}" if commit else (
        "not recorded (not a checkout)"
    )  # fmt: skip


def _command(event: Mapping[str, Any]) -> str:
    command = event.get("command") or "not recorded"
    return command if isinstance(command, str) else shlex.join(map(str, command))


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [machine.get("gpu"), machine.get("cpu")]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if machine.get("memory_gib"):
        parts.append(f"{machine['memory_gib']} GiB memory")
    return ", ".join(str(part) for part in [*parts, machine.get("system")] if part)
