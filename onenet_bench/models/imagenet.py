"""ImageNet weights for the encoders behind a resnet stem, read from a checkpoint in torchvision's format.

The encoders are the ResNets v1 with the stride in the bottleneck's 3x3 convolution, as torchvision has them. Its
weights were trained on RGB images normalised per channel by (x - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225); a
net whose spec has ``normalise`` comes close to that with (x - 0.45) / 0.225, one without sees images in [0, 1].
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from onenet_bench.errors import SpecError
from onenet_bench.models.unet import UNet, build
from onenet_bench.spec import NetSpec

_NORM = r"\.(?P<field>weight|bias|running_mean|running_var|num_batches_tracked)"

KEYS: tuple[tuple[str, str], ...] = (
    (r"conv1\.(?P<field>weight)", "stem.0.conv.{field}"),
    (rf"bn1{_NORM}", "stem.0.norm.{field}"),
    (r"layer(?P<i>\d+)\.(?P<j>\d+)\.conv(?P<n>\d)\.(?P<field>weight)", "encoder.{i}.{j}.conv{n}.{field}"),
    (rf"layer(?P<i>\d+)\.(?P<j>\d+)\.bn(?P<n>\d){_NORM}", "encoder.{i}.{j}.norm{n}.{field}"),
    (r"layer(?P<i>\d+)\.(?P<j>\d+)\.downsample\.0\.(?P<field>weight)", "encoder.{i}.{j}.shortcut.conv.{field}"),
    (rf"layer(?P<i>\d+)\.(?P<j>\d+)\.downsample\.1{_NORM}", "encoder.{i}.{j}.shortcut.norm.{field}"),
    (r"fc\.(?P<field>weight|bias)", "encoder.classifier.{field}"),
)
"""torchvision's key, as a pattern, and ours."""


UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error,
    pickle.UnpicklingError,
)  # fmt: skip
"""What torch.load raises for files that are no checkpoint."""


def load_imagenet_state_dict(net: UNet, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of ``state``, in torchvision's naming, into the stem and the encoder of ``net``, and into its
    classifier where both have one; the decoder stays as it is.

    Raises SpecError for a net without a resnet stem and for weights of another ResNet; ``net`` is then unchanged.
    """
    net.load_state_dict(imagenet_weights(net.spec, state), strict=False)


def load_imagenet_file(net: UNet, path: Path) -> None:
    """The same for the checkpoint in the file ``path``, e.g. ``resnet34-b627a593.pth``. Raises SpecError."""
    load_imagenet_state_dict(net, read_imagenet_file(path))


def read_imagenet_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch checkpoint by key; no code in it is run. Raises SpecError for any other file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be read as one"
        raise SpecError(
            f"ImageNet weights are a torchvision checkpoint like resnet34-*.pth, but {path} is none: {why}"
        ) from error
    named = isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
    if not named or not all(isinstance(value, Tensor) for value in state.values()):
        raise SpecError(
            f"ImageNet weights are a torchvision checkpoint, names and their tensors, but {path} holds something else; "
            "save the model's state_dict()"
        )
    return dict(state)


def imagenet_facts(path: Path) -> dict[str, str]:
    """The name of a file of weights and its SHA-256. Raises SpecError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise SpecError(f"ImageNet weights must be a readable file, but {path} is not: {error.strerror}") from error


def imagenet_weights(spec: NetSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state``, in torchvision's naming, by the names of ``spec``'s net: every weight of stem and encoder, and of the
    classifier where both have one. Raises SpecError where it is not that of this encoder.
    """
    if spec.stem.kind != "resnet":
        raise SpecError(
            f"ImageNet weights fit an encoder behind a resnet stem, but this net is {spec.label()}; "
            "use resnet34_unet, resnet50_unet or a spec with such a stem"
        )
    with torch.device("meta"):
        own = {name: value.shape for name, value in build(spec).state_dict().items() if _of_encoder(name)}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _translate(key)
        if name not in own:
            if key.startswith("fc."):
                continue  # a net without a classifier
            raise SpecError(f"every key must belong to the encoder, but {key!r} does not ({_advice(spec)})")
        if value.shape != own[name]:
            raise SpecError(
                f"{key!r} must have the shape {tuple(own[name])}, but has {tuple(value.shape)} ({_advice(spec)})"
            )
        found[name] = value
    for name in own:
        if name not in found and not name.endswith("num_batches_tracked") and not name.startswith("encoder.classifier"):
            raise SpecError(
                f"the checkpoint must fill the whole encoder, but nothing in it is {name!r} ({_advice(spec)})"
            )
    return found


def _of_encoder(name: str) -> bool:
    return name.startswith(("stem.", "encoder."))


def _advice(spec: NetSpec) -> str:
    return f"net: {spec.label()}; use the checkpoint of the ResNet that this encoder is"


def _translate(key: str) -> str | None:
    for pattern, ours in KEYS:
        if match := re.fullmatch(pattern, key):
            return ours.format(**match.groupdict())
    return None
