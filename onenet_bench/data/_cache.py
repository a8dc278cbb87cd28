"""Arrays kept on disk: made once per machine, shared by processes as read-only memory maps.

An entry is a folder of ``NAME.npy`` files and ``sha256.json``, which maps each file's name to its digest. It is
written beside its place and moved there in one step, so that a reader sees all of it or none. An entry that is
not what its digests say is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

_DIGESTS = "sha256.json"
_unwritten: dict[str, Arrays] = {}  # entries that could not be written, for the life of the process
_warned = False


def cache_dir() -> Path:
    """The folder of generated and converted data: ``$ONENET_BENCH_CACHE``, else ``~/.cache/onenet-bench``."""
    named = os.environ.get("ONENET_BENCH_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "onenet-bench"


def digest(value: object) -> str:
    """A name for a JSON-ready value: 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def arrays(entry: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays of the cache's ``entry``; ``build`` makes them where the cache has none, or a damaged one.

    Where the cache cannot be written, warns once and keeps the arrays in memory.
    """
    place = cache_dir() / entry
    found = _read(place)
    if found is not None:
        return found
    if entry in _unwritten:
        return _unwritten[entry]
    built = build()
    failure: OSError | None = None
    try:
        _write(place, built)
    except OSError as error:  # no space or no permission; or another process has just put the entry there
        failure = error
    found = _read(place)
    if found is not None:
        return found
    _warn_once(place.parent, failure)
    for array in built.values():
        array.flags.writeable = False
    _unwritten[entry] = built
    return built


def _read(place: Path) -> Arrays | None:
    """The entry as memory maps, or None where it is absent or damaged."""
    try:
        digests: dict[str, str] = json.loads((place / _DIGESTS).read_bytes())
        if any(_sha256(place / name) != expected for name, expected in digests.items()):
            return None
        return {name.removesuffix(".npy"): np.load(place / name, mmap_mode="r", allow_pickle=False) for name in digests}
    except (OSError, ValueError, AttributeError):  # absent; not JSON, or not an array; JSON, but not an object
        return None


def _write(place: Path, built: Arrays) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=place.parent, prefix=f".{place.name}-", ignore_cleanup_errors=True
    ) as workplace:
        draft, damaged = Path(workplace, "draft"), Path(workplace, "damaged")
        draft.mkdir()
        digests = {}
        for name, array in built.items():
            file = draft / f"{name}.npy"
            np.save(file, array, allow_pickle=False)
            digests[file.name] = _sha256(file)
        (draft / _DIGESTS).write_text(json.dumps(digests, indent=1))
        if _read(place) is None:  # a folder can be moved onto nothing only
            with suppress(FileNotFoundError):
                place.replace(damaged)
            draft.replace(place)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _warn_once(folder: Path, error: OSError | None) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"the cache {folder} cannot be written ({error}), so data is made again by every process; "
            "set ONENET_BENCH_CACHE to a folder that can be",
            stacklevel=3,
        )
