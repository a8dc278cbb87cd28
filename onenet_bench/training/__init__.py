"""Training a net on a task's images, and scoring it.

``losses`` says what is minimised, ``metrics`` what is reported, ``loop`` does both from top to bottom.
"""

from onenet_bench.training.loop import (
    DivergedError,
    Progress,
    Samples,
    Trained,
    evaluate_split,
    fit,
    predict,
)
from onenet_bench.training.losses import class_weights, weighted_cross_entropy
from onenet_bench.training.metrics import ConfusionMatrix, CrossEntropy, SplitScores

__all__ = [
    "ConfusionMatrix",
    "CrossEntropy",
    "DivergedError",
    "Progress",
    "Samples",
    "SplitScores",
    "Trained",
    "class_weights",
    "evaluate_split",
    "fit",
    "predict",
    "weighted_cross_entropy",
]
