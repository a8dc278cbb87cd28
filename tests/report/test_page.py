"""The page as a document: what it says, that it is whole and self-contained, and what it does about missing pieces."""

from __future__ import annotations

import base64
import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from onenet_bench import ledger
from onenet_bench.costs import by_level
from onenet_bench.errors import LedgerError, OnenetBenchError
from onenet_bench.ledger import Ledger
from onenet_bench.palette import BACKGROUND, IGNORED, lab, palette
from onenet_bench.plan import plan
from onenet_bench.record import Status
from onenet_bench.report import build_page, details, page, write_report
from onenet_bench.report.details import levels
from onenet_bench.report.facts import page_facts
from onenet_bench.report.pictures import image_uri, mask_uri
from onenet_bench.report.tables import read_run, show_limit
from tests.report.conftest import RESOLUTION, MakeRun, Written, scenes

GOLDEN = Path(__file__).parent / "golden_facts.json"


class Outline(HTMLParser):
    """Elements with their attributes, the text outside scripts, the first comment, and the embedded JSON."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.comments: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def data(self) -> dict[str, Any]:
        embedded: dict[str, Any] = json.loads(self.scripts[0])
        return embedded


@pytest.fixture
def copy(example: Written, tmp_path: Path) -> Written:
    """The example, to be damaged."""
    return replace(example, path=shutil.copytree(example.path, tmp_path / "example"))


def test_the_page_is_one_file_that_asks_for_nothing(example: Written) -> None:
    html = build_page(example.path)
    outline = Outline(html)
    assert html.count(get_plotlyjs()) == 1
    assert len(html.encode()) < 8_000_000
    for tag, attributes in outline.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset", "poster"):
            if name in attributes:
                assert (attributes[name] or "").startswith(("data:image/png;base64,", "#")), (tag, attributes)
    policy = next(a["content"] for t, a in outline.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [(a.get("href") or "")[1:] for t, a in outline.elements if t == "a"]
    assert targets
    assert set(targets) <= set(ids)


def test_the_same_run_makes_the_same_page(example: Written) -> None:
    assert build_page(example.path) == build_page(example.path)


def test_the_file_begins_with_the_command_that_makes_it(example: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example.path.parent)
    html = build_page(Path("example"))
    assert html.splitlines()[0].startswith("<!-- ")
    assert html.splitlines()[0].endswith("onenet-bench report example -->")
    assert "onenet-bench sweep depth_scale --trials 40 --seed 3" in Outline(html).text


def test_the_headline_counts_every_candidate(example: Written) -> None:
    facts = page_facts(read_run(example.path))
    shown = {tile["name"]: tile["value"] for tile in facts["tiles"]}
    for name, status in (
        ("trained", Status.COMPLETE), ("rejected", Status.REJECTED), ("stopped early", Status.STOPPED),
        ("failed", Status.FAILED),
    ):  # fmt: skip
        assert shown[name] == str(sum(record.status is status for record in example.records))
    assert sum(group["count"] for group in facts["reasons"]) + int(shown["trained"]) == len(example.records)
    listed = {c["trial"] for group in facts["reasons"] for c in group["candidates"]}
    assert listed == {record.trial for record in example.records if record.status is not Status.COMPLETE}
    assert "The run has ended: 40 candidates were trained." in Outline(build_page(example.path)).text


def test_the_leaders_are_the_ends_of_the_front_and_its_knee(example: Written) -> None:
    facts = page_facts(read_run(example.path))
    leaders = {leader["roles"]: leader for leader in facts["leaders"]}
    complete = example.complete()
    best = max(complete, key=lambda record: record.scores["miou"])
    smallest = min(complete, key=lambda r: (r.costs.parameters if r.costs else math.inf, -r.scores["miou"]))
    assert leaders["best mIoU"]["trial"] == best.trial
    assert leaders["least parameters"]["trial"] == smallest.trial
    assert leaders["knee"]["trial"] == facts["data"]["knee"]
    assert best.costs is not None
    assert smallest.costs is not None
    share = 100 * smallest.costs.parameters / best.costs.parameters
    beside = leaders["least parameters"]["numbers"][1]["beside"]
    assert float(beside.split()[0]) == pytest.approx(share, abs=0.05)


def test_the_details_of_a_net_are_its_record(example: Written) -> None:
    data = Outline(build_page(example.path)).data()
    for record in example.records:
        if record.status is Status.REJECTED:
            assert str(record.trial) not in data["nets"]
            continue
        net = data["nets"][str(record.trial)]
        assert record.spec is not None
        assert record.costs is not None
        assert (net["label"], net["digest"]) == (record.spec.label(), record.spec.digest())
        assert net["values"]["macs"] == record.costs.macs
        assert net["values"].get("miou") == record.scores.get("miou")
        assert sum(parameters for _, _, parameters, _, _ in net["levels"]) == record.costs.parameters
        assert sum(macs for _, _, _, macs, _ in net["levels"]) == record.costs.macs
        assert net["curve"]["epoch"] == [epoch["epoch"] for epoch in record.history]
        if record.status is Status.COMPLETE:
            assert net["per_class"]["iou"][-1] is None
            assert net["per_class"]["iou"][0] == f"{record.per_class['iou'][0]:.3f}"
            assert len(net["predictions"]) == 4


def test_levels_follow_the_plan(example: Written) -> None:
    record = example.complete()[0]
    assert record.spec is not None
    rows = levels(record.spec, record.task)
    assert {row["name"]: row["parameters"] for row in rows} == {
        name: level["parameters"] for name, level in by_level(plan(record.spec, (3, RESOLUTION, RESOLUTION))).items()
    }
    assert all(row["words"] for row in rows)


def test_a_long_learning_curve_is_thinned_and_keeps_its_ends(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "CURVE_POINTS", 30 * 28)
    run = make_run(epochs=300)
    data = page_facts(read_run(run.path))["data"]
    opened = len(data["nets"])
    epochs = data["nets"][str(run.complete()[0].trial)]["curve"]["epoch"]
    assert len(epochs) == 30 * 28 // opened
    assert (epochs[0], epochs[-1]) == (1, 300)


def test_the_csv_holds_every_complete_candidate_unrounded(example: Written) -> None:
    text = page_facts(read_run(example.path))["data"]["csv"]
    table = pd.read_csv(io.StringIO(text))
    assert {str(table[name].dtype) for name in ("parameters", "macs", "activation_bytes")} == {"int64"}
    assert list(table["trial"]) == [record.trial for record in example.complete()]
    assert list(table["macs"]) == [record.costs.macs for record in example.complete() if record.costs]
    assert list(table["miou"]) == pytest.approx([record.scores["miou"] for record in example.complete()], rel=1e-15)


def test_the_table_separates_exact_costs_from_the_papers(make_run: MakeRun) -> None:
    groups = page_facts(read_run(make_run(measured=True).path))["candidates"]["groups"]
    named = {group["name"]: [column["name"] for column in group["columns"]] for group in groups}
    assert list(named) == ["Scores", "Exact costs", "Measured", "The paper's conventions"]
    assert named["The paper's conventions"] == ["paper_flops", "paper_memory_mb"]
    assert named["Measured"] == ["latency_ms"]
    assert named["Scores"][0] == "miou"
    assert all(column["convention"] for group in groups for column in group["columns"])


# Facts as a whole ------------------------------------------------------------------------------------------


def test_the_facts_of_a_known_run_are_unchanged(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(trials=14, epochs=3, measured=True)
    monkeypatch.chdir(tmp_path)
    facts = page_facts(read_run(Path("example")))
    facts["provenance"]["rows"] = [row for row in facts["provenance"]["rows"] if row[0] != "Page"]  # the version
    for drawn in ("panels", "hypervolume", "axes", "csv"):  # drawings and raw floats have tests of their own
        del facts["data"][drawn]
    del facts["candidates"]["conventions"]  # the words of COSTS and SCORES
    for group in facts["candidates"]["groups"]:
        for column in group["columns"]:
            del column["convention"]
    new = tmp_path / "golden_facts.json"
    new.write_text(json.dumps(rounded(facts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(new.read_text("utf-8")) == json.loads(GOLDEN.read_text("utf-8")), (
        f"the page says something else; if that is meant: cp {new} {GOLDEN}"
    )


def rounded(value: Any) -> Any:
    """``value`` as JSON has it, floats to nine digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


