"""The command line. Heavy floors are imported inside the commands, so that help comes at once."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onenet_bench.errors import OnenetBenchError, RecipeError, known

if TYPE_CHECKING:
    from onenet_bench.recipe import Recipe

RUNS = Path("results/runs")
TRAINED = Path("results/trained")
REPORTS = Path("reports")

app = typer.Typer(
    help="Find segmentation networks small enough for the edge, in the family of OneNet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Net = Annotated[str, typer.Argument(help="A net of the zoo by name, or the path of a spec.toml.")]
Run = Annotated[str, typer.Argument(help="A run's folder or name, or 'latest'.")]
Data = Annotated[str, typer.Option(help="'synthetic', or 'folder:PATH' with images/ and masks/ in it.")]
Seed = Annotated[int, typer.Option(help="Decides split, proposals, initial weights and order of images.")]
Device = Annotated[str, typer.Option(help="Where nets are trained: cpu, cuda, cuda:1, …")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps, instead of epochs.")]
Batch = Annotated[int | None, typer.Option(help="Images per optimiser step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Precision = Annotated[str | None, typer.Option(help="float32 or bf16.")]


def main() -> None:
    """The entry point: an error that a user can cause is one sentence and exit code 2."""
    try:
        app()
    except OnenetBenchError as error:
        print(f"onenet-bench: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def sweep(
    space: Annotated[str, typer.Option(help="A search space by name, or the path of its TOML file.")] = "depth_scale",
    data: Data = "synthetic",
    trials: Annotated[int | None, typer.Option(min=1, help="Candidates to train (20 where nothing is said).")] = None,
    sampler: Annotated[str, typer.Option(help="Who proposes candidates: random, grid, nsga2 or tpe.")] = "tpe",
    objectives: Annotated[str | None, typer.Option(help="Scores and costs, e.g. miou,parameters.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="A ceiling, e.g. 'macs <= 20M'; may be repeated.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Side of the square input in pixels.")] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    seed: Seed = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time (as many as cores).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads per trial (cores / workers).")] = None,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help=f"The run's folder (a new one in {RUNS}).")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run ('latest' or its folder or name).")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Search a space: train candidates, keep every one in the ledger, write the report."""
    from onenet_bench import budget as budgets
    from onenet_bench import data as data_sets
    from onenet_bench import pareto
    from onenet_bench import space as spaces
    from onenet_bench.report import front_rows, front_table, write_report
    from onenet_bench.search import sweep as sweeps
    from onenet_bench.search.core import Search
    from onenet_bench.search.local import plan_workers

    _check_device(device)
    workers, threads = plan_workers(workers, threads)
    if resume is not None:
        run = sweeps.find(resume, RUNS)
        core = sweeps.resume(run, trials=trials, workers=workers, threads=threads, device=device)
    else:
        reached = spaces.load(space)
        recipe = _recipe(reached.recipe, epochs, steps, batch, learning_rate, precision, seed)
        task = data_sets.open_task(
            _absolute(data), seed=seed, **{**reached.task, **({"resolution": resolution} if resolution else {})}
        )
        search = Search(
            space=reached,
            task=task,
            recipe=recipe,
            objectives=pareto.objectives(objectives.split(",")) if objectives else reached.objectives,
            budget=tuple(map(budgets.Budget.parse, budget)) if budget else reached.budget,
            sampler=sampler,
            seed=seed,
            trials=20 if trials is None else trials,
        )
        run = out or _fresh(RUNS / f"{reached.name}-{datetime.now():%Y%m%d-%H%M%S}")
        command = shlex.join(["onenet-bench", *sys.argv[1:]])
        core = sweeps.start(search, run, command=command, workers=workers, threads=threads, device=device)
    page = write_report(run, REPORTS / f"{run.resolve().name}.html")
    if json_:
        _print_json({"run": str(run), "report": str(page), "ended": core.ended, "front": front_rows(run)})
    else:
        _print(front_table(run))
        print(f"\nended:  {core.ended}\nrun:    {run}\nreport: {page}")
    if core.ended == "interrupted":
        print(f"go on with: onenet-bench sweep --resume {run}", file=sys.stderr)
        raise typer.Exit(130)


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
        _print_json(front_rows(folder))
    else:
        _print(front_table(folder))


