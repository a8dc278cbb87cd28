"""Table 2: what is claimed about it is computed, and every form says the same."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onenet_bench.errors import OnenetBenchError
from onenet_bench.report import table2
from onenet_bench.report.table2 import (
    PUBLISHED,
    QUANTITIES,
    Published,
    build_table2,
    count_filters,
    csv_text,
    level_ratio,
    table2_facts,
    terminal_table,
    to_dict,
    write_table2,
)
from tests.report.test_browser import ARGUMENTS

ROOT = Path(__file__).parent.parent.parent

# parameters, parameters used, torchinfo mult-adds, torchinfo pass bytes, FlopCounterMode: made by profiling modules
PROFILED = {
    "unet_4": (31040912, 31008644, 52380839168, 509607936, 91796537344),
    "unet_5": (124420500, 124351364, 65401019648, 524288000, 114613551104),
    "resnet34_unet": (25049852, 24518404, 14700595840, 241172480, 26749173760),
    "resnet50_unet": (74074556, 71958724, 42487835776, 450363392, 72047656960),
    "mobilenet_unet": (14400848, 14368580, 41975038976, 671088640, 70964740096),
    "onenet_e_4": (16388216, 16355948, 39209676160, 639631360, 65430093824),
    "onenet_e_5": (65727622, 65658486, 49413905792, 656408576, 82614681600),
    "onenet_ed_4": (9081016, 9073836, 11463314560, 799014912, 22814916608),
    "onenet_ed_5": (36382968, 36367592, 14503681152, 884998144, 28876210176),
}


def printed(value: int, by: int) -> Decimal:
    return (Decimal(value) / by).quantize(Decimal("0.01"), ROUND_HALF_EVEN)


@pytest.mark.parametrize("net", PROFILED)
def test_the_counted_figures_are_the_profilers_as_the_paper_prints_them(net: str) -> None:
    (facts,) = [row for row in table2_facts().nets if row.net == net]
    parameters, used, mult_adds, pass_bytes, flop_counter = PROFILED[net]
    assert [cell.counted for cell in facts.cells.values()] == [
        str(printed(parameters, 10**6)),
        str(printed(4 * used, 10**6)),
        str(2 * printed(mult_adds, 10**9)),  # rounded, then doubled
        str(printed(pass_bytes, 10**6)),
    ]
    assert 2 * facts.costs.macs == flop_counter


def test_34_of_36_figures_match_and_the_others_are_misprints() -> None:
    facts = table2_facts()
    assert facts.cells == 36
    differing = {(net.net, name): cell for net, name, cell in facts.differing}
    assert {where: (cell.published, cell.counted) for where, cell in differing.items()} == {
        ("unet_4", "paper_flops_g"): ("104.72", "104.76"),
        ("onenet_ed_5", "paper_flops_g"): ("39.00", "29.00"),
    }
    for cell in differing.values():
        assert cell.reason.startswith(f"misprint: {cell.published} should read {cell.counted}; one digit differs")
        assert "all 3 other figures of the row and 7 of the 8 others of the column match" in cell.reason
    assert facts.summary == "34 of 36 published figures come out to the printed digit; the other 2 are marked."
    assert not any(cell.reason for net in facts.nets for cell in net.cells.values() if cell.matches)


def test_the_doubling_comes_after_the_rounding() -> None:
    """Rounding the double would print 98.83 for OneNet_e,5, and a third figure would differ."""
    (facts,) = [row for row in table2_facts().nets if row.net == "onenet_e_5"]
    assert f"{facts.costs.paper_flops / 1e9:.2f}" == "98.83"
    assert facts.cells["paper_flops_g"].counted == facts.cells["paper_flops_g"].published == "98.82"


@pytest.mark.parametrize(
    ("net", "figures"),
    [
        ("unet_5", ("124.42", "497.41", "131.82", "524.29")),  # two digits
        ("unet_5", ("124.42", "497.41", "1130.80", "524.29")),  # one digit too many
        ("unet_5", ("124.43", "497.41", "130.81", "524.29")),  # its row differs too
    ],
)
def test_what_is_no_misprint_is_not_called_one(
    net: str, figures: tuple[str, str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, net, Published("U-Net_5", figures))
    facts = table2_facts()
    reasons = [cell.reason for row, _, cell in facts.differing if row.net == net]
    assert reasons
    assert all(reason.startswith("not explained: ") for reason in reasons)
    others = 2 + len(reasons)
    assert facts.summary.startswith(f"{36 - others} of 36 ")


def test_the_savings_beside_unet_4() -> None:
    facts = {net.net: net for net in table2_facts().nets}
    base = PROFILED["unet_4"][-1]
    for name, net in facts.items():
        assert net.macs_change == pytest.approx(100 * (PROFILED[name][-1] - base) / base)
    assert round(facts["onenet_e_4"].macs_change, 1) == -28.7
    assert round(facts["onenet_ed_4"].macs_change, 1) == -75.1
    assert round(facts["onenet_e_4"].printed_change) == -25  # as the paper says
    assert round(facts["onenet_ed_4"].printed_change) == -78


# The analytic claims -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 16, 64])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_a_2d_level_costs_half_the_kernels_area_times_a_1d_level(kernel: int, channels: int) -> None:
    assert level_ratio(kernel, channels) == Fraction(kernel**2, 2)


def test_the_spatial_convolution_takes_a_little_of_that() -> None:
    """By hand, per position after the level's shrinking: k²·(2C² + 4C²) against 8C² + 4C² + taps·4C."""
    c = 64
    assert level_ratio(3, c, taps=9) == Fraction(9 * 6 * c * c, 12 * c * c + 9 * 4 * c)


