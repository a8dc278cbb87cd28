"""ONNX files: every block kind, scale and stride, run by onnxruntime beside torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onenet_bench import models, zoo
from onenet_bench.errors import OnenetBenchError
from onenet_bench.models import deploy, onnx
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from tests.models.test_deploy import net_of

ONE = StemSpec(channels=8, repeat=2)
TWO = StemSpec(kind="conv2d", channels=8, repeat=1)
RESNET = StemSpec(kind="resnet", channels=8, repeat=1)


def mirrored(stem: StemSpec, *encoder: StageSpec, kind: str = "onenet1d", **more: object) -> NetSpec:
    """A net whose decoder has levels of ``kind`` and the encoder's scales and kernels."""
    scales = [stage.scale for stage in reversed(encoder)] + [2] * (stem.stride == 2)
    kernel = {} if kind != "onenet1d" else {"spatial_kernel": encoder[0].kernel}
    decoder = tuple(
        StageSpec(kind=kind, channels=4, repeat=1, scale=scale, skip=level < len(encoder), **kernel)
        for level, scale in enumerate(scales)
    )
    if more.get("output_stride") == 2:
        decoder = decoder[:-1]
    return NetSpec(classes=3, stem=stem, encoder=encoder, decoder=decoder, **more)  # type: ignore[arg-type]


LEVELS_1D = ((2, 9), (3, 9), (4, 9), (2, 1), (3, 0))
LEVELS_2D = (("conv2d", 2), ("conv2d", 3), ("separable2d", 4), ("bottleneck2d", 2))
SPECS = {
    **{f"onenet1d, scale {scale}, kernel {kernel}":
       mirrored(ONE, StageSpec(channels=12, scale=scale, spatial_kernel=kernel, repeat=1))
       for scale, kernel in LEVELS_1D},
    **{f"{kind}, scale {scale}": mirrored(TWO, StageSpec(kind=kind, channels=12, scale=scale, repeat=1), kind=kind)
       for kind, scale in LEVELS_2D},
    "resnet_basic": mirrored(RESNET, StageSpec(kind="resnet_basic", channels=8, repeat=1), kind="conv2d"),
    "resnet_bottleneck": mirrored(
        RESNET, StageSpec(kind="resnet_bottleneck", channels=8, repeat=1),
        StageSpec(kind="resnet_bottleneck", channels=12, repeat=1), kind="conv2d",
    ),
    "1D then 2D, output stride 2": mirrored(
        ONE, StageSpec(channels=12, repeat=1), StageSpec(kind="conv2d", channels=12, repeat=1), kind="conv2d",
        output_stride=2,
    ),
    "2D then 1D, several blocks": mirrored(TWO, StageSpec(channels=64, scale=4, spatial_kernel=9, repeat=1)),
    "no blocks": mirrored(ONE, StageSpec(channels=131, spatial_kernel=3, repeat=1), StageSpec(channels=8, repeat=1)),
}  # fmt: skip
SIDE = 24  # a multiple of every total scale
FORMS = {"simplified": deploy.simplify, "as trained": deploy.plain}
CASES = [
    *((name, "simplified") for name in SPECS),
    *((name, "as trained") for name in ("onenet1d, scale 2, kernel 9", "separable2d, scale 4", "resnet_bottleneck")),
]


