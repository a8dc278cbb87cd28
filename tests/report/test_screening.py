"""The page of a screening in a real browser. Every test also fails on an error in the console, on a dialog, and on any
request beyond the file itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onenet_bench import space
from onenet_bench.budget import Budget
from onenet_bench.report.screening import write_screening
from onenet_bench.report.survey import PAIRS, ScreeningFacts, screening_facts
from onenet_bench.report.survey_words import choices_text
from onenet_bench.report.tables import show
from onenet_bench.screen import screen
from tests.report.test_browser import Reader, browser

__all__ = ["browser"]  # the fixture

pytestmark = pytest.mark.browser

POINTS = """
(chart, role) => {
  const trace = chart.data.find((each) => each.meta === role);
  const { xaxis, yaxis } = chart._fullLayout, box = chart.getBoundingClientRect();
  return trace.customdata.map((net, i) => ({ net, x: trace.x[i], y: trace.y[i],
    left: box.left + xaxis._offset + xaxis.d2p(trace.x[i]), top: box.top + yaxis._offset + yaxis.d2p(trace.y[i]) }));
}
"""


@pytest.fixture(scope="module")
def facts() -> ScreeningFacts:
    budget = [Budget.parse(text) for text in ("macs <= 25M", "parameters <= 80k")]
    return screening_facts(screen(space.load("hybrid"), 64, classes=8), budget)


@pytest.fixture(scope="module")
def path(facts: ScreeningFacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screening(facts, tmp_path_factory.mktemp("page") / "screen.html", "onenet-bench screen --space hybrid")


@pytest.fixture
def reader(browser: Any, path: Path) -> Iterator[Reader]:
    reader = Reader(browser, {})
    reader.page.goto(path.as_uri())
    reader.until("document.querySelectorAll('.chart .main-svg').length >= 18")  # two for each of nine charts
    yield reader
    reader.context.close()
    assert reader.wrong == []
    beyond = [url for url in reader.requests if not url.startswith(("data:", "blob:"))]
    assert beyond == [path.as_uri()]


def points(reader: Reader, chart: int, role: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = reader.page.locator(".panel .chart").nth(chart).evaluate(POINTS, role)
    return found


def apart(reader: Reader, chart: int, role: str) -> dict[str, float]:
    """The point of a front that is farthest from every other point of its chart."""
    others = [point for each in ("least", "most", "largest") for point in points(reader, chart, each)]

    def room(point: dict[str, float]) -> float:
        away = [math.dist((point["left"], point["top"]), (o["left"], o["top"])) for o in others]
        return min((d for d, o in zip(away, others, strict=True) if o["net"] != point["net"]), default=math.inf)

    return max(points(reader, chart, role), key=room)


def hover(reader: Reader, left: float, top: float) -> str:
    reader.page.mouse.move(left, top)
    reader.page.wait_for_selector(".hoverlayer .hovertext")
    return str(reader.page.locator(".hoverlayer .hovertext").first.text_content()).replace("\u00a0", " ")


def test_fronts_are_points_that_name_their_choices(reader: Reader, facts: ScreeningFacts) -> None:
    reader.page.locator(".panel .chart").nth(0).scroll_into_view_if_needed()
    for chart, (x, y) in enumerate(PAIRS):
        pair = next(pair for pair in facts.pairs if (pair.x, pair.y) == (x, y))
        for front in (pair.least, pair.most, facts.largest):
            shown = points(reader, chart, front.kind)
            assert {point["net"] for point in shown} <= set(front.nets)
            assert len(shown) == min(60, len(front.nets))
            for point in shown:
                net = facts.nets[int(point["net"])]
                assert (point["x"], point["y"]) == (net.costs[x], net.costs[y])
    point = apart(reader, 0, "most")
    net = facts.nets[int(point["net"])]
    text = hover(reader, point["left"], point["top"])
    assert text.startswith(f"{net.label}most parameters for its MACs")
    assert f"MACs: {show('macs', net.costs['macs'])}".replace("\u00a0", " ") in text
    assert all(f"{name} {value}" in text for name, value in net.choices.items())


def test_shades_tell_how_many_nets_lie_there(reader: Reader, facts: ScreeningFacts) -> None:
    reader.page.locator(".panel .chart").nth(0).scroll_into_view_if_needed()
    pair = next(pair for pair in facts.pairs if (pair.x, pair.y) == PAIRS[0])
    b, a = divmod(int(pair.nets.argmax()), pair.nets.shape[1])
    edges = {histogram.cost: histogram.edges for histogram in facts.histograms}
    middle = [(edges[name][i] * edges[name][i + 1]) ** 0.5 for name, i in ((pair.x, a), (pair.y, b))]
    left, top = reader.page.locator(".panel .chart").nth(0).evaluate(
        "(chart, [x, y]) => { const { xaxis, yaxis } = chart._fullLayout, box = chart.getBoundingClientRect();"
        " return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)]; }", middle
    )  # fmt: skip
    assert hover(reader, left, top).startswith(f"{pair.nets[b, a]} nets, {pair.fitting[b, a]} fit")


def test_histogram_bars_tell_their_numbers(reader: Reader, facts: ScreeningFacts) -> None:
    assert reader.page.locator("[data-histogram]").count() == 6  # all parameters are used: one histogram less
    chart = reader.page.locator("[data-histogram=macs]")
    chart.scroll_into_view_if_needed()
    macs = next(histogram for histogram in facts.histograms if histogram.cost == "macs")
    at = max(range(len(macs.nets)), key=lambda i: macs.nets[i])
    bars = chart.locator(".barlayer .trace").nth(0 if macs.fitting[at] else 1).locator(".point path")
    box = bars.nth(at).bounding_box()
    text = hover(reader, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert text.endswith(f"{macs.nets[at]:,} nets, {macs.fitting[at]:,} fit")


def test_a_click_on_a_net_shows_its_row(reader: Reader, facts: ScreeningFacts) -> None:
    page = reader.page
    page.locator(".panel .chart").nth(0).scroll_into_view_if_needed()
    point = apart(reader, 0, "most")
    page.mouse.click(point["left"], point["top"])
    reader.until("document.querySelectorAll('tr.shown').length === 1")
    row = page.locator("tr.shown")
    assert row.get_attribute("data-net") == str(point["net"])
    net = facts.nets[int(point["net"])]
    assert choices_text(net) in row.inner_text()
    assert net.label in row.inner_text()
    reader.until("document.querySelector('tr.shown').getBoundingClientRect().bottom <= innerHeight")


def test_a_click_on_a_net_without_a_row_says_so(reader: Reader, facts: ScreeningFacts) -> None:
    panel = reader.page.locator(".panel").nth(0)
    panel.scroll_into_view_if_needed()
    panel.locator("select.x").select_option("activation_bytes")
    reader.until("document.querySelector('.panel .xtitle').textContent.startsWith('Activations')")
    listed = {index for front in facts.fronts for index in front.nets}
    point = next(point for point in points(reader, 0, "most") if point["net"] not in listed)
    reader.page.mouse.click(point["left"], point["top"])
    reader.until("document.querySelector('.unlisted').textContent.includes('not in the table')")
    assert reader.page.locator("tr.shown").count() == 0
    panel.locator("select.x").select_option("macs")
    assert panel.locator(".unlisted").inner_text() == ""


def test_menus_change_the_axes(reader: Reader, facts: ScreeningFacts) -> None:
    panel = reader.page.locator(".panel").nth(0)
    panel.locator("select.x").select_option("activation_bytes")
    reader.until("document.querySelector('.panel .xtitle').textContent.startsWith('Activations')")
    pair = next(pair for pair in facts.pairs if (pair.x, pair.y) == ("activation_bytes", "parameters"))
    assert {point["net"] for point in points(reader, 0, "most")} <= set(pair.most.nets)
    panel.locator("select.y").select_option("activation_bytes")  # they change places
    reader.until("document.querySelector('.panel .ytitle').textContent.startsWith('Activations')")
    assert panel.locator("select.x").input_value() == "parameters"


def test_a_click_on_a_heading_sorts(reader: Reader, facts: ScreeningFacts) -> None:
    header = reader.page.locator(".sortable th", has_text="MACs")
    header.locator("button").click()
    rows = reader.page.locator(".sortable tbody tr")
    order = [int(row.get_attribute("data-net")) for row in rows.all()]
    macs = [facts.nets[index].costs["macs"] for index in order]
    assert macs == sorted(macs)
    assert len(set(macs)) > 20
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    assert [int(row.get_attribute("data-net")) for row in rows.all()] != order


@pytest.mark.parametrize("width", [1300, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_text_can_be_read(reader: Reader, width: int, scheme: str) -> None:
    page = reader.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    reader.until(
        f"Math.max(...[...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().right)) <= {width}"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink = "getComputedStyle(document.body).color"
    reader.until(f"getComputedStyle(document.querySelector('.panel .xtitle')).fill === {ink}")
    assert page.evaluate(ink) == ("rgb(27, 33, 39)" if scheme == "light" else "rgb(228, 232, 236)")


def test_a_printed_page_loses_no_column(reader: Reader) -> None:
    page = reader.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})  # A4 between margins of 15 mm
    ends = "[...document.querySelectorAll('table')].map((table) => table.getBoundingClientRect().right)"
    assert max(page.evaluate(ends)) <= 680
