"""The file of a page: where it may be written, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from onenet_bench.errors import OnenetBenchError
from onenet_bench.files import whole


def check_html(out: Path) -> None:
    """Raise OnenetBenchError where no page can be at ``out``, which can be asked before what takes long.

    It ends in .html, for it may be somebody's ledger, space or net; it is no folder, and lies under no file.
    """
    if out.suffix != ".html":
        raise OnenetBenchError(
            f"a page's file ends in .html, but got {out}; name it {(out.stem.strip('.') or 'page') + '.html'}"
        )
    if os.path.isdir(out):
        raise OnenetBenchError(f"a page's file must be writable, but {out} is not: it is a folder; name another")
    above = next((folder for folder in out.parents if os.path.exists(folder)), None)
    if above and not os.path.isdir(above):
        raise OnenetBenchError(f"a page's file must be writable, but {out} is not: {above} is no folder; name another")


def write_html(out: Path, text: str) -> Path:
    """Put ``text`` in the place of ``out``, whatever happens meanwhile, and return ``out``; folders are made.

    Raises OnenetBenchError where that cannot be done, or ``check_html`` does; what stood there still stands.
    """
    check_html(out)
    try:
        with whole(out) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OnenetBenchError(f"a page's file must be writable, but {out} is not: {error.strerror}") from error
    return out
