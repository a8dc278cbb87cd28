"""The training loop, top to bottom.

A net takes (B, C, H, W) float32 in [0, 1] and gives logits (B, K, H', W'). Where H' is not H, as in the
paper (512 in, 256 out), loss and scores are taken at the *output's* size: the masks are brought to
(H', W') by nearest neighbour (pixel ⌊i·H/H'⌋), so no label is ever invented. Scores of nets with different
output sizes are therefore counted on different pixels.

Shapes: N images of a split, B of a batch, C input channels, K classes, H and W input pixels.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from onenet_bench.errors import DataError, RecipeError
from onenet_bench.recipe import Recipe, check_heads
from onenet_bench.training import augment
from onenet_bench.training.checkpoints import Checkpointing, State, restore_state, save_state
from onenet_bench.training.feed import Feed, tensor_of
from onenet_bench.training.losses import class_weights, weighted_cross_entropy
from onenet_bench.training.metrics import SplitMetrics, SplitScores

TOGETHER = 1 << 16
"""Pixels that are evaluated together where a batch has fewer …"""

BATCHES = 3
"""… of so many batches at most, which take less memory than a training step of one."""


class Samples(Protocol):
    """The images and masks of one split; a read-only memory map will do."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """(N, C, H, W) uint8."""

    @property
    def masks(self) -> NDArray[np.uint8]:
        """(N, H, W) uint8: class indices, or the index that is ignored."""

    @property
    def names(self) -> tuple[str, ...]:
        """N of them; ``CASE/…`` where images are slices of a case, such as a patient volume."""


class DivergedError(RuntimeError):
    """The loss became infinite or not a number; the message names the step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One pass over the training images, and the validation after it.

    ``epoch`` counts from 1, ``step`` is the number of optimiser steps so far, ``loss`` the mean of the
    pass's batch losses in nats, that of the other heads included, ``scores`` those of the validation split
    (see ``metrics``), ``seconds`` the time since training began, interruptions left out.
    """

    epoch: int
    step: int
    loss: float
    scores: SplitScores
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """How a training went.

    ``scores`` are the validation scores of the net's weights, which are those of epoch ``kept``. ``stopped``
    says that ``on_epoch`` ended the training before its length; the recipe's patience does not count as that.
    ``seconds`` covers all of it.
    """

    scores: SplitScores
    kept: int
    history: tuple[Progress, ...]
    stopped: bool
    seconds: float


def _constant(step: int, steps: int, epoch: int) -> float:
    return 1.0


def _cosine(step: int, steps: int, epoch: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def _onecycle(step: int, steps: int, epoch: int) -> float:
    """From 1/25 up to 1 at 30 % of the steps, then down to 1/250000, along half cosines (as torch's)."""
    start, peak, end = 1 / 25, 1.0, 1 / 250_000
    turn, last = 0.3 * steps - 1, steps - 1
    if step <= turn:
        return start + (peak - start) * (1 - math.cos(math.pi * step / turn)) / 2
    return peak + (end - peak) * (1 - math.cos(math.pi * (step - turn) / (last - turn))) / 2


def _paper(step: int, steps: int, epoch: int) -> float:
    """ "×0.1 every 20 epochs from epoch 50", read as: epochs 0–49 1, 50–69 0.1, 70–89 0.01, and so on."""
    return 1.0 if epoch < 50 else 0.1 ** (1 + (epoch - 50) // 20)


FACTORS: dict[str, Callable[[int, int, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "onecycle": _onecycle,
    "paper": _paper,
}
"""Schedule → what the learning rate is multiplied by, given (step, steps in all, epoch), counted from 0."""

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def fit(
    net: nn.Module,
    train: Samples,
    validation: Samples,
    recipe: Recipe,
    *,
    classes: int,
    background: int = 0,
    ignore_index: int = 255,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[Progress], bool | None] | None = None,
    checkpoints: Checkpointing | None = None,
    mark: Callable[[str], None] = lambda part: None,
    compiled: bool = False,
) -> Trained:
    """Train ``net`` in place by ``recipe``, and leave it in evaluation mode on ``device``.

    ``feed`` says where the training split lies, N·(C+1)·H·W bytes. Every pass sees the images in a new
    order; a last batch of a single image is left out, for a batch norm has nothing to learn from it, unless
    it is the only one. ``augment`` says what is done to the images. Validation follows every pass, and the
    last step of ``recipe.steps``. It runs in float32 whatever the precision of the training, and after it
    ``on_epoch`` is called, which ends the training by returning False.

    With ``checkpoints`` the training goes on from the state that it finds, if any, and writes its own, after
    ``on_epoch``. Of the passes that the state holds, which the history has, ``on_epoch`` is called again for the last
    alone: whether to go on after it may be another answer now.

    With ``compiled`` the steps, not the validation, go through ``torch.compile``, which takes a minute first.

    ``mark`` is told the names of a step's parts as each of them ends, and ``pass`` where a pass begins.

    Order and augmentation come from ``recipe.seed`` through generators of their own, so torch's global one is
    left alone; a net whose layers draw at random draws from that, and its state is restored with the rest. On
    the CPU the same net, data, recipe and thread count give the same weights to the bit, however often
    training was interrupted.

    Raises DataError where images or masks cannot be used, RecipeError where the recipe does not fit net or
    images, or the state is another training's, and DivergedError, at the end of the pass, with the first
    step whose loss was not finite.
    """
    began = time.perf_counter()
    device = torch.device(device)
    _check("training", train, classes, ignore_index)
    _check("validation", validation, classes, ignore_index)

    feed = Feed(train.images, train.masks, device)
    number, size = len(train.images), train.masks.shape[1:]
    if "rotations" in recipe.augmentations and size[0] != size[1]:
        raise RecipeError(f"rotations need square images, but they are {size[0]} x {size[1]}; leave rotations out")
    full, rest = divmod(number, recipe.batch)
    batches = max(1, full + (rest >= 2))
    steps = recipe.steps or recipe.epochs * batches

    net.to(device)
    logits_of = _heads(net, recipe)
    if compiled:
        logits_of = torch.compile(logits_of)
    weights = class_weights(classes, background, recipe.background_weight).to(device)  # (K,)
    optimiser = OPTIMISERS[recipe.optimiser](
        net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    factor = FACTORS[recipe.schedule]
    draws = torch.Generator().manual_seed(recipe.seed)

    history: list[Progress] = []
    step = 0
    best: dict[str, Tensor] = {}  # weights, where recipe.keep asks for the best

    state = State(net=net, optimiser=optimiser, draws=draws, asked={
        "recipe": recipe.to_dict(), "images": [*train.images.shape], "validation": [*validation.images.shape],
        "classes": classes, "background": background, "ignore_index": ignore_index,
        **(checkpoints.asked if checkpoints else {}),
    })  # fmt: skip
    if checkpoints and checkpoints.path.exists():
        state = restore_state(state, checkpoints.path)
        history = [Progress(**progress) for progress in state.facts["history"]]
        step = state.facts["step"]
        best = state.best
        began -= state.facts["seconds"]
    elif checkpoints and not checkpoints.seconds:
        save_state(replace(state, facts=_facts(history, step, began)), checkpoints.path)

    written = time.perf_counter() if checkpoints else 0.0
    going_on = not history or on_epoch is None or on_epoch(history[-1]) is not False
    while going_on and step < steps and not _exhausted(history, recipe):
        epoch = len(history)
        losses: list[Tensor] = []
        mark("pass")
        net.train()
        order = torch.randperm(number, generator=draws)  # (N,)
        changes = augment.draw(recipe.augmentations, number, draws, recipe.seed, epoch, device)
        for chosen, images, masks in islice(feed.batches(order, recipe.batch), min(batches, steps - step)):
            x, target = augment.apply(changes, chosen, _unit(images), masks, ignore_index)  # (B, C, H, W), (B, H, W)
            mark("data")
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                heads = logits_of(x)  # (B, K, H', W') each, the net's own last
            *others, loss = [
                weighted_cross_entropy(logits.float(), _at_size(target, logits).long(), weights, ignore_index)
                for logits in heads
            ]
            if others:
                loss = loss + recipe.deep_supervision * torch.stack(others).mean()
            mark("forward")

            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * factor(step, steps, epoch)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            mark("backward")
            optimiser.step()
            mark("optimiser")
            losses.append(loss.detach())
            step += 1

        values: list[float] = torch.stack(losses).tolist()  # waits for the device, once a pass
        for at, value in enumerate(values, start=step - len(values) + 1):
            _check_finite(value, f"at step {at} of {steps}", recipe)

        scores = evaluate_split(
            net,
            validation,
            classes=classes,
            background=background,
            ignore_index=ignore_index,
            batch=recipe.batch,
            device=device,
        )
        _check_finite(scores["ce"] or 0.0, f"on the validation images after step {step} of {steps}", recipe)
        progress = Progress(
            epoch=epoch + 1,
            step=step,
            loss=fmean(values),
            scores=scores,
            seconds=time.perf_counter() - began,
        )
        history.append(progress)
        if recipe.keep == "best" and _best(history) == epoch:
            best = {name: value.detach().clone() for name, value in net.state_dict().items()}
        going_on = on_epoch is None or on_epoch(progress) is not False
        last = step == steps or _exhausted(history, recipe) or not going_on
        is_due = checkpoints and (last or (epoch + 1) % checkpoints.every == 0)
        if checkpoints and is_due and (not going_on or time.perf_counter() - written >= checkpoints.seconds):
            facts = _facts(history, step, began)
            save_state(replace(state, best=best, facts=facts), checkpoints.path)
            written = time.perf_counter()

    kept = _best(history) if recipe.keep == "best" else len(history) - 1
    if best:
        net.load_state_dict(best)
    net.eval()
    return Trained(
        scores=history[kept].scores,
        kept=kept + 1,
        history=tuple(history),
        stopped=step < steps and not _exhausted(history, recipe),
        seconds=time.perf_counter() - began,
    )


def _heads(net: nn.Module, recipe: Recipe) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What the loss is taken of, given images: the logits of all heads under deep supervision, else the net's own."""
    if not recipe.deep_supervision:
        return lambda images: (net(images),)
    check_heads(len(getattr(net, "heads", ())))
    all_heads: Callable[[Tensor], tuple[Tensor, ...]] = net.all_heads  # type: ignore[assignment]
    return all_heads


def _facts(history: list[Progress], step: int, began: float) -> dict[str, Any]:
    """What a state says beside its tensors."""
    return {
        "history": [asdict(progress) for progress in history],
        "step": step,
        "seconds": time.perf_counter() - began,
    }


def _best(history: list[Progress]) -> int:
    """The first index of the highest validation mIoU."""
    return max(range(len(history)), key=lambda index: history[index].scores["miou"] or 0.0)


def _exhausted(history: list[Progress], recipe: Recipe) -> bool:
    """Whether the recipe's patience is at its end."""
    return bool(history) and 0 < recipe.patience < len(history) - _best(history)


def evaluate_split(
    net: nn.Module,
    samples: Samples,
    *,
    classes: int,
    background: int = 0,
    ignore_index: int = 255,
    batch: int = 16,
    device: str | torch.device = "cpu",
    background_weight: float = 0.25,
) -> SplitScores:
    """All scores of ``metrics`` over a split, at the size of the logits, in float32 and evaluation mode.

    Images are taken ``batch`` at a time, small ones up to three times as many (``TOGETHER``).
    ``background_weight`` is the one inside ``ce_weighted``. It is a quarter whatever the training used, so that
    scores of different recipes can be compared. Raises DataError for a mask value that is no class.
    """
    metrics = SplitMetrics(classes, ignore_index)
    batch = max(batch, min(BATCHES * batch, TOGETHER // math.prod(samples.images.shape[2:])))
    was_training = net.training
    net.to(device).eval()
    with torch.inference_mode():
        for start in range(0, len(samples.images), batch):
            x = tensor_of(samples.images[start : start + batch]).to(device)  # (B, C, H, W) uint8
            target = tensor_of(samples.masks[start : start + batch]).to(device)  # (B, H, W) uint8
            logits = net(_unit(x)).float()  # (B, K, H', W')
            metrics.update(logits, _at_size(target, logits))
    net.train(was_training)
    return metrics.scores(background, background_weight, samples.names)


def predict(
    net: nn.Module, images: NDArray[np.uint8], device: str | torch.device = "cpu", *, batch: int = 16
) -> NDArray[np.uint8]:
    """The class of every output pixel: (N, C, H, W) uint8 → (N, H', W') uint8, in evaluation mode."""
    was_training = net.training
    net.to(device).eval()
    with torch.inference_mode():
        classes = [
            net(_unit(tensor_of(images[start : start + batch]).to(device))).max(dim=1).indices  # (B, H', W')
            for start in range(0, len(images), batch)
        ]
    net.train(was_training)
    return torch.cat(classes).to("cpu", torch.uint8).numpy()


def _check(split: str, samples: Samples, classes: int, ignore_index: int) -> None:
    """The images and masks of a split fit each other and the classes, or a DataError says how not."""
    images, masks = samples.images, samples.masks
    if images.ndim != 4 or not len(images) or masks.shape != (len(images), *images.shape[2:]):
        raise DataError(
            f"a split holds images (N, C, H, W) and masks (N, H, W), N at least 1, but the {split} split has "
            f"{images.shape} and {masks.shape}; resize or drop what does not fit"
        )
    if images.dtype != np.uint8 or masks.dtype != np.uint8:
        raise DataError(
            f"images and masks are uint8, but the {split} split has {images.dtype} and {masks.dtype}; "
            "scale images to 0–255 and store class indices"
        )
    present = np.zeros(256, dtype=np.int64)
    for mask in masks:  # one at a time: a memory map may be larger than the memory
        present += np.bincount(mask.ravel(), minlength=256)
    strange = [int(value) for value in present.nonzero()[0] if value >= classes and value != ignore_index]
    if strange:
        raise DataError(
            f"a mask holds the classes 0 to {classes - 1} or ignore_index={ignore_index}, "
            f"but the {split} split has {strange[0]}; map that value to a class, or ignore it"
        )


def _check_finite(loss: float, where: str, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"a loss is finite, but it was {loss} {where}; lower the learning rate {recipe.learning_rate:g}"
        )


def _unit(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 → float32 in [0, 1]."""
    return images.float().div_(255)


def _at_size(masks: Tensor, logits: Tensor) -> Tensor:
    """The masks (B, H, W) at the size of the logits (B, K, H', W') → (B, H', W'), by nearest neighbour."""
    size = logits.shape[-2:]
    return masks if masks.shape[-2:] == size else F.interpolate(masks[:, None], size, mode="nearest")[:, 0]
