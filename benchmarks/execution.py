"""Nets as this project executes them beside their literal composition: time and peak memory of training and inference.

    python benchmarks/execution.py [--few] [--out results]

Own processes: the literal form with the system's default allocator (as published), ours with the settings that trial
processes get (as shipped). One process: both under those settings, in turns. Writes execution.json, .md and .png.
Run it from the top of a checkout, on a machine that does nothing else; --few is a look at small images.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import nn

from onenet_bench import costs, models, zoo
from onenet_bench.record import Machine, provenance
from onenet_bench.search.trial import ENVIRONMENT
from tests.literal import literal_onenet_e, literal_onenet_ed
from tests.reference import Reference

MAIN = ("onenet_ed_4_spatial", "onenet_ed_4", "onenet_e_4", "unet_4")
"""Nets with processes of their own."""
NAMED: dict[str, Callable[[], nn.Module]] = {
    "onenet_e_4": lambda: literal_onenet_e(4, 64, 3, 9, 4),
    "onenet_e_5": lambda: literal_onenet_e(5, 64, 3, 9, 4),
    "onenet_ed_4": lambda: literal_onenet_ed(4, 64, 3, 9, 4, encoder_kernel=0),
    "onenet_ed_4_spatial": lambda: literal_onenet_ed(4, 64, 3, 9, 4),
    "onenet_ed_5": lambda: literal_onenet_ed(5, 64, 3, 9, 4),
}
"""Literal compositions; the other nets of the zoo have the plain one in stock layers, (B, C, H, W) contiguous."""
TASKS = {"training": (4, 128), "inference": (1, 256)}
"""Images of a batch, and their side in pixels."""
FORMS = ("literal", "ours")


# In a process of its own -------------------------------------------------------------------------------------


def build(net: str, form: str) -> nn.Module:
    """The net as ``form``, weights drawn."""
    torch.manual_seed(0)
    if form == "ours":
        return models.build(zoo.get(net))
    if net in NAMED:
        return NAMED[net]()
    reference = Reference(zoo.get(net))
    reference.load_state_dict(models.build(zoo.get(net)).state_dict())
    return reference


def step_of(net: nn.Module, task: str, side: int, device: str = "cpu", precision: str = "float32") -> Callable[[], Any]:
    """One training step with AdamW, or one inference."""
    batch = TASKS[task][0]
    image = torch.rand(batch, 3, side, side, device=device)  # (B, 3, H, W)
    narrow = precision == "bf16"
    if task == "inference":
        net.eval()

        def infer() -> Any:
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=narrow):
                return net(image)

        return infer
    net.train()
    target = torch.randint(0, 4, (batch, side, side), device=device)  # (B, H, W)
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)

    def train() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=narrow):
            logits = net(image)
        loss = F.cross_entropy(logits.float(), target)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()

    return train


def status(field: str) -> int:
    """A field of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def seconds_of(call: Callable[[], Any], threads: int = 1) -> float:
    """On one thread the CPU's seconds: a virtual machine's host takes its CPUs away at times, which is nobody's fault
    here. On more the clock's."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def stolen() -> tuple[int, int]:
    """Ticks that the host has taken from this machine's CPUs, and all of them."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = list(map(int, file.readline().split()[1:9]))
    return ticks[7], sum(ticks)


def alone(net: str, form: str, task: str, side: int, compiled: bool = False) -> dict[str, Any]:
    """Prints the first call's seconds and the process's peak before, in bytes, then a call's seconds for every line
    that it reads. Returns the peak after."""
    F.conv2d(torch.rand(1, 16, 8, 8), torch.rand(16, 16, 3, 3)).sum()  # libraries load themselves
    before = status("VmHWM")
    module = build(net, form)
    if compiled:
        module.compile()
    call = step_of(module, task, side)
    threads = torch.get_num_threads()
    print(json.dumps({"first": seconds_of(call, threads), "before": before}), flush=True)
    for _ in sys.stdin:
        print(seconds_of(call, threads), flush=True)
    return {"peak": status("VmHWM")}


