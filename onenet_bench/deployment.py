"""What ``onenet-bench export`` does: a net as a file for another runtime, checked, and a card beside it.

The logits of every file are compared with the trained net's own, in float32, on random images and on images of the
data where there are any, in batches of one, two and three. A file that differs by more than ``TOLERANCE`` is not left
behind. An int8 file is not held to that; it is scored instead, beside the file that it was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onenet_bench import __version__, costs, data, inference, ledger, models, training, zoo
from onenet_bench.data import decathlon
from onenet_bench.data.samples import Samples
from onenet_bench.errors import DataError, OnenetBenchError, RecipeError, known
from onenet_bench.files import whole
from onenet_bench.memory import BYTES, peak_elements
from onenet_bench.models import deploy, onnx
from onenet_bench.models.strips import in_strips
from onenet_bench.palette import hexadecimal, palette
from onenet_bench.plan import check_resolution, plan
from onenet_bench.record import Costs
from onenet_bench.spec import NetSpec
from onenet_bench.task import Task

SCHEMA = 1
"""Version of the card."""
TOLERANCE = 1e-4
"""Largest difference of logits that is accepted, as a part of the largest logit of the trained net, but at least 1."""
RESOLUTION = 256
"""Side in pixels where neither the command nor a checkpoint's task says one."""
CALIBRATION = 64
"""Images that the ranges of int8 activations are taken from."""
IMAGES = 8
"""Images of the data that a file is checked on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What is exported. ``task`` is what a checkpoint was trained on, or what was named for a net without weights.
    ``other`` is other data that was named for a checkpoint, which it is then checked, calibrated and scored on;
    ``notes`` are sentences on what may make scores on it mean something else."""

    name: str
    net: models.UNet
    trained: bool
    task: Task | None
    other: Task | None = None
    notes: tuple[str, ...] = ()


def open_source(net: str, data_name: str | None = None, resolution: int | None = None) -> Source:
    """The net of a checkpoint, or with random weights that of the zoo or of a spec.toml.

    ``data_name`` names other data than a checkpoint was trained on; a net without weights takes its classes and
    channels. Raises SpecError for nets that are none, DataError for data that do not fit a checkpoint.
    """
    path = Path(net)
    if path.suffix == ".safetensors" or (path.is_file() and path.suffix != ".toml"):
        opened = inference.open_checkpoint(path)
        trained, other = opened.task, None
        if data_name is not None and data_name != trained.data:
            side = resolution or trained.resolution
            other = data.open_task(data_name, resolution=side, seed=trained.seed, white=trained.white)
        task, spec = other or trained, opened.net.spec
        if (task.classes, task.in_channels) != (spec.classes, spec.in_channels):
            raise DataError(
                f"a net is calibrated on data of its own classes and channels, but {net} has {spec.classes} and "
                f"{spec.in_channels} and {task.data} has {task.classes} and {task.in_channels}; its training data was "
                f"{trained.data}"
            )
        folder = path.resolve().parent
        run = folder.parent  # which numbers its files
        of = f"{run.parent.name}-{run.name}-" if run.name == ledger.FINAL else f"{run.name}-"
        of = of if folder.name == "weights" else ""
        notes = inference.differences(opened, other) if other else ()
        return Source(
            name=f"{of}{path.stem}", net=opened.net, trained=True, task=trained, other=other, notes=tuple(notes)
        )
    spec, named = zoo.read(net), None
    if data_name is not None:
        named = data.open_task(data_name, resolution=resolution or RESOLUTION)
        spec = replace(spec, classes=named.classes, in_channels=named.in_channels)
    torch.manual_seed(0)
    return Source(name=path.stem, net=models.build(spec).eval(), trained=False, task=named)


# Formats ---------------------------------------------------------------------------------------------------

Shape = tuple[int, int, int]
Call = Callable[[Tensor], Tensor]


