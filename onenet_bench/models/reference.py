"""Weights trained with the authors' public code, read by their key names.

A stride-C Conv1d weight (out, 1, C) over the flattened tensor whose channel index runs fastest is the 1x1 weight
(out, C, 1, 1); after a pixel-unshuffle its C runs in torch's ``pixel_unshuffle`` order, so that no weight needs to
be permuted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from onenet_bench.errors import SpecError
from onenet_bench.models.unet import UNet

_NORM = r"\.bn\.(?P<field>weight|bias|running_mean|running_var|num_batches_tracked)"
_CONV = r"\.conv\.(?P<field>weight|bias)"

KEYS: tuple[tuple[str, str], ...] = (
    (rf"encoder\.bottleneck\.blocks\.(?P<j>\d+){_CONV}", "stem.{j}.conv.{field}"),
    (rf"encoder\.bottleneck\.blocks\.(?P<j>\d+){_NORM}", "stem.{j}.norm.{field}"),
    (rf"encoder\.convs\.spatial_(?P<i>\d+){_CONV}", "encoder.{next}.spatial.conv.{field}"),
    (rf"encoder\.convs\.channel_(?P<j>\d)_(?P<i>\d+){_CONV}", "encoder.{next}.channel_{j}.conv.{field}"),
    (rf"encoder\.convs\.channel_(?P<j>\d)_(?P<i>\d+){_NORM}", "encoder.{next}.channel_{j}.norm.{field}"),
    (rf"decoder\.bottleneck{_CONV}", "decoder.bottom.conv.{field}"),
    (rf"decoder\.bottleneck{_NORM}", "decoder.bottom.norm.{field}"),
    (rf"decoder\.convs\.spatial_(?P<i>\d+){_CONV}", "decoder.{i}.spatial.conv.{field}"),
    (rf"decoder\.convs\.up_(?P<i>\d+){_CONV}", "decoder.{i}.up.{field}"),
    (rf"decoder\.convs\.head_(?P<i>\d+){_CONV}", "decoder.{i}.head.{field}"),
    (rf"decoder\.convs\.channel_(?P<j>\d)_(?P<i>\d+)(?:\.conv)?{_CONV}", "decoder.{i}.channel_{j}.conv.{field}"),
    (rf"decoder\.convs\.channel_(?P<j>\d)_(?P<i>\d+){_NORM}", "decoder.{i}.channel_{j}.norm.{field}"),
)
"""The authors' key, as a pattern, and ours. Encoder levels count from 0 there and from 1 here."""


def load_reference_state_dict(net: UNet, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of ``state``, in the authors' naming, into ``net``.

    ``net`` must be built from the spec of the net that was trained (``zoo.onenet_e`` or ``zoo.onenet_ed``). Raises
    SpecError for a key that is unknown, missing or of another shape; ``net`` is then unchanged.
    """
    own = net.state_dict()
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _translate(key.removeprefix("module."))
        if name is None or name not in own:
            raise SpecError(
                f"every key must belong to the net, but {key!r} does not (net: {net.spec.label()}); "
                "build the spec that the checkpoint was trained with"
            )
        if value.numel() != own[name].numel():
            raise SpecError(
                f"{key!r} must have {own[name].numel()} numbers for {name} {tuple(own[name].shape)}, "
                f"but has {tuple(value.shape)}; build the spec that the checkpoint was trained with"
            )
        found[name] = value.reshape(own[name].shape)
    if missing := sorted(set(own) - set(found)):
        raise SpecError(f"the checkpoint must fill the whole net, but nothing in it is {missing[0]!r}")
    net.load_state_dict(found)


def _translate(key: str) -> str | None:
    for pattern, ours in KEYS:
        if match := re.fullmatch(pattern, key):
            parts = match.groupdict()
            return ours.format(**parts, next=int(parts.get("i") or 0) + 1)
    return None
