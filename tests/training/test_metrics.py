from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import DiceScore

from onenet_bench.errors import DataError
from onenet_bench.training import ConfusionMatrix, CrossEntropy, SplitMetrics
from onenet_bench.training.metrics import average_precision

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


def test_uint8_counts_as_int64() -> None:
    prediction, target = maps(5, 4, ignored=0.1)
    of_bytes, of_numbers = ConfusionMatrix(4), ConfusionMatrix(4)
    of_bytes.update(prediction.byte(), target.byte())
    of_numbers.update(prediction, target)
    assert torch.equal(of_bytes.matrix, of_numbers.matrix)


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
    entropy.update(torch.zeros(1, 2, 3, 3).log_softmax(1), target)
    assert entropy.scores() == {"ce": None, "ce_weighted": None, "per_class": {"ce": [None, None]}}


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
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\) and \(1, 2, 2\)"):
        ConfusionMatrix(3).update(torch.zeros(1, 3, 2, 2), target)
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) and \(1, 2, 2\)"):
        ConfusionMatrix(3).update(target.new_zeros(1, 4, 4), target)
    with pytest.raises(ValueError, match=r"a prediction is an integer, a class, but got torch\.float32; take the"):
        ConfusionMatrix(3).update(target.float(), target)
    with pytest.raises(DataError, match=r"a target is an integer, a class, but got torch\.float32"):
        ConfusionMatrix(3).update(target, target.float())


def test_cross_entropy_is_a_weighted_mean_over_the_split() -> None:
    logits = 2 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    _, target = maps(1, 3, ignored=0.2)
    target = target[:, :5, :5]
    entropy = CrossEntropy(3)
    entropy.update(logits[:1].log_softmax(1), target[:1])
    entropy.update(logits[1:].log_softmax(1), target[1:].byte())

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
        entropy.update(logits.log_softmax(1), torch.zeros(1, 512, 512, dtype=torch.uint8))
    one = torch.nn.functional.cross_entropy(logits[:, :, :1, :1], torch.zeros(1, 1, 1, dtype=torch.int64))
    assert entropy.scores()["ce"] == pytest.approx(one.item(), rel=1e-12)


# Average precision -----------------------------------------------------------------------------------------


def area(detections: list[tuple[float, bool]], truths: int) -> float:
    """Of the interpolated precision-recall curve, from its definition: every threshold, every recall."""
    points = []  # (true positives, precision) at every threshold
    for threshold, _ in detections:
        kept = [hit for score, hit in detections if score >= threshold]
        points.append((sum(kept), sum(kept) / len(kept)))
    highest = [max([p for found, p in points if found >= recall], default=0.0) for recall in range(1, truths + 1)]
    return sum(highest) / truths


