"""Using a net: what it predicts for files of any kind and size, and what it scores."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from onenet_bench import cli, data, inference, models, training
from onenet_bench.data import tiny
from onenet_bench.errors import DataError, OnenetBenchError, SpecError
from onenet_bench.inference import Failure, Prediction, Reading
from onenet_bench.palette import palette
from onenet_bench.recipe import Recipe
from onenet_bench.record import Machine
from onenet_bench.spec import NetSpec, StageSpec, StemSpec
from onenet_bench.task import Task

Bytes = NDArray[np.uint8]

SIZES = [(1, 1), (1, 40), (5, 3), (16, 16), (17, 31), (50, 23), (64, 64)]
SIDE = 16


def threshold(channels: int = 1) -> models.UNet:
    """Logits (½ − x)⁺ and (x − ½)⁺ of a pixel's mean x: class 1 is what is brighter than 127.5."""
    spec = NetSpec(
        classes=2, in_channels=channels, normalise=False, stem=StemSpec(channels=2, repeat=1),
        encoder=(StageSpec(channels=4, repeat=1),), decoder=(StageSpec(channels=2, repeat=1),),
    )  # fmt: skip
    net = models.build(spec).eval()
    state = {name: value if ".norm." in name else torch.zeros_like(value) for name, value in net.state_dict().items()}
    state["stem.0.conv.weight"][0], state["stem.0.conv.weight"][1] = 1 / channels, -1 / channels
    state["stem.0.conv.bias"].copy_(torch.tensor([-0.5, 0.5]))
    state["decoder.1.channel_1.conv.weight"][[0, 1], [2, 3]] = 1  # past the encoder, through the skip
    state["decoder.1.head.weight"][[0, 1], [1, 0]] = 1
    net.load_state_dict(state)
    return net


def drawn(kind: str = "conv2d", *, classes: int = 3, channels: int = 1, stride: int = 1, seed: int = 0) -> models.UNet:
    """A net of random weights; of kind ``onenet1d`` it sees nothing beyond its 4 x 4 blocks."""
    torch.manual_seed(seed)
    spec = NetSpec(
        classes=classes, in_channels=channels, stem=StemSpec(kind=kind, channels=4, repeat=1), output_stride=stride,
        encoder=(StageSpec(kind=kind, channels=6, repeat=1), StageSpec(kind=kind, channels=8, repeat=1)),
        decoder=(StageSpec(kind=kind, channels=6, repeat=1), StageSpec(kind=kind, channels=4, repeat=1))[: 3 - stride],
    )  # fmt: skip
    return models.build(spec).eval()


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(folder: Path, net: models.UNet, task: Task | None = None, **about: Any) -> inference.Checkpoint:
    """A checkpoint as training leaves it, opened again."""
    if task is None:
        names = ("background", "bright", "third")[: net.spec.classes]
        task = Task(**{"data": "folder:none", "content": "", "class_names": names, "in_channels": net.spec.in_channels,
                       "resolution": SIDE, "train": 1, "validation": 1, "test": 1, **about})  # fmt: skip
    facts = {"task": task.to_dict(), "recipe": Recipe(batch=4).to_dict(), "machine": asdict(Machine.here())}
    models.save_checkpoint(net, folder / "net.safetensors", facts)
    return inference.open_checkpoint(folder / "net.safetensors")


def run(checkpoint: inference.Checkpoint, sources: list[Path], out: Path, **reading: Any) -> list[Prediction | Failure]:
    planned = inference.jobs(sources, out)
    return list(inference.predict(checkpoint, planned, Reading(**reading)))


def draft_free(folder: Path) -> bool:
    """No half-written file lies anywhere in ``folder``."""
    return not [path for path in folder.rglob("*") if path.name.startswith(".")]


# -- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_tiles_find_every_bright_pixel_of_any_size(size: tuple[int, int]) -> None:
    image = noise(*size, 1)
    mask = inference.segment(threshold(), image, side=SIDE, tile=True)
    np.testing.assert_array_equal(mask, image[..., 0] > 127)


