"""How long it takes to count one candidate: onenet-bench beside fvcore, ptflops, torchinfo and torch's FlopCounterMode.

Contestants take turns, net by net and round by round, so that a busy moment hits all of them. Writes
``profilers.json``, ``.csv``, ``.md`` and ``.png`` to ``--out``. Run it from the top of a checkout:

    python benchmarks/profilers.py
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import csv
import gc
import importlib.metadata
import itertools
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import torch
import torch._dynamo  # which torch imports at its first meta tensor: not to be timed, and not under ptflops' patches
from fvcore.nn import FlopCountAnalysis
from picture import write_png
from plotly.subplots import make_subplots
from ptflops import get_model_complexity_info
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary

from onenet_bench import costs, models, space, zoo
from onenet_bench.errors import SpecError
from onenet_bench.measure.counters import plain_spatial
from onenet_bench.record import Machine, provenance
from onenet_bench.screen import screen
from onenet_bench.spec import NetSpec

OURS = "onenet-bench"
SINGLE = "onenet-bench, single call"
FVCORE = "fvcore"


class Case(NamedTuple):
    """A net to count, for one image of ``side`` x ``side`` pixels."""

    name: str
    spec: NetSpec
    side: int


class Contestant(NamedTuple):
    """``count`` gives the number. It gets the case alone where ``device`` is None; else the net, built for it on that
    device, and an image. ``calls``: made in a row at each turn, whose median is one sample."""

    count: Callable[..., int]
    device: str | None
    what: str
    calls: int = 1


def _fvcore(net: nn.Module, image: Tensor) -> int:
    analysis = FlopCountAnalysis(net, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return int(analysis.total())


def _ptflops(backend: str) -> Callable[[nn.Module, Tensor], int]:
    def count(net: nn.Module, image: Tensor) -> int:
        number, _ = get_model_complexity_info(
            net, tuple(image.shape[1:]), print_per_layer_stat=False, as_strings=False, backend=backend
        )
        return int(number)

    return count


def _torchinfo(net: nn.Module, image: Tensor) -> int:
    return int(summary(net, input_data=image, device=image.device, verbose=0).total_mult_adds)


def _flop_counter(net: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        net(image)
    return int(counter.get_total_flops())


def _ours(case: Case) -> int:
    return costs.count(case.spec, case.side).macs


CONTESTANTS: dict[str, Contestant] = {
    OURS: Contestant(_ours, None, "plan and count one spec, nothing cached; one of 25 calls in a row", calls=25),
    SINGLE: Contestant(_ours, None, "the same, one call right after a net was built, run and collected"),
    "FlopCounterMode, meta": Contestant(_flop_counter, "meta", "torch.utils.flop_counter on tensors without memory"),
    "torchinfo, meta": Contestant(_torchinfo, "meta", "torchinfo.summary on tensors without memory"),
    "ptflops aten, meta": Contestant(_ptflops("aten"), "meta", "ptflops, backend aten, on tensors without memory"),
    "ptflops pytorch, meta": Contestant(_ptflops("pytorch"), "meta", "ptflops, backend pytorch, without memory"),
    "FlopCounterMode, CPU": Contestant(_flop_counter, "cpu", "torch.utils.flop_counter on CPU tensors"),
    "torchinfo, CPU": Contestant(_torchinfo, "cpu", "torchinfo.summary on CPU tensors"),
    "ptflops aten, CPU": Contestant(_ptflops("aten"), "cpu", "ptflops, backend aten, on CPU tensors"),
    "ptflops pytorch, CPU": Contestant(_ptflops("pytorch"), "cpu", "ptflops, backend pytorch, on CPU tensors"),
    FVCORE: Contestant(_fvcore, "cpu", "fvcore's FlopCountAnalysis, which needs CPU tensors"),
}
PEERS = [name for name, contestant in CONTESTANTS.items() if contestant.device]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contestant on one case. Times are seconds: median and quartiles over the rounds."""

    cases: str
    net: str
    contestant: str
    number: int
    rounds: int
    count_q1: float
    count: float
    count_q3: float
    build: float
    """Median time to make the net that is counted; 0 where none is."""
    total_q1: float
    total: float
    """Of building and counting together."""
    total_q3: float


