"""Commands that train."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onenet_bench.cli.options import (
    REPORTS,
    REPRODUCED,
    TRAINED,
    Batch,
    Compiled,
    Data,
    Device,
    Epochs,
    Json,
    LearningRate,
    Precision,
    Seed,
    Steps,
    Threads,
    app,
    check_device,
    command_line,
    fresh,
    go_on,
    only_with,
    opened,
    print_json,
    print_table,
    read_integers,
    read_pairs,
    read_recipe,
    side,
)
from onenet_bench.errors import OnenetBenchError, RecipeError, known
from onenet_bench.files import alone, whole

if TYPE_CHECKING:
    from onenet_bench.recipe import Recipe
    from onenet_bench.spec import NetSpec
    from onenet_bench.task import Task


SAID_AGAIN = ("device", "threads", "compiled", "log")
"""Options that a training does not remember: a resumed one is told them anew."""


@app.command()
def train(
    context: typer.Context,
    net: Annotated[str | None, typer.Argument(help="A net of the zoo by name, or the path of a spec.toml.")] = None,
    data: Data = "synthetic",
    resolution: Annotated[int, side()] = 64,
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
    threads: Threads = None,
    compiled: Compiled = False,
    weights: Annotated[Path | None, typer.Option(help="ImageNet weights for a ResNet encoder: resnet34-*.pth.")] = None,
    log: Annotated[list[str] | None, typer.Option(help="csv or tensorboard, in the folder; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help=f"The folder for the weights (a new one in {TRAINED}).")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted training in this folder.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time the parts of 20 (--steps) steps instead.")] = False,
    json_: Json = False,
) -> None:  # fmt: skip
    """Train one net; its classes and channels follow the data."""
    import torch

    from onenet_bench import costs, ledger, models, training, zoo
    from onenet_bench.evaluate import evaluate
    from onenet_bench.recipe import RECIPES, Recipe
    from onenet_bench.record import Status, usable_cores
    from onenet_bench.spec import NetSpec
    from onenet_bench.task import Task

    check_device(device)
    pretrained = started_from = None
    if resume is not None:
        only_with(context, "a resumed training", "resume", "json_", *SAID_AGAIN)
        asked = training.read_asked(resume)
        try:
            chosen, task = Recipe.from_dict(asked["recipe"]), Task.from_dict(asked["task"])
            spec, started_from = NetSpec.from_dict(asked["spec"]), asked.get("weights")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise training.unreadable(resume, error) from error
        folder = resume
    elif net is None:
        raise RecipeError("train needs a net to begin with, or --resume FOLDER to go on, but got neither")
    else:
        if recipe not in RECIPES:
            raise RecipeError(known("recipe", recipe, RECIPES))
        chosen = read_recipe(
            RECIPES[recipe], epochs, steps, batch, learning_rate, precision, seed, optimiser=optimiser,
            schedule=schedule, augmentation=augmentation, deep_supervision=deep_supervision, patience=patience,
            keep=keep,
        )  # fmt: skip
        task = opened(data, resolution=resolution, seed=seed)
        spec = replace(zoo.read(net), classes=task.classes, in_channels=task.in_channels)
        costs.count(spec, resolution, deep_supervision=chosen.deep_supervision > 0)  # raises where they do not fit
        if weights:
            pretrained = models.imagenet_weights(spec, models.read_imagenet_file(weights))
            started_from = models.imagenet_facts(weights)
        folder = out or fresh(TRAINED / f"{Path(net).stem}-{datetime.now():%Y%m%d-%H%M%S}")
    if profile:
        if compiled:
            raise RecipeError("a profile is of the parts of a step, but --compile makes them one; leave it out")
        _profile(spec, task, chosen, device, threads or usable_cores(), json_)
        return
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
    taken = RecipeError(
        f"a training belongs to one process at a time, but another one trains in {folder}; wait for it, or take another"
    )
    context.with_resource(alone(folder, taken, lenient=True))
    checkpoints = training.Checkpointing(folder=folder, asked={"weights": started_from})
    if resume is None and checkpoints.path.exists():
        raise RecipeError(f"{folder} already holds a training; go on with --resume {folder}, or take another folder")
    if ledger.has_begun(folder):
        raise RecipeError(f"{folder} holds the run of a search, whose weights stay; take another folder")
    torch.set_num_threads(threads or usable_cores())

    def heard(progress: Any) -> bool:
        print(f"epoch {progress['epoch']}  loss {progress['loss']:.4f}  miou {progress.get('miou', float('nan')):.4f}  "
              f"{progress['seconds']:.0f} s", file=sys.stderr)  # fmt: skip
        for write in logs:
            write(progress)
        return True

    try:
        record = evaluate(
            spec, task, chosen, device=device, run=folder, weights=pretrained, on_epoch=heard, checkpoints=checkpoints,
            compiled=compiled,
        )  # fmt: skip
    except KeyboardInterrupt:
        again = f"; go on with: {go_on(context, folder, *SAID_AGAIN)}" if checkpoints.path.exists() else ""
        print(f"interrupted{again}", file=sys.stderr)
        raise typer.Exit(130) from None
    if started_from:
        record = replace(record, provenance={**record.provenance, "weights": started_from})
    with whole(folder / "record.json") as draft:
        draft.write_text(json.dumps(record.to_dict(), indent=1), encoding="utf-8")
    if record.status is Status.FAILED:
        print(f"onenet-bench: training failed: {record.reason}", file=sys.stderr)
        raise typer.Exit(1)
    if json_:
        print_json({"folder": str(folder), "record": record.to_dict()})
        return
    for name, value in record.scores.items():
        print(f"{name:15} {value:.4f}")
    print(f"weights: {folder / record.artifacts['weights']}\nrecord:  {folder / 'record.json'}")


def _profile(spec: NetSpec, task: Task, recipe: Recipe, device: str, threads: int, json_: bool) -> None:
    """Print what the parts of a training step take."""
    import torch
    from rich.table import Table

    from onenet_bench import data as data_sets
    from onenet_bench import models
    from onenet_bench.training.profile import PARTS, profile

    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    splits = data_sets.load(task)
    batch = min(recipe.batch, len(splits.train))
    whole_batches = len(splits.train) // batch * batch  # a last batch of fewer images would be quicker
    try:
        found = profile(
            models.build(spec), splits.train.first(whole_batches), splits.validation.first(1), recipe,
            steps=recipe.steps or 20, classes=task.classes, background=task.background, ignore_index=task.ignore_index,
            device=device,
        ).to_dict()  # fmt: skip
    except RuntimeError as error:
        raise RecipeError(f"a training must run to be timed, but it did not: {error}") from error
    if json_:
        print_json({"device": device, "threads": threads, "recipe": recipe.to_dict(), **found})
        return
    table = Table(box=None, padding=(0, 2))
    for heading in ("part", "median ms", "share", "what is timed"):
        table.add_column(heading, justify="right" if heading in ("median ms", "share") else "left")
    for part, summary in PARTS.items():
        row = found["parts"][part]
        table.add_row(part, f"{row['median_ms']:.2f}", f"{row['share']:.1%}", summary)
    print_table(table)
    print(f"{found['steps']} steps of {found['batch']} images, {found['step_ms']:.1f} ms each, "
          f"{found['images_per_second']:.0f} images a second")  # fmt: skip


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="table1, or table3.")],
    root: Annotated[Path | None, typer.Option(help="The folder in which the archives were unpacked.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="A tree, e.g. voc=PATH; may be repeated.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Some of the table's, e.g. voc,msd-heart (all).")] = None,
    methods: Annotated[str | None, typer.Option(help="Some of the table's, e.g. unet_4,onenet_e_4 (all).")] = None,
    seeds: Annotated[str | None, typer.Option(help="Trainings of each cell (0,1,2; with --smoke 0,1).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images (300).")] = None,
    resolution: Annotated[int | None, side("in pixels (512)")] = None,
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
    from onenet_bench.report import reproduce as pages
    from onenet_bench.report.html_file import check_html

    check_device(device)
    if smoke and (root or data):
        raise RecipeError("a smoke run draws its own data, but got --root or --data; leave them out, or --smoke")
    kinds = reproduction.published(table).data
    name = f"{table}-smoke" if smoke else table
    page = html or REPORTS / f"reproduce-{name}.html"
    check_html(page)  # before days of training
    asked = reproduction.order(
        table,
        data=datasets.split(",") if datasets else None,
        methods=methods.split(",") if methods else None,
        seeds=read_integers("--seeds", seeds or ("0,1" if smoke else "0,1,2")),
        paths={**({kind: str(root) for kind in kinds} if root else {}), **read_pairs("--data", data)},
    )
    base = reproduction.SMOKE if smoke else reproduction.Settings()
    settings = replace(
        base,
        recipe=read_recipe(base.recipe, epochs, None, batch, None, None, seed=0),
        resolution=resolution or base.resolution,
        output_stride=output_stride,
        paper_classes=paper_classes,
        weights={method: Path(path) for method, path in read_pairs("--weights", weights).items()},
    )
    torch.set_num_threads(threads or (1 if smoke else usable_cores()))  # tiny nets are faster on one
    folder = out or REPRODUCED / name
    finished = reproduction.reproduce(
        asked, settings, folder, command=command_line(), device=device,
        heard=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    facts = pages.reproduction_facts(folder)
    pages.write_reproduction(facts, page)
    if json_:
        print_json({"folder": str(folder), "report": str(page), **pages.to_dict(facts)})
    else:
        print_table(pages.terminal_table(facts))
        print(f"\nrun:    {folder}\nreport: {page}")
    if not finished:
        print("interrupted; the same command goes on from here", file=sys.stderr)
    raise typer.Exit(130 if not finished else 0 if facts.complete else 1)
