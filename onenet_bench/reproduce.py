"""Tables 1 and 3 of the OneNet paper, trained again: every method on every data set with every seed, a cell at a time.

A reproduction is a folder with a ledger. Its first line names table and settings, which never change; what is asked
for may grow from call to call, and cells that are complete are not trained again. A cell that was interrupted goes on
from its last state, and one that failed is tried again. The pages are ``report.reproduce``'s.

A cell's weights are trained with validation as everywhere, and scored on the test split. One split serves all seeds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from onenet_bench import data, inference, ledger, models, training, zoo
from onenet_bench.data import tiny
from onenet_bench.data.paths import resolved
from onenet_bench.data.verify import PUBLISHED
from onenet_bench.errors import DataError, LedgerError, RecipeError, SpecError, known
from onenet_bench.evaluate import evaluate
from onenet_bench.ledger import Ledger
from onenet_bench.plan import check_resolution
from onenet_bench.recipe import PAPER, Recipe
from onenet_bench.record import SCHEMA, Machine, Record, Status, provenance
from onenet_bench.report.published import CHANNELS, RESOLUTION, TABLES, WIDTH, PublishedTable
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

SPLIT_SEED = 0  # of the one split that all seeds share
STATES = 30  # of a training are written, so that an interruption costs no more than that part of it


def _resnet(kind: str, repeats: list[int], widening: int) -> Callable[..., NetSpec]:
    return lambda width, **ends: zoo.resnet_unet(
        kind, [width, *(widening * width * 2**level for level in range(4))], repeats, **ends
    )


METHODS: dict[str, Callable[..., NetSpec]] = {
    "unet_4": lambda width, **ends: zoo.unet(4, width, **ends),
    "resnet34_unet": _resnet("resnet_basic", [3, 4, 6, 3], 1),
    "resnet50_unet": _resnet("resnet_bottleneck", [3, 4, 6, 3], 4),
    "mobilenet_unet": lambda width, **ends: zoo.mobilenet_unet(4, width, **ends),
    "onenet_e_4": lambda width, **ends: zoo.onenet_e(4, width, spatial_kernel=0, **ends),
    "onenet_ed_4": lambda width, **ends: zoo.onenet_ed(4, width, spatial_kernel=0, **ends),
    "onenet_e_4_s": lambda width, **ends: zoo.onenet_e(4, width, **ends),
    "onenet_e_4_c": lambda width, **ends: zoo.onenet_e(4, width, spatial_kernel=0, **ends),
    "onenet_ed_4_s": lambda width, **ends: zoo.onenet_ed(4, width, **ends),
    "onenet_ed_4_c": lambda width, **ends: zoo.onenet_ed(4, width, spatial_kernel=0, **ends),
}
"""By the rows of the published tables: from ``width``, the channels of the first level, ``classes`` and
``in_channels`` to a net."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How all cells of a reproduction are trained; the paper's protocol where nothing else is said.

    ``output_stride`` 2 is its 512 pixels in and 256 out. ``width`` is the channels of every net's first level.
    ``weights`` are files of ImageNet weights by method. ``paper_classes`` gives nets as many outputs as the paper's
    configuration, also where the data has fewer classes. ``smoke`` marks what was only tried.
    """

    recipe: Recipe = PAPER
    resolution: int = RESOLUTION
    output_stride: int = 2
    width: int = WIDTH
    paper_classes: bool = False
    smoke: bool = False
    weights: Mapping[str, Path] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; weights by their files' names and SHA-256. Raises SpecError for unreadable ones."""
        weights = {method: models.imagenet_facts(path) for method, path in self.weights.items()}
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "recipe": _seedless(self.recipe),
            "weights": weights,
        }


def _seedless(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in recipe.to_dict().items() if name != "seed"}


SMOKE = Settings(recipe=replace(PAPER, epochs=2, batch=8), resolution=32, width=4, smoke=True)
"""Tiny in every way, so that the whole path runs in a couple of minutes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is asked for: cells of a table, and where the data are. A data set without a path is absent."""

    table: str
    data: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    paths: Mapping[str, str]

    def __post_init__(self) -> None:
        table = published(self.table)
        for what, names, all_names in (
            ("data set", self.data, table.data),
            ("method", self.methods, tuple(table.rows)),
            ("data set", tuple(self.paths), table.data),
        ):
            for name in names:
                if name not in all_names:
                    raise RecipeError(known(f"{what} of {self.table}", name, all_names))
        for what, asked in (("data set", self.data), ("method", self.methods), ("seed", self.seeds)):
            if not asked or len(set(asked)) < len(asked):
                raise RecipeError(f"each {what} is named once and at least one is, but got {list(asked)}")
        if min(self.seeds) < 0:
            raise RecipeError(f"a seed is at least 0, but got {min(self.seeds)}")


