"""RAE through the stages: a decoder trained on a frozen encoder's features, carried on, packed, drawn, described."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom, to_pixels
from omniloom.models.tokenizer.config import RAEConfig, TokenizerConfig
from omniloom.models.tokenizer.vit import load_vit
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.checkpoints.vision_encoder import encoder_config, load_encoder
from omniloom.stages.data import records
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.evaluate.filming import film
from omniloom.stages.evaluate.stage import Config as EvaluateConfig
from omniloom.stages.evaluate.tokenizer import codebook, reconstruct
from omniloom.stages.evaluate.writing import describe
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.pretokenize.stats import combine
from omniloom.stages.reporting import history
from omniloom.stages.studies.quantizers import Config as StudyConfig
from omniloom.stages.tokenizer import stage as train_tokenizer
from omniloom.stages.tokenizer import worker as tokenizer_worker
from omniloom.stages.train import config as unified_settings
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("corpus") / "ingest", images=24, videos=0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Of a folder that the first stage alone may read: what comes after must need no more than artifacts."""
    return corpora.vision_encoder(tmp_path_factory.mktemp("encoder") / "siglip")


def config(**fields) -> train_tokenizer.Config:
    return train_tokenizer.Config.model_validate(
        {
            "loss": {"adversarial_start": 80, "adversarial_ramp": 10},
            "discriminator": {"channels": 4, "layers": 1},
            "data": {"kinds": ["image"], "sizes": [24], "image_batch": 8},
            "steps": 120,
            "seed": 2,
            "optimizer": {"lr": 5e-3, "warmup_steps": 5, "weight_decay": 0.0},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "validate_every": 60,
            "validation_examples": 4,
            "workers": {"count": 1, "checkpoint_every": 200, "log_every": 20},
            **fields,
        }
    )


def model(encoder, **fields) -> dict:
    return {
        "architecture": "rae",
        "encoder": str(encoder),
        "width": 32,
        "heads": 2,
        "head_dim": 16,
        "decoder_layers": 2,
        **fields,
    }


def train(folder: Path, stage: str, pictures, settings, known=None, start_from=None, progress=None):
    tokenizer_worker.train_worker(
        tokenizer_worker.Job(
            settings,
            train_tokenizer.architecture(settings, known),
            pictures,
            start_from,
            str(folder / "output"),
            str(folder / "state"),
            progress or corpora.Silent(),
            corpora.Silent(),
        )
    )
    return corpora.seal(folder / "output", stage, settings)


@pytest.fixture(scope="module")
def image_stage(tmp_path_factory, pictures, encoder):
    return train(tmp_path_factory.mktemp("image"), "tokenizer_image", pictures, config(model=model(encoder)))


@pytest.fixture(scope="module")
def joint_stage(tmp_path_factory, pictures, image_stage):
    """A second stage on images in two shapes, its architecture known from the first."""
    known = load_tokenizer(image_stage).config
    settings = config(
        steps=2,
        optimizer={"lr": 1e-9, "warmup_steps": 0},
        engine={"zero_stage": 3, "ema_decay": 0.0},
        data={"sizes": [16, 24], "aspects": ["1:1", "3:2"], "image_batch": 8},
    )
    return train(tmp_path_factory.mktemp("joint"), "tokenizer_joint", pictures, settings, known, image_stage)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, pictures, joint_stage):
    folder, text = tmp_path_factory.mktemp("tokens"), corpora.text_tokenizer()
    (folder / "text.json").write_text(text.to_json(), encoding="utf-8")
    settings = pretokenize.Config(image_size=24, batch_size=5)
    actor = ShardTokenizer(
        settings, joint_stage, str(folder / "text.json"), str(folder / "output"), str(folder / "state")
    )
    stats = []
    for index, uri in enumerate(records.shards(pictures.uri)):
        actor({"index": index, "uri": uri})
        stats.append(storage.read_json(str(folder / "state" / "shards" / f"{index:05d}.json")))
    artifact = corpora.pretokenize(folder / "output", {}, text, visual_digest=joint_stage.digest)
    facts, found = combine(stats), storage.read_json(artifact.file("tokens.json"))
    storage.write_json(
        artifact.file("tokens.json"),
        found | {"codebook_size": None, "latent_mean": facts["latent_mean"], "latent_std": facts["latent_std"]},
    )
    return corpora.seal(folder / "output", "pretokenize")


