"""The training images, batch by batch on the device.

On a GPU a split lies there as a whole where it takes no more than a share of the free memory. A larger one stays where
it is, such as in a memory map, and so does every split on a CPU, where processes then share its pages: each batch is
gathered as it comes. A GPU works on one batch while the next is gathered, for nothing here waits for it.

Shapes: N images of a split, B of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE = 0.25
"""Of a GPU's free memory: what a split may take of it."""


class Feed:
    """``images`` (N, C, H, W) and ``masks`` (N, H, W) of uint8, for ``device``."""

    def __init__(self, images: NDArray[np.uint8], masks: NDArray[np.uint8], device: torch.device) -> None:
        self._device = device
        self._arrays = images, masks
        self._there: tuple[Tensor, Tensor] | None = None
        if fits(images.nbytes + masks.nbytes, device):
            self._there = tensor_of(images).to(device), tensor_of(masks).to(device)

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The places (B,) in the split, the images (B, C, H, W) uint8 and the masks (B, H, W) uint8 of each batch of
        up to ``size``, all on the device. ``order`` (n,) are places, on the CPU."""
        there = order.to(self._device)
        for chosen, place in zip(torch.split(order, size), torch.split(there, size), strict=True):
            if self._there is not None:
                images, masks = (tensor[place] for tensor in self._there)
            else:
                images, masks = (self._sent(array[chosen.numpy()]) for array in self._arrays)
            yield place, images, masks

    def _sent(self, rows: NDArray[np.uint8]) -> Tensor:
        tensor = torch.from_numpy(rows)
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)  # the pages stay until the copy is done


def fits(size: int, device: torch.device) -> bool:
    """Whether a split of ``size`` bytes is to lie on ``device``."""
    return device.type == "cuda" and size <= SHARE * torch.cuda.mem_get_info(device)[0]


def tensor_of(array: NDArray[np.uint8]) -> Tensor:
    """The array's own memory where torch may have it, else a copy (read-only maps, strided views)."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
