"""Commands that search a space and show what was found."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onenet_bench.cli.options import (
    MOST_THREADS,
    REPORTS,
    RUNS,
    Batch,
    Ceilings,
    Compiled,
    Data,
    Device,
    Epochs,
    Json,
    LearningRate,
    Precision,
    Run,
    Seed,
    Space,
    Steps,
    app,
    check_device,
    command_line,
    file_name,
    fresh,
    go_on,
    only_with,
    open_task,
    print_json,
    print_table,
    read_recipe,
    side,
)
from onenet_bench.errors import LedgerError, OnenetBenchError

if TYPE_CHECKING:
    from onenet_bench.measure.latency import Conditions


SAID_AGAIN = ("engine", "workers", "threads", "device", "compiled", "trial_limit", "address", "cpus_per_trial",
              "gpus_per_trial")  # fmt: skip
"""Options that a search does not remember: a resumed one is told them anew."""


@app.command()
def sweep(
    context: typer.Context,
    space: Space = "depth_scale",
    data: Data = "synthetic",
    trials: Annotated[int | None, typer.Option(min=1, help="Candidates to train (20 where nothing is said).")] = None,
    sampler: Annotated[
        str, typer.Option(help="Who proposes candidates: frontier, random, grid, nsga2 or tpe.")
    ] = "frontier",
    objectives: Annotated[str | None, typer.Option(help="Scores and costs, e.g. miou,parameters.")] = None,
    budget: Ceilings = None,
    resolution: Annotated[int | None, side()] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    seed: Seed = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time (as many as cores).")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="Threads per trial (cores / workers).")
    ] = None,
    device: Device = "cpu",
    compiled: Compiled = False,
    latency: Annotated[str | None, typer.Option(help="What latency_ms is timed on: onnxruntime, or torch.")] = None,
    engine: Annotated[str, typer.Option(help="Who runs the trials: local (a process each), or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a running Ray: auto, HOST:PORT or ray://HOST:PORT.")] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="Ray's CPUs for each trial (its threads).")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="Ray's GPUs for each trial, e.g. 0.25.")] = None,
    trial_limit: Annotated[float | None, typer.Option(min=1, help="Seconds that a trial may take (no limit).")] = None,
    fidelity: Annotated[str, typer.Option(help="auto: stop weak trials early if that can be trusted; off.")] = "auto",
    stop_when_stalled: Annotated[
        int | None, typer.Option(min=0, help="End when so many trained candidates have not moved the front (0: never).")
    ] = None,
    final: Annotated[
        int | None,
        typer.Option(min=0, help="Train the front and the baselines anew so many times, and score on test (0: never)."),
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option(help="Begin with what this run has trained: same space, data and recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"The run's folder (a new one in {RUNS}).")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run ('latest' or its folder or name).")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Search a space: train candidates, keep every one in the ledger, write the report."""
    from onenet_bench import budget as budgets
    from onenet_bench import ledger, pareto
    from onenet_bench import space as spaces
    from onenet_bench.record import Status
    from onenet_bench.report import front_rows, front_table, write_report
    from onenet_bench.report.finals import final_facts, final_rows, final_table
    from onenet_bench.report.tables import read_run
    from onenet_bench.search import sweep as sweeps
    from onenet_bench.search.core import Search
    from onenet_bench.search.engines import Orders
    from onenet_bench.search.warm import earlier

    check_device(device)
    orders = Orders(
        engine=engine, workers=workers, threads=threads, device=device, compiled=compiled,
        limit_s=trial_limit, address=address, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial,
    )  # fmt: skip
    carry_out, memory_mib = orders.make(), orders.memory_mib()
    if resume is not None:
        only_with(context, "a resumed search", "resume", "trials", "stop_when_stalled", "final", "json_", *SAID_AGAIN)
        run = sweeps.find(resume, RUNS)
        core = sweeps.resume(
            run, carry_out, command=command_line(), trials=trials, window=stop_when_stalled, memory_mib=memory_mib,
            final=final,
        )  # fmt: skip
    else:
        reached = spaces.load(space)
        recipe = read_recipe(reached.recipe, epochs, steps, batch, learning_rate, precision, seed)
        task = open_task(data, reached, resolution, seed)
        search = Search(
            space=reached,
            task=task,
            recipe=recipe,
            objectives=reached.objectives
            if objectives is None
            else pareto.objectives([name.strip() for name in objectives.split(",")]),
            budget=tuple(map(budgets.Budget.parse, budget)) if budget else reached.budget,
            sampler=sampler,
            seed=seed,
            trials=20 if trials is None else trials,
            fidelity=fidelity,
            window=stop_when_stalled or 0,
            latency=_latency(latency, task.resolution, device),
        )
        if warm_start is not None:
            search = replace(search, earlier=earlier(sweeps.find(warm_start, RUNS), search))
        if out == Path():
            raise LedgerError("a run has a folder of its own, but --out is empty or the current one; name another")
        run = out or fresh(RUNS / f"{file_name(reached.name)}-{datetime.now():%Y%m%d-%H%M%S}")
        core = sweeps.start(search, run, carry_out, command=command_line(), memory_mib=memory_mib, final=final or 0)
    page, unwritten = None, ""
    try:
        page = write_report(run, REPORTS / f"{run.resolve().name}.html")
    except OnenetBenchError as error:  # what was found is told all the same
        elsewhere = shlex.join(["onenet-bench", "report", str(run), "--out", "FILE.html"])
        unwritten = f"{error}; write the report elsewhere: {elsewhere}"
    trained_anew = final_facts(read_run(run))
    anew = final_rows(trained_anew) if trained_anew else None
    if json_:
        print_json(
            {
                "run": str(run),
                "report": page and str(page),
                "ended": core.ended,
                "front": front_rows(run),
                "final": anew,
            }
        )
    else:
        print_table(front_table(run))
        if trained_anew:
            print_table(final_table(trained_anew))
        print(f"\nended:  {core.ended}\nrun:    {run}\nreport: {page or 'none'}")
    if core.ended == "interrupted":
        print(f"go on with: {go_on(context, run, *SAID_AGAIN)}", file=sys.stderr)
        raise typer.Exit(130)
    if unwritten:
        print(f"onenet-bench: {unwritten}", file=sys.stderr)
        raise typer.Exit(2)
    ends = {record.status for record in core.records}
    if Status.FAILED in ends and Status.COMPLETE not in ends:
        print("onenet-bench: every training failed; the report says why", file=sys.stderr)
        raise typer.Exit(1)
    if final != 0 and anew and all(row["failed"] and not row["validation"] for row in anew):
        print(
            f"onenet-bench: every final training failed; {run / ledger.FINAL / ledger.FILE} says why", file=sys.stderr
        )
        raise typer.Exit(1)
    if ends <= {Status.REJECTED}:
        print(f"onenet-bench: nothing was trained: {core.ended}", file=sys.stderr)
        raise typer.Exit(1)


