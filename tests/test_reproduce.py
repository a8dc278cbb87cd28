"""The paper's Tables 1 and 3 by command: what is quoted is what is printed, and every cell asked for is real."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from onenet_bench import data, ledger, models, training, zoo
from onenet_bench.cli import app
from onenet_bench.data import tiny
from onenet_bench.errors import LedgerError, OnenetBenchError, RecipeError, SpecError
from onenet_bench.ledger import Ledger
from onenet_bench.plan import plan
from onenet_bench.record import Status
from onenet_bench.report.published import DATA, TABLES
from onenet_bench.report.reproduce import (
    READINGS,
    STATEMENT,
    Cell,
    Reproduction,
    build_reproduction,
    reproduction_facts,
    terminal_table,
    to_dict,
)
from onenet_bench.reproduce import METHODS, SMOKE, Settings, order, reproduce, spec

COMMAND = [sys.executable, "-m", "onenet_bench", "reproduce"]

# As the paper prints them, copied a second time: the oracle for what the package quotes.
PRINTED = {
    "table1": """
|method|VOC|PET_F|PET_S|Heart|Brain|Lung|
|U-Net_4|1.985/.0541/.182|2.206/.0329/.316|.243/.7717/.713|.0223/.4305/.063|.0455/.2450/.001|.0010/.5542/.009|
|ResNet_34|1.321/.0806/.332|.648/.0503/.597|.179/.9098/.801|.0087/.4375/.065|.1305/.4188/.079|.0010/.5529/.009|
|ResNet_50|1.079/.0921/.372|1.027/.0512/.599|.189/.9303/.815|.0086/.4368/.065|.0496/.5419/.010|.0007/.5566/.009|
|MobileNet|2.007/.0480/.166|2.386/.0329/.252|.262/.6091/.664|.0288/.3265/.047|.0351/.5764/.011|.0010/.5787/.008|
|OneNet_e,4|2.144/.0485/.160|2.713/.0279/.216|.309/.5176/.636|.0041/.4396/.066|.0363/.5789/.105|.0007/.5531/.009|
|OneNet_e,d,4|2.553/.0363/.149|3.080/.0227/.172|.437/.2179/.535|.0076/.4187/.062|.0455/.5415/.099|.0009/.5510/.008|
""",
    "table3": """
|method|PET_S|Heart|Lung|
|OneNet_e,4-S|.320/.5275/.632/.963|.0034/.4383/.065/.699|.0006/.5510/.008/.115|
|OneNet_e,4-C|.309/.5176/.636/.967|.0363/.4386/.066/.605|.0007/.5531/.009/.115|
|OneNet_ed,4-S|.416/.2253/.529/.868|.0125/.3938/.059/.544|.0007/.5512/.008/.112|
|OneNet_ed,4-C|.437/.2179/.535/.842|.0076/.4187/.062/.605|.0007/.5510/.008/.111|
""",
}  # fmt: skip


def printed(table: str) -> dict[tuple[str, str], list[str]]:
    """(data set, method) as the paper calls them → the figures of the cell."""
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PRINTED[table].split("\n") if line]
    return {(label, row[0]): cell.split("/") for row in rows for label, cell in zip(head[1:], row[1:], strict=True)}


class Figures(HTMLParser):
    """The published figures of a page, by the heading above and the row's name; and all of its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], list[str]] = {}
        self.text = ""
        self._where = {"h3": "", "th": ""}
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        published = tag == "td" and "published" in (dict(attributes).get("class") or "")
        if tag not in ("meta", "br"):
            self._inside.append("published" if published else tag)
        if tag in self._where:
            self._where[tag] = ""

    def handle_endtag(self, tag: str) -> None:
        self._inside.pop()

    def handle_data(self, text: str) -> None:
        self.text += text
        if self._inside and self._inside[-1] in self._where:
            self._where[self._inside[-1]] += text.strip()
        if self._inside and self._inside[-1] == "published":
            self.found.setdefault((self._where["h3"], self._where["th"]), []).append(text)