@pytest.mark.parametrize(("scale", "levels"), [(2, 1), (2, 2), (2, 4), (3, 2), (4, 2)])
def test_the_filters_of_the_1d_levels_and_the_2d_filter_that_sees_as_much(scale: int, levels: int) -> None:
    counted = count_filters(scale, levels)
    assert counted.channel_wise == levels * scale**2
    assert counted.square == scale ** (2 * levels)
    assert counted.alone == sum(scale**2 * scale ** (2 * above) for above in range(levels))


def test_16_against_8() -> None:
    counted = count_filters(scale=2, levels=2)
    assert (counted.square, counted.channel_wise, counted.field) == (16, 8, (4, 4))


def test_the_claims_say_what_was_counted() -> None:
    counted = {claim.claim: claim.counted for claim in table2_facts().claims}
    assert counted == {
        "OneNet_e,4 has 47 % fewer parameters than U-Net_4": "47.2 %",
        "OneNet_e,d,4 is 71 % smaller": "70.7 %",
        "OneNet_e,4 saves 25 % of U-Net_4's FLOPs": "28.7 %",
        "OneNet_e,d,4 saves 78 % of U-Net_4's FLOPs": "75.1 %",
        "16 multiplications against 8": "16 against 8",
        "a 2D block costs k²/2 times a 1D block": "4.5 for k = 3, 12.5 for k = 5",
        "L levels of scale S see S^L pixels": "16 × 16 for L = 4, 32 × 32 for L = 5",
    }


# Forms ---------------------------------------------------------------------------------------------------------


