"""Predicted memory peaks beside measured ones, for the zoo and for random specs.

    python benchmarks/memory.py [--resolution 256] [--batch 4] [--random 40]

Writes results/memory.json and results/memory.md. Predictions come from the plan alone. Measured: torch's tracker on
fake tensors, the CPU allocator's events in a real training step, and max_memory_allocated where there is a GPU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onenet_bench import space, zoo
from onenet_bench.measure import memory
from onenet_bench.memory import BYTES, peak_elements, training_peak_bytes
from onenet_bench.plan import plan
from onenet_bench.record import Machine, provenance
from onenet_bench.spec import NetSpec

RESULTS = Path(__file__).parent.parent / "results"


def random_specs(number: int) -> Iterator[tuple[str, NetSpec, int]]:
    """Candidates of the packaged spaces, drawn at random, at their own resolution."""
    draws = np.random.default_rng(0)
    names = space.names()
    while number:
        reached = space.load(names[int(draws.integers(len(names)))])
        choices = {name: options[int(draws.integers(len(options)))] for name, options in reached.choices.items()}
        spec = reached.spec(choices, classes=8, in_channels=3)
        if reached.task["resolution"] % spec.total_scale == 0:
            number -= 1
            yield f"{reached.name}: {spec.label()}", spec, reached.task["resolution"]


def measure(name: str, spec: NetSpec, resolution: int, batch: int) -> dict[str, Any]:
    """All peaks of one net, in bytes."""
    lowered = plan(spec, (spec.in_channels, resolution, resolution))
    row: dict[str, Any] = {
        "net": name,
        "resolution": resolution,
        "batch": batch,
        "inference_predicted": BYTES * peak_elements(lowered),
        "inference_tracker": memory.tracked_inference(spec, resolution),
        "training_predicted": training_peak_bytes(lowered, batch),
        "training_tracker": memory.tracked_training(spec, resolution, batch),
        "training_allocator": memory.allocated_training(spec, resolution, batch),
    }
    if torch.cuda.is_available():
        row["training_cuda"] = memory.cuda_training(spec, resolution, batch)
        row["inference_cuda"] = memory.cuda_inference(spec, resolution)
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, in 10^6 bytes."""
    lines = [
        "| net | resolution | batch | inference, predicted | tracker | training, predicted | tracker | allocator "
        "| predicted / allocator |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        numbers = (f"{r[key] / 1e6:,.2f}" for key in (
            "inference_predicted", "inference_tracker", "training_predicted", "training_tracker", "training_allocator"
        ))  # fmt: skip
        ratio = r["training_predicted"] / r["training_allocator"]
        lines.append(f"| {r['net']} | {r['resolution']} | {r['batch']} | {' | '.join(numbers)} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--random", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    nets = [measure(name, zoo.get(name), arguments.resolution, arguments.batch) for name in zoo.NETS]
    drawn = [measure(name, spec, side, 16) for name, spec, side in random_specs(arguments.random)]
    ratios = [r["training_predicted"] / r["training_allocator"] for r in (*nets, *drawn)]
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": asdict(Machine.here()),
        "provenance": provenance(),
        "inference_equal_to_tracker": sum(r["inference_predicted"] == r["inference_tracker"] for r in (*nets, *drawn)),
        "training_equal_to_tracker": sum(r["training_predicted"] == r["training_tracker"] for r in (*nets, *drawn)),
        "within_5_percent_of_allocator": sum(abs(ratio - 1) <= 0.05 for ratio in ratios),
        "nets": len(ratios),
        "predicted_over_allocator": {"least": min(ratios), "median": statistics.median(ratios), "most": max(ratios)},
        "rows": [*nets, *drawn],
    }
    (RESULTS / "memory.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    summary = {key: facts[key] for key in facts if key != "rows"}
    (RESULTS / "memory.md").write_text(
        "# Memory peaks, predicted and measured (10^6 bytes)\n\nInference: one image, weights not included. Training: "
        f"a step with AdamW, everything included.\n\n```json\n{json.dumps(summary, indent=1)}\n```\n\n"
        f"{table([*nets, *drawn])}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
