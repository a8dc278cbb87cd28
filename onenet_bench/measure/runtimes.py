"""What nets are timed on: the process that ``latency`` starts, and nothing else runs in.

``python -m onenet_bench.measure.runtimes FOLDER`` reads ``request.json`` and writes ``answer.json`` there.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onenet_bench import models
from onenet_bench.measure.latency import Conditions
from onenet_bench.models import deploy
from onenet_bench.spec import NetSpec

Run = Callable[[], object]
Sample = tuple[float, float]
"""Milliseconds by the clock, and how many of them the thread waited for a core."""

WARM_UP = 5
"""Runs of every net before any is timed."""


# Runtimes ------------------------------------------------------------------------------------------------


def _onnxruntime(net: nn.Module, image: Tensor, conditions: Conditions, folder: Path) -> Run:
    from onenet_bench.models import onnx

    _, *shape = image.shape
    onnx.to_onnx(net, folder / "net.onnx", shape=(shape[0], shape[1], shape[2]))
    session = onnx.open_session(folder / "net.onnx", conditions.threads)
    feed = {onnx.INPUT: image.numpy()}
    return lambda: session.run([onnx.OUTPUT], feed)


def _torch(net: nn.Module, image: Tensor, conditions: Conditions, folder: Path) -> Run:
    net = net.to(conditions.device)
    image = image.to(conditions.device, memory_format=torch.channels_last)

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = net(image)
        return logits

    return run


RUNTIMES: dict[str, Callable[[nn.Module, Tensor, Conditions, Path], Run]] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
}
"""Runtime → what runs a net on an image (B, C, H, W) once; the folder is for files."""


FORMS: dict[tuple[str, str], Callable[[models.UNet, tuple[int, int, int]], nn.Module]] = {
    ("onnxruntime", "deployed"): lambda net, shape: deploy.simplify(net).in_strips(shape),
    ("onnxruntime", "trained"): lambda net, _: deploy.plain(net),
    ("torch", "deployed"): lambda net, _: deploy.simplify(net),
    ("torch", "trained"): lambda net, _: net,
}
"""(runtime, form) → what is run of a net for images of a shape."""


# Clocks --------------------------------------------------------------------------------------------------


def _waited_ns() -> int:
    """How long this thread was ready and had no core, since it began; 0 where the system does not say."""
    file = _schedule()
    return 0 if file is None else int(os.pread(file, 100, 0).split()[1])


@cache
def _schedule() -> int | None:
    """Where Linux says how long the calling thread ran and waited; nets are timed by one thread alone."""
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return None


def _on_cpu(run: Run) -> Sample:
    while True:
        before = _waited_ns()
        began = time.perf_counter_ns()
        run()
        wall = time.perf_counter_ns() - began
        waited = _waited_ns() - before
        if waited <= wall:  # or it waited between two looks at the clocks: once more
            return wall / 1e6, waited / 1e6


def _on_cuda(run: Run) -> Sample:
    """By the GPU's own clock, from the first kernel to the last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end), 0.0


CLOCKS: dict[str, Callable[[Run], Sample]] = {"cpu": _on_cpu, "cuda": _on_cuda}


# Measuring -----------------------------------------------------------------------------------------------


def interleaved(
    runs: Sequence[Run], repeats: int, seed: int, clock: Callable[[Run], Sample]
) -> list[list[Sample]]:  # fmt: skip
    """The samples of each of ``runs``, which take turns, ``repeats`` rounds in orders drawn from ``seed``.

    Where there are several, one run before each sample is thrown away: the net before has emptied the caches.
    """
    order = random.Random(seed)
    for run in runs:
        for _ in range(WARM_UP):
            run()
    samples: list[list[Sample]] = [[] for _ in runs]
    turns = list(range(len(runs)))
    for _ in range(repeats):
        order.shuffle(turns)
        for turn in turns:
            if len(runs) > 1:
                runs[turn]()
            samples[turn].append(clock(runs[turn]))
    return samples


def measure(request: Mapping[str, Any], folder: Path) -> list[tuple[list[float], list[float]]]:
    """(wall, waited) of every net of a request. Weights are drawn: a latency does not depend on them."""
    nets = [(NetSpec.from_dict(spec), Conditions(**conditions)) for spec, conditions in request["nets"]]
    device = torch.device(nets[0][1].device)
    torch.set_num_threads(nets[0][1].threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    runs = []
    for number, (spec, conditions) in enumerate(nets):
        torch.manual_seed(0)
        shape = (spec.in_channels, conditions.resolution, conditions.resolution)
        net = FORMS[conditions.runtime, conditions.form](models.build(spec).eval(), shape)
        image = torch.rand(conditions.batch, *shape)
        place = folder / str(number)
        place.mkdir()
        runs.append(RUNTIMES[conditions.runtime](net, image, conditions, place))
    samples = interleaved(runs, request["repeats"], request["seed"], CLOCKS[device.type])
    return [([wall for wall, _ in rows], [waited for _, waited in rows]) for rows in samples]


def main(folder: Path) -> None:
    answer: dict[str, Any]
    try:
        answer = {"samples": measure(json.loads((folder / "request.json").read_text(encoding="utf-8")), folder)}
    except Exception as error:  # noqa: BLE001  the border of the process: its parent says it
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
