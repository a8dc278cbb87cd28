"""Entries too large for the memory: made item by item, gone on with after any end, and seen whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from onenet_bench.data import _cache
from onenet_bench.errors import DataError

SHAPES = {"images": (20, 2, 3), "masks": (20,)}
ITEMS = 10  # of two rows each


def _convert(item: int) -> _cache.Rows:
    for row in (item, 19 - item):  # not side by side
        yield "images", row, np.full((2, 3), row + 1, np.uint8)
        yield "masks", row, np.array(100 + row, np.uint8)


class _Counted:
    """Converts, and counts; ends with ``error`` before item ``last``."""

    def __init__(self, last: int = ITEMS, error: BaseException | None = None) -> None:
        self.items: list[int] = []
        self.last, self.error = last, error

    def __call__(self, item: int) -> _cache.Rows:
        if item == self.last and self.error:
            yield from list(_convert(item))[:1]  # half an item
            raise self.error
        self.items.append(item)
        yield from _convert(item)


def _whole(found: _cache.Arrays) -> bool:
    rows = np.arange(20)
    return np.array_equal(found["images"][:, 1, 2], rows + 1) and np.array_equal(found["masks"], rows + 100)


def test_is_made_once_and_then_mapped(cache: Path) -> None:
    counted = _Counted()
    found = _cache.streamed("set", SHAPES, ITEMS, counted)
    assert _whole(found)
    assert isinstance(found["images"], np.memmap)
    assert not found["images"].flags.writeable
    assert found["images"].shape == (20, 2, 3)
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, counted))
    assert counted.items == list(range(ITEMS))
    assert [path.name for path in cache.iterdir()] == ["set"]
    assert {path.name for path in (cache / "set").iterdir()} == {"images.npy", "masks.npy", "sha256.json", "stat.json"}


def test_an_empty_split_is_an_entry_too(cache: Path) -> None:
    found = _cache.streamed("set", {"images": (0, 3, 4, 4), "masks": (0, 4, 4)}, 0, _Counted())
    assert found["images"].shape == (0, 3, 4, 4)
    assert (cache / "set").is_dir()


def test_an_interrupted_conversion_is_gone_on_with(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(6, KeyboardInterrupt()))
    assert [path.name for path in cache.iterdir()] == [".set.draft"]
    rest = _Counted()
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, rest))
    assert rest.items == [6, 7, 8, 9]
    assert [path.name for path in cache.iterdir()] == ["set"]


def _die_at(item: int) -> _cache.Rows:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return _convert(item)


def test_a_killed_conversion_is_gone_on_with(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "_SAFE_EVERY", -1.0)
    process = multiprocessing.get_context("fork").Process(target=_cache.streamed, args=("set", SHAPES, ITEMS, _die_at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in cache.iterdir()] == [".set.draft"]
    rest = _Counted()
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, rest))
    assert rest.items == [7, 8, 9]


def test_a_conversion_killed_at_its_end_leaves_a_draft_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cache.streamed("set", SHAPES, ITEMS, _convert)
    (cache / "set/images.npy").write_bytes(b"damaged")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        killed = multiprocessing.get_context("fork").Process(
            target=_cache.streamed, args=("set", SHAPES, ITEMS, _convert)
        )
        killed.start()
        killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, _convert))
    assert [path.name for path in cache.iterdir()] == ["set"]


@pytest.mark.parametrize("spoil", [Path.touch, Path.mkdir, lambda path: path.symlink_to(path.parent)])
def test_what_stands_in_the_place_of_an_entry_goes(spoil: Callable[[Path], None], cache: Path) -> None:
    cache.mkdir()
    spoil(cache / "set")
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, _convert))
    assert [path.name for path in cache.iterdir()] == ["set"]


def test_a_torn_line_of_the_journal_is_an_item_to_do(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(3, KeyboardInterrupt()))
    journal = cache / ".set.draft/done.txt"
    assert journal.read_text() == "0\n1\n2\n"
    journal.write_text("0\n1")
    with pytest.raises(KeyboardInterrupt):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(2, KeyboardInterrupt()))
    assert journal.read_text() == "0\n1\n"
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, _Counted()))


def test_a_draft_that_lost_a_file_starts_again(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(3, KeyboardInterrupt()))
    (cache / ".set.draft/masks.npy").unlink()
    again = _Counted()
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, again))
    assert again.items == list(range(ITEMS))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 30)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _other_shape(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(20, 2, 3)", b"(20, 3, 2)"))


def _other_words(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize("damage", [_cut, _empty, _other_shape, _other_words])
def test_a_draft_whose_file_is_damaged_starts_again(damage: Callable[[Path], None], cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(3, KeyboardInterrupt()))
    damage(cache / ".set.draft/images.npy")
    again = _Counted()
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, again))
    assert again.items == list(range(ITEMS))


@pytest.mark.parametrize("journal", [b"0\na\n1\n", b"0\n\xff\n", b"\0\0\n", b"0\n10\n"])
def test_a_draft_whose_journal_is_damaged_starts_again(journal: bytes, cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(3, KeyboardInterrupt()))
    (cache / ".set.draft/done.txt").write_bytes(journal)
    again = _Counted()
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, again))
    assert again.items == list(range(ITEMS))


def test_bad_data_leaves_nothing(cache: Path) -> None:
    with pytest.raises(DataError, match="a broken file"):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(3, DataError("a broken file")))
    assert not list(cache.iterdir())


def _make(seen: Path) -> bool:
    def slowly(item: int) -> _cache.Rows:
        time.sleep(0.01)
        with seen.open("a") as file:
            file.write(f"{item}\n")
        yield from _convert(item)

    return _whole(_cache.streamed("set", SHAPES, ITEMS, slowly))


def test_of_processes_that_need_one_entry_at_once_one_makes_it(cache: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(pool.map(_make, [tmp_path / "seen"] * 8, chunksize=1))
    assert (tmp_path / "seen").read_text().split() == list(map(str, range(ITEMS)))
    assert [path.name for path in cache.iterdir()] == ["set"]


def test_a_damaged_entry_is_made_again(cache: Path) -> None:
    _cache.streamed("set", SHAPES, ITEMS, _convert)
    path = cache / "set/images.npy"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    again = _Counted()
    assert _whole(_cache.streamed("set", SHAPES, ITEMS, again))
    assert again.items == list(range(ITEMS))
    assert [path.name for path in cache.iterdir()] == ["set"]


def test_is_hashed_where_its_times_are_others_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    sha256 = _cache.sha256

    def hashing(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(_cache, "sha256", hashing)
    _cache.streamed("set", SHAPES, ITEMS, _convert)
    hashed.clear()
    _cache.streamed("set", SHAPES, ITEMS, _convert)
    assert hashed == []
    shutil.copytree(cache / "set", cache / "copy", copy_function=shutil.copyfile)
    os.utime(cache / "copy/masks.npy", (1, 1))
    unasked = _Counted()
    assert _whole(_cache.streamed("copy", SHAPES, ITEMS, unasked))
    assert "masks.npy" in hashed
    assert unasked.items == []


def test_a_full_disk_is_said_before_anything_is_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    counted = _Counted()
    with pytest.raises(DataError, match=r"takes 0\.0 GiB, but the disk of .*cache has 0\.0 GiB left; set ONENET_BENCH"):
        _cache.streamed("set", SHAPES, ITEMS, counted)
    assert counted.items == []
    assert not (cache / "set").exists()


def test_a_disk_that_fills_up_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="set ONENET_BENCH_CACHE"):
        _cache.streamed("set", SHAPES, ITEMS, _Counted(5, OSError(28, "No space left on device")))


def test_without_a_cache_data_stays_in_memory_and_one_warning_says_so(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be written"):
        first = _cache.streamed("set", SHAPES, ITEMS, _convert)
    assert _whole(first)
    assert not first["images"].flags.writeable
    assert _cache.streamed("set", SHAPES, ITEMS, _convert) is first


# -- notes -----------------------------------------------------------------------------------------------------------


def _old(path: Path, text: str) -> Path:
    path.write_text(text)
    os.utime(path, (1e9, 1e9 + len(text)))
    return path


def test_a_file_is_looked_at_once(cache: Path, tmp_path: Path) -> None:
    looked: list[str] = []
    one = _old(tmp_path / "one", "1")

    def look(path: Path) -> dict[str, str]:
        looked.append(path.name)
        return {"is": path.read_text()}

    def notes() -> _cache.Notes:
        return _cache.Notes("topic", tmp_path, look)

    for _ in range(2):
        assert notes()[one] == {"is": "1"}
    assert looked == ["one"]
    _old(one, "22")
    assert notes()[one] == {"is": "22"}
    assert looked == ["one", "one"]
    assert _cache.Notes("another", tmp_path, lambda _: 5)[one] == 5
    with next(cache.glob("notes-topic-*")).open("a") as file:
        file.write('["torn", 1')
    assert notes()[one] == {"is": "22"}
    assert len(looked) == 2


def test_a_file_that_has_just_changed_is_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    notes = _cache.Notes("topic", tmp_path, lambda path: path.read_text())
    assert notes[tmp_path / "one"] == "1"
    (tmp_path / "one").write_text("2")  # as large, and perhaps within the same tick of the clock
    assert notes[tmp_path / "one"] == "2"