def together(net: str, task: str, side: int, rounds: int) -> dict[str, Any]:
    """Seconds per call of each form, in turns."""
    calls = {form: step_of(build(net, form), task, side) for form in FORMS}
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form, call in calls.items():
            seconds[form].append(seconds_of(call, torch.get_num_threads()))
    return {"seconds": seconds}


def limits() -> dict[str, float]:
    """What this device reaches, the best of ten: FLOP/s of a matrix product and a 3x3 convolution, bytes/s copied."""
    a, threads = torch.rand(2048, 2048), torch.get_num_threads()
    x = torch.rand(16, 256, 64, 64).contiguous(memory_format=torch.channels_last)
    w = torch.rand(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    big, to = torch.rand(1 << 25), torch.empty(1 << 25)
    with torch.inference_mode():
        product = min(seconds_of(lambda: a @ a, threads) for _ in range(10))
        convolution = min(seconds_of(lambda: F.conv2d(x, w, padding=1), threads) for _ in range(4))
        copy = min(seconds_of(lambda: to.copy_(big), threads) for _ in range(10))
    flops = max(2 * 2048**3 / product, 2 * 16 * 64 * 64 * 9 * 256 * 256 / convolution)
    return {"flop_per_second": flops, "byte_per_second": 2 * 4 * (1 << 25) / copy}


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"alone": alone, "together": together, "limits": limits}


