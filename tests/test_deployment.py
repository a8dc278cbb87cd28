"""The export command: files, their check, their cards."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from onenet_bench import costs, data, deployment, inference, models, zoo
from onenet_bench.cli import app
from onenet_bench.errors import DataError, OnenetBenchError, RecipeError, SpecError
from onenet_bench.models import deploy, onnx, strips
from onenet_bench.palette import BACKGROUND
from onenet_bench.plan import plan
from onenet_bench.recipe import Recipe
from onenet_bench.spec import NetSpec, StageSpec, StemSpec

SPEC = NetSpec(
    classes=8, stem=StemSpec(channels=8, repeat=1), encoder=(StageSpec(channels=16, spatial_kernel=9, repeat=1),),
    decoder=(StageSpec(channels=8, spatial_kernel=9, repeat=1),),
)  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    task = data.open_task("synthetic", resolution=32, train=6, validation=4, test=4)
    torch.manual_seed(0)
    path = tmp_path / "trained" / "mine.safetensors"
    facts = {"task": task.to_dict(), "recipe": Recipe().to_dict()}
    models.save_checkpoint(models.build(SPEC), path, facts)
    return path


@pytest.mark.slow
def test_a_checkpoint_becomes_files_with_cards(checkpoint: Path, tmp_path: Path) -> None:
    """The whole way, int8 included; what a card says is held against what is not the exporter's."""
    source = deployment.open_source(str(checkpoint))
    float32, int8 = deployment.export(source, "onnx", tmp_path / "out", int8=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mine-int8.onnx", "mine-int8.onnx.json", "mine.onnx", "mine.onnx.json"
    ]  # fmt: skip
    for one in (float32, int8):
        card = json.loads(one.path.with_name(f"{one.path.name}.json").read_text())
        assert card == one.card
        assert card["sha256"] == hashlib.sha256(one.path.read_bytes()).hexdigest()
        assert NetSpec.from_dict(card["spec"]) == SPEC
        assert card["digest"] == SPEC.digest()
        assert card["weights"] == "trained"
        assert card["opset"] == onnx.OPSET
        assert card["input"]["shape"] == ["batch", 3, 32, 32]
        assert card["input"]["normalisation"] == "inside the net"
        assert card["output"]["shape"] == ["batch", 8, 32, 32]
        assert card["classes"][0] == {
            "index": 0,
            "name": "background",
            "colour": "#{:02x}{:02x}{:02x}".format(*BACKGROUND),
        }
        assert [c["name"] for c in card["classes"]] == list(source.task.class_names)  # type: ignore[union-attr]
        assert card["costs"]["trained"] == costs.count(SPEC, 32).to_dict()
        assert card["costs"]["deployed"] == costs.count_plan(deploy.deployed_plan(SPEC, (3, 32, 32))).to_dict()
    check = float32.card["check"]
    assert check["batches"] == [1, 2, 3]
    assert check["images"] == 4
    assert 0 < check["difference"] <= check["allowed"]
    assert "check" not in int8.card
    assert math.isnan(int8.difference)
    scored = int8.card["int8"]
    assert (scored["calibration_images"], scored["images"], scored["scored_on"]) == (6, 4, "test split")
    wanted = inference.score(inference.open_checkpoint(checkpoint)).scores
    assert scored["before"]["miou"] == pytest.approx(wanted["miou"], abs=1e-3)
    assert scored["after"]["ce"] == pytest.approx(wanted["ce"], rel=0.05)
    assert scored["after"]["ce"] != scored["before"]["ce"]


