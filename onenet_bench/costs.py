"""Costs counted from the plan alone: exact, and before anything is trained.

Units and conventions of every number stand in ``onenet_bench.record.COSTS``. Integers are exact; they agree with
``sum(p.numel())`` and with torch's ``FlopCounterMode`` (which reports two per multiply-add).
"""

from __future__ import annotations

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
    rows = lowered.rows
    parameters = used = macs = elements = mult_adds = weighted = 0
    for row in rows:
        parameters += row.parameters
        if not row.runs:
            continue
        used += row.parameters
        macs += row.macs
        made = row.c_out * row.h_out * row.w_out
        if row.op not in IN_PLACE:
            elements += made
        if row.parameters:
            weighted += made
            mult_adds += _torchinfo_mult_adds(row)
    return Costs(
        parameters=parameters,
        parameters_used=used,
        macs=macs,
        activation_bytes=BYTES * elements,
        peak_inference_mib=BYTES * peak_elements(lowered) / 2**20,
        paper_flops=2 * mult_adds,
        paper_memory_mb=2 * BYTES * weighted / 1e6,
    )


def _torchinfo_mult_adds(row: Row) -> int:
    """What torchinfo 1.8 prints: a convolution's weights and biases times its output positions, other weights once."""
    if row.op == "spatial":
        return row.parameters * row.elements
    if row.op in ("conv", "up"):
        return row.parameters * row.h_out * row.w_out
    return row.parameters


def peak_elements(lowered: Plan) -> int:
    """The largest number of elements that live at one moment of an inference, the image included, weights not.

    A tensor lives from the row that makes it to the last row that reads it.
    """
    rows = lowered.rows
    storage = list(range(len(rows)))  # which row's memory a row's output lies in
    last_read = [0] * len(rows)
    for index, row in enumerate(rows):
        if not row.runs:
            continue
        if row.op in IN_PLACE:
            storage[index] = storage[row.inputs[0]] if row.inputs[0] >= 0 else index
        for source in row.inputs:
            if source >= 0:
                last_read[storage[source]] = index
    c, h, w = lowered.shape
    image = c * h * w  # the caller holds it throughout
    live = peak = image
    alive: list[int] = []
    for index, row in enumerate(rows):
        if not row.runs:
            continue
        if storage[index] == index:
            live += row.elements
            alive.append(index)
        peak = max(peak, live + scratch_elements(row))
        for dead in [i for i in alive if last_read[i] == index and i != lowered.output]:
            alive.remove(dead)
            live -= rows[dead].elements
    return peak


def scratch_elements(row: Row) -> int:
    """Elements that a row needs beside its input and output while it runs."""
    if row.op == "spatial":  # the padded copy of its input
        return row.elements + row.kernel - 1
    return 0


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
