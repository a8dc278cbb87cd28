"""NetSpec: an architecture as a frozen, hashable value.

A U-Net here is a stem, a list of encoder levels that shrink, and a list of decoder levels that grow back.
Every level is a StageSpec of its own, so that levels may differ::

    image ─ stem ─ encoder[0] ─ … ─ encoder[L-1]
              ┆        ┆                 │
    logits ─ decoder[-1] ─ … ────── decoder[0]        ┆ = skip connection

Specs know no tensor and no resolution; ``onenet_bench.plan`` lowers them to layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from onenet_bench.errors import SpecError, known
from onenet_bench.files import read_toml


class KindFacts(NamedTuple):
    """What a block kind is, and where it may stand."""

    summary: str
    default_kernel: int  # the spatial kernel where a StageSpec names none
    kernel_may_be_0: bool  # 0 = no spatial convolution at all
    decoder: bool  # may stand in a decoder


BLOCK_KINDS: dict[str, KindFacts] = {
    "onenet1d": KindFacts(
        "pixel-(un)shuffle, an optional one-filter convolution along the channel axis, 1x1 convolutions",
        0, True, True,
    ),
    "conv2d": KindFacts("max-pool or transposed convolution, then k x k convolutions", 3, False, True),
    "separable2d": KindFacts("as conv2d, each convolution depthwise k x k then pointwise 1x1", 3, False, True),
    "bottleneck2d": KindFacts("as conv2d, each convolution 1x1 squeeze (to 1/4), k x k, 1x1 expansion", 3, False, True),
    "resnet_basic": KindFacts("ResNet v1 blocks of two 3x3 convolutions and a shortcut", 3, False, False),
    "resnet_bottleneck": KindFacts("ResNet v1 blocks of 1x1, 3x3, 1x1 convolutions and a shortcut", 3, False, False),
}  # fmt: skip

STEM_KINDS: dict[str, str] = {
    "onenet1d": "1x1 convolution, ReLU, batch norm",
    "conv2d": "3x3 convolution, batch norm, ReLU",
    "resnet": "7x7 convolution of stride 2, batch norm, ReLU",
}

SCALES = (2, 3, 4)
MOST_REPEAT = 256
"""Of a level: more than any published net has."""
HEADS = ("top", "all")


def _positive(what: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{what} must be a whole number of at least 1, but got {value!r}")


def _check_repeat(what: str, value: int) -> None:
    _positive(what, value)
    if value > MOST_REPEAT:
        raise SpecError(f"{what} must be at most {MOST_REPEAT}, but got {value:,}; take fewer and wider layers")


_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"), "int | None": ((int, type(None)), "a whole number"), "str": ((str,), "a text"),
    "bool": ((bool,), "true or false"),
}  # fmt: skip


def _check_types(what: str, value: Any) -> None:
    """Raise SpecError where a plain field of ``value`` is of another type than it says."""
    for f in fields(value):
        kinds, noun = _TYPES.get(f.type, ((object,), ""))
        if type(found := getattr(value, f.name)) not in kinds and noun:
            raise SpecError(f"{f.name} of a {what} is {noun}, but got {found!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StemSpec:
    """The layers at full resolution: ``repeat`` convolutions to ``channels``."""

    kind: str = "onenet1d"
    channels: int = 64
    repeat: int = 3

    def __post_init__(self) -> None:
        _check_types("stem", self)
        if self.kind not in STEM_KINDS:
            raise SpecError(known("stem kind", self.kind, STEM_KINDS))
        _positive("the stem's channels", self.channels)
        _check_repeat("the stem's repeat", self.repeat)
        if self.kind == "resnet" and self.repeat != 1:
            raise SpecError(f"a resnet stem is one convolution, but got repeat={self.repeat}; set it to 1")

    @property
    def stride(self) -> int:
        """By how much the stem itself shrinks the image."""
        return 2 if self.kind == "resnet" else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """One level of an encoder or a decoder.

    ``channels``: of what an encoder level gives; in a decoder level, of the tensor once it has grown, before
    the skip joins it. ``scale``: by how much height and width shrink or grow. ``spatial_kernel``: taps of
    the convolution along the flattened channel axis of ``onenet1d`` (0 = none), side of the 2D kernel of the
    other kinds; odd. ``repeat``: convolutions (blocks) per level. ``skip`` (decoder): the encoder's tensor of
    the same resolution is concatenated. ``plain`` (decoder, conv2d): neither norm nor ReLU, as in the top
    level of the paper's 2D decoder.
    """

    kind: str = "onenet1d"
    channels: int
    scale: int = 2
    spatial_kernel: int | None = None
    repeat: int = 2
    skip: bool = True
    plain: bool = False

    def __post_init__(self) -> None:
        _check_types("level", self)
        if self.kind not in BLOCK_KINDS:
            raise SpecError(known("block kind", self.kind, BLOCK_KINDS))
        facts = BLOCK_KINDS[self.kind]
        _positive(f"a {self.kind} level's channels", self.channels)
        _check_repeat(f"a {self.kind} level's repeat", self.repeat)
        if self.scale not in SCALES:
            raise SpecError(f"a level's scale is one of {SCALES}, but got {self.scale!r}")
        if self.spatial_kernel is None:
            object.__setattr__(self, "spatial_kernel", facts.default_kernel)
        kernel = self.kernel
        if not isinstance(kernel, int) or kernel < 0 or (kernel % 2 == 0 and kernel != 0):
            near = max(1, int(kernel) - 1) if isinstance(kernel, int) else 3
            raise SpecError(
                f"a spatial kernel is odd (or 0 for none), so that its output keeps the size of its input, "
                f"but got {kernel!r}; use {near} or {near + 2}"
            )
        if kernel == 0 and not facts.kernel_may_be_0:
            raise SpecError(f"a {self.kind} level needs a spatial kernel of at least 1, but got 0; use 1 or 3")
        if self.kind.startswith("resnet") and (kernel != 3 or self.scale != 2):
            raise SpecError(
                f"a {self.kind} level has kernel 3 and scale 2, but got kernel {kernel} and scale {self.scale}; "
                "use conv2d or bottleneck2d for others"
            )
        if self.kind == "resnet_bottleneck" and self.channels % 4:
            raise SpecError(
                f"a resnet_bottleneck level squeezes to a quarter, so its channels must be a multiple of 4, "
                f"but got {self.channels}; use {self.channels + 4 - self.channels % 4}"
            )
        if self.plain and self.kind != "conv2d":
            raise SpecError(f"only a conv2d level can be plain, but got kind {self.kind!r}; leave plain off")

    @property
    def kernel(self) -> int:
        """``spatial_kernel``, which is never None once the value exists."""
        return self.spatial_kernel  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A whole U-Net. ``decoder`` runs from the deepest level up, in the order of execution.

    The decoder mirrors the encoder: as many levels (one more where the stem has a stride), with the same
    scales. With ``output_stride=2`` its last level of scale 2 is left out and the logits have half the input's
    side, as with the paper's 512 to 256. ``heads="all"`` builds a prediction head at every decoder level, as
    the paper does, though only the top one runs. ``normalise`` puts (x - 0.45) / 0.225 before the stem.
    """

    classes: int
    stem: StemSpec
    encoder: tuple[StageSpec, ...]
    decoder: tuple[StageSpec, ...]
    in_channels: int = 3
    heads: str = "top"
    output_stride: int = 1
    normalise: bool = True
    classifier: int = 0
    """Outputs of an ImageNet classifier that is carried along and never run (0 = none)."""

    def __post_init__(self) -> None:
        _check_types("net", self)
        _positive("the input channels", self.in_channels)
        _positive("the classes", self.classes)
        if self.heads not in HEADS:
            raise SpecError(known("choice of heads", self.heads, HEADS))
        if self.output_stride not in (1, 2):
            raise SpecError(f"the output stride is 1 or 2, but got {self.output_stride!r}")
        if not self.encoder:
            raise SpecError("a U-Net needs at least one encoder level, but got none")
        if self.classifier < 0:
            raise SpecError(f"a classifier has at least 0 outputs, but got {self.classifier}")
        for i, stage in enumerate(self.encoder, start=1):
            if not stage.skip or stage.plain:
                raise SpecError(
                    f"skip and plain are a decoder level's to say, but encoder level {i} has skip={stage.skip}, "
                    f"plain={stage.plain}; leave them as they are"
                )
            if stage.kind.startswith("resnet") != (self.stem.kind == "resnet"):
                raise SpecError(
                    f"ResNet levels stand behind a resnet stem and nothing else does, but encoder level {i} is "
                    f"{stage.kind!r} behind a {self.stem.kind!r} stem"
                )
        shrinks = [stage.scale for stage in self.encoder]
        if self.stem.stride > 1:
            shrinks.insert(0, self.stem.stride)
        growths = list(reversed(shrinks))
        if self.output_stride == 2:
            if growths[-1] != 2:
                raise SpecError(
                    f"output stride 2 leaves out the top decoder level, whose scale must then be 2, but it is "
                    f"{growths[-1]}; use output stride 1 or a first level of scale 2"
                )
            growths.pop()
        if [stage.scale for stage in self.decoder] != growths:
            raise SpecError(
                f"the decoder must grow by {growths}, deepest level first, to mirror the encoder, "
                f"but its scales are {[stage.scale for stage in self.decoder]}"
            )
        for j, stage in enumerate(self.decoder):
            if not BLOCK_KINDS[stage.kind].decoder:
                raise SpecError(f"a {stage.kind} level can only stand in an encoder; use conv2d in the decoder")
            if stage.skip and self.decoder_level(j) < 1:
                raise SpecError(
                    "the top decoder level behind a stem with a stride has no tensor of its resolution to skip "
                    "from, but got skip=True; set skip=False"
                )

    def decoder_level(self, j: int) -> int:
        """The level that ``decoder[j]`` starts from: len(encoder) at the bottom, then downwards."""
        return len(self.encoder) - j

    @property
    def total_scale(self) -> int:
        """The input's height and width must be multiples of this."""
        total = self.stem.stride
        for stage in self.encoder:
            total *= stage.scale
        return total

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values, every field spelled out."""
        return {
            **_fields(self),
            "stem": _fields(self.stem),
            "encoder": [_fields(stage) for stage in self.encoder],
            "decoder": [_fields(stage) for stage in self.decoder],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetSpec:
        """The inverse of ``to_dict``; fields with a default may be left out.

        Raises SpecError for missing or unknown fields, and for nets that cannot exist.
        """
        for side in ("encoder", "decoder"):
            if not isinstance(values.get(side, ()), list | tuple):
                raise SpecError(f"{side} of a net is a list of levels, but got {values[side]!r}")
        made: NetSpec = _make(cls, "net", {
            **values,
            "stem": _make(StemSpec, "stem", values.get("stem", {})),
            "encoder": tuple(_make(StageSpec, "encoder level", v) for v in values.get("encoder", ())),
            "decoder": tuple(_make(StageSpec, "decoder level", v) for v in values.get("decoder", ())),
        })  # fmt: skip
        return made

    @classmethod
    def from_toml(cls, path: Path) -> NetSpec:
        """Read a spec from a TOML file with the fields of ``to_dict``."""
        return cls.from_dict(read_toml(path, "a net's file", SpecError, "name a net of the zoo, or mend the file"))

    def digest(self) -> str:
        """The net's name: equal specs, and only they, have equal digests (16 hexadecimal digits)."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def label(self) -> str:
        """A short description for people, e.g. ``onenet1d 16-32-64 /2·2 k9 + conv2d``; not unique.

        Spatial kernels of a decoder are said where they are not the encoder's.
        """

        def kinds(stages: tuple[StageSpec, ...]) -> str:
            names = [stage.kind for stage in stages]
            return names[0] if len(set(names)) == 1 else "·".join(name[:4] for name in names)

        def kernels(stages: tuple[StageSpec, ...]) -> str:
            return "·".join(dict.fromkeys(str(stage.kernel) for stage in stages if stage.kind == "onenet1d"))

        channels = "-".join(str(c) for c in (self.stem.channels, *(stage.channels for stage in self.encoder)))
        scales = "·".join(str(stage.scale) for stage in self.encoder)
        down, up = kernels(self.encoder), kernels(self.decoder)
        kernel = f" k{down}" if down not in ("", "0") else ""
        other = f" k{up}" if up not in ("", down or "0") else ""
        skips = "" if all(s.skip for s in self.decoder[:-1]) else " no skips"
        decoder = kinds(self.decoder) if self.decoder else "head"
        return f"{kinds(self.encoder)} {channels} /{scales}{kernel} + {decoder}{other}{skips}"


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _make(cls: type[Any], what: str, values: Any) -> Any:
    """``cls(**values)`` with a sentence for fields that are missing, unknown or no table at all."""
    if not isinstance(values, Mapping):
        raise SpecError(f"a {what} is a table of fields, but got {values!r}")
    names = [f.name for f in fields(cls)]
    if unknown := sorted(set(values) - set(names)):
        raise SpecError(known(f"field of a {what}", unknown[0], names))
    try:
        return cls(**values)
    except TypeError as error:
        raise SpecError(f"a {what} cannot be made from {dict(values)!r}: {error}") from error
