"""Files that are written whole or not at all, and folders that one process has to itself."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from onenet_bench.files import alone, whole


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "scan.nii.gz"
    with whole(path, durable=durable) as draft:
        draft.write_text("one")
        assert draft.name.endswith(path.name)  # writers go by the suffix
        assert draft.name.startswith(".")
        assert not path.exists()
    with whole(path, durable=durable) as draft:
        draft.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("death", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there(tmp_path: Path, death: BaseException) -> None:
    path = tmp_path / "card.json"
    path.write_text("earlier")

    def die() -> None:
        with whole(path) as draft:
            draft.write_text("half of i")
            raise death

    with pytest.raises(type(death)):
        die()
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError), whole(tmp_path / "out") as draft:
        draft.write_text("content")
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_cannot_be_locked_is_held_by_nobody_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with alone(tmp_path, KeyError("taken"), lenient=True):
        pass
    with pytest.raises(KeyError, match="taken"), alone(tmp_path, KeyError("taken")):
        pass


def test_a_held_folder_is_refused(tmp_path: Path) -> None:
    with (
        alone(tmp_path, AssertionError()),
        pytest.raises(KeyError, match="taken"),
        alone(tmp_path, KeyError("taken"), lenient=True),
    ):
        pass
