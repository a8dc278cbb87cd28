"""The page in a real browser: what a reader sees and does. Every test also fails on an error in the console, on a
dialog, and on any request beyond the file itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from onenet_bench.record import Record
from onenet_bench.report import front_rows, write_report
from onenet_bench.report.details import levels
from tests.report.conftest import Written, write_run
from tests.report.test_page import HOSTILE

REQUIRED = bool(os.environ.get("ONENET_BENCH_REQUIRE_BROWSER"))
playwright = import_module("playwright.sync_api") if REQUIRED else pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

POINTS = """
(chart, role) => {
  const trace = chart.data.find((each) => each.meta === role);
  const { xaxis, yaxis } = chart._fullLayout, box = chart.getBoundingClientRect();
  return trace.customdata.map((trial, i) => ({ trial, cost: trace.x[i], score: trace.y[i],
    left: box.left + xaxis._offset + xaxis.d2p(trace.x[i]), top: box.top + yaxis._offset + yaxis.d2p(trace.y[i]) }));
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        if REQUIRED:
            pytest.fail("ONENET_BENCH_REQUIRE_BROWSER is set, but there is no chromium")
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "example": write_run(folder / "example"),
        "three": write_run(folder / "three", objectives=("miou", "parameters", "macs"), measured=True),
        "short": write_run(folder / "short", trials=4, complete=3, epochs=2),
        "empty": write_run(folder / "empty", trials=6, complete=0, ended=False, under_way=1, samples=False),
        "hostile": write_run(
            folder / "x--><img src=y onerror=window.pwned=1>",
            summary=HOSTILE, failure=HOSTILE, class_names=("background", HOSTILE, "<b>ring</b>", "__proto__"),
        ),
    }  # fmt: skip
    for name, run in made.items():
        write_report(run.path, folder / f"{name}.html")
    return made


