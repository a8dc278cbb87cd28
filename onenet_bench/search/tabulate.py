"""A table of a space: every net trained, with several seeds, and its scores at every epoch.

Searches replayed on such a table cost nothing, so that samplers can be compared over many seeds. A table is a folder::

    table.json    the question: space, task, recipe (without its seed), seeds, their digests, machine, versions;
                  what seeds were added later, and where
    nets.csv      a row per distinct net within the budget: its digest, choices and exact costs
    scores.csv    a row per net, seed and epoch: loss, scores, seconds; appended as trainings end
    README.md     the data card

Of combinations that make one net the first stands in the table. Nets are trained in an order shuffled by a fixed
seed, all of them with the first seed, then with the next, so that a table in the making is a fair sample.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from onenet_bench import costs, screen
from onenet_bench.budget import excess
from onenet_bench.errors import LedgerError, RecipeError, SpaceError
from onenet_bench.files import alone, whole
from onenet_bench.pareto import losses, non_dominated
from onenet_bench.recipe import Recipe
from onenet_bench.record import COSTS, SCORES, Machine, Record, Status, provenance
from onenet_bench.screen import MOST
from onenet_bench.search.trial import ENVIRONMENT, environment
from onenet_bench.space import SearchSpace
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

QUESTION, NETS, SCORED, CARD = "table.json", "nets.csv", "scores.csv", "README.md"

KEPT = tuple(name for name in SCORES if name != "dice_case_fg")
"""Scores that are kept; a table's images are of no patients."""

COLUMNS = ("net", "seed", "epoch", "loss", *KEPT, "seconds", "cpu_seconds")
"""Of ``scores.csv``. Both seconds are counted from a training's beginning."""

DIGITS = 4
"""Decimals of losses and scores."""

MOST_NETS = 100_000
"""Of a table: each is trained, with every seed."""

SHOWN = 12
"""The most epochs that a card has columns for."""

HEADER = ",".join(COLUMNS) + "\n"