def _write_torch(net: nn.Module, path: Path, shape: Shape) -> None:
    example = torch.zeros(2, *shape)
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with whole(path) as draft:
        torch.export.save(program, draft)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A kind of file: how it is named, written, and run again, and whether simplified nets run there in strips."""

    suffix: str
    write: Callable[[nn.Module, Path, Shape], None]
    read: Callable[[Path], Any]  # gives a callable from images to logits
    strips: bool = False


FORMATS: dict[str, Format] = {
    "onnx": Format(
        suffix=".onnx",
        write=lambda net, path, shape: onnx.to_onnx(net, path, shape=shape),
        read=onnx.OnnxNet,
        strips=True,
    ),
    "torch-export": Format(suffix=".pt2", write=_write_torch, read=lambda path: torch.export.load(path).module()),
}


def deployed_costs(spec: NetSpec, shape: Shape, *, strips: bool) -> Costs:
    """What a simplified net costs for one image of ``shape``; run in strips, it needs less memory."""
    deployed = deploy.deployed_plan(spec, shape)
    counted = costs.count_plan(deployed)
    if not strips:
        return counted
    return replace(counted, peak_inference_mib=BYTES * peak_elements(in_strips(deployed)) / 2**20)


# The command -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A file that was written, or refused: then there is no ``card``."""

    path: Path
    difference: float  # of logits, the largest; NaN for int8, which is scored instead
    allowed: float
    card: dict[str, Any]

    @property
    def accepted(self) -> bool:
        return bool(self.card)


def export(
    source: Source, to: str, folder: Path, *, resolution: int | None = None, naive: bool = False, int8: bool = False,
    calibrate_on: str = "train",
) -> list[Exported]:  # fmt: skip
    """Write ``source`` to ``folder`` in the format ``to``, and with ``int8`` a quantised file too.

    Without ``naive`` it is simplified first. ``int8`` needs data, the ``other`` of the source or its own: activations
    are calibrated on the split ``calibrate_on``, scores are of the test split, or of validation where there is none.

    Raises:
        RecipeError: the format is unknown, or does not go with int8, or int8 lacks data.
        SpecError: the net cannot take the resolution.
        DataError: the data cannot be used.
        OnenetBenchError: a package of the extra is missing.
    """
    if to not in FORMATS:
        raise RecipeError(known("format", to, FORMATS))
    if int8 and to != "onnx":
        raise RecipeError(f"int8 is written by onnxruntime, to ONNX alone, but got {to!r}; use --to onnx")
    if calibrate_on not in ("train", "validation"):
        raise RecipeError(known("split to calibrate on", calibrate_on, ("train", "validation")))
    task, spec = source.other or source.task, source.net.spec
    if int8 and task is None:
        raise RecipeError("int8 is calibrated on images, but a net without weights has none; name some by --data")
    if int8 or to == "onnx":
        onnx.check_installed()
    side = resolution or (task.resolution if task else RESOLUTION)
    check_resolution(spec, side, side)
    shape = (spec.in_channels, side, side)
    try:
        if task is not None:
            now = data.reopen(task)
            if now.content != task.content:
                raise DataError(
                    f"int8 is scored on images that were held out in training, but {task.data} has changed since, and "
                    "its splits with it; bring the old data back, or name other images, not trained on, by --data"
                )
            task = now if side == now.resolution else data.reopen(task, resolution=side)
            source = replace(source, other=task) if source.other else replace(source, task=task)
        splits = data.load(task) if task else None
    except DataError:
        if int8:
            raise
        splits = None  # the checkpoint has travelled without its data; the card says what was checked
    held_out = "test" if task and task.test else "validation"
    samples: Samples | None = getattr(splits, held_out) if splits else None
    if int8 and task and splits:
        data.check_labels(task, splits, held_out)

    form = "as trained" if naive else "simplified"
    graph = deploy.plain(source.net) if naive else deploy.simplify(source.net)
    cut = FORMATS[to].strips and not naive
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OnenetBenchError(f"an export's folder must be writable, but {folder} is not: {error.strerror}") from error
    path = folder / f"{source.name}{'-naive' if naive else ''}{FORMATS[to].suffix}"
    facts = {**_facts(source, shape, form, cut), "format": to}
    smaller = path.with_name(f"{path.stem}-int8.onnx")
    for made in (path, smaller) if int8 else (path,):
        _check_replaced(made, facts)
    with TemporaryDirectory(dir=folder, prefix=".") as place:
        draft = Path(place) / path.name
        FORMATS[to].write(graph.in_strips(shape) if cut else graph, draft, shape)
        run = FORMATS[to].read(draft)
        check = _compare(source.net, run, shape, samples)
        if not check["difference"] <= check["allowed"]:  # which may be no number
            return [Exported(path=path, difference=check["difference"], allowed=check["allowed"], card={})]
        facts["check"] = check
        if to == "onnx":
            facts["opset"] = onnx.OPSET
        done = [_carded(draft, path, facts, check)]
    if int8:
        assert task is not None
        assert splits is not None
        assert samples is not None
        images = getattr(splits, calibrate_on).images[:CALIBRATION]
        with TemporaryDirectory(dir=folder, prefix=".") as place:
            draft = Path(place) / smaller.name
            whole_net = Path(place) / path.name  # not in strips, each of which would have ranges of its own
            FORMATS[to].write(graph, whole_net, shape)
            ranges_from = (_unit(images[i : i + 1]).numpy() for i in range(len(images)))
            onnx.to_int8(whole_net, draft, ranges_from)
            nets = {"before": run, "after": onnx.OnnxNet(draft)}
            quantised = {
                "weights": "int8 of 7 bits, per output channel", "activations": "uint8",
                "calibrated_on": f"{calibrate_on} split", "calibration_images": len(images),
                "scored_on": f"{held_out} split", "images": len(samples),
                **{name: _score(net, samples, task) for name, net in nets.items()},
            }  # fmt: skip
            facts |= {**_facts(source, shape, form, cut=False), "form": f"{form}, int8", "int8": quantised}
            del facts["check"]
            done.append(_carded(draft, smaller, facts, None))
    return done