def in_a_terminal(facts: Reproduction, width: int = 240) -> str:
    out = StringIO()
    Console(file=out, width=width).print(terminal_table(facts))
    return out.getvalue()


def quick(**changes: Any) -> Settings:
    return replace(SMOKE, recipe=replace(SMOKE.recipe, **{"epochs": 1, **changes}))


def cell(facts: Reproduction, data_set: str, method: str) -> Cell:
    (found,) = [one for one in facts.cells if (one.data, one.method) == (data_set, method)]
    return found


# What is quoted, and what is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_what_is_quoted_is_what_is_printed(name: str) -> None:
    table = TABLES[name]
    quoted = {
        (DATA[data_set].label, table.rows[method].label): list(table.figures(method, data_set).values())
        for data_set in table.data
        for method in table.rows
    }
    assert quoted == printed(name)


def test_table_1s_onenets_are_table_3s_without_spatial_convolution() -> None:
    """The reading that READINGS gives as its reason: on PET_S and Lung, all figures that both tables print."""
    one, three = printed("table1"), printed("table3")
    for data_set in ("PET_S", "Lung"):
        assert one[data_set, "OneNet_e,4"] == three[data_set, "OneNet_e,4-C"][:3]
        assert one[data_set, "OneNet_e,4"] != three[data_set, "OneNet_e,4-S"][:3]
    assert one["PET_S", "OneNet_e,d,4"] == three["PET_S", "OneNet_ed,4-C"][:3]
    assert METHODS["onenet_e_4"](64, classes=3, in_channels=3) == METHODS["onenet_e_4_c"](64, classes=3, in_channels=3)
    assert METHODS["onenet_ed_4"](64, classes=3, in_channels=3) == METHODS["onenet_ed_4_c"](
        64, classes=3, in_channels=3
    )


