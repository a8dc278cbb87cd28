"""Commands for data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onenet_bench.cli.options import Json, Seed, app, opened, print_json, side

data_app = typer.Typer(
    help="List the kinds of data; check and convert published sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


@data_app.command("kinds")
def data_kinds(json_: Json = False) -> None:
    """List the kinds of data that --data takes, and how each is written."""
    from onenet_bench.data import SOURCES

    rows = [source.summary.split("  ", 1) for source in SOURCES.values()]
    if json_:
        print_json([{"written": written, "what": what} for written, what in rows])
        return
    width = max(len(written) for written, _ in rows)
    for written, what in rows:
        print(f"{written:{width}}  {what}")


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
        print_json(found.to_dict())
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
    resolution: Annotated[int, side()] = 64,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Convert a data set once, as training at this resolution and seed would; goes on where it was interrupted."""
    from onenet_bench import data as data_sets

    _tell_progress()
    try:
        task = opened(data, resolution=resolution, seed=seed)
        splits = data_sets.load(task)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    if json_:
        print_json({"task": task.to_dict(), "cache": str(data_sets.cache_dir())})
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