# Measuring -----------------------------------------------------------------------------------------------


def zoo_cases(side: int) -> list[Case]:
    """Every net of the zoo."""
    return [Case(name, zoo.get(name), side) for name in zoo.NETS]


def random_cases(count: int, side: int, seed: int) -> list[Case]:
    """Candidates drawn from the packaged search spaces, each for the multiple of its scales next to ``side``."""
    draw = random.Random(seed)
    cases: dict[str, Case] = {}
    while len(cases) < count:
        chosen = space.load(draw.choice(space.names()))
        choices = {name: draw.choice(options) for name, options in chosen.choices.items()}
        try:
            spec = chosen.spec(choices, classes=4, in_channels=3)
            step = spec.total_scale
            case = Case(f"{chosen.name} {spec.digest()}", spec, max(1, round(side / step)) * step)
            costs.count(spec, case.side)
        except SpecError:
            continue  # choices that make no net
        cases.setdefault(spec.digest(), case)
    return list(cases.values())


def turn(contestant: Contestant, case: Case) -> tuple[int, float, float]:
    """The number, the seconds to build the net and the seconds to count it."""
    clock = time.perf_counter
    gc.collect()
    if contestant.device is None:
        seconds = []
        for _ in range(contestant.calls):
            start = clock()
            number = contestant.count(case)
            seconds.append(clock() - start)
        return number, 0.0, statistics.median(seconds)
    start = clock()
    with torch.device(contestant.device):
        net = models.build(case.spec).eval()
    built = clock() - start
    image = torch.zeros(1, case.spec.in_channels, case.side, case.side, device=contestant.device)  # (1, C, H, W)
    with torch.no_grad(), plain_spatial(net):
        start = clock()
        number = contestant.count(net, image)
        return number, built, clock() - start


def measure(cases: Sequence[Case], rounds: int, label: str) -> list[Row]:
    """Let all contestants count all cases, ``rounds`` times."""
    names = list(CONTESTANTS)
    warm_up = Case("warm-up", zoo.onenet_ed(depth=1, width=4), 16)
    for contestant in CONTESTANTS.values():
        turn(contestant, warm_up)
    samples: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for done in range(rounds):
        first = done % len(names)
        for case in cases:
            for name in names[first:] + names[:first]:
                samples.setdefault((case.name, name), []).append(turn(CONTESTANTS[name], case))
        print(f"{label}: round {done + 1} of {rounds}", file=sys.stderr)
    return [row_of(label, case.name, name, samples[case.name, name]) for case in cases for name in names]


def vectorised(rounds: int) -> dict[str, Any]:
    """Seconds per candidate where a whole space is screened at once."""
    chosen, side = space.load("levels"), 64
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        screened = screen(chosen, side, classes=4)
        seconds.append((time.perf_counter() - start) / len(screened))
    first, middle, third = quartiles(seconds)
    return {"space": chosen.name, "side": side, "candidates": len(screened), "q1": first, "count": middle, "q3": third}


def row_of(label: str, net: str, contestant: str, samples: Sequence[tuple[int, float, float]]) -> Row:
    numbers, builds, counts = zip(*samples, strict=True)
    if len(set(numbers)) > 1:
        raise RuntimeError(f"{contestant} must give one number for {net}, but gave {sorted(set(numbers))}")
    count = quartiles(counts)
    total = quartiles([built + counted for _, built, counted in samples])
    return Row(
        cases=label, net=net, contestant=contestant, number=numbers[0], rounds=len(samples),
        count_q1=count[0], count=count[1], count_q3=count[2], build=statistics.median(builds),
        total_q1=total[0], total=total[1], total_q3=total[2],
    )  # fmt: skip


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    sample = list(values)
    if len(sample) == 1:
        return sample[0], sample[0], sample[0]
    first, middle, third = statistics.quantiles(sample, n=4, method="inclusive")
    return first, middle, third


# Facts ---------------------------------------------------------------------------------------------------

