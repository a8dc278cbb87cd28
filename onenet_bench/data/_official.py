"""What the published data sets share: the form of their names, where their trees lie, the lists in them.

A name is ``KIND:PATH``, or with knobs ``KIND:PATH?KNOB,KNOB``. PATH is the tree's own folder, as its archive unpacks,
or the folder that it was unpacked in.

``?paper-classes`` gives nets as many outputs as the paper's configuration does (``PAPER_CLASSES``): the classes that
the data does not have are named ``(paper) unused 2`` and so on, and no pixel is of them. For all kinds but Heart,
which has two classes and four outputs there, that is what the data has anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onenet_bench.data.paths import expanded
from onenet_bench.errors import DataError, known

PAPER_CLASSES = {"voc": 21, "pets-full": 38, "pets-small": 3, "msd-heart": 4, "msd-brain": 4, "msd-lung": 2}
"""How many outputs the paper's configuration has for each kind of data."""


class NoTreeError(DataError):
    """There is no tree where it was looked for: ``law`` is the sentence without its way out."""

    def __init__(self, law: str, way_out: str) -> None:
        super().__init__(f"{law}; {way_out}")
        self.law = law


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A tree on disk, and the knobs of the name that led there."""

    kind: str
    root: Path
    knobs: frozenset[str]

    def class_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The classes of the data and, with ``?paper-classes``, those that only the paper's configuration has."""
        wanted = PAPER_CLASSES[self.kind] if "paper-classes" in self.knobs else 0
        return (*names, *(f"(paper) unused {index}" for index in range(len(names), wanted)))


def locate(kind: str, where: str, *, knobs: tuple[str, ...], below: tuple[str, ...], mark: str) -> Place:
    """The tree that ``where``, what stands after the colon, names.

    ``below`` are the folders, outermost first, that the archive unpacks into; ``mark`` is a file that each such tree
    has. Raises DataError for an unknown knob and where there is no tree.
    """
    path, _, said = where.rpartition("?") if "?" in where else (where, "", "")
    chosen = frozenset(filter(None, said.split(",")))
    for knob in sorted(chosen):
        if knob not in knobs:
            raise DataError(known(f"knob of {kind}", knob, knobs))
    if not path:
        raise DataError(f"{kind} needs the path of its tree; write {kind}:PATH")
    root = expanded(path)
    for depth in range(len(below), -1, -1):
        candidate = root.joinpath(*below[depth:])
        if (candidate / mark).is_file():
            return Place(kind=kind, root=candidate, knobs=chosen)
    raise NoTreeError(
        f"{kind} needs a tree with {mark} in it, but {root} holds none, nor {'/'.join(below)} with one",
        f"'onenet-bench data verify {kind} {path}' says what to fetch",
    )


def read_list(path: Path) -> list[list[str]]:
    """The words of every line, without empty lines and those that begin with ``#``. Raises DataError where none is."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"a list of images must be readable text, but {path} is not: {error}") from error
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise DataError(f"a list of images names at least one, but {path} names none; take it from the archive again")
    return lines
