"""Evaluation's measures against closed forms and plain second implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from omniloom.stages.evaluate.metrics import (
    PixelClassifier,
    covered,
    frechet,
    frechet_parts,
    named_labels,
    rank,
    reconstruction,
    shrink,
)

RNG = np.random.default_rng(0)


def test_psnr_is_the_mean_over_pictures_of_its_definition():
    a = RNG.integers(40, 200, (3, 16, 16, 3)).astype(np.uint8)
    b = a.copy()
    b[0] += 5  # mean square error 25
    b[1, ::2] += 10  # 100 on half of the rows
    expected = [10 * math.log10(255**2 / 25), 10 * math.log10(255**2 / 50), 100.0]  # equal pictures count as 100
    assert reconstruction(a, b)["psnr"].mean() == pytest.approx(np.mean(expected), abs=1e-5)


def test_ssim_of_constant_pictures_is_its_luminance_term():
    a, b = np.full((2, 16, 16, 3), 100, np.uint8), np.full((2, 16, 16, 3), 130, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert reconstruction(a, b)["ssim"].mean() == pytest.approx((2 * 100 * 130 + c1) / (100**2 + 130**2 + c1), abs=1e-6)
    noise = RNG.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    assert reconstruction(noise, noise)["ssim"].mean() == pytest.approx(1.0)
    assert reconstruction(noise, 255 - noise)["ssim"].mean() < 0


def share_covered(real, drawn, *neighbours):
    return covered(real, drawn, *neighbours).mean()


def plain_coverage(real, drawn, k):
    covered = 0
    for i, point in enumerate(real):
        distances = sorted(math.dist(point, other) for j, other in enumerate(real) if j != i)
        covered += min(math.dist(point, d) for d in drawn) < distances[k - 1]
    return covered / len(real)


@settings(max_examples=25, deadline=None)
@given(st.integers(7, 25), st.integers(1, 25), st.integers(1, 5), st.integers(0, 10_000))
def test_coverage_against_a_plain_implementation(reals, draws, k, seed):
    rng = np.random.default_rng(seed)
    real, drawn = rng.normal(size=(reals, 4)), rng.normal(size=(draws, 4)) * rng.uniform(0.2, 2)
    assert share_covered(real, drawn, k) == pytest.approx(plain_coverage(real, drawn, k))


def test_coverage_tells_one_mode_from_all():
    real = np.concatenate([RNG.normal(size=(50, 3)), RNG.normal(size=(50, 3)) + 100])
    everywhere = np.concatenate([RNG.normal(size=(200, 3)), RNG.normal(size=(200, 3)) + 100])
    assert share_covered(real, everywhere) > 0.9
    assert share_covered(real, everywhere[:200]) <= 0.5
    with pytest.raises(ValueError, match="more than 5"):
        share_covered(real[:5], everywhere)


def test_coverage_of_pictures_that_occur_more_than_once():
    """A copy is no neighbour, and every occurrence counts: in the plane, so that the shares are counted by hand."""
    points = RNG.normal(size=(40, 3))
    for times in (1, 2, 10):
        assert share_covered(np.repeat(points, times, axis=0), np.repeat(points, times, axis=0)) == 1.0
    nearly = np.repeat(points, 10, axis=0) + RNG.normal(size=(400, 3)) * 1e-6
    assert share_covered(np.repeat(points, 10, axis=0), nearly) == 1.0
    line = np.arange(4.0)[:, None]  # with one neighbour each radius is 1
    assert share_covered(np.repeat(line, [5, 1, 1, 1], axis=0), np.array([[-0.5]]), 1) == 5 / 8
    assert share_covered(np.repeat(line, [5, 1, 1, 1], axis=0), np.array([[3.5]]), 1) == 1 / 8
    with pytest.raises(ValueError, match="more than 5 real examples that differ, got 4"):
        share_covered(np.repeat(line, 10, axis=0), line)


def test_the_classifier_names_real_digits():
    digits = load_digits()
    images = np.repeat((digits.images * 15.9375).astype(np.uint8)[..., None], 3, axis=-1)
    large = np.repeat(np.repeat(images, 4, axis=1), 4, axis=2)
    features = shrink(list(large), 8)
    np.testing.assert_allclose(features, images.reshape(len(images), -1) / 255)  # a box average undoes the repetition
    labels = [str(n) for n in digits.target]
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1400], order[1400:]
    classifier = PixelClassifier(features[train], [labels[i] for i in train])
    assert np.mean([a == labels[i] for a, i in zip(classifier(features[test]), test, strict=True)]) > 0.95


@pytest.mark.parametrize(
    "text, labels, expected",
    [
        ("a handwritten seven", ["six", "seven"], {"seven"}),
        ("a handwritten sevenfold", ["six", "seven"], set()),
        ("A red FIRE TRUCK.", ["truck", "fire_truck"], {"fire_truck"}),
        ("a truck behind a fire truck", ["truck", "fire_truck"], {"truck", "fire_truck"}),
        ("one or two", ["one", "two", "three"], {"one", "two"}),
        ("c++ (old)", ["c", "d"], {"c"}),
        ("anything", [], set()),
    ],
)
def test_labels_that_a_text_names(text, labels, expected):
    assert named_labels(text, labels) == expected


def features(count: int, size: int, seed: int, rank: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, rank or size)) @ rng.normal(size=(rank or size, size)) + rng.normal(size=size)


@pytest.mark.parametrize(
    "counts, size, rank", [((300, 200), 12, None), ((40, 60), 48, None), ((30, 30), 48, 5), ((2, 3), 4, None)]
)
def test_frechet_is_torchmetrics_and_the_root_of_the_product(counts, size, rank):
    """Full and deficient covariances, more rows than features and fewer."""
    import torch
    from scipy.linalg import sqrtm
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        """The features are the pictures themselves."""

        num_features = size

        def forward(self, images):
            return images.flatten(1)

    a, b = features(counts[0], size, 0, rank), features(counts[1], size, 1, rank)
    theirs = FrechetInceptionDistance(feature=Given(), normalize=False).set_dtype(torch.float64)
    for rows, real in ((a, True), (b, False)):
        theirs.update(torch.from_numpy(rows).view(-1, 1, 1, size), real=real)
    distance = frechet(a, b)
    assert distance == pytest.approx(float(theirs.compute()), rel=1e-4, abs=1e-3)
    if rank is None and min(counts) > size:
        root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        spread = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
        assert distance == pytest.approx(((a.mean(0) - b.mean(0)) ** 2).sum() + spread, rel=1e-9)


@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 1000))
def test_frechet_of_a_moved_and_of_a_scaled_copy(count, size, seed):
    rows = features(count, size, seed)
    shift = np.random.default_rng(seed).normal(size=size)
    scale = (rows**2).sum()
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-9 * scale)
    assert frechet(rows, rows + shift) == pytest.approx((shift**2).sum(), abs=1e-9 * scale)
    # About its own mean: S_b = 9 S_a, so tr(S_a) + 9 tr(S_a) - 6 tr(S_a).
    wide = 3 * (rows - rows.mean(0)) + rows.mean(0)
    assert frechet(rows, wide) == pytest.approx(4 * rows.var(0, ddof=1).sum(), abs=1e-9 * scale)
    assert frechet(rows, wide) == pytest.approx(frechet(wide, rows), abs=1e-9 * scale)


def test_frechet_needs_rows():
    with pytest.raises(ValueError, match="at least 2 rows on both sides, got 1 and 5"):
        frechet(features(1, 3, 0), features(5, 3, 0))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_rank_is_the_mean_place_over_the_orders_of_what_ties(scores):
    from scipy.stats import rankdata

    assert rank(np.array(scores, float)) == rankdata([-s for s in scores])[0]


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_scores_that_are_not_finite_have_no_rank(bad):
    assert math.isnan(rank(np.array([bad, 1.0, 2.0]))) and math.isnan(rank(np.array([1.0, bad])))


def plain_distance(real: np.ndarray, drawn: np.ndarray, weights: np.ndarray) -> float:
    """Of weighted rows, by the square root of a matrix."""
    from scipy.linalg import sqrtm

    def moments(x, w):
        mean = w @ x
        return mean, (w[:, None] * (x - mean)).T @ (x - mean) * len(x) / (len(x) - 1)

    (a, s), (b, t) = moments(real, np.full(len(real), 1 / len(real))), moments(drawn, weights)
    return ((a - b) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)


def test_each_rows_part_in_a_distance_is_its_derivative():
    rng = np.random.default_rng(2)
    real, drawn = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) * 1.5 + 0.3
    distance, of_real, of_drawn = frechet_parts(real, drawn)
    assert distance == pytest.approx(frechet(real, drawn), rel=1e-12)
    assert abs(of_real.sum()) < 1e-9 and abs(of_drawn.sum()) < 1e-9
    even, step = np.full(30, 1 / 30), 1e-5
    for row in (0, 7, 29):
        moved = (1 - step) * even + step * (np.arange(30) == row)
        slope = (plain_distance(real, drawn, moved) - plain_distance(real, drawn, even)) / step
        assert of_drawn[row] == pytest.approx(slope, rel=1e-3, abs=1e-3)
    swapped = frechet_parts(drawn, real)
    np.testing.assert_allclose(swapped[1], of_drawn)
    np.testing.assert_allclose(swapped[2], of_real)


@pytest.mark.parametrize("shape", [(3, 32, 32, 3), (2, 6, 40, 3), (1, 64, 17, 3)])
def test_reconstruction_is_torchmetrics(shape):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    rng = np.random.default_rng(4)
    originals = rng.integers(0, 256, shape, np.uint8)
    recons = np.clip(originals + rng.normal(0, 12, shape), 0, 255).astype(np.uint8)
    originals[0, :5] = recons[0, :5] = 255  # without variance
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (originals, recons))
    found = reconstruction(originals, recons)
    psnr = peak_signal_noise_ratio(b, a, data_range=255.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(found["psnr"], psnr, rtol=1e-6)  # its logarithm is in float32
    ssim = structural_similarity_index_measure(b, a, data_range=255.0, reduction="none")
    np.testing.assert_allclose(found["ssim"], ssim, rtol=1e-9)
    assert reconstruction(originals, originals)["psnr"].tolist() == [100.0] * shape[0]