def test_every_row_is_a_net_of_the_papers_sizes() -> None:
    assert set(METHODS) == {method for table in TABLES.values() for method in table.rows}
    whole = Settings(output_stride=1)
    in_the_zoo = {
        "unet_4": "unet_4", "resnet34_unet": "resnet34_unet", "resnet50_unet": "resnet50_unet",
        "mobilenet_unet": "mobilenet_unet", "onenet_e_4_s": "onenet_e_4", "onenet_ed_4_s": "onenet_ed_4_spatial",
    }  # fmt: skip
    for method, name in in_the_zoo.items():
        assert spec(method, whole, classes=4, in_channels=3) == zoo.get(name), method
    for method in METHODS:
        net = spec(method, Settings(), classes=21, in_channels=3)
        logits = [row for row in plan(net, (3, 512, 512)).rows if row.name.endswith("head") and row.runs]
        assert [(row.c_out, row.h_out, row.w_out) for row in logits] == [(21, 256, 256)], method
    for rows in ("onenet_e_4", "onenet_ed_4"):
        with_it, without = (spec(f"{rows}_{x}", Settings(), classes=3, in_channels=3) for x in "sc")
        one_d = [stage for stage in (*with_it.encoder, *with_it.decoder) if stage.kind == "onenet1d"]
        assert {stage.kernel for stage in one_d} == {9}
        assert all(stage.kernel == 0 for stage in (*without.encoder, *without.decoder) if stage.kind == "onenet1d")
    with pytest.raises(SpecError, match="unknown method 'unet_9'; known: mobilenet_unet, "):
        spec("unet_9", Settings(), classes=4, in_channels=3)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "table": (lambda: order("table2"), "unknown table 'table2'; known: table1, table3"),
    "data": (
        lambda: order("table3", data=["voc"]),
        "unknown data set of table3 'voc'; known: msd-heart, msd-lung, pet",
    ),
    "path": (lambda: order("table3", paths={"voc": "x"}), "unknown data set of table3 'voc'"),
    "method": (lambda: order("table3", methods=["unet_4"]), "unknown method of table3 'unet_4'; known: onenet_e_4_c, "),
    "twice": (lambda: order("table3", seeds=[1, 1]), r"each seed is named once and at least one is, but got \[1, 1\]"),
    "none": (lambda: order("table3", methods=[]), r"each method is named once and at least one is, but got \[\]"),
    "seed": (lambda: order("table3", seeds=[-1]), "a seed is at least 0, but got -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_order_is_one_sentence(case: str) -> None:
    make, sentence = WRONG[case]
    with pytest.raises(RecipeError, match=sentence):
        make()


# A reproduction -------------------------------------------------------------------------------------------------

PART = order("table3", data=["pets-small", "msd-heart"], methods=["onenet_ed_4_c"], seeds=[0, 1])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells of Table 3 with two seeds, uninterrupted."""
    folder = tmp_path_factory.mktemp("smoke")
    before = os.environ.get("ONENET_BENCH_CACHE")
    os.environ["ONENET_BENCH_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    torch.set_num_threads(1)
    assert reproduce(PART, quick(epochs=3), folder, command="onenet-bench reproduce table3 --smoke")
    if before is None:
        del os.environ["ONENET_BENCH_CACHE"]
    else:
        os.environ["ONENET_BENCH_CACHE"] = before
    return folder


def by_hand(folder: Path, trial: int) -> float:
    """The mIoU of a trial's weights on its test split, counted class by class with numpy."""
    net, facts = models.load_checkpoint(folder / f"weights/{trial:04d}.safetensors")
    task = facts["task"]
    test = data.load(data.open_task(task["data"], resolution=task["resolution"], seed=task["seed"])).test
    predicted = training.predict(net, test.images)
    truth = test.masks[:, ::2, ::2]  # masks of half the side, by nearest neighbour
    ious = []
    for index in range(len(task["class_names"])):
        ours, true = (predicted == index) & (truth != 255), truth == index
        if (ours | true).any():
            ious.append((ours & true).sum() / (ours | true).sum())
    return float(np.mean(ious))


def test_ours_are_the_weights_scores_on_the_test_split(smoke: Path) -> None:
    facts = reproduction_facts(smoke)
    assert facts.complete
    for first, data_set in ((0, "pets-small"), (2, "msd-heart")):
        found = cell(facts, data_set, "onenet_ed_4_c")
        miou = found.ours["miou"]
        assert found.seeds == (0, 1)
        assert miou.by_seed == pytest.approx({seed: by_hand(smoke, first + seed) for seed in (0, 1)})
        assert miou.mean == pytest.approx(sum(miou.by_seed.values()) / 2)
        assert miou.spread == pytest.approx(abs(miou.by_seed[0] - miou.by_seed[1]) / 2**0.5)
        assert str(miou) == f"{miou.mean:.4f} ± {statistics.stdev(miou.by_seed.values()):.4f}"
        assert {ours.score for ours in found.ours.values()} == {
            "ce_weighted", "map50", "miou", "dice_case_fg" if data_set == "msd-heart" else "dice",
        }  # fmt: skip
    records = ledger.records(ledger.read(smoke))
    assert records[0].recipe.seed != records[1].recipe.seed
    assert records[0].task == records[1].task, "all seeds share one split"
    assert not list((smoke / "states").iterdir()), "states of finished cells are cleared away"


def test_a_page_has_every_published_figure_and_says_what_it_is(smoke: Path) -> None:
    facts = reproduction_facts(smoke)
    html = build_reproduction(facts)
    page = Figures(html)
    assert page.found == printed("table3")
    for text in (page.text, in_a_terminal(facts).replace("\n", " ")):
        assert "Smoke run, no number means anything" in text
        assert "not the same metric" in re.sub(r"\s+", " ", text)
        assert "epochs is 3, and 300 in the paper" in text
        assert str(cell(facts, "msd-heart", "onenet_ed_4_c").ours["dsc"]) in text
        assert "not asked for" in text
        assert "Oxford-IIIT Pet, trimaps, 33 training, 4 validation and 37 test images" in text
    narrow = in_a_terminal(facts, width=80)
    assert "…" not in narrow
    for one in facts.cells:
        assert all(f"{ours.score} {ours} " in narrow for ours in one.ours.values())
        assert all(f" {figure} " in narrow for figure in one.published.values())
    assert STATEMENT in page.text
    assert all(reading in page.text for reading in READINGS)
    assert "of every patient volume" in page.text
    assert html.startswith("<!-- Table 3 of the OneNet paper, SMOKE RUN. To make it again: onenet-bench reproduce tab")
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)", html)
    said = json.loads(json.dumps(to_dict(facts), allow_nan=False))
    assert said["smoke"] is True
    assert {(c["data"], c["method"]) for c in said["cells"] if c["asked"]} == {
        ("pets-small", "onenet_ed_4_c"), ("msd-heart", "onenet_ed_4_c"),
    }  # fmt: skip


