"""Record: one immutable row of the book, and the values it is made of.

Every candidate ends as a Record: the trained, the rejected, the stopped early and the failed.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from onenet_bench.recipe import Recipe
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

SCHEMA = 1
"""Version of the stored rows; newer ones are not read."""


class Column(NamedTuple):
    """A number of a Record: what it is called on a page, its unit and its convention."""

    title: str
    unit: str
    convention: str
    best: str  # "min" or "max"


COSTS: dict[str, Column] = {
    "parameters": Column("Parameters", "", "every weight, bias and norm coefficient that exists", "min"),
    "parameters_used": Column("Parameters used", "", "those that the forward pass reads", "min"),
    "macs": Column(
        "MACs", "", "exact multiply-adds of convolutions, transposed convolutions and linear layers, one image", "min"
    ),
    "activation_bytes": Column(
        "Activations", "B", "bytes of all tensors that one inference makes, one image, float32", "min"
    ),
    "peak_inference_mib": Column(
        "Peak inference memory", "MiB", "largest sum of live tensors inferring one float32 image, without weights",
        "min",
    ),
    "peak_training_mib": Column(
        "Peak training memory", "MiB", "most that lives in a step with AdamW on one batch, weights included", "min"
    ),
    "supervision_macs": Column(
        "MACs of deep supervision", "", "multiply-adds of the decoder's other heads, forward pass of one image; in "
        "training alone", "min",
    ),
    "paper_flops": Column(
        "FLOPs, paper's convention", "",
        "2 x torchinfo's mult-adds: with biases and norms, transposed convolutions counted too high", "min",
    ),
    "paper_memory_mb": Column(
        "Memory, paper's convention", "MB", "torchinfo pass size: 2 x output bytes of every layer with weights / 10^6",
        "min",
    ),
    "latency_ms": Column(
        "Latency", "ms", "median of real inferences on the runtime, threads and machine that the run names, time spent "
        "waiting for a core taken off; what other processes do to caches and clock rates is in it", "min",
    ),
}  # fmt: skip

SCORES: dict[str, Column] = {
    "miou": Column("mIoU", "", "mean IoU over the classes with a non-empty union, background included", "max"),
    "miou_fg": Column("mIoU, foreground", "", "mIoU without the background", "max"),
    "dice": Column("Dice", "", "macro 2TP/(2TP+FP+FN)", "max"),
    "dice_fg": Column("Dice, foreground", "", "Dice without the background", "max"),
    "dice_case_fg": Column(
        "Dice by case, foreground", "", "Dice of every patient volume whose truth has the class; mean over cases, then "
        "classes", "max",
    ),
    "map50": Column(
        "mAP, IoU ≥ 0.5", "", "one detection per image and class, scored by its mean probability; area under the "
        "interpolated precision-recall curve", "max",
    ),
    "pixel_accuracy": Column("Pixel accuracy", "", "share of valid pixels with the right class", "max"),
    "ce": Column("Cross-entropy", "nat", "mean over the split's valid pixels", "min"),
    "ce_weighted": Column("Cross-entropy, weighted", "nat", "the same with the background's weight", "min"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What a net weighs. Units and conventions stand in the table ``COSTS``; None = not known.

    ``uncounted`` names what could not be counted.
    """

    parameters: int
    parameters_used: int
    macs: int
    activation_bytes: int
    peak_inference_mib: float
    paper_flops: int
    paper_memory_mb: float
    peak_training_mib: float | None = None
    supervision_macs: int | None = None
    latency_ms: float | None = None
    uncounted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "uncounted": list(self.uncounted)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Costs:
        """The inverse of ``to_dict``."""
        return cls(**{**values, "uncounted": tuple(values.get("uncounted", ()))})


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the numbers were made on."""

    system: str
    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def here(cls) -> Machine:
        """This machine's processor, usable cores and memory. A GPU is named by whoever uses one."""
        cpu = platform.processor() or platform.machine()
        memory = 0
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    cpu = line.split(":", 1)[1].strip()
                    break
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (OSError, ValueError):
            pass  # not Linux: what platform knows has to do
        return cls(
            system=platform.platform(terse=True),
            cpu=cpu,
            cores=usable_cores(),
            memory_gib=round(memory / 2**30, 1),
        )


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Status(StrEnum):
    """How a candidate ended."""

    COMPLETE = "complete"
    REJECTED = "rejected"  # over budget, impossible, or a candidate already seen: never trained
    STOPPED = "stopped"  # training ended early on purpose; its scores are not final
    FAILED = "failed"


def provenance() -> dict[str, Any]:
    """Where and with what something was made: commit and dirty flag (None outside a checkout), versions, UTC time."""
    commit, dirty = _checkout()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": dict(_versions()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _checkout() -> tuple[str | None, bool | None]:
    """Commit and dirty flag when first asked, which is nearer to when this code was loaded than any later answer."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


@cache
def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}}


_PACKAGES = ("onenet-bench", "torch", "optuna", "numpy", "pandas", "plotly")


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True, timeout=10
    ).stdout


def package_version(package: str) -> str | None:
    """The installed version; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What became of one candidate.

    ``choices`` are the trial's decisions in its space. ``history`` holds one dict per epoch (epoch, step, loss,
    seconds and the scores of that moment). ``scores`` are the final ones and empty where there are none;
    ``per_class`` holds lists in class order, None for a class that is absent. ``artifacts`` are paths relative
    to the run's folder. ``test_scores`` are those of the same weights on the test split, which no search looks at;
    only final trainings have them.
    """

    trial: int
    spec: NetSpec | None  # None where the choices do not make a net
    choices: Mapping[str, Any]
    task: Task
    recipe: Recipe
    machine: Machine
    status: Status
    reason: str = ""
    costs: Costs | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, list[float | None]] = field(default_factory=dict)
    test_scores: Mapping[str, float] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    artifacts: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **values,
            "digest": self.spec.digest() if self.spec else None,
            "spec": self.spec.to_dict() if self.spec else None,
            "task": self.task.to_dict(),
            "recipe": self.recipe.to_dict(),
            "machine": self.machine.to_dict(),
            "costs": self.costs.to_dict() if self.costs else None,
            "status": str(self.status),
            "history": [dict(epoch) for epoch in self.history],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """The inverse of ``to_dict``."""
        rest = {name: value for name, value in values.items() if name != "digest"}
        return cls(
            **{
                **rest,
                "spec": NetSpec.from_dict(values["spec"]) if values["spec"] else None,
                "task": Task.from_dict(values["task"]),
                "recipe": Recipe.from_dict(values["recipe"]),
                "machine": Machine(**values["machine"]),
                "costs": Costs.from_dict(values["costs"]) if values["costs"] else None,
                "status": Status(values["status"]),
                "history": tuple(values["history"]),
            }
        )