SQUARES = to_pixels([corpora.square(colour, (4, 4)) for colour in corpora.COLOURS], (24, 24))


def test_the_image_stage_trains_the_decoder_alone(image_stage, encoder):
    rows = history.load(image_stage.file("report", "history.jsonl"))
    losses = [row for row in rows if "loss" in row]
    before = [row["image_reconstruction_l1"] for row in losses]
    assert before[-1] < 0.7 * before[0] and losses[-1]["image_psnr"] > losses[0]["image_psnr"] + 2
    validations = [row["validation_psnr_image"] for row in rows if "validation_psnr_image" in row]
    assert validations[-1] > 10 and not any("codebook" in name for row in rows for name in row)
    assert "image_discriminator_loss" in losses[-1] and "image_generator_hinge" in losses[-1]
    trained = load_tokenizer(image_stage)
    assert isinstance(trained.config, RAEConfig) and (trained.config.patch_size, trained.latent_dim) == (8, 24)
    for name, value in load_vit(encoder).state_dict().items():
        assert torch.equal(trained.encoder.state_dict()[name], value), name
    assert not any(p.requires_grad for p in trained.encoder.parameters())


def test_the_joint_stage_carries_it_on_without_the_encoders_folder(image_stage, joint_stage):
    first, second = (load_tokenizer(stage) for stage in (image_stage, joint_stage))
    assert second.config == first.config
    with torch.no_grad():
        (wanted, one), (found, other) = first(SQUARES), second(SQUARES)
    assert torch.equal(one.latents, other.latents) and (wanted - found).abs().max() < 1e-3


def test_features_go_through_training_to_pictures_and_captions(tmp_path, pictures, encoder, joint_stage, tokens):
    documents, visual = TokenSet(tokens, "train"), load_vit(encoder)
    segment = next(s for s in documents.document(0) if s.kind == "visual")
    assert segment.grid == (1, 3, 3) and segment.codes is None and segment.latents.shape == (9, 24)
    assert unified_settings.visual_sizes(documents.facts)["latent_dim"] == visual.config.width == 24
    settings = train_unified.Config.model_validate(
        {
            "model": {"width": 32, "layers": 1, "heads": 2, "time_dim": 16},
            "diffusion": {"predict": "x"},  # 24 channels are wide for this model
            "packing": {"length": 64, "window_rows": 6},
            "batch_rows": 2,
            "steps": 3,
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "workers": {"count": 1, "checkpoint_every": 10, "log_every": 1},
            "validate_every": 10,
            "validation_rows": 2,
            "samples": {"count": 2, "num_steps": 2},
        }
    )
    unified_worker.train_worker(
        unified_worker.Job(
            settings,
            tokens,
            joint_stage,
            str(tmp_path / "output"),
            str(tmp_path / "state"),
            corpora.Silent(),
            corpora.Silent(),
        )
    )
    shutil.copytree(tmp_path / "output" / "model", tmp_path / "elsewhere")
    loom = OmniLoom.load(tmp_path / "elsewhere")
    trained = load_tokenizer(joint_stage)
    assert loom.config.tokenizer == trained.config and not loom.config.snap_latents
    stored = load_file(tmp_path / "elsewhere" / "tokenizer.safetensors")
    assert torch.equal(stored["encoder.patch.weight"], visual.patch.weight)
    drawn = loom.text_to_image(["a red square"], VisualSampling(num_steps=2))
    assert drawn.shape == (1, 24, 24, 3) and drawn.dtype == np.uint8
    assert loom.text_to_image(["a red square"], VisualSampling(num_steps=2, size=(16, 32))).shape == (1, 16, 32, 3)
    assert isinstance(loom.image_to_text([drawn[0]], text=TextSampling(max_new_tokens=3))[0], str)
    with pytest.raises(ValueError, match="single images, got 5 frames"):
        loom.text_to_video(["a red square"], VisualSampling(num_frames=5))
    # Encoded and decoded by the bundle as by the tokenizer itself.
    latents = loom.encode(SQUARES)
    assert latents.shape == (4, 1, 3, 3, 24)
    with torch.no_grad():
        recon = trained(SQUARES)[0]
    decoded = loom.decode(torch.from_numpy(latents))[:, 0].astype(float)
    assert np.abs(decoded - ((recon.permute(0, 2, 3, 1).numpy() + 0.5) * 255).clip(0, 255)).max() <= 0.51
    # And judged on the held-out split.
    inputs = {
        "records": pictures,
        "tokenizer": joint_stage,
        "tokens": tokens,
        "model": corpora.seal(tmp_path / "output", "train"),
    }
    evaluation = Evaluation(EvaluateConfig(reconstructions=4, drawings=2, captions=2, num_steps=2), inputs, "cpu")
    for measure in (reconstruct, codebook, describe, film):
        measure(evaluation)
    assert evaluation.metrics["recon_psnr_image"] > 10 and "codebook_usage" not in evaluation.metrics


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, pictures, encoder):
    settings = config(
        model=model(encoder),
        steps=6,
        loss={},
        discriminator=None,
        validate_every=10,
        workers={"count": 1, "checkpoint_every": 3, "log_every": 1},
    )
    whole = train(tmp_path / "whole", "tokenizer_image", pictures, settings)

    class Kill(corpora.Silent):
        def __call__(self, done, *arguments, **facts):
            if done >= 5:
                raise corpora.Killed

    with pytest.raises(corpora.Killed):
        train(tmp_path / "killed", "tokenizer_image", pictures, settings, progress=Kill())
    again = train(tmp_path / "killed", "tokenizer_image", pictures, settings)
    wanted, found = (load_file(a.file("tokenizer", "tokenizer.safetensors")) for a in (whole, again))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": {"kinds": ["image", "video"], "sizes": [24]}}, "data.kinds: an RAE is for images alone"),
        (
            {
                "model": {
                    "architecture": "rae",
                    "encoder": {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "patch_size": 8, "grid": 2},
                }
            },
            "valid string",
        ),
        ({"model": {"architecture": "rae", "encoder": "x", "patch_size": 7}}, "24 is no multiple of patch_size 7"),
    ],
)
def test_what_an_rae_cannot_train_on(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**{"model": model("x"), **changes})