class Reader:
    """A page and what went wrong on it."""

    def __init__(self, browser: Any, runs: dict[str, Written]) -> None:
        self.context = browser.new_context(viewport={"width": 1300, "height": 900}, offline=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.runs = runs
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _refuse(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def read(self, name: str, fragment: str = "") -> Any:
        run = self.runs[name]
        url = (run.path.parent / f"{name}.html").as_uri()
        self.page.goto(url + fragment)
        if run.complete():
            self.page.wait_for_selector(".panel .point")
        return self.page

    def points(self, role: str, chart: int = 0) -> list[dict[str, float]]:
        """The points of a chart with their places in the window, once nothing moves any more."""
        before: list[dict[str, float]] | None = None
        for _ in range(100):
            found: list[dict[str, float]] = self.page.locator(".panel .chart").nth(chart).evaluate(POINTS, role)
            if found == before:
                return found
            before = found
            self.page.wait_for_timeout(100)
        return pytest.fail("the chart never comes to rest")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression holds (the page's policy forbids playwright's own way, which evals)."""
        for _ in range(150):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(100)
        pytest.fail(f"never came true: {condition}")

    def text(self, selector: str) -> str:
        return " ".join(self.page.locator(selector).inner_text().replace("\u00a0", " ").split())


@pytest.fixture
def reader(browser: Any, runs: dict[str, Written]) -> Iterator[Reader]:
    reader = Reader(browser, runs)
    yield reader
    reader.context.close()
    assert reader.wrong == []
    beyond = [url for url in reader.requests if not url.startswith(("data:", "blob:"))]
    assert len(beyond) == 1, beyond
    assert beyond[0].startswith("file://")


def test_every_complete_net_is_a_point(reader: Reader) -> None:
    page = reader.read("example")
    records = {record.trial: record for record in reader.runs["example"].complete()}
    front = reader.points("front")
    shown = front + reader.points("dominated") + reader.points("elsewhere")
    assert sorted(point["trial"] for point in shown) == sorted(records)
    assert {point["trial"] for point in front} == {row["trial"] for row in front_rows(reader.runs["example"].path)}
    for point in shown:
        record = records[int(point["trial"])]
        assert record.costs is not None
        assert (point["cost"], point["score"]) == (record.costs.parameters, record.scores["miou"])
    marks = page.locator(".panel .scatterlayer .point")
    assert marks.count() == len(records) + len(reader.points("knee"))
    frame = page.locator(".panel .chart").evaluate(
        "chart => { const { l, t, w, h } = chart._fullLayout._size, box = chart.getBoundingClientRect();"
        " return { x: box.x + l, y: box.y + t, width: w, height: h }; }"
    )
    for mark in marks.all():
        box = mark.bounding_box()
        assert box["width"] > 4
        assert frame["x"] <= box["x"] + box["width"] / 2 <= frame["x"] + frame["width"]
        assert frame["y"] <= box["y"] + box["height"] / 2 <= frame["y"] + frame["height"]


def hovered(reader: Reader, point: dict[str, float]) -> str:
    reader.page.mouse.move(point["left"], point["top"])
    reader.page.wait_for_selector(".hoverlayer .hovertext")
    return str(reader.page.locator(".hoverlayer .hovertext").first.text_content()).replace("\u00a0", " ")


def test_pointing_at_a_net_tells_its_numbers(reader: Reader) -> None:
    reader.read("example").locator("#front .chart").scroll_into_view_if_needed()
    point = reader.points("front")[2]
    record = reader.runs["example"].records[int(point["trial"])]
    assert record.spec is not None
    text = hovered(reader, point)
    assert text.startswith(f"{record.spec.label()}trial {record.trial}")
    assert f"mIoU: {record.scores['miou']:.3f}" in text
    assert "Parameters: " in text
    assert "Peak inference memory: " in text


def assert_shows(reader: Reader, record: Record) -> None:
    """The panel of details shows ``record``, all of it."""
    assert record.spec is not None
    page = reader.page
    page.wait_for_selector("#details .curve .scatterlayer .point")
    text = reader.text("#details")
    assert reader.text("#details h2") == record.spec.label()
    assert f"trial {record.trial} · {record.spec.digest()}" in text
    assert f"mIoU {record.scores['miou']:.3f}" in text
    names = page.locator("#details .level").evaluate_all("cells => cells.map(cell => cell.firstChild.textContent)")
    assert names == [level["name"] for level in levels(record.spec, record.task)]
    assert page.locator("#details .bar rect").count() == 3 * len(names)
    assert page.locator("#details .curve .point").count() == 2 * len(record.history)
    widths = page.locator("#details .views img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert widths == [64, 64, 32] * 4


def test_candidates_and_epochs_are_whole(reader: Reader) -> None:
    page = reader.read("short")
    page.wait_for_selector("#hypervolume .xtick text")
    ended = page.locator("#hypervolume .xtick text").all_text_contents()
    page.locator(".candidates button.net").first.click()
    page.wait_for_selector("#details .curve .x2tick text")
    epochs = page.locator("#details .curve .xtick text, #details .curve .x2tick text").all_text_contents()
    assert all(text.isdigit() for text in [*ended, *epochs]), (ended, epochs)
    assert {"1", "2"} <= set(ended) & set(epochs)


def test_a_click_on_a_point_opens_its_net(reader: Reader) -> None:
    page = reader.read("example")
    page.locator("#front .chart").scroll_into_view_if_needed()
    records = reader.runs["example"].records
    point = reader.points("front")[1]
    page.mouse.click(point["left"], point["top"])
    assert_shows(reader, records[int(point["trial"])])
    assert page.locator(".candidates .shown").get_attribute("data-trial") == str(point["trial"])
    reader.until("document.querySelector('.panel .main-svg').getBoundingClientRect().width < 800")
    selected = reader.points("selected")
    assert [mark["trial"] for mark in selected] == [point["trial"]]
    assert selected[0]["left"] < 800, "the chart makes room for the panel"
    other = reader.points("dominated")[0]
    page.mouse.click(other["left"], other["top"])
    reader.until(f"location.hash === '#trial-{other['trial']}'")
    assert_shows(reader, records[int(other["trial"])])
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()
    assert reader.points("selected") == []


def test_the_keyboard_opens_and_closes_a_net(reader: Reader) -> None:
    page = reader.read("example")
    button = page.locator(".candidates button.net").nth(3)
    button.focus()
    page.keyboard.press("Enter")
    trial = int(button.get_attribute("data-trial"))
    assert_shows(reader, reader.runs["example"].records[trial])
    assert page.evaluate("document.activeElement.id") == "details"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.trial") == str(trial)


def test_a_link_opens_a_net(reader: Reader) -> None:
    record = reader.runs["example"].complete()[5]
    reader.read("example", f"#trial-{record.trial}")
    assert_shows(reader, record)


def column(page: Any, name: str) -> list[float | None]:
    """The values of a column of the table, top to bottom."""
    at = page.locator(f"th[data-column={name}]").evaluate("cell => cell.cellIndex")
    values = page.locator(".candidates tbody tr").evaluate_all(
        "(rows, at) => rows.map(row => row.cells[at].dataset.value)", at
    )
    return [float(value) if value else None for value in values]


def test_a_click_on_a_header_sorts_by_number(reader: Reader) -> None:
    page = reader.read("three")
    records = reader.runs["three"].complete()
    before = column(page, "macs")
    macs = sorted(record.costs.macs for record in records if record.costs)
    header = page.locator("th[data-column=macs]")
    header.locator("button").click()
    assert column(page, "macs") == macs != before
    assert macs != sorted(macs, key=str), "an order by text would differ"
    assert header.get_attribute("aria-sort") == "ascending"
    assert reader.text("#sorted") == "sorted by MACs, ascending"
    header.locator("button").click()
    assert column(page, "macs") == macs[::-1]
    assert header.get_attribute("aria-sort") == "descending"
    trials = page.locator(".candidates tbody tr").evaluate_all("rows => rows.map(row => Number(row.dataset.trial))")
    by_trial = {record.trial: record.costs.macs for record in records if record.costs}
    assert [by_trial[trial] for trial in trials] == macs[::-1], "whole rows move"

    known = sorted(r.costs.latency_ms for r in records if r.costs and r.costs.latency_ms is not None)
    unknown = [None] * (len(records) - len(known))
    assert known
    assert unknown
    for expected in (known, known[::-1]):
        page.locator("th[data-column=latency_ms] button").click()
        assert column(page, "latency_ms") == [*expected, *unknown]
    assert header.get_attribute("aria-sort") == "none"


def test_the_table_can_show_the_front_alone_and_every_score(reader: Reader) -> None:
    page = reader.read("example")
    rows = page.locator(".candidates tbody tr:visible")
    assert rows.count() == len(reader.runs["example"].complete())
    page.check("#front-only")
    front = {row["trial"] for row in front_rows(reader.runs["example"].path)}
    assert {int(row.get_attribute("data-trial")) for row in rows.all()} == front
    dice = page.locator("th[data-column=dice]")
    assert not dice.is_visible()
    page.check("#all-scores")
    assert dice.is_visible()
    scores, first_cost = (page.locator(s).bounding_box() for s in (".groups th >> nth=1", "th[data-column=parameters]"))
    assert scores["x"] == pytest.approx(first_cost["x"], abs=2), "group headers stand above their columns"


def test_the_menus_change_the_axes(reader: Reader) -> None:
    page = reader.read("example")
    records = {record.trial: record for record in reader.runs["example"].complete()}
    page.locator("#front .chart").scroll_into_view_if_needed()
    page.select_option(".panel .cost", "peak_inference_mib")
    page.select_option(".panel .score", "ce")
    reader.until("document.querySelector('.panel .xtitle').textContent === 'Peak inference memory (MiB)'")
    assert "Cross-entropy" in page.locator(".panel .ytitle").text_content()
    front = reader.points("front")
    shown = front + reader.points("dominated") + reader.points("elsewhere")
    assert sorted(point["trial"] for point in shown) == sorted(records)
    for point in shown:
        record = records[int(point["trial"])]
        assert record.costs is not None
        assert (point["cost"], point["score"]) == (record.costs.peak_inference_mib, record.scores["ce"])
    expected = {
        a["trial"] for a in shown
        if not any(b["cost"] <= a["cost"] and b["score"] <= a["score"]
                   and (b["cost"], b["score"]) != (a["cost"], a["score"]) for b in shown)
    }  # fmt: skip
    assert {point["trial"] for point in front} == expected
    assert reader.points("elsewhere"), "the front of the objectives stays marked"
    spec = records[int(front[0]["trial"])].spec
    assert spec is not None
    assert spec.label() in hovered(reader, front[0])


def test_every_pair_of_objectives_has_a_chart(reader: Reader) -> None:
    page = reader.read("three")
    reader.until("document.querySelectorAll('.panel .xtitle').length === 2")
    assert page.locator(".panel .xtitle").all_text_contents() == ["Parameters", "MACs"]
    whole = {row["trial"] for row in front_rows(reader.runs["three"].path)}
    for chart in (0, 1):
        marked = {point["trial"] for role in ("front", "elsewhere") for point in reader.points(role, chart)}
        assert whole <= marked
        assert reader.points("elsewhere", chart)


def test_the_download_is_the_whole_table(reader: Reader, tmp_path: Path) -> None:
    page = reader.read("example")
    with page.expect_download() as started:
        page.click("#csv")
    assert started.value.suggested_filename == "example.csv"
    started.value.save_as(tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv").set_index("trial")
    records = reader.runs["example"].complete()
    assert list(table.index) == [record.trial for record in records]
    assert list(table["macs"]) == [record.costs.macs for record in records if record.costs]


def test_charts_send_nothing_and_name_no_vendor(reader: Reader) -> None:
    page = reader.read("example")
    page.locator("#front .chart").hover()
    titles = page.locator(".panel .modebar-btn").evaluate_all("all => all.map(one => one.dataset.title || '')")
    assert any("Zoom" in title for title in titles)
    assert not any("cloud" in title.lower() or "plotly" in title.lower() for title in titles)
    assert page.locator(".modebar-btn--logo").count() == 0


def test_a_run_without_nets_is_read_without_errors(reader: Reader) -> None:
    page = reader.read("empty")
    assert "The run has not ended" in reader.text(".state")
    assert page.locator(".chart").count() == 0
    page.locator(".reason summary").first.click()
    assert page.locator(".reason[open] tbody tr").count() >= 1


def test_hostile_names_are_only_ever_text(reader: Reader) -> None:
    page = reader.read("hostile")
    run = reader.runs["hostile"]
    assert HOSTILE in reader.text("#headline")
    assert HOSTILE in reader.text("#samples .legend")
    page.locator(".candidates button.net").first.click()
    assert HOSTILE in reader.text("#details")
    failed = next(record for record in run.records if record.status == "failed")
    page.locator(".reason.failed summary").first.click()
    page.locator(f".reason.failed button.net[data-trial='{failed.trial}']").click()
    assert HOSTILE in reader.text("#details")
    assert page.evaluate("window.pwned") is None


@pytest.mark.parametrize("width", [900, 1300])
def test_nothing_sticks_out_sideways(reader: Reader, width: int) -> None:
    reader.page.set_viewport_size({"width": width, "height": 900})
    page = reader.read("three")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".candidates button.net").first.click()
    page.wait_for_selector("#details .curve .point")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#details").evaluate("panel => panel.scrollWidth - panel.clientWidth") == 0


def test_charts_are_as_wide_as_the_paper_when_printed(reader: Reader) -> None:
    page = reader.read("example")
    widths = "[...document.querySelectorAll('.chart')].map((c) => c.querySelector('.main-svg').clientWidth)"
    on_screen = page.evaluate(widths)
    assert max(on_screen) > 680
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert max(page.evaluate(widths)) <= 680
    assert page.evaluate(widths) == page.evaluate("[...document.querySelectorAll('.chart')].map((c) => c.clientWidth)")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    reader.until(f"JSON.stringify({widths}) === '{json.dumps(on_screen, separators=(',', ':'))}'")
