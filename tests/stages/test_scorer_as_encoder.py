"""The scorer of the same graph as a frozen encoder: of an RAE, and of what latents are aligned with."""

from __future__ import annotations

from pathlib import Path

import corpora
import pytest
import torch
import transformers
from safetensors.torch import load_file

from omniloom.infra.errors import InputError
from omniloom.models.tokenizer.config import RAEConfig, TokenizerConfig
from omniloom.models.tokenizer.vit import load_vit
from omniloom.pipelines.fingerprint import canonical
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.reporting import history
from omniloom.stages.scorer.config import Config as ScorerStage
from omniloom.stages.tokenizer import stage
from omniloom.stages.tokenizer.worker import train_worker

SMALL = {"width": 32, "heads": 2, "head_dim": 16}
RAE = {"architecture": "rae", "decoder_layers": 1, "patch_size": 8, **SMALL}
OMNI = {
    "quantizer": {"kind": "kl", "latent_dim": 4},
    "spatial_layers": "t",
    "decoder_spatial_layers": "t",
    "temporal_layers": 0,
    **SMALL,
}
SCORER = ScorerStage(model={"image_size": 24, "patch_size": 4, "width": 24, "heads": 2, "layers": 1, "text_layers": 1})


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("corpus") / "ingest", images=24, videos=0)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """An artifact with one fold, as `transformers` saves the model of SCORER."""
    folder = tmp_path_factory.mktemp("scorer")
    torch.manual_seed(1)
    tower = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu"}
    vision = {**tower, "intermediate_size": 96, "image_size": 24, "patch_size": 4}
    text = {**tower, "intermediate_size": 96, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 3}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=128)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "scorer" / "0")
    return corpora.seal(folder, "train_scorer")


def config(**fields) -> stage.Config:
    return stage.Config.model_validate(
        {
            "data": {"kinds": ["image"], "sizes": [24], "image_batch": 8},
            "steps": 3,
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "engine": {"zero_stage": 1, "ema_decay": 0.0, "precision": "bf16"},
            "validate_every": 3,
            "validation_examples": 4,
            "workers": {"count": 1, "log_every": 1},
            **fields,
        }
    )


def train(folder: Path, pictures, settings, scorer=None):
    where = str(folder / "output"), str(folder / "state"), corpora.Silent(), corpora.Silent()
    train_worker(stage.job_of(settings, pictures, None, *where, scorer=scorer))
    return corpora.seal(folder / "output", "tokenizer_image", settings)


def test_an_rae_on_the_scorers_pictures_tower(tmp_path, pictures, scorer):
    made = load_tokenizer(train(tmp_path, pictures, config(model=RAE), scorer))
    known = stage.resolved(config(model=RAE), {"scorer": SCORER}).model
    assert isinstance(made.config, RAEConfig) and made.config == known  # before anything is trained the plan knows it
    encoder = load_vit(Path(scorer.file("scorer", "0")))
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(made.encoder.state_dict()[name].float(), value, rtol=1e-2, atol=1e-2)


def test_latents_are_aligned_with_it_and_nothing_of_it_is_kept(tmp_path, pictures, scorer):
    made = train(tmp_path, pictures, config(model=OMNI, alignment={"cosine_margin": 0.0}), scorer)
    rows = [row for row in history.load(made.file("report", "history.jsonl")) if "image_alignment_cosine" in row]
    assert len(rows) == 3 and all(0 < row["image_alignment_cosine"] < 2 for row in rows)
    assert all(row["image_alignment_weight"] > 0 and row["image_alignment_distance"] >= 0 for row in rows)
    assert isinstance(load_tokenizer(made).config, TokenizerConfig)
    assert not any("align" in name for name in load_file(made.file("tokenizer", "tokenizer.safetensors")))


def test_the_scorer_is_an_input_where_it_is_asked_for_alone():
    for asks in ({"model": RAE}, {"model": OMNI, "alignment": {}}):
        assert stage.unread(config(**asks)) == ()
    named = ({"model": RAE | {"encoder": "/vit"}}, {"model": OMNI, "alignment": {"encoder": "/vit"}}, {"model": OMNI})
    for alone in named:
        assert stage.unread(config(**alone)) == ("scorer",)
    assert "alignment" not in canonical(config(model=OMNI))  # what was trained without it stays what it is


@pytest.mark.parametrize(
    "fields, upstream, field, message",
    [
        ({"model": RAE}, {}, "model.encoder", "no stage before this one trains a scorer"),
        ({"model": OMNI, "alignment": {}}, {}, "alignment.encoder", "no stage before this one trains a scorer"),
        ({"model": RAE, "alignment": {}}, {"scorer": SCORER}, "alignment", "got|architecture 'rae'"),
        ({"model": OMNI, "alignment": {"encoder": "/no/vit"}}, {}, "alignment.encoder", "holds neither"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_spent(fields, upstream, field, message):
    with pytest.raises(InputError, match=message) as caught:
        stage.check(config(**fields), upstream)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data": {"kinds": ["image", "video"], "sizes": [24]}}, "alignment: is of pictures alone"),
        ({"train_only": "decoder"}, "alignment: has no effect with train_only"),
        ({"engine": {"zero_stage": 3}}, "alignment: reads one matrix's gradient"),
    ],
)
def test_settings_that_do_not_go_with_an_alignment(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**{"model": OMNI, "alignment": {}} | fields)
