"""Pages and tables from a run's ledger: the reading end of the package.

``write_report`` makes the page; ``front_table`` and ``final_table`` show the front and the final trainings in a
terminal, ``front_rows`` and ``final_rows`` are their numbers. Everything is computed as facts first and drawn
afterwards; nothing here trains, and nothing imports torch.
"""

from onenet_bench.report.figures import front_facts, plot_front
from onenet_bench.report.finals import final_facts, final_rows, final_table
from onenet_bench.report.page import build_page, write_report
from onenet_bench.report.tables import front_rows, front_table

__all__ = [
    "build_page",
    "final_facts",
    "final_rows",
    "final_table",
    "front_facts",
    "front_rows",
    "front_table",
    "plot_front",
    "write_report",
]
