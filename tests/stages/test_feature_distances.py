"""Distances of features against torch-fidelity, torchmetrics, prdc and the published definitions, on the same
features."""

from __future__ import annotations

import feature_references
import numpy as np
import pytest
import torch

from omniloom.stages.evaluate.features import distances
from omniloom.stages.evaluate.items import values_of
from omniloom.stages.evaluate.metrics import covered, frechet

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(300, 24))
DRAWN = RNG.normal(size=(260, 24)) * 1.2 + 0.3


class Same(torch.nn.Module):
    """For torchmetrics: pictures that are their own features."""

    num_features = 24

    def forward(self, x):
        return x


def test_frechet_is_that_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Same(), input_img_size=(24,), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(REAL), real=True)
    metric.update(torch.from_numpy(DRAWN), real=False)
    assert frechet(REAL, DRAWN) == pytest.approx(float(metric.compute()), abs=1e-4)


def test_frechet_is_that_of_torch_fidelity():
    module = feature_references.torch_fidelity("metric_fid")
    statistics = [module.fid_features_to_statistics(torch.from_numpy(x)) for x in (REAL, DRAWN)]
    found = module.fid_statistics_to_metric(*statistics, verbose=False)[module.KEY_METRIC_FID]
    assert frechet(REAL, DRAWN) == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize("subsets, size", [(1, 300), (20, 50)])
def test_kid_is_that_of_torch_fidelity(subsets, size):
    module = feature_references.torch_fidelity("metric_kid")
    drawn = RNG.normal(size=(300, 24)) * 1.1
    expected = module.kid_features_to_metric(
        torch.from_numpy(REAL),
        torch.from_numpy(drawn),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=2020,
        verbose=False,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
    )
    found, each = distances.kid(REAL, drawn, subsets, size, np.random.RandomState(2020))
    assert found.value == pytest.approx(expected[module.KEY_METRIC_KID_MEAN], abs=1e-6)
    assert each.std() == pytest.approx(expected[module.KEY_METRIC_KID_STD], abs=1e-6)


def test_kid_of_whole_sets_is_that_of_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = KernelInceptionDistance(feature=Same(), subsets=2, subset_size=260, normalize=True)
    metric.update(torch.from_numpy(REAL[:260]), real=True)
    metric.update(torch.from_numpy(DRAWN), real=False)
    mean, _ = metric.compute()
    found, each = distances.kid(REAL[:260], DRAWN, 2, 1000, RNG)
    assert found.value == pytest.approx(float(mean), abs=1e-4) and len(each) == 1


def test_kernel_distances_by_their_definition():
    """Double sums over pairs, written out."""
    a, b = RNG.normal(size=(7, 3)), RNG.normal(size=(9, 3)) + 0.5

    def pairs(x, y, kernel, same):
        return [kernel(p, q) for i, p in enumerate(x) for j, q in enumerate(y) if not (same and i == j)]

    def cubic(p, q):
        return (p @ q / 3 + 1) ** 3

    kid = np.mean(pairs(a, a, cubic, True)) + np.mean(pairs(b, b, cubic, True)) - 2 * np.mean(pairs(a, b, cubic, False))
    assert distances.kernel_distance(a, b, distances.cubic, True).value == pytest.approx(kid)

    def gaussian(p, q):
        return np.exp(-((p - q) @ (p - q)) / 200)

    u, v = (x / np.linalg.norm(x, axis=1)[:, None] for x in (a, b))
    cmmd = sum(np.mean(pairs(x, x, gaussian, False)) for x in (u, v)) - 2 * np.mean(pairs(u, v, gaussian, False))
    assert distances.cmmd(a, b).value == pytest.approx(1000 * cmmd)


@pytest.mark.parametrize("kernel, unbiased", [(distances.cubic, True), (distances.gaussian, False)])
def test_parts_are_what_a_row_adds(kernel, unbiased):
    """Against the distance with each row left out in turn, to first order."""
    real, drawn = REAL[:200], DRAWN[:150]
    found = distances.kernel_distance(real, drawn, kernel, unbiased)
    assert abs(found.of_real.mean()) < 1e-9 and abs(found.of_drawn.mean()) < 1e-9
    without = [
        distances.kernel_distance(real, np.delete(drawn, i, 0), kernel, unbiased).value for i in range(len(drawn))
    ]
    jackknife = (len(drawn) - 1) * (found.value - np.array(without))
    assert np.corrcoef(jackknife, found.of_drawn)[0, 1] > 0.999
    assert jackknife.std() == pytest.approx(found.of_drawn.std(), rel=0.05)


def test_manifolds_are_those_of_prdc_and_torch_fidelity():
    prdc = feature_references.prdc()
    for k in (3, 5):
        expected = prdc.compute_prdc(REAL, DRAWN, nearest_k=k)
        assert distances.precision(REAL, DRAWN, k).mean() == pytest.approx(expected["precision"])
        assert distances.precision(DRAWN, REAL, k).mean() == pytest.approx(expected["recall"])
        assert distances.density(REAL, DRAWN, k).mean() == pytest.approx(expected["density"])
        assert covered(REAL, DRAWN, k).mean() == pytest.approx(expected["coverage"])
    module = feature_references.torch_fidelity("metric_prc")
    found = module.prc_features_to_metric(  # what was drawn is its first input
        torch.from_numpy(DRAWN), torch.from_numpy(REAL), prc_neighborhood=3, prc_batch_size=10000, verbose=False
    )
    assert distances.precision(REAL, DRAWN).mean() == pytest.approx(found[module.KEY_METRIC_PRECISION], abs=1e-6)
    assert distances.precision(DRAWN, REAL).mean() == pytest.approx(found[module.KEY_METRIC_RECALL], abs=1e-6)


def test_manifolds_on_a_line():
    """By hand: balls of radius 2 around 0, 1, ..., 9 with two neighbours, of 1 inside."""
    real, drawn = np.arange(10.0)[:, None], np.array([[0.5], [11.5], [5.0]])
    assert distances.precision(real, drawn, 2).tolist() == [True, False, True]
    # 0 lies up to 2 away, and 1 up to 1: 0.5 is in both balls, and in that of 2? 1.5 away, of radius 1: no.
    assert distances.density(real, drawn, 2).tolist() == [1.0, 0.0, 0.5]
    assert distances.precision(drawn, real, 1).all()
    with pytest.raises(ValueError, match="more than 3"):
        distances.precision(real[:3], drawn)


def test_a_model_of_one_picture_is_precise_and_recalls_nothing():
    drawn = np.repeat(REAL[:1], 50, axis=0) + RNG.normal(size=(50, 24)) * 1e-3
    assert distances.precision(REAL, drawn).mean() == 1.0
    assert distances.precision(drawn, REAL).mean() < 0.05
    assert covered(REAL, drawn, 5).mean() < 0.05


def test_a_distance_as_items_is_its_value():
    found = distances.cmmd(REAL[:100], DRAWN[:100])
    items = values_of([str(i) for i in range(100)], found.value + found.of_real + found.of_drawn)
    assert items.mean == pytest.approx(found.value)
