"""Latency: how long an inference takes, in real runs on this machine.

Nets are timed in a fresh process of their own (``onenet_bench.measure.runtimes``), which has the stated threads and
keeps freed memory, as trial processes do. Nets that are compared take turns in one process, in an order that is
shuffled every round, so that a machine which grows slower in between slows all of them. Before each run that is timed
one is thrown away, so that a net's figure does not depend on its company. Two measurements never run at once.

Where others use the same cores, a run takes longer by the time that its thread waits for one. Linux counts that time
to the nanosecond: it is kept beside every run and taken off, so that a latency is the time on a core. What others do
to caches, memory and clock rates stays in it. With more than one thread only the calling one's waiting is known.

Every measurement is kept, runs and all, in ``latency.jsonl`` in the cache's folder. Nothing here loads torch.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onenet_bench import data
from onenet_bench.errors import MeasureError, known
from onenet_bench.plan import check_resolution
from onenet_bench.record import Machine, package_version
from onenet_bench.spec import NetSpec

RUNTIMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "onnxruntime": (("cpu",), ("onnxruntime", "onnx", "onnxscript", "torch")),
    "torch": (("cpu", "cuda"), ("torch",)),
}
"""Runtime → kinds of device it is run on here, and the packages that decide its figures."""

FORMS = {
    "deployed": "rewritten exactly for inference: norms folded, heads that never run dropped",
    "trained": "as it is trained, in evaluation mode; exported, in the paper's own layers",
}

ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
}
"""What nets are trained and timed under, beside their threads, unless the user says otherwise: a page that was freed
is kept, since fetching new ones from the system costs CPU training about half of its time; and so are none of the
splinters that are left where a tensor is aligned, or what was freed would not hold the next tensor of its size."""

REPEATS = 30
"""Runs of a net that are timed."""

LIMIT = 1800.0
"""Seconds after which a measurement is given up."""

_FILE = "latency.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """How a net is run: ``batch`` images of ``resolution`` x ``resolution`` pixels at a time, in float32."""

    runtime: str = "onnxruntime"
    form: str = "deployed"
    resolution: int = 256
    batch: int = 1
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise MeasureError(known("runtime", self.runtime, RUNTIMES))
        if self.form not in FORMS:
            raise MeasureError(known("form", self.form, FORMS))
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise MeasureError(known("device", self.device, ["cpu", "cuda", "cuda:N"]))
        devices, packages = RUNTIMES[self.runtime]
        if self.device.partition(":")[0] not in devices:
            raise MeasureError(f"{self.runtime} is run on {' or '.join(devices)} here, but got {self.device}; "
                               "use the runtime torch")  # fmt: skip
        if lacking := [name for name in packages if package_version(name) is None]:
            raise MeasureError(f"the runtime {self.runtime} needs the package {lacking[0]}, which is not here; install "
                               "onenet-bench[export], or use the runtime torch")  # fmt: skip
        for name in ("resolution", "batch", "threads"):
            if getattr(self, name) < 1:
                raise MeasureError(f"{name} must be at least 1, but got {getattr(self, name)}")

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        place = threads if self.device == "cpu" else self.device
        return f"{self.runtime}, {self.form} form, {place}, batch {self.batch}, {self.resolution} px, float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """The runs of one net under ``conditions``: ``wall_ms`` by the clock, and how much of it the thread waited for a
    core (``waited_ms``; 0 where the system does not say). ``place`` is all that the figures depend on beside net and
    conditions: machine, versions, environment, a digest of the code that builds the net. ``company`` counts the nets
    that took turns."""

    spec: NetSpec
    conditions: Conditions
    place: Mapping[str, Any]
    wall_ms: tuple[float, ...]
    waited_ms: tuple[float, ...]
    company: int = 1
    time: str = ""

    @property
    def samples_ms(self) -> NDArray[np.float64]:
        """Time on a core, run by run."""
        return np.subtract(self.wall_ms, self.waited_ms)

    @property
    def median_ms(self) -> float:
        return float(np.median(self.samples_ms))

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """A quarter of the runs is below the first, a quarter above the second."""
        low, high = np.percentile(self.samples_ms, [25, 75])
        return float(low), float(high)

    @property
    def waited_share(self) -> float:
        """The share of the time that was spent waiting for a core: how busy the machine was with other things."""
        return sum(self.waited_ms) / sum(self.wall_ms)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "digest": self.spec.digest(),
            "spec": self.spec.to_dict(),
            "conditions": asdict(self.conditions),
            "place": dict(self.place),
            "wall_ms": list(self.wall_ms),
            "waited_ms": list(self.waited_ms),
            "company": self.company,
            "time": self.time,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Latency:
        """The inverse of ``to_dict``."""
        return cls(
            spec=NetSpec.from_dict(values["spec"]), conditions=Conditions(**values["conditions"]),
            place=values["place"], wall_ms=tuple(values["wall_ms"]), waited_ms=tuple(values["waited_ms"]),
            company=values["company"], time=values["time"],
        )  # fmt: skip


def latency_ms(spec: NetSpec, conditions: Conditions) -> float:
    """The median latency of ``spec``: measured once per net, conditions and place, then read from the cache.

    Raises SpecError where the resolution does not fit the net, MeasureError where it cannot be run.
    """
    with _alone():  # whoever waited finds what the other has measured
        found = [one for one in cached(conditions, spec) if len(one.wall_ms) >= REPEATS]  # no quick look
        return (found[-1] if found else _measure([(spec, conditions)], REPEATS)[0]).median_ms


def measure(specs: Sequence[NetSpec], conditions: Conditions, *, repeats: int = REPEATS) -> tuple[Latency, ...]:
    """Time ``specs`` now, side by side, and keep the measurements.

    Raises SpecError where the resolution does not fit a net, MeasureError where one cannot be run.
    """
    return measure_each([(spec, conditions) for spec in specs], repeats=repeats)


def measure_each(nets: Sequence[tuple[NetSpec, Conditions]], *, repeats: int = REPEATS) -> tuple[Latency, ...]:
    """The same where each net has conditions of its own; they may differ in resolution alone."""
    if repeats < 1:
        raise MeasureError(f"repeats must be at least 1, but got {repeats}")
    with _alone():
        return _measure(nets, repeats)


def _measure(nets: Sequence[tuple[NetSpec, Conditions]], repeats: int) -> tuple[Latency, ...]:
    for spec, conditions in nets:
        check_resolution(spec, conditions.resolution, conditions.resolution)
    here = place(nets[0][1])
    answer = _run({"nets": [[spec.to_dict(), asdict(conditions)] for spec, conditions in nets],
                   "repeats": repeats, "seed": 0}, nets[0][1].threads)  # fmt: skip
    found = tuple(
        Latency(
            spec=spec, conditions=conditions, place=here, company=len(nets),
            wall_ms=tuple(wall), waited_ms=tuple(waited), time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        for (spec, conditions), (wall, waited) in zip(nets, answer, strict=True)
    )  # fmt: skip
    _keep(found)
    return found


def _run(request: Mapping[str, Any], threads: int) -> list[tuple[list[float], list[float]]]:
    """(wall, waited) milliseconds of every run of every net, from a process that is started for it."""
    environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "request.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "onenet_bench.measure.runtimes", folder],
                env=environment, capture_output=True, text=True, timeout=LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MeasureError(f"a measurement takes at most {LIMIT:.0f} s, but this one took longer; ask for fewer "
                               "nets, repeats or pixels") from error  # fmt: skip
        try:
            answer = json.loads(Path(folder, "answer.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise MeasureError(f"the process that measures ended with {done.returncode}: {said[-1]}") from error
    if "error" in answer:
        raise MeasureError(f"a net must run to be timed, but it did not: {answer['error']}")
    return [(wall, waited) for wall, waited in answer["samples"]]


# Where figures hold --------------------------------------------------------------------------------------


def place(conditions: Conditions) -> dict[str, Any]:
    """What figures depend on beside net and conditions."""
    machine = Machine.here()
    if conditions.device != "cpu":
        import torch

        if (torch.device(conditions.device).index or 0) >= torch.cuda.device_count():
            raise MeasureError(f"{conditions.device} must be there, but torch finds {torch.cuda.device_count()} GPUs; "
                               "use --device cpu")  # fmt: skip
        machine = replace(machine, gpu=torch.cuda.get_device_name(conditions.device))
    packages = RUNTIMES[conditions.runtime][1]
    environment = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    return {
        "machine": machine.to_dict(),
        "versions": {name: package_version(name) for name in packages},
        "environment": environment,
        "code": _code(),
    }


@functools.cache
def _code() -> str:
    """A digest of the files that decide what is run."""
    package = Path(__file__).resolve().parent.parent
    files = [
        package / "plan.py",
        package / "memory.py",
        package / "measure" / "runtimes.py",
        *sorted((package / "models").glob("*.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


# What is kept --------------------------------------------------------------------------------------------


def cached(conditions: Conditions, spec: NetSpec | None = None) -> list[Latency]:
    """What was measured here under ``conditions``, oldest first: of one net, or of all and at any resolution."""
    here, wanted, found = place(conditions), asdict(conditions), []
    named = "" if spec is None else f'"{spec.digest()}"'
    with suppress(OSError), (data.cache_dir() / _FILE).open(encoding="utf-8") as lines:
        for line in lines:
            if named not in line:
                continue
            with suppress(ValueError):  # a torn line
                values = json.loads(line)
                under = values["conditions"] if spec else {**values["conditions"], "resolution": conditions.resolution}
                if under == wanted and values["place"] == here:
                    found.append(Latency.from_dict(values))
    return found


def _keep(found: Sequence[Latency]) -> None:
    """A line each. Only who is alone writes, and in one go, so that lines stay whole."""
    path = data.cache_dir() / _FILE
    lines = "".join(json.dumps(latency.to_dict()) + "\n" for latency in found)
    try:
        with path.open("a+b") as file:
            torn = file.tell() > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            file.write(b"\n" * torn + lines.encode())
    except OSError as error:
        warnings.warn(f"latencies cannot be kept in {path} ({error}), so nets are timed again every time; set "
                      "ONENET_BENCH_CACHE to a folder that can be written", stacklevel=3)  # fmt: skip


@contextmanager
def _alone() -> Iterator[None]:
    """One measurement at a time on this machine; waits for that of another process, and outlives none that dies."""
    try:
        data.cache_dir().mkdir(parents=True, exist_ok=True)
        handle = os.open(data.cache_dir() / f"{_FILE}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a cache that cannot be written: _keep says so
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