# What is missing -------------------------------------------------------------------------------------------


def test_a_run_without_a_complete_net(make_run: MakeRun) -> None:
    run = make_run(complete=0, ended=False, under_way=2)
    outline = Outline(build_page(run.path))
    assert "The run has not ended: it was cut off, or is still going." in outline.text
    begun = sum(record.status is not Status.REJECTED for record in run.records)
    assert f"So far {begun} of 40 candidates went into training, {40 - begun} more were rejected" in outline.text
    assert "2 were under way" in outline.text
    assert "so there is no front" in outline.text
    assert outline.data()["panels"] == []
    assert outline.data()["hypervolume"] is None


def test_candidates_that_were_stopped_and_may_go_on_are_stopped_not_under_way(make_run: MakeRun) -> None:
    run = make_run(ended=False, under_way=3)
    with Ledger(run.path, create=False) as book:
        stopped = [replace(run.records[2], trial=trial, status=Status.STOPPED, reason="weak") for trial in (40, 41)]
        for record in stopped:
            book.append("pause", {"trial": record.trial, "record": record.to_dict()})
        book.append("promote", {"trial": 41})
    facts = page_facts(read_run(run.path))
    before = sum(record.status is Status.STOPPED for record in run.records)
    assert next(tile["value"] for tile in facts["tiles"] if tile["name"] == "stopped early") == str(before + 1)
    assert "; 2 were under way." in facts["state"]["text"]
    assert any(group["reason"] == "weak" and group["count"] == 1 for group in facts["reasons"])
    with Ledger(run.path, create=False) as book:
        book.append("end", {"reason": "interrupted"})
    assert "; 2 were under way." in page_facts(read_run(run.path))["state"]["text"]


