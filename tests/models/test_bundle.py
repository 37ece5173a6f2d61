"""A model folder: what is saved is what is loaded, and what each task gives."""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch

from omniloom.models.model import BundleConfig, OmniLoom, to_pixels, to_uint8
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.omni import OmniTokenizer
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.model import UnifiedModel


def build(tied: bool = True) -> OmniLoom:
    torch.manual_seed(0)
    text = TextTokenizer.train(["a handwritten seven", "a handwritten two moving left"] * 20, 280)
    config = BundleConfig(
        unified=UnifiedConfig(vocab_size=text.vocab_size, latent_dim=4, width=48, layers=2, heads=4, tied=tied),
        diffusion=DiffusionConfig(predict="x"),
        tokenizer=corpora.small_tokenizer(),
        latent_mean=(0.1, -0.2, 0.3, 0.0),
        latent_std=(0.5, 1.0, 2.0, 0.25),
        image_size=(16, 16),
        num_frames=5,
    )
    tokenizer = OmniTokenizer(config.tokenizer)
    # One training pass, as the codebook is made from the first batch.
    tokenizer.train().encode(torch.rand(16, 3, 16, 16) - 0.5, update_codebook=True)
    model = UnifiedModel(config.unified)
    torch.nn.init.normal_(model.visual_out.weight, std=0.1)
    return OmniLoom(config, model, tokenizer, text, batch_size=2)


@pytest.fixture(scope="module")
def loom() -> OmniLoom:
    return build()


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path: Path, tied: bool) -> None:
    made = build(tied)
    made.save(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "unified.safetensors", "tokenizer.safetensors", "text.json"}
    loaded = OmniLoom.load(tmp_path / "model")
    assert loaded.config == made.config
    for mine, theirs in ((made.model, loaded.model), (made.tokenizer, loaded.tokenizer)):
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values()))
    prompts = ["a handwritten seven", ""]
    assert np.array_equal(
        made.text_to_image(prompts, VisualSampling(num_steps=2)),
        loaded.text_to_image(prompts, VisualSampling(num_steps=2)),
    )
    assert made.text_to_text(prompts, TextSampling(max_new_tokens=5)) == loaded.text_to_text(
        prompts, TextSampling(max_new_tokens=5)
    )


def test_a_language_model_has_no_visual_tokenizer_and_refuses_pictures(loom: OmniLoom, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BundleConfig(
        UnifiedConfig(vocab_size=loom.text.vocab_size, width=32, layers=1, heads=2),
        DiffusionConfig(),
        None,
        (),
        (),
        None,
        objectives=(),
    )
    made = OmniLoom(config, UnifiedModel(config.unified), None, loom.text)
    made.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "unified.safetensors", "text.json"}
    loaded = OmniLoom.load(tmp_path)
    assert loaded.config == config and loaded.tokenizer is None
    assert loaded.text_to_text(["a hand", ""], TextSampling(max_new_tokens=5)) == made.text_to_text(
        ["a hand", ""], TextSampling(max_new_tokens=5)
    )
    picture = np.zeros((16, 16, 3), np.uint8)
    for ask in (
        lambda: loaded.text_to_image(["a"]),
        lambda: loaded.image_to_text([picture]),
        lambda: loaded.text_to_video(["a"], VisualSampling(size=(16, 16))),
        lambda: loaded.encode(torch.zeros(1, 3, 16, 16)),
        lambda: loaded.text_to_image(["a"], VisualSampling(objective="latent_diffusion")),
    ):
        with pytest.raises(ValueError, match="trained on text alone and knows no pictures"):
            ask()
    with pytest.raises(ValueError, match="BundleConfig.tokenizer: is missing, and latent_diffusion needs it"):
        BundleConfig(loom.config.unified, DiffusionConfig(), None, (), (), (16, 16))


