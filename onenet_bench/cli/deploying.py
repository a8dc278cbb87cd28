"""The command that takes a net elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onenet_bench.cli.options import Json, absolute, app, print_json, print_table, side

EXPORTED = Path("results/exported")


@app.command()
def export(
    net: Annotated[str, typer.Argument(help="A checkpoint, a net of the zoo by name, or the path of a spec.toml.")],
    to: Annotated[str, typer.Option(help="onnx or torch-export.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Also a quantised file, its score beside the float32's.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="As for train: for int8 and the check (what the net was trained on).")
    ] = None,
    calibrate_on: Annotated[str, typer.Option(help="Split that int8 ranges come from: train or validation.")] = "train",
    resolution: Annotated[int | None, side("in pixels (as in training, else 256)")] = None,
    naive: Annotated[bool, typer.Option("--naive", help="Layer by layer as trained, nothing simplified.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of files and cards.")] = EXPORTED,
    json_: Json = False,
) -> None:
    """Write a net for another runtime, simplified exactly and checked; exit code 1 where it came out different."""
    import torch
    from rich.table import Table

    from onenet_bench import deployment

    torch.set_num_threads(1)
    source = deployment.open_source(net, None if data is None else absolute(data), resolution)
    done = deployment.export(
        source, to, out, resolution=resolution, naive=naive, int8=int8, calibrate_on=calibrate_on
    )  # fmt: skip
    if not source.trained:
        print(f"onenet-bench: {net} has no weights: its file computes with random ones", file=sys.stderr)
    for note in source.notes:
        print(f"onenet-bench: {note}", file=sys.stderr)
    for one in done:
        if not one.accepted:
            print(
                f"onenet-bench: logits must not differ by more than {one.allowed:.1e}, but those of {one.path.name} "
                f"differ by {one.difference:.1e}; nothing was written",
                file=sys.stderr,
            )
    if json_:
        print_json([{"path": str(one.path), "accepted": one.accepted, **one.card} for one in done])
    for one in done if not json_ else ():
        if not one.accepted:
            continue
        print(f"{one.path}  {len(one.path.read_bytes()) / 2**20:.1f} MiB, {one.card['form']}")
        if "check" in one.card:
            check = one.card["check"]
            images = f" and on {check['images']} of the data" if check["images"] else ""
            print(
                f"largest difference of logits: {check['difference']:.1e} (allowed {check['allowed']:.1e}), on random "
                f"images{images}, in batches of {', '.join(map(str, check['batches']))}"
            )
        if "int8" in one.card:
            scored = one.card["int8"]
            of = f" of {one.card['data']['data']}" if one.card["data"] else ""
            before, after = scored["before"]["miou"], scored["after"]["miou"]
            print(
                f"mIoU, {scored['scored_on']}{of}, {scored['images']} images: float32 {before:.4f}, int8 {after:.4f}, "
                f"{100 * (after - before):+.2f} points"
            )
    if not json_ and all(one.accepted for one in done):
        counted = done[0].card["costs"]
        table = Table(box=None, padding=(0, 2))
        for heading in ("", "parameters", "MACs", "peak memory, MiB"):
            table.add_column(heading, justify="right" if heading else "left")
        for form, of in counted.items():
            table.add_row(form, f"{of['parameters']:,}", f"{of['macs']:,}", f"{of['peak_inference_mib']:.1f}")
        print()
        print_table(table)
    raise typer.Exit(0 if all(one.accepted for one in done) else 1)