class Many(nn.Module):
    """Nets that read the same image, side by side: to export is slow, however small the net."""

    def __init__(self, nets: list[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(image).flatten(1) for net in self.nets], dim=1)  # (B, all logits)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> onnx.OnnxNet:
    path = tmp_path_factory.mktemp("onnx") / "many.onnx"
    nets: list[nn.Module] = [FORMS[form](net_of(SPECS[name]).float()) for name, form in CASES]
    onnx.to_onnx(Many(nets), path, shape=(3, SIDE, SIDE))
    return onnx.OnnxNet(path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_every_kind_scale_and_stride_runs_elsewhere_for_any_batch(
    case: tuple[str, str], there: onnx.OnnxNet
) -> None:  # fmt: skip
    places = [3 * (SIDE // SPECS[name].output_stride) ** 2 for name, _ in CASES]
    net = net_of(SPECS[case[0]]).float()
    for batch in (1, 2, 3):
        image = torch.rand(batch, 3, SIDE, SIDE)
        with torch.no_grad():
            wanted = net(image).flatten(1)
        got = torch.split(there(image), places, dim=1)[CASES.index(case)]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def operators(path: Path) -> list[str]:
    import onnx as package

    return [node.op_type for node in package.load(path).graph.node]


def test_what_is_in_a_simplified_file(tmp_path: Path) -> None:
    """No norm, no flattening, no slow shuffle; the opset that is stated."""
    import onnx as package

    net = net_of(zoo.onenet_ed(2, width=8)).float()
    onnx.to_onnx(deploy.plain(net), tmp_path / "naive.onnx", shape=(3, 16, 16), stock=True)
    onnx.to_onnx(deploy.simplify(net), tmp_path / "net.onnx", shape=(3, 16, 16))
    naive, simple = operators(tmp_path / "naive.onnx"), operators(tmp_path / "net.onnx")
    assert naive.count("BatchNormalization") == 3 + 2 * 2 + 1 + 2 * 2  # stem, encoder, bottom, decoder
    assert "Pad" in naive
    assert naive.count("DepthToSpace") == 2
    assert not {"BatchNormalization", "Pad", "Div", "Sub", "DepthToSpace"} & set(simple)
    model = package.load(tmp_path / "net.onnx")
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", onnx.OPSET)]
    assert onnx._flattened(tmp_path / "net.onnx") == []
    assert len(onnx._flattened(tmp_path / "naive.onnx")) == 4  # which int8 leaves in float
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param
    assert sorted(path.name for path in tmp_path.iterdir()) == ["naive.onnx", "net.onnx"], "nothing else is left"


def test_int8_stays_near_and_all_filters_are_int8(tmp_path: Path) -> None:
    import onnx as package

    torch.manual_seed(0)
    net = models.build(zoo.onenet_ed(2, width=16)).eval()
    image = torch.rand(4, 3, 32, 32)
    onnx.to_onnx(deploy.simplify(net), tmp_path / "net.onnx", shape=(3, 32, 32))
    onnx.to_int8(tmp_path / "net.onnx", tmp_path / "int8.onnx", iter(image[:, None].numpy()))
    with torch.no_grad():
        wanted = net(image)
    got = onnx.OnnxNet(tmp_path / "int8.onnx")(image)
    off = float((got - wanted).std() / wanted.std())
    assert 0 < off < 0.2
    names = set(operators(tmp_path / "int8.onnx"))
    assert {"QuantizeLinear", "DequantizeLinear"} <= names
    filters = [value for value in package.load(tmp_path / "int8.onnx").graph.initializer if len(value.dims) == 4]
    assert {value.data_type for value in filters} == {package.TensorProto.INT8}


def test_int8_takes_channels_of_very_different_sizes(tmp_path: Path) -> None:
    net = net_of(zoo.onenet_ed(3, width=8, classes=4, encoder_kernel=0)).float()
    image = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for name, weight in net.named_parameters():  # ReLUs whose channels' sizes span two orders of magnitude
            if weight.dim() == 4 and ".head." not in name:
                weight.mul_(10 ** torch.empty(len(weight), 1, 1, 1).uniform_(-1, 1))
        for module in net.modules():  # and norms that make them alike, as training does
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        net.train()(image)
        wanted = net.eval()(image)
    onnx.to_onnx(deploy.simplify(net), tmp_path / "net.onnx", shape=(3, 32, 32))
    onnx.to_int8(tmp_path / "net.onnx", tmp_path / "int8.onnx", iter(image[:, None].numpy()))
    off = onnx.OnnxNet(tmp_path / "int8.onnx")(image) - wanted
    assert off.std() < 0.6 * wanted.std()  # 0.4 of it; 5.8 without levels


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    with pytest.raises(Exception, match="export"):
        onnx.to_onnx(Twice(), tmp_path / "net.onnx", shape=(3, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(
        OnenetBenchError, match=r"onnxscript, which is not installed; pip install 'onenet-bench\[export\]'"
    ):
        onnx.to_onnx(nn.Conv2d(3, 3, 1), tmp_path / "net.onnx", shape=(3, 4, 4))


def test_a_session_is_a_module_that_gives_numpys_numbers(tmp_path: Path) -> None:
    layer = nn.Conv2d(2, 3, 1).eval()
    onnx.to_onnx(layer, tmp_path / "net.onnx", shape=(2, 4, 4))
    image = np.random.default_rng(0).random((1, 2, 4, 4), dtype=np.float32)
    weight, bias = layer.weight.detach().numpy()[:, :, 0, 0], layer.bias.detach().numpy()  # type: ignore[union-attr]
    wanted = np.einsum("oc,bchw->bohw", weight, image) + bias[:, None, None]
    np.testing.assert_allclose(onnx.OnnxNet(tmp_path / "net.onnx")(torch.from_numpy(image)), wanted, atol=1e-6)
