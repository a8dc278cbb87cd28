"""The command that trains all of a space, for searches to be replayed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onenet_bench.cli.options import (
    Batch,
    Data,
    Epochs,
    Json,
    LearningRate,
    Space,
    app,
    command_line,
    file_name,
    open_task,
    print_json,
    read_integers,
    read_recipe,
    side,
)

TABLES = Path("results/tabular")


@app.command()
def tabulate(
    space: Space = "small",
    data: Data = "synthetic",
    seeds: Annotated[str, typer.Option(help="Train every net with each of these seeds.")] = "0,1",
    resolution: Annotated[int | None, side("(the space's own)")] = None,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    workers: Annotated[int, typer.Option(min=1, help="Nets at a time, a thread each.")] = 1,
    out: Annotated[Path | None, typer.Option(help=f"The table's folder ({TABLES}/SPACE); goes on where it is.")] = None,
    json_: Json = False,
) -> None:
    """Train every net of a space with several seeds, and keep the scores of every epoch as a table."""
    from rich.console import Console
    from rich.progress import Progress

    from onenet_bench import space as spaces
    from onenet_bench.search import tabulate as tables

    reached = spaces.load(space)
    asked = tables.Question(
        space=reached,
        task=open_task(data, reached, resolution),
        recipe=read_recipe(reached.recipe, epochs, None, batch, learning_rate, None, 0),
        seeds=tuple(read_integers("--seeds", seeds)),
    )
    folder = out or TABLES / file_name(reached.name)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("trainings", total=None)
        found = tables.tabulate(
            asked, folder, command=command_line(), workers=workers,
            heard=lambda done, of: progress.update(task, completed=done, total=of),
        )  # fmt: skip
    if json_:
        print_json({"table": str(folder), "nets": len(found.nets), "seeds": found.facts["seeds"]})
    else:
        print(folder)
