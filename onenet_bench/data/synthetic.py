"""Synthetic scenes that separate architectures: each class can be told by one cue only.

==================  ==================================================  =======================================
class               what it is                                          what it asks of a net
==================  ==================================================  =======================================
background          bare ground, and everything that is a lookalike
stripes_level       a patch of stripes, its mean that of the ground     a local filter
stripes_upright     the same, turned by 90 degrees                      a local filter
organ               a large region, barely lighter than the ground      context, against noise and shading
lesion              a light spot inside the organ; outside, the same    detail and context at once
                    spot is background
vessel              a dark curve, 1 to 2 pixels wide                    full resolution to the end: skips
ring                a dark ring and its hole, which looks like ground;  the shape of the whole object
                    a disc of the same size and tone is background
marked              a light square whose distant cross is light; with   long range: ``marker_distance``
                    a dark cross, the same square is background
==================  ==================================================  =======================================

Objects hide one another in painter's order. A scene is drawn in 64ths of the side, so one (seed, split, index) is
the same scene at every resolution, up to its noise. The random streams are those of ``numpy.random.RandomState``,
which NumPy keeps frozen; a change of what is drawn needs a new ``VERSION``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import cos, dist, hypot, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onenet_bench.data import _cache
from onenet_bench.data.samples import SPLITS, Request, Samples, Source, Splits
from onenet_bench.errors import DataError, known
from onenet_bench.task import Task

VERSION = 1
UNIT = 64.0  # a scene is this many units wide and high
DEFAULT_SIZES = {"train": 320, "validation": 96, "test": 96}

CUES: dict[str, tuple[str, ...]] = {
    "texture": ("stripes_level", "stripes_upright"),
    "organ": ("organ", "lesion"),
    "vessel": ("vessel",),
    "shape": ("ring",),
    "marker": ("marked",),
}

Plane = NDArray[np.floating[Any]]
Point = tuple[float, float]  # x, y in units
Outline = Callable[[Plane, Plane], Plane]
"""The signed distance, in units, to an outline, negative inside, at offsets x (1, w) and y (h, 1) from its centre."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSpec:
    """The knobs. Lightness runs from 0 to 1 and the ground is near a half; lengths are parts of the side."""

    cues: tuple[str, ...] = tuple(CUES)  # of CUES: which classes there are
    patches: int = 2  # striped patches in a scene
    spots: int = 10  # spots in a scene; about half are lesions
    vessels: int = 2
    shapes: int = 3  # rings and discs in a scene
    squares: int = 2  # squares in a scene, each with its cross; fewer where the distance leaves no room
    contrast: float = 0.2  # lightness of stripes, spots, vessels, shapes and squares against what is below
    organ_contrast: float = 0.1  # lightness of the organ against the ground
    marker_distance: float = 0.2  # from the square's centre to the cross that decides its class
    occlusion: float = 0.3  # chance that an object is put down without looking for a free place
    illumination: float = 0.2  # lightness gained, and lost, along a random direction across the image
    noise: float = 0.06  # standard deviation, per pixel and channel

    def __post_init__(self) -> None:
        for cue in self.cues:
            if cue not in CUES:
                raise DataError(known("cue", cue, CUES))
        if not self.cues or len(set(self.cues)) < len(self.cues):
            raise DataError(f"cues are one or more of {', '.join(CUES)}, each once, but got {self.cues}")
        for name in ("patches", "spots", "vessels", "shapes", "squares"):
            if not 0 <= getattr(self, name) <= 32:
                raise DataError(f"{name} lies between 0 and 32, but got {getattr(self, name)}")
        for name in ("contrast", "organ_contrast", "occlusion", "illumination", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} lies between 0 and 1, but got {getattr(self, name)}")
        if not 0.15 <= self.marker_distance <= 0.6:
            raise DataError(f"marker_distance lies between 0.15 and 0.6, but got {self.marker_distance}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The background, then the classes of the cues in the order of ``CUES``."""
        return ("background", *(name for cue, names in CUES.items() if cue in self.cues for name in names))

    def digest(self) -> str:
        """A name for these knobs: equal knobs have equal digests."""
        return _cache.digest(asdict(self))

    @classmethod
    def parse(cls, text: str) -> SyntheticSpec:
        """``"noise=0.1,cues=texture+vessel"`` as knobs; what is not named keeps its default."""
        kinds = {name: type(default) for name, default in asdict(cls()).items()}
        knobs: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in kinds:
                raise DataError(known("knob of the synthetic data", name, kinds))
            try:
                knobs[name] = tuple(value.split("+")) if kinds[name] is tuple else kinds[name](value)
            except ValueError:
                raise DataError(
                    f"{name} of the synthetic data is of type {kinds[name].__name__}, but got {value!r}; "
                    "write it as synthetic:noise=0.1,cues=texture+vessel"
                ) from None
        return cls(**knobs)


def render(
    spec: SyntheticSpec, *, resolution: int, seed: int, split: str, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image (3, H, W) and its mask (H, W), a function of the arguments alone."""
    key = [VERSION, seed, SPLITS.index(split), index]
    scene = _Scene(spec, _stream([*key, 0]), resolution)
    scene.draw()
    return scene.photograph(_stream([*key, 1])), scene.mask


def _stream(key: list[int]) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


class _Scene:
    """A canvas of lightness and labels, and the brushes for it. Lengths and places are in units."""

    def __init__(self, spec: SyntheticSpec, random: np.random.RandomState, resolution: int) -> None:
        self.spec = spec
        self.random = random
        self.label = {name: index for index, name in enumerate(spec.class_names)}
        self.scale = resolution / UNIT  # pixels per unit
        centres = (np.arange(resolution) + 0.5) / self.scale
        self.x: Plane = centres[None, :]  # (1, W)
        self.y: Plane = centres[:, None]  # (H, 1)
        self.light: Plane = np.full((resolution, resolution), 0.5)  # (H, W)
        self.mask = np.zeros((resolution, resolution), np.uint8)  # (H, W)
        self.taken: list[tuple[float, float, float]] = []  # circles: x, y, radius

    # -- the scene ---------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Organ and spots first, then patches, vessels and shapes in random order, square and cross last."""
        spec, random = self.spec, self.random
        if "organ" in spec.cues:
            self.draw_organ_and_spots()
        squares = self.place_squares() if "marker" in spec.cues else []
        brushes: list[Callable[[], None]] = []
        if "texture" in spec.cues:
            brushes += [self.draw_patch] * spec.patches
        if "vessel" in spec.cues:
            brushes += [self.draw_vessel] * spec.vessels
        if "shape" in spec.cues:
            brushes += [self.draw_shape] * spec.shapes
        for choice in random.permutation(len(brushes)):
            brushes[choice]()
        for square, cross in squares:
            self.draw_square(square, cross)

    def draw_organ_and_spots(self) -> None:
        random, spec = self.random, self.spec
        x, y = random.uniform(18, UNIT - 18, 2)
        long, short = random.uniform(16, 22), random.uniform(12, 16)
        angle, wave, phase = random.uniform(0, pi), random.uniform(0.0, 0.12), random.uniform(0, 2 * pi)
        self.paint("organ", spec.organ_contrast, x, y, 1.2 * long, _blob(long, short, angle, wave, phase))
        for number in range(spec.spots):
            radius = random.uniform(1.8, 2.7)
            if number % 2:
                toward, far = random.uniform(0, 2 * pi), 0.8 * random.uniform() ** 0.5
                along, across = far * (long - 3) * cos(toward), far * (short - 3) * sin(toward)
                place = (
                    x + along * cos(angle) - across * sin(angle),
                    y + along * sin(angle) + across * cos(angle),
                )
                self.paint("lesion", spec.contrast, *place, radius, _disc(radius))
            else:
                for _ in range(8):  # outside: not within the ellipse's long axis, nor near it
                    place = tuple(random.uniform(3, UNIT - 3, 2))
                    if hypot(place[0] - x, place[1] - y) > long + 5:
                        self.paint("background", spec.contrast, *place, radius, _disc(radius))
                        break

    def draw_patch(self) -> None:
        random = self.random
        radius = random.uniform(7, 11)
        place = self.free_place(radius)
        upright, tilt = random.uniform() < 0.5, random.uniform(-0.2, 0.2)
        angle, wave, phase = random.uniform(0, pi), random.uniform(0.0, 0.15), random.uniform(0, 2 * pi)
        turn = tilt + (0 if upright else pi / 2)
        period, shift = random.uniform(4.5, 6.5), random.uniform(0, 2 * pi)
        if place is None:
            return
        patch = _blob(radius, 0.8 * radius, angle, wave, phase)
        name = "stripes_upright" if upright else "stripes_level"

        def stripes(x: Plane, y: Plane) -> Plane:
            return self.spec.contrast * np.sin(2 * pi / period * (x * cos(turn) + y * sin(turn)) + shift)

        self.paint(name, stripes, *place, 1.2 * radius, patch, opaque=True)

    def draw_vessel(self) -> None:
        random = self.random
        x, y = random.uniform(12, UNIT - 12, 2)
        angle, half_width = random.uniform(0, pi), random.uniform(0.6, 1.1)
        reach, period, shift = random.uniform(2, 6), random.uniform(30, 60), random.uniform(0, 2 * pi)
        half_width = max(half_width, 0.5 / self.scale)  # never thinner than a pixel
        frequency = 2 * pi / period

        def outline(x: Plane, y: Plane) -> Plane:
            along, across = x * cos(angle) + y * sin(angle), y * cos(angle) - x * sin(angle)
            slope = reach * frequency * np.cos(frequency * along + shift)
            sideways: Plane = across - reach * np.sin(frequency * along + shift)
            return np.abs(sideways) / np.sqrt(1 + slope**2) - half_width

        self.paint("vessel", -self.spec.contrast, x, y, 2 * UNIT, outline)

    def draw_shape(self) -> None:
        random = self.random
        radius, width, ring = random.uniform(5, 8), random.uniform(1.8, 2.6), random.uniform() < 0.5
        place = self.free_place(radius)
        if place is None:
            return
        if ring:
            self.paint("ring", 0.0, *place, radius, _disc(radius), opaque=True)
            self.paint("ring", -self.spec.contrast, *place, radius, _ring(radius, width), opaque=True)
        else:
            self.paint("background", -self.spec.contrast, *place, radius, _disc(radius), opaque=True)

    def place_squares(self) -> list[tuple[Point, Point]]:
        """Centres of squares and of their crosses, inside the image; no cross is near another's square."""
        random, far = self.random, self.spec.marker_distance * UNIT
        pairs: list[tuple[Point, Point]] = []
        for _ in range(20 * self.spec.squares):
            x, y = random.uniform(6, UNIT - 6, 2)
            toward = random.uniform(0, 2 * pi)
            square, cross = (x, y), (x + far * cos(toward), y + far * sin(toward))
            inside = all(4 < coordinate < UNIT - 4 for coordinate in cross)
            if inside and all(
                min(dist(cross, its_square), dist(square, its_cross)) > 1.5 * far
                and min(dist(square, its_square), dist(cross, its_cross)) > 14
                for its_square, its_cross in pairs
            ):
                pairs.append((square, cross))
                self.taken += [(*square, 5.0), (*cross, 3.0)]
            if len(pairs) == self.spec.squares:
                break
        return pairs

    def draw_square(self, square: Point, cross: Point) -> None:
        random, contrast = self.random, self.spec.contrast
        marked, half, angle = random.uniform() < 0.5, random.uniform(4.5, 5.5), random.uniform(0, pi / 2)
        name = "marked" if marked else "background"
        self.paint(name, contrast, *square, 1.5 * half, _square(half, angle), opaque=True)
        tone = 2 * contrast if marked else -2 * contrast
        self.paint("background", tone, *cross, 4.0, _cross(3.2, 1.2), opaque=True)

    def free_place(self, radius: float) -> Point | None:
        """A centre where a circle touches no other; with chance ``occlusion`` any centre; None where all is full."""
        careless = self.random.uniform() < self.spec.occlusion
        for _ in range(12):
            x, y = self.random.uniform(0.6 * radius, UNIT - 0.6 * radius, 2)
            if careless or all(hypot(x - a, y - b) > radius + r for a, b, r in self.taken):
                self.taken.append((x, y, radius))
                return x, y
        return None

    # -- brush and camera --------------------------------------------------------------------------------------

    def paint(
        self,
        name: str,
        tone: float | Callable[[Plane, Plane], Plane],
        x: float,
        y: float,
        reach: float,
        outline: Outline,
        *,
        opaque: bool = False,
    ) -> None:
        """Labels what is inside ``outline`` and shades it with a rim one pixel wide, within ``reach`` of (x, y).

        ``tone`` is added to the lightness below, or where ``opaque`` to that of the bare ground.
        """
        side, reach = len(self.mask), reach + 1
        left, right = (min(max(int((x + r) * self.scale), 0), side) for r in (-reach, reach))
        top, bottom = (min(max(int((y + r) * self.scale), 0), side) for r in (-reach, reach))
        window = slice(top, bottom + 1), slice(left, right + 1)
        dx, dy = self.x[:, window[1]] - x, self.y[window[0]] - y  # (1, w), (h, 1)
        outside = outline(dx, dy)  # (h, w)
        cover = np.clip(0.5 - outside * self.scale, 0.0, 1.0)
        light = self.light[window]
        shade = tone(dx, dy) if callable(tone) else tone
        light += cover * (0.5 - light + shade if opaque else shade)
        self.mask[window][outside < 0] = self.label[name]

    def photograph(self, random: np.random.RandomState) -> NDArray[np.uint8]:
        """The lightness under a slanting light, through a tinted lens, with noise. (3, H, W)"""
        spec = self.spec
        toward, gain = random.uniform(0, 2 * pi), random.uniform(0.85, 1.1)
        ramp = ((self.x - UNIT / 2) * cos(toward) + (self.y - UNIT / 2) * sin(toward)) / (UNIT / 2)
        tint = random.uniform(0.9, 1.1, (3, 1, 1))
        image = tint * gain * (self.light + spec.illumination * ramp)
        image += spec.noise * random.standard_normal(image.shape)
        return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


def _disc(radius: float) -> Outline:
    return lambda x, y: np.sqrt(x * x + y * y) - radius


def _ring(radius: float, width: float) -> Outline:
    return lambda x, y: np.abs(np.sqrt(x * x + y * y) - (radius - width / 2)) - width / 2


def _square(half: float, angle: float) -> Outline:
    c, s = cos(angle), sin(angle)
    return lambda x, y: np.maximum(np.abs(x * c + y * s), np.abs(y * c - x * s)) - half


def _cross(arm: float, half: float) -> Outline:
    def outline(x: Plane, y: Plane) -> Plane:
        x, y = np.abs(x), np.abs(y)
        distance: Plane = np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))
        return distance

    return outline