def blobs(seed: int, images: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K, 8, 8) and a target (N, 8, 8): rectangles, found well, badly, twice or not at all."""
    draws = np.random.default_rng(seed)
    target = np.zeros((images, 8, 8), dtype=np.int64)
    logits = draws.normal(0, 0.5, (images, classes, 8, 8))
    logits[:, 0] += 2
    for n in range(images):
        for k in draws.permutation(np.arange(1, classes))[: draws.integers(0, classes)]:
            top, left = draws.integers(0, 4, 2)
            target[n, top : top + 4, left : left + 4] = k
            down, right = np.clip(np.add([top, left], draws.integers(-2, 3, 2)), 0, 4)
            if draws.random() < 0.8:
                logits[n, k, down : down + 4, right : right + 4] += draws.uniform(3, 6)
    target[draws.random(target.shape) < 0.1] = 255
    return torch.from_numpy(logits).float(), torch.from_numpy(target)


def measured(
    logits: torch.Tensor, target: torch.Tensor, names: tuple[str, ...] = (), parts: int = 1, background: int = 0
) -> dict[str, Any]:
    metrics = SplitMetrics(logits.shape[1])
    for part in torch.arange(len(logits)).chunk(parts):
        metrics.update(logits[part], target[part])
    return metrics.scores(background, names=names)


@pytest.mark.parametrize("seed", range(4))
def test_map50_is_its_definition_by_brute_force(seed: int) -> None:
    logits, target = blobs(seed)
    probability = np.exp(logits.double().numpy())
    probability /= probability.sum(1, keepdims=True)
    expected: list[float | None] = []
    for k in range(4):
        detections, truths = [], 0
        for n in range(len(target)):
            pixels = [(i, j) for i, j in np.ndindex(8, 8) if target[n, i, j] != 255]
            true = {(i, j) for i, j in pixels if target[n, i, j] == k}
            found = {(i, j) for i, j in pixels if probability[n, :, i, j].argmax() == k}
            truths += bool(true)
            if found:
                score = float(np.mean([probability[n, k, i, j] for i, j in found]))
                detections.append((score, len(true & found) / len(true | found) >= 0.5))
        expected.append(area(detections, truths) if truths else None)
    scores = measured(logits, target, parts=3)
    assert scores["per_class"]["ap50"] == pytest.approx(expected)
    assert scores["map50"] == pytest.approx(np.mean([v for v in expected if v is not None]))  # background included
    assert 0.1 < scores["map50"] < 0.95


def test_average_precision_done_by_hand() -> None:
    def precision(detections: list[tuple[float, bool]], truths: int) -> float | None:
        score, hit = zip(*detections, strict=True) if detections else ((), ())
        return average_precision(np.array(score, dtype=float), np.array(hit, dtype=bool), truths)

    assert precision([(0.9, True), (0.8, False), (0.7, True)], 2) == pytest.approx((1 + 2 / 3) / 2)
    assert precision([(0.9, False), (0.8, True)], 1) == 0.5
    assert precision([(0.9, True)], 4) == 0.25
    assert precision([(0.9, False), (0.8, True), (0.7, True)], 2) == pytest.approx(2 / 3)  # a later point is better
    assert precision([], 3) == 0
    assert precision([(0.9, False)], 0) is None


def test_detections_of_one_score_count_at_once_in_whatever_order() -> None:
    draws = np.random.default_rng(0)
    for _ in range(50):
        score, hit = draws.integers(0, 4, 9) / 4, draws.random(9) < 0.5
        expected = area(list(zip(score.tolist(), hit.tolist(), strict=True)), 10)
        for order in (np.arange(9), draws.permutation(9)):
            assert average_precision(score[order], hit[order], 10) == pytest.approx(expected)


def test_an_iou_of_exactly_a_half_is_a_hit() -> None:
    target = torch.tensor([[[1, 1, 0, 0]]])
    for found, expected in (([0, 1, 0, 0], 1.0), ([0, 1, 1, 0], 0.0)):  # IoU 1/2 and 1/3
        logits = 5.0 * torch.nn.functional.one_hot(torch.tensor([[found]]), 2).movedim(-1, 1)
        assert measured(logits, target)["per_class"]["ap50"][1] == expected


def test_a_class_that_is_absent_or_never_found() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[0, :2] = 1
    logits = torch.zeros(2, 4, 4, 4)
    logits[:, 0] = 1
    logits[1, 3, 0] = 2  # class 3 is found where nothing is true
    scores = measured(logits, target)
    assert scores["per_class"]["ap50"][1:] == [0, None, None]
    assert scores["per_class"]["ce"][2:] == [None, None]
    assert scores["map50"] == scores["per_class"]["ap50"][0] / 2


def test_a_sure_and_perfect_prediction_has_map50_one() -> None:
    _, target = blobs(0)
    logits = 9.0 * torch.nn.functional.one_hot(target.where(target != 255, 0), 4).movedim(-1, 1)
    assert measured(logits, target)["map50"] == 1


# Cases -----------------------------------------------------------------------------------------------------


def test_dice_by_case_is_that_of_loops_over_cases_and_classes() -> None:
    logits, target = blobs(5)
    target[target == 3] = 0  # no case has class 3, though it is predicted
    target[4:8][target[4:8] == 2] = 0  # case b has no class 2
    names = tuple(f"{'abc'[n // 4]}/slice-{n:03d}" for n in range(12))
    prediction = logits.argmax(1)
    expected: list[float | None] = []
    for k in range(4):
        of_class = []
        for case in range(3):
            here = slice(4 * case, 4 * case + 4)
            valid = target[here] != 255
            true, found = (target[here] == k) & valid, (prediction[here] == k) & valid
            if true.any():
                of_class.append(2 * float((true & found).sum()) / float(true.sum() + found.sum()))
        expected.append(float(np.mean(of_class)) if of_class else None)
        assert len(of_class) == [3, 3, 2, 0][k]
    for parts, order in ((1, torch.arange(12)), (5, torch.randperm(12, generator=torch.Generator().manual_seed(0)))):
        scores = measured(logits[order], target[order], tuple(names[n] for n in order), parts)
        assert scores["per_class"]["dice_case"] == pytest.approx(expected)
        assert scores["dice_case_fg"] == pytest.approx(np.mean([v for v in expected[1:] if v is not None]))
    other = measured(logits, target, names, background=1)
    assert other["dice_case_fg"] == pytest.approx((expected[0] + expected[2]) / 2)  # type: ignore[operator]


def test_without_cases_there_is_no_dice_by_case() -> None:
    logits, target = blobs(1)
    for names in ((), tuple(f"{n}" for n in range(12)), (*("a/1" for _ in range(11)), "b")):
        scores = measured(logits, target, names)
        assert scores["dice_case_fg"] is None
        assert scores["per_class"]["dice_case"] == [None] * 4


def test_one_case_of_all_images_has_the_dice_of_the_split() -> None:
    logits, target = blobs(2)
    scores = measured(logits, target, tuple(f"one/{n}" for n in range(12)))
    assert scores["per_class"]["dice_case"] == pytest.approx(scores["per_class"]["dice"])


def test_cross_entropy_by_class_joins_to_the_whole() -> None:
    logits, target = blobs(3)
    scores = measured(logits, target)
    pixels = np.bincount(target[target != 255].numpy(), minlength=4)
    assert np.average(scores["per_class"]["ce"], weights=pixels) == pytest.approx(scores["ce"])


def test_an_empty_split_has_no_scores() -> None:
    scores = SplitMetrics(2).scores()
    assert {scores.pop(key) is None for key in list(scores) if key != "per_class"} == {True}
    assert scores == {"per_class": {key: [None, None] for key in ("iou", "dice", "ce", "ap50", "dice_case")}}
