"""The exceptions of this package.

::

    OnenetBenchError          every error a user can cause; the command line prints it and exits with 2
    ├── SpecError             a network that cannot exist
    ├── SpaceError            a search space that cannot be read, or that does not hold what was asked for
    ├── DataError             images, masks or splits that cannot be used; names the file
    ├── RecipeError           a way of training that cannot work
    ├── LedgerError           a run's book that cannot be read or written
    ├── BudgetError           a budget or a lock file that cannot be read
    └── MeasureError          a measurement that cannot be made as asked, or not on this machine

A message states the law, the value that broke it, and a way out, in one sentence.
"""

from collections.abc import Iterable


class OnenetBenchError(Exception):
    """Every error a user can cause."""


class SpecError(OnenetBenchError, ValueError):
    """A network that cannot exist."""


class SpaceError(OnenetBenchError, ValueError):
    """A search space that cannot be read, or that does not hold what was asked for."""


class DataError(OnenetBenchError, ValueError):
    """Images, masks or splits that cannot be used; the message names the file."""


class RecipeError(OnenetBenchError, ValueError):
    """A way of training that cannot work."""


class LedgerError(OnenetBenchError, ValueError):
    """A run's book that cannot be read or written."""


class BudgetError(OnenetBenchError, ValueError):
    """A budget or a lock file that cannot be read."""


class MeasureError(OnenetBenchError, ValueError):
    """A measurement that cannot be made as asked, or not on this machine."""


def known(what: str, name: object, names: Iterable[str]) -> str:
    """The sentence for an unknown key of a table: ``unknown block kind 'x'; known: a, b, c``."""
    return f"unknown {what} {str(name)!r}; known: {', '.join(sorted(names))}"


def is_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: Python's, numpy's, or torch's, which is a RuntimeError."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )
