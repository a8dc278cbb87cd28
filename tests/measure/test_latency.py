"""Latency: whose turn it is, what is kept, what is said of the samples. No test asks how long anything takes."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from onenet_bench import zoo
from onenet_bench.errors import MeasureError, SpecError
from onenet_bench.measure import latency, runtimes
from onenet_bench.measure.latency import Conditions, Latency
from onenet_bench.record import Machine
from onenet_bench.spec import NetSpec, StageSpec, StemSpec

COMMAND = [sys.executable, "-m", "onenet_bench", "latency"]
CONDITIONS = Conditions(runtime="torch", form="trained", resolution=32)


def tiny(channels: int = 4) -> NetSpec:
    stem = StemSpec(channels=channels, repeat=1)
    level, top = StageSpec(channels=8, spatial_kernel=3), StageSpec(kind="conv2d", channels=4)
    return NetSpec(classes=2, stem=stem, encoder=(level,), decoder=(top,))


class Stopwatch:
    """Stands in for the process that measures: every net gets 1, 2, 3, … milliseconds, of which it waited a half."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []

    def __call__(self, request: Mapping[str, Any], threads: int) -> list[tuple[list[float], list[float]]]:
        self.asked.append(request)
        wall = [float(len(self.asked) + run) for run in range(request["repeats"])]
        return [(wall, [value / 2 for value in wall]) for _ in request["nets"]]


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stopwatch:
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path))
    stub = Stopwatch()
    monkeypatch.setattr(latency, "_run", stub)
    return stub


# What is kept ---------------------------------------------------------------------------------------------


def test_a_net_is_measured_once(stopwatch: Stopwatch) -> None:
    first = latency.latency_ms(tiny(), CONDITIONS)
    assert latency.latency_ms(NetSpec.from_dict(tiny().to_dict()), CONDITIONS) == first
    assert len(stopwatch.asked) == 1
    assert latency.latency_ms(tiny(5), CONDITIONS) != first
    asked = [[spec for spec, _ in request["nets"]] for request in stopwatch.asked]
    assert asked == [[tiny().to_dict()], [tiny(5).to_dict()]]


@pytest.mark.parametrize(
    "other",
    [{"threads": 2}, {"resolution": 64}, {"batch": 2}, {"form": "deployed"}, {"runtime": "onnxruntime"}],
    ids=str,
)
def test_other_conditions_are_measured_anew(stopwatch: Stopwatch, other: dict[str, Any]) -> None:
    latency.latency_ms(tiny(), CONDITIONS)
    latency.latency_ms(tiny(), replace(CONDITIONS, **other))
    assert len(stopwatch.asked) == 2
    assert len(latency.cached(CONDITIONS, tiny())) == 1


OTHERWISE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "machine": lambda patch: patch.setattr(
        Machine, "here", staticmethod(lambda: Machine(system="s", cpu="another", cores=64, memory_gib=1.0))
    ),
    "version": lambda patch: patch.setattr(latency, "package_version", lambda package: "9.9"),
    "environment": lambda patch: patch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1"),
    "code": lambda patch: patch.setattr(latency, "_code", lambda: "0123456789abcdef"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_another_place_is_measured_anew(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    latency.latency_ms(tiny(), CONDITIONS)
    OTHERWISE[what](monkeypatch)
    assert latency.cached(CONDITIONS) == []
    latency.latency_ms(tiny(), CONDITIONS)
    assert len(stopwatch.asked) == 2
    assert len(latency.cached(CONDITIONS)) == 1


def test_what_was_measured_side_by_side_is_known_too(stopwatch: Stopwatch) -> None:
    found = latency.measure([tiny(4), tiny(5)], CONDITIONS)
    assert [one.company for one in found] == [2, 2]
    assert latency.latency_ms(tiny(5), CONDITIONS) == found[1].median_ms
    assert latency.cached(CONDITIONS, tiny(5)) == [found[1]]
    assert latency.cached(replace(CONDITIONS, resolution=64)) == list(found)  # of all nets: whatever their pixels
    assert len(stopwatch.asked) == 1


def test_a_quick_look_is_no_measurement_of_a_search(stopwatch: Stopwatch) -> None:
    (look,) = latency.measure([tiny()], CONDITIONS, repeats=latency.REPEATS - 1)
    assert latency.latency_ms(tiny(), CONDITIONS) != look.median_ms
    assert [len(one.wall_ms) for one in latency.cached(CONDITIONS)] == [latency.REPEATS - 1, latency.REPEATS]


def test_a_torn_line_is_passed_over_and_ended(stopwatch: Stopwatch, tmp_path: Path) -> None:
    latency.latency_ms(tiny(4), CONDITIONS)
    file = tmp_path / "latency.jsonl"
    file.write_text(file.read_text() + '{"digest": "torn')
    latency.latency_ms(tiny(5), CONDITIONS)
    assert [one.spec for one in latency.cached(CONDITIONS)] == [tiny(4), tiny(5)]


def test_two_at_a_time_measure_once(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Event()

    def slow(request: Mapping[str, Any], threads: int) -> list[tuple[list[float], list[float]]]:
        inside.set()
        time.sleep(0.2)
        return stopwatch(request, threads)

    monkeypatch.setattr(latency, "_run", slow)
    other = threading.Thread(target=latency.latency_ms, args=(tiny(), CONDITIONS))
    other.start()
    inside.wait()
    latency.latency_ms(tiny(), CONDITIONS)
    other.join()
    assert len(stopwatch.asked) == 1


def test_without_a_cache_nets_are_timed_all_the_same(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set ONENET_BENCH_CACHE"):
        assert latency.latency_ms(tiny(), CONDITIONS) == statistics.median(range(1, latency.REPEATS + 1)) / 2


# What is said of the samples ------------------------------------------------------------------------------


def test_statistics_are_those_of_the_time_on_a_core() -> None:
    wall = tuple(np.random.default_rng(0).uniform(2, 9, 31).tolist())
    waited = tuple(value / 4 for value in wall)
    found = Latency(spec=tiny(), conditions=CONDITIONS, place={}, wall_ms=wall, waited_ms=waited)
    own = [0.75 * value for value in wall]
    low, middle, high = statistics.quantiles(own, n=4, method="inclusive")
    assert found.median_ms == pytest.approx(middle, rel=1e-12)
    assert found.quartiles_ms == pytest.approx((low, high), rel=1e-12)
    assert found.waited_share == pytest.approx(0.25)
    assert Latency.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# Whose turn it is -----------------------------------------------------------------------------------------


def turns(nets: int, repeats: int, seed: int) -> tuple[list[int], list[int], list[list[runtimes.Sample]]]:
    """Which net ran, which was timed, and the samples: each is the number of the run."""
    ran: list[int] = []
    timed: list[int] = []

    def clock(run: runtimes.Run) -> runtimes.Sample:
        run()
        timed.append(ran[-1])
        return float(len(ran)), 0.0

    samples = runtimes.interleaved([lambda net=net: ran.append(net) for net in range(nets)], repeats, seed, clock)  # type: ignore[misc]
    return ran, timed, samples


def test_nets_take_turns_in_a_new_order_every_round() -> None:
    ran, timed, samples = turns(4, 25, seed=1)
    rounds = [tuple(timed[i : i + 4]) for i in range(0, 100, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in rounds)
    assert len(set(rounds)) > 10
    firsts = [sum(one[0] == net for one in rounds) for net in range(4)]
    assert min(firsts) > 0
    assert [len(rows) for rows in samples] == [25] * 4
    warm, rest = ran[: 4 * runtimes.WARM_UP], ran[4 * runtimes.WARM_UP :]
    assert warm == sorted(warm)
    assert rest == [net for net in timed for _ in range(2)]  # each run that is timed follows one of the same net
    assert samples[timed[0]][0] == (len(warm) + 2, 0.0)
    assert turns(4, 25, seed=1)[1] == timed != turns(4, 25, seed=2)[1]


def test_a_net_alone_runs_no_more_than_it_must() -> None:
    ran, _, _ = turns(1, 7, seed=0)
    assert len(ran) == runtimes.WARM_UP + 7


def test_waiting_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([5_000_000, 7_500_000])
    monkeypatch.setattr(runtimes, "_waited_ns", lambda: next(said))
    wall, waited = runtimes._on_cpu(lambda: time.sleep(0.003))
    assert waited == 2.5
    assert wall > 3


def test_a_run_that_waited_outside_of_the_clock_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([0, 9_000_000_000, 9_000_000_000, 9_000_000_000])
    monkeypatch.setattr(runtimes, "_waited_ns", lambda: next(said))
    ran: list[int] = []
    assert runtimes._on_cpu(lambda: ran.append(1))[1] == 0
    assert len(ran) == 2


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="Linux says how long threads wait")
def test_a_thread_that_shares_its_core_waits() -> None:
    waiting = (
        "import os, time\nfrom onenet_bench.measure.runtimes import _waited_ns\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "child = os.fork()\nend = time.monotonic() + 0.4\nwhile time.monotonic() < end: pass\n"
        "child and os.wait() and print(_waited_ns())"
    )
    done = subprocess.run([sys.executable, "-c", waiting], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 20_000_000  # two share a core for 400 ms; one that never waited has next to none


# All of it ------------------------------------------------------------------------------------------------


def answer(*words: str) -> Any:
    done = subprocess.run([*COMMAND, *words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two nets as files of the present folder, and a cache of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONENET_BENCH_CACHE", str(tmp_path / "cache"))
    for channels in (4, 6):
        (tmp_path / f"{channels}.toml").write_text(
            f'classes = 2\n[stem]\nchannels = {channels}\nrepeat = 1\n[[encoder]]\nchannels = 8\nspatial_kernel = 3\n'
            f'[[decoder]]\nkind = "conv2d"\nchannels = 4\n'
        )  # fmt: skip
    return ["4.toml", "6.toml"]


def test_the_command_times_for_real(files: list[str]) -> None:
    how = ["--runtime", "torch", "--form", "trained", "--resolution", "16", "--repeats", "4"]
    said = answer(*files, *how)
    assert [row["net"] for row in said["nets"]] == files
    for row in said["nets"]:
        own = np.subtract(row["wall_ms"], row["waited_ms"])
        assert len(own) == row["samples"] == 4
        assert row["median_ms"] == np.median(own) > 0
        assert row["relative"] == row["median_ms"] / said["nets"][0]["median_ms"]
    assert said["place"]["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert {"torch"} == said["place"]["versions"].keys()
    under = replace(CONDITIONS, resolution=16)
    assert [one.wall_ms for one in latency.cached(under)] == [tuple(row["wall_ms"]) for row in said["nets"]]


def test_the_table_names_what_was_measured(
    stopwatch: Stopwatch, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onenet_bench.cli import app

    with pytest.raises(SystemExit):
        app(["latency", *files, "--resolution", "16", "--repeats", "3", "--threads", "2"])
    said = capsys.readouterr().out
    assert "onnxruntime, deployed form, 2 threads, batch 1, 16 px, float32" in said
    assert re.search(r"6\.toml +1\.00 +0\.750 to 1\.25 +3 +1\.00 +\S+ +50%", said)  # 1, 2, 3 ms, half of it waited


def test_80_columns_hold_names_and_numbers(
    stopwatch: Stopwatch, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onenet_bench.cli import app, timing

    monkeypatch.setattr(timing, "print_table", Console(width=80).print)
    with pytest.raises(SystemExit):
        app(["latency", *files, "--resolution", "16", "--repeats", "3"])
    said = capsys.readouterr().out
    assert "…" not in said
    assert said.count(" 0.750 to 1.25 ") == len(files)
    assert all(file in re.sub(r" .*\n|\n", "", said) for file in files)


WRONG = {
    "no net": ([], "latency needs a net to time, but got none"),
    "net": (["unet_9"], "unknown net 'unet_9'; known: "),
    "runtime": (["unet_4", "--runtime", "tvm"], "unknown runtime 'tvm'; known: onnxruntime, torch"),
    "form": (["unet_4", "--form", "small"], "unknown form 'small'; known: deployed, trained"),
    "resolution": (["unet_4", "--resolution", "100"], "multiple of 16.*but got 100; use 96 or 112"),
    "repeats": (["unet_4", "--repeats", "0"], "repeats must be at least 1, but got 0"),
    "threads": (["unet_4", "--threads", "0"], "threads must be at least 1, but got 0"),
    "device": (["unet_4", "--device", "tpu"], "unknown device 'tpu'; known: cpu, cuda"),
    "device of a runtime": (["unet_4", "--device", "cuda"], "onnxruntime is run on cpu here, but got cuda"),
    "no gpu": (["unet_4", "--runtime", "torch", "--device", "cuda:97"], "torch finds \\d+ GPUs; use --device cpu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_sentence_and_exit_code_2(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onenet_bench.cli import main

    words, sentence = WRONG[name]
    monkeypatch.setattr(sys, "argv", ["onenet-bench", "latency", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said)
    assert len(said.strip().splitlines()) == 1


def test_what_goes_wrong_in_the_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="multiple of 2"):
        latency.measure([tiny()], replace(CONDITIONS, resolution=31))
    monkeypatch.setattr(latency.sys, "executable", "/bin/false")
    with pytest.raises(MeasureError, match="the process that measures ended with 1: it said nothing"):
        latency.measure([tiny()], CONDITIONS)


def test_an_error_of_the_runtime_is_handed_over(tmp_path: Path) -> None:
    conditions = {"runtime": "torch", "form": "trained", "resolution": 17}
    request = {"nets": [[zoo.get("unet_4").to_dict(), conditions]], "repeats": 1, "seed": 0}
    (tmp_path / "request.json").write_text(json.dumps(request))
    runtimes.main(tmp_path)
    assert json.loads((tmp_path / "answer.json").read_text())["error"].startswith("SpecError: the height must be")


def test_a_runtime_that_is_not_installed_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "package_version", lambda package: None if package == "onnxruntime" else "1")
    with pytest.raises(MeasureError, match=r"needs the package onnxruntime.*install onenet-bench\[export\]"):
        Conditions()
    Conditions(runtime="torch")


def test_glibc_knows_what_it_is_asked_for() -> None:
    """It passes over what it does not, without a word."""
    loaders = [*Path("/lib64").glob("ld-linux*"), *Path("/lib").glob("ld-linux*")]
    if not loaders:
        pytest.skip("needs glibc")
    listed = subprocess.run([str(loaders[0]), "--list-tunables"], check=True, capture_output=True, text=True).stdout
    highest = {name: int(most, 0) for name, most in re.findall(r"^(\S+): .* max: (\w+)\)$", listed, re.MULTILINE)}
    asked = dict(one.split("=") for one in latency.ENVIRONMENT["GLIBC_TUNABLES"].split(":"))
    assert len(asked) == 4
    for name, value in asked.items():
        assert 0 <= int(value) <= highest[name]