TIMED = {"count": "counting alone", "total": "with building the net"}
AGAINST = {"fastest peer": PEERS, FVCORE: [FVCORE]}


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per set of cases and contestant: median and quartiles over the nets of their medians, and candidates a second."""
    facts = []
    for label in dict.fromkeys(row.cases for row in rows):
        for name in CONTESTANTS:
            own = [row for row in rows if (row.cases, row.contestant) == (label, name)]
            count, total = quartiles(row.count for row in own), quartiles(row.total for row in own)
            facts.append({
                "cases": label, "contestant": name, "nets": len(own),
                "count_q1": count[0], "count": count[1], "count_q3": count[2],
                "build": statistics.median(row.build for row in own),
                "total_q1": total[0], "total": total[1], "total_q3": total[2],
                "candidates_per_second": 1 / total[1],
            })  # fmt: skip
    return facts


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How many times longer than ours the fastest peer of each net, and fvcore, take: median, least and most over
    the nets."""
    facts = []
    for label in dict.fromkeys(row.cases for row in rows):
        nets = dict.fromkeys(row.net for row in rows if row.cases == label)
        by = {(row.net, row.contestant): row for row in rows if row.cases == label}
        for ours, (against, names), timed in itertools.product((OURS, SINGLE), AGAINST.items(), TIMED):
            found = [
                min(getattr(by[net, name], timed) for name in names) / getattr(by[net, ours], timed) for net in nets
            ]
            facts.append({
                "cases": label, "ours": ours, "against": against, "timed": timed, "nets": len(found),
                "median": statistics.median(found), "least": min(found), "most": max(found),
            })  # fmt: skip
    return facts


# Writing -------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{1e3 * seconds:#.3g}".rstrip(".") if seconds < 1 else f"{1e3 * seconds:,.0f}"


def markdown(facts: dict[str, Any]) -> str:
    """The page for people."""
    machine, versions = facts["machine"], facts["provenance"]["versions"]
    lines = [
        "# Seconds per candidate", "",
        f"Made by `{facts['command']}` on {facts['provenance']['time']}, commit {facts['provenance']['commit']}"
        f"{' with local changes' if facts['provenance']['dirty'] else ''}.", "",
        f"{machine['cpu']}, {machine['cores']} cores, one thread used, load {facts['load'][0]:.1f} before and "
        f"{facts['load'][1]:.1f} after; {machine['system']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", "",
        "One image. Milliseconds are medians over the nets of each net's median over the rounds, with the quartiles "
        "over the nets in brackets; *build* is making the module that the counter then runs; candidates a second "
        "include it.",
    ]  # fmt: skip
    for label, what in facts["cases"].items():
        lines += ["", f"## {what}", "", "| counter | count, ms | build, ms | with build, ms | candidates / s |",
                  "|---|---:|---:|---:|---:|"]  # fmt: skip
        for row in facts["summary"]:
            if row["cases"] == label:
                count, total = (
                    f"{milliseconds(row[t])} ({milliseconds(row[f'{t}_q1'])} – {milliseconds(row[f'{t}_q3'])})"
                    for t in TIMED
                )
                build = milliseconds(row["build"]) if row["build"] else "none"
                lines.append(
                    f"| {row['contestant']} | {count} | {build} | {total} | {row['candidates_per_second']:,.1f} |"
                )
        lines += ["", "Times longer, median (least – most) over the nets:", "",
                  f"| peer : ours | {' | '.join(TIMED.values())} |", "|---|---:|---:|"]  # fmt: skip
        for ours, against in itertools.product((OURS, SINGLE), AGAINST):
            cells = [
                f"{r['median']:,.0f} ({r['least']:,.0f} – {r['most']:,.0f})"
                for r in facts["ratios"]
                if (r["cases"], r["ours"], r["against"]) == (label, ours, against)
            ]
            lines.append(f"| {against} : {ours} | {' | '.join(cells)} |")
    whole = facts["vectorised"]
    lines += [
        "", "## A whole space at once", "",
        f"All {whole['candidates']:,} candidates of the space `{whole['space']}` at {whole['side']} x {whole['side']}, "
        f"vectorised, in the same run: {1e6 * whole['count']:.2f} µs per candidate "
        f"({1e6 * whole['q1']:.2f} – {1e6 * whole['q3']:.2f}), {1 / whole['count']:,.0f} candidates a second.",
        "", "## What each does", "",
    ]  # fmt: skip
    lines += [f"- **{name}**: {what}" for name, what in facts["contestants"].items()]
    lines += ["", "## Net by net: counting alone, ms", "",
              f"| net | {' | '.join(CONTESTANTS)} |", f"|---|{'---:|' * len(CONTESTANTS)}"]  # fmt: skip
    for net in dict.fromkeys(row["net"] for row in facts["rows"]):
        own = {row["contestant"]: row for row in facts["rows"] if row["net"] == net}
        lines.append(f"| {net} | {' | '.join(milliseconds(own[name]['count']) for name in CONTESTANTS)} |")
    return "\n".join(lines) + "\n"


