"""``data verify`` and ``data prepare``: what is wrong with a tree, what to fetch, and what is left on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onenet_bench import cli, data
from onenet_bench.cli.options import absolute
from onenet_bench.data import decathlon, tiny, verify
from onenet_bench.data._official import PAPER_CLASSES
from onenet_bench.errors import DataError

COUNTS = {  # of the tiny trees
    "voc": {"images in train.txt": 20, "images in val.txt": 6},
    "pets-full": {"images in trainval.txt": 37, "images in test.txt": 37, "images in list.txt": 74},
    "pets-small": {"images in trainval.txt": 37, "images in test.txt": 37, "images in list.txt": 74},
    "msd-heart": {"volumes with labels": 6, "volumes without": 2},
    "msd-brain": {"volumes with labels": 6, "volumes without": 2},
    "msd-lung": {"volumes with labels": 6, "volumes without": 2},
}
ITEMS = {"voc": 26, "pets-full": 74, "pets-small": 74, "msd-heart": 6, "msd-brain": 6, "msd-lung": 6}


@pytest.fixture
def as_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published is the tiny trees."""
    tiny_ones = {kind: replace(facts, counts=COUNTS[kind]) for kind, facts in verify.PUBLISHED.items()}
    monkeypatch.setattr(verify, "PUBLISHED", tiny_ones)


def _grown(kind: str, folder: Path) -> Path:
    return Path(tiny.grow(kind, folder).partition(":")[2])


