"""Commands that count, without building or training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onenet_bench.cli.options import Json, Net, app, print_json, print_table, side
from onenet_bench.recipe import MOST_IMAGES


@app.command()
def profile(
    net: Net,
    resolution: Annotated[int, side()] = 256,
    batch: Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="Images per step, for the peak of training.")] = 16,
    layers: Annotated[bool, typer.Option("--layers", help="Every layer, not only every level.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Ask other counters too and name each difference.")] = False,
    json_: Json = False,
) -> None:
    """Count what a net costs, exactly and without building it; exit code 1 where --verify leaves one unexplained."""
    from rich.markup import escape
    from rich.table import Table

    from onenet_bench import costs, zoo
    from onenet_bench.field import receptive_field
    from onenet_bench.plan import plan
    from onenet_bench.record import COSTS

    spec = zoo.read(net)
    lowered = plan(spec, (spec.in_channels, resolution, resolution))
    counted = costs.count_plan(lowered, batch=batch)
    field = receptive_field(spec)
    verification = None
    if verify:
        from onenet_bench.measure import counters

        verification = counters.verify(spec, resolution)
    agrees = verification is None or verification.agrees
    if json_:
        print_json(
            {"net": net, "digest": spec.digest(), "resolution": resolution, "batch": batch,
             "costs": counted.to_dict(),
             "receptive_field": field._asdict(), "levels": costs.by_level(lowered), "spec": spec.to_dict(),
             **({"layers": [row._asdict() for row in lowered.rows]} if layers else {}),
             **({"verification": verification.to_dict()} if verification else {})}
        )  # fmt: skip
        raise typer.Exit(0 if agrees else 1)
    table = Table(title=f"{escape(net)}: {spec.label()}, one {spec.in_channels}x{resolution}x{resolution} image",
                  title_justify="left", box=None, padding=(0, 2))  # fmt: skip
    for heading in ("cost", "", "what is counted"):
        table.add_column(heading, justify="right" if not heading else "left")
    for name, column in COSTS.items():
        value = getattr(counted, name)
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
            what = column.convention.replace("on one batch", f"on one batch of {batch}")
            table.add_row(name, f"{shown} {column.unit}".strip(), what)
    seen = "height x width of the image that a pixel of the logits can depend on, far from the borders"
    table.add_row("receptive_field", f"{field.height} x {field.width} px", seen)
    print_table(table)
    parts = Table(box=None, padding=(0, 2))
    headings = ("parameters", "macs", "activation_bytes")
    parts.add_column("layer" if layers else "level")
    for heading in headings:
        parts.add_column(heading, justify="right")
    if layers:
        for row in lowered.rows:
            size = f"{4 * row.elements:,}"
            parts.add_row(
                row.name if row.runs else f"{row.name} (never runs)", f"{row.parameters:,}", f"{row.macs:,}", size
            )
    else:
        for level, sums in costs.by_level(lowered).items():
            parts.add_row(level, *(f"{sums[heading]:,}" for heading in headings))
    print_table(parts)
    if verification:
        print_table(counters.verification_table(verification))
    raise typer.Exit(0 if agrees else 1)


@app.command()
def table2(
    html: Annotated[Path | None, typer.Option(help="Write the page to this file too.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    json_: Json = False,
) -> None:
    """The OneNet paper's Table 2 recounted: every published figure beside ours, and the true numbers."""
    from onenet_bench.report import table2 as published

    facts = published.table2_facts()
    if html is not None:
        published.write_table2(facts, html)
    if json_:
        print_json(published.to_dict(facts))
    elif csv:
        print(published.csv_text(facts), end="")
    else:
        print_table(published.terminal_table(facts))
        if html is not None:
            print(f"\npage: {html}")


@app.command()
def check(
    budgets: Annotated[Path, typer.Argument(help="The file that names nets and limits.")] = Path("budgets.toml"),
    update: Annotated[bool, typer.Option("--update", help="Write the lock anew and show the difference.")] = False,
    form: Annotated[str, typer.Option("--format", help="table, markdown, junit or json.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Hold nets to their locked costs and their ceilings; exit code 1 where one is broken."""
    from onenet_bench import checking

    shown = checking.renderer(form)
    facts = checking.check(budgets, update=update)
    if out is None:
        print(shown(facts))
    else:
        checking.write(out, shown(facts))
        print(checking.summary(facts))
    raise typer.Exit(0 if facts.passed else 1)
