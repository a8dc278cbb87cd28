"""Augmentation: what a batch goes through before the net sees it, image and mask always together.

What happens to which image of a pass is drawn at once, on the CPU, so that it is the same on every device, and
whatever the batch size. Every augmentation draws from a stream of its own, made of the seed, the pass and its row
in the table: one more in the recipe changes nothing about the others.

Shapes: N images of a split, B of a batch, C channels, H and W pixels, D numbers drawn for an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor


class Augmentation(NamedTuple):
    """A row of the table. ``draw`` gives (D, N); ``apply`` takes images (B, C, H, W) in [0, 1], masks (B, H, W), what
    was drawn for them, (D, B), and the index to ignore, and gives images and masks of the same shapes; masks hold
    whole numbers, of whatever type."""

    draw: Callable[[int, Generator], Tensor]
    apply: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def _mirrored(images: Tensor, masks: Tensor, flips: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Mirrored along W where ``flips[0]``, along H where ``flips[1]``."""
    for dim, flip in ((-1, flips[0].bool()), (-2, flips[1].bool())):
        images = images.flip(dim).where(flip[:, None, None, None], images)  # (B, C, H, W)
        masks = masks.flip(dim).where(flip[:, None, None], masks)  # (B, H, W)
    return images, masks


def _turned(images: Tensor, masks: Tensor, turns: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Turned by ``turns[0]`` right angles, from the axis H towards the axis W; H = W."""
    for angles, turn in ((1, turns[0] % 2 == 1), (2, turns[0] >= 2)):
        images = images.rot90(angles, (-2, -1)).where(turn[:, None, None, None], images)  # (B, C, H, W)
        masks = masks.rot90(angles, (-2, -1)).where(turn[:, None, None], masks)  # (B, H, W)
    return images, masks


def _zoomed(images: Tensor, masks: Tensor, drawn: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Zoomed by 1.5 ** ``drawn[0]``, about the place ``drawn[1:]`` (x, y); all in [-1, 1].

    Images bilinear, their border going on outside; masks nearest, ``ignore_index`` outside.
    """
    side = 1.5 ** -drawn[0]  # (B,): how much of the image's side is seen
    place = (1 - side) * drawn[1:]  # (2, B): a crop lies inside the image, a shrunk image inside the frame
    zero = torch.zeros_like(side)
    rows = [torch.stack([side, zero, place[0]], -1), torch.stack([zero, side, place[1]], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)  # (B, H, W, 2)
    images = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
    labels = masks[:, None].float() - ignore_index  # (B, 1, H, W): 0 is what grid_sample knows to put outside
    labels = F.grid_sample(labels, grid, "nearest", "zeros", align_corners=False)
    return images, labels[:, 0] + ignore_index


def _relit(images: Tensor, masks: Tensor, drawn: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Contrast about the image's mean times √2 ** ``drawn[0]``, brightness plus 0.15 · ``drawn[1]``; all in [-1, 1]."""
    contrast, brightness = math.sqrt(2) ** drawn[0], 0.15 * drawn[1]
    mean = images.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    images = (images - mean) * contrast[:, None, None, None] + mean + brightness[:, None, None, None]
    return images.clamp(0, 1), masks


def _uniform(numbers: int) -> Callable[[int, Generator], Tensor]:
    """Uniform in [-1, 1)."""
    return lambda images, stream: 2 * torch.rand(numbers, images, generator=stream) - 1


AUGMENTATIONS: dict[str, Augmentation] = {
    "flips": Augmentation(lambda images, stream: torch.randint(2, (2, images), generator=stream), _mirrored),
    "rotations": Augmentation(lambda images, stream: torch.randint(4, (1, images), generator=stream), _turned),
    "scale": Augmentation(_uniform(3), _zoomed),
    "intensity": Augmentation(_uniform(2), _relit),
}
"""In the order in which they are applied; the names are those of ``onenet_bench.recipe.AUGMENTATIONS``."""


Drawn = list[tuple[Augmentation, Tensor]]
"""What happens to every image of one pass: steps, and what was drawn for each, (D, N)."""


def draw(
    names: Sequence[str], images: int, order: Generator, seed: int, epoch: int, device: torch.device
) -> Drawn:  # fmt: skip
    """What the augmentations ``names`` do in pass ``epoch``.

    ``flips`` come from ``order``, the stream of the images' order, and are always drawn from it, so that the order
    does not depend on what else is done to the images.
    """
    drawn: Drawn = []
    for row, (name, augmentation) in enumerate(AUGMENTATIONS.items()):
        numbers = augmentation.draw(images, order if name == "flips" else _stream(seed, epoch, row))  # (D, N)
        if name in names:
            drawn.append((augmentation, numbers.to(device)))
    return drawn


def apply(
    drawn: Drawn, chosen: Tensor, images: Tensor, masks: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Images (B, C, H, W) in [0, 1] and masks (B, H, W), the rows ``chosen`` (B,) of their split, augmented."""
    for augmentation, numbers in drawn:
        images, masks = augmentation.apply(images, masks, numbers[:, chosen], ignore_index)
    return images, masks


def _stream(seed: int, epoch: int, row: int) -> Generator:
    key = np.random.SeedSequence([seed % 2**64, epoch, row]).generate_state(1)
    return Generator().manual_seed(int(key[0]))