def _latency(runtime: str | None, resolution: int, device: str) -> Conditions | None:
    """How candidates are timed, where the command line says it."""
    from onenet_bench.measure.latency import Conditions

    if runtime is None:
        return None
    return Conditions(runtime=runtime, resolution=resolution, device=device if runtime == "torch" else "cpu")


@app.command()
def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help=f"The HTML file ({REPORTS}/RUN.html).")] = None,
) -> None:
    """Write a run's HTML report."""
    from onenet_bench.report import write_report
    from onenet_bench.search.sweep import find

    folder = find(run, RUNS)
    print(write_report(folder, out or REPORTS / f"{folder.resolve().name}.html"))


@app.command()
def front(run: Run, json_: Json = False) -> None:
    """Print the nets of a run that no other beats."""
    from onenet_bench.report import front_rows, front_table
    from onenet_bench.search.sweep import find

    folder = find(run, RUNS)
    if json_:
        print_json(front_rows(folder))
    else:
        print_table(front_table(folder))


@app.command()
def spaces(json_: Json = False) -> None:
    """List the search spaces that come with the package."""
    from rich.markup import escape
    from rich.table import Table

    from onenet_bench import space

    found = [space.load(name) for name in space.names()]
    if json_:
        print_json([{**s.to_dict(), "size": s.size} for s in found])
        return
    table = Table(box=None, padding=(0, 2))
    for heading in ("space", "combinations", "objectives", "budget", "what varies"):
        table.add_column(heading, justify="right" if heading == "combinations" else "left")
    for s in found:
        table.add_row(escape(s.name), f"{s.size:,}", ", ".join(o.name for o in s.objectives),
                      ", ".join(map(str, s.budget)), escape(s.summary))  # fmt: skip
    print_table(table)


@app.command()
def screen(
    space: Space = "depth_scale",
    budget: Ceilings = None,
    resolution: Annotated[int | None, side("(the space's own)")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes to tell apart.")] = 8,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the input.")] = 3,
    most: Annotated[
        int | None, typer.Option(min=1, help="Sample spaces with more combinations than this (2M).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the sample.")] = 0,
    out: Annotated[Path | None, typer.Option(help=f"The HTML file ({REPORTS}/screen-NAME.html).")] = None,
    json_: Json = False,
) -> None:
    """Count every candidate of a space before anything is trained: what fits a budget, and where to begin."""
    from onenet_bench import screen as screening
    from onenet_bench import space as spaces
    from onenet_bench.budget import Budget
    from onenet_bench.report import survey, survey_words
    from onenet_bench.report.html_file import check_html
    from onenet_bench.report.screening import write_screening

    reached = spaces.load(space)
    limits = tuple(map(Budget.parse, budget)) if budget else reached.budget
    page = out or REPORTS / f"screen-{file_name(reached.name)}.html"
    check_html(page)
    found = screening.screen(
        reached, resolution or reached.task.get("resolution", 64), classes=classes, in_channels=channels,
        most=screening.MOST if most is None else most, seed=seed,
    )  # fmt: skip
    facts = survey.screening_facts(found, limits)
    write_screening(facts, page, command_line())
    if json_:
        print_json({**survey.to_dict(facts), "report": str(page)})
    else:
        print_table(survey_words.terminal_table(facts))
        print(f"\nreport: {page}")
