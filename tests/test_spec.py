"""NetSpec: values, refusals, names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from onenet_bench import zoo
from onenet_bench.errors import SpecError
from onenet_bench.plan import plan
from onenet_bench.space import compose
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from tests.specs import specs


@given(specs())
@settings(max_examples=100)
def test_a_spec_survives_its_own_dictionary(spec: NetSpec) -> None:
    assert NetSpec.from_dict(spec.to_dict()) == spec
    assert NetSpec.from_dict(spec.to_dict()).digest() == spec.digest()


@given(specs(), specs())
@settings(max_examples=100)
def test_digests_differ_where_specs_do(a: NetSpec, b: NetSpec) -> None:
    assert (a == b) == (a.digest() == b.digest())
    assert (a == b) <= (hash(a) == hash(b))


def test_a_spec_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(
        """
        classes = 5
        [stem]
        channels = 8
        [[encoder]]
        channels = 16
        spatial_kernel = 9
        [[decoder]]
        kind = "conv2d"
        channels = 8
        skip = false
        plain = true
        """
    )
    spec = NetSpec.from_toml(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as some editors do
    assert NetSpec.from_toml(path) == spec
    assert spec.encoder[0] == StageSpec(kind="onenet1d", channels=16, spatial_kernel=9)
    assert spec.decoder[0].kernel == 3  # the default of a 2D kind
    assert spec.stem.repeat == 3


REFUSED = {
    "even kernel": (lambda: StageSpec(channels=8, spatial_kernel=4), "odd .* got 4; use 3 or 5"),
    "negative kernel": (lambda: StageSpec(channels=8, spatial_kernel=-1), "odd .* got -1; use 1 or 3"),
    "no kernel in 2D": (lambda: StageSpec(kind="conv2d", channels=8, spatial_kernel=0), "at least 1, but got 0"),
    "no channels": (lambda: StageSpec(channels=0), "at least 1, but got 0"),
    "half a channel": (lambda: StageSpec(channels=2.5), "whole number.* got 2.5"),
    "scale": (lambda: StageSpec(channels=8, scale=5), r"one of \(2, 3, 4\), but got 5"),
    "kind": (lambda: StageSpec(kind="conv3d", channels=8), "'conv3d'; known: bottleneck2d, conv2d"),
    "plain 1D": (lambda: StageSpec(channels=8, plain=True), "only a conv2d level can be plain"),
    "squeeze": (lambda: StageSpec(kind="resnet_bottleneck", channels=10), "multiple of 4, but got 10; use 12"),
    "resnet kernel": (lambda: StageSpec(kind="resnet_basic", channels=8, spatial_kernel=5), "kernel 3 and scale 2"),
    "stem kind": (lambda: StemSpec(kind="vit"), "unknown stem kind 'vit'"),
    "stem repeat": (lambda: StemSpec(kind="resnet", repeat=2), "repeat=2; set it to 1"),
    "no levels": (lambda: replace(zoo.unet(1), encoder=()), "at least one encoder level"),
    "decoder scales": (
        lambda: replace(zoo.onenet_e(2), decoder=zoo.onenet_e(3).decoder),
        r"grow by \[2, 2\].*\[2, 2, 2\]",
    ),
    "output stride 3": (lambda: replace(zoo.unet(1), output_stride=3), "1 or 2, but got 3"),
    "output stride of scale 4": (
        lambda: NetSpec(classes=2, stem=StemSpec(), encoder=(StageSpec(channels=8, scale=4),), decoder=(),
                        output_stride=2),
        "must then be 2, but it is 4",
    ),
    "heads": (lambda: replace(zoo.unet(1), heads="some"), "'some'; known: all, top"),
    "depth": (lambda: zoo.unet(0), "at least one level, but got depth=0"),
    "encoder skip": (
        lambda: replace(zoo.unet(1), encoder=(StageSpec(kind="conv2d", channels=8, skip=False),)),
        "a decoder level's to say, but encoder level 1 has skip=False",
    ),
    "resnet behind another stem": (
        lambda: replace(zoo.unet(1), encoder=(StageSpec(kind="resnet_basic", channels=8),)),
        "behind a 'conv2d' stem",
    ),
    "resnet decoder": (
        lambda: replace(zoo.unet(1), decoder=(StageSpec(kind="resnet_basic", channels=8, skip=False),)),
        "only stand in an encoder",
    ),
    "skip to the image": (
        lambda: NetSpec(classes=2, stem=StemSpec(kind="resnet", repeat=1),
                        encoder=(StageSpec(kind="resnet_basic", channels=8),),
                        decoder=(StageSpec(kind="conv2d", channels=8), StageSpec(kind="conv2d", channels=8))),
        "set skip=False",
    ),
    "resolution": (lambda: plan(zoo.unet(4), (3, 100, 96)), "height must be a multiple of 16.* got 100; use 96 or 112"),
    "small resolution": (lambda: plan(zoo.unet(4), (3, 8, 16)), "got 8; use 16"),
    "channels": (lambda: plan(zoo.unet(4), (1, 96, 96)), "takes 3 input channels, but the shape has 1"),
    "unknown field": (lambda: NetSpec.from_dict({"clases": 2}), "field of a net 'clases'; known: classes"),
    "missing field": (lambda: NetSpec.from_dict({"stem": {}}), "cannot be made from"),
    "no table": (lambda: NetSpec.from_dict({"classes": 2, "stem": 3}), "a stem is a table of fields, but got 3"),
    "scale's type": (lambda: StageSpec(channels=4, scale=2.0), "scale of a level is a whole number, but got 2.0"),
    "kind's type": (lambda: StageSpec(kind=["conv2d"], channels=4), r"kind of a level is a text, but got \['conv2d'\]"),
    "repeat": (lambda: StageSpec(kind="conv2d", channels=4, repeat=257), "repeat must be at most 256, but got 257"),
    "skip's type": (lambda: StageSpec(channels=4, skip="no"), "skip of a level is true or false, but got 'no'"),
    "levels": (lambda: NetSpec.from_dict({"classes": 2, "encoder": 5}), "encoder of a net is a list.* but got 5"),
    "zoo": (lambda: zoo.get("unet_9"), "unknown net 'unet_9'; known: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_nets_are_refused_with_law_value_and_way_out(case: str) -> None:
    make, sentence = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        make()
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        zoo.unet(1).encoder[0].channels = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        zoo.unet(1).classes = 3  # type: ignore[misc]


LABELS = {
    "onenet1d 4-8-16 /2·2 k9 + onenet1d": {},
    "onenet1d 4-8-16 /2·2 + onenet1d": {"spatial_kernel": 0},
    "onenet1d 4-8-16 /2·2 k9 + onenet1d k3": {"decoder_kernel": 3},
    "conv2d 4-8-16 /2·2 + onenet1d k9": {"encoder": "conv2d"},
    "conv2d 4-8-16 /2·2 + onenet1d": {"encoder": "conv2d", "spatial_kernel": 0},
    "onen·conv 4-8-16 /2·2 k9 + conv2d": {"encoder": ["onenet1d", "conv2d"], "decoder": "conv2d"},
}


@pytest.mark.parametrize("label", LABELS)
def test_labels_tell_nets_of_other_kernels_apart(label: str) -> None:
    usual = {"depth": 2, "width": 4, "decoder": "onenet1d", "spatial_kernel": 9}
    assert compose(classes=3, **{**usual, **LABELS[label]}).label() == label
