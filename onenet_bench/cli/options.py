"""What the commands share: options, how they are read, and how a command prints."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onenet_bench import __version__
from onenet_bench.errors import RecipeError, known
from onenet_bench.task import MOST_SIDE

if TYPE_CHECKING:
    from onenet_bench.recipe import Recipe
    from onenet_bench.space import SearchSpace
    from onenet_bench.task import Task

RUNS = Path("results/runs")
TRAINED = Path("results/trained")
REPRODUCED = Path("results/reproduce")
REPORTS = Path("reports")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"onenet-bench {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find segmentation networks small enough for the edge, in the family of OneNet."""


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Net = Annotated[str, typer.Argument(help="A net of the zoo by name, or the path of a spec.toml.")]
Run = Annotated[str, typer.Argument(help="A run's folder or name, or 'latest'.")]
Space = Annotated[str, typer.Option(help="A search space by name, or the path of its TOML file.")]
Ceilings = Annotated[list[str] | None, typer.Option(help="A ceiling, e.g. 'macs <= 20M'; may be repeated.")]
Data = Annotated[
    str, typer.Option(help="'synthetic', 'folder:PATH' with images/ and masks/ in it, or a published set, 'voc:PATH'.")
]
MOST_SEED = 2**32 - 1
"""Of torch's and numpy's generators alike."""
Seed = Annotated[
    int, typer.Option(min=0, max=MOST_SEED, help="Decides split, proposals, initial weights and order of images.")
]
Device = Annotated[str, typer.Option(help="Where nets run: cpu, cuda, cuda:1, …")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of epochs.")]
Batch = Annotated[int | None, typer.Option(help="Images per optimiser step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Precision = Annotated[str | None, typer.Option(help="float32 or bf16.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Train through torch.compile (off on every device).")]
MOST_THREADS = 1024
"""Of one process; some thousands more end it without a word."""
Threads = Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads (all cores).")]
CheckpointFile = Annotated[Path, typer.Argument(help="A net's weights, as train and sweep leave them.")]


def side(said: str = "in pixels") -> Any:
    """The option for an image's side, and what is ``said`` of it."""
    return typer.Option(min=1, max=MOST_SIDE, help=f"Side of the square input {said}.")


def command_line() -> str:
    """This command as it was typed."""
    return shlex.join(["onenet-bench", *sys.argv[1:]])


def read_pairs(option: str, words: list[str] | None) -> dict[str, str]:
    """``NAME=PATH`` words as a mapping."""
    pairs = {}
    for word in words or ():
        name, equals, path = word.partition("=")
        if not (name and equals and path) or name in pairs:
            raise RecipeError(f"{option} reads NAME=PATH, each name once, but got {word!r}")
        pairs[name] = path
    return pairs


def read_integers(option: str, text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise RecipeError(f"{option} reads 0,1,2, but got {text!r}")
    numbers = [int(word) for word in text.split(",")]
    if max(numbers) > MOST_SEED:
        raise RecipeError(f"{option} reads numbers up to {MOST_SEED}, but got {max(numbers)}")
    return numbers


def read_recipe(
    base: Recipe, epochs: int | None, steps: int | None, batch: int | None, learning_rate: float | None,
    precision: str | None, seed: int, **more: Any,
) -> Recipe:  # fmt: skip
    """``base`` with what the command line says; ``more`` are other fields, None where it says nothing."""
    if epochs is not None and steps is not None:
        raise RecipeError(f"a training is as long as its epochs or its steps, but got both: {epochs} and {steps}")
    said: dict[str, Any] = {"epochs": epochs, "steps": 0 if epochs is not None else steps, "batch": batch,
            "learning_rate": learning_rate, "precision": precision, **more}  # fmt: skip
    return replace(base, seed=seed, **{name: value for name, value in said.items() if value is not None})


def only_with(context: typer.Context, what: str, *options: str) -> None:
    """Raise RecipeError where the command line says another option than these: ``what`` has its own."""
    said = {name for name in context.params if _is_said(context, name)}
    if other := sorted(said - set(options)):
        raise RecipeError(f"{what} stays what it was, but got {other[0].replace('_', '-')!r} too; leave it out")


def go_on(context: typer.Context, run: Path, *options: str) -> str:
    """The command that goes on with ``run``, with those of ``options`` that the command line says."""
    words = ["onenet-bench", str(context.info_name), "--resume", str(run)]
    for parameter in context.command.params:
        if parameter.name in options and _is_said(context, parameter.name):
            value = context.params[parameter.name]
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[0], *([] if one is True else [str(one)])]
    return shlex.join(words)


def _is_said(context: typer.Context, name: str) -> bool:
    return str(context.get_parameter_source(name)).endswith("COMMANDLINE")


def check_device(device: str) -> None:
    """Raise RecipeError unless nets can be trained on ``device``. Loads torch only where it is not the CPU."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise RecipeError(known("device", device, ["cpu", "cuda", "cuda:N"]))
    if device != "cpu":
        import torch

        if (torch.device(device).index or 0) >= torch.cuda.device_count():
            raise RecipeError(
                f"{device} must be there, but torch finds {torch.cuda.device_count()} GPUs; use --device cpu"
            )


def opened(data: str, **wanted: Any) -> Task:
    """``data.open_task``; what is odd about the data is said on standard error."""
    from onenet_bench import data as data_sets

    task = data_sets.open_task(absolute(data), **wanted)
    for note in data_sets.notes(task):
        print(f"onenet-bench: {note}", file=sys.stderr)
    return task


def open_task(data: str, space: SearchSpace, resolution: int | None, seed: int = 0) -> Task:
    """The task of a search of ``space``. How many images a space asks for holds for generated ones."""
    wanted = dict(space.task) if data.partition(":")[0] == "synthetic" else {}
    side = resolution or space.task.get("resolution")
    return opened(data, seed=seed, **{**wanted, **({"resolution": side} if side else {})})


def absolute(data: str) -> str:
    """A data name whose path does not depend on where the command was typed."""
    from onenet_bench.data.paths import resolved

    kind, _, where = data.partition(":")
    found = where and kind != "synthetic"  # whose words are knobs
    return f"{kind}:{resolved(where)}" if found else data


def file_name(text: str) -> str:
    """``text`` as the name of a file or a folder."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".") or "unnamed"


def fresh(folder: Path) -> Path:
    """``folder``, or the first of folder-2, folder-3, … that does not exist."""
    number, free = 2, folder
    while free.exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


def print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    """``value`` with null for what is no number, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