def published(table: str) -> PublishedTable:
    """The table of that name. Raises RecipeError that lists the known ones."""
    if table not in TABLES:
        raise RecipeError(known("table", table, TABLES))
    return TABLES[table]


def order(
    table: str, *, data: Sequence[str] | None = None, methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,), paths: Mapping[str, str] | None = None,
) -> Order:  # fmt: skip
    """An Order of all data sets and all methods where they are not named, in the table's order. Raises RecipeError."""
    rows = published(table)
    return Order(
        table=table,
        data=rows.data if data is None else tuple(data),
        methods=tuple(rows.rows) if methods is None else tuple(methods),
        seeds=tuple(seeds),
        paths=paths or {},
    )


def spec(method: str, settings: Settings, *, classes: int, in_channels: int) -> NetSpec:
    """The net of a method: as the zoo has it and, for output stride 2, without the decoder's top level."""
    if method not in METHODS:
        raise SpecError(known("method", method, METHODS))
    whole = METHODS[method](settings.width, classes=classes, in_channels=in_channels)
    if settings.output_stride == 1:
        return whole
    return replace(whole, output_stride=settings.output_stride, decoder=whole.decoder[:-1])


Heard = Callable[[str], None]


def reproduce(
    asked: Order, settings: Settings, folder: Path, *, command: str = "", device: str = "cpu",
    heard: Heard = lambda line: None,
) -> bool:  # fmt: skip
    """Train and score the cells of ``asked`` that ``folder`` lacks; False where an interrupt (Ctrl-C) ended it early.

    ``heard`` gets a line of progress at a time. A smoke run grows its own data below ``folder``. Data sets that are
    absent are noted as such, with what to fetch.

    Raises:
        LedgerError: the folder cannot be written, is in use, or holds a reproduction with other settings.
        SpecError: the nets cannot take the resolution, or a file of weights is none of its net.
    """
    for method in asked.methods:
        net = spec(method, settings, classes=2, in_channels=CHANNELS)
        check_resolution(net, settings.resolution, settings.resolution)
    pretrained = {method: _pretrained(method, path, settings) for method, path in settings.weights.items()}
    wanted = settings.to_dict()
    if os.path.isdir(folder / "weights") and not ledger.has_begun(folder):
        raise LedgerError(f"{folder} holds a training, whose weights stay; take another folder")
    with Ledger(folder, create=not os.path.exists(folder / ledger.FILE)) as book:
        with ledger.understood(folder):
            events = _events(folder, asked.table, wanted)
            done = {_key(record) for record in ledger.records(events) if record.status is Status.COMPLETE}
        tasks, absent = _open(asked, settings, folder)
        header = {"schema": SCHEMA, "name": folder.resolve().name, "table": asked.table, "settings": wanted}
        call = {
            "asked": {"data": asked.data, "methods": asked.methods, "seeds": asked.seeds}, "absent": absent,
            "command": command, "machine": Machine.here().to_dict(), "provenance": provenance(),
        }  # fmt: skip
        book.append("resume" if events else "run", call if events else {**header, **call})

        number = sum(event["event"] == "tell" for event in events)
        cells = [
            _Cell(
                data=name, method=method, task=task, recipe=replace(settings.recipe, seed=seed),
                net=spec(method, settings, classes=task.classes, in_channels=task.in_channels),
            )
            for name, task in tasks.items() for method in asked.methods for seed in asked.seeds
        ]  # fmt: skip
        try:
            for place, cell in enumerate(cells, start=1):
                where = f"[{place}/{len(cells)}] {cell.data} {cell.method} seed {cell.recipe.seed}"
                if cell.key in done:
                    heard(f"{where}: complete already")
                    continue
                told = _train(cell, number, folder, device, pretrained.get(cell.method), partial(_say, heard, where))
                book.append("tell", {"trial": number, **told})
                number += 1
                heard(f"{where}: {told['record']['reason'] or 'complete'}, {told['record']['seconds']:.0f} s")
        except KeyboardInterrupt:
            book.append("end", {"reason": "interrupted"})
            return False
        book.append("end", {"reason": "every cell whose data is there was tried"})
        return True


def _say(heard: Heard, where: str, progress: Mapping[str, Any]) -> bool:
    heard(f"{where}: epoch {progress['epoch']}, loss {progress['loss']:.4f}, "
          f"validation miou {progress.get('miou', float('nan')):.4f}, {progress['seconds']:.0f} s")  # fmt: skip
    return True


