"""The command line. Heavy floors are imported inside the commands, so that help comes at once."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import NoReturn

from onenet_bench.cli import counting, data, deploying, searching, tabulating, timing, training, using  # noqa: F401  each adds its commands
from onenet_bench.cli.options import app
from onenet_bench.errors import OnenetBenchError, is_of_memory


def main() -> None:
    """The entry point: an error that a user can cause is one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        try:
            app()
        finally:
            _flush()
    except OnenetBenchError as error:
        _end(str(error))
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _end(
                f"what is written must find room, but standard output or a file has none: {error.strerror}; "
                "make room, or write elsewhere"
            )
        if error.filename is None:
            raise
        _end(f"a file or folder must be usable, but {error.filename} is not: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        said = " ".join(str(error).split())[:300]
        _end(f"this takes more memory than there is ({said}); ask for a smaller resolution, batch or data set")


def _flush() -> None:
    """Write out what was printed while a failure can still be told. What cannot be written is dropped: the interpreter
    would try it again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whose reader has seen enough
            raise


def _end(sentence: str) -> NoReturn:
    print(f"onenet-bench: {sentence}", file=sys.stderr)
    sys.exit(2)
