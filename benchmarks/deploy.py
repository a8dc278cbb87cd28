"""Exported nets on onnxruntime: as published, the naive export, the simplified one and int8, for Table 2's nets.

    python benchmarks/deploy.py [--rounds 9] [--resolution 256] [--few] [--out results]

Latency: onnxruntime on the CPU, one thread, one image, in seconds of the CPU, which leave out what a virtual machine's
host takes for others. The files of a net take turns with U-Net_4's simplified one, round by round, so that a drifting
machine hits all. Peak memory: each file in a process of its own. int8's loss:
small nets of the same shapes, trained for minutes on the synthetic task, scored before and after. Writes deploy.json
(all samples), deploy.md and deploy.png to --out. --few is a look: three nets, two rounds, a training of seconds.
--loss trains and scores anew, and keeps the latencies that are in --out.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from execution import NAMED
from picture import write_png

from onenet_bench import costs, data, deployment, models, zoo
from onenet_bench.evaluate import evaluate
from onenet_bench.models import deploy, onnx
from onenet_bench.plan import plan
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine, provenance

TABLE2 = [name for name in zoo.NETS if name != "onenet_ed_4_spatial"]
REFERENCE = "unet_4"
PEAK_ALONE = """
import re, sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
def peak():  # not ru_maxrss, which begins with the parent's
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = np.random.default_rng(0).random((1, 3, int(sys.argv[2]), int(sys.argv[2])), dtype=np.float32)
for _ in range(3):
    session.run(None, {session.get_inputs()[0].name: image})
print(peak() - before)
"""
FORMS = {
    "published": "OneNets as the paper writes them: flatten, stride-C convolution, recover, for every layer",
    "naive": "layer by layer as trained: pixel-unshuffle, flattened spatial convolution, 1x1, ReLU, norm",
    "simplified": "the rewrites of onenet_bench/models/deploy.py, in the strips of strips.py, float32",
    "int8": "simplified, not in strips, quantised statically: QDQ, weights per channel",
}
SMALL = {  # depth 4, a quarter of the width
    "onenet_ed_4, width 16": lambda: zoo.onenet_ed(4, width=16, encoder_kernel=0),
    "onenet_e_4, width 16": lambda: zoo.onenet_e(4, width=16),
    "unet_4, width 16": lambda: zoo.unet(4, width=16),
}
TARGETS = (
    ("onenet_ed_4, simplified : published", 0.65),
    ("onenet_ed_4, simplified : naive", 0.65),
    ("onenet_ed_4 : unet_4, simplified", 0.4),
    ("onenet_ed_4, int8 : simplified", 0.4),
)


def files_of(name: str, side: int, folder: Path) -> dict[str, Path]:
    """The files of a net with random weights and the running statistics of four images."""
    torch.manual_seed(0)
    net = models.build(zoo.get(name)).train()
    images = torch.rand(4, 3, side, side)
    with torch.no_grad():
        net(images[:, :, : side // 2, : side // 2])
    net.eval()
    made = {form: folder / f"{name}.{form}.onnx" for form in FORMS if form != "published" or name in NAMED}
    shape, simple, whole = (3, side, side), deploy.simplify(net), folder / f"{name}.whole.onnx"
    if name in NAMED:
        onnx.to_onnx(NAMED[name]().eval(), made["published"], shape=shape, stock=True)
    onnx.to_onnx(deploy.plain(net), made["naive"], shape=shape, stock=True)
    onnx.to_onnx(simple.in_strips(shape), made["simplified"], shape=shape)
    onnx.to_onnx(simple, whole, shape=shape)
    onnx.to_int8(whole, made["int8"], iter(images[:, None].numpy()))
    return made


def time_net(name: str, files: dict[str, Path], reference: Path, side: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every run of the net's files and of ``reference``, taking turns."""
    sessions = {form: onnx.open_session(path) for form, path in (*files.items(), ("reference", reference))}
    feed = {onnx.INPUT: torch.rand(1, 3, side, side).numpy()}
    samples: dict[str, list[float]] = {form: [] for form in sessions}
    for done in range(-1, rounds):  # the first is a warm-up
        for form, session in sessions.items():
            start = time.process_time()
            session.run(None, feed)
            if done >= 0:
                samples[form].append(1e3 * (time.process_time() - start))
    print(name, {form: round(statistics.median(own), 1) for form, own in samples.items()}, flush=True)
    return samples


