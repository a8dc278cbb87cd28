"""A plotly figure as a PNG, drawn by Chromium: a hundredth of the size of a page with plotly.js in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def write_png(figure: go.Figure, path: Path, width: int = 1200) -> None:
    """Draw ``figure`` into ``path``. Needs Debian's chromium, or another one on the PATH by that name."""
    page_text = figure.to_html(include_plotlyjs=True, config={"staticPlot": True}, default_width=f"{width}px")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(QUIET))
        page = browser.new_page(viewport={"width": width + 20, "height": 400}, device_scale_factor=1.5)
        page.set_content(page_text)
        page.wait_for_selector(".main-svg")
        page.locator(".plotly-graph-div").screenshot(path=str(path))
        browser.close()
