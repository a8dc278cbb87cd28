"""Arrays kept on disk: made once per machine, shared by processes as read-only memory maps.

An entry is a folder of ``NAME.npy`` files and ``sha256.json``, which maps each file's name to its digest. It is
written beside its place and moved there in one step, so that a reader sees all of it or none. An entry that is
not what its digests say is made again.

What is too large for the memory is ``streamed`` into its entry item by item. The unfinished entry is a hidden folder
``.ENTRY.draft`` with a journal of the items that are safely on disk, so that whoever comes next goes on from there.
Such an entry also keeps ``stat.json``, sizes and times of change: while a file has these, it is not hashed again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onenet_bench.data.paths import expanded
from onenet_bench.errors import DataError
from onenet_bench.files import alone

Arrays = Mapping[str, NDArray[Any]]
Rows = Iterable[tuple[str, int, NDArray[np.uint8]]]
"""(name of the array, number of its row, the row) of what one item became."""

_DIGESTS = "sha256.json"
_STATS = "stat.json"
_JOURNAL = "done.txt"  # the numbers of the items that a draft holds, a line each
_SAFE_EVERY = 2.0  # seconds between two times that a draft is brought to disk
_RACY = 2.0  # seconds in which a file may change again without a new time of change
_log = logging.getLogger(__name__)
_unwritten: dict[str, Arrays] = {}  # entries that could not be written, for the life of the process
_warned = False


def cache_dir() -> Path:
    """The folder of generated and converted data: ``$ONENET_BENCH_CACHE``, else ``~/.cache/onenet-bench``."""
    named = os.environ.get("ONENET_BENCH_CACHE") or "~/.cache/onenet-bench"
    return expanded(named, "set ONENET_BENCH_CACHE to a whole path")


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
    return _in_memory(entry, built, failure) if found is None else found


def streamed(entry: str, shapes: Mapping[str, tuple[int, ...]], items: int, convert: Callable[[int], Rows]) -> Arrays:
    """The uint8 arrays of the cache's ``entry``; where the cache has none, made of ``items`` items one by one.

    ``shapes`` are those of the arrays, ``convert(item)`` gives the rows that come from an item; every row comes once.
    An interrupted conversion is gone on with by the next call, of whatever process; two at a time wait for each other.
    Where the cache cannot be written, warns once and keeps the arrays in memory.

    Raises:
        DataError: the disk has not enough room; and what ``convert`` raises.
    """
    place = cache_dir() / entry
    found = _read(place)
    if found is not None:
        return found
    if entry in _unwritten:
        return _unwritten[entry]
    failure: OSError | None = None
    try:
        _stream(place, shapes, items, convert)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(place.parent, sum(map(math.prod, shapes.values()))) from error
        failure = error
    found = _read(place)
    if found is not None:
        return found
    built = {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}
    for item in range(items):
        for name, row, pixels in convert(item):
            built[name][row] = pixels
    return _in_memory(entry, built, failure)


class Notes:
    """What was learned of the files below ``root``, kept while their sizes and times of change stay the same.

    ``look`` is asked once for each file and answers with a JSON-ready value; ``topic`` names the question, and must
    change with it. A file that changed within the last seconds is looked at again, for it may change unnoticed.
    """

    def __init__(self, topic: str, root: Path, look: Callable[[Path], Any]) -> None:
        self._root, self._look = root, look
        self._place = cache_dir() / f"notes-{topic}-{digest(str(root.resolve()))}.jsonl"
        self._known: dict[str, Any] = {}  # relative path -> [size, time of change in ns, value]
        with suppress(OSError, UnicodeDecodeError):
            for line in self._place.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, TypeError):  # a torn line
                    name, *known = json.loads(line)
                    self._known[name] = known

    def __getitem__(self, path: Path) -> Any:
        stat = path.stat()
        name = path.relative_to(self._root).as_posix()
        match self._known.get(name):
            case [size, changed, value] if (size, changed) == (stat.st_size, stat.st_mtime_ns):
                return value
        value = self._look(path)
        if time.time() - stat.st_mtime > _RACY:
            self._known[name] = [stat.st_size, stat.st_mtime_ns, value]
            try:
                self._place.parent.mkdir(parents=True, exist_ok=True)
                with self._place.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([name, *self._known[name]]) + "\n")
            except OSError as error:
                _warn_once(self._place.parent, error)
        return value


def sha256(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_memory(entry: str, built: Arrays, failure: OSError | None) -> Arrays:
    _warn_once(cache_dir(), failure)
    for array in built.values():
        array.flags.writeable = False
    _unwritten[entry] = built
    return built


def _read(place: Path) -> Arrays | None:
    """The entry as memory maps, or None where it is absent or damaged."""
    try:
        digests: dict[str, str] = json.loads((place / _DIGESTS).read_bytes())
        stats = json.loads((place / _STATS).read_bytes()) if (place / _STATS).exists() else {}
        for name, expected in digests.items():
            if stats.get(name) != _stat(place / name) and sha256(place / name) != expected:
                return None
        return {name.removesuffix(".npy"): np.load(place / name, mmap_mode="r", allow_pickle=False) for name in digests}
    except (OSError, ValueError, AttributeError):  # absent; not JSON, or not an array; JSON, but not an object
        return None


def _write(place: Path, built: Arrays) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(
            dir=place.parent, prefix=f".{place.name}-", ignore_cleanup_errors=True
        ) as workplace,
        alone(Path(workplace), FileExistsError(), lenient=True),
    ):
        draft, damaged = Path(workplace, "draft"), Path(workplace, "damaged")
        draft.mkdir()
        digests = {}
        for name, array in built.items():
            file = draft / f"{name}.npy"
            np.save(file, array, allow_pickle=False)
            digests[file.name] = sha256(file)
        (draft / _DIGESTS).write_text(json.dumps(digests, indent=1))
        if _read(place) is None:  # a folder can be moved onto nothing only
            with suppress(FileNotFoundError):
                place.replace(damaged)
            draft.replace(place)
    for left in place.parent.glob(f".{place.name}-*"):  # by writers that were killed; who lives is alone in its own
        with suppress(OSError), alone(left, FileExistsError()):
            shutil.rmtree(left)


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _stream(place: Path, shapes: Mapping[str, tuple[int, ...]], items: int, convert: Callable[[int], Rows]) -> None:
    """Put the entry at ``place``, going on from its draft where there is one."""
    draft = place.with_name(f".{place.name}.draft")
    with _locked(draft):
        if _read(place) is not None:  # another process was faster
            shutil.rmtree(draft)
            return
        needed = sum(map(math.prod, shapes.values())) - sum(512 * path.stat().st_blocks for path in draft.iterdir())
        if needed > shutil.disk_usage(draft).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            _fill(draft, shapes, items, convert)
        except DataError:  # of a file that must be replaced, which makes another entry
            shutil.rmtree(draft)
            raise
        files = [draft / f"{name}.npy" for name in shapes]
        (draft / _STATS).write_text(json.dumps({path.name: _stat(path) for path in files}))
        (draft / _DIGESTS).write_text(json.dumps({path.name: sha256(path) for path in files}, indent=1))
        if place.is_dir() and not place.is_symlink():  # a damaged entry; a folder can be moved onto nothing only
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        (draft / _JOURNAL).unlink()
        draft.replace(place)


def _fill(draft: Path, shapes: Mapping[str, tuple[int, ...]], items: int, convert: Callable[[int], Rows]) -> None:
    """Convert what the draft's journal does not name yet."""
    paths = {name: draft / f"{name}.npy" for name in shapes}
    heads = {name: _head(shape) for name, shape in shapes.items()}
    noted = draft / _JOURNAL
    done = _read_journal(noted, items)
    if done is None or not all(_fits(paths[name], heads[name], math.prod(shapes[name])) for name in shapes):
        done = set()
        noted.unlink(missing_ok=True)  # what it says of such files is not so
        for name, path in paths.items():
            with path.open("wb") as file:
                file.write(heads[name])
                file.truncate(len(heads[name]) + math.prod(shapes[name]))
    with ExitStack() as stack:
        journal = stack.enter_context(noted.open("a", encoding="ascii"))
        files = {name: stack.enter_context(path.open("r+b")) for name, path in paths.items()}
        fresh: list[int] = []

        def make_safe() -> None:
            """First the rows, then the journal that says that they are there."""
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            journal.writelines(f"{item}\n" for item in fresh)
            journal.flush()
            os.fsync(journal.fileno())
            done.update(fresh)
            fresh.clear()
            _log.info("%s: %d of %d converted", draft.name[1:].removesuffix(".draft"), len(done), items)

        safe = time.monotonic()
        try:
            for item in range(items):
                if item in done:
                    continue
                for name, row, pixels in convert(item):
                    files[name].seek(len(heads[name]) + row * pixels.nbytes)
                    files[name].write(np.ascontiguousarray(pixels).data)
                fresh.append(item)
                if time.monotonic() - safe > _SAFE_EVERY:
                    make_safe()
                    safe = time.monotonic()
        finally:
            make_safe()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone with ``folder``, made where it is not there; waits for other processes, and outlives none that dies."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # has just been finished, and moved to its place
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), folder.stat()):
                    break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)