# -- before the first cell -------------------------------------------------------------------------------------------


def _events(folder: Path, table: str, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the ledger holds; nothing for a new one. Raises LedgerError where it is of another reproduction."""
    if (folder / ledger.FILE).stat().st_size == 0:
        return []
    events = ledger.read(folder)
    was = {"table": events[0].get("table"), **events[0].get("settings", {})}
    if "recipe" in was:
        was["recipe"] = _seedless(Recipe.from_dict(was["recipe"]))  # with the fields that it had no name for yet
    now = {"table": table, **wanted}
    for name in (*now, *was):
        if was.get(name) != now.get(name):
            raise LedgerError(
                f"a reproduction keeps its settings, but in {folder} {name} was {was.get(name)!r} and is now "
                f"{now.get(name)!r}; take the old one, or another folder"
            )
    return events


def _open(asked: Order, settings: Settings, folder: Path) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks of the data sets that are there, and for the others why they are not."""
    tasks, absent = {}, {}
    for name in asked.data:
        try:
            where = tiny.grow(name, folder.resolve() / "trees") if settings.smoke else _named(name, asked.paths)
            knob = "?paper-classes" if settings.paper_classes else ""
            task = data.open_task(where + knob, resolution=settings.resolution, seed=SPLIT_SEED)
            data.load(task)  # what is converted once is converted before anything is trained
        except DataError as error:
            absent[name] = f"{error}; {_fetch(name)}"
        else:
            tasks[name] = task
    return tasks, absent


def _named(name: str, paths: Mapping[str, str]) -> str:
    if name not in paths:
        raise DataError(f"no path was given for {name}; say --data {name}=PATH, or --root DIR for all")
    return f"{name}:{resolved(paths[name])}"


def _fetch(name: str) -> str:
    archives = (f"{one.url} ({one.size}, md5 {one.md5})" for one in PUBLISHED[name].archives)
    return f"its archives are {' and '.join(archives)}, described at {PUBLISHED[name].page}"


class _Pretrained(NamedTuple):
    """ImageNet weights by the names of a net, and the file that they are from."""

    tensors: Mapping[str, Any]
    facts: Mapping[str, str]


def _pretrained(method: str, path: Path, settings: Settings) -> _Pretrained:
    net = spec(method, settings, classes=2, in_channels=CHANNELS)
    return _Pretrained(models.imagenet_weights(net, models.read_imagenet_file(path)), models.imagenet_facts(path))


# -- a cell ----------------------------------------------------------------------------------------------------------


class _Cell(NamedTuple):
    """A method on a data set with a seed."""

    data: str
    method: str
    task: Task
    recipe: Recipe
    net: NetSpec

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """Cells of one key are the same: data set, method, seed, the data's content, the net."""
        return self.data, self.method, self.recipe.seed, self.task.content, self.net.digest()


def _key(record: Record) -> tuple[str, str, int, str, str]:
    assert record.spec is not None  # for evaluate had one
    return _Cell(record.choices["data"], record.choices["method"], record.task, record.recipe, record.spec).key


def _train(
    cell: _Cell, number: int, folder: Path, device: str, pretrained: _Pretrained | None,
    on_epoch: Callable[[Mapping[str, Any]], bool],
) -> dict[str, Any]:  # fmt: skip
    """A cell's ``record``, and as ``test`` the scores of its weights on the test split; None where training failed.

    ImageNet weights take three channels: on data of other channels training starts from scratch.
    """
    start = pretrained if cell.net.in_channels == CHANNELS else None
    state = folder / "states" / f"{cell.data}-{cell.method}-{cell.recipe.seed}-{cell.task.digest()}"
    record = evaluate(
        cell.net, cell.task, cell.recipe, trial=number, choices={"data": cell.data, "method": cell.method},
        device=device, run=folder, weights=start.tensors if start else None, on_epoch=on_epoch,
        checkpoints=training.Checkpointing(folder=state, every=max(1, cell.recipe.epochs // STATES)),
    )  # fmt: skip
    if start:
        record = replace(record, provenance={**record.provenance, "weights": start.facts})
    test = None
    if record.status is Status.COMPLETE:
        trained = inference.open_checkpoint(folder / record.artifacts["weights"], device)
        scored = inference.score(trained, split="test")
        test = {"images": scored.images, "scores": scored.scores, "per_class": scored.per_class}
    shutil.rmtree(state, ignore_errors=True)  # what it is worth now stands in weights/
    return {"record": record.to_dict(), "test": test}
