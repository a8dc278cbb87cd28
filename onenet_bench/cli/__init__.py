"""The command line. Heavy floors are imported inside the commands, so that help comes at once."""

from __future__ import annotations

import sys

from onenet_bench.cli import counting, data, deploying, searching, tabulating, timing, training, using  # noqa: F401  each adds its commands
from onenet_bench.cli.options import app
from onenet_bench.errors import OnenetBenchError


def main() -> None:
    """The entry point: an error that a user can cause is one sentence and exit code 2."""
    try:
        app()
    except OnenetBenchError as error:
        print(f"onenet-bench: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"onenet-bench: this takes more memory than there is ({error}); ask for a smaller resolution, batch or "
              "data set", file=sys.stderr)  # fmt: skip
        sys.exit(2)