@pytest.mark.slow
def test_int8_is_not_made_of_strips(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of which would have ranges of its own."""
    import onnx as package

    monkeypatch.setattr(strips, "STRIP", 1)
    monkeypatch.setattr(strips, "PAYS", 0)
    source = deployment.open_source(str(checkpoint))
    float32, int8 = (
        sum(node.op_type == "Conv" for node in package.load(one.path).graph.node)
        for one in deployment.export(source, "onnx", tmp_path / "out", int8=True)
    )
    assert float32 == 8 * int8


def test_strips_cost_less_memory_and_nothing_else() -> None:
    whole, cut = (
        deployment.deployed_costs(zoo.get("onenet_ed_4"), (3, 256, 256), strips=strips).to_dict()
        for strips in (False, True)
    )
    assert cut.pop("peak_inference_mib") < 0.75 * whole.pop("peak_inference_mib")
    assert cut == whole


def test_a_file_whose_later_logits_are_no_numbers_is_not_accepted(checkpoint: Path) -> None:
    net = inference.open_checkpoint(checkpoint).net
    for odd, wanted in (([3], "difference"), ([1, 3], "on_random_images")):

        def run(batch: torch.Tensor, odd: list[int] = odd) -> torch.Tensor:
            return net(batch) * (float("nan") if len(batch) in odd else 1.0)

        found = deployment._compare(net, run, (3, 32, 32), None)
        assert math.isnan(found[wanted])
        assert not found["difference"] <= found["allowed"]


@pytest.mark.parametrize("logit", [9.0, float("nan")])
def test_a_file_that_differs_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logit: float) -> None:
    monkeypatch.setitem(
        deployment.FORMATS, "onnx",
        deployment.Format(suffix=".onnx", write=lambda _net, path, _shape: path.write_bytes(b""),
                          read=lambda _: lambda image: torch.full((len(image), 4, *image.shape[2:]), logit)),
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    net = deployment.open_source("onenet_e_4").net
    card = json.dumps({"digest": net.spec.digest(), "weights_digest": deployment._digest(net)})
    (out / "onenet_e_4.onnx.json").write_text(card)  # an earlier export
    (out / "onenet_e_4.onnx").write_text("a net")
    done = CliRunner().invoke(app, ["export", "onenet_e_4", "--resolution", "16", "--out", str(out)])
    assert done.exit_code == 1
    assert "logits must not differ by more than" in done.output
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "onenet_e_4.onnx": "a net", "onenet_e_4.onnx.json": card,
    }  # fmt: skip


def test_an_export_of_another_net_is_not_replaced(tmp_path: Path) -> None:
    spec, command = tmp_path / "net.toml", ["export", str(tmp_path / "net.toml"), "--resolution", "16"]
    command += ["--to", "torch-export", "--out", str(tmp_path / "out")]
    text = 'classes = 3\n[stem]\nkind = "conv2d"\nchannels = {}\n[[encoder]]\nkind = "conv2d"\nchannels = 4\n'
    text += '[[decoder]]\nkind = "conv2d"\nchannels = 2\n'
    spec.write_text(text.format(2))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, command).exit_code == 0  # the same again
    before = (tmp_path / "out" / "net.pt2").read_bytes()
    card = tmp_path / "out" / "net.pt2.json"
    first = json.loads(card.read_text())
    other_weights = {**first, "weights_digest": "0" * 16}
    for there, channels in ((first, 3), (other_weights, 2)):
        card.write_text(json.dumps(there))
        spec.write_text(text.format(channels))
        done = CliRunner().invoke(app, command)
        assert "an export replaces none of another net or of other weights" in str(done.exception or done.output)
        assert (tmp_path / "out" / "net.pt2").read_bytes() == before
    assert first["weights_digest"] == deployment._digest(deployment.open_source(str(spec)).net)


def test_the_card_says_which_value_of_16_bits_is_white(tmp_path: Path) -> None:
    """That of the images trained on, whatever others are exported with."""
    names = {}
    for name, white in (("own", 4000), ("other", 1000)):
        names[name] = f"folder:{tmp_path / name}"
        for i in range(3):
            image, mask = np.full((32, 32), white, np.uint16), np.eye(32, dtype=np.uint8)
            for part, values in (("images", image), ("masks", mask)):
                (tmp_path / name / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / name / part / f"{i}.png")
    task = data.open_task(names["own"], resolution=32)
    net = models.build(replace(SPEC, classes=2, in_channels=1))
    for white, notes in ((4000, 0), (None, 1)):
        facts = {"task": replace(task, white=white).to_dict(), "recipe": Recipe().to_dict()}
        models.save_checkpoint(net, tmp_path / "net.safetensors", facts)
        source = deployment.open_source(str(tmp_path / "net.safetensors"), names["other"])
        assert len(source.notes) == notes
        (one,) = deployment.export(source, "torch-export", tmp_path / "out")
        assert one.card["check"]["images"] == 1
        assert ("divided by 4000, at most 1, times 255" in one.card["input"]["preparation"]) == (white == 4000)
        assert len(one.card["notes"]) == notes
        assert one.card["data"]["white"] == (white or 1000)
        own = deployment.open_source(str(tmp_path / "net.safetensors"))
        (one,) = deployment.export(own, "torch-export", tmp_path / "out")
        assert "divided by 4000, at most 1, times 255" in one.card["input"]["preparation"]  # the data tell


@pytest.mark.parametrize(
    "there",
    [
        {"mine.onnx": "a net of another maker"},
        {"mine.onnx": "a net", "mine.onnx.json": "no card"},
        {"mine-int8.onnx": "a net of another maker"},
        {"mine-int8.onnx": "other weights", "mine-int8.onnx.json": '{"digest": "", "weights_digest": ""}'},
        {"mine-int8.onnx.json": '{"digest": "", "weights_digest": ""}'},
    ],
)
def test_what_is_no_export_of_the_same_weights_is_not_replaced(
    checkpoint: Path, tmp_path: Path, there: dict[str, str]
) -> None:
    (tmp_path / "out").mkdir()
    for name, text in there.items():
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(OnenetBenchError, match=r"an export replaces .*name another --out"):
        deployment.export(deployment.open_source(str(checkpoint)), "onnx", tmp_path / "out", int8=True)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == there


@pytest.mark.slow
@pytest.mark.parametrize("at", ["_score", "_carded"])
def test_an_interrupted_export_leaves_no_file_without_its_card(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    source, out = deployment.open_source(str(checkpoint)), tmp_path / "out"
    with monkeypatch.context() as interrupted:
        interrupted.setattr(deployment, at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            deployment.export(source, "onnx", out, int8=True)
    whole = ["mine.onnx", "mine.onnx.json"]
    assert sorted(path.name for path in out.iterdir()) == (whole if at == "_score" else [])
    deployment.export(source, "onnx", out, int8=True)
    assert sorted(path.name for path in out.iterdir()) == ["mine-int8.onnx", "mine-int8.onnx.json", *whole]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("msd-lung:PATH", "Hounsfield units are clipped to -1000 to 400, which become 0 and 255"),
        ("msd-brain:PATH", "standard deviations from their mean in the volume, clipped to -5 to 5, which become 1 and"),
        ("voc:PATH", "^stretched to 32 x 48 pixels by a bilinear filter .*antialiased.*; bytes divided by 255; red, "),
    ],
)
def test_the_card_says_how_an_image_comes_to_the_net(checkpoint: Path, kind: str, wanted: str) -> None:
    task = replace(inference.open_checkpoint(checkpoint).task, data=kind)
    assert re.search(wanted, deployment._preparation(task, (3, 32, 48)))


@pytest.mark.slow
def test_the_card_names_the_classes_trained_on_whatever_it_is_scored_on(checkpoint: Path, tmp_path: Path) -> None:
    trained = inference.open_checkpoint(checkpoint).task
    for name in ("images", "masks"):
        (tmp_path / "other" / name).mkdir(parents=True)
        for i in range(3):
            image = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 8
            Image.fromarray(image).convert("RGB" if name == "images" else "L").save(tmp_path / f"other/{name}/{i}.png")
    (tmp_path / "other/classes.txt").write_text("\n".join([*"abcdefg", "background"]))
    command = ["export", str(checkpoint), "--data", f"folder:{tmp_path / 'other'}", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--int8"])
    assert done.exit_code == 0, done.output
    assert "names them a, b, c, d, e, f, g, background and the net was trained on background, " in done.stderr
    assert f"mIoU, test split of folder:{tmp_path / 'other'}, 1 images" in done.stdout.replace("\n", "")
    for name in ("mine.onnx", "mine-int8.onnx"):
        card = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert card["task"] == trained.to_dict()
        assert [one["name"] for one in card["classes"]] == list(trained.class_names)
        assert card["classes"][0]["colour"] == "#{:02x}{:02x}{:02x}".format(*BACKGROUND)
        assert (card["data"]["data"], card["data"]["background"]) == (f"folder:{tmp_path / 'other'}", 7)
        assert "classes are compared by index" in card["notes"][0]


def test_torch_export_runs_again_and_a_net_without_weights_says_so(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(
        'classes = 2\nstem = {channels = 4, repeat = 1}\nencoder = [{channels = 8, spatial_kernel = 3}]\n'
        'decoder = [{kind = "conv2d", channels = 4}]\n'
    )  # fmt: skip
    words = ["export", str(tmp_path / "net.toml"), "--to", "torch-export", "--resolution", "16", "--naive"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "has no weights: its file computes with random ones" in done.output
    card = json.loads((tmp_path / "net-naive.pt2.json").read_text())
    assert card["weights"].startswith("random")
    assert "opset" not in card
    assert list(card["costs"]) == ["trained"]
    again = torch.export.load(tmp_path / "net-naive.pt2").module()
    net = deployment.open_source(str(tmp_path / "net.toml")).net
    image = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(image), net(image), rtol=1e-4, atol=1e-5)


def test_a_net_without_weights_takes_the_classes_of_named_data() -> None:
    source = deployment.open_source("unet_4", "synthetic", 64)
    assert source.net.spec.classes == 8
    assert source.task is not None
    assert plan(source.net.spec, (3, 64, 64)).rows[-1].c_out == 8


def test_a_file_of_a_run_is_named_after_it(checkpoint: Path, tmp_path: Path) -> None:
    """Every training numbers its weights from 0000."""
    for run, name in (("first", "first"), ("second", "second"), ("first/final", "first-final")):
        (tmp_path / run / "weights").mkdir(parents=True)
        there = checkpoint.rename(tmp_path / run / "weights" / "0000.safetensors")
        assert deployment.open_source(str(there)).name == f"{name}-0000"
        checkpoint = there


def test_a_resolution_that_the_data_do_not_have_is_refused_where_they_are_needed(
    checkpoint: Path, tmp_path: Path
) -> None:
    source = deployment.open_source(str(checkpoint))
    (alone,) = deployment.export(source, "onnx", tmp_path, resolution=16)  # on random images alone
    assert alone.card["check"]["images"] == 0
    with pytest.raises(DataError, match=r"a resolution of at least 32 .* but got 16"):
        deployment.export(source, "onnx", tmp_path, resolution=16, int8=True)
    float32, int8 = deployment.export(source, "onnx", tmp_path, resolution=64, int8=True)
    assert float32.card["check"]["images"] == 4
    assert int8.card["task"]["resolution"] == 64


@pytest.mark.parametrize("resolution", [None, 64])
def test_int8_is_not_scored_on_data_that_changed(checkpoint: Path, tmp_path: Path, resolution: int | None) -> None:
    """Whose images held out may be others, at whatever resolution."""
    source = deployment.open_source(str(checkpoint))
    assert source.task is not None
    changed = replace(source, task=replace(source.task, content="another"))
    with pytest.raises(DataError, match=r"synthetic has changed since.* name other images, .* by --data"):
        deployment.export(changed, "onnx", tmp_path / "out", int8=True, resolution=resolution)
    assert not (tmp_path / "out").exists()
    (alone,) = deployment.export(changed, "torch-export", tmp_path / "out", resolution=resolution)
    assert alone.card["check"]["images"] == 0


def test_int8_is_not_scored_on_a_split_without_a_pixel_that_counts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = deployment.open_source(str(checkpoint))
    assert source.task is not None
    splits = data.load(source.task)
    void = replace(splits.test, masks=np.full_like(splits.test.masks, 255))
    monkeypatch.setattr(data, "load", lambda _: replace(splits, test=void))
    with pytest.raises(DataError, match="all of the test split of synthetic are 255"):
        deployment.export(source, "onnx", tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    source = deployment.open_source(str(checkpoint))
    bare = deployment.Source(name="bare", net=source.net, trained=False, task=None)
    for wrong, error, sentence in (
        (
            lambda: deployment.export(source, "tflite", tmp_path),
            RecipeError,
            "unknown format 'tflite'; known: onnx, torch",
        ),
        (lambda: deployment.export(source, "torch-export", tmp_path, int8=True), RecipeError, "use --to onnx"),
        (lambda: deployment.export(bare, "onnx", tmp_path, int8=True), RecipeError, "name some by --data"),
        (lambda: deployment.export(source, "onnx", tmp_path, resolution=33), SpecError, "multiple of 2.*got 33"),
        (lambda: deployment.export(source, "onnx", tmp_path, calibrate_on="test"), RecipeError, "known: train, valid"),
        (
            lambda: deployment.export(source, "onnx", checkpoint),
            OnenetBenchError,
            "folder must be writable, but .*mine",
        ),
        (lambda: deployment.open_source("unet_9"), SpecError, "unknown net 'unet_9'"),
        (
            lambda: deployment.open_source(str(checkpoint), "synthetic:cues=vessel"),
            DataError,
            "own classes and channels",
        ),
    ):
        with pytest.raises(error, match=sentence):
            wrong()
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda _: None)
    with pytest.raises(OnenetBenchError, match=r"pip install 'onenet-bench\[export\]'"):
        deployment.export(deployment.open_source("onenet_e_4"), "onnx", tmp_path, resolution=16)
    assert not list(tmp_path.iterdir())