def test_killed_and_resumed_it_ends_the_same(smoke: Path, tmp_path: Path) -> None:
    words = [
        *COMMAND, "table3", "--smoke", "--datasets", "pets-small,msd-heart", "--methods", "onenet_ed_4_c", "--epochs",
        "3", "--threads", "1", "--out", "run",
    ]  # fmt: skip
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stderr is not None
        while not (line := killed.stderr.readline()).startswith("[2/4] pets-small onenet_ed_4_c seed 1: epoch 2"):
            assert line, "the run ended by itself"
        os.kill(killed.pid, signal.SIGKILL)
    run = tmp_path / "run"
    told = len(ledger.records(ledger.read(run)))
    left = reproduction_facts(run)
    assert not left.complete
    (sentence,) = cell(left, "msd-heart", "onenet_ed_4_c").missing
    assert sentence.startswith("not trained yet: seed")
    lines: list[str] = []
    assert reproduce(PART, quick(epochs=3), run, heard=lines.append)
    resumed, whole = reproduction_facts(run), reproduction_facts(smoke)
    assert resumed.cells == whole.cells
    assert resumed.deviations == whole.deviations
    trained = [line for line in lines if "epoch" in line]
    assert told > 1 or (trained[0].startswith("[2/4]") and "epoch 1" not in trained[0]), "not from a cell's beginning"
    for record in ledger.records(ledger.read(run)):
        assert [epoch["epoch"] for epoch in record.history] == [1, 2, 3]
    lines.clear()
    assert reproduce(PART, quick(epochs=3), run, heard=lines.append)
    assert lines == [f"[{n}/4] {d} onenet_ed_4_c seed {s}: complete already" for n, d, s in (
        (1, "pets-small", 0), (2, "pets-small", 1), (3, "msd-heart", 0), (4, "msd-heart", 1),
    )]  # fmt: skip
    with pytest.raises(LedgerError, match=r"a reproduction keeps its settings, but in .* recipe was .*'epochs': 3"):
        reproduce(PART, quick(epochs=4), run)
    with pytest.raises(LedgerError, match="table was 'table3' and is now 'table1'"):
        reproduce(order("table1"), quick(epochs=3), run)
    with Ledger(run, create=False), pytest.raises(LedgerError, match="another one holds"):
        reproduce(PART, quick(epochs=3), run)


