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
REPRODUCED = Path("results/reproduce")
REPORTS = Path("reports")

app = typer.Typer(
    help="Find segmentation networks small enough for the edge, in the family of OneNet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data_app = typer.Typer(
    help="Check and convert published data sets: voc, pets-full, pets-small, msd-heart, msd-brain, msd-lung.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Net = Annotated[str, typer.Argument(help="A net of the zoo by name, or the path of a spec.toml.")]
Run = Annotated[str, typer.Argument(help="A run's folder or name, or 'latest'.")]
Data = Annotated[
    str, typer.Option(help="'synthetic', 'folder:PATH' with images/ and masks/ in it, or a published set, 'voc:PATH'.")
]
Seed = Annotated[int, typer.Option(help="Decides split, proposals, initial weights and order of images.")]
Device = Annotated[str, typer.Option(help="Where nets run: cpu, cuda, cuda:1, …")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps, instead of epochs.")]
Batch = Annotated[int | None, typer.Option(help="Images per optimiser step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Precision = Annotated[str | None, typer.Option(help="float32 or bf16.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (all cores).")]
CheckpointFile = Annotated[Path, typer.Argument(help="A net's weights, as train and sweep leave them.")]


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
    sampler: Annotated[
        str, typer.Option(help="Who proposes candidates: frontier, random, grid, nsga2 or tpe.")
    ] = "frontier",
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
def screen(
    space: Annotated[str, typer.Option(help="A search space by name, or the path of its TOML file.")] = "depth_scale",
    budget: Annotated[list[str] | None, typer.Option(help="A ceiling, e.g. 'macs <= 20M'; may be repeated.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Side of the square input (the space's own).")] = None,
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
    from onenet_bench.report import survey
    from onenet_bench.report.screening import write_screening

    reached = spaces.load(space)
    limits = tuple(map(Budget.parse, budget)) if budget else reached.budget
    found = screening.screen(
        reached, resolution or reached.task.get("resolution", 64), classes=classes, in_channels=channels,
        most=screening.MOST if most is None else most, seed=seed,
    )  # fmt: skip
    facts = survey.screening_facts(found, limits)
    command = shlex.join(["onenet-bench", *sys.argv[1:]])
    name = re.sub(r"[^\w.-]+", "-", reached.name)
    page = write_screening(facts, out or REPORTS / f"screen-{name}.html", command)
    if json_:
        _print_json({**survey.to_dict(facts), "report": str(page)})
    else:
        _print(survey.terminal_table(facts))
        print(f"\nreport: {page}")


@app.command()
def train(
    context: typer.Context,
    net: Annotated[str | None, typer.Argument(help="A net of the zoo by name, or the path of a spec.toml.")] = None,
    data: Data = "synthetic",
    resolution: Annotated[int, typer.Option(help="Side of the square input in pixels.")] = 64,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    precision: Precision = None,
    recipe: Annotated[str, typer.Option(help="What options change: default, or paper.")] = "default",
    optimiser: Annotated[str | None, typer.Option(help="adam or adamw.")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine, onecycle or paper.")] = None,
    augmentation: Annotated[str | None, typer.Option(help="none, or e.g. flips+rotations+scale+intensity.")] = None,
    deep_supervision: Annotated[float | None, typer.Option(help="Weight of the decoder's other heads' loss.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better miou that end it; 0: never.")] = None,
    keep: Annotated[str | None, typer.Option(help="Whose weights: of the last epoch, or of the best.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all cores).")] = None,
    weights: Annotated[Path | None, typer.Option(help="ImageNet weights for a ResNet encoder: resnet34-*.pth.")] = None,
    log: Annotated[list[str] | None, typer.Option(help="csv or tensorboard, in the folder; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help=f"The folder for the weights (a new one in {TRAINED}).")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted training in this folder.")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Train one net; its classes and channels follow the data."""
    import torch

    from onenet_bench import costs, models, training, zoo
    from onenet_bench import data as data_sets
    from onenet_bench.evaluate import evaluate
    from onenet_bench.recipe import RECIPES, Recipe
    from onenet_bench.record import Status, usable_cores
    from onenet_bench.spec import NetSpec
    from onenet_bench.task import Task

    _check_device(device)
    pretrained = started_from = None
    if resume is not None:
        said = {name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
        if other := sorted(said - {"resume", "device", "threads", "log", "json_"}):
            raise RecipeError(
                f"a resumed training stays what it was, but got {other[0].replace('_', '-')!r} too; leave it out"
            )
        asked = training.read_asked(resume)
        chosen, task = Recipe.from_dict(asked["recipe"]), Task.from_dict(asked["task"])
        spec, started_from = NetSpec.from_dict(asked["spec"]), asked.get("weights")
        folder = resume
    elif net is None:
        raise RecipeError("train needs a net to begin with, or --resume FOLDER to go on, but got neither")
    else:
        if recipe not in RECIPES:
            raise RecipeError(known("recipe", recipe, RECIPES))
        chosen = _recipe(
            RECIPES[recipe], epochs, steps, batch, learning_rate, precision, seed, optimiser=optimiser,
            schedule=schedule, augmentation=augmentation, deep_supervision=deep_supervision, patience=patience,
            keep=keep,
        )  # fmt: skip
        task = data_sets.open_task(_absolute(data), resolution=resolution, seed=seed)
        spec = replace(zoo.read(net), classes=task.classes, in_channels=task.in_channels)
        costs.count(spec, resolution, deep_supervision=chosen.deep_supervision > 0)  # raises where they do not fit
        if weights:
            pretrained = models.imagenet_weights(spec, models.read_imagenet_file(weights))
            with weights.open("rb") as file:
                started_from = {"file": weights.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        folder = out or _fresh(TRAINED / f"{Path(net).stem}-{datetime.now():%Y%m%d-%H%M%S}")
    checkpoints = training.Checkpointing(folder=folder, asked={"weights": started_from})
    if resume is None and checkpoints.path.exists():
        raise RecipeError(f"{folder} already holds a training; go on with --resume {folder}, or take another folder")
    for kind in log or ():
        if kind not in training.LOGS:
            raise RecipeError(known("log", kind, training.LOGS))
    logs = [context.with_resource(training.LOGS[kind](folder)) for kind in log or ()]
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
        for write in logs:
            write(progress)
        return True

    record = evaluate(
        spec, task, chosen, device=device, run=folder, weights=pretrained, on_epoch=heard, checkpoints=checkpoints
    )
    if started_from:
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


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="table1, or table3.")],
    root: Annotated[Path | None, typer.Option(help="The folder in which the archives were unpacked.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="A tree, e.g. voc=PATH; may be repeated.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Some of the table's, e.g. voc,msd-heart (all).")] = None,
    methods: Annotated[str | None, typer.Option(help="Some of the table's, e.g. unet_4,onenet_e_4 (all).")] = None,
    seeds: Annotated[str | None, typer.Option(help="Trainings of each cell (0,1,2; with --smoke 0,1).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images (300).")] = None,
    resolution: Annotated[int | None, typer.Option(help="Side of the square input in pixels (512).")] = None,
    output_stride: Annotated[int, typer.Option(help="2: masks of half the input's side; 1: of the same.")] = 2,
    batch: Annotated[int | None, typer.Option(help="Images per optimiser step (32).")] = None,
    paper_classes: Annotated[bool, typer.Option("--paper-classes", help="The paper's outputs: 4 for Heart.")] = False,
    weights: Annotated[list[str] | None, typer.Option(help="ImageNet weights, e.g. resnet34_unet=FILE.pth.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Try all of it on tiny drawn trees, in minutes.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help=f"The folder of its ledger ({REPRODUCED}/TABLE).")] = None,
    html: Annotated[Path | None, typer.Option(help=f"The page ({REPORTS}/reproduce-TABLE.html).")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Train the paper's table anew and set ours beside it; goes on where it was left; exit code 1 where cells lack."""
    import torch

    from onenet_bench import reproduce as reproduction
    from onenet_bench.record import usable_cores
    from onenet_bench.report import reproduce as published

    _check_device(device)
    if smoke and (root or data):
        raise RecipeError("a smoke run draws its own data, but got --root or --data; leave them out, or --smoke")
    kinds = reproduction.published(table).data
    asked = reproduction.order(
        table,
        data=datasets.split(",") if datasets else None,
        methods=methods.split(",") if methods else None,
        seeds=_integers("--seeds", seeds or ("0,1" if smoke else "0,1,2")),
        paths={**({kind: str(root) for kind in kinds} if root else {}), **_pairs("--data", data)},
    )
    base = reproduction.SMOKE if smoke else reproduction.Settings()
    settings = replace(
        base,
        recipe=_recipe(base.recipe, epochs, None, batch, None, None, seed=0),
        resolution=resolution or base.resolution,
        output_stride=output_stride,
        paper_classes=paper_classes,
        weights={method: Path(path) for method, path in _pairs("--weights", weights).items()},
    )
    torch.set_num_threads(threads or (1 if smoke else usable_cores()))  # tiny nets are faster on one
    name = f"{table}-smoke" if smoke else table
    folder = out or REPRODUCED / name
    finished = reproduction.reproduce(
        asked, settings, folder, command=shlex.join(["onenet-bench", *sys.argv[1:]]), device=device,
        heard=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    facts = published.reproduction_facts(folder)
    page = published.write_reproduction(facts, html or REPORTS / f"reproduce-{name}.html")
    if json_:
        _print_json({"folder": str(folder), "report": str(page), **published.to_dict(facts)})
    else:
        _print(published.terminal_table(facts))
        print(f"\nrun:    {folder}\nreport: {page}")
    if not finished:
        print("interrupted; the same command goes on from here", file=sys.stderr)
    raise typer.Exit(130 if not finished else 0 if facts.complete else 1)


def _pairs(option: str, words: list[str] | None) -> dict[str, str]:
    """``NAME=PATH`` words as a mapping."""
    pairs = {}
    for word in words or ():
        name, equals, path = word.partition("=")
        if not (name and equals and path) or name in pairs:
            raise RecipeError(f"{option} reads NAME=PATH, each name once, but got {word!r}")
        pairs[name] = path
    return pairs


def _integers(option: str, text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise RecipeError(f"{option} reads 0,1,2, but got {text!r}")
    return [int(word) for word in text.split(",")]


@app.command("evaluate")
def evaluate_checkpoint(
    checkpoint: CheckpointFile,
    data: Annotated[str | None, typer.Option(help="As for train (what the net was trained on).")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train, cut as in training.")] = "test",
    resolution: Annotated[int | None, typer.Option(help="Side of the square input in pixels (as in training).")] = None,
    device: Device = "cpu",
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Score a trained net on a split of its data or of other data."""
    import torch
    from rich.table import Table

    from onenet_bench import inference
    from onenet_bench.record import usable_cores

    _check_device(device)
    torch.set_num_threads(threads or usable_cores())
    scored = inference.score(
        inference.open_checkpoint(checkpoint, device),
        None if data is None else _absolute(data),
        split=split,
        resolution=resolution,
    )
    for note in scored.notes:
        print(f"onenet-bench: {note}", file=sys.stderr)
    if json_:
        _print_json({"checkpoint": str(checkpoint), **scored.to_dict()})
        return
    print(f"{scored.images} images, {split} split of {scored.task.data}, {scored.task.resolution} pixels\n")
    for name, value in scored.scores.items():
        print(f"{name:15} {_score(value)}")
    print()
    table = Table(box=None, padding=(0, 2))
    table.add_column("class")
    columns = {name: row for name, row in scored.per_class.items() if any(value is not None for value in row)}
    for heading in columns:
        table.add_column(heading, justify="right")
    for index, name in enumerate(scored.task.class_names):
        table.add_row(name, *(_score(row[index]) for row in columns.values()))
    _print(table)


@app.command()
def predict(
    checkpoint: CheckpointFile,
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, TIFF, NPY and NIfTI files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="The folder for masks/ and overlays/.")],
    tile: Annotated[bool, typer.Option("--tile", help="Keep the scale of images: overlapping tiles, blended.")] = False,
    white: Annotated[int | None, typer.Option(help="Of 16-bit images: the largest value in the training's.")] = None,
    modality: Annotated[str | None, typer.Option(help="Of volumes: ct or mri (as the training's).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier predictions.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Segment images and volumes at their own size; exit code 1 where a file could not be used, the others done."""
    import torch
    from rich.table import Table

    from onenet_bench import inference
    from onenet_bench.palette import palette
    from onenet_bench.record import usable_cores

    _check_device(device)
    torch.set_num_threads(threads or usable_cores())
    reading = inference.Reading(tile=tile, white=white, modality=modality)
    ready = inference.open_checkpoint(checkpoint, device)
    done: list[inference.Prediction] = []
    failed: list[inference.Failure] = []
    for outcome in inference.predict(ready, inference.jobs(images, out, overwrite=overwrite), reading):
        if isinstance(outcome, inference.Failure):
            failed.append(outcome)
            print(f"onenet-bench: {outcome.reason}", file=sys.stderr)
        else:
            done.append(outcome)
            if not json_:
                print(f"{outcome.job.source} -> {outcome.job.mask}")
    if coarse := sum(one.coarse for one in done):
        print(
            f"onenet-bench: {coarse} of {len(done)} images are more than {inference.COARSE} times as large as the "
            f"net's {ready.task.resolution} pixels and were shrunk, as in training; --tile keeps their scale",
            file=sys.stderr,
        )
    task = ready.task
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette(task.classes, task.background)]
    if json_:
        classes = [{"name": name, "colour": colour} for name, colour in zip(task.class_names, colours, strict=True)]
        _print_json({"checkpoint": str(checkpoint), "classes": classes, "done": [one.to_dict() for one in done],
                     "failed": [one.to_dict() for one in failed]})  # fmt: skip
    elif done:
        pixels = [sum(of_class) for of_class in zip(*(one.pixels for one in done), strict=True)]
        table = Table(box=None, padding=(0, 2))
        for heading in ("index", "class", "colour", "pixels"):
            table.add_column(heading, justify="right" if heading in ("index", "pixels") else "left")
        for index, (name, colour) in enumerate(zip(task.class_names, colours, strict=True)):
            table.add_row(str(index), name, colour, f"{pixels[index] / sum(pixels):.2%}")
        print()
        _print(table)
    raise typer.Exit(1 if failed else 0)


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


@data_app.command("verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="voc, pets-full, pets-small, msd-heart, msd-brain or msd-lung.")],
    path: Annotated[Path, typer.Argument(help="The tree's own folder, or the one that its archive unpacks in.")],
    json_: Json = False,
) -> None:
    """Hold a tree against what was published; exit code 1 where something is wrong, with what to fetch."""
    from onenet_bench.data.verify import verify

    _tell_progress()
    found = verify(name, str(path))
    if json_:
        _print_json(found.to_dict())
    else:
        for line in found.agrees:
            print(f"ok     {line}")
        for line in found.problems[:20]:
            print(f"wrong  {line}")
        if len(found.problems) > 20:
            print(f"wrong  and {len(found.problems) - 20} more; --json has them all")
        for line in ("", *found.advice) if found.advice else ():
            print(line)
    raise typer.Exit(0 if found.passed else 1)


@data_app.command("prepare")
def data_prepare(
    data: Annotated[str, typer.Argument(help="A data set by name and path, e.g. msd-heart:PATH.")],
    resolution: Annotated[int, typer.Option(help="Side of the square input in pixels.")] = 64,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Convert a data set once, as training at this resolution and seed would; goes on where it was interrupted."""
    from onenet_bench import data as data_sets

    _tell_progress()
    try:
        task = data_sets.open_task(_absolute(data), resolution=resolution, seed=seed)
        splits = data_sets.load(task)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    if json_:
        _print_json({"task": task.to_dict(), "cache": str(data_sets.cache_dir())})
        return
    for split in ("train", "validation", "test"):
        samples = getattr(splits, split)
        size = (samples.images.nbytes + samples.masks.nbytes) / 2**20
        print(f"{split:10}  {len(samples):>7,} images  {size:>10,.1f} MiB")
    print(f"classes:    {task.classes}\nchannels:   {task.in_channels}\ncache:      {data_sets.cache_dir()}")


def _tell_progress() -> None:
    """What the data rooms log goes to standard error."""
    import logging

    logger = logging.getLogger("onenet_bench.data")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())


def _recipe(
    base: Recipe, epochs: int | None, steps: int | None, batch: int | None, learning_rate: float | None,
    precision: str | None, seed: int, **more: Any,
) -> Recipe:  # fmt: skip
    """``base`` with what the command line says; ``more`` are other fields, None where it says nothing."""
    if epochs is not None and steps is not None:
        raise RecipeError(f"a training is as long as its epochs or its steps, but got both: {epochs} and {steps}")
    said: dict[str, Any] = {"epochs": epochs, "steps": 0 if epochs is not None else steps, "batch": batch,
            "learning_rate": learning_rate, "precision": precision, **more}  # fmt: skip
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
