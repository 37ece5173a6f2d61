"""Positions: what each scheme promises, and rotary against a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omniloom.models.fused import rotate
from omniloom.models.unified.config import ROPE_SCHEMES
from omniloom.models.unified.positions import cells, positions, rotary, sinusoids

SIZES = [(1, 1, 1), (1, 2, 8), (1, 3, 3), (1, 4, 5), (1, 7, 2), (3, 2, 5), (5, 4, 4)]
SCHEMES = [*ROPE_SCHEMES]
grids = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("axes", [2, 3])
def test_text_only_is_rope_1d_to_the_last_bit(scheme: str, axes: int) -> None:
    pos = positions(scheme, [("text", 700), ("text", 300)], axes)
    got = rotary(pos, 64, 10000.0)
    line = torch.arange(1000, dtype=torch.float32)
    angles = torch.outer(line, 1.0 / 10000.0 ** (torch.arange(0, 64, 2).float() / 64))
    assert pos.dtype == torch.float32 and pos.shape == (1000, axes)
    assert torch.equal(got[0], angles.cos()) and torch.equal(got[1], angles.sin())


def test_rotate_matches_complex_multiplication() -> None:
    pos = positions("tie_v2", [("text", 3), ("visual", (2, 3, 4)), ("text", 2)])
    x = torch.randn(len(pos), 16, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(x)
    for n in range(len(pos)):
        for j in range(8):
            angle = float(pos[n, j % 3]) * 10000.0 ** (-2 * j / 16)
            z = complex(x[n, j], x[n, j + 8]) * complex(math.cos(angle), math.sin(angle))
            expected[n, j], expected[n, j + 8] = z.real, z.imag
    torch.testing.assert_close(rotate(x, *rotary(pos, 16)), expected, atol=1e-4, rtol=0)


def test_tie_v2_example() -> None:
    # L = 10, h = 2, w = 8: the offsets are 17 and 14, and the next text sits at 10 + 16 + 1.
    pos = positions("tie_v2", [("text", 11), ("visual", (1, 2, 8)), ("text", 1)])
    assert pos[11].tolist() == [18, 15] and pos[11 + 8].tolist() == [19, 15] and pos[12].tolist() == [18, 16]
    assert pos[-1].tolist() == [27, 27]


@given(grids, st.integers(0, 40))
def test_tie_v2_equivalence_symmetry_and_unit_steps(grid: tuple[int, int, int], before: int) -> None:
    t, h, w = grid
    pos = positions("tie_v2", [("text", before), ("visual", grid), ("text", 1)], axes=3).double()
    last, following, visual = before - 1, pos[-1], pos[before:-1].reshape(t, h, w, 3)
    assert following.tolist() == [last + t * h * w + 1] * 3
    assert torch.equal(visual.amin((0, 1, 2)) - last, following - visual.amax((0, 1, 2)))
    for dim, axis in ((0, 2), (1, 0), (2, 1)):
        step = visual.diff(dim=dim)
        assert (step[..., axis] == 1).all() and (step.sum(-1) == 1).all()


def test_tie_v2_one_patch_is_a_text_token_and_half_integers_stay() -> None:
    one = positions("tie_v2", [("text", 4), ("visual", (1, 1, 1)), ("text", 2)], axes=3)
    assert torch.equal(one, positions("tie_v2", [("text", 7)], axes=3))
    half = positions("tie_v2", [("text", 1), ("visual", (1, 2, 3))])
    assert half[1].tolist() == [0 + (6 - 2) / 2 + 1, 0 + (6 - 3) / 2 + 1] == [3, 2.5]


@given(grids, st.integers(0, 20))
def test_tie_v1_formula(grid: tuple[int, int, int], before: int) -> None:
    _, h, w = grid
    pos = positions("tie_v1", [("text", before), ("visual", (1, h, w)), ("text", 1)])
    last = before - 1
    expected = [[last + i * (w + 1), last + j * (h + 1)] for i in range(1, h + 1) for j in range(1, w + 1)]
    assert pos[before:-1].tolist() == expected and pos[-1].tolist() == [last + (w + 1) * (h + 1)] * 2


@pytest.mark.parametrize("grid", SIZES)
def test_tie_v1_is_symmetric_in_three_axes(grid: tuple[int, int, int]) -> None:
    pos = positions("tie_v1", [("text", 3), ("visual", grid), ("text", 1)], axes=3)
    visual = pos[3:-1]
    torch.testing.assert_close(visual.amin(0) - 2, pos[-1] - visual.amax(0), atol=0, rtol=0)


@pytest.mark.parametrize("scheme", ["axial", "tie_v1", "tie_v2", "streaming"])
def test_two_axes_are_the_first_two_of_three(scheme: str) -> None:
    segments = [("text", 2), ("visual", (1, 3, 5)), ("text", 1)]
    assert torch.equal(positions(scheme, segments), positions(scheme, segments, axes=3)[:, :2])


def test_streaming_is_a_row_of_images_and_needs_no_frame_count() -> None:
    long = positions("streaming", [("text", 4), ("visual", (5, 2, 3))], axes=3)
    short = positions("streaming", [("text", 4), ("visual", (2, 2, 3))], axes=3)
    assert torch.equal(long[: len(short)], short)
    images = positions("tie_v2", [("text", 4), *[("visual", (1, 2, 3))] * 5], axes=3)
    assert torch.equal(long, images)


def test_rope_1d_counts_everything() -> None:
    pos = positions("rope_1d", [("text", 2), ("visual", (2, 2, 2)), ("text", 2)])
    assert pos[:, 0].tolist() == list(range(12)) and pos.shape == (12, 1)


def test_axial() -> None:
    pos = positions("axial", [("text", 2), ("visual", (2, 3, 4)), ("text", 1)])
    assert pos[2].tolist() == [2, 2, 2] and pos[-2].tolist() == [4, 5, 3] and pos[-1].tolist() == [6, 6, 6]


def test_one_place_is_that_of_the_tokens_around_a_picture() -> None:
    """As BAGEL's authors count (ByteDance-Seed/Bagel, `pack_sequence`): what is around an image is on its place."""
    pos = positions("one_place", [("text", 3), ("text", 1), ("visual", (1, 2, 3)), ("text", 1), ("text", 2)])
    assert pos[:, 0].tolist() == [0, 1, 2, *[3] * 8, 4, 5] and pos.shape == (13, 1)
    video = positions("one_place", [("text", 2), ("visual", (3, 1, 2)), ("text", 2)], axes=3)
    assert video[:, 2].tolist() == [0, 1, 1, 1, 2, 2, 3, 3, 3, 4] and torch.equal(video[:, 0], video[:, 2])
    alone = positions("one_place", [("text", 1), ("visual", (1, 1, 2)), ("text", 2)])
    assert alone[:, 0].tolist() == [0, 0, 0, 0, 1]


