"""Is this the tree that was published? And if not: what is wrong, and what to fetch from where.

A tree is held against the publisher's counts; every image, mask and volume that a split uses is decoded and checked by
the rules of its loader; archives that lie in the tree or in one of the two folders above it are held against their
checksums. What can be wrong is a sentence in ``Verification.problems``, so that all is told and not only the first.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from onenet_bench.data import decathlon, pets, voc
from onenet_bench.data._official import NoTreeError, read_list
from onenet_bench.data._pairs import read_pair
from onenet_bench.data.decathlon import read_volume
from onenet_bench.data.paths import resolved
from onenet_bench.errors import DataError, known

_log = logging.getLogger(__name__)
_TOLD_EVERY = 100  # files between two lines of progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A file that the publisher, or a mirror that others rely on, hands out. ``size`` is rounded."""

    name: str
    url: str
    md5: str
    size: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What is known of a data set: what to call it, its archives, where they unpack, and how much is in them."""

    title: str
    page: str
    archives: tuple[Archive, ...]
    below: tuple[str, ...]  # the folders of the tree, outermost first
    bare: bool  # whether the archives lack the outermost folder
    counts: dict[str, int]


def _decathlon(kind: str, md5: str, size: str, labelled: int, unlabelled: int) -> Published:
    folder = decathlon.KINDS[kind].folder
    name = f"{folder}.tar"
    url = f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{name}"
    return Published(
        title=f"{folder} of the Medical Segmentation Decathlon",
        page="http://medicaldecathlon.com",
        archives=(Archive(name=name, url=url, md5=md5, size=size),),
        below=(folder,),
        bare=False,
        counts={"volumes with labels": labelled, "volumes without": unlabelled},
    )


_PETS = Published(
    title="Oxford-IIIT Pet",
    page="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    archives=(
        Archive(
            name="images.tar.gz",
            url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
            md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
            size="0.8 GB",
        ),
        Archive(
            name="annotations.tar.gz",
            url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
            md5="95a8c909bbe2e81eed6a22bccdf3f68f",
            size="19 MB",
        ),
    ),
    below=pets.BELOW,
    bare=True,
    counts={"images in trainval.txt": 3680, "images in test.txt": 3669, "images in list.txt": 7349},
)

PUBLISHED: dict[str, Published] = {
    "voc": Published(
        title="PASCAL VOC 2012",
        page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        archives=(
            Archive(
                name="VOCtrainval_11-May-2012.tar",
                url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                md5="6cd6e144f989b92b3379bac3b3de84fd",
                size="2.0 GB",
            ),
        ),
        below=voc.BELOW,
        bare=False,
        counts={"images in train.txt": 1464, "images in val.txt": 1449},
    ),
    "pets-full": _PETS,
    "pets-small": _PETS,
    **{
        kind: _decathlon(kind, *facts)
        for kind, facts in {
            "msd-heart": ("06ee59366e1e5124267b774dbd654057", "0.4 GB", 20, 10),
            "msd-brain": ("240a19d752f0d9e9101544901065d872", "7.1 GB", 484, 266),
            "msd-lung": ("8afd997733c7fc0432f71255ba4e52dc", "8.5 GB", 63, 32),
        }.items()
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was found. ``root`` is the tree's own folder, empty where there is none."""

    kind: str
    root: str
    agrees: tuple[str, ...]  # what is as published, a sentence each
    problems: tuple[str, ...]  # what is not
    advice: tuple[str, ...]  # what to fetch, from where and how; empty where nothing is wrong

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"passed": self.passed, **asdict(self)}


