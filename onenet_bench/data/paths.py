"""Where a path that somebody wrote leads."""

from __future__ import annotations

from pathlib import Path

from onenet_bench.errors import DataError


def expanded(path: str, way_out: str = "write the path out") -> Path:
    """``path`` with the folder that its ``~`` stands for. Raises DataError where that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"~ stands for a home, but that of {path} is not known; {way_out}") from error


def resolved(path: str) -> Path:
    """``path`` expanded, absolute and without links. Raises DataError where links lead in a circle."""
    try:
        return expanded(path).resolve()
    except RuntimeError as error:
        raise DataError(
            f"links lead to a file or folder, but those of {path} in a circle; mend or remove them"
        ) from error