def _call(*words: str) -> int:
    """The exit code of the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["onenet-bench", "data", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


def test_the_tables_name_the_same_sets() -> None:
    assert verify.PUBLISHED.keys() == tiny.TREES.keys() == PAPER_CLASSES.keys()
    assert verify.PUBLISHED.keys() <= data.SOURCES.keys()


@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_a_whole_tree_passes(kind: str, as_tiny: None, tmp_path: Path) -> None:
    root = _grown(kind, tmp_path)
    for path in (root, tmp_path):
        found = verify.verify(kind, str(path))
        assert found.passed, found.problems
        assert found.root == str(root)
        assert f"{ITEMS[kind]} images and their masks can be read and fit each other" in found.agrees
        assert len(found.agrees) == len(COUNTS[kind]) + 1
        assert found.advice == ()


@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_a_part_of_the_published_tree_does_not(kind: str, tmp_path: Path) -> None:
    found = verify.verify(kind, str(_grown(kind, tmp_path)))
    expected = [
        f"{COUNTS[kind][what]} of {published} {what}" for what, published in verify.PUBLISHED[kind].counts.items()
    ]
    assert list(found.problems) == expected
    assert found.advice


def _circle(folder: Path) -> Path:
    (folder / "one").symlink_to(folder / "two")
    (folder / "two").symlink_to(folder / "one")
    return folder / "one"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="such a path is then one where nothing is")
def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = _circle(tmp_path)
    for ask in (lambda: verify.verify("voc", str(path)), lambda: absolute(f"folder:{path / 'x'}")):
        with pytest.raises(DataError, match=r"links lead to a file or folder, but those of .*/one.* in a circle; mend"):
            ask()


def test_every_broken_file_is_named(as_tiny: None, tmp_path: Path) -> None:
    root = _grown("pets-small", tmp_path)
    (root / "images/pug_1.jpg").write_bytes(b"broken")
    (root / "images/boxer_2.jpg").unlink()
    trimap = root / "annotations/trimaps/pug_2.png"
    trimap.write_bytes(trimap.read_bytes()[:60])
    problems = verify.verify("pets-small", str(root)).problems
    assert len(problems) == 3
    for name in ("images/pug_1.jpg cannot be read", "images/boxer_2.jpg is a part", "trimaps/pug_2.png cannot be read"):
        assert sum(name in problem for problem in problems) == 1
    lines = (root / "annotations/list.txt").read_text().splitlines(keepends=True)
    (root / "annotations/list.txt").write_text("".join(lines[:-1]))
    problems = verify.verify("pets-small", str(root)).problems
    assert "73 of 74 images in list.txt" in problems
    assert any("list.txt names what trainval.txt and test.txt do together, but not so yorkshire" in p for p in problems)


def test_every_broken_volume_is_named(as_tiny: None, tmp_path: Path) -> None:
    root = _grown("msd-lung", tmp_path)
    for name in ("imagesTr/lung_002.nii.gz", "labelsTr/lung_005.nii.gz"):
        (root / name).write_bytes((root / name).read_bytes()[:-200])
    problems = verify.verify("msd-lung", str(root)).problems
    assert len(problems) == 2
    assert "imagesTr/lung_002.nii.gz cannot be read" in problems[0]
    assert "labelsTr/lung_005.nii.gz cannot be read" in problems[1]


def test_archives_that_lie_beside_are_held_against_their_checksums(
    as_tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _grown("voc", tmp_path)
    archive = tmp_path / "VOCtrainval_11-May-2012.tar"
    archive.write_bytes(b"cut off")
    (problem,) = verify.verify("voc", str(root)).problems
    assert "VOCtrainval_11-May-2012.tar has not the publisher's checksum 6cd6e144f989b92b3379bac3b3de84fd" in problem
    facts = verify.PUBLISHED["voc"]
    known = replace(facts.archives[0], md5=hashlib.md5(b"cut off").hexdigest())
    monkeypatch.setitem(verify.PUBLISHED, "voc", replace(facts, archives=(known,)))
    found = verify.verify("voc", str(root))
    assert found.passed
    assert any("has the publisher's checksum" in line for line in found.agrees)


@pytest.mark.parametrize(
    ("kind", "below", "unpacked_in"),
    [
        ("voc", "", ""),
        ("voc", "VOCdevkit", ""),
        ("voc", "VOCdevkit/VOC2012", ""),
        ("msd-heart", "Task02_Heart", ""),
        ("pets-full", "", "oxford-iiit-pet"),
        ("pets-full", "oxford-iiit-pet", "oxford-iiit-pet"),
    ],
)
def test_advice_puts_the_tree_where_it_was_looked_for(kind: str, below: str, unpacked_in: str, tmp_path: Path) -> None:
    found = verify.verify(kind, str(tmp_path / below))
    assert not found.passed
    assert found.root == ""
    assert [problem.count("onenet-bench data verify") for problem in found.problems] == [0]  # that was just asked
    archives = verify.PUBLISHED[kind].archives
    assert [line.split()[1] for line in found.advice if line.startswith("fetch")] == [one.url for one in archives]
    assert {line.split()[-1] for line in found.advice if line.startswith(("make", "unpack"))} == {
        str(tmp_path / unpacked_in).rstrip("/")
    }


# -- the command line ------------------------------------------------------------------------------------------------


def test_verify_says_what_it_found_and_ends_accordingly(
    as_tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _grown("msd-heart", tmp_path)
    assert _call("verify", "msd-heart", str(root)) == 0
    said = capsys.readouterr()
    assert "ok     6 of 6 volumes with labels" in said.out
    assert "6 of 6 looked at" in said.err
    (root / "labelsTr/la_002.nii.gz").unlink()
    assert _call("verify", "msd-heart", str(root)) == 1
    said = capsys.readouterr()
    assert "labelsTr/la_002.nii.gz is a part of the data set, but there is no such file" in said.out
    assert "fetch:  https://msd-for-monai.s3-us-west-2.amazonaws.com/Task02_Heart.tar" in said.out
    assert _call("verify", "msd-heart", str(root), "--json") == 1
    stated = json.loads(capsys.readouterr().out)
    assert (stated["passed"], len(stated["problems"])) == (False, 1)
    assert _call("verify", "coco", str(root)) == 2
    assert "unknown published data set 'coco'; known: msd-brain" in capsys.readouterr().err


def test_many_problems_are_counted(as_tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _grown("pets-full", tmp_path)
    for path in (root / "images").iterdir():
        path.unlink()
    assert _call("verify", "pets-full", str(root)) == 1
    assert "wrong  and 54 more; --json has them all" in capsys.readouterr().out


def test_prepare_converts_what_load_then_finds(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tiny.grow("msd-brain", tmp_path)
    assert _call("prepare", name, "--resolution", "32", "--seed", "1") == 0
    said = capsys.readouterr()
    assert "4 of 4 converted" in said.err
    assert f"cache:      {cache}" in said.out

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(decathlon, "read_volume", never)
    splits = data.load(data.open_task(name, resolution=32, seed=1))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 39
    assert _call("prepare", name, "--resolution", "32", "--seed", "1", "--json") == 0
    stated = json.loads(capsys.readouterr().out)
    assert (stated["task"]["train"], stated["task"]["in_channels"]) == (len(splits.train), 4)
    assert _call("prepare", "msd-brain:nowhere") == 2
    assert "msd-brain needs a tree with dataset.json" in capsys.readouterr().err


def test_an_interrupted_prepare_goes_on(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tiny.grow("msd-lung", tmp_path)
    read: Callable[..., object] = decathlon.read_volume
    seen: list[str] = []

    def twice(tree: decathlon.VolumeTree, volume: decathlon.Volume) -> object:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(volume.name)
        return read(tree, volume)

    with monkeypatch.context() as patch:
        patch.setattr(decathlon, "read_volume", twice)
        assert _call("prepare", name, "--resolution", "32") == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    assert [path.suffix for path in cache.iterdir()] == [".draft"]
    assert _call("prepare", name, "--resolution", "32") == 0
    assert not [path for path in cache.iterdir() if path.suffix == ".draft"]
    assert os.listdir(cache)