def test_tasks(loom: OmniLoom) -> None:
    prompts = ["a handwritten seven", "two", ""]
    images = loom.text_to_image(prompts, VisualSampling(num_steps=2), seeds=[1, 2, 3])
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    again = loom.text_to_image(prompts[2:], VisualSampling(num_steps=2), seeds=[3])
    assert np.abs(again[0].astype(int) - images[2].astype(int)).max() <= 1
    assert loom.text_to_image(prompts[:1], VisualSampling(size=(24, 40), num_steps=1)).shape == (1, 24, 40, 3)
    assert loom.text_to_video(prompts, VisualSampling(num_steps=1)).shape == (3, 5, 16, 16, 3)
    captions = loom.image_to_text(list(images), text=TextSampling(max_new_tokens=4))
    assert len(captions) == 3 and all(isinstance(caption, str) for caption in captions)
    assert loom.image_to_text([images[1]], text=TextSampling(max_new_tokens=4)) == captions[1:2]
    large = np.random.default_rng(0).integers(0, 256, (50, 31, 3), dtype=np.uint8)
    assert len(loom.image_to_text([large], text=TextSampling(max_new_tokens=3), prompt="what is it?")) == 1
    assert len(loom.text_to_text(prompts, TextSampling(max_new_tokens=6, temperature=1.0, top_k=20, top_p=0.9))) == 3
    assert loom.text_to_text([]) == [] and loom.text_to_image([]).shape == (0, 16, 16, 3)
    with pytest.raises(ValueError, match="multiples of 8"):
        loom.text_to_image(prompts, VisualSampling(size=(20, 20)))


def test_latents_are_normalised_and_come_back(loom: OmniLoom) -> None:
    pixels = torch.rand(2, 3, 5, 16, 16) - 0.5
    encoded = loom.tokenizer.encode(pixels)
    latents = loom.encode(pixels)
    assert latents.shape == (2, 2, 2, 2, 4)
    for c in range(4):
        raw = encoded.latents[:, c].detach().numpy()
        expected = (raw - loom.config.latent_mean[c]) / loom.config.latent_std[c]
        np.testing.assert_allclose(latents[..., c], expected, atol=1e-5)
    with torch.no_grad():
        direct = to_uint8(loom.tokenizer.decode(encoded.codes))
    assert np.abs(loom.decode(torch.from_numpy(latents)).astype(int) - direct.astype(int)).max() <= 1


def test_pixels() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    pixels = to_pixels([ramp], (16, 16))
    assert pixels.min() == -0.5 and pixels.max() == 0.5
    assert np.array_equal(to_uint8(pixels)[0], ramp)
    # Wider than asked for: scaled by the height, cut left and right.
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    assert to_pixels([wide], (16, 16)).shape == (1, 3, 16, 16)
    assert to_pixels([wide], (16, 16))[..., 2:-2].min() == 0.5
    with pytest.raises(ValueError, match=r"images\[0\]: expected uint8"):
        to_pixels([np.zeros((4, 4, 3), np.float32)], (4, 4))


def test_wrong_folders_are_named(loom: OmniLoom, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json: cannot read"):
        OmniLoom.load(tmp_path / "nothing")
    loom.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def expect(document: dict, message: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps(document))
        with pytest.raises(ValueError, match=message):
            OmniLoom.load(tmp_path)

    expect({**config, "version": 99}, "version: expected 1, got 99")
    expect({**config, "extra": 1}, r"config.json.extra: unknown field")
    expect({**config, "unified": {**config["unified"], "wdith": 3}}, r"config.json.unified.wdith: unknown field")
    expect({k: v for k, v in config.items() if k != "latent_std"}, r"config.json.latent_std: missing")
    expect({**config, "unified": {**config["unified"], "layers": 3}}, "unified.safetensors: does not fit")
    expect({**config, "text_digest": "0"}, "text.json: not the tokenizer")
    expect({**config, "latent_std": [1, 1, 1, 0]}, "latent_std: expected positive")
    expect({**config, "latent_mean": [1]}, "latent_mean: expected 4 values")
    (tmp_path / "unified.safetensors").write_bytes(b"broken")
    expect(config, "unified.safetensors: cannot load")