def plot(facts: dict[str, Any]) -> go.Figure:
    """One dot per net, contestants below each other, time on a logarithmic axis."""
    names = list(CONTESTANTS)[::-1]
    figure = make_subplots(
        rows=1, cols=len(facts["cases"]), shared_yaxes=True, subplot_titles=list(facts["cases"].values()),
        horizontal_spacing=0.03,
    )  # fmt: skip
    for column, label in enumerate(facts["cases"], start=1):
        for timed, colour in (("count", "#0072b2"), ("total", "#d55e00")):
            own = [row for row in facts["rows"] if row["cases"] == label]
            lift = 0.14 if timed == "count" else -0.14
            figure.add_trace(
                go.Scatter(
                    x=[1e3 * row[timed] for row in own], y=[names.index(row["contestant"]) + lift for row in own],
                    text=[f"{row['net']}<br>{row['contestant']}" for row in own], mode="markers", name=TIMED[timed],
                    hovertemplate="%{text}<br>%{x:.3g} ms<extra></extra>", legendgroup=timed, showlegend=column == 1,
                    marker={"color": colour, "size": 8, "opacity": 0.6},
                ),
                row=1, col=column,
            )  # fmt: skip
        figure.update_xaxes(type="log", title="ms per candidate", dtick=1, row=1, col=column)
        figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, row=1, col=column)
    figure.update_layout(
        title="Time to count one candidate", template="plotly_white", height=90 + 44 * len(names), hovermode="closest",
        legend={"orientation": "h", "y": -0.16},
    )  # fmt: skip
    return figure


def write(facts: dict[str, Any], out: Path) -> None:
    """The four files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "profilers.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    with (out / "profilers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(facts["rows"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(facts["rows"])
    (out / "profilers.md").write_text(markdown(facts), encoding="utf-8")
    write_png(plot(facts), out / "profilers.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant on every net")
    parser.add_argument("--random", type=int, default=20, help="candidates drawn from the packaged search spaces")
    parser.add_argument("--resolution", type=int, default=256, help="side of the square image in pixels")
    parser.add_argument("--seed", type=int, default=0, help="decides which candidates are drawn")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder of the four files")
    said = parser.parse_args()
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    cases = {
        "zoo": zoo_cases(said.resolution),
        "random": random_cases(said.random, said.resolution, said.seed),
    }
    made = provenance()
    made["versions"] |= {name: importlib.metadata.version(name) for name in ("fvcore", "ptflops", "torchinfo")}
    rows = [row for label, own in cases.items() for row in measure(own, said.rounds, label)]
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "provenance": made,
        "machine": asdict(Machine.here()),
        "threads": 1,
        "load": [before, os.getloadavg()[0]],
        "resolution": said.resolution,
        "rounds": said.rounds,
        "cases": {
            "zoo": f"The {len(cases['zoo'])} nets of the zoo, {said.resolution} x {said.resolution}",
            "random": f"{len(cases['random'])} random candidates of the search spaces, sides next to {said.resolution}",
        },
        "contestants": {name: contestant.what for name, contestant in CONTESTANTS.items()},
        "vectorised": vectorised(said.rounds),
        "summary": summarise(rows),
        "ratios": ratios(rows),
        "rows": [asdict(row) for row in rows],
    }
    write(facts, said.out)
    for ratio in facts["ratios"]:
        what = f"{ratio['cases']}, {ratio['against']} : {ratio['ours']}, {TIMED[ratio['timed']]}"
        print(f"{what:75} {ratio['median']:8,.0f}")
    print(said.out / "profilers.md")


if __name__ == "__main__":
    main()
