import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from onenet_bench import recipe
from onenet_bench.errors import RecipeError
from onenet_bench.recipe import Recipe
from onenet_bench.training import augment, fit
from tests.training.test_loop import Pictures, Spy, squares, tiny

CPU = torch.device("cpu")
ALL = "+".join(augment.AUGMENTATIONS)


def pictures(number: int = 24, size: int = 12) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) in [0, 1] whose first channel is the mask (N, H, W), 0 to 3, over 4."""
    draws = torch.Generator().manual_seed(0)
    masks = torch.randint(4, (number, size, size), generator=draws, dtype=torch.uint8)
    images = torch.rand(number, 3, size, size, generator=draws)
    images[:, 0] = masks / 4
    return images, masks


def drawn(names: str, number: int = 24, seed: int = 0, epoch: int = 0) -> augment.Drawn:
    order = Generator().manual_seed(seed)
    return augment.draw(Recipe(augmentation=names).augmentations, number, order, seed, epoch, CPU)


def changed(names: str, images: Tensor, masks: Tensor, seed: int = 0, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    return augment.apply(
        drawn(names, len(images), seed), torch.arange(len(images)), images, masks, ignore_index
    )  # fmt: skip


def test_there_is_a_row_for_every_word_of_a_recipe() -> None:
    assert list(augment.AUGMENTATIONS) == list(recipe.AUGMENTATIONS)


@pytest.mark.parametrize("names", ["none+flips", "blur", "flips+flips", "", "flips+"])
def test_an_augmentation_that_is_none_raises(names: str) -> None:
    with pytest.raises(RecipeError, match=r"'none' or different names joined by '\+', but got .* known: flips"):
        Recipe(augmentation=names)


def test_none_changes_nothing() -> None:
    images, masks = pictures()
    same = changed("none", images, masks)
    assert same[0] is images
    assert same[1] is masks


@pytest.mark.parametrize(
    ("names", "ways"),
    [
        ("flips", [lambda x: x, np.fliplr, np.flipud, lambda x: np.flipud(np.fliplr(x))]),
        ("rotations", [lambda x, n=n: np.rot90(x, n) for n in range(4)]),
    ],
)
def test_flips_and_rotations_move_whole_pixels_of_image_and_mask_alike(names: str, ways: list) -> None:  # type: ignore[type-arg]
    images, masks = pictures()
    x, y = changed(names, images, masks)
    assert torch.equal(x[:, 0], y / 4)
    taken = []
    for before, after in zip(masks.numpy(), y.numpy(), strict=True):
        (way,) = [n for n, way in enumerate(ways) if np.array_equal(way(before), after)]
        taken.append(way)
    assert set(taken) == {0, 1, 2, 3}
    for n, way in enumerate(taken):
        for channel in range(3):
            assert np.array_equal(ways[way](images[n, channel].numpy()), x[n, channel].numpy())


def zoomed(image: NDArray[np.float32], mask: NDArray[np.uint8], side: float, place: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:  # fmt: skip # noqa: E501
    """A window of the image, ``side`` times its size and centred at ``place`` (x, y) in [-1, 1], pixel by pixel."""
    size = len(mask)
    grey, label = np.zeros((size, size)), np.full((size, size), 255)
    for i, j in np.ndindex(size, size):
        y, x = (((2 * at + 1) / size - 1) * side + place[axis] + 1 for at, axis in ((i, 1), (j, 0)))
        y, x = y * size / 2 - 0.5, x * size / 2 - 0.5  # in pixels, 0 at the first pixel's centre
        if -0.5 <= y <= size - 0.5 and -0.5 <= x <= size - 0.5:
            label[i, j] = mask[round(y), round(x)]
        y, x = np.clip(y, 0, size - 1), np.clip(x, 0, size - 1)
        top, left = min(int(y), size - 2), min(int(x), size - 2)
        for down, right in np.ndindex(2, 2):
            share = (1 - abs(y - top - down)) * (1 - abs(x - left - right))
            grey[i, j] += share * image[top + down, left + right]
    return grey, label


def test_scale_is_a_window_of_image_and_mask_read_pixel_by_pixel() -> None:
    images, masks = pictures()
    ((_, numbers),) = drawn("scale")
    x, y = changed("scale", images, masks)
    sides = []
    for n in range(len(images)):
        side = 1.5 ** -float(numbers[0, n])
        place = ((1 - side) * float(numbers[1, n]), (1 - side) * float(numbers[2, n]))
        grey, label = zoomed(images[n, 1].numpy(), masks[n].numpy(), side, place)
        np.testing.assert_allclose(x[n, 1].numpy(), grey, atol=1e-4)
        assert np.array_equal(y[n].long().numpy(), label)
        if side > 1.15:
            assert (label == 255).any()
        if side < 1:
            assert (label != 255).all()
            assert abs(place[0]) + side <= 1 + 1e-6
        sides.append(side)
    assert 2 / 3 <= min(sides) < 0.8
    assert 1.25 < max(sides) <= 1.5


@pytest.mark.parametrize("ignore_index", [255, -100, 1])
def test_what_lies_outside_has_the_index_that_is_ignored(ignore_index: int) -> None:
    images, masks = pictures()
    _, y = changed("scale", images, masks)
    _, other = changed("scale", images, masks, ignore_index=ignore_index)
    assert torch.equal(other.long(), y.long().where(y != 255, ignore_index))


def test_scale_by_one_is_the_image() -> None:
    images, masks = pictures(2)
    x, y = augment.AUGMENTATIONS["scale"].apply(images, masks, torch.zeros(3, 2), 255)
    torch.testing.assert_close(x, images)
    assert torch.equal(y, masks.float())


def test_intensity_changes_contrast_and_brightness_of_the_image_alone() -> None:
    images, masks = pictures()
    ((_, numbers),) = drawn("intensity")
    x, y = changed("intensity", images, masks)
    assert torch.equal(y, masks)
    for n, image in enumerate(images.double().numpy()):
        contrast, brightness = math.sqrt(2) ** float(numbers[0, n]), 0.15 * float(numbers[1, n])
        expected = np.clip((image - image.mean()) * contrast + image.mean() + brightness, 0, 1)
        np.testing.assert_allclose(x[n].numpy(), expected, atol=1e-5)
    assert 0.7 < math.sqrt(2) ** float(numbers[0].min()) < 0.8
    assert 1.3 < math.sqrt(2) ** float(numbers[0].max()) < 1.42


def test_all_together_are_one_after_the_other() -> None:
    images, masks = pictures()
    x, y = changed(ALL, images, masks, seed=3)
    step: tuple[Tensor, Tensor] = (images, masks)
    for name in augment.AUGMENTATIONS:
        step = changed(name, *step, seed=3)
    assert torch.equal(x, step[0])
    assert torch.equal(y, step[1])


def test_equal_seeds_and_passes_draw_alike_and_others_do_not() -> None:
    def numbers(**which: int) -> list[Tensor]:
        return [numbers for _, numbers in drawn(ALL, **which)]

    assert all(map(torch.equal, numbers(seed=1, epoch=2), numbers(seed=1, epoch=2)))
    for name, first, other in zip(augment.AUGMENTATIONS, numbers(seed=1), numbers(seed=2), strict=True):
        assert not torch.equal(first, other), name
    later = zip(augment.AUGMENTATIONS, numbers(epoch=0), numbers(epoch=1), strict=True)
    assert [name for name, first, other in later if torch.equal(first, other)] == ["flips"]  # go on in their stream
    assert len(drawn("none", seed=-1)) == 0  # any seed will do


def shown(augmentation: str, batch: int, epochs: int = 2) -> list[Tensor]:
    data = squares(12, seed=0)
    data.images[:, 0] = np.arange(12)[:, None, None]
    net = Spy(tiny())
    fit(net, data, data, Recipe(epochs=epochs, batch=batch, augmentation=augmentation), classes=3)
    return [image for batch in net.shown for image in batch]


def test_the_order_and_the_batches_have_no_part_in_it() -> None:
    plain, flipped, small = shown("none", 12), shown("flips+rotations", 12), shown("flips+rotations", 4)
    assert [float(image[0, 0, 0]) for image in plain] == [float(image[0, 0, 0]) for image in flipped]
    assert all(map(torch.equal, flipped, small))
    assert not all(map(torch.equal, flipped, plain))
    assert all(image.min() >= 0 and image.max() <= 1 for image in shown(ALL, 12))


def test_a_net_learns_the_squares_under_every_augmentation() -> None:
    long = Recipe(epochs=30, batch=8, learning_rate=3e-2, augmentation=ALL)
    trained = fit(tiny(), squares(16, seed=0), squares(8, seed=1), long, classes=3)
    assert trained.scores["miou"] > 0.75


def test_rotations_of_images_that_are_not_square_raise_at_the_start() -> None:
    wide = Pictures(np.zeros((2, 3, 4, 8), np.uint8), np.zeros((2, 4, 8), np.uint8))
    net = Spy(tiny())
    with pytest.raises(RecipeError, match="rotations need square images, but they are 4 x 8; leave"):
        fit(net, wide, wide, Recipe(epochs=1, augmentation="rotations"), classes=3)
    assert not net.shown
    assert fit(net, wide, wide, Recipe(epochs=1, augmentation="flips+scale"), classes=3).history
