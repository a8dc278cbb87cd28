"""The synthetic set must tell architectures apart, or a search on it means nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onenet_bench import data, models, training
from onenet_bench.recipe import Recipe
from onenet_bench.space import compose


def validation_miou(net: nn.Module) -> float:
    task = data.open_task("synthetic", resolution=48)
    splits = data.load(task)
    recipe = Recipe(epochs=8)
    return float(training.fit(net, splits.train, splits.validation, recipe, classes=task.classes).scores["miou"])


def unet(depth: int, **how: bool) -> nn.Module:
    torch.manual_seed(0)
    return models.build(compose(classes=8, depth=depth, width=12, encoder="conv2d", decoder="conv2d", **how))


@pytest.mark.slow
def test_context_and_skips_show_in_the_score() -> None:
    torch.manual_seed(0)
    no_context = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1))
    scores = {
        "no context": validation_miou(no_context),
        "depth 3 without skips": validation_miou(unet(3, skips=False)),
        "depth 1": validation_miou(unet(1)),
        "depth 3": validation_miou(unet(3)),
    }
    print(scores)
    assert scores["no context"] + 0.1 < scores["depth 1"], scores
    assert scores["depth 1"] + 0.05 < scores["depth 3"], scores
    assert scores["depth 3 without skips"] + 0.1 < scores["depth 3"], scores
