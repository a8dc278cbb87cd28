"""When a search has found what it will find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onenet_bench import ledger, pareto
from onenet_bench.record import Record, Status

GROWTH = 0.01
"""A front whose hypervolume grows by less than this share of itself stands still."""


BEYOND = 2.0
"""The reference costs so many times what the dearest candidate does."""


def stalled(records: Sequence[Record], objectives: Sequence[pareto.Objective], window: int) -> str:
    """Why the search may end: the last ``window`` complete candidates hardly moved the front. Empty where they did.

    ``records`` in the order in which they ended; those that lack an objective are passed over. The hypervolume's box
    is that of all complete candidates, so it is the same before and after; its reference lies beyond the dearest of
    them, or that one's score would not count.
    """
    frame = ledger.frame([record for record in records if record.status is Status.COMPLETE])
    frame = frame.dropna(subset=[o.name for o in objectives])
    if len(frame) < 2 * window:
        return ""
    box = pareto.Box.around(objectives, frame)
    worst = [w if o.is_score else w * BEYOND for o, w in zip(objectives, box.worst, strict=True)]
    box = replace(box, worst=tuple(worst))
    before, now = box.hypervolume(frame.iloc[:-window]), box.hypervolume(frame)
    if now > 0 and (now - before) / now < GROWTH:
        return f"the front's hypervolume grew by less than {GROWTH:.0%} over the last {window} trained candidates"
    return ""
