"""What a screening says, in sentences and as the tables of a terminal: the facts of ``onenet_bench.report.survey``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onenet_bench.report.figures import spread
from onenet_bench.report.survey import BUCKETED, LISTED, Net, ScreeningFacts, title
from onenet_bench.report.tables import NBSP, plain, show_apart, show_limit


def percent(share: float | None) -> str:
    """A share for people: ``63 %``, ``2.4 %``, ``under 0.1 %``."""
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return f"under 0.1{NBSP}%"
    shown = f"{100 * share:.0f}" if share >= 0.0995 or share == 0 else f"{100 * share:.1f}"
    return f"over 99{NBSP}%" if shown == "100" and share < 1 else f"{shown}{NBSP}%"


def how_counted(facts: ScreeningFacts) -> str:
    """Whether all was counted, in a sentence."""
    if not facts.sampled:
        return f"All {facts.combinations:,} combinations were counted, every one exactly."
    return (
        f"The space has more combinations than are enumerated (--most): {facts.counted:,} of its "
        f"{facts.combinations:,} combinations were drawn at random, with replacement, and each was counted exactly. "
        "Shares are estimates for the space, numbers of nets are those of the sample, and fronts are at best close to "
        "those of the space."
    )


def how_many_repeat(facts: ScreeningFacts) -> str:
    """How many of the combinations that make a net make one that was counted already, in words."""
    repeated = facts.counted - facts.impossible - facts.distinct
    return f"{repeated:,} more repeat{'s' * (repeated == 1)} one of them" if repeated else "none repeats another"


def what_fits(facts: ScreeningFacts) -> str:
    """How much fits, in a sentence."""
    nets = f"{facts.distinct:,} distinct nets"
    if not facts.limits:
        return f"No budget was set, so all {nets} count as fitting."
    if facts.fitting in (0, facts.distinct):
        sentence = f"{'All' if facts.fitting else 'None of the'} {nets} fit the budget."
    else:
        sentence = f"{facts.fitting:,} of the {nets} fit the budget ({percent(facts.fitting / facts.distinct)})."
    if facts.sampled:
        sentence += (
            f" Of all combinations that make a net, {100 * facts.fitting_share:.2f} % fit, "
            f"give or take {100 * facts.margin:.2f} points (95 % of samples)."
        )
    return sentence


def what_binds(facts: ScreeningFacts) -> str:
    """Which limit costs most nets, in a sentence; empty where no limit alone costs any."""
    binding = max(facts.limits, key=lambda limit: limit.more_without, default=None)
    if binding is None or not binding.more_without:
        return ""
    return (
        f"The limit that costs most is the one on {title(binding.cost)}: {binding.more_without:,} more nets would fit "
        "without it."
    )


# In a terminal -------------------------------------------------------------------------------------------------


def terminal_table(facts: ScreeningFacts) -> Group:
    """The counts, the limits, the choices that the budget moves most, and the fronts."""
    counts = _table("", ">", "")
    counts.show_header = False
    counts.add_row("combinations", f"{facts.combinations:,}", "")
    if facts.sampled:
        counts.add_row("drawn at random", f"{facts.counted:,}", "more combinations than are enumerated (--most)")
    counts.add_row("make no net", f"{facts.impossible:,}", escape(facts.impossible_because))
    counts.add_row("distinct nets", f"{facts.distinct:,}", "")
    counts.add_row("within the budget", f"{facts.fitting:,}", percent(facts.fitting / facts.distinct))
    image = f"one {facts.in_channels}x{facts.resolution}x{facts.resolution} image, {facts.classes} classes"
    parts: list[Any] = [Text(": ".join(filter(None, (facts.space, facts.summary)))), Text(image), Text(), counts]
    if facts.limits:
        limits = _table("limit", "at most >", "nets\nwithin it >", "more would fit\nwithout it >", "least\nthere is >")
        for limit in facts.limits:
            _, least = show_apart(limit.cost, limit.at_most, limit.least)
            limits.add_row(
                title(limit.cost),
                show_limit(limit.cost, limit.at_most),
                f"{limit.within:,}",
                f"{limit.more_without:,}",
                least,
            )
        parts += [Text(), limits]
    moved = [choice for choice in facts.choices if choice.moved >= 0.005][:6]
    if moved:
        survival = _table("choice", "share of all -> share of what fits, where the budget moves most")
        for choice in moved:
            options = (
                f"{plain(o.option)}: {percent(o.share)} -> {percent(o.share_of_fitting)}" for o in choice.options
            )
            survival.add_row(escape(choice.name), escape("   ".join(options)))
        parts += [Text(), survival]
    fronts = _table("static front", "nets >")
    for front in facts.fronts:
        fronts.add_row(front.title, f"{sum(front.alike):,}")
    parts += [Text(), fronts]
    if facts.largest.nets:
        names = list(dict.fromkeys([*BUCKETED, *(limit.cost for limit in facts.limits)]))
        largest = _table("largest that fit", *(title(name).replace(" ", "\n") + " >" for name in names))
        nets = [facts.nets[index] for index in spread(facts.largest.nets, LISTED)]
        for net, texts in zip(nets, costs_texts(nets, names), strict=True):
            largest.add_row(f"{escape(net.label)}\n{escape(choices_text(net))}", *texts)
        parts += [Text(), largest]
    return Group(*parts)


def _table(*headings: str) -> Table:
    """A table without lines; columns whose heading ends in > are numbers."""
    table = Table(box=None, padding=(0, 1))
    for heading in headings:
        number = heading.endswith(">")
        table.add_column(heading.rstrip("> "), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def choices_text(net: Net) -> str:
    """``depth 3, width 12, …``."""
    return ", ".join(f"{name} {plain(value)}" for name, value in net.choices.items())


def costs_texts(nets: Sequence[Net], names: Sequence[str]) -> list[list[str]]:
    """Each net's costs of these ``names``; all of a cost in full where different ones would look the same."""
    columns = [show_apart(name, *(net.costs[name] for net in nets)) for name in names]
    return [list(row) for row in zip(*columns, strict=True)]
