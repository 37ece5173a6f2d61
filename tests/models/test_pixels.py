"""Pictures brought to a size by torch alone: torch's scaling of the whole is the reference, and strips cost no more."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from omniloom.models.pixels import to_pixels


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (48, 48), (7, 90), (90, 7), (200, 30), (16, 24), (3, 3)])
@pytest.mark.parametrize("size", [(16, 24), (24, 16), (32, 32), (48, 48)])
def test_cutting_before_scaling_equals_torchs_scaling_of_the_whole(shape, size):
    """Torch's bicubic kernel, too, which rounds nothing on the way; levels are rounded twice here."""
    image = np.random.default_rng(0).integers(64, 192, (*shape, 3), np.uint8)  # no overshoot beyond black and white
    scale = max(size[0] / shape[0], size[1] / shape[1])
    whole = [max(s, round(n * scale)) for s, n in zip(size, shape)]
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    x = F.interpolate(x, size=whole, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    expected = x[:, top : top + size[0], left : left + size[1]].clamp(0, 255)
    levels = (to_pixels([image], size)[0].double() + 0.5) * 255
    assert float((levels - expected).abs().max()) < 1.3


def test_a_strip_costs_what_its_middle_costs():
    for shape in ((100_000, 1, 3), (1, 100_000, 3)):
        started = time.process_time()
        pixels = to_pixels([np.full(shape, 51, np.uint8)], (256, 256))
        assert time.process_time() - started < 0.5
        torch.testing.assert_close(pixels, torch.full((1, 3, 256, 256), -0.3))
