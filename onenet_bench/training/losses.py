"""The loss: cross-entropy in which the background counts less.

Shapes: B images, K classes, H and W pixels of the logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def class_weights(classes: int, background: int, background_weight: float) -> Tensor:
    """One weight per class, (K,) float32: ``background_weight`` for the background, 1 for all others."""
    weights = torch.ones(classes)  # (K,)
    weights[background] = background_weight
    return weights


def weighted_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, ignore_index: int) -> Tensor:
    """Σ w·nll / Σ w over the pixels that are not ignored, where nll is −ln softmax at the true class.

    ``logits`` (B, K, H, W) float32, ``target`` (B, H, W) int64, ``weights`` (K,) float32; a scalar in nats.
    Equal to ``F.cross_entropy(reduction="mean")`` wherever a pixel counts. A batch in which none does, as
    crops of void can be, has loss 0 and gradient 0 instead of 0/0.
    """
    nll = F.cross_entropy(logits, target, weights, ignore_index=ignore_index, reduction="none")  # (B, H, W)
    valid = target != ignore_index  # (B, H, W)
    mass = (weights[target.where(valid, 0)] * valid).sum()
    return nll.sum() / mass.clamp_min(torch.finfo(mass.dtype).tiny)