def test_a_net_whose_objective_is_not_known_is_not_ranked(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / "ledger.jsonl"
    trained = [record.trial for record in run.records if record.status is Status.COMPLETE]
    for without in ({trained[0]}, set(trained)):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        for event in events:
            if event["event"] == "tell" and event["record"]["trial"] in without:
                event["record"]["scores"].pop("miou", None)
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        outline = Outline(build_page(run.path))
        number = f"{len(without)} of {len(trained)} trained nets {'is' if len(without) == 1 else 'are'} not ranked"
        assert f"{number}, for mIoU could not be told" in outline.text
    assert "There is no front." in outline.text
    assert "No candidate has been trained" not in outline.text


def test_every_command_and_commit_of_a_run_is_told(copy: Written) -> None:
    with Ledger(copy.path, create=False) as book:
        book.append("resume", {"trials": 50, "command": "again", "provenance": {"commit": "2e" * 20}})
        book.append("resume", {"trials": None, "provenance": {"commit": "2e" * 20}})  # of an older version
    provenance = page_facts(read_run(copy.path))["provenance"]
    assert provenance["commands"][1:] == ["again", "not recorded"]
    assert [text for name, text in provenance["rows"] if name == "Commit"] == ["1f" * 20, "2e" * 20]


def test_a_budget_is_told_in_full_where_it_is_no_round_number() -> None:
    assert [show_limit("parameters", value) for value in (1e6, 1_234_567, 4999)] == ["1.00\xa0M", "1,234,567", "4,999"]
    assert [show_limit("peak_inference_mib", value) for value in (0.5, 1234.5)] == ["0.500\xa0MiB", "1,234.5\xa0MiB"]


def test_a_run_that_has_only_begun(make_run: MakeRun) -> None:
    run = make_run(trials=0, ended=False)
    outline = Outline(build_page(run.path))
    assert "So far 0 of 0 candidates went into training." in outline.text
    assert "None." in outline.text


def test_a_run_that_was_interrupted_and_taken_up_again_says_so(copy: Written) -> None:
    with Ledger(copy.path, create=False) as book:
        book.append("resume", {"trials": 60, "provenance": {}})
        book.append("end", {"reason": "interrupted"})
    text = Outline(build_page(copy.path)).text
    assert "The run was interrupted by hand. Until then " in text
    assert " of 60 candidates went into training" in text
    assert "It was taken up again once." in text


def test_a_single_net_is_the_whole_front(make_run: MakeRun) -> None:
    run = make_run(complete=1)
    outline = Outline(build_page(run.path))
    assert "1 of 1 trained net stands on the front" in outline.text
    assert "nothing to trade yet" in outline.text
    assert outline.data()["fronts"]["miou/parameters"]["trials"] == [run.complete()[0].trial]


def test_a_torn_last_line_is_no_obstacle(copy: Written) -> None:
    with (copy.path / "ledger.jsonl").open("ab") as file:
        file.write(b'{"event":"tell","rec')
    assert "example" in build_page(copy.path)


def _remove(path: Path) -> None:
    path.unlink()


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _retype(path: Path) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = {
            name: file[name].astype(float) if name != "names" else file[name] for name in file.files
        }
    np.savez(path, **arrays)


def _pickle(path: Path) -> None:
    arrays: dict[str, Any] = dict.fromkeys(("images", "masks", "names", "predictions"), np.array([{}], dtype=object))
    np.savez(path, **arrays)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (_remove, "is missing"),
    "torn": (_tear, "cannot be read"),
    "empty": (_empty, "cannot be read"),
    "retyped": (_retype, "does not hold"),
    "pickled": (_pickle, "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_arrays_that_cannot_be_shown_are_named(copy: Written, kind: str) -> None:
    harm, words = DAMAGE[kind]
    trial = page_facts(read_run(copy.path))["gallery"]["trials"][1]
    harm(copy.path / f"predictions/{trial:04d}.npz")
    outline = Outline(build_page(copy.path))
    assert words in outline.data()["nets"][str(trial)]["without_predictions"]
    assert outline.data()["nets"][str(trial)]["predictions"] is None
    assert f"{trial:04d}.npz {words}" in outline.text

    harm(copy.path / "samples.npz")
    outline = Outline(build_page(copy.path))
    assert f"There are no sample images: samples.npz {words}" in outline.text
    assert not [tag for tag, _ in outline.elements if tag == "img"]


def test_predictions_are_kept_while_they_fit(example: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(build_page(example.path).encode())
    monkeypatch.setattr(page, "PAGE_BYTES", whole - 20_000)
    html = build_page(example.path)
    assert len(html.encode()) < whole - 10_000  # a whole net more than there was room for, and notes on the others
    data = Outline(html).data()
    nets = {int(trial): net for trial, net in data["nets"].items() if net["status"] == "complete"}
    shown = {trial for trial, net in nets.items() if net["predictions"]}
    assert set(data["front"]) < shown < set(nets)
    worst_shown = min(nets[trial]["values"]["miou"] for trial in shown - set(data["front"]))
    for trial in set(nets) - shown:
        assert nets[trial]["without_predictions"] == "left out to keep this page small"
        assert nets[trial]["values"]["miou"] <= worst_shown
    monkeypatch.setattr(page, "PAGE_BYTES", 0)
    data = Outline(build_page(example.path)).data()
    gallery = page_facts(read_run(example.path))["gallery"]["trials"]
    assert {net["trial"] for net in data["nets"].values() if net["predictions"]} == set(gallery)


# Hostile text ----------------------------------------------------------------------------------------------

HOSTILE = '</script ><script>window.pwned=1</script><img src=x onerror="window.pwned=1"><!--<script>'


def test_text_of_others_is_only_ever_text(make_run: MakeRun) -> None:
    run = make_run(
        "x--><img src=y onerror=window.pwned=1>", summary=HOSTILE, failure=HOSTILE,
        class_names=("background", HOSTILE, "<b>ring</b>", "__proto__"),
    )  # fmt: skip
    html = build_page(run.path)
    outline = Outline(html)
    assert HOSTILE not in html
    assert len(outline.scripts) == 3
    assert not any("onerror" in attributes for _, attributes in outline.elements)
    assert len(outline.comments) == 1
    assert HOSTILE in outline.text
    assert outline.data()["classes"][1] == HOSTILE
    failed = next(r for r in run.records if r.status is Status.FAILED)
    assert outline.data()["nets"][str(failed.trial)]["reason"] == HOSTILE


# Writing ---------------------------------------------------------------------------------------------------


def test_the_page_is_written_whole_or_not_at_all(
    copy: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pages" / "front.html"
    assert write_report(copy.path, out) == out
    whole = out.read_text("utf-8")
    assert whole == build_page(copy.path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Ledger(copy.path, create=False) as book:
        book.append("resume", {"provenance": {}})
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OnenetBenchError, match=r"front\.html is not: No space left on device"):
        write_report(copy.path, out)
    assert out.read_text("utf-8") == whole
    assert [path.name for path in out.parent.iterdir()] == ["front.html"]


def test_the_page_says_how_nets_were_timed_and_what_was_known_before(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / ledger.FILE
    head, *rest = path.read_text().splitlines(keepends=True)
    assert "Warm start" not in Outline(build_page(run.path)).text
    timed = {"runtime": "torch", "form": "trained", "resolution": 64, "batch": 1, "threads": 1, "device": "cuda"}
    path.write_text("".join([json.dumps({**json.loads(head), "latency": timed, "earlier": [{}, {}]}) + "\n", *rest]))
    text = Outline(build_page(run.path)).text
    assert "2 trainings of an earlier run" in text
    assert "torch, trained form, cuda, batch 1, 64 × 64 pixels, float32" in text


# Pictures --------------------------------------------------------------------------------------------------


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


@pytest.mark.parametrize("ignore_index", [255, 1])
def test_a_mask_keeps_every_pixel_in_its_colour(ignore_index: int) -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, 255], np.uint8), size=(20, 30))
    colours = palette(4, background=2)
    pixels = np.asarray(decoded(mask_uri(mask, colours, ignore_index)).convert("RGB"))
    for index, colour in {**dict(enumerate(colours)), 255: IGNORED, ignore_index: IGNORED}.items():
        assert (pixels[mask == index] == colour).all()
    assert colours[2] == BACKGROUND


def test_an_image_keeps_its_channels() -> None:
    image = scenes(0)[0][0]
    assert (np.asarray(decoded(image_uri(image))) == image.transpose(1, 2, 0)).all()
    assert (np.asarray(decoded(image_uri(image[:1]))) == image[0]).all()
    assert (np.asarray(decoded(image_uri(np.concatenate([image, image[:1]])))) == image[0]).all()


def test_large_pictures_are_made_smaller() -> None:
    assert decoded(image_uri(np.zeros((3, 512, 384), np.uint8))).size == (192, 256)
    assert decoded(mask_uri(np.zeros((600, 300), np.uint8), palette(2, 0), 255)).size == (100, 200)


@pytest.mark.parametrize("classes", [2, 4, 21, 38, 255])
def test_classes_have_colours_of_their_own(classes: int) -> None:
    colours = palette(classes, background=0)
    assert len(set(colours)) == classes
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
    np.testing.assert_allclose(lab(np.array([255, 0, 0])), [53.24, 80.09, 67.20], atol=0.03)
    places = lab(np.array([IGNORED, *colours]))  # (classes + 1, 3)
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + 1000 * np.eye(len(places))
    assert apart.min() > (12 if classes == 255 else 26)


def test_reading_runs_never_loads_torch() -> None:
    code = "import sys, onenet_bench.report; sys.exit('torch' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_whose_name_is_no_text_has_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run().path
    strange = run.rename(run.with_name("run\udcff"))  # a byte that is not UTF-8
    page = write_report(strange, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "run\\udcff" in page


@pytest.mark.parametrize("damage", ["task", "spec"])
def test_a_ledger_that_makes_no_sense_makes_no_page(make_run: MakeRun, damage: str) -> None:
    path = make_run().path / ledger.FILE
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if damage == "task":
        del events[0]["task"]
    else:
        for event in events:
            if event["event"] == "tell":
                event["record"]["spec"] = None
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    with pytest.raises(LedgerError, match="follow from one another"):
        build_page(path.parent)


# -- stopping early --------------------------------------------------------------------------------------------------


def with_fidelity(run: Written, *events: dict[str, Any]) -> dict[str, Any]:
    """The page's facts on stopping early of ``run``, had it asked for it and written ``events``."""
    path = run.path / "ledger.jsonl"
    head, *rest = path.read_text(encoding="utf-8").splitlines()
    lines = [json.dumps({**json.loads(head), "fidelity": "auto"}), *rest, *map(json.dumps, events)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts: dict[str, Any] = page_facts(read_run(run.path))["fidelity"]
    assert "Stopping early" in build_page(run.path)
    return facts


def rung(share: str, tau: float | None, passed: bool) -> dict[str, Any]:
    return {"share": share, "epoch": 4, "score": "miou", "nets": 9, "kendall": tau, "like_cost": 0.61,
            "bands": [0.5, None, 1.0], "passed": passed}  # fmt: skip


def test_a_run_that_does_not_stop_early_says_nothing_of_it(make_run: MakeRun) -> None:
    assert page_facts(read_run(make_run().path))["fidelity"] is None


def test_a_run_too_short_for_an_audit_says_so(make_run: MakeRun) -> None:
    assert with_fidelity(make_run())["words"].startswith("Too few nets")


def test_the_last_audit_is_shown_with_its_numbers(make_run: MakeRun) -> None:
    audit = {"event": "audit", "trials": list(range(9)), "needed": 0.5, "first": None, "reason": "nobody is stopped"}
    later = {**audit, "trials": list(range(18)), "first": 1, "reason": "candidates may be stopped from epoch 4 on",
             "rungs": [rung("1/9", None, False), rung("1/3", 0.734, True)]}  # fmt: skip
    reports = [{"event": "report", "trial": t, "epoch": e} for t, e in [(0, 1), (0, 2), (1, 1), (0, 2)]]
    run = make_run()
    told = read_run(run.path)
    begun = [{"event": "ask", "trial": trial, "choices": {}, "attributes": {}} for trial in (900, 901)]
    events = [{**audit, "rungs": []}, later, {"event": "promote", "trial": 3}, *begun, *reports]
    facts = with_fidelity(run, *events)
    assert "After 18 nets trained in full: candidates may be stopped from epoch 4 on." in facts["words"]
    candidates = len(told.records) - told.count(Status.REJECTED) + len(begun)
    whole = candidates * told.recipe.epochs
    assert f"In all 3 epochs were trained, of {whole} that all of these candidates" in facts["words"]
    assert "1 that had been stopped went on later" in facts["words"]
    assert [row["kendall"] for row in facts["rows"]] == ["–", "0.73"]
    assert facts["rows"][1]["bands"] == "0.50 · – · 1.00"
    assert facts["rows"][1]["score"] == "mIoU"