def verify(kind: str, path: str) -> Verification:
    """Hold the tree at ``path``, or in it, against what was published as ``kind``; logs how far it has come.

    Raises:
        DataError: ``kind`` is no published data set, ``path`` leads nowhere, or its volumes cannot be read for want of
            nibabel.
    """
    if kind not in PUBLISHED:
        raise DataError(known("published data set", kind, PUBLISHED))
    if kind in decathlon.KINDS:
        decathlon.nibabel_package()
    published = PUBLISHED[kind]
    agrees: list[str] = []
    problems: list[str] = []
    place = asked = resolved(path)
    root = ""
    try:
        contents = _contents(kind, path)
    except NoTreeError as error:
        problems.append(error.law)  # the way out is to ask here
    except DataError as error:
        problems.append(str(error))
    else:
        place, root = contents.root, str(contents.root)
        for what, number in published.counts.items():
            (agrees if contents.counts[what] == number else problems).append(
                f"{contents.counts[what]} of {number} {what}"
            )
        wrong = [*contents.problems, *_look(contents.looks)]
        problems += wrong
        if not wrong:
            agrees.append(f"{len(contents.looks)} images and their masks can be read and fit each other")
    for archive in published.archives:
        for file in _beside(place, archive.name):
            if _md5(file) == archive.md5:
                agrees.append(f"{file} has the publisher's checksum")
            else:
                problems.append(f"{file} has not the publisher's checksum {archive.md5}; fetch it again")
    return Verification(
        kind=kind,
        root=root,
        agrees=tuple(agrees),
        problems=tuple(problems),
        advice=_advice(published, asked) if problems else (),
    )


# -- what is in a tree -----------------------------------------------------------------------------------------------


class _Contents(NamedTuple):
    """How many of what, under the names of ``Published.counts``; what looks at an item and raises DataError."""

    root: Path
    counts: dict[str, int]
    looks: list[Callable[[], object]]
    problems: list[str]


def _contents(kind: str, path: str) -> _Contents:
    if kind in decathlon.KINDS:
        volumes = decathlon.find(kind, path)
        counts = {"volumes with labels": len(volumes.volumes), "volumes without": volumes.unlabelled}
        return _Contents(volumes.place.root, counts, [partial(read_volume, volumes, v) for v in volumes.volumes], [])
    tree = voc.find(path) if kind == "voc" else pets.find(kind, path)
    pairs = (*tree.training, *tree.test)
    counts = {f"images in {tree.lists[0].name}": len(tree.training), f"images in {tree.lists[1].name}": len(tree.test)}
    problems = []
    if kind in pets.CLASSES:
        whole = tree.place.root / "annotations/list.txt"
        listed = {words[0] for words in read_list(whole)}
        counts["images in list.txt"] = len(listed)
        astray = listed ^ {pair.name for pair in pairs}
        if astray:
            problems.append(f"{whole} names what trainval.txt and test.txt do together, but not so {min(astray)}")
    return _Contents(tree.place.root, counts, [partial(read_pair, pair) for pair in pairs], problems)


def _look(looks: list[Callable[[], object]]) -> Iterator[str]:
    """The sentences of those that are not well."""
    for number, look in enumerate(looks, start=1):
        try:
            look()
        except DataError as error:
            yield str(error)
        if number % _TOLD_EVERY == 0 or number == len(looks):
            _log.info("%d of %d looked at", number, len(looks))


# -- archives --------------------------------------------------------------------------------------------------------


def _beside(place: Path, name: str) -> Iterator[Path]:
    """Archives called ``name`` in the tree and in the two folders above it."""
    for folder in (place, *place.resolve().parents[:2]):
        if (folder / name).is_file():
            yield folder / name


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _advice(published: Published, path: Path) -> tuple[str, ...]:
    """What to do to have the tree at ``path``, the tree's own folder or the one to unpack in; a line each."""
    for depth in range(len(published.below), 0, -1):
        if path.parts[-depth:] == published.below[:depth]:
            path = path.parents[depth - 1]
            break
    folder = path / published.below[0] if published.bare else path
    fetched = (
        line
        for archive in published.archives
        for line in (
            f"fetch:  {archive.url}  ({archive.size}, md5 {archive.md5})",
            f"unpack: tar -xf {archive.name} -C {folder}",
        )
    )
    return (f"{published.title} is described at {published.page}", f"make:   mkdir -p {folder}", *fetched)
