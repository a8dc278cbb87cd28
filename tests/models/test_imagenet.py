"""ImageNet weights: a literal ResNet in torchvision's structure and naming gives the same features as our encoder."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet_bench import models, zoo
from onenet_bench.errors import SpecError
from onenet_bench.spec import NetSpec

# torchvision's structure, in our own words ---------------------------------------------------------------------


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with the stride in the 3x3 (``early``: in the first)."""

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool, early: bool) -> None:
        super().__init__()
        inner = outputs // 4 if bottleneck else outputs
        first = stride if early or not bottleneck else 1
        self.conv1 = nn.Conv2d(inputs, inner, 1 if bottleneck else 3, first, 0 if bottleneck else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride // first, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, widths: list[int], repeats: list[int], bottleneck: bool, early: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers = len(repeats)
        for i, (inputs, outputs, repeat) in enumerate(zip(widths, widths[1:], repeats, strict=False), start=1):
            blocks = [
                Block(outputs if j else inputs, outputs, 2 if i > 1 and j == 0 else 1, bottleneck, early)
                for j in range(repeat)
            ]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.fc = nn.Linear(widths[-1], 1000)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [F.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(features[0])
        for i in range(1, self.layers + 1):
            x = self.get_submodule(f"layer{i}")(x)
            features.append(x)
        return features


SMALL: dict[str, tuple[list[int], list[int]]] = {
    "resnet_basic": ([8, 8, 16, 24, 32], [2, 1, 3, 1]),
    "resnet_bottleneck": ([8, 16, 32, 48, 64], [2, 1, 3, 1]),
}


def pair(kind: str, early: bool = False) -> tuple[ResNet, NetSpec]:
    """A literal ResNet with statistics of its own, and the spec whose encoder it is."""
    torch.manual_seed(0)
    widths, repeats = SMALL[kind]
    theirs = ResNet(widths, repeats, kind == "resnet_bottleneck", early)
    for _ in range(3):
        theirs(torch.rand(4, 3, 64, 64))
    return theirs.eval(), zoo.resnet_unet(kind, widths, repeats)


def features(net: models.UNet, x: Tensor) -> list[Tensor]:
    """What our encoder hands to the decoder: the deepest tensor and, by level, what is concatenated."""
    found: dict[int, Tensor] = {}
    depth = len(net.spec.encoder)

    def hear(level: int, grown: int) -> Any:
        return lambda _, inputs: found.__setitem__(level, inputs[0][:, grown:].clone())

    net.get_submodule(f"decoder.{depth}.up").register_forward_pre_hook(hear(depth, 0))
    for j, stage in enumerate(net.spec.decoder[:-1]):
        level = net.spec.decoder_level(j)
        net.get_submodule(f"decoder.{level}.channel_1.conv").register_forward_pre_hook(hear(level - 1, stage.channels))
    net(x)
    return [found[level] for level in range(depth + 1)]


@pytest.mark.parametrize("kind", SMALL)
def test_a_torchvision_checkpoint_gives_the_same_features(kind: str) -> None:
    theirs, spec = pair(kind)
    net = models.build(spec).eval()
    decoder = {name: value.clone() for name, value in net.state_dict().items() if name.startswith("decoder.")}
    models.load_imagenet_state_dict(net, theirs.state_dict())
    x = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        ours, wanted = features(net, x), theirs(x)
    assert len(ours) == len(wanted) == 5
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    state = net.state_dict()
    assert torch.equal(state["encoder.classifier.weight"], theirs.fc.weight)
    assert torch.equal(state["encoder.classifier.bias"], theirs.fc.bias)
    assert all(torch.equal(state[name], value) for name, value in decoder.items())


def test_the_stride_stands_in_the_bottlenecks_3x3() -> None:
    """The same weights with the stride in the first convolution give something else: the test above would notice."""
    theirs, spec = pair("resnet_bottleneck")
    other, _ = pair("resnet_bottleneck", early=True)
    other.load_state_dict(theirs.state_dict())
    net = models.build(spec).eval()
    models.load_imagenet_state_dict(net, theirs.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, wrong = features(net, x), other(x)
    torch.testing.assert_close(ours[1], wrong[1], rtol=0, atol=1e-5)
    assert (ours[2] - wrong[2]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "bottleneck", "keys"), [("resnet34_unet", False, 218), ("resnet50_unet", True, 320)]
)  # fmt: skip
def test_the_keys_of_the_zoos_resnets(name: str, bottleneck: bool, keys: int) -> None:
    spec = zoo.get(name)
    widths = [spec.stem.channels, *(stage.channels for stage in spec.encoder)]
    with torch.device("meta"):
        state = ResNet(widths, [stage.repeat for stage in spec.encoder], bottleneck).state_dict()
        own = [key for key in models.build(spec).state_dict() if not key.startswith("decoder.")]
    assert len(state) == keys  # of torchvision's files
    assert sorted(models.imagenet_weights(spec, state)) == sorted(own)


def test_neither_classifier_nor_counters_are_needed() -> None:
    theirs, spec = pair("resnet_basic")
    full = theirs.state_dict()
    bare = {key: v for key, v in full.items() if not key.startswith("fc.") and "num_batches" not in key}
    net = models.build(spec)
    classifier = net.state_dict()["encoder.classifier.weight"].clone()
    models.load_imagenet_state_dict(net, bare)
    assert torch.equal(net.state_dict()["encoder.classifier.weight"], classifier)
    assert torch.equal(net.state_dict()["encoder.4.0.conv2.weight"], full["layer4.0.conv2.weight"])
    without = models.build(NetSpec.from_dict({**spec.to_dict(), "classifier": 0}))
    models.load_imagenet_state_dict(without, full)
    assert torch.equal(without.state_dict()["encoder.4.0.conv2.weight"], full["layer4.0.conv2.weight"])


def changed(**values: Tensor | None) -> dict[str, Tensor]:
    """A checkpoint of the small basic ResNet with entries replaced, or left out where None."""
    state: dict[str, Any] = {**pair("resnet_basic")[0].state_dict(), **values}
    return {key: value for key, value in state.items() if value is not None}


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "another kind": (lambda: pair("resnet_bottleneck")[0].state_dict(), "'layer1.0.conv1.weight' must have the shape"),
    "a longer one": (
        lambda: ResNet(SMALL["resnet_basic"][0], [2, 1, 3, 2], False).state_dict(), "'layer4.1.conv1.weight' does not",
    ),
    "a shorter one": (
        lambda: ResNet(SMALL["resnet_basic"][0], [1, 1, 3, 1], False).state_dict(),
        "nothing in it is 'encoder.1.1.conv1.weight'",
    ),
    "grey images": (
        lambda: changed(**{"conv1.weight": torch.rand(8, 1, 7, 7)}),
        r"'conv1.weight' must have the shape \(8, 3, 7, 7\), but has \(8, 1, 7, 7\)",
    ),
    "no statistics": (
        lambda: changed(**{"bn1.running_mean": None}), "nothing in it is 'stem.0.norm.running_mean'",
    ),
    "wrapped": (
        lambda: {f"module.{key}": value for key, value in changed().items()}, "'module.conv1.weight' does not",
    ),
    "empty": (dict, "nothing in it is 'stem.0.conv.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_weights_are_refused_and_change_nothing(case: str) -> None:
    state, sentence = REFUSED[case]
    net = models.build(pair("resnet_basic")[1])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(SpecError, match=sentence) as caught:
        models.load_imagenet_state_dict(net, state())
    assert "use the checkpoint of the ResNet that this encoder is" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_net_without_a_resnet_encoder_is_refused() -> None:
    with pytest.raises(SpecError, match=r"behind a resnet stem, but this net is onenet1d .*; use resnet34_unet"):
        models.load_imagenet_state_dict(models.build(zoo.onenet_ed(2, 8)), changed())


# Files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_read_back(tmp_path: Path) -> None:
    theirs, spec = pair("resnet_bottleneck")
    torch.save(theirs.state_dict(), tmp_path / "new.pth")
    torch.save(theirs.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        net = models.build(spec)
        models.load_imagenet_file(net, tmp_path / name)
        assert torch.equal(
            net.state_dict()["encoder.3.2.norm3.running_var"], theirs.state_dict()["layer3.2.bn3.running_var"]
        )


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("readme.txt", "no weights")
    return out.getvalue()


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def checkpoint() -> bytes:
    return saved({"conv1.weight": torch.rand(4, 3, 7, 7)})


NO_CHECKPOINT: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a checkpoint\n" * 20,
    "zip": zipped,
    "torn": lambda: checkpoint()[:600],
    "torn pickle": lambda: pickle.dumps({"conv1.weight": [1.0] * 50}, protocol=2)[:40],
    "list": lambda: saved([torch.rand(3)]),
    "nested": lambda: saved({"state_dict": {"conv1.weight": torch.rand(3)}}),
    "numbered": lambda: saved({0: torch.rand(3)}),
}


@pytest.mark.parametrize("case", NO_CHECKPOINT)
def test_a_file_that_is_no_checkpoint_is_one_sentence(case: str, tmp_path: Path) -> None:
    path = tmp_path / "resnet34.pth"
    path.write_bytes(NO_CHECKPOINT[case]())
    with pytest.raises(SpecError, match=f"torchvision checkpoint.*{re.escape(str(path))}") as caught:
        models.read_imagenet_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.pth is none: No such file"):
        models.read_imagenet_file(tmp_path / "none.pth")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    bomb, target = tmp_path / "resnet34.pth", tmp_path / "burnt"
    bomb.write_bytes(pickle.dumps({"conv1.weight": Bomb(target)}, protocol=2))
    with pytest.raises(SpecError, match="cannot be read as one"):
        models.read_imagenet_file(bomb)
    assert not target.exists()
    pickle.loads(bomb.read_bytes())
    assert target.exists()  # it would have


# The command line ----------------------------------------------------------------------------------------------


def train(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onenet_bench", "train", *words, "--resolution", "32", "--out", "mine"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_train_starts_from_the_weights(tmp_path: Path) -> None:
    theirs, _ = pair("resnet_basic")
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    widths, repeats = SMALL["resnet_basic"]
    levels = ", ".join(
        f'{{kind = "resnet_basic", channels = {c}, repeat = {n}}}' for c, n in zip(widths[1:], repeats, strict=True)
    )
    grown = ", ".join(f'{{kind = "conv2d", channels = {c}}}' for c in reversed(widths[:-1]))
    (tmp_path / "net.toml").write_text(
        f'classes = 2\nclassifier = 1000\nstem = {{kind = "resnet", channels = {widths[0]}, repeat = 1}}\n'
        f'encoder = [{levels}]\ndecoder = [{grown}, {{kind = "conv2d", channels = 8, skip = false}}]\n'
    )
    words = ("net.toml", "--seed", "1", "--steps", "1", "--learning-rate", "1e-12", "--weights", "resnet.pth", "--json")
    done = train(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["record"]
    assert record["provenance"]["weights"] == {
        "file": "resnet.pth",
        "sha256": hashlib.sha256((tmp_path / "resnet.pth").read_bytes()).hexdigest(),
    }
    net, _ = models.load_checkpoint(tmp_path / "mine" / record["artifacts"]["weights"])
    trained = net.state_dict()["encoder.4.0.conv2.weight"]
    torch.testing.assert_close(trained, theirs.state_dict()["layer4.0.conv2.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["unet_4", "--weights", "resnet.pth"], "behind a resnet stem, but this net is conv2d"),
        (["resnet34_unet", "--weights", "resnet.pth"], r"'conv1.weight' must have the shape \(64, 3, 7, 7\)"),
        (["resnet34_unet", "--weights", "none.pth"], "none.pth is none: No such file"),
    ],
)
def test_wrong_weights_end_with_one_sentence_and_leave_nothing(words: list[str], sentence: str, tmp_path: Path) -> None:
    torch.save(changed(), tmp_path / "resnet.pth")
    done = train(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(f"onenet-bench: .*{sentence}.*\n", done.stderr), done.stderr
    assert not (tmp_path / "mine").exists()