@app.command()
def profile(
    net: Net,
    resolution: Annotated[int, typer.Option(help="Side of the square input in pixels.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Images per step, for the peak of training.")] = 16,
    layers: Annotated[bool, typer.Option("--layers", help="Every layer, not only every level.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Ask other counters too and name each difference.")] = False,
    json_: Json = False,
) -> None:
    """Count what a net costs, exactly and without building it; exit code 1 where --verify leaves one unexplained."""
    from rich.table import Table

    from onenet_bench import costs, zoo
    from onenet_bench.field import receptive_field
    from onenet_bench.plan import plan
    from onenet_bench.record import COSTS

    spec = zoo.read(net)
    lowered = plan(spec, (spec.in_channels, resolution, resolution))
    counted = costs.count_plan(lowered, batch=batch)
    field = receptive_field(spec)
    verification = None
    if verify:
        from onenet_bench.measure import counters

        verification = counters.verify(spec, resolution)
    agrees = verification is None or verification.agrees
    if json_:
        _print_json(
            {"net": net, "digest": spec.digest(), "resolution": resolution, "batch": batch,
             "costs": counted.to_dict(),
             "receptive_field": field._asdict(), "levels": costs.by_level(lowered), "spec": spec.to_dict(),
             **({"layers": [row._asdict() for row in lowered.rows]} if layers else {}),
             **({"verification": verification.to_dict()} if verification else {})}
        )  # fmt: skip
        raise typer.Exit(0 if agrees else 1)
    table = Table(title=f"{net}: {spec.label()}, one {spec.in_channels}x{resolution}x{resolution} image",
                  title_justify="left", box=None, padding=(0, 2))  # fmt: skip
    for heading in ("cost", "", "what is counted"):
        table.add_column(heading, justify="right" if not heading else "left")
    for name, column in COSTS.items():
        value = getattr(counted, name)
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
            table.add_row(name, f"{shown} {column.unit}".strip(), column.convention)
    seen = "height x width of the image that a pixel of the logits can depend on, far from the borders"
    table.add_row("receptive_field", f"{field.height} x {field.width} px", seen)
    _print(table)
    parts = Table(box=None, padding=(0, 2))
    headings = ("parameters", "macs", "activation_bytes")
    parts.add_column("layer" if layers else "level")
    for heading in headings:
        parts.add_column(heading, justify="right")
    if layers:
        for row in lowered.rows:
            size = f"{4 * row.elements:,}"
            parts.add_row(
                row.name if row.runs else f"{row.name} (never runs)", f"{row.parameters:,}", f"{row.macs:,}", size
            )
    else:
        for level, sums in costs.by_level(lowered).items():
            parts.add_row(level, *(f"{sums[heading]:,}" for heading in headings))
    _print(parts)
    if verification:
        _print(counters.verification_table(verification))
    raise typer.Exit(0 if agrees else 1)


