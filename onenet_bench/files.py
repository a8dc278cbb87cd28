"""Files that are written whole or not at all, TOML that people write, and folders that one process has to itself."""

from __future__ import annotations

import fcntl
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_toml(path: Path, what: str, refused: Callable[[str], Exception], way_out: str) -> dict[str, Any]:
    """The values of a TOML file. Raises ``refused`` with one sentence about ``what`` where there are none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise refused(f"{what} must be readable TOML, but {path} is not ({why}); {way_out}") from error


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name beside ``path``, with its suffix, to write a file to; where nothing goes wrong the file takes the place of
    ``path``, and else nothing is left of it. Folders are made. ``durable``: it outlives a power cut too.

    Raises OSError where that cannot be done; what stood at ``path`` then still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield draft
        if durable:
            _to_disk(draft, os.O_RDONLY)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if durable and hasattr(os, "O_DIRECTORY"):
        _to_disk(path.parent, os.O_RDONLY | os.O_DIRECTORY)  # the new name


@contextmanager
def alone(folder: Path, taken: Exception, *, lenient: bool = False) -> Iterator[None]:
    """The only process in ``folder``, which is there. Raises ``taken`` while another one is.

    The lock is the operating system's and dies with its owner. Where a file system has none, ``taken`` is raised too;
    ``lenient``: nothing is held there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not lenient or isinstance(error, BlockingIOError):
                raise taken from error
        yield
    finally:
        os.close(handle)


def _to_disk(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
