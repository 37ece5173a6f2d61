"""Alignment with frozen features: the loss by its definition, features brought to a segment's grid."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.unified.alignment import FeatureAlignment, features_on_grid, on_frames


def test_the_loss_is_one_minus_the_cosine_of_the_projected_state():
    torch.manual_seed(0)
    module, hidden, features = FeatureAlignment(12, 6, inner=20), torch.randn(5, 12), torch.randn(5, 6)
    loss = module(hidden, features)

    def silu(x):
        return x / (1 + np.exp(-x))

    with torch.no_grad():
        x = hidden.double().numpy()
        for number, layer in enumerate(module.mlp[::2]):
            x = (silu(x) if number else x) @ layer.weight.double().numpy().T + layer.bias.double().numpy()
        y = features.double().numpy()
        wanted = 1 - (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert loss.shape == (5,) and loss.dtype == torch.float32
    np.testing.assert_allclose(loss.detach(), wanted, atol=1e-5)
    published = FeatureAlignment(1152, 768)
    assert sum(p.numel() for p in published.parameters()) == 1153 * 2048 + 2049 * 2048 + 2049 * 768


def test_it_learns_what_a_hidden_state_tells_and_no_features_gradient_is_needed():
    torch.manual_seed(0)
    module, hidden = FeatureAlignment(8, 6, inner=24), torch.randn(64, 8)
    features = (hidden @ torch.randn(8, 6)).half()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    first = float(module(hidden, features).mean().detach())
    for _ in range(60):
        optimizer.zero_grad()
        module(hidden, features).mean().backward()
        optimizer.step()
    assert first > 0.7 and float(module(hidden, features).mean().detach()) < 0.1


def test_of_no_positions_every_parameter_still_has_a_gradient():
    module = FeatureAlignment(8, 6, inner=16)
    module(torch.zeros(0, 8), torch.zeros(0, 6)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    with pytest.raises(ValueError, match="features: expected those of 3 positions, got 2"):
        module(torch.zeros(3, 8), torch.zeros(2, 6))


@given(h=st.integers(1, 4), w=st.integers(1, 4), down=st.integers(1, 3), t=st.integers(1, 3))
def test_a_coarser_grid_has_the_mean_of_each_area(h, w, down, t):
    features = torch.randn(t, h * down, w * down, 5)
    found = features_on_grid(features.flatten(0, 2), (t, h * down, w * down), (t, h, w))
    wanted = features.view(t, h, down, w, down, 5).mean((2, 4)).flatten(0, 2)
    torch.testing.assert_close(found, wanted)


@given(h=st.integers(2, 5), w=st.integers(2, 5), up=st.integers(1, 3))
def test_a_finer_grid_is_linear_between_features(h, w, up):
    """A plane in row and column stays one, wherever a position lies between features."""
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    plane = torch.stack((rows, columns), -1).flatten(0, 1)
    found = features_on_grid(plane, (1, h, w), (1, h * up, w * up)).view(h * up, w * up, 2)
    rows = ((torch.arange(h * up) + 0.5) / up).clamp(0.5, h - 0.5)
    columns = ((torch.arange(w * up) + 0.5) / up).clamp(0.5, w - 0.5)
    torch.testing.assert_close(found[..., 0], rows[:, None].expand(-1, w * up))
    torch.testing.assert_close(found[..., 1], columns[None].expand(h * up, -1))


def test_an_axis_grows_while_the_other_shrinks():
    features = torch.arange(8.0).view(8, 1)  # 2 rows of 4
    found = features_on_grid(features, (1, 2, 4), (1, 4, 1)).view(4)
    torch.testing.assert_close(found, torch.tensor([1.5, 2.5, 4.5, 5.5]))


def test_half_precision_and_grids_that_do_not_divide():
    features = torch.ones(16 * 18, 3, dtype=torch.float16)
    for grid in ((1, 16, 18), (1, 5, 7), (1, 32, 9), (1, 40, 40)):
        found = features_on_grid(features, (1, 16, 18), grid)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.ones(grid[1] * grid[2], 3))


@given(groups=st.integers(1, 4), size=st.integers(1, 4))
def test_frames_gather_behind_the_first(groups, size):
    frames = torch.randn(1 + groups * size, 2)
    few = on_frames(frames, 1 + groups)
    assert torch.equal(few[0], frames[0])
    torch.testing.assert_close(few[1:], torch.stack([part.mean(0) for part in frames[1:].split(size)]))
    many = on_frames(few, 1 + groups * size)
    assert len(many) == len(frames) and torch.equal(many[0], few[0])
    assert all(torch.equal(many[1 + i], few[1 + i // size]) for i in range(groups * size))


@pytest.mark.parametrize("features, feature_grid, grid, message", [
    (torch.zeros(5, 3), (1, 2, 3), (1, 2, 3), "features: grid .1, 2, 3. does not fit .5, 3."),
    (torch.zeros(6), (1, 2, 3), (1, 2, 3), "does not fit"),
    (torch.zeros(4, 3), (4, 1, 1), (3, 1, 1), "4 frames do not"),
    (torch.zeros(4, 3), (4, 1, 1), (1, 1, 1), "4 frames do not gather into 1"),
    (torch.zeros(1, 3), (1, 1, 1), (2, 1, 1), "1 frames do not gather into 2")])
def test_what_does_not_fit(features, feature_grid, grid, message):
    with pytest.raises(ValueError, match=message):
        features_on_grid(features, feature_grid, grid)
