"""Data: from a name to a Task, and from a Task to its pixels.

>>> task = open_task("synthetic", resolution=64)
>>> splits = load(task)
>>> splits.train.images.shape  # (N, C, H, W) of uint8
(320, 3, 64, 64)
"""

from __future__ import annotations

from onenet_bench.data import decathlon, folder, pets, synthetic, voc
from onenet_bench.data._cache import cache_dir
from onenet_bench.data.samples import Request, Samples, Source, Splits
from onenet_bench.errors import DataError, known
from onenet_bench.task import Task

__all__ = [
    "SOURCES",
    "Samples",
    "Source",
    "Splits",
    "cache_dir",
    "check_labels",
    "load",
    "notes",
    "open_task",
    "reopen",
]

SOURCES: dict[str, Source] = {
    "synthetic": synthetic.SOURCE,
    "folder": folder.SOURCE,
    "voc": voc.SOURCE,
    "pets-full": pets.FULL,
    "pets-small": pets.SMALL,
    "msd-heart": decathlon.HEART,
    "msd-brain": decathlon.BRAIN,
    "msd-lung": decathlon.LUNG,
}


def open_task(
    data: str,
    *,
    resolution: int = 64,
    seed: int = 0,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    white: int | None = None,
) -> Task:
    """The Task that ``data`` names, at ``resolution`` x ``resolution`` pixels.

    ``data`` is ``KIND`` or ``KIND:WHERE``, with KIND a key of ``SOURCES``. ``train``, ``validation`` and
    ``test`` are numbers of images: generated data has that many, found data is cut to that many. ``white`` is the value
    of 16-bit images that becomes 255; None: the largest in any of them.

    Raises:
        DataError: the kind is unknown, or what it names cannot be used; the message names the file.
    """
    return _open(
        Request(
            data=data, where=data.partition(":")[2], resolution=resolution, seed=seed,
            train=train, validation=validation, test=test, white=white,
        )
    )  # fmt: skip


def reopen(task: Task, *, resolution: int | None = None) -> Task:
    """What ``task.data`` names now, cut as ``task`` was; fewer images where there are fewer now. Raises DataError.

    ``resolution`` is the task's where None; at that, ``content`` tells whether anything has changed.
    """
    return _open(
        Request(
            data=task.data, where=task.data.partition(":")[2], resolution=resolution or task.resolution, seed=task.seed,
            train=task.train, validation=task.validation, test=task.test, white=task.white, fewer=True,
        )
    )  # fmt: skip


def _open(request: Request) -> Task:
    source = _source(request.data.partition(":")[0])
    try:
        return source.open(request)
    except OSError as error:
        raise DataError(
            f"the files of {request.data} must be readable, but {error.filename or request.where} is not "
            f"({error.strerror})"
        ) from error


def load(task: Task) -> Splits:
    """The pixels of a task, as read-only arrays kept under ``cache_dir()``.

    Raises:
        DataError: what ``task.data`` names is no longer what the task was opened on.
    """
    try:
        now = reopen(task)
    except DataError as error:
        raise DataError(f"a task must find the data it was opened on: {error}") from error
    if now.content != task.content:
        raise DataError(
            f"a task must find the data it was opened on, but the content of {task.data} was {task.content} and "
            f"is now {now.content}; bring the old data back, or open a new task"
        )
    return _source(task.data.partition(":")[0]).load(task)


def notes(task: Task) -> tuple[str, ...]:
    """Sentences on what is odd about the data of ``task``, just opened, and yet may be meant. Raises DataError."""
    return _source(task.data.partition(":")[0]).notes(task)


def check_labels(task: Task, splits: Splits, *names: str) -> None:
    """Raise DataError where a split among ``names`` has pixels, and all of them are ``task.ignore_index``."""
    for name in names:
        masks = getattr(splits, name).masks
        if len(masks) and not any((mask != task.ignore_index).any() for mask in masks):
            raise DataError(
                f"a net is trained and scored on pixels that count, but all of the {name} split of {task.data} are "
                f"{task.ignore_index}, which counts nowhere; label some, or cut the splits otherwise"
            )


def _source(kind: str) -> Source:
    if kind not in SOURCES:
        raise DataError(known("data kind", kind, SOURCES))
    return SOURCES[kind]
