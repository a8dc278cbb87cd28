from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import DiceScore

from onenet_bench.errors import DataError
from onenet_bench.training import ConfusionMatrix, CrossEntropy

MEANS = ("miou", "miou_fg", "dice", "dice_fg", "pixel_accuracy")


def maps(seed: int, classes: int, *, ignored: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and a target, (4, 9, 7), that agree on about half of the pixels."""
    draws = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (4, 9, 7), generator=draws)
    noise = torch.randint(classes, target.shape, generator=draws)
    prediction = noise.where(torch.rand(target.shape, generator=draws) < 0.5, target)
    target[torch.rand(target.shape, generator=draws) < ignored] = 255
    return prediction, target


def score(prediction: torch.Tensor, target: torch.Tensor, classes: int, background: int = 0) -> dict[str, Any]:
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, target)
    return matrix.scores(background)


@pytest.mark.parametrize("classes", [2, 5, 21])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_miou_is_that_of_torchmetrics(classes: int, ignored: float) -> None:
    prediction, target = maps(classes, classes, ignored=ignored)
    theirs = MulticlassJaccardIndex(classes, ignore_index=255)(prediction, target)
    assert score(prediction, target, classes)["miou"] == pytest.approx(theirs.item(), rel=1e-6)


def test_miou_is_that_of_torchmetrics_when_a_class_is_absent() -> None:
    prediction, target = maps(0, 4)
    theirs = MulticlassJaccardIndex(6)(prediction, target)
    assert score(prediction, target, 6)["miou"] == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("key", ["dice", "dice_fg"])
@pytest.mark.parametrize(("classes", "present"), [(2, 2), (5, 5), (6, 4)])
def test_dice_is_that_of_torchmetrics(key: str, classes: int, present: int) -> None:
    prediction, target = maps(classes, present)
    theirs = DiceScore(
        classes,
        include_background=key == "dice",
        average="macro",
        aggregation_level="global",
        input_format="index",
    )(prediction, target)
    assert score(prediction, target, classes)[key] == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("background", [0, 3])
def test_all_scores_are_those_of_loops_over_pixels(background: int) -> None:
    classes = 5
    prediction, target = maps(7, classes - 1, ignored=0.2)  # class 4 is absent
    pairs = [(int(p), int(t)) for p, t in zip(prediction.flatten(), target.flatten(), strict=True) if int(t) != 255]
    iou: list[float | None] = []
    dice: list[float | None] = []
    for k in range(classes):
        predicted = {n for n, (p, _) in enumerate(pairs) if p == k}
        true = {n for n, (_, t) in enumerate(pairs) if t == k}
        both, either = len(predicted & true), len(predicted | true)
        iou.append(both / either if either else None)
        dice.append(2 * both / (len(predicted) + len(true)) if either else None)

    def mean(values: list[float | None], *, without: int | None = None) -> float:
        return float(np.mean([v for k, v in enumerate(values) if v is not None and k != without]))

    scores = score(prediction, target, classes, background)
    assert scores["per_class"] == {"iou": iou, "dice": dice}
    assert iou[4] is None
    expected = (
        mean(iou),
        mean(iou, without=background),
        mean(dice),
        mean(dice, without=background),
        np.mean([p == t for p, t in pairs]),
    )
    assert [scores[key] for key in MEANS] == pytest.approx(expected)


def test_a_case_done_by_hand() -> None:
    target = torch.tensor([[[0, 0, 1, 1], [0, 0, 255, 2]]])
    prediction = torch.tensor([[[0, 1, 1, 1], [0, 0, 2, 1]]])
    scores = score(prediction, target, 3)
    assert scores["per_class"]["iou"] == [3 / 4, 2 / 4, 0]
    assert scores["per_class"]["dice"] == [6 / 7, 4 / 6, 0]
    assert scores["pixel_accuracy"] == 5 / 7
    assert scores["miou_fg"] == 1 / 4
    assert scores["dice_fg"] == pytest.approx(1 / 3)


def test_a_perfect_prediction_scores_one_and_a_disjoint_one_zero() -> None:
    _, target = maps(3, 4)
    assert [score(target, target, 4)[key] for key in MEANS] == [1] * 5
    assert [score((target + 1) % 4, target, 4)[key] for key in MEANS] == [0] * 5


def test_renaming_the_classes_renames_the_scores() -> None:
    prediction, target = maps(11, 5)
    renamed = torch.tensor([3, 0, 4, 1, 2])
    before = score(prediction, target, 5, background=1)
    after = score(renamed[prediction], renamed[target], 5, background=int(renamed[1]))
    assert [after[key] for key in MEANS] == pytest.approx([before[key] for key in MEANS])
    assert [after["per_class"]["iou"][int(renamed[k])] for k in range(5)] == before["per_class"]["iou"]


def test_the_matrix_counts_the_split_not_the_batches() -> None:
    prediction, target = maps(5, 4, ignored=0.1)
    one, many = ConfusionMatrix(4), ConfusionMatrix(4)
    one.update(prediction, target)
    for image in range(len(target)):
        many.update(prediction[image : image + 1], target[image : image + 1])
    assert torch.equal(one.matrix, many.matrix)
    assert one.matrix.dtype == torch.int64
    assert int(one.matrix.sum()) == int((target != 255).sum())
    assert int(one.matrix[2, 1]) == int(((target == 2) & (prediction == 1)).sum())


def test_logits_count_as_their_largest_channel_and_uint8_as_int64() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    target = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    of_logits, of_classes = ConfusionMatrix(3), ConfusionMatrix(3)
    of_logits.update(logits, target.byte())
    of_classes.update(logits.argmax(1), target)
    assert torch.equal(of_logits.matrix, of_classes.matrix)


def test_a_large_class_index_does_not_overflow() -> None:
    target = torch.full((1, 2, 2), 199, dtype=torch.uint8)
    matrix = ConfusionMatrix(200)
    matrix.update(target, target)
    assert int(matrix.matrix[199, 199]) == 4


@pytest.mark.parametrize("anything", [-1, 0, 3, 255])
def test_what_is_predicted_at_an_ignored_pixel_does_not_matter(anything: int) -> None:
    prediction, target = maps(6, 3, ignored=0.2)
    expected = score(prediction, target, 3)
    assert score(prediction.masked_fill(target == 255, anything), target, 3) == expected


@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_any_value_can_be_the_ignored_one(ignore_index: int) -> None:
    prediction, target = maps(6, 3)
    target[target == 1] = 255
    expected = ConfusionMatrix(3)
    expected.update(prediction, target)
    matrix = ConfusionMatrix(3, ignore_index)
    matrix.update(prediction, target.where(target != 255, ignore_index))
    assert torch.equal(matrix.matrix, expected.matrix)


def test_without_a_valid_pixel_every_score_is_none() -> None:
    target = torch.full((1, 3, 3), 255)
    scores = score(torch.zeros_like(target), target, 2)
    assert [scores[key] for key in MEANS] == [None] * 5
    entropy = CrossEntropy(2)
    entropy.update(torch.zeros(1, 2, 3, 3), target)
    assert entropy.scores() == {"ce": None, "ce_weighted": None}


@pytest.mark.parametrize("value", [-1, 3, 254])
def test_a_target_that_is_no_class_raises(value: int) -> None:
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    target[0, 1, 1] = value
    matrix = ConfusionMatrix(3)
    with pytest.raises(DataError, match=rf"0 to 2 or ignore_index=255, but got {value};"):
        matrix.update(torch.zeros_like(target), target)
    assert not matrix.matrix.any()


def test_a_prediction_that_does_not_fit_raises() -> None:
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"a prediction is a class 0 to 2 .* but got 3"):
        ConfusionMatrix(3).update(target + 3, target)
    with pytest.raises(ValueError, match="3 channels, but got 4"):
        ConfusionMatrix(3).update(torch.zeros(1, 4, 2, 2), target)
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) and \(1, 2, 2\)"):
        ConfusionMatrix(3).update(torch.zeros(1, 3, 4, 4), target)


def test_cross_entropy_is_a_weighted_mean_over_the_split() -> None:
    logits = 2 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    _, target = maps(1, 3, ignored=0.2)
    target = target[:, :5, :5]
    entropy = CrossEntropy(3)
    entropy.update(logits[:1], target[:1])
    entropy.update(logits[1:], target[1:].byte())

    values = logits.double().numpy()
    nll = np.log(np.exp(values).sum(1))[:, None] - values  # (B, K, H, W)
    true = target.numpy()
    weight = np.where(true == 255, 0.0, np.where(true == 1, 0.25, 1.0))  # (B, H, W)
    valid = true != 255
    picked = np.take_along_axis(nll, np.where(valid, true, 0)[:, None], 1)[:, 0]  # (B, H, W)

    scores = entropy.scores(background=1)
    assert scores["ce"] == pytest.approx((picked * valid).sum() / valid.sum(), rel=1e-6)
    assert scores["ce_weighted"] == pytest.approx((picked * weight).sum() / weight.sum(), rel=1e-6)
    assert entropy.scores(background_weight=1.0)["ce_weighted"] == pytest.approx(scores["ce"])


def test_cross_entropy_is_summed_in_float64() -> None:
    logits = torch.tensor([0.1, 0.0]).view(1, 2, 1, 1).expand(1, 2, 512, 512)
    entropy = CrossEntropy(2)
    for _ in range(4):
        entropy.update(logits, torch.zeros(1, 512, 512, dtype=torch.uint8))
    one = torch.nn.functional.cross_entropy(logits[:, :, :1, :1], torch.zeros(1, 1, 1, dtype=torch.int64))
    assert entropy.scores()["ce"] == pytest.approx(one.item(), rel=1e-12)
