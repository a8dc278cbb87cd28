"""The deployed form: the same function, and what it costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onenet_bench import costs, models, zoo
from onenet_bench.errors import SpecError
from onenet_bench.measure import memory as measured
from onenet_bench.memory import BYTES, peak_elements
from onenet_bench.models import deploy
from onenet_bench.plan import Plan, plan, smallest
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from tests.specs import specs


def net_of(spec: NetSpec, seed: int = 0) -> models.UNet:
    """In float64, with statistics, weights and signs that training could not have left by chance."""
    torch.manual_seed(seed)
    net = models.build(spec).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight.data, -1.5, 1.5), (module.bias.data, -1, 1), (module.running_mean, -1, 1),
                (module.running_var, 0.3, 2),
            ):  # fmt: skip
                assert value is not None
                value.uniform_(low, high)
    return net


def image_for(spec: NetSpec, times: int = 1) -> torch.Tensor:
    side = times * spec.total_scale
    return torch.rand(2, spec.in_channels, side, 2 * side, dtype=torch.float64)


def assert_same(net: models.UNet, times: int = 1) -> None:
    image = image_for(net.spec, times)
    with torch.no_grad():
        wanted = net(image)
        scale = wanted.abs().max() + 1
        for graph in (deploy.simplify(net), deploy.plain(net)):
            kept = image.clone()
            torch.testing.assert_close(graph(kept) / scale, wanted / scale, rtol=0, atol=1e-10)
            assert torch.equal(kept, image), "the image is the caller's"


@given(specs(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_every_spec_deploys_to_the_same_function(spec: NetSpec, seed: int) -> None:
    assert_same(net_of(spec, seed))


@pytest.mark.parametrize(
    ("channels", "scale", "kernel", "blocks"),
    [(64, 2, 9, [4]), (64, 4, 15, [16]), (40, 3, 5, [8]), (131, 2, 3, [0]), (5, 2, 41, [0]), (6, 2, 1, [0])],
)
def test_a_spatial_convolution_runs_in_blocks(channels: int, scale: int, kernel: int, blocks: list[int]) -> None:
    """Several blocks, one, and none where the channels or the kernel do not fit; behind an affine, and merged."""
    level = {"scale": scale, "spatial_kernel": kernel}
    spec = NetSpec(
        classes=3, stem=StemSpec(channels=channels, repeat=1), encoder=(StageSpec(channels=8, repeat=1, **level),),
        decoder=(StageSpec(channels=4, repeat=1, **level),),
    )  # fmt: skip
    rewritten = deploy.rewrite(plan(spec, (3, 8 * scale, 8 * scale)))
    edges = [row for row in rewritten.deployed.rows if row.op == "edges" and row.name.startswith("encoder")]
    assert ([row.groups for row in edges] or [0]) == blocks
    assert_same(net_of(spec), times=2)


def ops(spec: NetSpec, side: int = 32) -> list[str]:
    return [row.op for row in deploy.deployed_plan(spec, (spec.in_channels, side, side)).rows]


def test_what_is_left_of_the_papers_nets() -> None:
    """No norm and no normalisation anywhere; the encoder is convolutions of kernel = stride."""
    for spec in (zoo.onenet_ed(3, width=16), zoo.onenet_e(3, width=16), zoo.unet(3, width=16)):
        assert not {"norm", "normalise", "unshuffle", "spatial"} & set(ops(spec))
    rows = deploy.deployed_plan(zoo.onenet_ed(3, width=16, encoder_kernel=0), (3, 32, 32)).rows
    assert [(row.kernel, row.stride) for row in rows if row.name.endswith("channel_1.conv")][:3] == [(2, 2)] * 3
    # what stands before a pixel-shuffle, one per level of the decoder
    assert sum(row.op == "conv" and row.groups == row.c_in for row in rows if row.name.endswith("norm")) == 3
    heads = [row.name for row in rows if row.name.endswith("head")]
    assert heads == ["decoder.1.head"]


def hybrid(stem: str, encoder: str, decoder: str) -> NetSpec:
    return NetSpec(
        classes=3, stem=StemSpec(kind=stem, channels=8, repeat=1), encoder=(StageSpec(kind=encoder, channels=16),),
        decoder=(StageSpec(kind=decoder, channels=8),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stem", "encoder", "decoder", "left"),
    [
        ("onenet1d", "onenet1d", "onenet1d", ["decoder.bottom.norm"]),  # before the shuffle
        ("conv2d", "onenet1d", "onenet1d", ["decoder.bottom.norm", "normalise"]),  # before zero padding
        ("onenet1d", "conv2d", "onenet1d", ["decoder.bottom.norm", "stem.0.norm"]),  # before max-pooling
        ("onenet1d", "onenet1d", "conv2d", ["encoder.1.channel_2.norm", "stem.0.norm"]),  # transposed; 3x3 over a skip
    ],
)
def test_an_affine_stays_where_the_next_layer_cannot_take_it(
    stem: str, encoder: str, decoder: str, left: list[str]
) -> None:
    spec = hybrid(stem, encoder, decoder)
    rows = deploy.deployed_plan(spec, (3, 8, 8)).rows
    assert sorted(row.name for row in rows if row.name.rpartition(".")[2] in ("norm", "normalise")) == left
    assert_same(net_of(spec), times=2)


def test_levelled_channels_change_no_bit_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of(zoo.onenet_ed(depth=3, width=8, classes=4)).float()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.copy_(10 ** torch.empty_like(module.running_var).uniform_(-4, 2))
            module.weight.data[0] = 0
    image = image_for(net.spec).float()
    levelled = deploy.simplify(net)
    trained = smallest(net.spec)
    weights = deploy._Weights(deploy.rewrite(trained), net.state_dict())
    assert {*weights.of.levelled.values()} == {i for i in deploy._alive(trained) if trained.rows[i].op == "norm"}
    left = torch.cat([weights.affine(norm)[0].abs() for norm in weights.of.levelled.values()])
    assert ((left == 0) | ((left > 0.7) & (left < 1.42))).all()

    monkeypatch.setattr(deploy._Weights, "level", lambda self, norm: torch.ones_like(self._norm(norm)[0]))
    left = torch.cat([weights.affine(norm)[0].abs() for norm in weights.of.levelled.values()])
    assert left.max() > 50
    assert torch.equal(levelled(image), deploy.simplify(net)(image))


def test_the_deployed_plan_counts_what_runs() -> None:
    """Parameters are the graph's; MACs by hand for an encoder level; memory by torch's tracker."""
    spec = zoo.onenet_ed(2, width=8)
    net = net_of(spec)
    graph = deploy.simplify(net)
    counted = costs.count_plan(deploy.deployed_plan(spec, (3, 64, 64)))
    assert counted.parameters == counted.parameters_used == sum(value.numel() for value in graph.parameters())
    no_spatial = zoo.onenet_ed(2, width=8, spatial_kernel=0)
    trained, deployed = (
        costs.count_plan(lowered)
        for lowered in (plan(no_spatial, (3, 64, 64)), deploy.deployed_plan(no_spatial, (3, 64, 64)))
    )
    affines = sum(  # depthwise, one per element: before the two pixel-shuffles
        row.elements for row in deploy.deployed_plan(no_spatial, (3, 64, 64)).rows if row.groups > 1
    )  # fmt: skip
    assert affines == 64 * 16 * 16 + 32 * 32 * 32
    assert deployed.macs == trained.macs + affines
    assert deployed.parameters < trained.parameters


def tracked_bytes(lowered: Plan) -> int:
    """The peak of an inference of one image by torch's tracker, without weights."""
    with measured.FakeTensorMode():
        graph = deploy.Graph(lowered).requires_grad_(True)  # the tracker hangs hooks on parameters
        image = torch.rand(1, *lowered.shape)

        def infer() -> None:
            with torch.no_grad():
                graph(image)

        peak = measured._tracked(infer, graph, image)
    return int(peak["Total"] - peak["Parameter"] - peak["Buffer"])


@pytest.mark.parametrize(
    "spec", [zoo.onenet_ed(2, width=32, encoder_kernel=0), zoo.onenet_e(2, width=8), zoo.unet(2, 8)]
)
def test_the_peak_of_memory_is_torchs(spec: NetSpec) -> None:
    lowered = deploy.deployed_plan(spec, (3, 64, 64))
    assert tracked_bytes(lowered) == BYTES * peak_elements(lowered)


def test_a_size_that_does_not_fit_is_refused() -> None:
    graph = deploy.simplify(net_of(zoo.unet(2, width=4)))
    with pytest.raises(SpecError, match=r"width must be a multiple of 4.*got 18"):
        graph(torch.rand(1, 3, 16, 18, dtype=torch.float64))


def test_a_later_change_of_the_net_does_not_reach_the_graph() -> None:
    net = net_of(zoo.onenet_e(1, width=4))
    image = image_for(net.spec)
    with torch.no_grad():
        for graph in (deploy.simplify(net), deploy.plain(net)):
            before = graph(image)
            for value in net.parameters():
                value.add_(0.1)
            assert torch.equal(graph(image), before)
    assert not graph.training
    assert not any(value.requires_grad for value in graph.parameters())
