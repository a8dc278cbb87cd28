"""From a torch module to an ONNX file, and to an int8 one. Needs ``pip install onenet-bench[export]``."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onenet_bench.errors import OnenetBenchError
from onenet_bench.files import whole
from onenet_bench.record import package_version

OPSET = 20
"""Torch's own default, which onnxruntime reads from 1.17 on."""
INPUT, OUTPUT = "image", "logits"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXTRA = "pip install 'onenet-bench[export]'"


def check_installed() -> None:
    """Raise OnenetBenchError where a package of the extra is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise OnenetBenchError(f"ONNX files need the package {missing[0]}, which is not installed; {EXTRA}")


def to_onnx(net: nn.Module, path: Path, *, shape: tuple[int, int, int], stock: bool = False) -> None:
    """Write ``net`` for images of ``shape`` = (C, H, W) and any batch, by torch's dynamo exporter.

    The file takes ``image`` (B, C, H, W) and gives ``logits``, in the net's own type; it appears whole or not at all.
    ``net`` must be on the CPU and in evaluation mode. Pixel-shuffles are written as onnxruntime is quickest at them,
    or, where ``stock``, as the exporter does. Raises OnenetBenchError where the extra is not installed.
    """
    check_installed()
    some = next(net.parameters())
    example = torch.zeros(2, *shape, dtype=some.dtype)  # two images: one would fix the batch
    with whole(path) as draft, _quiet():
        torch.onnx.export(
            net, (example,), draft, dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
            input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table=None if stock else {torch.ops.aten.pixel_shuffle.default: _shuffled},
        )  # fmt: skip


def _shuffled(x: Any, upscale_factor: int) -> Any:
    """A pixel-shuffle, (B, C·s², H, W) to (B, C, H·s, W·s), as two transpositions of a matrix each, along the width
    and along the height: half the time of onnxruntime's DepthToSpace."""
    from onnxscript import opset20 as op

    s = upscale_factor
    channels, height, width = (int(size) for size in x.shape[1:])

    def shaped(tensor: Any, *sizes: int) -> Any:
        return op.Reshape(tensor, op.Constant(value_ints=[-1, *sizes]))

    x = op.Transpose(shaped(x, s, height * width), perm=[0, 2, 1])  # (B·C·s, H·W, s)
    x = op.Transpose(shaped(x, s, height, width * s), perm=[0, 2, 1, 3])  # (B·C, H, s, W·s)
    return shaped(x, channels // s**2, height * s, width * s)


def to_int8(path: Path, out: Path, images: Iterable[NDArray[np.float32]]) -> None:
    """Quantise the ONNX file ``path`` statically into ``out``, its ranges from ``images`` (B, C, H, W) in [0, 1].

    By onnxruntime: QDQ nodes, weights int8 per output channel, activations uint8. Of the weights' 8 bits 7 are used:
    where a processor has no instruction for products of 8 bits in sums of 32 (VNNI), onnxruntime adds pairs of them in
    16, which overflows. Raises OnenetBenchError where the extra is not installed.
    """
    check_installed()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    with whole(out) as draft, _quiet(), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, draft, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=_flattened(prepared),
        )  # fmt: skip


def _flattened(path: Path) -> list[str]:
    """Convolutions along one axis: those of one channel, which int8 makes ten times slower."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {weight.name: len(weight.dims) for weight in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "Conv" and sizes.get(node.input[1]) == 3]


def open_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session of ``path`` on the CPU. Raises OnenetBenchError where the extra is not installed."""
    check_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would slow other sessions' runs
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxNet(nn.Module):
    """An ONNX file as a module on the CPU, so that it is scored as any net is."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = open_session(path)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        (logits,) = self.session.run([OUTPUT], {INPUT: image.numpy(force=True)})
        return torch.from_numpy(logits)


def versions() -> Mapping[str, str]:
    """Of the packages that write and check the files."""
    found = {name: package_version(name) for name in ("torch", *PACKAGES)}
    return {name: version for name, version in found.items() if version}  # torch.export needs none of the extra's


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the quantiser's notes; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
