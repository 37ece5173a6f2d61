"""What a tokenizer's latents are like: each figure against a closed form, and the stage's measuring of a real one."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import scipy.stats
import torch
from corpora import ingest, tokenizer
from PIL import Image

from omniloom.infra.errors import InputError
from omniloom.models.tokenizer.quantizers.config import GaussianConfig
from omniloom.stages.latents import figures, stage
from omniloom.stages.latents.config import Config
from omniloom.stages.latents.measuring import Measuring
from omniloom.stages.latents.stage import MEANINGS

RNG = np.random.default_rng(0)


def test_the_velocity_of_normal_rows_keeps_half_a_pi():
    """x normal: Var(v | x_t) = 1 / ((1 - t)^2 + t^2), whose integral over t is pi / 2."""
    found = figures.velocity_variance(RNG.standard_normal((20_000, 1)), seed=0)
    assert found == pytest.approx(math.pi / 2, rel=0.03)


def test_a_velocity_is_known_where_one_point_is_all_there_is():
    assert figures.velocity_variance(np.ones((50, 3)), seed=0) == pytest.approx(0, abs=1e-9)


def test_two_far_points_leave_what_a_second_way_of_integrating_says():
    """Points at +-1 of one dimension: E Var(x | x_t) / t^2 by a fine grid over x_t."""
    rows, total = np.array([[1.0], [-1.0]]), 0.0
    for t in (np.arange(16) + 0.5) / 16:
        x = np.linspace(-6, 6, 4001)
        density = sum(np.exp(-((x - (1 - t) * m) ** 2) / (2 * t**2)) / (t * math.sqrt(2 * math.pi)) for m in (1, -1))
        mean = np.tanh((1 - t) * x / t**2)
        total += float(((1 - mean**2) * density / 2).sum() * (x[1] - x[0])) / t**2
    assert figures.velocity_variance(rows, seed=1) == pytest.approx(total / 16, rel=0.08)


@pytest.mark.parametrize("dims", [2, 5])
def test_the_dimension_of_a_flat_piece_of_space_is_its_own(dims):
    flat = RNG.uniform(size=(3000, dims)) @ np.linalg.qr(RNG.standard_normal((20, dims)))[0].T
    assert figures.intrinsic_dimension(flat) == pytest.approx(dims, rel=0.1)


def test_rows_that_occur_twice_count_once():
    rows = RNG.uniform(size=(1500, 2))
    assert figures.intrinsic_dimension(np.concatenate((rows, rows))) == figures.intrinsic_dimension(
        np.unique(rows, axis=0)
    )


@pytest.mark.parametrize("slope", [0.0, -2.0])
def test_the_spectrum_of_noise_with_a_power_law_has_its_slope(slope):
    size = 32
    white = RNG.standard_normal((200, 2, size, size))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size) * size, np.fft.fftfreq(size) * size))
    frequency[0, 0] = 1
    coloured = np.fft.ifft2(np.fft.fft2(white) * frequency ** (slope / 2)).real
    assert figures.spectrum_slope(figures.spectrum(coloured)) == pytest.approx(slope, abs=0.1)


def test_a_grid_of_few_positions_has_no_spectrum():
    assert figures.spectrum(RNG.standard_normal((10, 2, 4, 4))) is None
    assert figures.spectrum_slope(None) is None


def test_a_probe_reads_what_is_linear_and_no_more():
    labels = RNG.integers(0, 3, 600)
    rows = np.eye(3)[labels] + 0.1 * RNG.standard_normal((600, 3))
    names = [f"label {n}" for n in labels]
    right = figures.probe(rows[:400], names[:400], rows[400:], names[400:], 0)
    assert right is not None and right.mean() > 0.98
    noise = RNG.standard_normal((600, 3))
    lost = figures.probe(noise[:400], names[:400], noise[400:], names[400:], 0)
    assert lost is not None and lost.mean() < 0.5
    assert figures.probe(rows, ["one"] * 600, rows, ["one"] * 600, 0) is None


def test_neighbours_are_those_that_a_whole_table_gives():
    rows = RNG.standard_normal((300, 4))
    places, distances = figures.nearest(rows, 3)
    table = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(table, np.inf)
    assert (places == np.argsort(table, axis=1)[:, :3]).all()
    np.testing.assert_allclose(distances, np.sort(table, axis=1)[:, :3], atol=1e-6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """200 of 1,200 squares lie in validation."""
    return ingest(tmp_path_factory.mktemp("records"), images=1200, videos=0)


def measured(corpus, folder, quantizer=None, **fields):
    config = Config(size=24, train_pictures=300, cpus=1, **fields)
    return Measuring(config, corpus, tokenizer(folder, quantizer=quantizer), "cpu")


def test_a_tokenizer_with_codes_is_measured(corpus, tmp_path):
    measuring = measured(corpus, tmp_path)
    found = measuring(lambda text: None)
    assert set(found.figures) - {name + end for name in MEANINGS for end in ("_low", "_high")} == {*MEANINGS} - {
        "spectrum_slope"  # a grid of 3x3
    }
    codes = measuring.encoded.codes
    assert codes is not None and codes.shape == (200, 3, 3)
    assert found.figures["bits_codes"] == pytest.approx(6 * 9 / 24**2)
    _, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    assert found.figures["bits_entropy"] == pytest.approx(scipy.stats.entropy(share, base=2) * 9 / 24**2)
    assert found.figures["codebook_usage"] == len(counts) / 64
    assert Image.open(io.BytesIO(found.picture)).size[0] > 100
    changed = [(a != b).any() for a, b in zip(measuring.perturbed, measuring.reconstructions, strict=True)]
    assert np.mean(changed) > 0.9


def test_continuous_latents_have_no_codes_to_count(corpus, tmp_path):
    measuring = measured(corpus, tmp_path, GaussianConfig(latent_dim=4))
    found = measuring(lambda text: None).figures
    assert "bits_codes" not in found and "codebook_usage" not in found
    assert found["latent_numbers"] == 4 * 9
    assert found["ifid"] > 0 and found["pfid"] > 0


def test_a_distance_is_torchmetrics(corpus, tmp_path):
    """rFID is the Fréchet distance of torchmetrics' formula on the same features."""
    from torchmetrics.image.fid import _compute_fid

    measuring = measured(corpus, tmp_path)
    rfid = measuring._reconstructed()["rfid"]
    rows = [torch.from_numpy(measuring._features(p)) for p in (measuring.held.pictures, measuring.reconstructions)]
    moments = [(x.mean(0), torch.cov(x.T)) for x in rows]
    assert rfid == pytest.approx(float(_compute_fid(*moments[0], *moments[1])), rel=1e-3)


def test_the_half_way_picture_of_two_equal_neighbours_is_their_own(corpus, tmp_path):
    measuring = measured(corpus, tmp_path, GaussianConfig(latent_dim=4))
    latents = measuring.encoded.latents.copy()
    latents[1::2] = latents[::2]
    measuring.encoded.__dict__.pop("flat", None)
    measuring.encoded.latents = latents
    for own, half in zip(measuring.reconstructions, measuring.halfway, strict=True):
        np.testing.assert_array_equal(own, half)


def test_a_split_of_few_pictures_is_refused(tmp_path):
    few = ingest(tmp_path / "few", images=24, videos=0)
    with pytest.raises(InputError, match="at least 100 pictures in the validation split, got 4"):
        measured(few, tmp_path / "tokenizer")


def test_wrong_settings_name_their_field():
    class Tokenizer:
        class model:  # noqa: N801
            patch_size = 8

    with pytest.raises(InputError, match="multiple of the tokenizer's patch 8") as caught:
        stage.check(Config(size=20), {"tokenizer": Tokenizer})
    assert caught.value.field == "size"
    with pytest.raises(InputError, match="100 pictures") as caught:
        stage.check_counts(Config(size=24), {}, {"records_validation": 12})
    assert caught.value.field == "split"