def _blob(long: float, short: float, angle: float, wave: float, phase: float) -> Outline:
    """An ellipse whose rim swings in and out three times by the part ``wave``. The distance is approximate."""
    c, s = cos(angle), sin(angle)

    def outline(x: Plane, y: Plane) -> Plane:
        a, b = (x * c + y * s) / long, (y * c - x * s) / short
        radius = np.maximum(np.sqrt(a * a + b * b), 1e-9)
        a, b = a / radius, b / radius  # cosine and sine of the direction, then of three times that angle
        swing = (4 * a * a * a - 3 * a) * cos(phase) - (3 * b - 4 * b * b * b) * sin(phase)
        distance: Plane = (radius - 1 - wave * swing) * short
        return distance

    return outline


# -- the row of the table --------------------------------------------------------------------------------------------


def _open(request: Request) -> Task:
    spec = SyntheticSpec.parse(request.where)
    if request.resolution % 8 or request.resolution < 32:
        raise DataError(
            f"synthetic data has a resolution of at least 32 that is a multiple of 8, but got {request.resolution}; "
            "take 64"
        )
    wanted = {split: getattr(request, split) for split in SPLITS}
    sizes = {split: DEFAULT_SIZES[split] if size is None else size for split, size in wanted.items()}
    content = {"version": VERSION, "spec": spec.digest(), "resolution": request.resolution}
    return Task(
        data=request.data,
        content=_cache.digest({**content, "seed": request.seed, **sizes}),
        in_channels=3,
        class_names=spec.class_names,
        resolution=request.resolution,
        seed=request.seed,
        **sizes,
    )


def _load(task: Task) -> Splits:
    spec = SyntheticSpec.parse(task.data.partition(":")[2])

    def build() -> _cache.Arrays:
        side = task.resolution
        made: dict[str, NDArray[np.uint8]] = {}
        for split in SPLITS:
            size = getattr(task, split)
            images = made[f"{split}_images"] = np.empty((size, 3, side, side), np.uint8)  # (N, 3, H, W)
            masks = made[f"{split}_masks"] = np.empty((size, side, side), np.uint8)  # (N, H, W)
            for index in range(size):
                images[index], masks[index] = render(spec, resolution=side, seed=task.seed, split=split, index=index)
        return made

    arrays = _cache.arrays(f"synthetic-{task.content}", build)
    return Splits(
        **{
            split: Samples(
                images=arrays[f"{split}_images"],
                masks=arrays[f"{split}_masks"],
                names=tuple(f"{split}-{index:05}" for index in range(getattr(task, split))),
            )
            for split in SPLITS
        }
    )


SOURCE = Source(
    summary="synthetic[:KNOB=VALUE,...]  generated scenes that separate architectures; needs no download",
    open=_open,
    load=_load,
)
