import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onenet_bench.training import class_weights, weighted_cross_entropy


def batch(seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, classes, 5, 6) and a target (3, 5, 6) in which about a fifth is ignored."""
    draws = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, classes, 5, 6, generator=draws)
    target = torch.randint(classes, (3, 5, 6), generator=draws)
    target[torch.rand(target.shape, generator=draws) < 0.2] = 255
    return logits, target


def test_class_weights_lower_the_background_only() -> None:
    assert class_weights(4, 2, 0.25).tolist() == [1.0, 1.0, 0.25, 1.0]


def test_the_loss_is_the_weighted_mean_over_valid_pixels() -> None:
    logits, target = batch(0)
    weights = [0.25, 1.0, 1.0, 1.0]
    above = below = 0.0
    for b, i, j in np.ndindex(3, 5, 6):
        true = int(target[b, i, j])
        if true != 255:
            scores = logits[b, :, i, j].double().numpy()
            above += weights[true] * (np.log(np.exp(scores).sum()) - scores[true])
            below += weights[true]
    loss = weighted_cross_entropy(logits, target, class_weights(4, 0, 0.25), 255)
    assert loss.item() == pytest.approx(above / below, rel=1e-6)


def test_loss_and_gradient_are_those_of_torch() -> None:
    logits, target = batch(1)
    weights = class_weights(4, 1, 0.125)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = weighted_cross_entropy(ours, target, weights, 255)
    expected = F.cross_entropy(theirs, target, weights, ignore_index=255)
    torch.autograd.backward([loss, expected])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_ignored_pixels_have_no_gradient_whatever_their_logits() -> None:
    logits, target = batch(2)
    ours = logits.requires_grad_()
    torch.autograd.backward(weighted_cross_entropy(ours, target, class_weights(4, 0, 0.25), 255))
    assert ours.grad is not None
    moved = ours.grad.abs().sum(1) > 0  # (B, H, W)
    assert torch.equal(moved, target != 255)


def test_a_batch_of_ignored_pixels_has_loss_and_gradient_zero() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    loss = weighted_cross_entropy(logits, torch.full((2, 4, 4), 255), class_weights(3, 0, 0.25), 255)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_an_ignore_index_that_is_also_a_class_is_ignored() -> None:
    logits, target = batch(4)
    target[target == 255] = 0
    weights = class_weights(4, 0, 0.25)
    expected = F.cross_entropy(logits, target, weights, ignore_index=0)
    torch.testing.assert_close(weighted_cross_entropy(logits, target, weights, 0), expected)
