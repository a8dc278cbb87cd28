"""Commands that use a trained net."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onenet_bench.cli.options import (
    CheckpointFile,
    Device,
    Json,
    Threads,
    absolute,
    app,
    check_device,
    print_json,
    print_table,
    side,
)


@app.command("evaluate")
def evaluate_checkpoint(
    checkpoint: CheckpointFile,
    data: Annotated[str | None, typer.Option(help="As for train (what the net was trained on).")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train, cut as in training.")] = "test",
    resolution: Annotated[int | None, side("in pixels (as in training)")] = None,
    device: Device = "cpu",
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Score a trained net on a split of its data or of other data."""
    import torch
    from rich.markup import escape
    from rich.table import Table

    from onenet_bench import inference
    from onenet_bench.record import usable_cores

    check_device(device)
    torch.set_num_threads(threads or usable_cores())
    scored = inference.score(
        inference.open_checkpoint(checkpoint, device),
        None if data is None else absolute(data),
        split=split,
        resolution=resolution,
    )
    for note in scored.notes:
        print(f"onenet-bench: {note}", file=sys.stderr)
    if json_:
        print_json({"checkpoint": str(checkpoint), **scored.to_dict()})
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
        table.add_row(escape(name), *(_score(row[index]) for row in columns.values()))
    print_table(table)


@app.command()
def predict(
    checkpoint: CheckpointFile,
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, TIFF, NPY and NIfTI files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="The folder for masks/ and overlays/.")],
    tile: Annotated[bool, typer.Option("--tile", help="Keep the scale of images: overlapping tiles, blended.")] = False,
    white: Annotated[int | None, typer.Option(help="Value of 16-bit images that becomes 255 (as in training).")] = None,
    modality: Annotated[str | None, typer.Option(help="Of volumes: ct or mri (as the training's).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier predictions.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Segment images and volumes at their own size; exit code 1 where a file could not be used, the others done."""
    import torch
    from rich.markup import escape
    from rich.table import Table

    from onenet_bench import inference
    from onenet_bench.palette import hexadecimal, palette
    from onenet_bench.record import usable_cores

    check_device(device)
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
    colours = [hexadecimal(colour) for colour in palette(task.classes, task.background)]
    if json_:
        classes = [{"name": name, "colour": colour} for name, colour in zip(task.class_names, colours, strict=True)]
        print_json({"checkpoint": str(checkpoint), "classes": classes, "done": [one.to_dict() for one in done],
                     "failed": [one.to_dict() for one in failed]})  # fmt: skip
    elif done:
        pixels = [sum(of_class) for of_class in zip(*(one.pixels for one in done), strict=True)]
        table = Table(box=None, padding=(0, 2))
        for heading in ("index", "class", "colour", "pixels"):
            table.add_column(heading, justify="right" if heading in ("index", "pixels") else "left")
        for index, (name, colour) in enumerate(zip(task.class_names, colours, strict=True)):
            table.add_row(str(index), escape(name), colour, f"{pixels[index] / sum(pixels):.2%}")
        print()
        print_table(table)
    raise typer.Exit(1 if failed else 0)


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