FAILED = 0
"""The one epoch of a training that failed; its row has neither loss nor scores."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a table answers. The recipe's own seed does not matter."""

    space: SearchSpace
    task: Task
    recipe: Recipe
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SpaceError(f"a table is trained with one or more seeds, each once, but got {list(self.seeds)}")
        if self.recipe.steps:
            raise SpaceError(
                f"a table's trainings are counted in epochs, but the recipe has {self.recipe.steps} steps; say epochs"
            )
        if self.space.size > MOST:
            raise SpaceError(
                f"a table has at most {MOST:,} combinations, but {self.space.name} has {self.space.size:,}; offer less"
            )
        named = {o.name for o in self.space.objectives} | {b.cost for b in self.space.budget}
        absent = {"latency_ms", "dice_case_fg"} | (set() if self.recipe.deep_supervision else {"supervision_macs"})
        if strange := sorted(named & absent):
            raise SpaceError(f"a table has no {strange[0]}, but {self.space.name} names it; leave it out")
        if taken := sorted({*self.space.choices} & {"net", "label", *COSTS}):
            raise SpaceError(
                f"a table has a column of its own called {taken[0]}, but {self.space.name} has a choice of that name; "
                "rename the choice"
            )
        if self.recipe.patience:
            raise SpaceError(
                f"a table's trainings are all as long, but the recipe has a patience of {self.recipe.patience}; leave "
                "it out"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values, with digests of task and recipe."""
        recipe = {name: value for name, value in self.recipe.to_dict().items() if name != "seed"}
        return {
            "space": self.space.to_dict(),
            "task": self.task.to_dict(),
            "recipe": recipe,
            "seeds": list(self.seeds),
            "task_digest": self.task.digest(),
            "recipe_digest": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Question:
        """The inverse of ``to_dict``."""
        return cls(
            space=SearchSpace.from_dict(values["space"]),
            task=Task.from_dict(values["task"]),
            recipe=Recipe.from_dict(values["recipe"]),
            seeds=tuple(values["seeds"]),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A net of a table."""

    spec: NetSpec
    choices: dict[str, Any]
    costs: dict[str, Any]


def distinct(question: Question) -> dict[str, Row]:
    """Digest → net, in the space's order: those that exist and fit the budget. Raises SpaceError for too many."""
    space, task, recipe = question.space, question.task, question.recipe
    screening = screen.screen(space, task.resolution, classes=task.classes, in_channels=task.in_channels)
    fitting = screening.fits([limit for limit in space.budget if limit.cost in screen.SCREENED])
    found = np.flatnonzero(screening.distinct & fitting).tolist()
    if len(found) > MOST_NETS:
        raise SpaceError(
            f"a table has at most {MOST_NETS:,} nets, but {space.name} has {len(found):,}; offer less, or set a budget"
        )
    rows: dict[str, Row] = {}
    for index in found:
        choices = screening.choices(index)
        spec = space.spec(choices, classes=task.classes, in_channels=task.in_channels)
        try:
            counted = costs.count_training(spec, task.resolution, recipe)
        except RecipeError:  # of one head, which cannot be supervised deeply
            continue
        if not excess(counted, space.budget):
            known = {name: value for name, value in counted.to_dict().items() if name in COSTS and value is not None}
            rows[spec.digest()] = Row(spec=spec, choices=choices, costs=known)
    return rows


@dataclass(frozen=True, kw_only=True)
class Tabulated:
    """A table as it was found. ``nets`` is indexed by digest; ``scores`` holds whole trainings alone."""

    question: Question
    facts: Mapping[str, Any]
    nets: pd.DataFrame
    scores: pd.DataFrame

    def curves(self, score: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """``score`` by net (in the order of ``nets``), seed and epoch, (n, seeds, epochs); NaN where not trained."""
        found = self.scores[self.scores["epoch"] != FAILED]
        at = pd.MultiIndex.from_product(
            [self.nets.index, self.question.seeds, range(1, self.question.recipe.epochs + 1)]
        )
        values = found.set_index(["net", "seed", "epoch"])[score].reindex(at)
        return values.to_numpy(dtype=float).reshape(len(self.nets), len(self.question.seeds), -1)


def read(folder: Path) -> Tabulated:
    """The table in ``folder``, whole or in the making. Raises LedgerError where there is none."""
    facts = _question(folder)
    try:
        nets = pd.read_csv(folder / NETS, index_col="net")
        scores = pd.read_csv(folder / SCORED)
    except (OSError, ValueError) as error:
        raise _no_table(folder, error) from error
    return Tabulated(question=Question.from_dict(facts), facts=facts, nets=nets, scores=scores)


def _no_table(folder: Path, error: Exception) -> LedgerError:
    return LedgerError(f"a table is a folder with {QUESTION}, {NETS} and {SCORED}, but {folder}: {error}")


def tabulate(
    question: Question, folder: Path, *, command: str, workers: int = 1,
    heard: Callable[[int, int], None] = lambda done, of: None,
) -> Tabulated:  # fmt: skip
    """Train what the table in ``folder`` still lacks, ``workers`` nets at a time with a thread each.

    ``heard`` is told after every training how many there are, and of how many. Seeds may be added to a table that is
    there. Raises SpaceError where there is no net to train, LedgerError where the folder holds anything else, cannot
    be written, or is at work already.
    """
    space, task = question.space, question.task
    screen.check(space, task.resolution, space.budget, classes=task.classes, in_channels=task.in_channels)
    rows = distinct(question)
    if not rows:  # what only the training decides
        raise SpaceError(
            f"a table holds at least one net, but of {space.name} none can be trained within "
            f"{' and '.join(map(str, space.budget)) or 'its recipe'}; allow more"
        )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    taken = LedgerError(f"a table belongs to one process at a time, but another one fills {folder}; wait for it")
    with alone(folder, taken):
        return _go_on(question, rows, folder, command, workers, heard)


def _go_on(
    question: Question, rows: Mapping[str, Row], folder: Path, command: str, workers: int,
    heard: Callable[[int, int], None],
) -> Tabulated:  # fmt: skip
    with _writing(folder):
        _begin(question, rows, folder, command)
        done = _mend(folder / SCORED, question.recipe.epochs)
    digests = sorted(rows)
    np.random.default_rng(0).shuffle(digests)
    todo = [(name, seed) for seed in question.seeds for name in digests if (name, seed) not in done]
    number, of = len(done), len(done) + len(todo)
    context = multiprocessing.get_context("spawn")
    with (
        environment({**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, over=False),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_follow) as pool,
        (folder / SCORED).open("ab", buffering=0) as book,
    ):
        running: set[Future[str]] = set()
        while todo or running:
            while todo and len(running) < workers:
                name, seed = todo.pop(0)
                running.add(pool.submit(train, rows[name].spec, question.task, replace(question.recipe, seed=seed)))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    trained = future.result()
                except BrokenProcessPool as error:
                    raise LedgerError(
                        f"a training's process ended without a word, as where memory runs out; what {folder} holds is "
                        "safe: give the same command with fewer --workers"
                    ) from error
                with _writing(folder):
                    book.write(trained.encode())
                    os.fsync(book.fileno())
                number += 1
                heard(number, of)
    found = read(folder)
    with _writing(folder):
        _write(folder / CARD, card(found))
    return found


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one sentence what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise LedgerError(f"a table's folder must be writable, but {folder} is not: {error.strerror}") from error


def _follow() -> None:
    """End with the driver, whatever ends it: a pool's processes would wait for it for ever."""
    driver = multiprocessing.parent_process()
    assert driver is not None

    def watch() -> None:
        driver.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train(spec: NetSpec, task: Task, recipe: Recipe) -> str:
    """Train one net; its lines of ``scores.csv``."""
    import torch

    from onenet_bench.evaluate import evaluate

    torch.set_num_threads(1)
    began, spent = time.process_time(), []

    def on_epoch(progress: Mapping[str, Any]) -> bool:
        spent.append(time.process_time() - began)
        return True

    return lines(evaluate(spec, task, recipe, on_epoch=on_epoch), spent)


def lines(record: Record, spent: Sequence[float]) -> str:
    """A training's lines of ``scores.csv``; ``spent`` are the CPU seconds until each epoch's end."""
    assert record.spec is not None
    key = [record.spec.digest(), record.recipe.seed]
    rows: list[list[Any]] = [[*key, FAILED, *[""] * (len(KEPT) + 1), round(record.seconds, 3), ""]]
    if record.status is Status.COMPLETE:
        rows = [
            [
                *key, epoch["epoch"], *(_rounded(epoch.get(name)) for name in ("loss", *KEPT)),
                round(epoch["seconds"], 3), round(cpu, 3),
            ]
            for epoch, cpu in zip(record.history, spent, strict=True)
        ]  # fmt: skip
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, DIGITS)


def card(found: Tabulated) -> str:
    """The data card, in Markdown: what the table holds, how it was made, and how far its numbers can be trusted."""
    asked, made = found.question, found.facts
    curves = found.curves(_score(asked))  # (n, seeds, epochs)
    final = pd.DataFrame(curves[:, :, -1])  # (n, seeds)
    trained = final.notna().to_numpy()
    last = found.scores[found.scores["epoch"] == asked.recipe.epochs]
    agreement = pd.DataFrame(curves.reshape(-1, curves.shape[2])).corr("kendall").iloc[-1]
    shown = range(asked.recipe.epochs, 0, -math.ceil(asked.recipe.epochs / SHOWN))[::-1]
    means = final.mean(axis=1)  # of the seeds that were trained; none, of a net that always failed
    values = {
        o.name: pd.DataFrame(found.curves(o.name)[:, :, -1]).mean(axis=1) if o.is_score else found.nets[o.name]
        for o in asked.space.objectives
    }
    front = int(non_dominated(losses(values, asked.space.objectives)).sum())
    between = final.corr("kendall").to_numpy()[np.triu_indices(final.shape[1], 1)]
    noise = math.sqrt(final.var(axis=1).mean())
    seconds = [f"{last[name].median():.1f} ({last[name].quantile(0.05):.1f} to {last[name].quantile(0.95):.1f})"
               for name in ("cpu_seconds", "seconds")]  # fmt: skip
    busy = float(last["seconds"].sum() / last["cpu_seconds"].sum())
    recipe = ", ".join(f"{k} {v}" for k, v in made["recipe"].items() if v)
    return CARD_TEXT.format(
        name=asked.space.name, summary=asked.space.summary, nets=len(found.nets), trainings=int(trained.sum()),
        all=trained.size, score=_score(asked), objectives=", ".join(o.name for o in asked.space.objectives),
        combinations=asked.space.size, budget=", ".join(map(str, asked.space.budget)) or "none",
        seeds=", ".join(map(str, asked.seeds)), epochs=asked.recipe.epochs, task=asked.task,
        classes=", ".join(asked.task.class_names), recipe=recipe, task_digest=made["task_digest"],
        recipe_digest=made["recipe_digest"], origin="".join(map(_origin, [made, *made.get("added", [])])),
        front=front, low=means.min(), high=means.max(), spread=means.std(ddof=1),
        noise=noise, between=between.mean() if len(between) else math.nan, cpu_seconds=seconds[0], seconds=seconds[1],
        busy=busy, rungs=" | ".join(map(str, shown)), rule="---|" * len(shown),
        agreement=" | ".join(f"{agreement[epoch - 1]:.2f}" for epoch in shown),
        columns=", ".join(f"`{name}`" for name in ("loss", *KEPT)), digits=DIGITS,
    )  # fmt: skip


def _origin(made: Mapping[str, Any]) -> str:
    """By which command, from when on, by which code and on which machine trainings were made: a line of the card."""
    added = made["provenance"]
    versions = ", ".join(f"{package} {version}" for package, version in added["versions"].items())
    what = "Made" if "space" in made else f"Seeds {', '.join(map(str, made['seeds']))} added"
    return (
        f"- {what} by `{made['command']}`,\n  begun {added['time']}, commit {added['commit']}"
        f"{' with changes' if added['dirty'] else ''}; on {made['machine']['cpu']}, {made['machine']['cores']} cores; "
        f"{versions}.\n"
    )


def _score(question: Question) -> str:
    return next(o.name for o in question.space.objectives if o.is_score)


CARD_TEXT = """\
# {name}: a table for multi-objective architecture search with known costs

{nets} nets, all that the space `{name}` has within its budget, each trained with the seeds {seeds}: {trainings}
of {all} trainings, with the scores of every epoch and the exact costs. Searches can be replayed on it in seconds
(`benchmarks/search.py`).

- Space: {summary}; {combinations} combinations, of which the first that makes a net stands for it. Budget: {budget}.
- Data: `{task.data}`, {task.train} training and {task.validation} validation
  images of {task.resolution} x {task.resolution} pixels; classes {classes}. Task digest {task_digest}.
- Recipe: {recipe}. Digest {recipe_digest}. Its learning rate falls over {epochs} epochs, so an epoch's score is that
  of a training on its way to {epochs}, not of a shorter one.
- Nets in shuffled order, all with the first seed, then all with the next; a command goes on where it was interrupted.
{origin}
| file | what it holds |
|---|---|
| `nets.csv` | a row per net: `net` (digest of its spec), a label, its choices, its costs |
| `scores.csv` | a row per net, seed and epoch, scores to {digits} decimals; epoch 0 alone says that a training failed |
| `table.json` | space, task, recipe, seeds, digests, machine, versions |

Beside the scores, {columns},
there are `seconds` and `cpu_seconds` since the training began. Units and conventions are those of `COSTS` and `SCORES`
in `onenet_bench/record.py`. All scores are of the validation images; there is no test score here.
`onenet_bench.search.tabulate.read` reads the three files.

## How far the numbers can be trusted

Over the nets, the mean of the seeds' final `{score}` lies between {low:.3f} and {high:.3f}, standard deviation
{spread:.3f}; between the seeds of a net it is {noise:.3f}, and Kendall's tau of two seeds' orders is {between:.2f}.
{front} nets are on the front of {objectives} by these means, some of them by luck.

Kendall's tau between an epoch's `{score}` and the final one, over all trainings:

| epoch | {rungs} |
|---|{rule}
| tau | {agreement} |

A training took {cpu_seconds} CPU seconds, median with the 5 % and 95 % quantiles, and {seconds} by the clock:
{busy:.1f} times as much in sum, since other work ran on the machine, which slows the CPU seconds too. Use the times
for orders of magnitude. Scores do not depend on it, but for rounding.

Licence: that of the project, Apache-2.0.
"""


def _begin(question: Question, rows: Mapping[str, Row], folder: Path, command: str) -> None:
    """Write the question and the nets, or find them there."""
    asked = question.to_dict()
    made = {"command": command, "machine": Machine.here().to_dict(), "provenance": provenance()}
    facts = {**asked, **made}
    if (folder / QUESTION).exists():
        there = _question(folder)
        for what, name in (("space", "space"), ("task", "task_digest"), ("recipe", "recipe")):
            if there[name] != asked[name]:
                raise LedgerError(
                    f"a table answers one question, but {folder} was begun for another {what}; give another --out"
                )
        facts = there
        if new := sorted({*question.seeds} - {*there["seeds"]}):
            added = [*there.get("added", []), {"seeds": new, **made}]
            facts = {**there, "seeds": sorted({*there["seeds"], *new}), "added": added}
    else:
        if others := sorted(p.name for p in folder.iterdir() if p.name != SCORED and not p.name.startswith(".")):
            raise LedgerError(f"a table has a folder of its own, but {folder} holds {others[0]}; give another --out")
        if not (folder / SCORED).exists():
            _write(folder / SCORED, HEADER)
    _write(folder / QUESTION, json.dumps(facts, indent=1) + "\n")
    nets = [{"net": name, "label": row.spec.label(), **row.choices, **row.costs} for name, row in rows.items()]
    _write(folder / NETS, pd.DataFrame(nets).to_csv(index=False))  # counted anew each time


def _question(folder: Path) -> dict[str, Any]:
    """What ``table.json`` says. Raises LedgerError where there is none, or it is damaged."""
    try:
        facts: dict[str, Any] = json.loads((folder / QUESTION).read_text(encoding="utf-8"))
        Question.from_dict(facts)
    except OSError as error:
        raise _no_table(folder, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"a table's {QUESTION} says what was asked, but that of {folder} is damaged "
            f"({type(error).__name__}: {error}); restore it from a copy"
        ) from error
    return facts


def _write(path: Path, text: str) -> None:
    """What a table says already took hours: it is replaced whole or not at all."""
    with whole(path, durable=True) as draft:
        draft.write_text(text, encoding="utf-8")


def _mend(path: Path, epochs: int) -> set[tuple[str, int]]:
    """The trainings in ``scores.csv``, of which a last one that a crash has torn is cut off.

    Raises LedgerError where it is damaged elsewhere.
    """
    text = path.read_bytes().decode(errors="replace")
    rows = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    if rows[:1] != [HEADER]:
        raise LedgerError(f"a table's scores begin with {HEADER.strip()}, but {path} does not; restore it from a copy")
    kept, seen = rows[:1], set()
    at = 1
    while at < len(rows):
        name, seed, epoch = (*rows[at].split(","), "", "")[:3]
        size = 1 if epoch == str(FAILED) else epochs
        block = rows[at : at + size]
        wanted = [f"{name},{seed},{e}," for e in ([FAILED] if epoch == str(FAILED) else range(1, epochs + 1))]
        if (
            not seed.isdecimal()
            or (name, int(seed)) in seen
            or not all(row.startswith(key) for row, key in zip(block, wanted, strict=False))
        ):
            raise LedgerError(
                f"the lines of a table's scores are the epochs of one training after the other, but those from "
                f"{at + 1} of {path} are not; restore the file from a copy"
            )
        if len(block) < size:  # torn
            break
        kept += block
        seen.add((name, int(seed)))
        at += size
    if (mended := "".join(kept)) != text:
        _write(path, mended)
    return seen
