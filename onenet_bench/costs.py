"""Costs counted from the plan alone: exact, and before anything is trained.

Units and conventions of every number stand in ``onenet_bench.record.COSTS``. Integers are exact; they agree with
``sum(p.numel())`` and with torch's ``FlopCounterMode`` (which reports two per multiply-add).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from onenet_bench.memory import BYTES, IN_PLACE, peak_elements, training_peak_bytes
from onenet_bench.plan import Plan, Row, plan
from onenet_bench.recipe import Recipe, check_heads
from onenet_bench.record import Costs
from onenet_bench.spec import NetSpec


def count(
    spec: NetSpec, resolution: int | tuple[int, int], *, batch: int | None = None, precision: str = "float32",
    deep_supervision: bool = False,
) -> Costs:  # fmt: skip
    """The costs of ``spec`` for one image of ``resolution`` pixels (side of a square, or height and width).

    ``peak_training_mib`` is counted where a ``batch`` is said. With ``deep_supervision`` it holds the decoder's other
    heads too, whose multiply-adds are ``supervision_macs``; what an inference costs stays the same. Raises SpecError
    where the resolution does not fit the net, RecipeError where there are no other heads.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return count_plan(
        plan(spec, (spec.in_channels, height, width)),
        batch=batch, precision=precision, deep_supervision=deep_supervision,
    )  # fmt: skip


def count_training(spec: NetSpec, resolution: int, recipe: Recipe) -> Costs:
    """The costs of ``spec`` at ``resolution``, those of its training by ``recipe`` included. Raises as ``count``."""
    return count(
        spec, resolution, batch=recipe.batch, precision=recipe.precision,
        deep_supervision=recipe.deep_supervision > 0,
    )  # fmt: skip


def count_plan(
    lowered: Plan, *, batch: int | None = None, precision: str = "float32", deep_supervision: bool = False
) -> Costs:
    """The costs of a net that is lowered already."""
    if deep_supervision:
        check_heads(len(lowered.heads))
    added = add_up(lowered.rows)
    peak = None if batch is None else training_peak_bytes(lowered, batch, precision, deep_supervision) / 2**20
    others = (lowered.rows[index] for index in lowered.heads if index != lowered.output)
    return Costs(
        **added.costs(),
        peak_inference_mib=BYTES * peak_elements(lowered) / 2**20,
        peak_training_mib=peak,
        supervision_macs=sum(row.macs for row in others) if deep_supervision else None,
    )


class Sums(NamedTuple):
    """What adds up over rows. Whole numbers, or arrays of them."""

    parameters: Any
    used: Any
    macs: Any
    elements: Any
    mult_adds: Any  # torchinfo's
    weighted: Any  # elements that rows with weights make

    def costs(self) -> dict[str, Any]:
        """The fields of Costs that are sums."""
        return {
            "parameters": self.parameters,
            "parameters_used": self.used,
            "macs": self.macs,
            "activation_bytes": BYTES * self.elements,
            "paper_flops": 2 * self.mult_adds,
            "paper_memory_mb": 2 * BYTES * self.weighted / 1e6,
        }


def add_up(rows: Iterable[Row]) -> Sums:
    """The sums over ``rows``; rows that never run count towards the parameters alone."""
    parameters = used = macs = elements = mult_adds = weighted = 0
    for row in rows:
        own = row.parameters
        if not row.again:
            parameters += own
            used += own * row.runs
        if not row.runs:
            continue
        op = row.op
        if own:
            positions = row.h_out * row.w_out
            made = row.c_out * positions
            macs += row.macs
            elements += made
            weighted += made
            # torchinfo 1.8: weights and biases times a convolution's output positions, a norm's once
            mult_adds += own * (not row.again) if op == "norm" else own * (made if op == "spatial" else positions)
        elif op not in IN_PLACE:
            elements += row.c_out * row.h_out * row.w_out
    return Sums(parameters, used, macs, elements, mult_adds, weighted)


class Traits(NamedTuple):
    """What is no cost and yet known beforehand, adds up over rows, and says something of a net's scores. Whole
    numbers, or arrays of them."""

    widened: Any  # pixels that windows add to what a logit sees, along the width, on the deepest path
    encoder_macs: Any

    def named(self) -> dict[str, Any]:
        """``extent``, the width in pixels of what a logit sees: the receptive field's, but for ends of lines and the
        sub-pixels of a pixel-unshuffle; ``encoder_macs``, those of stem and encoder."""
        return {"extent": 1 + self.widened, "encoder_macs": self.encoder_macs}


TRAITS = tuple(Traits(0, 0).named())


def traits(rows: Iterable[Row], side: int) -> Traits:
    """The traits of ``rows`` of a plan for images of ``side`` pixels."""
    widened = encoder_macs = 0
    for row in rows:
        if not row.runs:
            continue
        if row.level.startswith(("stem", "encoder")):
            encoder_macs += row.macs
        if row.op == "spatial":
            widened += 2 * -(-(row.kernel // 2) // row.c_in) * (side // row.w_in)
        elif row.op in ("conv", "maxpool", "unshuffle"):
            widened += (row.kernel - 1) * (side // row.w_in)
    return Traits(widened, encoder_macs)


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
