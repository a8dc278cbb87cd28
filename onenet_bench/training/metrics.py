"""The scores of a split, each from sums over all of its pixels, never from an average over batches.

============================  =============================================================================
``miou``, ``dice``            mean over the classes of TP/(TP+FP+FN) and of 2TP/(2TP+FP+FN), in [0, 1]
``miou_fg``, ``dice_fg``      the same without the background
``pixel_accuracy``            share of the pixels that are classified rightly, in [0, 1]
``ce``, ``ce_weighted``       cross-entropy in nats, Σ w·nll / Σ w: all w = 1; the background's w below 1
``map50``                     mean over the classes with truth, background included, of the average precision
                              of one detection per image: the region given to the class, scored by its mean
                              softmax probability, a hit where its IoU with the true region is at least ½
``dice_case_fg``              mean over the classes but the background of the mean Dice of the cases (patient
                              volumes) whose truth has the class; None where images belong to no case
``per_class``                 a list in class order for each of ``iou``, ``dice``, ``ce``, ``ap50`` and
                              ``dice_case``
============================  =============================================================================

A class that neither truth nor prediction contains has no IoU and no Dice, and one that is not in the truth no other
score: its entry is None and no mean includes it. A mean over nothing is None. Ignored pixels count nowhere.

An image's case is what stands before the last slash of its name, as in ``PATIENT/slice-012``.

Shapes: N images of a split, B of a batch, K classes, H and W pixels of the logits, D detections of a class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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

    def update(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Add a batch: predicted classes and true ones, (B, H, W) of any integer type each.

        Returns the matrix of every image, (B, K, K) int64. Raises DataError where a target is neither a class nor
        ``ignore_index``, or no integer, ValueError where shapes or predictions do not fit.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction and target share one shape, but got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}; resize the target to the prediction"
            )
        valid = target != self.ignore_index  # (B, H, W)
        for values, what, error in ((target, "target", DataError), (prediction, "prediction", ValueError)):
            if values.is_floating_point():
                raise error(f"a {what} is an integer, a class, but got {values.dtype}; take the argmax of scores")
            strange = values[valid & ((values < 0) | (values >= self.classes))]
            if strange.numel():
                raise error(
                    f"a {what} is a class 0 to {self.classes - 1} or ignore_index={self.ignore_index}, "
                    f"but got {int(strange[0])}; map that value to a class, or ignore it"
                )
        images, k = len(target), self.classes
        cells = images * k * k  # which stands for ignored pixels below
        image = torch.arange(images, device=target.device)[:, None, None]  # (B, 1, 1)
        cell = ((image * k + target) * k + prediction).where(valid, cells)  # (B, H, W)
        each = torch.bincount(cell.flatten(), minlength=cells)[:cells].view(images, k, k)
        self.matrix += each.sum(0).cpu()
        return each

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

    def update(self, log_probability: Tensor, target: Tensor) -> None:
        """Add a batch: ``log_probability`` (B, K, H, W), the log-softmax of logits, ``target`` (B, H, W), integers."""
        nll = F.nll_loss(log_probability, target.long(), ignore_index=self.ignore_index, reduction="none")
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
            "per_class": {"ce": _ratios(self.nll, self.pixels)},
        }


class Regions:
    """What every image has of every class, and the scores that follow: ``map50`` and ``dice_case_fg``."""

    def __init__(self, classes: int, ignore_index: int = 255) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self._counts = [torch.zeros(0, classes, 4, dtype=torch.float64)]  # of every batch: (B, K, 4), see update

    def update(self, prediction: Tensor, probability: Tensor, target: Tensor, each: Tensor) -> None:
        """Add a batch: predicted classes, their softmax probability and the target, (B, H, W) each, and every image's
        confusion matrix, (B, K, K)."""
        cells = each.shape[0] * self.classes  # which stands for ignored pixels below
        image = torch.arange(len(target), device=target.device)[:, None, None]  # (B, 1, 1)
        cell = (image * self.classes + prediction).where(target != self.ignore_index, cells)  # (B, H, W)
        mass = torch.bincount(cell.flatten(), probability.flatten().double(), cells + 1)[:cells]
        both, true, predicted = each.diagonal(dim1=1, dim2=2), each.sum(2), each.sum(1)  # (B, K) pixels
        self._counts.append(torch.stack([both, true, predicted, mass.view_as(both)], dim=-1).cpu())

    def scores(self, background: int = 0, names: Sequence[str] = ()) -> SplitScores:
        """``map50`` and ``dice_case_fg``; ``names`` (N,) are the images', in the order of the updates."""
        both, true, predicted, mass = torch.cat(self._counts).numpy().transpose(2, 0, 1)  # (N, K) each
        found = predicted > 0
        hit = 2 * both >= true + predicted - both  # IoU of at least ½, without a division
        precision = [
            average_precision(mass[here, k] / predicted[here, k], hit[here, k], int((true[:, k] > 0).sum()))
            for k, here in enumerate(found.T)
        ]
        dice: list[float | None] = [None] * self.classes
        cases = [name.rpartition("/")[0] for name in names]
        if cases and all(cases):
            _, case = np.unique(cases, return_inverse=True)  # (N,)
            both, true, predicted = (np.stack([np.bincount(case, x) for x in y.T]) for y in (both, true, predicted))
            for k in range(self.classes):
                here = true[k] > 0
                dice[k] = float(np.mean(2 * both[k, here] / (true + predicted)[k, here])) if here.any() else None
        return {
            "map50": _mean(precision),
            "dice_case_fg": _mean([dice[k] for k in range(self.classes) if k != background]),
            "per_class": {"ap50": precision, "dice_case": dice},
        }


