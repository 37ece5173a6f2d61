"""One door for pixels: a picture that a user shows is what training saw of it, up, down and cut."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omniloom.models.cover import centre_box, cover
from omniloom.models.pixels import half_range, to_pixels
from omniloom.models.resample import resample
from omniloom.stages.data import clips
from omniloom.stages.data.media.scaling import resize_center_crop
from omniloom.stages.inference.requests import Request

SIZES = ((48, 48), (24, 40), (40, 24), (96, 160), (300, 200), (331, 517))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft light, edges and grain, as of a photograph: uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack([np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0, 6, (6, 3))])
    light = np.tensordot(waves, rng.normal(size=(6, 3)), (0, 0)) * 30 + 128
    edges = 60.0 * ((x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.04)[..., None]
    return np.clip(light + edges + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def decibels(one: np.ndarray, two: np.ndarray) -> float:
    """PSNR of levels."""
    error = np.square(one.astype(float) - two.astype(float)).mean()
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("shape", [(180, 260), (260, 180), (200, 200)])
def test_a_shown_picture_is_what_training_saw(tmp_path: Path, shape, form, size):
    """The file as `--image` takes it, against the file as a record's bytes."""
    sink = io.BytesIO()
    Image.fromarray(photo(*shape)).save(sink, form)
    path = tmp_path / "picture"
    path.write_bytes(sink.getvalue())
    shown = to_pixels(Request(images=(path,)).pictures(), size)
    trained = clips._pixels("image", clips.decode("image", sink.getvalue(), size, 1)[None])
    assert shown.shape == trained.shape == (1, 3, *size) and shown.dtype == trained.dtype == torch.float32
    levels = [(pixels.numpy() + 0.5) * 255 for pixels in (shown, trained)]
    assert decibels(*levels) >= 50
    # A large JPEG is decoded smaller for training.
    whole = form == "PNG" or min(have / need for have, need in zip(shape, cover(*shape, *size))) < 4
    if whole and shape[0] <= shape[1] and size[0] >= size[1]:  # cut at the sides and not tall: scaled across first
        assert torch.equal(shown, trained)


def test_levels_are_those_of_pillow_in_either_of_its_orders():
    """Of noise, whose every rounding shows. Pillow 13 scales some pictures down first and then across."""
    rng, orders = np.random.default_rng(0), [0, 0]
    for _ in range(80):
        height, width = (int(n) for n in rng.integers(1, 120, 2))
        down, across = (int(n) for n in rng.integers(1, 90, 2))
        image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = resize_center_crop(image.numpy(), (down, across))
        left, top, right, bottom = centre_box((height, width), (down, across))
        made = resample(image, (down, across), (left, top, right, bottom))
        turned = resample(image.transpose(0, 1), (across, down), (top, left, bottom, right)).transpose(0, 1)
        equal = [np.array_equal(levels.numpy(), expected) for levels in (made, turned)]
        assert any(equal), (height, width, down, across)
        orders[0 if equal[0] else 1] += 1
    assert orders[0] > 40, "across first is the usual order"


def test_one_axis_alone_is_scaled_in_any_order():
    """Where only rows, or only columns, change there is no order: the same levels everywhere."""
    image = np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    for size, box in (
        ((40, 70), (0.0, 0.0, 70.0, 90.0)),
        ((90, 33), (0.0, 0.0, 70.0, 90.0)),
        ((200, 70), (0.0, 12.25, 70.0, 61.5)),
        ((90, 70), (0.0, 0.0, 70.0, 90.0)),
    ):
        pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(resample(torch.from_numpy(image), size, box).numpy(), np.array(pillow))


def test_a_long_strip_costs_what_its_middle_costs():
    strip = np.zeros((3, 2_000_000, 3), np.uint8)
    strip[:, 1_000_000:] = 255
    shown = to_pixels([strip], (12, 12))[0]
    assert shown.shape == (3, 12, 12) and float(shown[:, :, 0].max()) == -0.5 and float(shown[:, :, -1].min()) == 0.5


def test_a_picture_of_the_size_is_taken_as_it_is():
    image = photo(32, 48)
    assert torch.equal(to_pixels([image], (32, 48))[0], half_range(torch.from_numpy(image).permute(2, 0, 1).float()))


def test_what_is_covered_is_cut_at_the_centre():
    assert cover(100, 200, 50, 50) == (50, 100) and cover(3, 2, 16, 24) == (36, 24)
    assert centre_box((100, 200), (50, 50)) == (50.0, 0.0, 150.0, 100.0)
    assert centre_box((100, 100), (50, 50), shown=(100, 200)) == (25.0, 0.0, 75.0, 100.0)


def test_what_is_no_picture_is_named():
    good = np.zeros((8, 8, 3), np.uint8)
    for wrong in (good[..., :1], good[0], good.astype(np.float32), good[:0]):
        with pytest.raises(ValueError, match=r"images\[1\]: expected uint8"):
            to_pixels([good, wrong], (8, 8))
