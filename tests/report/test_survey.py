"""What a screening says, against brute force over single nets, and its page as text."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from onenet_bench import costs, space
from onenet_bench.budget import Budget, excess
from onenet_bench.errors import OnenetBenchError, SpaceError, SpecError
from onenet_bench.pareto import dominates
from onenet_bench.report import survey, survey_words
from onenet_bench.report.screening import build_screening, plot_histogram, plot_pair, write_screening
from onenet_bench.report.survey import ScreeningFacts, screening_facts
from onenet_bench.report.tables import show
from onenet_bench.screen import SCREENED, screen
from onenet_bench.space import SearchSpace

BUDGET = tuple(map(Budget.parse, ("macs <= 5M", "parameters <= 20k", "activation_bytes <= 1M")))


def facts_of(name: str, budget: Sequence[Budget], resolution: int | None = None, **how: Any) -> ScreeningFacts:
    reached = space.load(name)
    return screening_facts(screen(reached, resolution or reached.task["resolution"], classes=8, **how), budget)


@pytest.fixture(scope="module")
def facts() -> ScreeningFacts:
    return facts_of("depth_scale", BUDGET)


@pytest.fixture(scope="module")
def alone() -> pd.DataFrame:
    """Every combination of the space counted alone, impossible ones left out: choices, costs, digest, fits, index."""
    reached, rows = space.load("depth_scale"), []
    for index, choices in enumerate(reached.enumerate()):
        spec = reached.spec(choices, classes=8, in_channels=3)
        try:
            counted = costs.count(spec, reached.task["resolution"])
        except SpecError:
            continue
        rows.append({**choices, **counted.to_dict(), "digest": spec.digest(), "index": index,
                     "fits": not excess(counted, BUDGET)})  # fmt: skip
    return pd.DataFrame(rows)


def nets(alone: pd.DataFrame) -> pd.DataFrame:
    return alone.drop_duplicates("digest")


def test_counts_are_those_of_single_nets(facts: ScreeningFacts, alone: pd.DataFrame) -> None:
    assert facts.combinations == facts.counted == 540
    assert facts.impossible == 540 - len(alone)
    assert facts.distinct == len(nets(alone))
    assert facts.fitting == nets(alone)["fits"].sum()
    assert facts.fitting_share == alone["fits"].mean()
    assert 0 < facts.fitting < facts.distinct
    assert "multiple of 9" in facts.impossible_because
    assert facts.margin == 0


def test_a_limit_says_what_it_costs(facts: ScreeningFacts, alone: pd.DataFrame) -> None:
    frame = nets(alone)
    within = {b.cost: frame[b.cost] <= b.limit for b in BUDGET}
    for limit in facts.limits:
        others = np.logical_and.reduce([within[name] for name in within if name != limit.cost])
        assert limit.within == within[limit.cost].sum()
        assert limit.more_without == (others & ~within[limit.cost]).sum()
        assert limit.least == frame[limit.cost].min()
    assert [limit.more_without > 0 for limit in facts.limits] == [True, True, True]
    said = max(facts.limits, key=lambda limit: limit.more_without)
    assert f"{said.more_without} more nets would fit without it" in survey_words.what_binds(facts)


def test_options_have_their_shares(facts: ScreeningFacts, alone: pd.DataFrame) -> None:
    assert {choice.name for choice in facts.choices} == set(space.load("depth_scale").choices)
    for choice in facts.choices:
        column, moved = alone[choice.name], 0.0
        for option in choice.options:
            mine = column == option.option
            assert option.share == pytest.approx(mine.mean())
            assert option.share_of_fitting == pytest.approx(mine[alone["fits"]].mean())
            assert option.fits == pytest.approx(alone["fits"][mine].mean())
            moved += abs(mine.mean() - mine[alone["fits"]].mean()) / 2
        assert choice.moved == pytest.approx(moved)
    assert [choice.moved for choice in facts.choices] == sorted((c.moved for c in facts.choices), reverse=True)
    assert facts.choices[0].moved > 0.1


def test_options_that_make_no_difference_keep_their_share() -> None:
    """Distinct nets would give an option that a net does not show to the option that comes first."""
    facts = facts_of("hybrid", [Budget.parse("macs <= 1e9")])
    assert facts.fitting == facts.distinct < facts.combinations
    third = next(choice for choice in facts.choices if choice.name == "encoder_3")
    assert [option.share for option in third.options] == [0.25] * 4
    assert all(choice.moved == 0 for choice in facts.choices)


def test_histograms_and_maps_hold_every_net_in_its_place(facts: ScreeningFacts, alone: pd.DataFrame) -> None:
    frame = nets(alone)
    histograms = {histogram.cost: histogram for histogram in facts.histograms}
    assert tuple(histograms) == SCREENED
    for name, histogram in histograms.items():
        edges = np.array(histogram.edges)
        edges[[0, -1]] = 0, math.inf  # rounding must not lose the ends
        for counts, rows in ((histogram.nets, frame), (histogram.fitting, frame[frame["fits"]])):
            assert counts == tuple(
                ((rows[name] >= low) & (rows[name] < high)).sum() for low, high in itertools.pairwise(edges)
            )
        assert np.ptp(np.diff(np.log(histogram.edges))) < 1e-9
        assert (histogram.edges[0], histogram.edges[-1]) == pytest.approx((frame[name].min(), frame[name].max()))
    assert {name: h.limit for name, h in histograms.items() if h.limit} == {b.cost: b.limit for b in BUDGET}
    for pair in facts.pairs:
        assert tuple(pair.nets.sum(axis=0)) == histograms[pair.x].nets
        assert tuple(pair.nets.sum(axis=1)) == histograms[pair.y].nets
        assert tuple(pair.fitting.sum(axis=0)) == histograms[pair.x].fitting
    square = next(pair for pair in facts.pairs if (pair.x, pair.y) == ("macs", "parameters"))
    x, y = (
        np.searchsorted(histograms[name].edges, frame[name], "right").clip(1, survey.BINS) - 1
        for name in ("macs", "parameters")
    )
    assert all(square.nets[b, a] for a, b in zip(x, y, strict=True))


def brute_front(rows: pd.DataFrame, x: tuple[str, int], y: tuple[str, int]) -> dict[tuple[float, float], int]:
    """The costs that no other row beats, each times its sign, and how many rows have them."""
    points = [(x[1] * a, y[1] * b) for a, b in zip(rows[x[0]], rows[y[0]], strict=True)]
    best = [p for p in points if not any(dominates(q, p) for q in points)]
    return {(x[1] * a, y[1] * b): best.count((a, b)) for a, b in best}


def test_fronts_are_what_nobody_beats(facts: ScreeningFacts, alone: pd.DataFrame) -> None:
    frame = nets(alone)
    fitting = frame[frame["fits"]]

    def shown(front: survey.StaticFront) -> dict[tuple[float, float], int]:
        return {
            (facts.nets[i].costs[front.x], facts.nets[i].costs[front.y]): alike
            for i, alike in zip(front.nets, front.alike, strict=True)
        }

    assert shown(facts.largest) == brute_front(fitting, ("parameters", -1), ("macs", -1))
    assert len(facts.pairs) == 4 * 3
    for pair in facts.pairs:
        assert shown(pair.least) == brute_front(frame, (pair.x, 1), (pair.y, 1))
        assert shown(pair.most) == brute_front(fitting, (pair.x, 1), (pair.y, -1))
        xs = [facts.nets[i].costs[pair.x] for i in pair.most.nets]
        assert xs == sorted(xs), "cheapest first"
    kinds = [(front.kind, front.x, front.y) for front in facts.fronts]
    assert kinds == [
        ("largest", *survey.SIZE),
        *(("most", *p) for p in survey.PAIRS),
        *(("least", *p) for p in survey.PAIRS),
    ]


def test_nets_of_equal_costs_stand_for_each_other() -> None:
    twins = SearchSpace(  # with a single decoder level, both heads are the same layers
        name="twins", choices={"heads": ("top", "all"), "width": (2, 4)},
        net={"depth": 1, "heads": "$heads", "width": "$width"},
    )  # fmt: skip
    said = screening_facts(screen(twins, 8, classes=2), [])
    assert (said.distinct, said.largest.alike, said.pairs[0].least.alike) == (4, (2,), (2,))
    assert "and 1 more with the same parameters and MACs" in build_screening(said, "onenet-bench screen")


def test_nets_of_fronts_are_themselves(facts: ScreeningFacts, alone: pd.DataFrame) -> None:
    rows = nets(alone).set_index("index")
    for index, net in facts.nets.items():
        assert net.digest == rows.loc[index, "digest"]
        assert net.fits == rows.loc[index, "fits"]
        assert dict(net.costs) == {name: rows.loc[index, name] for name in SCREENED}
        assert dict(net.choices) == {name: rows.loc[index, name] for name in net.choices}


def test_buckets_divide_the_nets(facts: ScreeningFacts, alone: pd.DataFrame) -> None:
    frame = nets(alone)
    assert set(facts.buckets) == {"macs", "parameters", "peak_inference_mib", "activation_bytes"}
    for name, buckets in facts.buckets.items():
        assert sum(bucket.nets for bucket in buckets) == facts.distinct
        for bucket in buckets:
            rows = frame[(frame[name] > (bucket.above or 0)) & (frame[name] <= (bucket.at_most or math.inf))]
            assert (bucket.nets, bucket.fitting) == (len(rows), rows["fits"].sum())
            for other, span in bucket.others.items():
                assert (span.least, span.median, span.most) == (
                    rows[other].min(),
                    rows[other].median(),
                    rows[other].max(),
                )
    assert 5e6 in {bucket.at_most for bucket in facts.buckets["macs"]}, "the limit divides"


def test_a_limit_between_buckets_is_marked() -> None:
    limit = Budget.parse("peak_inference_mib <= 0.52")
    said = facts_of("hybrid", [limit])
    buckets = said.buckets["peak_inference_mib"]
    assert limit.limit not in {bucket.at_most for bucket in buckets}, "none ends there"
    page = build_screening(said, "onenet-bench screen")
    (row,) = re.findall('<tr class="limit"><th scope="row">(.*?)</th>', page)
    assert row == f"{show('peak_inference_mib', 0.4)} – {show('peak_inference_mib', 0.45)}"


def test_different_costs_look_different_in_the_tables() -> None:
    said = facts_of("hybrid", list(map(Budget.parse, ("parameters <= 123456", "macs <= 5M"))))
    page = build_screening(said, "onenet-bench screen")
    cells = re.findall(r'<td class="n" data-value="(.*?)">(.*?)</td>', page)
    columns = [cells[i::4] for i in range(4)]
    assert len({float(value) for value, _ in columns[3]}) > 1
    for column in columns:
        assert len({text for _, text in column}) == len({value for value, _ in column})


def test_a_net_at_its_limit_is_within_it(alone: pd.DataFrame) -> None:
    exact = sorted(nets(alone)["macs"])[100]
    said = facts_of("depth_scale", [Budget(cost="macs", limit=exact)])
    assert said.fitting == said.limits[0].within == sum(nets(alone)["macs"] <= exact)
    assert all(bucket.fitting in (0, bucket.nets) for bucket in said.buckets["macs"]), "the limit divides"


def test_a_sample_gives_its_margin() -> None:
    budget = [Budget.parse("macs <= 25M")]
    whole = facts_of("hybrid", budget)
    samples = [facts_of("hybrid", budget, most=400, seed=seed) for seed in range(60)]
    assert all(sample.sampled and sample.counted == 400 for sample in samples)
    assert samples[0].margin == pytest.approx(
        1.96 * math.sqrt(samples[0].fitting_share * (1 - samples[0].fitting_share) / 400)
    )
    inside = sum(abs(sample.fitting_share - whole.fitting_share) <= sample.margin for sample in samples)
    assert inside >= 52  # 57 are expected
    assert "400 of its 10,368 combinations were drawn at random" in survey_words.how_counted(samples[0])
    assert "give or take" in survey_words.what_fits(samples[0])
    assert "give or take" not in survey_words.what_fits(whole)


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ([], "No budget was set, so all 315 distinct nets count as fitting."),
        (["macs <= 1G"], "All 315 distinct nets fit the budget."),
        (["macs <= 1"], "None of the 315 distinct nets fit the budget."),
        (["macs <= 5M"], r"1\d\d of the 315 distinct nets fit the budget \(\d\d.%\)\."),
    ],
)
def test_what_fits_is_said_in_a_sentence(budget: list[str], sentence: str) -> None:
    said = facts_of("depth_scale", list(map(Budget.parse, budget)))
    assert re.fullmatch(sentence, survey_words.what_fits(said)), survey_words.what_fits(said)
    page = build_screening(said, "onenet-bench screen")
    assert re.search(sentence, page)
    assert all(pair.least.nets for pair in said.pairs), "what is cheapest does not depend on a budget"
    assert ("Where to begin" in page) == (said.fitting > 0)


def test_combinations_that_make_no_net_repeat_none() -> None:
    said = facts_of("depth_scale", [Budget.parse("parameters <= 1234567")])
    page = build_screening(said, "onenet-bench screen")
    assert "<span>distinct nets</span><small>none repeats another</small>" in page
    assert page.count("1,234,567") == 2  # of the budget, and in the table of limits
    assert "Peak inference memory (MiB)</figcaption>" in page
    same = SearchSpace(name="same", choices={"width": (4,), "kernel": (0, 9)}, net={"depth": 1, "width": "$width",
                       "encoder": "conv2d", "spatial_kernel": "$kernel"})  # fmt: skip
    said = screening_facts(screen(same, 8, classes=2), [])
    assert survey_words.how_many_repeat(said) == "1 more repeats one of them"


def test_a_space_without_a_net_is_refused() -> None:
    with pytest.raises(
        SpaceError, match=r"none of the 540 combinations of depth_scale .* the first: the height must be"
    ):
        facts_of("depth_scale", [], resolution=47)


def test_one_net_alone_makes_a_page() -> None:
    single = SearchSpace(name="one", choices={"width": (4,)}, net={"depth": 1, "width": "$width"})
    said = screening_facts(screen(single, 8, classes=2), [Budget.parse("macs <= 1M")])
    assert (said.distinct, said.fitting) == (1, 1)
    assert [sum(histogram.nets) for histogram in said.histograms] == [1] * len(SCREENED)
    assert said.largest.alike == (1,)
    assert "All 1 distinct nets fit" in build_screening(said, "onenet-bench screen")


def test_the_terminal_says_the_same(facts: ScreeningFacts) -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(survey_words.terminal_table(facts))
    text = " ".join(console.file.getvalue().replace("\u00a0", " ").split())  # type: ignore[attr-defined]
    assert f"within the budget {facts.fitting} " in text
    assert f"MACs 5.00 M {facts.limits[0].within} {facts.limits[0].more_without} 332 k" in text
    assert f"most parameters for its MACs {sum(facts.fronts[1].alike)}" in text
    for index in facts.largest.nets:
        assert facts.nets[index].label in text
        assert survey_words.choices_text(facts.nets[index]) in text


def test_80_columns_hold_names_and_numbers(facts: ScreeningFacts) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(survey_words.terminal_table(facts))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    for limit in facts.limits:
        line = next(line for line in text.splitlines() if line.split()[:1] == [survey.title(limit.cost).split()[0]])
        assert f" {limit.within} " in line
    words = set(text.split())
    for index in facts.largest.nets:
        net = facts.nets[index]
        assert {*net.label.split(), *survey_words.choices_text(net).split()} <= words


def test_the_json_can_be_read_again(facts: ScreeningFacts) -> None:
    said = json.loads(json.dumps(survey.to_dict(facts), allow_nan=False))
    assert said["distinct"] == facts.distinct
    assert said["fronts"][0]["nets"] == list(facts.largest.nets)
    assert {i for front in said["fronts"] for i in front["nets"]} == set(map(int, said["nets"]))
    index = str(facts.largest.nets[0])
    assert said["nets"][index]["costs"] == dict(facts.nets[int(index)].costs)
    assert sum(said["histograms"][0]["nets"]) == facts.distinct


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"), (0, "0 %"), (0.0004, "under 0.1 %"), (0.024, "2.4 %"), (0.63, "63 %"), (0.9996, "over 99 %"),
        (1, "100 %"),
    ],
)  # fmt: skip
def test_shares_for_people(share: float | None, text: str) -> None:
    assert survey_words.percent(share).replace("\u00a0", " ") == text


# The page ----------------------------------------------------------------------------------------------------


def test_few_nets_are_counted_in_whole_ones(facts: ScreeningFacts) -> None:
    histogram = facts.histograms[2]
    few = replace(histogram, nets=tuple(min(n, 3) for n in histogram.nets), fitting=(0,) * len(histogram.nets))
    assert max(histogram.nets) > 3
    assert plot_histogram(few).layout.yaxis.dtick == 1
    assert plot_histogram(histogram).layout.yaxis.dtick is None


def test_one_net_is_one_net(facts: ScreeningFacts) -> None:
    histogram, pair = facts.histograms[2], facts.pairs[0]
    assert 1 in histogram.nets
    said = [text.split("<br>")[1].split(",")[0] for text in plot_histogram(histogram).data[0].text]
    assert said == [f"{n} net" if n == 1 else f"{n} nets" for n in histogram.nets]
    hovered = plot_pair(facts, pair).data[0]
    assert hovered.hovertemplate.startswith("%{customdata[0]:,} %{text}, ")
    assert {(n == 1, text) for n, text in zip(pair.nets.flat, np.asarray(hovered.text).flat, strict=True)} == {
        (True, "net"), (False, "nets"),
    }  # fmt: skip


def test_figures_show_the_facts(facts: ScreeningFacts) -> None:
    histogram = facts.histograms[2]
    fitting, rest = plot_histogram(histogram).data
    assert tuple(fitting.y) == histogram.fitting
    assert tuple(a + b for a, b in zip(fitting.y, rest.y, strict=True)) == histogram.nets
    np.testing.assert_allclose(fitting.x - fitting.width / 2, histogram.edges[:-1])
    pair = facts.pairs[0]
    traces = {trace.meta: trace for trace in plot_pair(facts, pair).data}
    shades = np.asarray(traces["fitting"].z, dtype=float)
    np.testing.assert_allclose(np.nan_to_num(10**shades), pair.fitting, rtol=1e-5)
    assert traces["most"].customdata == list(pair.most.nets) or tuple(traces["most"].customdata) == pair.most.nets
    assert list(traces["most line"].y) == [facts.nets[i].costs[pair.y] for i in pair.most.nets]
    assert traces["most line"].line.shape == "hv", "the most for a cost is to be had for any higher one"
    net = facts.nets[facts.largest.nets[0]]
    assert net.label in traces["largest"].text[0]
    assert all(f"{name} {value}" in traces["largest"].text[0] for name, value in net.choices.items())


def test_the_page_is_one_file_that_asks_for_nothing(facts: ScreeningFacts, tmp_path: Path) -> None:
    hostile = "onenet-bench screen --space 'a--><script>alert(1)</script>'"
    page = write_screening(facts, tmp_path / "made" / "page.html", hostile).read_text(encoding="utf-8")
    assert len(page) < 8_000_000
    assert page.split("-->", 1)[1].count("<script") == 3
    assert not re.search(r'(src|href)="(?!#|data:)', page.split('<script type="application/json"')[0])
    assert "default-src 'none'" in page
    assert "a--><script>" not in page
    assert page == build_screening(facts, hostile)
    with pytest.raises(OnenetBenchError, match=r"must be writable, but /proc/page\.html is not"):
        write_screening(facts, Path("/proc/page.html"), "onenet-bench screen")


def test_names_of_a_space_are_text_on_its_page() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    reached = SearchSpace(
        name=evil,
        summary=evil,
        choices={evil: ("conv2d", "onenet1d")},
        net={"depth": 1, "width": 4, "encoder": f"${evil}"},
    )
    page = build_screening(screening_facts(screen(reached, 8, classes=2), [Budget.parse("macs <= 30k")]), "x")
    assert "<img" not in page
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "<" not in data
    assert "\\u003cimg" not in data, "labels of points are markup"
    assert page.count("</script>") == 3