def _head(shape: tuple[int, ...]) -> bytes:
    """What stands before the first row in an .npy file of uint8."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return head.getvalue()


def _fits(path: Path, head: bytes, size: int) -> bool:
    """Whether the file has this head and ``size`` bytes after it."""
    if not path.exists() or path.stat().st_size != len(head) + size:
        return False
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _read_journal(path: Path, items: int) -> set[int] | None:
    """The items of all whole lines, None where that is not what they are; a last line that was torn is cut off."""
    try:
        whole = path.read_bytes().rpartition(b"\n")[0]
        done = {int(line) for line in whole.split()}
    except (FileNotFoundError, ValueError):
        return None
    os.truncate(path, len(whole) + 1 if whole else 0)
    return done if done.issubset(range(items)) else None


def _no_room(folder: Path, size: int) -> DataError:
    return DataError(
        f"converted data takes {size / 2**30:.1f} GiB, but the disk of {folder} has "
        f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB left; set ONENET_BENCH_CACHE to a folder with more room, or "
        "ask for a smaller resolution or fewer images"
    )


def _warn_once(folder: Path, error: OSError | None) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"the cache {folder} cannot be written ({error}), so data is made again by every process; "
            "set ONENET_BENCH_CACHE to a folder that can be",
            stacklevel=3,
        )