def average_precision(score: NDArray[np.float64], hit: NDArray[np.bool_], truths: int) -> float | None:
    """The area under the interpolated precision-recall curve of detections: (D,) scores and hits, in [0, 1].

    ``truths`` is what there is to find; None where that is nothing. A point of the curve is a threshold, so
    detections of one score count at once. The precision at a recall is the highest at that recall or a larger one.
    """
    if not truths:
        return None
    order = np.argsort(-score)
    last = np.append(np.diff(score[order]) != 0, True)[: len(order)]  # (D,): the last of its score
    hits, detections = np.cumsum(hit[order])[last], np.flatnonzero(last) + 1
    precision = np.maximum.accumulate((hits / detections)[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * precision)) / truths


class SplitMetrics:
    """All scores of this module at once."""

    def __init__(self, classes: int, ignore_index: int = 255) -> None:
        self._confusion = ConfusionMatrix(classes, ignore_index)
        self._entropy = CrossEntropy(classes, ignore_index)
        self._regions = Regions(classes, ignore_index)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: ``logits`` (B, K, H, W) floating, ``target`` (B, H, W), any integer type. Raises DataError."""
        logits = logits.contiguous()  # on a CPU several times faster than channels-last memory, in what follows
        prediction = logits.max(dim=1).indices  # (B, H, W); five times as fast as argmax on the CPU
        log_probability = logits.log_softmax(dim=1)  # (B, K, H, W)
        each = self._confusion.update(prediction, target)  # (B, K, K)
        self._entropy.update(log_probability, target)
        self._regions.update(prediction, log_probability.amax(dim=1).exp(), target, each)

    def scores(
        self, background: int = 0, background_weight: float = 0.25, names: Sequence[str] = ()
    ) -> SplitScores:  # fmt: skip
        """Every key that this module names; ``names`` (N,) are the images', in the order of the updates."""
        parts = (
            self._confusion.scores(background),
            self._entropy.scores(background, background_weight),
            self._regions.scores(background, names),
        )
        scores = {key: value for part in parts for key, value in part.items()}
        scores["per_class"] = {key: values for part in parts for key, values in part["per_class"].items()}
        return scores
