"""The command line as its users meet it: a process, its output, its exit code."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onenet_bench import __version__, cli, costs, ledger, space, zoo
from onenet_bench.cli.options import open_task, print_json
from onenet_bench.data import SOURCES

COMMAND = [sys.executable, "-m", "onenet_bench"]
QUICK = ["--resolution", "32", "--epochs", "1", "--space", "encoder_decoder", "--sampler", "random"]


def call(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=cwd, capture_output=True, text=True, check=False)


def answer(*words: str, cwd: Path | None = None) -> Any:
    done = call(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_profile_prints_what_is_counted() -> None:
    said = answer("profile", "onenet_e_4")
    assert said["costs"] == costs.count(zoo.get("onenet_e_4"), 256, batch=16).to_dict()
    table = call("profile", "onenet_e_4", "--layers").stdout
    assert "16,388,216" in table
    assert re.search(r"decoder\.3\.head \(never runs\) +9,220", table)
    assert "on one batch of 16, weights included" in table


def test_the_version_is_the_packages() -> None:
    assert call("--version").stdout == f"onenet-bench {__version__}\n"


def test_spaces_are_listed_with_their_size() -> None:
    assert {"hybrid": 10368, "spatial_kernel": 150}.items() <= {s["name"]: s["size"] for s in answer("spaces")}.items()


def test_kinds_of_data_are_listed_as_they_are_written() -> None:
    written = [row["written"].partition(":")[0].partition("[")[0] for row in answer("data", "kinds")]
    assert written == list(SOURCES)
    assert "folder:PATH" in call("data", "kinds").stdout


WRONG = {
    "unknown net": (["profile", "unet_9"], "unknown net 'unet_9'; known: "),
    "no such file": (["profile", "none.toml"], "must be readable TOML, but none.toml is not"),
    "a side beyond all": (["profile", "unet_4", "--resolution", "1" + "0" * 310], "less than or equal to 65536"),
    "a batch beyond all": (["profile", "unet_4", "--batch", "1" + "0" * 310], "equal to 2147483647"),
    "resolution": (["profile", "unet_4", "--resolution", "100"], "multiple of 16.*but got 100; use 96 or 112"),
    "unknown space": (["sweep", "--space", "depth"], "unknown space 'depth'; known: depth_scale"),
    "unknown data": (["sweep", "--data", "imagenet"], "unknown data kind 'imagenet'; known: .*folder.*synthetic"),
    "nobody's home": (
        ["data", "prepare", "folder:~nosuchuser/x"],
        "stands for a home, but that of ~nosuchuser/x is not",
    ),
    "no such folder": (["sweep", "--data", "folder:nowhere"], "nowhere"),
    "sampler": (["sweep", "--sampler", "gp"], "unknown sampler 'gp'; known: frontier, grid, nsga2, random, tpe"),
    "objectives": (["sweep", "--objectives", "miou"], "at least one score and one cost"),
    "budget": (["sweep", "--budget", "small"], "a budget reads COST <= NUMBER"),
    "epochs": (["sweep", "--epochs", "0"], "at least one epoch or step, but got epochs=0"),
    "rate": (["sweep", "--learning-rate", "inf"], "above 0 and finite, but got inf"),
    "seed": (["sweep", "--seed", "4294967296"], "less than or equal to 4294967295"),
    "no pixels": (["sweep", "--resolution", "0"], "greater than or equal to 1"),
    "pixels": (["sweep", "--resolution", "65537"], "less than or equal to 65536"),
    "pixels to prepare": (
        ["data", "prepare", "synthetic", "--resolution", "1" + "0" * 10],
        "less than or equal to 65536",
    ),
    "no folder": (["sweep", "--out", ""], "a run has a folder of its own, but --out is empty or the current one"),
    "seeds": (["tabulate", "--seeds", "0,4294967296"], "reads numbers up to 4294967295, but got 4294967296"),
    "no page": (["table2", "--html", "."], "ends in .html, but got \\.; name it page.html"),
    "a late page": (
        ["reproduce", "table1", "--smoke", "--html", "p.htm"],
        "ends in .html, but got p.htm; name it p.html",
    ),
    "a page for a net": (["table2", "--html", "net.toml"], "ends in .html, but got net.toml; name it net.html"),
    "both lengths": (["train", "unet_4", "--epochs", "1", "--steps", "2"], "got both: 1 and 2"),
    "threads": (["train", "unet_4", "--threads", "100000"], "less than or equal to 1024"),
    "trials": (["sweep", "--trials", "0"], "greater than or equal to 1"),
    "device": (["sweep", "--device", "tpu"], "unknown device 'tpu'; known: cpu, cuda"),
    "no gpu": (["sweep", "--device", "cuda:97"], "cuda:97 must be there, but torch finds \\d+ GPUs; use --device cpu"),
    "no run": (["report", "latest"], "there is no run in results/runs yet"),
    "unknown run": (["front", "nothing"], "'nothing' is none; runs in results/runs: none yet"),
    "resume nothing": (["sweep", "--resume", "nothing"], "a run is named by its folder"),
    "resume otherwise": (
        ["sweep", "--resume", "nothing", "--fidelity", "off"],
        "stays what it was, but got 'fidelity' too",
    ),
    "precision": (["train", "unet_4", "--precision", "int4"], "unknown precision 'int4'; known: bf16, float32"),
    "train resolution": (["train", "unet_4", "--resolution", "40"], "multiple of 16.*but got 40"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(case: str, tmp_path: Path) -> None:
    words, sentence = WRONG[case]
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left behind"


NOTHING = {
    "no net": ("", "scale = 7", "none of the 2 combinations of mine that were counted makes one; the first: .*got 7"),
    "too dear": ("budget = ['macs <= 9']", "", r"mine has none within macs <= 9; allow more than .* are, macs [\d,]+$"),
}


@pytest.mark.parametrize("command", ["sweep", "sweep --sampler random", "tabulate"])
@pytest.mark.parametrize("case", NOTHING)
def test_a_space_without_a_net_to_train_is_one_sentence_and_leaves_nothing(
    case: str, command: str, tmp_path: Path
) -> None:
    limit, more, sentence = NOTHING[case]
    path = tmp_path / "mine.toml"
    path.write_text(
        f"name = 'mine'\nobjectives = ['miou', 'macs']\n{limit}\n[choices]\nwidth = [4, 8]\n"
        f"[net]\ndepth = 1\nwidth = '$width'\n{more}\n"
    )
    done = call(*command.split(), "--space", "mine.toml", "--resolution", "32", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(sentence, done.stderr.strip()), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_search_that_trained_nothing_says_so(tmp_path: Path) -> None:
    done = call("sweep", *QUICK, "--budget", "peak_training_mib <= 0.001", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "nothing was trained: 300 proposals in a row could not be trained" in done.stderr


def test_what_does_not_fit_into_memory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy() -> None:
        np.empty(2**46)

    monkeypatch.setattr(cli, "app", greedy)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert re.fullmatch(
        r"onenet-bench: this takes more memory than there is \(.*\); ask for .*\n", capsys.readouterr().err
    )


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"scores": {"miou": math.nan, "dice": 0.5}, "values": [math.inf, (1, -math.inf)], "name": "nan"})
    said = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert said == {"scores": {"miou": None, "dice": 0.5}, "values": [None, [1, None]], "name": "nan"}


def test_what_the_system_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied", "/home/someone/run")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "onenet-bench: a file or folder must be usable, but /home/someone/run is not: Permission denied\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--version"], ["profile", "unet_4"]])
def test_output_that_cannot_be_written_is_one_sentence(words: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *words], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "onenet-bench: what is written must find room, but standard output or a file has none: "
        "No space left on device; make room, or write elsewhere\n"
    )


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        [*COMMAND, "--version"], env={**os.environ, "PYTHONUNBUFFERED": ""}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        assert command.stdout is not None
        command.stdout.close()
        assert command.stderr is not None
        assert command.stderr.read() == ""
    assert command.returncode == 0


def test_a_training_or_an_export_without_room_ends_in_one_sentence(tmp_path: Path) -> None:
    words = ["onenet_e_4", "--resolution", "32", "--out", "/proc"]
    for command in (["train", *words, "--steps", "1"], ["export", *words]):
        done = call(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert re.search("must be usable, but /proc/.* is not: ", done.stderr.splitlines()[-1])
        assert "Traceback" not in done.stderr


def test_a_search_whose_trainings_all_fail_says_so(tmp_path: Path) -> None:
    done = call("sweep", *QUICK, "--trials", "2", "--learning-rate", "1e30", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "2 candidates were trained; 2 of the trainings failed" in done.stdout
    assert "every training failed; the report says why" in done.stderr


def test_a_space_asks_for_so_many_images_of_generated_data_alone(tmp_path: Path) -> None:
    reached = space.load("small")
    assert open_task("synthetic", reached, 32).train == reached.task["train"]
    for part, image in (("images", np.full((8, 8), 90, np.uint8)), ("masks", np.eye(8, dtype=np.uint8))):
        (tmp_path / part).mkdir()
        for number in range(5):
            np.save(tmp_path / part / f"{number}.npy", image)
    task = open_task(f"folder:{tmp_path}", reached, None, seed=3)
    assert (task.train, task.validation, task.test, task.resolution, task.seed) == (3, 1, 1, 32, 3)


@pytest.mark.parametrize("words", [["data", "prepare"], ["train", "onenet_e_4", "--data"], ["sweep", "--data"]])
def test_masks_of_which_most_counts_nowhere_are_told(words: list[str], tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for number in range(3):
            np.save(tmp_path / part / f"{number}.npy", np.diag([255] * 7 + [254]).astype(np.uint8))
    (tmp_path / "taken").touch()
    end = [] if "prepare" in words else ["--out", "taken"]  # before anything is trained
    done = call(*words, f"folder:{tmp_path}", "--resolution", "16", *end, cwd=tmp_path)
    assert re.match("onenet-bench: in the masks of .* 255, which counts nowhere, has more pixels", done.stderr)
    assert done.returncode == (2 if end else 0), done.stderr


def test_a_name_is_no_markup(tmp_path: Path) -> None:
    (tmp_path / "a[").mkdir()
    (tmp_path / "a[/b].toml").write_text('classes = 2\nstem = {channels = 4}\nencoder = [{channels = 8}]\n'
                                         'decoder = [{channels = 4, skip = false}]\n')  # fmt: skip
    done = call("profile", "a[/b].toml", "--resolution", "32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a[/b].toml" in done.stdout


def test_without_room_for_its_report_a_sweep_tells_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file")
    done = call("sweep", *QUICK, "--trials", "1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "1 candidate was trained" in done.stdout
    assert "report: none" in done.stdout
    assert re.search("must be writable, but reports/run.html .* onenet-bench report run --out FILE.html", done.stderr)
    assert call("report", "run", "--out", "run/ledger.jsonl", cwd=tmp_path).returncode == 2
    assert len(ledger.records(ledger.read(tmp_path / "run"))) >= 1


def test_a_run_is_not_overwritten_and_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    words = ["sweep", *QUICK, "--trials", "1", "--out", "run"]
    assert call(*words, cwd=tmp_path).returncode == 0
    before = (tmp_path / "run" / ledger.FILE).read_bytes()
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "run already holds a run; use --resume run" in done.stderr
    done = call("train", "unet_4", "--resolution", "32", "--steps", "1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "run holds the run of a search, whose weights stay" in done.stderr
    (tmp_path / "trained" / "weights").mkdir(parents=True)
    done = call(*words[:-1], "trained", cwd=tmp_path)
    assert done.returncode == 2
    assert "trained holds a training, whose weights stay" in done.stderr
    assert (tmp_path / "run" / ledger.FILE).read_bytes() == before
    done = call(*words[:-1], "/proc/run", cwd=tmp_path)
    assert done.returncode == 2
    assert "must be writable, but /proc/run" in done.stderr


def test_ctrl_c_ends_with_a_report_and_resume_goes_on(tmp_path: Path) -> None:
    words = [*COMMAND, "sweep", *QUICK, "--trials", "50", "--out", "run"]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as sweep:
        assert sweep.stderr is not None
        while "complete" not in (line := sweep.stderr.readline()):
            assert line, "the sweep ended by itself"
        (tmp_path / "run" / "samples.npz").unlink()  # as if it had been killed before it wrote them
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: the whole group gets it
        out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, err
    assert "Traceback" not in err
    assert "ended:  interrupted" in out
    assert "go on with: onenet-bench sweep --resume run" in err
    assert (tmp_path / "reports" / "run.html").stat().st_size > 1_000_000
    time.sleep(0.5)
    assert not processes_in(tmp_path), "no worker is left"
    done = sum(r.status == "complete" for r in ledger.records(ledger.read(tmp_path / "run")))
    more = str(done + 3)  # two may have been in flight
    said = answer("sweep", "--resume", "run", "--trials", more, cwd=tmp_path)
    assert said["ended"] == f"{more} candidates were trained"
    assert said["front"] == answer("front", "run", cwd=tmp_path)
    assert set(np.load(tmp_path / "run" / "samples.npz")) == {"images", "masks", "names"}


def test_a_killed_sweep_is_gone_on_with_as_if_nothing_had_been(tmp_path: Path) -> None:
    words = [*COMMAND, "sweep", *QUICK, "--trials", "5", "--sampler", "random"]
    assert subprocess.run([*words, "--out", "whole", "--workers", "1"], cwd=tmp_path, check=False).returncode == 0
    with subprocess.Popen(
        [*words, "--out", "run", "--workers", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as sweep:
        assert sweep.stderr is not None
        while "complete" not in (line := sweep.stderr.readline()):
            assert line, "the sweep ended by itself"
        sweep.kill()
    deadline = time.monotonic() + 60
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_in(tmp_path), "every process ends by itself"
    before = {row.trial: row for row in ledger.records(ledger.read(tmp_path / "run"))}
    assert before
    assert answer("sweep", "--resume", "run", "--workers", "1", cwd=tmp_path)["ended"] == "5 candidates were trained"
    rows, whole = ({row.trial: row for row in ledger.records(ledger.read(tmp_path / run))} for run in ("run", "whole"))
    assert {trial: rows[trial] for trial in before} == before
    assert {t: (r.choices, r.status, r.scores) for t, r in rows.items()} == {
        t: (r.choices, r.status, r.scores) for t, r in whole.items()
    }


def processes_in(folder: Path) -> list[str]:
    """Processes whose working folder is ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append(process.name)
        except OSError:
            continue  # gone, or another user's
    return found


def test_train_leaves_weights_and_a_record(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(
        'classes = 2\nstem = {channels = 4, repeat = 1}\nencoder = [{channels = 8}]\n'
        'decoder = [{kind = "conv2d", channels = 4, skip = false}]\n'
    )  # fmt: skip
    said = answer("train", "net.toml", "--resolution", "32", "--steps", "2", "--out", "mine", cwd=tmp_path)
    assert said["record"]["status"] == "complete"
    assert said["record"]["spec"]["classes"] == 8  # the data's, not the file's
    assert (tmp_path / "mine" / said["record"]["artifacts"]["weights"]).exists()
    assert json.loads((tmp_path / "mine" / "record.json").read_text()) == said["record"]