def _check_replaced(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise OnenetBenchError where something stands at ``path`` or its card that is not an export of the same net with
    the same weights, as its card says."""
    card = path.with_name(f"{path.name}.json")
    if not path.exists() and not card.exists():
        return
    try:
        said = json.loads(card.read_bytes())
        same = all(said[name] == facts[name] for name in ("digest", "weights_digest"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OnenetBenchError(
            f"an export replaces only one of the same net with the same weights, but {card.name} in {path.parent} does "
            "not say that there is one; name another --out, or remove it and its file"
        ) from error
    if not same:
        raise OnenetBenchError(
            f"an export replaces none of another net or of other weights, but {path} is one; name another --out"
        )


def _unit(images: Any) -> Tensor:
    """uint8 of any shape as float32 in [0, 1]."""
    return torch.from_numpy(np.array(images)).float().div_(255)


def _score(net: Any, samples: Samples, task: Task) -> dict[str, float | None]:
    scores = training.evaluate_split(
        net, samples, classes=task.classes, background=task.background, ignore_index=task.ignore_index
    )
    return {name: value for name, value in scores.items() if name != "per_class"}


def _compare(net: models.UNet, run: Call, shape: Shape, samples: Samples | None) -> dict[str, Any]:
    """How far the logits of ``run`` are from the net's."""
    batches = [torch.rand(size, *shape, generator=torch.Generator().manual_seed(size)) for size in (1, 3)]
    fits = samples is not None and samples.images.shape[1:] == shape
    pictures = _unit(samples.images[:IMAGES]) if samples is not None and fits else torch.zeros(0, *shape)
    batches += list(torch.split(pictures, 2)) if len(pictures) else []
    differences, largest = [], 1.0
    with torch.no_grad():
        for batch in batches:
            wanted = net(batch)
            differences.append(float((run(batch) - wanted).abs().max()))
            largest = float(np.maximum(largest, float(wanted.abs().max())))
    return {  # numpy's maxima, which keep what is no number
        "difference": float(np.max(differences)), "on_random_images": float(np.max(differences[:2])),
        "on_images_of_the_data": float(np.max(differences[2:])) if differences[2:] else None, "images": len(pictures),
        "allowed": TOLERANCE * largest, "largest_logit": largest, "batches": sorted({len(batch) for batch in batches}),
    }  # fmt: skip


# The card --------------------------------------------------------------------------------------------------


def _facts(source: Source, shape: Shape, form: str, cut: bool) -> dict[str, Any]:
    """What all files of a net say."""
    spec, task = source.net.spec, source.task
    trained = plan(spec, shape)
    stride = spec.output_stride
    names = task.class_names if task else tuple(f"class {i}" for i in range(spec.classes))
    colours = palette(len(names), task.background if task else 0) if len(names) > 1 else [(0, 0, 0)]
    counted = {"trained": costs.count_plan(trained).to_dict()}
    if form == "simplified":
        counted["deployed"] = deployed_costs(spec, shape, strips=cut).to_dict()
    return {
        "schema": SCHEMA,
        "net": source.name,
        "weights": "trained" if source.trained else "random: this net was never trained",
        "form": form,
        "digest": spec.digest(),
        "weights_digest": _digest(source.net),
        "spec": spec.to_dict(),
        "task": task.to_dict() if task else None,
        "data": source.other.to_dict() if source.other else None,
        "notes": list(source.notes),
        "input": {
            "name": onnx.INPUT, "type": "float32", "layout": "NCHW", "shape": ["batch", *shape], "range": [0, 1],
            "preparation": _preparation(task, shape),
            "normalisation": "inside the net" if spec.normalise else "none",
        },
        "output": {
            "name": onnx.OUTPUT, "type": "float32", "layout": "NCHW",
            "shape": ["batch", spec.classes, shape[1] // stride, shape[2] // stride], "stride": stride,
            "meaning": "logits; a pixel's class is that of the largest",
        },
        "classes": [
            {"index": index, "name": name, "colour": hexadecimal(colour)}
            for index, (name, colour) in enumerate(zip(names, colours, strict=True))
        ],
        "costs": counted,
    }  # fmt: skip


def _preparation(task: Task | None, shape: Shape) -> str:
    """How an image of the task comes to the net, in words."""
    kind, white = (task.data.partition(":")[0], task.white) if task else ("", None)
    return "; ".join([
        *([decathlon.in_words(kind)] if kind in decathlon.KINDS else []),
        *([f"values of 16 bits divided by {white}, at most 1, times 255, rounded"] if white else []),
        f"stretched to {shape[1]} x {shape[2]} pixels by a bilinear filter that averages where it shrinks "
        "(antialiased, as Pillow's BILINEAR)",
        "bytes divided by 255",
        *(["red, green, blue"] if shape[0] == 3 else []),
    ])  # fmt: skip


def _digest(net: nn.Module) -> str:
    """Of weights and running statistics."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _carded(draft: Path, path: Path, facts: Mapping[str, Any], check: Mapping[str, Any] | None) -> Exported:
    """Put ``draft`` at ``path``, its card first: what is interrupted between can be exported again."""
    content = draft.read_bytes()
    card = {
        "file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **facts,
        "versions": {"onenet-bench": __version__, **onnx.versions()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    with whole(path.with_name(f"{path.name}.json")) as draft_card:
        draft_card.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    check = check or {"difference": float("nan"), "allowed": float("nan")}
    return Exported(path=path, difference=check["difference"], allowed=check["allowed"], card=card)