@pytest.mark.parametrize("size", SIZES)
def test_a_stretched_image_is_seen_as_in_training_and_interpolated_back(size: tuple[int, int]) -> None:
    """The logits' difference is linear in the pixel: what Pillow makes of the square image tells the mask."""
    image = noise(*size, 1)
    mask = inference.segment(threshold(), image, side=SIDE)
    assert mask.shape == size
    if min(size) < SIDE:
        return  # where it shrinks back, Pillow averages
    square = np.asarray(Image.fromarray(image[..., 0]).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    back = np.asarray(Image.fromarray(square.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR))
    sure = abs(back - 127.5) > 0.01
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(mask[sure], (back > 127.5)[sure])


@pytest.mark.parametrize("stride", [1, 2])
def test_at_the_nets_own_size_the_mask_is_the_training_loops(stride: int) -> None:
    net, image = drawn(stride=stride), noise(32, 32, 1)
    stretched, tiled = (inference.segment(net, image, side=32, tile=tile) for tile in (False, True))
    np.testing.assert_array_equal(stretched, tiled)
    if stride == 1:
        np.testing.assert_array_equal(stretched, training.predict(net, image.transpose(2, 0, 1)[None])[0])
    assert len(np.unique(stretched)) > 1


def whole(net: models.UNet, image: Bytes) -> torch.Tensor:
    """The logits (K, H, W) of the image in one piece."""
    with torch.inference_mode():
        logits = net(torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255)))
        size = image.shape[:2]
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("size", [(16, 16), (20, 64), (52, 36), (100, 24)])
def test_tiles_of_a_net_that_sees_blocks_are_the_whole_image(size: tuple[int, int]) -> None:
    net, image = drawn("onenet1d", channels=2), noise(*size, 2)
    tiled = torch.cat(list(inference.tiled_logits(net, image, side=SIDE)), dim=1)
    torch.testing.assert_close(tiled, whole(net, image))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(48, 32), (40, 61), (19, 37), (3, 90)])