def measure(name: str, files: dict[str, Path], reference: Path, side: int, rounds: int) -> dict[str, Any]:
    """Everything about one net."""
    spec = zoo.get(name)
    samples = time_net(name, files, reference, side, rounds)
    peaks = {
        form: int(
            subprocess.run(
                [sys.executable, "-c", PEAK_ALONE, str(path), str(side)], check=True, capture_output=True, text=True
            ).stdout
        )
        for form, path in files.items()
    }
    counted = {
        "naive": costs.count_plan(plan(spec, (3, side, side))),
        "simplified": deployment.deployed_costs(spec, (3, side, side), strips=True),
    }
    return {
        "net": name,
        "samples_ms": samples,
        "median_ms": {form: statistics.median(own) for form, own in samples.items()},
        "file_bytes": {form: path.stat().st_size for form, path in files.items()},
        "peak_bytes": peaks,
        "costs": {form: one.to_dict() for form, one in counted.items()},
    }


def int8_loss(steps: int, folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Scores of small trained nets, float32 and int8, on the test split of the synthetic task."""
    task = data.open_task("synthetic", resolution=64, train=320, validation=32, test=192)
    rows = []
    for index, name in enumerate(names):
        run = folder / f"trained-{index}"
        run.mkdir()
        record = evaluate(replace(SMALL[name](), classes=task.classes), task, Recipe(steps=steps), run=run)
        if record.reason:
            raise RuntimeError(f"{name} must be trained, but {record.reason}")
        source = deployment.open_source(str(run / record.artifacts["weights"]))
        card = deployment.export(source, "onnx", run / "exported", int8=True)[-1].card["int8"]
        row = {"net": name, "steps": steps, "float32": card["before"], "int8": card["after"],
               "calibration_images": card["calibration_images"], "images": card["images"]}  # fmt: skip
        print(name, row["float32"]["miou"], row["int8"]["miou"], flush=True)
        rows.append(row)
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the targets speak of, each of runs that took turns."""
    own = next(row["median_ms"] for row in rows if row["net"] == "onenet_ed_4")
    return {
        TARGETS[0][0]: own["simplified"] / own["published"],
        TARGETS[1][0]: own["simplified"] / own["naive"],
        TARGETS[2][0]: own["simplified"] / own["reference"],
        TARGETS[3][0]: own["int8"] / own["simplified"],
    }


def spread(samples: list[float] | None) -> str:
    """Median and quartiles; a dash where there is no such file."""
    if samples is None:
        return "–"
    first, middle, third = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{middle:,.0f} ({first:,.0f} – {third:,.0f})"


def _origin(made: dict[str, Any]) -> str:
    """By what a page, or a part of it, was made."""
    by = made["provenance"]
    return f"Made by `{made['command']}` on {by['time']}, commit {by['commit']}{' with local changes' * by['dirty']}."


def markdown(facts: dict[str, Any]) -> str:
    """The page for people."""
    machine, made = facts["machine"], facts["provenance"]
    lines = [
        "# Exported nets on onnxruntime", "",
        _origin(facts), "",
        f"{machine['cpu']}, {machine['cores']} cores, one thread used, load {facts['load'][0]:.1f} before and "
        f"{facts['load'][1]:.1f} after; {machine['system']}; "
        + ", ".join(f"{name} {version}" for name, version in (made["versions"] | facts["versions"]).items()) + ".", "",
        *(f"- **{form}**: {what}" for form, what in FORMS.items()), "",
        "## Targets", "", "| ratio of medians | measured | target | |", "|---|---:|---:|---|",
    ]  # fmt: skip
    for what, target in TARGETS:
        got = facts["ratios"][what]
        lines.append(f"| {what} | {got:.2f} | {target} | {'reached' if got <= target else 'not reached'} |")
    worst = facts["int8_loss"][0]
    lost = 100 * (worst["float32"]["miou"] - worst["int8"]["miou"])
    lines += [
        f"| {worst['net']}: points of mIoU that int8 loses | {lost:.2f} | 1 "
        f"| {'reached' if lost < 1 else 'not reached'} |",
        "", f"## Latency, ms, one {facts['resolution']} x {facts['resolution']} image", "",
        f"Median (quartiles) of {facts['rounds']} runs. Last column: U-Net_4's simplified file, in the same rounds.",
        "", f"| net | {' | '.join(FORMS)} | U-Net_4 |", f"|---|{'---:|' * (len(FORMS) + 1)}",
    ]  # fmt: skip
    for row in facts["rows"]:
        samples = row["samples_ms"]
        lines.append(f"| {row['net']} | {' | '.join(spread(samples.get(form)) for form in (*FORMS, 'reference'))} |")
    lines += [
        "", "## Size", "",
        "File, and resident memory that a session adds at its highest, in MiB; parameters, MACs and peak of live "
        "activations as counted from the plan, trained and simplified.", "",
        f"| net | {' | '.join(f'file, {form}' for form in FORMS)} | {' | '.join(f'peak, {form}' for form in FORMS)} "
        "| parameters, M | MACs, G | live, MiB |",
        f"|---|{'---:|' * (2 * len(FORMS) + 3)}",
    ]  # fmt: skip
    for row in facts["rows"]:
        sizes = [
            f"{row[key][form] / 2**20:,.1f}" if form in row[key] else "–"
            for key in ("file_bytes", "peak_bytes") for form in FORMS
        ]  # fmt: skip
        trained, simple = row["costs"]["naive"], row["costs"]["simplified"]
        pairs = [
            f"{trained[key] / unit:,.1f} → {simple[key] / unit:,.1f}"
            for key, unit in (("parameters", 1e6), ("macs", 1e9), ("peak_inference_mib", 1))
        ]
        lines.append(f"| {row['net']} | {' | '.join((*sizes, *pairs))} |")
    lines += [
        "", "## What int8 loses", "",
        f"Nets of depth 4 and a quarter of the width, trained for {facts['int8_loss'][0]['steps']} steps on the "
        f"synthetic task at 64 x 64, calibrated on {facts['int8_loss'][0]['calibration_images']} training images, "
        "weights of 7 bits, "
        f"scored on {facts['int8_loss'][0]['images']} test images. One seed.",
        *(["", _origin(facts["int8_loss_made"])] if "int8_loss_made" in facts else []), "",
        "| net | mIoU, float32 | mIoU, int8 | points |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for row in facts["int8_loss"]:
        before, after = row["float32"]["miou"], row["int8"]["miou"]
        lines.append(f"| {row['net']} | {before:.4f} | {after:.4f} | {100 * (after - before):+.2f} |")
    return "\n".join(lines) + "\n"


def plot(facts: dict[str, Any]) -> go.Figure:
    """A bar per file of each net."""
    figure = go.Figure()
    for form, colour in zip(FORMS, ("#cccccc", "#888888", "#0072b2", "#d55e00"), strict=True):
        rows = [row for row in facts["rows"] if form in row["median_ms"]]
        figure.add_bar(
            name=form, x=[row["net"] for row in rows], marker_color=colour,
            y=[row["median_ms"][form] for row in rows],
        )  # fmt: skip
    side = facts["resolution"]
    figure.update_layout(
        title=f"onnxruntime, one thread, one {side} x {side} image", template="plotly_white", height=420,
        yaxis_title="ms (median)", barmode="group", legend={"orientation": "h", "y": 1.08, "x": 0.6},
        xaxis={"categoryorder": "array", "categoryarray": [row["net"] for row in facts["rows"]]},
    )  # fmt: skip
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400, help="of every small net's training")
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--loss", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results"))
    said = parser.parse_args()
    torch.set_num_threads(1)
    names = ["unet_4", "onenet_e_4", "onenet_ed_4"] if said.few else TABLE2
    rounds, steps = (2, 20) if said.few else (said.rounds, said.steps)
    made = {"command": shlex.join(["python", *sys.argv]), "provenance": provenance()}
    small = list(SMALL)[:1] if said.few else list(SMALL)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if said.loss:
            facts = json.loads((said.out / "deploy.json").read_text(encoding="utf-8"))
            facts |= {"int8_loss": int8_loss(steps, folder, small), "int8_loss_made": made}
        else:
            files = {net: files_of(net, said.resolution, folder) for net in names}
            reference = files[REFERENCE]["simplified"]
            rows = [measure(net, files[net], reference, said.resolution, rounds) for net in names]
            facts = {
                **made, "versions": dict(onnx.versions()), "machine": asdict(Machine.here()),
                "resolution": said.resolution, "rounds": rounds, "opset": onnx.OPSET, "ratios": ratios(rows),
                "rows": rows, "int8_loss": int8_loss(steps, folder, small), "load": [before, os.getloadavg()[0]],
            }  # fmt: skip
    said.out.mkdir(parents=True, exist_ok=True)
    (said.out / "deploy.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (said.out / "deploy.md").write_text(markdown(facts), encoding="utf-8")
    write_png(plot(facts), said.out / "deploy.png")
    for what, got in facts["ratios"].items():
        print(f"{what:45} {got:.2f}")


if __name__ == "__main__":
    main()
