"""Evaluation in the features of networks that a config names: all five, with random weights, on a small corpus."""

from __future__ import annotations

import json

import corpora
import feature_references
import numpy as np
import pytest
import small_models
import torch
from PIL import Image

from omniloom.infra.errors import InputError
from omniloom.models.features import layouts
from omniloom.stages.checkpoints import dual_encoder
from omniloom.stages.evaluate import drawing, measures, metrics
from omniloom.stages.evaluate import report as evaluation_report
from omniloom.stages.evaluate.config import EvaluateConfig
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.features import distances, measuring, networks
from omniloom.stages.evaluate.filming import film
from omniloom.stages.evaluate.tokenizer import _reconstructed, reconstruct

COUNT = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """The networks' files. Inception is a TorchScript file: its published layout is large, and has its own tests."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    folder, small = tmp_path_factory.mktemp("networks"), {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    torch.jit.script(feature_references.Scripted()).save(str(folder / "scripted.pt"))
    Dinov2Model(Dinov2Config(hidden_size=16, image_size=28, patch_size=14, **small)).save_pretrained(folder / "dino")
    words = ["<start>", "<end>", "a", "red", "green", "blue", "square", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<start>", "<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    shape = {"hidden_size": 16, "intermediate_size": 32, **small}
    CLIPModel(
        CLIPConfig(
            text_config={**shape, "vocab_size": 8, "max_position_embeddings": 9, "eos_token_id": 1, "bos_token_id": 0},
            vision_config={**shape, "image_size": 32, "patch_size": 8},
            projection_dim=12,
        )
    ).save_pretrained(folder / "clip")
    tokenizer.save(str(folder / "clip" / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    for name, layout in (("vgg", layouts.vgg_tensors()), ("heads", layouts.head_tensors())):
        state = {key: torch.rand(shapes[0], generator=generator) * 0.05 for key, shapes in layout.items()}
        feature_references.save(state, folder / f"{name}.safetensors")
    return {
        "inception": str(folder / "scripted.pt"),
        "dinov2": str(folder / "dino"),
        "clip": str(folder / "clip"),
        "i3d": str(folder / "scripted.pt"),
        "lpips": {"vgg": str(folder / "vgg.safetensors"), "heads": str(folder / "heads.safetensors")},
        "kid_subsets": 5,
        "kid_subset_size": 4,
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("features")
    made = corpora.ingest(folder / "ingest", images=48, videos=60)
    return small_models.of_squares(folder, made, num_frames=5)


@pytest.fixture
def few(monkeypatch):
    """Distances of as few pictures as the corpus holds."""
    for module in (drawing, measures, measuring):
        monkeypatch.setattr(module, "LEAST_PICTURES", COUNT)


def evaluation(inputs, files, **fields) -> Evaluation:
    config = {
        "split": "validation",
        "drawings": COUNT,
        "captions": 0,
        "videos": 60,
        "num_steps": 1,
        "class_examples": 2,
        "counterfactuals": 0,
        "features": files,
        **fields,
    }
    return Evaluation(EvaluateConfig.model_validate(config), inputs, "cpu")


def test_every_figure_is_measured_and_that_of_its_definition(inputs, files, few):
    found = evaluation(inputs, files)
    for part in (reconstruct, drawing.draw, film):
        part(found)
    found.close()
    known = {
        name: figure for name, figure in measures.measured(found.config, found.objectives).items() if figure.network
    }
    assert len(found.videos) >= COUNT
    assert set(known) <= set(found.metrics), set(known) - set(found.metrics)
    better = [name for name, figure in known.items() if figure.better]
    assert all(f"{name}_low" in found.metrics for name in better)
    plain = found.plain[:COUNT]
    real = [found.images[i][0] for i in plain]
    drawn = drawing.drawn_for(found, plain, "latent_diffusion")
    inception = found.networks.inception
    assert found.metrics["fid"] == pytest.approx(metrics.frechet(inception(real), inception(drawn)), rel=1e-6)
    clip = found.networks.clip
    assert found.metrics["cmmd"] == pytest.approx(distances.cmmd(clip(real), clip(drawn)).value, rel=1e-6)
    expected = distances.precision(inception(real), inception(drawn)).mean()
    assert found.metrics["precision_inception"] == pytest.approx(expected)
    assert 0 <= found.metrics["recall_dinov2"] <= 1 and found.metrics["kid_std"] >= 0
    html = json.dumps(evaluation_report._networks(found))
    assert "antialiased" in html and "rescale" in html and files["dinov2"] in html


def test_lpips_and_rfid_of_reconstructions(inputs, files, few):
    found = evaluation(inputs, files)
    reconstruct(found)
    indices = found.images.spread(0)[: found.config.reconstructions].tolist()
    batch = np.stack([found.images[i] for i in indices])
    made = _reconstructed(found, batch)
    net = found.networks.inception
    expected = metrics.frechet(net(list(batch[:, 0])), net(list(made[:, 0])))
    assert found.metrics["rfid"] == pytest.approx(expected, rel=1e-5)
    both = [torch.from_numpy(x[:, 0]).permute(0, 3, 1, 2) / 255 - 0.5 for x in (batch, made)]
    assert found.metrics["recon_lpips_image"] == pytest.approx(float(found.networks.lpips(*both).mean()), rel=1e-4)


def test_real_pictures_are_seen_once(inputs, files, few, monkeypatch, tmp_path):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    computed = networks._computed

    def counted(net, clips, indices):
        seen.append(len(indices))
        return computed(net, clips, indices)

    monkeypatch.setattr(networks, "_computed", counted)
    only = {"inception": files["inception"]}
    first = evaluation(inputs, only)
    drawing.draw(first)
    assert sum(seen) == 2 * COUNT, "held-out ones and as many train pictures"
    second = evaluation(inputs, only)
    drawing.draw(second)
    assert sum(seen) == 2 * COUNT, "an evaluation after it reads them from the cache"
    assert second.metrics["fid"] == first.metrics["fid"]


def test_preprocessing_of_pictures(inputs, files):
    found = evaluation(inputs, files)
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    covering = dual_encoder.covering(picture, 20)
    whole = np.asarray(Image.fromarray(picture).resize((28, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(covering, whole[:, 4:24])
    side = 224
    small = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
    assert np.array_equal(dual_encoder.resized(picture, (side, side)), small)
    together = found.networks.dinov2([picture, picture[:24, :24], picture])
    assert together.shape == (3, 16) and np.allclose(together[0], together[2], atol=1e-5)
    alone = found.networks.dinov2([picture[:24, :24]])
    assert np.allclose(together[1], alone[0], atol=1e-5), "in their order, whatever their shapes"


def test_a_network_that_takes_no_such_clip_is_told_first(inputs, files, tmp_path):
    class Large(torch.nn.Module):
        def forward(self, x, return_features: bool = True):
            assert x.shape[2] > 100, "pictures of more than 100 pixels"
            return x.float().mean((2, 3))

    torch.jit.script(Large()).save(str(tmp_path / "large.pt"))
    with pytest.raises(InputError, match="does not take a clip of 24x24x3") as caught:
        evaluation(inputs, {"inception": str(tmp_path / "large.pt")})
    assert caught.value.field == "features.inception" and caught.value.file == str(tmp_path / "large.pt")