def start(what: str, threads: int, kept: bool, **arguments: Any) -> subprocess.Popen[str]:
    """A row of CHILDREN in a new process, with trial processes' allocator where ``kept``."""
    environment = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    environment |= {"OMP_NUM_THREADS": str(threads), **(ENVIRONMENT if kept else {})}
    asked = [sys.executable, __file__, "--child", json.dumps([what, threads, arguments])]
    return subprocess.Popen(
        asked, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What it returned. An error is a sentence."""
    out, errors = child.communicate()
    if child.returncode:
        return {"error": (errors.strip().splitlines() or [f"exit {child.returncode}"])[-1][:200]}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def in_turns(threads: int, rounds: int, forms: Sequence[str], **arguments: Any) -> list[dict[str, Any]]:
    """``alone`` for each of ``forms``, in processes that live at the same time and are called one after the other."""
    children = [start("alone", threads, form == "ours", form=form, **arguments) for form in forms]
    rows: list[dict[str, Any]] = [{"form": form, "threads": threads, "seconds": []} for form in forms]
    try:
        for child, row in zip(children, rows, strict=True):
            assert child.stdout is not None
            row |= json.loads(child.stdout.readline())
        for _ in range(rounds):
            for child, row in zip(children, rows, strict=True):
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write("\n")
                child.stdin.flush()
                row["seconds"].append(float(child.stdout.readline()))
    except (ValueError, OSError):
        pass  # one of them died: its end says why
    return [row | end(child) for row, child in zip(rows, children, strict=True)]


# All of it -----------------------------------------------------------------------------------------------------


def share(net: str, task: str, side: int, seconds: float, limit: dict[str, float]) -> dict[str, float]:
    """Arithmetic and traffic per second over what the device reaches.

    Arithmetic: 2 FLOPs per multiply-add, three times in training. Traffic: every tensor of the plan written and read
    once, three times in training; fused rows have less, so the second share may be above what is really moved.
    """
    counted = costs.count(zoo.get(net), side)
    times = TASKS[task][0] * (3 if task == "training" else 1)
    return {
        "arithmetic": times * 2 * counted.macs / seconds / limit["flop_per_second"],
        "bandwidth": times * 2 * counted.activation_bytes / seconds / limit["byte_per_second"],
    }


def measure(few: bool) -> dict[str, Any]:
    """All facts."""
    rounds = {"training": 2 if few else 7, "inference": 2 if few else 11}
    sides = {task: 64 if few else side for task, (_, side) in TASKS.items()}
    limit = {str(threads): end(start("limits", threads, True)) for threads in (1, 2)}
    own, turns = [], []
    for threads in (1,) if few else (1, 2):
        for net in MAIN[:1] if few else MAIN if threads == 1 else (MAIN[0], MAIN[2]):
            for task, side in sides.items():
                for row in in_turns(threads, rounds[task], FORMS, net=net, task=task, side=side):
                    own.append({"net": net, "task": task, **row})
                    print(json.dumps(own[-1]), file=sys.stderr, flush=True)
    for threads, net in [*((1, net) for net in (MAIN[:2] if few else zoo.NETS)), *([] if few else [(2, MAIN[0])])]:
        for task, side in sides.items():
            found = end(start("together", threads, True, net=net, task=task, side=side, rounds=rounds[task]))
            turns.append({"net": net, "task": task, "threads": threads, **found})
            if "error" not in found:
                best = statistics.median(found["seconds"]["ours"])
                turns[-1]["share"] = share(net, task, side, best, limit[str(threads)])
            print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    arguments = {"net": MAIN[0], "task": "inference", "side": sides["inference"], "compiled": True}
    (compiled,) = in_turns(1, rounds["inference"], ["ours"], **arguments)
    return {"sides": sides, "limits": limit, "own": own, "turns": turns, "compiled": compiled}


def faster(literal: list[float], ours: list[float]) -> float:
    """The median of the rounds' ratios: a machine that slows down slows both."""
    return statistics.median(a / b for a, b in zip(literal, ours, strict=True))


def spread(seconds: list[float]) -> str:
    """Milliseconds: median, least and most."""
    return f"{1e3 * statistics.median(seconds):,.0f} ({1e3 * min(seconds):,.0f}–{1e3 * max(seconds):,.0f})"


def shipped(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As shipped against as published: of times, and of peaks beyond what the process had before the net."""
    for ours in facts["own"]:
        key = (ours["net"], ours["task"], ours["threads"])
        literal = next(r for r in facts["own"] if (r["net"], r["task"], r["threads"]) == key and r["form"] == "literal")
        if ours["form"] == "ours" and "error" not in ours and "error" not in literal:
            yield {
                "net": key[0], "task": key[1], "threads": key[2], "literal": literal, "ours": ours,
                "faster": faster(literal["seconds"], ours["seconds"]), "peak": ours["peak"] / literal["peak"],
                "peak_beyond": (ours["peak"] - ours["before"]) / (literal["peak"] - literal["before"]),
            }  # fmt: skip


TARGETS = (
    ("as shipped", "onenet_ed_4_spatial", "training", 5.0), ("as shipped", "onenet_ed_4_spatial", "inference", 6.0),
    ("same process", "onenet_ed_4_spatial", "training", 2.5), ("same process", "onenet_ed_4_spatial", "inference", 3.0),
    ("as shipped", "onenet_e_4", "training", 2.0), ("as shipped", "onenet_e_4", "inference", 2.0),
)  # fmt: skip
"""What was asked for: times faster on one thread."""


def markdown(facts: dict[str, Any]) -> str:
    """The page for people."""
    machine, made = facts["machine"], facts["provenance"]
    lines = [
        "# Execution: this project's form beside the literal composition", "",
        f"Made by `{facts['command']}` on {made['time']}, commit {made['commit']}"
        f"{' with local changes' if made['dirty'] else ''}; {machine['cpu']}, {machine['cores']} cores; load "
        f"{facts['load'][0]:.1f} before and {facts['load'][1]:.1f} after; the host took {facts['stolen']:.0%} of them "
        "for others meanwhile.", "",
        "Milliseconds: median (least–most), of the CPU on one thread, by the clock on two; *times faster*: median of "
        f"the rounds' ratios. Training: a step of AdamW, batch 4, {facts['sides']['training']}²; inference: one image, "
        f"{facts['sides']['inference']}². float32. "
        "Peaks are the process's largest resident memory, 10⁶ bytes; *beyond* is the ratio without what it had before "
        "the net.", "",
        "## As shipped against as published, a process each, in turns", "",
        "| net | task | threads | literal, ms | ours, ms | times faster | peak literal | ours | ratio | beyond |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    pairs = list(shipped(facts))
    for pair in pairs:
        peaks = [pair[form]["peak"] / 1e6 for form in FORMS]
        lines.append(
            f"| {pair['net']} | {pair['task']} | {pair['threads']} | {spread(pair['literal']['seconds'])} | "
            f"{spread(pair['ours']['seconds'])} | {pair['faster']:.2f} | {peaks[0]:,.0f} | {peaks[1]:,.0f} | "
            f"{pair['peak']:.2f} | {pair['peak_beyond']:.2f} |"
        )
    lines += ["", "## In one process, in turns, same allocator", "",
              "| net | task | threads | literal, ms | ours, ms | times faster | of the fp32 limit | of bandwidth |",
              "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in facts["turns"]:
        head = f"| {row['net']} | {row['task']} | {row['threads']} |"
        if "error" in row:
            lines.append(f"{head} {row['error']} | | | | |")
            continue
        ratio = faster(**row["seconds"])
        lines.append(
            f"{head} {spread(row['seconds']['literal'])} | {spread(row['seconds']['ours'])} | {ratio:.2f} | "
            f"{row['share']['arithmetic']:.0%} | {row['share']['bandwidth']:.0%} |"
        )
    literal = {("as shipped", p["net"], p["task"]): p["literal"]["seconds"] for p in pairs if p["threads"] == 1}
    measured = {("as shipped", p["net"], p["task"]): p["faster"] for p in pairs if p["threads"] == 1}
    for row in facts["turns"]:
        if row["threads"] == 1 and "error" not in row:
            literal["same process", row["net"], row["task"]] = row["seconds"]["literal"]
            measured["same process", row["net"], row["task"]] = faster(**row["seconds"])
    lines += ["", "## What was asked for", ""]
    for how, net, task, wanted in TARGETS:
        got = measured.get((how, net, task))
        verdict = "not measured"
        if got is not None:
            seconds = statistics.median(literal[how, net, task])
            most = share(net, task, facts["sides"][task], seconds, facts["limits"]["1"])["arithmetic"] ** -1
            verdict = f"{got:.2f}: {'reached' if got >= wanted else 'not reached'}; {most:.1f} at the processor's limit"
        lines.append(f"- {net}, {task}, {how}: at least {wanted:g} times faster: {verdict}")
    for pair in pairs:
        if (pair["net"], pair["threads"]) == (TARGETS[0][1], 1):
            lines.append(
                f"- {pair['net']}, {pair['task']}, as shipped: at most half of the peak memory beyond the process's "
                f"own: {pair['peak_beyond']:.2f}: {'reached' if pair['peak_beyond'] <= 0.5 else 'not reached'}; "
                f"{pair['peak']:.2f} of the whole process's"
            )
    slower = [f"{net} ({task}, {got:.2f})" for (how, net, task), got in measured.items() if got < 1 and how[0] == "s"]
    lines += [f"- no net slower than its literal form: {', '.join(slower) or 'none is'}", "", "## Limits", ""]
    for threads, limit in facts["limits"].items():
        lines.append(
            f"- {threads} thread(s): {limit['flop_per_second'] / 1e9:.0f} GFLOP/s (the better of a matrix product and "
            f"a 3x3 convolution), {limit['byte_per_second'] / 1e9:.1f} GB/s copied, read and written"
        )
    compiled = facts["compiled"]
    lines += ["", "## torch.compile", "", compiled["error"] if "error" in compiled else (
        f"{MAIN[0]}, inference, one thread: {spread(compiled['seconds'])} ms, after a first call of "
        f"{compiled['first']:.0f} s of the CPU.")]  # fmt: skip
    lines += ["", "## CUDA", ""]
    if not facts["cuda"]:
        lines.append("No GPU on this machine: the CUDA part of the script has never run.")
    for row in facts["cuda"]:
        lines.append(f"- {row['net']}, {row['task']}, {row['precision']}, {row['form']}: {spread(row['seconds'])} ms")
    return "\n".join(lines) + "\n"


def on_cuda() -> list[dict[str, Any]]:
    """The same on the present GPU, if any: float32 and bf16; literal, channels-last, compiled, CUDA graph."""
    rows = []
    for net in MAIN if torch.cuda.is_available() else ():
        for task, (_, side) in TASKS.items():
            for precision in ("float32", "bf16"):
                for form in ("literal", "ours", "compiled", "graph"):
                    if form == "graph" and task == "training":
                        continue  # an optimiser would have to be capturable
                    module = build(net, "literal" if form == "literal" else "ours").cuda()
                    if form == "compiled":
                        module.compile()
                    call = step_of(module, task, side, "cuda", precision)
                    for _ in range(3):
                        call()
                    if form == "graph":
                        torch.cuda.synchronize()
                        graph = torch.cuda.CUDAGraph()
                        with torch.cuda.graph(graph):
                            call()
                        call = graph.replay
                    torch.cuda.synchronize()

                    def waited(call: Callable[[], Any] = call) -> None:
                        call()
                        torch.cuda.synchronize()

                    seconds = [seconds_of(waited, threads=0) for _ in range(20)]
                    rows.append({"net": net, "task": task, "precision": precision, "form": form, "seconds": seconds})
    return rows


def plot(facts: dict[str, Any]) -> go.Figure:
    """Times faster, net by net."""
    figure = go.Figure()
    for task, colour in (("training", "#0072b2"), ("inference", "#d55e00")):
        own = [row for row in facts["turns"] if row["task"] == task and row["threads"] == 1 and "error" not in row]
        figure.add_bar(
            x=[row["net"] for row in own], y=[faster(**row["seconds"]) for row in own],
            name=f"{task}, same process", marker_color=colour,
        )  # fmt: skip
        pairs = [pair for pair in shipped(facts) if pair["task"] == task and pair["threads"] == 1]
        figure.add_scatter(
            x=[pair["net"] for pair in pairs], y=[pair["faster"] for pair in pairs], mode="markers",
            name=f"{task}, as shipped against as published", marker={"color": colour, "size": 13, "symbol": "diamond"},
        )  # fmt: skip
    figure.add_hline(y=1, line_dash="dot")
    figure.update_layout(
        title="Times faster than the literal composition, one thread", template="plotly_white", height=520,
        legend={"orientation": "h", "y": -0.25}, yaxis_title="times faster",
    )  # fmt: skip
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--few", action="store_true", help="a look: few nets, small images")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder of the three files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.child:
        what, threads, arguments = json.loads(said.child)
        torch.set_num_threads(threads)
        print(json.dumps(CHILDREN[what](**arguments)))
        return
    before, ticks = os.getloadavg()[0], stolen()
    facts = {
        "command": shlex.join(["python", *sys.argv]), "machine": asdict(Machine.here()), "provenance": provenance(),
        "allocator": ENVIRONMENT, **measure(said.few), "cuda": on_cuda(),
    }  # fmt: skip
    facts["load"] = [before, os.getloadavg()[0]]
    taken = [b - a for a, b in zip(ticks, stolen(), strict=True)]
    facts["stolen"] = taken[0] / max(1, taken[1])
    said.out.mkdir(parents=True, exist_ok=True)
    (said.out / "execution.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (said.out / "execution.md").write_text(markdown(facts), encoding="utf-8")
    from picture import write_png

    write_png(plot(facts), said.out / "execution.png")
    print(said.out / "execution.md")


if __name__ == "__main__":
    main()
