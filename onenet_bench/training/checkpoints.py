"""The state of a training on the disk, from which it goes on as if it had never been interrupted.

One safetensors file: weights, the optimiser's moments and the states of the generators as tensors, all else as JSON
in its header. It is replaced whole or not at all, and checksums tell a file that was damaged later. No pickle is ever
read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from onenet_bench.errors import RecipeError
from onenet_bench.files import whole
from onenet_bench.recipe import Recipe

FILE = "state.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointing:
    """Where a training keeps its state, and after how many epochs it writes it; at its start and end it does too.

    With ``seconds`` it writes it no sooner than so long after it began or last did, and always when it is stopped:
    for short trainings, in which writing would take a large part. A training that finds a state in ``folder`` goes on
    from it. ``asked`` are JSON-ready values that are kept in the state's header, such as the task; a state with others
    is another training's.
    """

    folder: Path
    every: int = 1
    seconds: float = 0.0
    asked: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RecipeError(f"a state is written every 1 or more epochs, but got {self.every}")

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """All that the next pass depends on. ``best`` are the weights kept for the end, by name, or nothing.

    ``facts`` are JSON-ready: where the training is. ``asked`` is JSON-ready too: what it is to do, which may not
    change underway.
    """

    net: nn.Module
    optimiser: torch.optim.Optimizer
    draws: Generator
    asked: Mapping[str, Any]
    best: dict[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def save_state(state: State, path: Path) -> None:
    """Write ``state``, and have it on the disk when this returns. Raises OSError."""
    tensors = {f"net/{name}": value for name, value in state.net.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    for index, parameter in enumerate(_parameters(state.optimiser)):
        for name, value in state.optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{index}/{name}"] = value
    tensors["draws"] = state.draws.get_state()
    tensors["global"] = torch.get_rng_state()  # for nets whose layers draw at random
    if gpu := _gpu(state.net):
        tensors["gpu"] = torch.cuda.get_rng_state(gpu)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    written = json.dumps({"facts": state.facts, "asked": state.asked, "tensors": _checksum(tensors)})
    header = {"training": written, "checksum": str(zlib.crc32(written.encode()))}
    for torn in path.parent.glob(f".*-{path.name}"):  # by a process that was killed
        torn.unlink(missing_ok=True)
    with whole(path, durable=True) as draft:
        save_file(tensors, draft, header)


def restore_state(state: State, path: Path) -> State:
    """Put what ``path`` holds into the net, the optimiser and the generators of ``state``; its facts and best weights.

    Raises RecipeError where the file is damaged, or belongs to another training; nothing is then changed.
    """
    header, tensors = _read(path)
    try:  # recipe fields that it lacks, being older, had a default's value
        began = {**header["asked"], "recipe": Recipe.from_dict(header["asked"]["recipe"]).to_dict()}
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(path.parent, error) from error
    for key, was, now in _differences(began, json.loads(json.dumps(state.asked))):
        raise RecipeError(
            f"a training goes on as it began, but in {path.parent} {key} was {was!r} and is now {now!r}; "
            "take the old one, or another folder"
        )
    weights = _under("net/", tensors)
    own = {name: value.shape for name, value in state.net.state_dict().items()}
    if own != {name: value.shape for name, value in weights.items()}:
        raise RecipeError(f"the weights in {path} must fit the net, but they do not; take the net that it was made of")
    state.net.load_state_dict(weights)
    for index, parameter in enumerate(_parameters(state.optimiser)):
        for name, value in _under(f"optimiser/{index}/", tensors).items():
            # in the parameter's own memory format, which the fused optimisers take for granted
            like = torch.empty_like(parameter) if value.shape == parameter.shape else value.to(parameter.device)
            state.optimiser.state[parameter][name] = like.copy_(value)
    state.draws.set_state(tensors["draws"])
    torch.set_rng_state(tensors["global"])
    if (gpu := _gpu(state.net)) and "gpu" in tensors:
        torch.cuda.set_rng_state(tensors["gpu"], gpu)
    return replace(state, best=_under("best/", tensors), facts=header["facts"])


def read_asked(folder: Path) -> dict[str, Any]:
    """What the training in ``folder`` was asked to do: ``recipe``, and what its ``Checkpointing`` said.

    Raises RecipeError where there is no state.
    """
    asked: dict[str, Any] = _read(folder / FILE, tensors=False)[0]["asked"]
    return asked


def read_facts(folder: Path) -> dict[str, Any]:
    """Where the training in ``folder`` is: ``history``, ``step``, ``seconds``, …; nothing where there is no state.

    Raises RecipeError where the state is damaged.
    """
    path = folder / FILE
    facts: dict[str, Any] = _read(path, tensors=False)[0]["facts"] if path.exists() else {}
    return facts


def unreadable(folder: Path, error: Exception) -> RecipeError:
    """Of a training that was asked for by another version."""
    why = f"{type(error).__name__}: {error}"
    return RecipeError(
        f"a training goes on as it was asked to, but of {folder} that cannot be read ({why}); begin anew, or take the "
        "version that began it"
    )


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header of a state, and its ``tensors``."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            written = json.loads(metadata["training"])
            header = {"facts": dict(written["facts"]), "asked": dict(written["asked"])}
            found = {name: file.get_tensor(name) for name in (file.keys() if tensors else ())}
            if "checksum" in metadata:  # older states have none
                sound = metadata["checksum"] == str(zlib.crc32(metadata["training"].encode()))
                if not sound or (tensors and written["tensors"] != _checksum(found)):
                    raise ValueError("its checksum does not fit what it holds")
            return header, found
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"a training's state is a safetensors file written by onenet-bench, but {path} is not ({error}); "
            "take another folder, or begin anew"
        ) from error


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names and bytes."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), crc))
    return crc


def _differences(was: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, was, now) of every value that differs, through nested dicts."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(was.keys() | now.keys()):
            yield from _differences(was.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif was != now:
        yield key, was, now


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _gpu(net: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in net.parameters() if parameter.is_cuda), None)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