def test_absent_data_say_so_until_they_are_there(tmp_path: Path) -> None:
    trees, run = tmp_path / "trees", tmp_path / "run"
    settings = replace(quick(), smoke=False)
    part = order("table3", data=["pets-small", "msd-lung"], methods=["onenet_ed_4_c"], paths={"pets-small": str(trees)})
    (trees / "oxford-iiit-pet").mkdir(parents=True)
    assert reproduce(part, settings, run)
    facts = reproduction_facts(run)
    assert not facts.complete
    assert cell(facts, "pets-small", "onenet_ed_4_c").missing == ("PET_S is absent",)
    assert cell(facts, "pets-small", "onenet_ed_4_s").missing == ()  # never asked for
    assert re.search(
        r"annotations/trainval.txt.* holds none.*images\.tar\.gz \(0\.8 GB, md5 5c4f3ee8e5d25df40f4fd59a7f44e54c\)",
        facts.absent["pets-small"],
    )
    assert facts.absent["msd-lung"].startswith(
        "no path was given for msd-lung; say --data msd-lung=PATH, or --root DIR for all; its archives are https://"
    )
    for text in (build_reproduction(facts), in_a_terminal(facts).replace("\n", " ")):
        assert "PET_S is absent" in text
        assert "8afd997733c7fc0432f71255ba4e52dc" in text
        assert "moke" not in text
    (trees / "oxford-iiit-pet").rmdir()
    tiny.grow("pets-small", trees)
    assert reproduce(part, settings, run)
    facts = reproduction_facts(run)
    assert list(facts.absent) == ["msd-lung"]
    assert cell(facts, "pets-small", "onenet_ed_4_c").missing == ()
    assert str(cell(facts, "pets-small", "onenet_ed_4_c").ours["miou"]).count("±") == 0  # of one seed

    listed = trees / "oxford-iiit-pet/annotations/trainval.txt"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    lines: list[str] = []
    assert reproduce(part, settings, run, heard=lines.append)
    assert "epoch 1" in lines[0], "other content is another cell"
    assert [record.trial for record in ledger.records(ledger.read(run))] == [0, 1]


def test_data_in_nobodys_home_are_absent(tmp_path: Path) -> None:
    part = order("table3", data=["msd-lung"], methods=["onenet_ed_4_c"], paths={"msd-lung": "~nosuchuser/x"})
    assert reproduce(part, replace(quick(), smoke=False), tmp_path)
    assert (
        reproduction_facts(tmp_path)
        .absent["msd-lung"]
        .startswith(
            "~ stands for a home, but that of ~nosuchuser/x is not known; write the path out; its archives are https://"
        )
    )


def test_a_failed_cell_says_so_and_is_tried_again(tmp_path: Path) -> None:
    asked = order("table3", data=["pets-small"], methods=["onenet_ed_4_c"])
    for times in (1, 2):
        assert reproduce(asked, quick(learning_rate=1e30), tmp_path / "run")
        facts = reproduction_facts(tmp_path / "run")
        (sentence,) = cell(facts, "pets-small", "onenet_ed_4_c").missing
        assert sentence.startswith("seed 0 failed: a loss is finite, but")
        assert not facts.complete
        assert len(ledger.records(ledger.read(tmp_path / "run"))) == times
    assert "learning_rate is 1e+30, and 0.0001 in the paper" in build_reproduction(facts)


