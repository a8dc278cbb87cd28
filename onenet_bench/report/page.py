"""The page: one HTML file that needs nothing but a browser.

``page_facts`` reads a run and says everything that the page shows, as JSON-ready values; ``pictures`` turns its
sample arrays into images; ``build_page`` puts both into the template. The page asks for nothing over the network,
which its content security policy enforces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onenet_bench import ledger
from onenet_bench.report import figures, words
from onenet_bench.report.facts import page_facts
from onenet_bench.report.html_file import write_html
from onenet_bench.report.pictures import Pictures, pictures
from onenet_bench.report.tables import read_run

PAGE_BYTES = 8_000_000
"""What a page may weigh with its predictions; those of the front come first and the rest while there is room."""


def write_report(run: Path, out: Path) -> Path:
    """Write the page of the run in folder ``run`` to ``out``, all of it or nothing, and return ``out``.

    Raises LedgerError where there is no ledger that can be read, OnenetBenchError where ``out`` cannot be written.
    """
    return write_html(out, build_page(run))


def build_page(run: Path) -> str:
    """The page of the run in folder ``run`` as HTML. The same ledger and arrays make the same page.

    Raises LedgerError where there is no ledger that can be read.
    """
    with ledger.understood(run):
        read = read_run(run)
        facts = page_facts(read)
        room = PAGE_BYTES - len(_render(facts, Pictures()).encode(errors="backslashreplace"))
        return _render(facts, pictures(read, facts["gallery"]["trials"], room))


def _render(facts: dict[str, Any], images: Pictures) -> str:
    nets = {
        trial: {
            **net,
            "predictions": images.predictions.get(net["trial"]),
            "without_predictions": images.missing.get(net["trial"]),
        }
        for trial, net in facts["data"]["nets"].items()
    }
    return words.render(
        "page.html.jinja",
        command=facts["provenance"]["remake"],
        scripts=("charts.js", "page.js"),
        **{**facts, "data": {**facts["data"], "nets": nets}},
        images=images,
        colours={"front": figures.FRONT, "dominated": figures.DOMINATED, "knee": figures.KNEE},
    )
