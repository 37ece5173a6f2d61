"""Evaluation's measures against closed forms and plain second implementations."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from stages.metrics import PixelClassifier, coverage, named_labels, reconstruction, shrink

RNG = np.random.default_rng(0)


def test_psnr_is_the_mean_over_pictures_of_its_definition():
    a = RNG.integers(40, 200, (3, 16, 16, 3)).astype(np.uint8)
    b = a.copy()
    b[0] += 5  # mean square error 25
    b[1, ::2] += 10  # 100 on half of the rows
    expected = [10 * math.log10(255**2 / 25), 10 * math.log10(255**2 / 50), 100.0]  # equal pictures count as 100
    assert reconstruction(a, b)["psnr"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_ssim_of_constant_pictures_is_its_luminance_term():
    a, b = np.full((2, 16, 16, 3), 100, np.uint8), np.full((2, 16, 16, 3), 130, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert reconstruction(a, b)["ssim"] == pytest.approx((2 * 100 * 130 + c1) / (100**2 + 130**2 + c1), abs=1e-6)
    noise = RNG.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    assert reconstruction(noise, noise)["ssim"] == pytest.approx(1.0)
    assert reconstruction(noise, 255 - noise)["ssim"] < 0


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
    assert coverage(real, drawn, k) == pytest.approx(plain_coverage(real, drawn, k))


def test_coverage_tells_one_mode_from_all():
    real = np.concatenate([RNG.normal(size=(50, 3)), RNG.normal(size=(50, 3)) + 100])
    everywhere = np.concatenate([RNG.normal(size=(200, 3)), RNG.normal(size=(200, 3)) + 100])
    assert coverage(real, everywhere) > 0.9
    assert coverage(real, everywhere[:200]) <= 0.5
    with pytest.raises(ValueError, match="more than 5"):
        coverage(real[:5], everywhere)


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


@pytest.mark.parametrize("text, labels, expected", [
    ("a handwritten seven", ["six", "seven"], {"seven"}),
    ("a handwritten sevenfold", ["six", "seven"], set()),
    ("A red FIRE TRUCK.", ["truck", "fire_truck"], {"fire_truck"}),
    ("a truck behind a fire truck", ["truck", "fire_truck"], {"truck", "fire_truck"}),
    ("one or two", ["one", "two", "three"], {"one", "two"}),
    ("c++ (old)", ["c", "d"], {"c"}),
    ("anything", [], set()),
])
def test_labels_that_a_text_names(text, labels, expected):
    assert named_labels(text, labels) == expected
