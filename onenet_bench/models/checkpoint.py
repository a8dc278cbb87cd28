"""Checkpoints: a net's weights and its spec in one safetensors file. No pickle is ever read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from onenet_bench.errors import SpecError
from onenet_bench.files import whole
from onenet_bench.models.unet import UNet, build
from onenet_bench.spec import NetSpec


def save_checkpoint(net: UNet, path: Path, facts: Mapping[str, Any]) -> None:
    """Write weights, spec and JSON-ready ``facts`` (task, recipe, scores, …) to ``path``, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    header = {"spec": json.dumps(net.spec.to_dict()), "facts": json.dumps(dict(facts))}
    with whole(path) as draft:
        save_file(state, draft, metadata=header)


def load_checkpoint(path: Path) -> tuple[UNet, dict[str, Any]]:
    """The net of ``path``, in evaluation mode on the CPU, and its facts. Raises SpecError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        spec, facts = NetSpec.from_dict(json.loads(header["spec"])), json.loads(header["facts"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SpecError(
            "a checkpoint is a safetensors file written by onenet-bench, such as RUN/weights/0000.safetensors, but "
            f"{path} is not: {error}"
        ) from error
    net = build(spec)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise SpecError(f"the weights in {path} must fit its own spec, but they do not; train the net anew") from error
    return net.eval(), facts