def in_a_terminal(width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(terminal_table(table2_facts()))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_terminal_marks_what_differs_and_says_why() -> None:
    text = in_a_terminal()
    rows = {line.split()[0]: line for line in reversed(text.splitlines()) if line.strip()}
    assert re.search(r"104\.72 +104\.76 +≠ \(1\) +509\.61 +509\.61", rows["U-Net_4"])
    assert re.search(r"39\.00 +29\.00 +≠ \(2\) +885\.00 +885\.00", rows["OneNet_e,d,5"])
    assert text.count("≠") == 2
    assert "(1) U-Net_4, FLOPS (GB): misprint: 104.72 should read 104.76" in text
    assert re.search(r"OneNet_e,d,4 .*9,073,836 +11,407,458,304 .*16 × 40 +−75\.1 % +−78\.1 %", text)
    assert "34 of 36 published figures" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_narrow_terminal_shows_every_number_whole(width: int) -> None:
    text = in_a_terminal(width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for net in table2_facts().nets:
        lines = [line for line in text.splitlines() if line.split()[:1] == [net.label]]
        said = " ".join(" ".join(lines).split())
        assert all(f" {cell.published} {cell.counted} " in f"{said} " for cell in net.cells.values())
        assert all(number in said for number in table2.true_numbers(net))


def test_csv_and_json_say_the_same() -> None:
    facts = table2_facts()
    lines = list(csv.DictReader(io.StringIO(csv_text(facts))))
    values = json.loads(json.dumps(to_dict(facts), allow_nan=False))
    assert [line["net"] for line in lines] == [net["net"] for net in values["nets"]] == list(PUBLISHED)
    for line, net in zip(lines, values["nets"], strict=True):
        for name, cell in net["cells"].items():
            assert (line[f"{name}_published"], line[f"{name}_counted"]) == (cell["published"], cell["counted"])
            assert cell["matches"] == (cell["published"] == cell["counted"]) == (f"{name}: " not in line["differs"])
        assert int(line["macs"]) == net["costs"]["macs"]
        assert float(line["peak_inference_mib"]) == net["costs"]["peak_inference_mib"]
        assert (int(line["field_height"]), int(line["field_width"])) == tuple(net["receptive_field"].values())


def test_the_kept_figures_are_those_of_today() -> None:
    """``onenet-bench table2 --csv > results/table2.csv`` and ``--json > results/table2.json`` make them again."""
    facts = table2_facts()
    assert (ROOT / "results/table2.csv").read_text(encoding="utf-8") == csv_text(facts)
    assert json.loads((ROOT / "results/table2.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(to_dict(facts))
    )


class Cells(HTMLParser):
    """The cells of every table as text, and those with the class ``differs``."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.differing: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.inside = self.differs = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [values["href"] or ""] if "href" in values else []
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.inside, self.differs = True, "differs" in (values.get("class") or "").split()
            self.tables[-1][-1].append("")
        elif tag == "sup":
            self.inside = False  # a note's number

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False
            if self.differs and tag == "td":
                self.differing.append(self.tables[-1][-1][-1])

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def test_the_page_shows_every_figure_and_marks_the_two() -> None:
    facts = table2_facts()
    html = build_table2(facts, "onenet-bench table2 --html page.html")
    cells = Cells(html)
    published, true, claims = cells.tables
    for net, row in zip(facts.nets, published[2:], strict=True):
        assert row == [net.label, *(text for cell in net.cells.values() for text in (cell.published, cell.counted))]
    for net, row in zip(facts.nets, true[1:], strict=True):
        assert row == [net.label, *table2.true_numbers(net)]
    assert [row[1] for row in claims[1:]] == [claim.claim for claim in facts.claims]
    assert cells.differing == ["104.72", "104.76", "39.00", "29.00"]
    assert cells.links == ["#difference-1", "#difference-2"]
    assert {"difference-1", "difference-2"} <= set(cells.ids)
    for quantity in QUANTITIES.values():
        assert quantity.title in html
    assert "a step with AdamW on one image, weights included" in html
    assert html.startswith(
        "<!-- The OneNet paper's Table 2. To make it again: onenet-bench table2 --html page.html -->"
    )


def test_the_page_is_its_own_and_repeats_itself(tmp_path: Path) -> None:
    out = tmp_path / "new" / "x--><img src=y onerror=z>.html"
    facts = table2_facts()
    assert write_table2(facts, out) == out
    html = out.read_text(encoding="utf-8")
    assert write_table2(facts, out).read_text(encoding="utf-8") == html
    comment, _, rest = html.partition("\n")
    assert comment.endswith(" -->")
    assert comment.count("-->") == 1
    assert "<img" not in rest
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)", html)
    assert os.listdir(out.parent) == [out.name]


def test_a_page_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "table2.html"
    out.write_text("as it was")

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OnenetBenchError, match=r"table2\.html is not: No space left on device"):
        write_table2(table2_facts(), out)
    assert os.listdir(tmp_path) == ["table2.html"]
    assert out.read_text() == "as it was"


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onenet_bench", "table2", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    facts = table2_facts()
    assert call(cwd=tmp_path).stdout.split() == in_a_terminal().split()
    assert call("--csv", cwd=tmp_path).stdout == csv_text(facts)
    done = call("--json", "--html", "table2.html", cwd=tmp_path)
    assert json.loads(done.stdout) == json.loads(json.dumps(to_dict(facts)))
    html = (tmp_path / "table2.html").read_text(encoding="utf-8")
    assert html == build_table2(facts, "onenet-bench table2 --html table2.html")
    wrong = call("--html", "/proc/table2.html", cwd=tmp_path)
    assert wrong.returncode == 2
    assert re.fullmatch(r"onenet-bench: .*must be writable, but /proc/table2\.html is not: .*\n", wrong.stderr)


@pytest.mark.browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("ONENET_BENCH_REQUIRE_BROWSER"):
            pytest.fail("ONENET_BENCH_REQUIRE_BROWSER is set, but there is no chromium")
        pytest.skip("chromium is not installed")
    out = write_table2(table2_facts(), tmp_path / "table2.html")
    wrong: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=ARGUMENTS)
        for width in (1300, 420):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: wrong.append(message.text))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(out.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # tables scroll, the page not
            marked, plain = page.locator("td.differs").first, page.locator("tbody td").first
            colour = "element => getComputedStyle(element).backgroundColor"
            assert marked.evaluate(colour) != plain.evaluate(colour)
            page.locator("sup a").first.click()
            assert page.url.endswith("#difference-1")
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 680, "height": 900})  # A4 between margins of 15 mm
        ends = "[...document.querySelectorAll('table')].map((table) => table.getBoundingClientRect().right)"
        assert max(page.evaluate(ends)) <= 680
        browser.close()
    assert wrong == []
    assert set(requests) <= {out.as_uri(), out.as_uri() + "#difference-1"}
