"""The check that a maintainer's CI runs: nets against ``budgets.toml`` and its lock.

``check`` gives facts; ``RENDERERS`` turn them into a table for a terminal, Markdown for a pull request, JUnit XML and
JSON. The files and the comparison are ``onenet_bench.budget``'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from onenet_bench import budget, costs, zoo
from onenet_bench.budget import Counted, Finding, Layer, NetBudget, Verdict, from_to, number
from onenet_bench.errors import BudgetError, OnenetBenchError, known
from onenet_bench.plan import Plan, plan
from onenet_bench.record import COSTS
from onenet_bench.spec import NetSpec

CHANGES_SHOWN = 20
"""Layers per limit in a table; JUnit and JSON have them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckFacts:
    """What a check found. ``updated``: the lock was written anew, so that only ceilings can still be broken.

    ``uncounted`` names, by net, the operators that its counts leave out.
    """

    budgets: str
    findings: tuple[Finding, ...]
    uncounted: Mapping[str, tuple[str, ...]]
    updated: bool

    @property
    def differences(self) -> tuple[Finding, ...]:
        """The findings that are not as the lock and the ceilings say."""
        return tuple(finding for finding in self.findings if finding.verdict is not Verdict.OK)

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings that fail the check."""
        return tuple(f for f in self.differences if not (self.updated and f.exact))

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return not self.broken


def check(path: Path, *, update: bool = False) -> CheckFacts:
    """Count every net of the budgets file ``path`` and hold it to the lock and its ceilings.

    With ``update`` the lock is written anew, and the facts tell what became different. Spec files and modules are
    looked for from the folder of ``path``. Raises BudgetError for files that cannot be read or written, nets that
    cannot be counted, and ceilings on costs that are not counted.
    """
    entries = budget.read_budgets(path)
    lock = budget.lock_path(path)
    try:
        locked = budget.read_lock(lock)
    except BudgetError:
        if not update:
            raise
        locked = {}  # what is damaged is written anew
    counted: dict[str, Counted] = {}
    for entry in entries:
        try:
            counted[entry.title] = count(entry, path.parent)
        except OnenetBenchError as error:
            raise BudgetError(f"{path}, {entry.title}: {error}") from error
    findings = budget.compare(counted, {entry.title: entry.ceilings for entry in entries}, locked)
    if update:
        budget.write_lock(lock, {title: now.layers for title, now in counted.items()})
    return CheckFacts(
        budgets=str(path),
        findings=findings,
        uncounted={title: now.uncounted for title, now in counted.items() if now.uncounted},
        updated=update,
    )


def count(entry: NetBudget, folder: Path) -> Counted:
    """What the net of ``entry`` costs: from the plan for specs, without torch; by a run on the meta device for modules.

    Raises SpecError or BudgetError where the net cannot be counted, or one of its ceilings is on a cost that is not.
    """
    if entry.is_module:
        from onenet_bench.measure.modules import count_module

        now = count_module(entry.net, entry.size, entry.args, folder)
    else:
        spec = NetSpec.from_toml(folder / entry.net) if entry.net.endswith(".toml") else zoo.get(entry.net)
        height, width = entry.size
        now = _count_plan(plan(spec, (spec.in_channels, height, width)))
    for ceiling in entry.ceilings:
        if ceiling.cost not in now.costs:
            kind = "a module" if entry.is_module else "a spec"
            way_out = ", or give the net as a spec.toml" if entry.is_module else ""
            raise BudgetError(
                f"a ceiling holds a cost that can be counted, but {ceiling.cost} of {kind} cannot; "
                f"hold one of {', '.join(now.costs)}{way_out}"
            )
    return now


def _count_plan(lowered: Plan) -> Counted:
    all_costs = costs.count_plan(lowered)
    layers: dict[str, Layer] = {}
    for row in lowered.rows:
        if row.parameters or row.macs:
            layers[row.name] = Layer(row.parameters, row.macs if row.runs else 0)
    return Counted(
        costs={cost: value for cost in COSTS if (value := getattr(all_costs, cost)) is not None},
        layers=layers,
        uncounted=all_costs.uncounted,
    )


# Renderers -----------------------------------------------------------------------------------------------


def renderer(form: str) -> Callable[[CheckFacts], str]:
    """The renderer called ``form``. Raises BudgetError that lists the known ones."""
    if form not in RENDERERS:
        raise BudgetError(known("format", form, RENDERERS))
    return RENDERERS[form]


def write(path: Path, text: str) -> None:
    """Write a rendered check to ``path``. Raises BudgetError where that cannot be done, or where the file is named as
    budgets, locks and specs are."""
    if path.suffix in (".toml", ".lock"):
        raise BudgetError(f"--out must not replace budgets, a lock or a spec, but got {path}; name it {path.stem}.txt")
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BudgetError(f"--out must be a file that can be written, but {path} cannot: {error.strerror}") from error


def summary(facts: CheckFacts) -> str:
    """The outcome in one line: ``2 of 21 limits are broken``, and what to do about it."""
    if facts.updated:
        changed = sum(finding.exact for finding in facts.differences)
        ceilings = f"; {_many(len(facts.broken), 'ceiling')} broken" if facts.broken else ""
        lock = budget.lock_path(Path(facts.budgets)).name
        wrote = f"is written anew: {_many(changed, 'difference')}" if changed else "was up to date"
        return f"{lock} {wrote}{ceilings}"
    if facts.passed:
        return f"{_many(len(facts.findings), 'limit')} checked, all hold"
    ways = []
    if any(finding.exact for finding in facts.broken):
        ways.append("onenet-bench check --update locks the new counts, where they are meant")
    if any(not finding.exact for finding in facts.broken):
        ways.append("a ceiling is raised by hand")
    return f"{len(facts.broken)} of {_many(len(facts.findings), 'limit')} broken ({'; '.join(ways)})"


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _outcome(finding: Finding) -> str:
    """What became of the limit, in numbers: ``800 -> 1,200 (+50 %)``."""
    if finding.value is None or finding.limit is None:
        limit, value = ("none" if n is None else number(n) for n in (finding.limit, finding.value))
        return f"{limit} -> {value}"
    if not finding.exact:
        return f"{number(finding.value)} {'>' if finding.verdict is Verdict.OVER else '<='} {number(finding.limit)}"
    if finding.verdict is Verdict.MOVED:
        return f"{number(finding.value)}, in other layers"
    return number(finding.value) if finding.verdict is Verdict.OK else from_to(finding.limit, finding.value)


def _changes(finding: Finding) -> Iterator[str]:
    yield from map(str, finding.changes[:CHANGES_SHOWN])
    if len(finding.changes) > CHANGES_SHOWN:
        yield f"… and {len(finding.changes) - CHANGES_SHOWN} more layers (--format json names them all)"


def _left_out(facts: CheckFacts, net: str) -> str:
    return f"macs leave out: {', '.join(facts.uncounted[net])}"


def _by_net(facts: CheckFacts) -> dict[str, list[Finding]]:
    nets: dict[str, list[Finding]] = {}
    for finding in facts.findings:
        nets.setdefault(finding.net, []).append(finding)
    return nets


def _table(facts: CheckFacts) -> str:
    """For a terminal: a block per net, under each broken limit the layers that differ."""
    lines = []
    verdicts, names = (max(map(len, words)) for words in (Verdict, COSTS))
    for net, findings in _by_net(facts).items():
        lines.append(net)
        for finding in findings:
            verdict = str(finding.verdict) if finding.verdict is Verdict.OK else finding.verdict.upper()
            lines.append(f"  {verdict:{verdicts}}  {finding.cost:{names}}  {_outcome(finding)}")
            lines += [f"  {'':{verdicts}}    {change}" for change in _changes(finding)]
        if net in facts.uncounted:
            lines.append(f"  {'':{verdicts}}  {_left_out(facts, net)}")
    return "\n".join([*lines, "", summary(facts)])


def _markdown(facts: CheckFacts) -> str:
    """For a pull request's comment or a job's summary: what is different in full, all limits folded away."""
    lines = [f"### {'✅' if facts.passed else '❌'} onenet-bench check", "", f"{summary(facts)}.", ""]
    if facts.differences:
        lines += [*_markdown_table(facts.differences), ""]
    for finding in facts.differences:
        if finding.changes:
            lines += [f"**{finding.cost}** of {_code(finding.net)}, layer by layer:", ""]
            lines += [*(f"- {_code(change)}" for change in _changes(finding)), ""]
    for net, operators in facts.uncounted.items():
        lines += [f"The MACs of {_code(net)} leave out {', '.join(map(_code, operators))}.", ""]
    lines += ["<details><summary>All limits</summary>", "", *_markdown_table(facts.findings), "", "</details>"]
    return "\n".join(lines)


def _markdown_table(findings: tuple[Finding, ...]) -> list[str]:
    rows = ["| net | cost | | |", "|---|---|---|---|"]
    for finding in findings:
        net = _code(finding.net).replace("|", "\\|")
        rows.append(f"| {net} | {finding.cost} | {_outcome(finding)} | {finding.verdict} |")
    return rows


def _code(text: str) -> str:
    """``text`` as a span of code, whatever backticks are in it."""
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"


def _junit(facts: CheckFacts) -> str:
    """JUnit XML: one suite, one test case per net and limit; the layers that differ stand in its failure, what MACs
    leave out beside them."""
    suite = ElementTree.Element(
        "testsuite", name="onenet-bench check", tests=str(len(facts.findings)), failures=str(len(facts.broken)),
        errors="0", skipped="0",
    )  # fmt: skip
    for finding in facts.findings:
        name = f"{finding.cost} as locked" if finding.exact else f"{finding.cost} <= {number(finding.limit or 0)}"
        case = ElementTree.SubElement(suite, "testcase", classname=finding.net, name=name)
        if finding in facts.broken:
            message = f"{finding.verdict}: {finding.cost} {_outcome(finding)}"
            failure = ElementTree.SubElement(case, "failure", message=message, type=str(finding.verdict))
            failure.text = "\n".join([message, *map(str, finding.changes)])
        if finding.cost == "macs" and finding.net in facts.uncounted:
            ElementTree.SubElement(case, "system-out").text = _left_out(facts, finding.net)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


def _json(facts: CheckFacts) -> str:
    return json.dumps({"passed": facts.passed, "summary": summary(facts), **asdict(facts)}, indent=1, allow_nan=False)


RENDERERS: dict[str, Callable[[CheckFacts], str]] = {
    "table": _table,
    "markdown": _markdown,
    "junit": _junit,
    "json": _json,
}
"""Facts to text, by the name of ``--format``."""