def test_an_interrupt_ends_it_with_a_ledger_that_goes_on(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if "epoch 1" in line:
            raise KeyboardInterrupt

    asked = order("table3", data=["pets-small"], methods=["onenet_ed_4_c"])
    assert not reproduce(asked, quick(), tmp_path / "run", heard=interrupt)
    assert ledger.read(tmp_path / "run")[-1] == {"event": "end", "reason": "interrupted"}
    assert not reproduction_facts(tmp_path / "run").complete
    assert reproduce(asked, quick(), tmp_path / "run")
    assert reproduction_facts(tmp_path / "run").complete


def test_the_papers_protocol_has_no_marks_and_a_change_has_one(tmp_path: Path) -> None:
    def marks(name: str, settings: Settings) -> list[str]:
        reproduce(order("table3"), settings, tmp_path / name)  # all data are absent
        return [one.sentence for one in reproduction_facts(tmp_path / name).deviations]

    paper = Settings()
    assert marks("paper", paper) == []
    assert marks("batch of the paper", replace(paper, recipe=replace(paper.recipe, batch=64))) == []
    changed = replace(paper, recipe=replace(paper.recipe, epochs=30, batch=16), resolution=256, output_stride=1)
    assert marks("changed", changed) == [
        "epochs is 30, and 300 in the paper",
        "batch is 16, and 32 or 64 in the paper",
        "inputs are 256 pixels wide and high, and 512 in the paper",
    ]
    assert "masks are 512 pixels" in marks("whole", replace(paper, output_stride=1))[0]


def test_imagenet_weights_take_their_mark_away(tmp_path: Path) -> None:
    from tests.models.test_imagenet import ResNet

    torch.manual_seed(0)
    file = tmp_path / "resnet34-tiny.pth"
    torch.save(ResNet([4, 4, 8, 16, 32], [3, 4, 6, 3], False).state_dict(), file)
    asked = order("table1", data=["pets-small", "msd-heart"], methods=["resnet34_unet"])
    scratch = "ResNet_34 starts from scratch, and from ImageNet weights in the paper"

    def sentences(run: Path, data_set: str) -> list[str]:
        facts = reproduction_facts(run)
        return [facts.deviations[mark - 1].sentence for mark in cell(facts, data_set, "resnet34_unet").marks]

    assert reproduce(asked, replace(quick(), weights={"resnet34_unet": file}, paper_classes=True), tmp_path / "run")
    assert sentences(tmp_path / "run", "pets-small") == []
    assert sentences(tmp_path / "run", "msd-heart") == [scratch, "Heart has 1 channel, and 3 in the paper"]
    from_file, from_scratch = ledger.records(ledger.read(tmp_path / "run"))
    assert from_file.provenance["weights"]["file"] == "resnet34-tiny.pth"
    assert "weights" not in from_scratch.provenance
    assert from_scratch.task.classes == 4
    with pytest.raises(SpecError, match="ImageNet weights fit an encoder behind a resnet stem"):
        reproduce(order("table1"), replace(quick(), weights={"unet_4": file}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


# The command ----------------------------------------------------------------------------------------------------


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_without_data_says_what_to_fetch(tmp_path: Path) -> None:
    done = call("table1", "--seeds", "0", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert len(said["cells"]) == 36
    assert set(said["absent"]) == set(TABLES["table1"].data)
    assert said["report"] == "reports/reproduce-table1.html"
    page = (tmp_path / said["report"]).read_text(encoding="utf-8")
    assert page.startswith(
        "<!-- Table 1 of the OneNet paper. To make it again: onenet-bench reproduce table1 --seeds 0"
    )
    assert Figures(page).found == printed("table1")
    records: list[Status] = [record.status for record in ledger.records(ledger.read(tmp_path / said["folder"]))]
    assert records == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table4"], "unknown table 'table4'; known: table1, table3"),
        (["table3", "--data", "pets-small"], "--data reads NAME=PATH, each name once, but got 'pets-small'"),
        (["table3", "--seeds", "one"], "--seeds reads 0,1,2, but got 'one'"),
        (["table3", "--smoke", "--root", "."], "a smoke run draws its own data"),
        (["table3", "--resolution", "100"], r"multiple of 16.*but got 100"),
        (["table3", "--output-stride", "4"], "the output stride is 1 or 2, but got 4"),
    ],
)
def test_wrong_words_are_one_sentence_and_leave_nothing(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OnenetBenchError, match=sentence):
        app(["reproduce", *words], standalone_mode=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("file/new/page.html", r"must be writable, but file/new/page\.html is not: file is no folder; name another"),
        ("folder.html", r"must be writable, but folder\.html is not: it is a folder; name another"),
    ],
)
@pytest.mark.parametrize(
    "words", [["reproduce", "table1", "--smoke", "--html"], ["screen", "--space", "depth_scale", "--out"]]
)
def test_a_page_without_a_place_is_refused_before_anything_is_done(
    words: list[str], page: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for work in ("reproduce.reproduce", "screen.screen"):
        monkeypatch.setattr(f"onenet_bench.{work}", lambda *_, **__: pytest.fail("it begins"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OnenetBenchError, match=sentence):
        app([*words, page], standalone_mode=False)


@pytest.mark.slow
def test_a_whole_table_in_smoke(tmp_path: Path) -> None:
    done = call("table1", "--smoke", "--seeds", "0", "--epochs", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["complete"] is True
    assert [one["seeds"] for one in said["cells"]] == [[0]] * 36
    for one in said["cells"]:
        assert all(quantity["mean"] is not None for quantity in one["quantities"].values()), one
    assert (tmp_path / "reports/reproduce-table1-smoke.html").stat().st_size > 20_000
