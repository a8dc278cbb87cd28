"""Costs counted from the plan alone: exact, and before anything is trained.

Units and conventions of every number stand in ``onenet_bench.record.COSTS``. Integers are exact; they agree with
``sum(p.numel())`` and with torch's ``FlopCounterMode`` (which reports two per multiply-add).
"""

from __future__ import annotations

from collections.abc import Callable

from onenet_bench.plan import Plan, Row, plan
from onenet_bench.record import Costs
from onenet_bench.spec import NetSpec

BYTES = 4
"""Bytes of a float32 number."""

IN_PLACE = frozenset({"relu", "add"})
"""Rows that write their output over their first input."""


def count(spec: NetSpec, resolution: int | tuple[int, int]) -> Costs:
    """The costs of ``spec`` for one image of ``resolution`` pixels (side of a square, or height and width).

    Raises SpecError where the resolution does not fit the net.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return count_plan(plan(spec, (spec.in_channels, height, width)))


def count_plan(lowered: Plan) -> Costs:
    """The costs of a net that is lowered already."""
    parameters = used = macs = elements = mult_adds = weighted = 0
    for row in lowered.rows:
        own = row.parameters
        parameters += own
        if not row.runs:
            continue
        op = row.op
        if own:
            positions = row.h_out * row.w_out
            made = row.c_out * positions
            used += own
            macs += row.macs
            elements += made
            weighted += made
            # torchinfo 1.8: weights and biases times a convolution's output positions, a norm's once
            mult_adds += own if op == "norm" else own * (made if op == "spatial" else positions)
        elif op not in IN_PLACE:
            elements += row.c_out * row.h_out * row.w_out
    return Costs(
        parameters=parameters,
        parameters_used=used,
        macs=macs,
        activation_bytes=BYTES * elements,
        peak_inference_mib=BYTES * peak_elements(lowered) / 2**20,
        paper_flops=2 * mult_adds,
        paper_memory_mb=2 * BYTES * weighted / 1e6,
    )


def peak_elements(lowered: Plan) -> int:
    """The largest number of elements that live at one moment of an inference, the image included, weights not.

    A tensor lives from the row that makes it to the last row that reads it, which is the first one met going back.
    """
    rows = lowered.rows
    c, h, w = lowered.shape
    wanted = {-1, lowered.output}  # whose outputs are read later; the image's and the logits' by the caller
    live = peak = c * h * w + rows[lowered.output].elements
    for row in reversed(rows):
        if not row.runs:
            continue
        op, inputs = row.op, row.inputs
        in_place = op in IN_PLACE and inputs[0] >= 0
        if in_place:
            wanted.add(inputs[0])  # whose memory is the output's, which lives already
        for source in inputs:
            if source not in wanted:
                wanted.add(source)
                made = rows[source]
                live += made.c_out * made.h_out * made.w_out
        needed = live + SCRATCH[op](row) if op in SCRATCH else live
        if needed > peak:
            peak = needed
        if not in_place:
            live -= row.c_out * row.h_out * row.w_out
    return peak


SCRATCH: dict[str, Callable[[Row], int]] = {
    "spatial": lambda row: row.elements + row.kernel - 1,  # the padded copy of its input
}
"""Elements that a row needs beside its input and output while it runs, where it does."""


def by_level(lowered: Plan) -> dict[str, dict[str, int]]:
    """Parameters, MACs and activation bytes of every level, in order of execution; rows that never run count
    towards parameters alone."""
    levels: dict[str, dict[str, int]] = {}
    for row in lowered.rows:
        level = levels.setdefault(row.level, {"parameters": 0, "macs": 0, "activation_bytes": 0})
        level["parameters"] += row.parameters
        if row.runs:
            level["macs"] += row.macs
            if row.op not in IN_PLACE:
                level["activation_bytes"] += BYTES * row.elements
    return levels
