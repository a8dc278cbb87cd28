"""``onenet-bench train`` as its users meet it."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from onenet_bench import cli, files
from onenet_bench.errors import OnenetBenchError
from tests.test_cli import COMMAND

NET = """
classes = 2
heads = "all"
stem = {channels = 4, repeat = 1}
encoder = [{channels = 8}, {channels = 16}]
decoder = [{channels = 8}, {channels = 4}]
"""
OPTIONS = [
    "net.toml", "--resolution", "32", "--epochs", "4", "--recipe", "paper", "--optimiser", "adamw", "--schedule",
    "cosine", "--learning-rate", "0.01", "--augmentation", "flips+scale", "--deep-supervision", "0.5", "--keep", "best",
    "--patience", "3", "--log", "csv", "--threads", "1",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a net in it."""
    (tmp_path / "net.toml").write_text(NET)
    (tmp_path / "top.toml").write_text(NET.replace('"all"', '"top"'))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, bytes]:
    with safe_open(folder / "weights" / "0000.safetensors", framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def train(folder: Path, name: str, *words: str) -> Any:
    """The record that a training in this process left in ``name``."""
    cli.app(["train", *words, "--json"], standalone_mode=False)
    return json.loads((folder / name / "record.json").read_text())


def test_killed_in_the_middle_and_resumed_it_ends_the_same_to_the_bit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(folder, "whole", *OPTIONS, "--out", "whole")
    assert whole["recipe"] == {
        "epochs": 4, "steps": 0, "batch": 32, "optimiser": "adamw", "learning_rate": 0.01, "weight_decay": 0.0,
        "schedule": "cosine", "background_weight": 0.25, "precision": "float32", "augmentation": "flips+scale",
        "seed": 0, "deep_supervision": 0.5, "patience": 3, "keep": "best",
    }  # fmt: skip
    with subprocess.Popen(
        [*COMMAND, "train", *OPTIONS, "--out", "parts"], cwd=folder, stderr=subprocess.PIPE, text=True
    ) as training:
        assert training.stderr is not None
        while not (line := training.stderr.readline()).startswith("epoch 2 "):
            assert line, "the training ended by itself"
        os.kill(training.pid, signal.SIGKILL)
    assert training.returncode == -signal.SIGKILL
    assert not (folder / "parts" / "record.json").exists()
    capsys.readouterr()
    parts = train(folder, "parts", "--resume", "parts", "--threads", "1", "--log", "csv")
    assert re.match("epoch [23] ", capsys.readouterr().err)
    assert weights(folder / "parts") == weights(folder / "whole")
    assert parts["scores"] == whole["scores"]
    logs = [(folder / name / "log.csv").read_text().splitlines() for name in ("whole", "parts")]
    without_seconds = [[line.split(",")[:3] + line.split(",")[4:] for line in log] for log in logs]
    assert without_seconds[0] == without_seconds[1]
    assert len(logs[0]) == 5


def test_ctrl_c_says_how_to_go_on(folder: Path) -> None:
    words = [*OPTIONS[:3], "--epochs", "500", "--threads", "1", "--log", "csv", "--out", "my net"]
    with subprocess.Popen(
        [*COMMAND, "train", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as training:
        assert training.stderr is not None
        assert training.stderr.readline().startswith("epoch 1 ")
        os.kill(training.pid, signal.SIGINT)
        out, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; go on with: onenet-bench train --resume 'my net' --threads 1 --log csv"
    assert (folder / "my net" / "state.safetensors").exists()


WRONG = {
    "augmentation": (
        ["net.toml", "--augmentation", "blur"],
        "joined by '\\+', but got 'blur'; known: flips, rotations",
    ),
    "recipe": (["net.toml", "--recipe", "mine"], "unknown recipe 'mine'; known: default, paper"),
    "batch": (
        ["net.toml", "--batch", "9" * 20],
        "a batch holds 1 to 2,147,483,647 images, but got 99999999999999999999",
    ),
    "log": (["net.toml", "--log", "xml"], "unknown log 'xml'; known: csv, tensorboard"),
    "one head": (["top.toml", "--deep-supervision", "1"], "heads at two or more decoder levels, but the net has one"),
    "no net": ([], "train needs a net to begin with, or --resume FOLDER to go on"),
    "no state": (["--resume", "nowhere"], "a training's state is .* nowhere/state.safetensors is not"),
    "resume and more": (["--resume", "nowhere", "--epochs", "5"], "stays what it was, but got 'epochs' too; leave"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_and_nothing_is_left_behind(case: str, folder: Path) -> None:
    words, sentence = WRONG[case]
    with pytest.raises(OnenetBenchError, match=sentence):
        cli.app(["train", *words], standalone_mode=False)
    assert sorted(path.name for path in folder.iterdir()) == ["net.toml", "top.toml"]


def test_a_training_of_another_version_is_not_resumed(folder: Path) -> None:
    train(folder, "mine", *OPTIONS, "--out", "mine")
    state = folder / "mine" / "state.safetensors"
    was = state.read_bytes()
    for old, new in ((b'\\"patience\\"', b'\\"patients\\"'), (b'\\"class_names\\"', b'\\"class_nouns\\"')):
        assert was.count(old) == 1
        state.write_bytes(was.replace(old, new).replace(b'"checksum"', b'"checkrum"'))
        with pytest.raises(
            OnenetBenchError, match=r"as it was asked to, but of mine that cannot be read .*; begin anew"
        ):
            cli.app(["train", "--resume", "mine"], standalone_mode=False)


def test_two_trainings_in_one_folder_are_one_too_many(folder: Path) -> None:
    """Whether one goes on with the other's or begins its own, and whoever came first is left alone."""
    words = [*OPTIONS[:3], "--epochs", "500", "--threads", "1", "--out", "mine"]
    with subprocess.Popen([*COMMAND, "train", *words], cwd=folder, stderr=subprocess.PIPE, text=True) as training:
        assert training.stderr is not None
        assert training.stderr.readline().startswith("epoch 1 ")
        for again in (words, ["--resume", "mine", "--threads", "1"]):
            done = subprocess.run([*COMMAND, "train", *again], cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 2, done.stderr
            assert re.fullmatch("onenet-bench: .* another one trains in mine; wait for it, or .*\n", done.stderr)
        assert training.poll() is None
        os.kill(training.pid, signal.SIGINT)
        training.communicate(timeout=60)
    assert training.returncode == 130
    with files.alone(folder / "mine", AssertionError("it is held")):  # is free again
        pass


def test_a_batch_too_small_for_its_norms_is_a_failed_training_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = '{kind = "conv2d", channels = 4}'
    deep = ("classes = 2", "stem = {channels = 4, repeat = 1}", *(f"{side} = [{', '.join([level] * 5)}]"
            for side in ("encoder", "decoder")))  # fmt: skip
    (folder / "deep.toml").write_text("\n".join(deep))  # down to a single pixel
    words = ["deep.toml", "--resolution", "32", "--batch", "1", "--epochs", "1", "--out", "failed"]
    assert cli.app(["train", *words], standalone_mode=False) == 1
    said = capsys.readouterr()
    assert "at least 2 values per channel, but got 1; add images" in said.out + said.err