def test_logits_are_the_windowed_mean_in_any_order_of_tiles(size: tuple[int, int], stride: int) -> None:
    """Mirrored by index, every tile by itself, in a random order, in float64."""
    net, image = drawn(stride=stride, seed=1), noise(*size, 1, seed=1)
    grown = [max(SIDE, -(-n // 4) * 4) for n in size]
    mirrored = [np.arange(g) % (2 * n - 2) for g, n in zip(grown, size, strict=True)]
    mirrored = [np.where(index < n, index, 2 * n - 2 - index) for index, n in zip(mirrored, size, strict=True)]
    padded = image[np.ix_(*mirrored)]
    places = [[start for start, _ in inference.shares(n, SIDE, 4)] for n in grown]
    tiles = [(y, x) for y in places[0] for x in places[1]]
    window = np.sin(np.pi * (np.arange(SIDE) + 0.5) / SIDE) ** 2
    above, below = np.zeros((3, *grown)), np.zeros(grown)
    for turn in np.random.default_rng(0).permutation(len(tiles)):
        y, x = tiles[turn]
        there = np.s_[y : y + SIDE, x : x + SIDE]
        above[:, *there] += whole(net, padded[there]).numpy() * np.outer(window, window)
        below[there] += np.outer(window, window)
    expected = (above / below)[:, : size[0], : size[1]]
    tiled = torch.cat(list(inference.tiled_logits(net, image, side=SIDE)), dim=1)
    np.testing.assert_allclose(tiled, expected, rtol=0, atol=1e-5)


@given(scale=st.integers(1, 8), side=st.integers(2, 12), more=st.integers(0, 60))
def test_shares_cover_every_pixel_once(scale: int, side: int, more: int) -> None:
    length, side = scale * (side + more), scale * side
    tiles = inference.shares(length, side, scale)
    starts = [start for start, _ in tiles]
    total = np.zeros(length)
    for start, share in tiles:
        assert start % scale == 0
        assert share.shape == (side,)
        total[start : start + side] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (starts[0], starts[-1]) == (0, length - side)
    assert all(0 < b - a <= max(scale, side / 2) for a, b in pairwise(starts))


def test_no_seam_shows() -> None:
    """On an even image, where tiles side by side jump at their edges, blended ones change smoothly."""
    net, image = drawn(seed=2), np.full((192, 192, 1), 180, np.uint8)
    blended = torch.cat(list(inference.tiled_logits(net, image, side=64)), dim=1)
    abutted = whole(net, image[:64, :64]).repeat(1, 3, 3)
    far = slice(48, 144)  # from the image's own border, with the edges of the middle tile in it
    steps = [float(logits[:, far, far].diff(dim=dim).abs().max()) for logits in (abutted, blended) for dim in (1, 2)]
    assert max(steps[2:]) < 0.25 * min(steps[:2]), steps


# -- images ----------------------------------------------------------------------------------------------------------


def bright(values: Bytes) -> Bytes:
    return (values > 127).astype(np.uint8)


def sixteen_bit(values: Bytes) -> NDArray[np.uint16]:
    """White is 255 * 16, and some pixels are brighter than any in training."""
    return np.where(values > 240, 65535, values.astype(np.uint16) * 16).astype(np.uint16)


IMAGES: dict[str, tuple[int, Callable[[Path, Bytes], object]]] = {
    "grey.png": (1, lambda path, grey: Image.fromarray(grey).save(path)),
    "grey.tif": (1, lambda path, grey: Image.fromarray(grey).save(path, compression="tiff_lzw")),
    "colour.png": (3, lambda path, grey: Image.fromarray(grey).convert("RGB").save(path)),
    "colour.jpg": (3, lambda path, grey: Image.fromarray(bright(grey) * 255).convert("RGB").save(path, quality=100)),
    "grey for a colour net.png": (3, lambda path, grey: Image.fromarray(grey).save(path)),
    "colour for a grey net.png": (1, lambda path, grey: Image.fromarray(grey).convert("RGB").save(path)),
    "transparent.png": (3, lambda path, grey: Image.fromarray(grey).convert("RGBA").save(path)),
    "palette.png": (3, lambda path, grey: Image.fromarray(grey).convert("P").save(path)),
    "a jpeg.png": (1, lambda path, grey: Image.fromarray(bright(grey) * 255).save(path, format="JPEG", quality=100)),
    "four.npy": (4, lambda path, grey: np.save(path, np.repeat(grey[..., None], 4, axis=-1))),
    "sixteen.png": (1, lambda path, grey: Image.fromarray(sixteen_bit(grey)).save(path)),
    "sixteen.npy": (3, lambda path, grey: np.save(path, sixteen_bit(grey))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_is_segmented_at_its_own_size(name: str, tmp_path: Path) -> None:
    channels, write = IMAGES[name]
    grey = noise(21, 37)
    write(tmp_path / name, grey)
    checkpoint = save(tmp_path, threshold(channels))
    white = 255 * 16 if name.startswith("sixteen") else None
    (done,) = run(checkpoint, [tmp_path / name], tmp_path / "out", tile=True, white=white)
    assert isinstance(done, Prediction), done
    with Image.open(tmp_path / "out/masks" / f"{Path(name).stem}.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), bright(grey))
        assert mask.getpalette()[:6] == [*palette(2, 0)[0], *palette(2, 0)[1]]
    assert done.shape == grey.shape
    assert done.pixels == tuple(np.bincount(bright(grey).ravel()))
    assert draft_free(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_overlay_leaves_the_background_and_half_covers_the_rest(channels: int, tmp_path: Path) -> None:
    image = noise(21, 37, channels)
    np.save(tmp_path / "a.npy", image)
    run(save(tmp_path, threshold(channels)), [tmp_path / "a.npy"], tmp_path / "out", tile=True)
    seen = np.asarray(Image.open(tmp_path / "out/overlays/a.png")).astype(int)
    on = image.mean(axis=-1) > 127.5
    rgb = np.broadcast_to(image, seen.shape).astype(int)
    np.testing.assert_array_equal(seen[~on], rgb[~on])
    np.testing.assert_allclose(seen[on], (rgb[on] + palette(2, 0)[1]) / 2, atol=1)


def test_masks_are_a_folder_data_set_and_stretching_is_its_own(tmp_path: Path) -> None:
    """The predictions are written as masks beside their images; read as a data set, the net is right everywhere."""
    (tmp_path / "set/images").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(noise(SIDE, SIDE, 3, seed=i)).save(tmp_path / f"set/images/{i}.png")
    (tmp_path / "set/classes.txt").write_text("background\nbright\n")
    done = run(save(tmp_path, threshold(3)), [tmp_path / "set/images"], tmp_path / "set")
    assert [type(one) for one in done] == [Prediction] * 4
    task = data.open_task(f"folder:{tmp_path / 'set'}", resolution=SIDE)
    train = data.load(task).train
    np.testing.assert_array_equal(training.predict(threshold(3), train.images), train.masks)
    assert train.masks.any()


BAD: dict[str, tuple[int, Callable[[Path], object], str]] = {
    "truncated.png": (1, lambda path: path.write_bytes(png(noise(40, 40))[:600]), "truncated.png cannot be read"),
    "sizeless.tif": (1, lambda path: path.write_bytes(sizeless()), "sizeless.tif cannot be read .*dimensions"),
    "text.jpg": (1, lambda path: path.write_text("no image"), "text.jpg cannot be read"),
    "missing.png": (1, lambda path: None, "there is none at .*missing.png"),
    "circle.png": (1, lambda path: path.symlink_to(path), "there is none at .*circle.png"),
    "sixteen.png": (1, lambda path: Image.fromarray(noise(4, 4).astype(np.uint16)).save(path), "sixteen.png.*--white"),
    "float.tif": (1, lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path), "float.tif is of floating"),
    "colour.png": (2, lambda path: Image.fromarray(noise(4, 4, 3)).save(path), "2 channels, but .*colour.png has 3"),
    "three.npy": (1, lambda path: np.save(path, noise(4, 4, 3)), "1 channels, but .*three.npy has 3"),
    "volume.nii": (1, lambda path: volume(path, noise(4, 4, 2)), "volume.nii is a volume.*--modality"),
    "torn.nii.gz": (1, lambda path: (volume(path, noise(20, 20, 9)), path.write_bytes(path.read_bytes()[:900])),
                    "torn.nii.gz cannot be read"),
    "colour.nii.gz": (1, lambda path: volume(path, np.zeros((4, 4, 2), [(c, "u1") for c in "RGB"])),
                      "one real number a voxel, but .*colour.nii.gz holds .*'R'"),
    "complex.nii": (1, lambda path: volume(path, np.ones((4, 4, 2), np.complex64)), "complex.nii holds complex64"),
    "four.nii": (1, lambda path: volume(path, noise(4, 4, 2, 4)), "1 modalities, but .*four.nii has 4"),
}  # fmt: skip


def png(values: Bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def sizeless() -> bytes:
    """A TIFF whose list of tags points, by damage, to another, which is empty."""
    buffer = io.BytesIO()
    Image.fromarray(noise(4, 4)).save(buffer, format="TIFF")
    whole = bytearray(buffer.getvalue())
    end = 10 + 12 * int.from_bytes(whole[8:10], "little")
    whole[end : end + 4] = len(whole).to_bytes(4, "little")
    return bytes(whole) + bytes(6)


def volume(path: Path, values: NDArray[Any], affine: NDArray[np.float64] | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_the_others_are_done(name: str, tmp_path: Path) -> None:
    channels, write, sentence = BAD[name]
    write(tmp_path / name)
    good = [tmp_path / "first.npy", tmp_path / "last.npy"]
    for path in good:
        np.save(path, noise(9, 9, channels))
    modality = None if name == "volume.nii" else "mri"
    done = run(save(tmp_path, threshold(channels)), [good[0], tmp_path / name, good[1]], tmp_path / "out",
               modality=modality)  # fmt: skip
    first, failed, last = done
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert isinstance(failed, Failure)
    assert re.search(sentence, failed.reason), failed.reason
    assert "\n" not in failed.reason
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["first.png"] * 2 + ["last.png"] * 2


def test_an_image_beyond_the_memory_is_named_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, channels: int) -> NDArray[np.uint8]:
        if path.stem == "first":
            raise MemoryError
        return noise(9, 9, channels)

    monkeypatch.setattr(inference.rasters, "read_image", read)
    files = [tmp_path / "first.npy", tmp_path / "last.npy"]
    for path in files:
        np.save(path, noise(9, 9))
    failed, last = run(save(tmp_path, threshold()), files, tmp_path / "out")
    assert isinstance(failed, Failure)
    assert re.search(r"first\.npy takes more memory than there is; use one of fewer pixels", failed.reason)
    assert isinstance(last, Prediction)


def test_what_cannot_be_written_is_named_and_nothing_is_left_half(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(9, 9))
    checkpoint = save(tmp_path, threshold())
    planned = inference.jobs([tmp_path / "a.npy"], tmp_path / "out")
    (tmp_path / "out/masks/a.png").mkdir()
    (failed,) = inference.predict(checkpoint, planned, Reading())
    assert isinstance(failed, Failure)
    assert "must be writable, but" in failed.reason
    assert "out/masks/a.png" in failed.reason
    assert draft_free(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_text("earlier")

    def full(path: Path) -> None:
        path.write_text("half of i")
        raise OSError(28, "No space left on device")

    with pytest.raises(OnenetBenchError, match=r"mask.png is not: No space left"):
        inference._write(tmp_path / "mask.png", full)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


# -- volumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["msd-heart", "msd-brain", "msd-lung"])
def test_a_volume_is_seen_slice_by_slice_as_in_training(kind: str, tmp_path: Path) -> None:
    task = data.open_task(tiny.grow(kind, tmp_path), resolution=32)  # the size of the tiny slices
    net = drawn(classes=task.classes, channels=task.in_channels)
    samples = data.load(task).test
    name = samples.names[0].split("/")[0]
    source = next(tmp_path.rglob(f"imagesTr/{name}.nii.gz"))
    (done,) = run(save(tmp_path, net, task), [source], tmp_path / "out")
    assert isinstance(done, Prediction), done
    written = nibabel.load(tmp_path / f"out/masks/{name}.nii.gz")
    labels = np.asarray(written.dataobj)
    assert labels.dtype == np.uint8
    of_volume = [row for row, one in enumerate(samples.names) if one.startswith(name)]
    np.testing.assert_array_equal(labels.transpose(2, 0, 1), training.predict(net, samples.images[of_volume]))
    foreground = (labels != 0).sum(axis=(0, 1))
    assert done.z is not None
    assert foreground[done.z] == foreground.max()
    assert Image.open(tmp_path / f"out/overlays/{name}.png").size == (32, 32)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_labels_lie_on_the_grid_of_their_volume(ending: str, tmp_path: Path) -> None:
    affine = np.array([[0, -0.8, 0.1, 12], [0.7, 0, 0, -30], [0, 0.2, 2.5, 7], [0, 0, 0, 1.0]])
    values = np.zeros((21, 34, 5), np.int16)
    values[..., :] = noise(21, 34, 5)
    stored = nibabel.Nifti1Image(values, affine)
    stored.header.set_xyzt_units("mm", "sec")
    stored.header["descrip"] = b"scanner 7"
    stored.header["cal_max"] = 255
    stored.header.set_slope_inter(5.0, -1024.0)
    stored.set_sform(affine, code=4)
    stored.set_qform(None, code=0)
    nibabel.save(stored, tmp_path / f"scan{ending}")
    measured = nibabel.load(tmp_path / f"scan{ending}")
    (done,) = run(save(tmp_path, threshold()), [tmp_path / f"scan{ending}"], tmp_path / "out", modality="ct", tile=True)
    assert isinstance(done, Prediction), done
    made = nibabel.load(tmp_path / "out/masks/scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(made.dataobj), measured.get_fdata() > -300)  # the middle of CT's window
    assert 0.1 < (measured.get_fdata() > -300).mean() < 0.9
    np.testing.assert_array_equal(made.affine, measured.affine)
    old, new = measured.header, made.header
    for field in ("pixdim", "sform_code", "qform_code", "xyzt_units", "descrip", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(new[field], old[field])
    assert new.get_data_dtype() == np.uint8
    assert float(new["cal_max"]) == 0
    np.testing.assert_array_equal(made.get_fdata(), np.asarray(made.dataobj))  # no slope is applied to labels


def test_modalities_are_channels_and_labels_have_none(tmp_path: Path) -> None:
    values = noise(12, 18, 3, 2)
    volume(tmp_path / "scan.nii.gz", values)
    (done,) = run(save(tmp_path, threshold(2)), [tmp_path / "scan.nii.gz"], tmp_path / "out", modality="mri", tile=True)
    assert isinstance(done, Prediction), done
    bytes_ = []
    for modality in values.transpose(3, 0, 1, 2).astype(float):
        inside = modality[modality != 0]
        scores = ((modality - inside.mean()) / inside.std()).clip(-5, 5)
        bytes_.append(np.where(modality == 0, 0, np.rint(128 + scores * 127 / 5)))
    labels = np.asarray(nibabel.load(done.job.mask).dataobj)
    np.testing.assert_array_equal(labels, sum(bytes_) / 2 > 127.5)


def test_without_nibabel_a_volume_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume(tmp_path / "scan.nii.gz", noise(8, 8, 2))
    np.save(tmp_path / "image.npy", noise(8, 8))
    checkpoint = save(tmp_path, threshold())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    failed, done = run(checkpoint, [tmp_path / "scan.nii.gz", tmp_path / "image.npy"], tmp_path / "out", modality="ct")
    assert isinstance(failed, Failure)
    assert "pip install 'onenet-bench[medical]'" in failed.reason
    assert isinstance(done, Prediction)


# -- what is planned -------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", noise(9, 9))
    first, second = tmp_path / "a/x.npy", tmp_path / "b/x.npy"
    with pytest.raises(DataError, match=r"a/x.npy and .*b/x.npy share 'x'"):
        inference.jobs([first, second], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (job,) = inference.jobs([first, tmp_path / "b" / ".." / "a" / "x.npy"], tmp_path / "out")  # one file, said twice
    job.mask.write_text("of a")
    with pytest.raises(DataError, match=r"out/masks/x.png is there already"):
        inference.jobs([second], tmp_path / "out")
    with pytest.raises(DataError, match=r"they have overlays, but .*out/masks/x.png has none; name another"):
        inference.jobs([second], tmp_path / "out", overwrite=True)  # somebody's labels
    job.overlay.touch()
    assert inference.jobs([second], tmp_path / "out", overwrite=True) == [(second, job.mask, job.overlay)]
    with pytest.raises(DataError, match=r"masks/x.png is both"):
        inference.jobs([job.mask], tmp_path / "out", overwrite=True)
    assert job.mask.read_text() == "of a"


def test_a_folder_of_links_in_a_circle_is_none_to_write_in(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(OnenetBenchError, match=r"folder for predictions must be writable, but .*circle/out is not"):
        inference.jobs([tmp_path / "x.npy"], circle / "out")


def test_a_folder_stands_for_the_images_in_it(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.nii.gz", "._b.PNG", "notes.txt", "c.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    planned = inference.jobs([tmp_path], tmp_path / "out")
    assert [(job.source.name, job.mask.name) for job in planned] == [
        ("a.nii.gz", "a.nii.gz"), ("b.PNG", "b.png"), ("c.tiff", "c.png"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no file with one of the extensions .png.*in .*masks"):
        inference.jobs([tmp_path / "out/masks"], tmp_path / "other")


@pytest.mark.parametrize("said", [{"white": 0}, {"white": 65536}, {"modality": "pet"}])
def test_a_reading_that_cannot_be_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"white is a value of 1 to 65535|unknown modality 'pet'; known: ct, mri"):
        Reading(**said)


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored_task() -> Task:
    return data.open_task("synthetic", resolution=32, seed=5, train=8, validation=4, test=6)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_scores_are_those_of_the_training_loop(split: str, scored_task: Task, tmp_path: Path) -> None:
    task = scored_task
    net = drawn(classes=task.classes, channels=3)
    found = inference.score(save(tmp_path, net, task), split=split)
    samples = getattr(data.load(task), split)
    expected = training.evaluate_split(
        net, samples, classes=task.classes, background=task.background, ignore_index=task.ignore_index, batch=4
    )
    assert found.scores | {"per_class": found.per_class} == expected
    assert (found.split, found.images, found.task, found.notes) == (split, len(samples), task, ())


def test_other_data_and_resolutions_can_be_scored(scored_task: Task, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, drawn(classes=8, channels=3), scored_task)
    assert inference.score(checkpoint, resolution=48).task.resolution == 48
    with pytest.raises(SpecError, match=r"multiple of 4.*but got 30"):
        inference.score(checkpoint, resolution=30)
    with pytest.raises(DataError, match="unknown split 'val'; known: test, train, validation"):
        inference.score(checkpoint, split="val")
    for i in range(3):
        for part, values in {"images": noise(8, 8, 3), "masks": noise(8, 8) % 2}.items():
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / f"set/{part}/{i}.png")
    name = f"folder:{tmp_path / 'set'}"
    with pytest.raises(DataError, match=r"own classes, but .*net.safetensors has 8 and folder:.* has 2"):
        inference.score(checkpoint, name)
    grey = save(tmp_path, drawn(classes=2))
    with pytest.raises(DataError, match=r"own channels, but .*net.safetensors has 1 and folder:.* has 3"):
        inference.score(grey, name)
    colour = save(tmp_path, drawn(classes=2, channels=3), class_names=("other", "names"))
    found = inference.score(colour, name)
    (note,) = found.notes
    assert "background, value_1 and the net was trained on other, names" in note
    assert found.images == 1
    (tmp_path / "set/train.txt").write_text("0\n1\n")
    (tmp_path / "set/validation.txt").write_text("2\n")
    with pytest.raises(DataError, match=r"the test split of folder:.* is empty"):
        inference.score(colour, name)


def dark_and_bright(root: Path, white: int) -> str:
    """A folder data set of 16-bit images: half of each is ``white`` and marked so, the rest a quarter of it."""
    on = np.arange(SIDE)[None] < np.full((SIDE, 1), SIDE // 2)
    for part, values in {"images": np.where(on, white, white // 4).astype(np.uint16), "masks": on}.items():
        (root / part).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(values).save(root / part / f"{i}.png")
    return f"folder:{root}"


def test_other_images_of_16_bits_are_scaled_as_those_trained_on(tmp_path: Path) -> None:
    """White is 4000 of the training's; another camera's 1000 is dark then, though its folder holds nothing brighter."""
    task = data.open_task(dark_and_bright(tmp_path / "own", 4000), resolution=SIDE)
    other = dark_and_bright(tmp_path / "other", 1000)
    checkpoint = save(tmp_path, threshold(), task)
    assert inference.score(checkpoint).scores["pixel_accuracy"] == 1
    found = inference.score(checkpoint, other)
    assert (found.task.white, found.notes) == (4000, ())
    assert found.scores["pixel_accuracy"] == 0.5
    (done,) = run(checkpoint, [tmp_path / "other/images/0.png"], tmp_path / "out")
    assert isinstance(done, Prediction), done
    assert done.pixels == (SIDE * SIDE, 0)
    older = save(tmp_path, threshold(), replace(task, white=None))  # of a version that did not keep it
    assert inference.score(older).notes == ()
    found = inference.score(older, other)
    (note,) = found.notes
    assert re.search(r"does not say which value .* of folder:.*other are scaled by their own largest value, 1000", note)
    assert found.scores["pixel_accuracy"] == 1


def test_a_split_without_a_pixel_that_counts_is_not_scored(tmp_path: Path) -> None:
    name = dark_and_bright(tmp_path / "own", 4000)
    (tmp_path / "own/split.json").write_text('{"train": ["0"], "validation": ["1"], "test": ["2"]}')
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(tmp_path / "own/masks/2.png")
    checkpoint = save(tmp_path, threshold(), data.open_task(name, resolution=SIDE))
    assert inference.score(checkpoint, split="validation").images == 1
    with pytest.raises(DataError, match=r"all of the test split of folder:.* are 255"):
        inference.score(checkpoint)


def test_changed_data_is_said(scored_task: Task, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, drawn(classes=8, channels=3), replace(scored_task, content="another"))
    for resolution in (None, 48):
        (note,) = inference.score(checkpoint, resolution=resolution).notes
        assert "synthetic has changed since the training" in note


def test_data_that_has_lost_images_is_scored_with_what_is_left(tmp_path: Path) -> None:
    for i in range(10):
        for part, values in {"images": noise(SIDE, SIDE, seed=i), "masks": noise(SIDE, SIDE, seed=i) % 2}.items():
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / f"set/{part}/{i}.png")
    task = data.open_task(f"folder:{tmp_path / 'set'}", resolution=SIDE)
    checkpoint = save(tmp_path, threshold(), task)
    for part in ("images", "masks"):
        (tmp_path / "set" / part / "3.png").unlink()
    found = inference.score(checkpoint)
    assert (task.train, task.test) == (6, 2)
    assert (found.task.train, found.task.test, found.images) == (6, 1, 1)  # of nine, whose splits are 7, 1 and 1
    (note,) = found.notes
    assert "has changed since the training" in note


# -- the command line ------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line, in this process."""

    def of(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["onenet-bench", *words, "--threads", "1"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    return of


def test_the_commands(scored_task: Task, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = save(tmp_path, drawn(classes=8, channels=3), scored_task)
    said = call("evaluate", "net.safetensors", "--json")
    assert said.code == 0, said.err
    expected = inference.score(checkpoint).to_dict()
    assert json.loads(said.out) == {"checkpoint": "net.safetensors", **json.loads(json.dumps(expected))}
    table = call("evaluate", "net.safetensors").out
    assert f"miou            {expected['scores']['miou']:.4f}" in table
    assert all(name in table for name in scored_task.class_names)

    Image.fromarray(noise(200, 30, 3)).save(tmp_path / "tall.png")
    (tmp_path / "torn.png").write_bytes(png(noise(40, 40))[:600])
    said = call("predict", "net.safetensors", "tall.png", "torn.png", "--out", "out")
    assert said.code == 1
    assert "tall.png -> out/masks/tall.png" in said.out
    assert said.err.splitlines()[0].startswith("onenet-bench: torn.png cannot be read")
    assert "1 of 1 images are more than 4 times as large" in said.err
    said = call("predict", "net.safetensors", "tall.png", "--out", "out")
    assert said.code == 2
    assert "out/masks/tall.png is there already" in said.err
    said = call("predict", "net.safetensors", "tall.png", "--out", "out", "--overwrite", "--tile", "--json")
    assert (said.code, said.err) == (0, "")
    told = json.loads(said.out)
    assert [one["name"] for one in told["classes"]] == list(scored_task.class_names)
    mask = np.asarray(Image.open(tmp_path / told["done"][0]["mask"]))
    assert told["done"][0]["pixels"] == np.bincount(mask.ravel(), minlength=8).tolist()


WRONG = {
    "no checkpoint": (["predict", "none.safetensors", "a.npy", "--out", "out"], "none.safetensors is not"),
    "no weights": (
        ["evaluate", "a.npy"],
        "a checkpoint is a safetensors file written by onenet-bench, such as .*, but a.npy",
    ),
    "unwritable": (["predict", "net.safetensors", "a.npy", "--out", "/proc/out"], "writable, but /proc/out is not"),
    "no data": (["evaluate", "net.safetensors", "--data", "folder:none"], "there is no folder .*none/images"),
    "white": (["predict", "net.safetensors", "a.npy", "--out", "out", "--white", "0"], "but got 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_and_leaves_nothing(
    case: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", noise(9, 9))
    save(tmp_path, threshold())
    before = sorted(tmp_path.iterdir())
    words, sentence = WRONG[case]
    said = call(*words)
    assert said.code == 2, said.out + said.err
    assert re.search(sentence, said.err), said.err
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("spec", ["[]", "3", "{", "{}"])
def test_a_checkpoint_whose_net_is_none_is_refused(spec: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"spec": spec, "facts": "{}"})
    with pytest.raises(SpecError, match=r"written by onenet-bench, such as .*, but .*odd.safetensors is not"):
        models.load_checkpoint(path)


def test_a_checkpoint_without_its_task_is_refused(tmp_path: Path) -> None:
    models.save_checkpoint(threshold(), tmp_path / "bare.safetensors", {})
    with pytest.raises(SpecError, match=r"tells its task and recipe, but .*bare.safetensors does not"):
        inference.open_checkpoint(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"data": None}, "data is None, no str"),
        ({"seed": "x"}, "seed is 'x', no int"),
        ({"class_names": [1, 2]}, "class names are"),
        ({"in_channels": 7}, "7 channels and 2 classes is not its net's"),
        ({"class_names": ["a", "b", "c"]}, "3 channels and 3 classes is not its net's"),
    ],
)
def test_a_checkpoint_whose_task_cannot_be_its_nets_is_refused(wrong: dict[str, Any], why: str, tmp_path: Path) -> None:
    net = threshold(3)
    task = save(tmp_path, net).task
    facts = {"task": {**task.to_dict(), **wrong}, "recipe": Recipe().to_dict()}
    models.save_checkpoint(net, tmp_path / "odd.safetensors", facts)
    with pytest.raises(SpecError, match=rf"tells its task and recipe, but .*odd.safetensors does not: .*{why}"):
        inference.open_checkpoint(tmp_path / "odd.safetensors")
