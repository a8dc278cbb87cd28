"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from onenet_bench.errors import OnenetBenchError


def write_whole(out: Path, text: str) -> Path:
    """Put ``text`` in the place of ``out``, whatever happens meanwhile, and return ``out``; folders are made.

    Raises OnenetBenchError where that cannot be done, or ``out`` does not end in .html; what stood there still stands.
    """
    if out.suffix != ".html":  # it may be somebody's ledger, space or net
        raise OnenetBenchError(f"a page's file ends in .html, but got {out}; name it {out.with_suffix('.html').name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o644)
            os.replace(name, out)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise OnenetBenchError(f"a page's file must be writable, but {out} is not: {error.strerror}") from error
    return out
