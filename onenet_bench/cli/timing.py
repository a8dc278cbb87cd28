"""Commands that time."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onenet_bench.cli.options import MOST_THREADS, Device, Json, app, print_json, print_table, side
from onenet_bench.errors import MeasureError

if TYPE_CHECKING:
    from onenet_bench.measure.latency import Latency
    from onenet_bench.measure.latency_model import Judgement, Predictor


@app.command()
def latency(
    nets: Annotated[list[str] | None, typer.Argument(help="Nets of the zoo, or paths of spec.toml files.")] = None,
    runtime: Annotated[str, typer.Option(help="What runs them: onnxruntime or torch.")] = "onnxruntime",
    form: Annotated[str, typer.Option(help="deployed (rewritten for inference), or trained.")] = "deployed",
    resolution: Annotated[int, side()] = 256,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    threads: Annotated[int, typer.Option(max=MOST_THREADS, help="CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Runs of each net that are timed.")] = 30,
    device: Device = "cpu",
    fit: Annotated[bool, typer.Option("--fit", help="Fit the predictor of latencies, and say its error.")] = False,
    json_: Json = False,
) -> None:  # fmt: skip
    """Time inferences in real runs, several nets taking turns."""
    from onenet_bench import costs, zoo
    from onenet_bench.measure import latency as timing

    if not nets and not fit:
        raise MeasureError("latency needs a net to time, but got none; name one of the zoo, or a spec.toml")
    conditions = timing.Conditions(
        runtime=runtime, form=form, resolution=resolution, batch=batch, threads=threads, device=device
    )
    nets = nets or []
    specs = [zoo.read(net) for net in nets]
    found = timing.measure(specs, conditions, repeats=repeats) if specs else ()
    rows: list[dict[str, Any]] = [
        {
            "net": net, "median_ms": one.median_ms, "quartiles_ms": list(one.quartiles_ms), "samples": repeats,
            "relative": one.median_ms / found[0].median_ms,
            "macs_per_second": 1e3 * batch * costs.count(one.spec, resolution).macs / one.median_ms,
            "waited_share": one.waited_share,
        }
        for net, one in zip(nets, found, strict=True)
    ]  # fmt: skip
    predictor = judgement = None
    if fit:
        from onenet_bench.measure import latency_model

        predictor = latency_model.fit(conditions)
        judgement = predictor.judge(latency_model.judges(conditions))
        for row, spec in zip(rows, specs, strict=True):
            row["predicted_ms"] = predictor.predict_ms(spec, resolution)
    if json_:
        runs = [{"wall_ms": list(one.wall_ms), "waited_ms": list(one.waited_ms)} for one in found]
        print_json({
            "conditions": asdict(conditions), "place": timing.place(conditions),
            "nets": [row | kept for row, kept in zip(rows, runs, strict=True)],
            **({"predictor": predictor.to_dict(), "judgement": judgement and asdict(judgement)} if predictor else {}),
        })  # fmt: skip
        return
    if found:
        _print_times(rows, found)
    if predictor:
        _print_predictor(predictor, judgement)


def _print_times(rows: list[dict[str, Any]], found: tuple[Latency, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("net", overflow="fold")
    is_predicted = "predicted_ms" in rows[0]
    for heading in ("median\nms", "quartiles", "runs", "relative", "GMAC/s", "waited\nfor a\ncore",
                    *(["predicted\nms"] if is_predicted else [])):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        low, high = map(_three_digits, row["quartiles_ms"])
        table.add_row(escape(row["net"]), _three_digits(row["median_ms"]), f"{low} to {high}", str(row["samples"]),
                      f"{row['relative']:.2f}", f"{row['macs_per_second'] / 1e9:.1f}", f"{row['waited_share']:.0%}",
                      *([_three_digits(row["predicted_ms"])] if is_predicted else []))  # fmt: skip
    print(found[0].conditions)
    print_table(table)
    machine = found[0].place["machine"]
    print(f"on {machine['gpu'] or machine['cpu']}; time on a core, without waiting for one")


def _three_digits(value: float) -> str:
    """``7.00`` and ``1234``: three significant digits, whole numbers whole."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _print_predictor(predictor: Predictor, judgement: Judgement | None) -> None:
    from rich.table import Table

    from onenet_bench.measure.latency_model import KINDS, PROBES

    facts = predictor.to_dict()
    table = Table(title="What the predictor charges, in microseconds", title_justify="left", box=None, padding=(0, 2))
    for heading in ("layers", "per 10^6 MACs", "per MB", "each", ""):
        table.add_column(heading, justify="right" if heading not in ("layers", "") else "left")
    for kind, prices in facts["prices_us"].items():
        table.add_row(kind, *(f"{price:.3g}" for price in prices.values()), KINDS[kind])
    table.add_row("weights", "", f"{facts['us_per_mb_of_weights']:.3g}", "", "read in every run")
    table.add_row("a run", "", "", f"{facts['us_per_run']:.3g}", "beside its layers")
    print_table(table)
    print(f"fitted to {PROBES} nets of one level each")
    if judgement is None:
        print("how far it is off is known once two other nets were measured: name some beside --fit")
    else:
        print(f"on {judgement.nets} other nets measured here: median error {judgement.median_error:.0%}, 90th "
              f"percentile {judgement.p90_error:.0%}, rank correlation {judgement.rank_correlation:.3f}")  # fmt: skip