@app.command()
def table2(
    html: Annotated[Path | None, typer.Option(help="Write the page to this file too.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    json_: Json = False,
) -> None:
    """The OneNet paper's Table 2 recounted: every published figure beside ours, and the true numbers."""
    from onenet_bench.report import table2 as published

    facts = published.table2_facts()
    if html is not None:
        published.write_table2(facts, html)
    if json_:
        _print_json(published.to_dict(facts))
    elif csv:
        print(published.csv_text(facts), end="")
    else:
        _print(published.terminal_table(facts))
        if html is not None:
            print(f"\npage: {html}")


@app.command()
def check(
    budgets: Annotated[Path, typer.Argument(help="The file that names nets and limits.")] = Path("budgets.toml"),
    update: Annotated[bool, typer.Option("--update", help="Write the lock anew and show the difference.")] = False,
    form: Annotated[str, typer.Option("--format", help="table, markdown, junit or json.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Hold nets to their locked costs and their ceilings; exit code 1 where one is broken."""
    from onenet_bench import checking

    shown = checking.renderer(form)
    facts = checking.check(budgets, update=update)
    if out is None:
        print(shown(facts))
    else:
        checking.write(out, shown(facts))
        print(checking.summary(facts))
    raise typer.Exit(0 if facts.passed else 1)


@app.command()
def spaces(json_: Json = False) -> None:
    """List the search spaces that come with the package."""
    from rich.table import Table

    from onenet_bench import space

    found = [space.load(name) for name in space.names()]
    if json_:
        _print_json([{**s.to_dict(), "size": s.size} for s in found])
        return
    table = Table(box=None, padding=(0, 2))
    for heading in ("space", "combinations", "objectives", "budget", "what varies"):
        table.add_column(heading, justify="right" if heading == "combinations" else "left")
    for s in found:
        table.add_row(s.name, f"{s.size:,}", ", ".join(o.name for o in s.objectives),
                      ", ".join(map(str, s.budget)), s.summary)  # fmt: skip
    _print(table)


@app.command()
def train(
    net: Net,
    data: Data = "synthetic",
    resolution: Annotated[int, typer.Option(help="Side of the square input in pixels.")] = 64,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all cores).")] = None,
    weights: Annotated[Path | None, typer.Option(help="ImageNet weights for a ResNet encoder: resnet34-*.pth.")] = None,
    out: Annotated[Path | None, typer.Option(help=f"The folder for the weights (a new one in {TRAINED}).")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Train one net; its classes and channels follow the data."""
    import torch

    from onenet_bench import data as data_sets
    from onenet_bench import models, zoo
    from onenet_bench.evaluate import evaluate
    from onenet_bench.plan import check_resolution
    from onenet_bench.recipe import Recipe
    from onenet_bench.record import Status, usable_cores

    _check_device(device)
    recipe = _recipe(Recipe(), epochs, steps, batch, learning_rate, precision, seed)
    task = data_sets.open_task(_absolute(data), resolution=resolution, seed=seed)
    spec = replace(zoo.read(net), classes=task.classes, in_channels=task.in_channels)
    check_resolution(spec, resolution, resolution)
    pretrained = models.imagenet_weights(spec, models.read_imagenet_file(weights)) if weights else None
    folder = out or _fresh(TRAINED / f"{Path(net).stem}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OnenetBenchError(
            f"the folder for weights must be writable, but {folder} is not: {error.strerror}"
        ) from error
    torch.set_num_threads(threads or usable_cores())

    def heard(progress: Any) -> bool:
        print(f"epoch {progress['epoch']}  loss {progress['loss']:.4f}  miou {progress.get('miou', float('nan')):.4f}  "
              f"{progress['seconds']:.0f} s", file=sys.stderr)  # fmt: skip
        return True

    record = evaluate(spec, task, recipe, device=device, run=folder, weights=pretrained, on_epoch=heard)
    if weights:
        with weights.open("rb") as file:
            started_from = {"file": weights.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        record = replace(record, provenance={**record.provenance, "weights": started_from})
    (folder / "record.json").write_text(json.dumps(record.to_dict(), indent=1), encoding="utf-8")
    if record.status is Status.FAILED:
        print(f"onenet-bench: training failed: {record.reason}", file=sys.stderr)
        raise typer.Exit(1)
    if json_:
        _print_json({"folder": str(folder), "record": record.to_dict()})
        return
    for name, value in record.scores.items():
        print(f"{name:15} {value:.4f}")
    print(f"weights: {folder / record.artifacts['weights']}\nrecord:  {folder / 'record.json'}")


def _recipe(
    base: Recipe, epochs: int | None, steps: int | None, batch: int | None, learning_rate: float | None,
    precision: str | None, seed: int,
) -> Recipe:  # fmt: skip
    """``base`` with what the command line says."""
    if epochs is not None and steps is not None:
        raise RecipeError(f"a training is as long as its epochs or its steps, but got both: {epochs} and {steps}")
    said: dict[str, Any] = {"epochs": epochs, "steps": 0 if epochs is not None else steps, "batch": batch,
            "learning_rate": learning_rate, "precision": precision}  # fmt: skip
    return replace(base, seed=seed, **{name: value for name, value in said.items() if value is not None})


def _check_device(device: str) -> None:
    """Raise RecipeError unless nets can be trained on ``device``. Loads torch only where it is not the CPU."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise RecipeError(known("device", device, ["cpu", "cuda", "cuda:N"]))
    if device != "cpu":
        import torch

        if (torch.device(device).index or 0) >= torch.cuda.device_count():
            raise RecipeError(
                f"{device} must be there, but torch finds {torch.cuda.device_count()} GPUs; use --device cpu"
            )


def _absolute(data: str) -> str:
    """A data name whose path does not depend on where the command was typed."""
    kind, colon, where = data.partition(":")
    return f"{kind}:{Path(where).expanduser().resolve()}" if colon and where else data


def _fresh(folder: Path) -> Path:
    """``folder``, or the first of folder-2, folder-3, … that does not exist."""
    number, free = 2, folder
    while free.exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