def test_sinusoids_are_those_of_masked_autoencoders() -> None:
    """By two loops: columns first, each a run of sines and a run of cosines."""
    found = sinusoids(torch.from_numpy(cells((2, 3, 4))), 24)
    assert found.shape == (24, 24) and torch.equal(found[:12], found[12:])
    for number in range(12):
        row, column = divmod(number, 4)
        wanted = []
        for at in (column, row):
            turns = [at / 10000 ** (i / 6) for i in range(6)]
            wanted += [*map(math.sin, turns), *map(math.cos, turns)]
        torch.testing.assert_close(found[number], torch.tensor(wanted), atol=1e-6, rtol=0)


def test_far_places_are_exact() -> None:
    pos = positions("tie_v2", [("text", 1_000_000), ("visual", (1, 3, 4)), ("text", 1)])
    assert pos[-1, 0] == 1_000_012 and pos[1_000_000].tolist() == [999_999 + 4.5 + 1, 999_999 + 4 + 1]
    assert np.isfinite(pos.numpy()).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope", []),
        ("tie_v2", [("visual", (1, 0, 2))]),
        ("tie_v2", [("sound", 3)]),
        ("tie_v2", [("text", 3)], 1),
    ],
)
def test_bad_requests_are_named(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="scheme|segments|axes"):
        positions(*arguments)
