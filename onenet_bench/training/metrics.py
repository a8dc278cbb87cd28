"""The scores of a split, each from sums over all of its pixels, never from an average over batches.

============================  =============================================================================
``miou``, ``dice``            mean over the classes of TP/(TP+FP+FN) and of 2TP/(2TP+FP+FN), in [0, 1]
``miou_fg``, ``dice_fg``      the same without the background
``pixel_accuracy``            share of the pixels that are classified rightly, in [0, 1]
``ce``, ``ce_weighted``       cross-entropy in nats, Σ w·nll / Σ w: all w = 1; the background's w below 1
``per_class``                 ``{"iou": [...], "dice": [...]}``, one entry per class
============================  =============================================================================

A class that neither truth nor prediction contains has no IoU and no Dice: its entry is None and no mean
includes it. A mean over nothing is None. Ignored pixels count nowhere.

Shapes: B images, K classes, H and W pixels of the logits.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onenet_bench.errors import DataError
from onenet_bench.training.losses import class_weights

SplitScores = dict[str, Any]
"""The keys above: ``float | None`` each, but ``per_class``, a ``dict[str, list[float | None]]``."""


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _ratios(above: Tensor, below: Tensor) -> list[float | None]:
    """``above / below`` per class, both (K,); None where nothing is below."""
    return [a / b if b else None for a, b in zip(above.tolist(), below.tolist(), strict=True)]


class ConfusionMatrix:
    """How many pixels of each true class were given each predicted class.

    ``matrix`` is (K, K) int64 on the CPU, rows truth, columns prediction.
    """

    def __init__(self, classes: int, ignore_index: int = 255) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch: logits (B, K, H, W) floating, or predicted classes (B, H, W) integer.

        ``target`` (B, H, W), any integer type. Raises DataError where a target is neither a class nor
        ``ignore_index``, ValueError where shapes or predicted classes do not fit.
        """
        if prediction.is_floating_point():
            if prediction.shape[1] != self.classes:
                raise ValueError(f"logits have {self.classes} channels, but got {prediction.shape[1]}")
            prediction = prediction.max(dim=1).indices  # (B, H, W); five times as fast as argmax on the CPU
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction and target share one shape, but got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}; resize the target to the prediction"
            )
        valid = target != self.ignore_index  # (B, H, W)
        for values, what, error in ((target, "target", DataError), (prediction, "prediction", ValueError)):
            strange = values[valid & ((values < 0) | (values >= self.classes))]
            if strange.numel():
                raise error(
                    f"a {what} is a class 0 to {self.classes - 1} or ignore_index={self.ignore_index}, "
                    f"but got {int(strange[0])}; map that value to a class, or ignore it"
                )
        cells = self.matrix.numel()  # K·K, which stands for ignored pixels below
        cell = (target.long() * self.classes + prediction).where(valid, cells)  # (B, H, W)
        self.matrix += torch.bincount(cell.flatten(), minlength=cells)[:cells].view_as(self.matrix).cpu()

    def scores(self, background: int = 0) -> SplitScores:
        """All scores of this module but the cross-entropies."""
        hit = self.matrix.diag()  # (K,) TP
        either = self.matrix.sum(0) + self.matrix.sum(1)  # (K,) 2TP + FP + FN
        iou, dice = _ratios(hit, either - hit), _ratios(2 * hit, either)
        foreground = [k for k in range(self.classes) if k != background]
        pixels = int(self.matrix.sum())
        return {
            "miou": _mean(iou),
            "miou_fg": _mean([iou[k] for k in foreground]),
            "dice": _mean(dice),
            "dice_fg": _mean([dice[k] for k in foreground]),
            "pixel_accuracy": int(hit.sum()) / pixels if pixels else None,
            "per_class": {"iou": iou, "dice": dice},
        }


class CrossEntropy:
    """Sums of nll = −ln softmax at the true class, one per class, from which any weighting follows.

    ``nll`` (K,) float64 and ``pixels`` (K,) int64, on the CPU.
    """

    def __init__(self, classes: int, ignore_index: int = 255) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.nll = torch.zeros(classes, dtype=torch.float64)
        self.pixels = torch.zeros(classes, dtype=torch.int64)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: ``logits`` (B, K, H, W) floating, ``target`` (B, H, W), any integer type."""
        nll = F.cross_entropy(logits, target.long(), ignore_index=self.ignore_index, reduction="none")
        truth = target.long().where(target != self.ignore_index, self.classes).flatten()  # (B·H·W,)
        bins = self.classes + 1  # the last for ignored pixels
        self.nll += torch.bincount(truth, nll.flatten().double(), bins)[:-1].cpu()
        self.pixels += torch.bincount(truth, minlength=bins)[:-1].cpu()

    def scores(self, background: int = 0, background_weight: float = 0.25) -> SplitScores:
        """``ce`` and ``ce_weighted``, in nats."""
        weights = class_weights(self.classes, background, background_weight).double()  # (K,)
        pixels, mass = int(self.pixels.sum()), float(weights @ self.pixels.double())
        return {
            "ce": float(self.nll.sum()) / pixels if pixels else None,
            "ce_weighted": float(weights @ self.nll) / mass if mass else None,
        }