def test_an_encoder_that_lies_elsewhere_is_copied_once(encoder):
    uri = f"memory://{uuid.uuid4().hex}"
    for file in encoder.iterdir():
        storage.copy_file(str(file), storage.join(uri, file.name))
    assert encoder_config(uri, "model.encoder") == load_vit(encoder).config
    once = load_encoder(uri, "model.encoder").state_dict()
    assert all(torch.equal(once[name], value) for name, value in load_vit(encoder).state_dict().items())
    storage.write_bytes(storage.join(uri, "config.json"), b"{}")
    with pytest.raises(InputError, match="architectures: expected one of") as caught:
        encoder_config(uri, "model.encoder")
    assert (caught.value.field, caught.value.file) == ("model.encoder", uri)


def test_what_only_the_encoders_folder_tells(tmp_path, encoder):
    found = train_tokenizer.architecture(config(model=model(encoder)), None)
    assert (found.patch_size, found.latent_dim, found.encoder.mean) == (8, 24, (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="model.encoder: no vision encoder: .*config.json: cannot be read") as caught:
        train_tokenizer.architecture(config(model=model(tmp_path / "nowhere")), None)
    assert caught.value.field == "model.encoder" and caught.value.file == str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="quantizer: expected none"):
        train_tokenizer.architecture(config(quantizer={"kind": "kl"}), found)
    with pytest.raises(InputError, match="starts from a tokenizer of the architecture 'omni', got 'rae'"):
        train_tokenizer.architecture(config(model=model(encoder)), TokenizerConfig())
    with pytest.raises(ValueError, match="data.sizes: 20 is no multiple of patch_size 8"):
        train_tokenizer.check_fit(found, config(data={"sizes": [20]}).data)
    with pytest.raises(ValidationError, match="an RAE has no quantizer to study"):
        StudyConfig(training=config(model=model(encoder)), quantizers={"kl": {"kind": "kl"}})
    with pytest.raises(InputError, match="an RAE, which is for images alone"):
        pretokenize.check_fit(pretokenize.Config(image_size=24, video_size=24), found, {"image", "video"})
    pretokenize.check_fit(pretokenize.Config(image_size=24), found, {"image"})
