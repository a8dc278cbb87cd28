"""Training a net on a task's images, and scoring it.

``losses`` says what is minimised, ``metrics`` what is reported, ``feed`` and ``augment`` what the net is shown,
``loop`` does it all from top to bottom, ``profile`` times it; ``checkpoints`` keeps its state, ``logs`` its history.
"""

from onenet_bench.training.checkpoints import Checkpointing, read_asked, read_facts, unreadable
from onenet_bench.training.logs import LOGS, Log
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
from onenet_bench.training.metrics import ConfusionMatrix, CrossEntropy, Regions, SplitMetrics, SplitScores

__all__ = [
    "LOGS",
    "Checkpointing",
    "ConfusionMatrix",
    "CrossEntropy",
    "DivergedError",
    "Log",
    "Progress",
    "Regions",
    "Samples",
    "SplitMetrics",
    "SplitScores",
    "Trained",
    "class_weights",
    "evaluate_split",
    "fit",
    "predict",
    "read_asked",
    "read_facts",
    "unreadable",
    "weighted_cross_entropy",
]
