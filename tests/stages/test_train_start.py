"""`train` with `init_from`: a tiny Llama that transformers saved, trained on in the worker; frozen parts; what is
refused, and at which field."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.unified import SpecialIds, UnifiedConfig, load_llama
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.llama.load import is_text_parameter
from omniloom.stages.base import StageContext
from omniloom.stages.checkpoints.language_model import local_folder
from omniloom.stages.train import config as unified_settings
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A folder with the tokenizer of a language model, whose ids are none of ours."""
    return corpora.language_model(tmp_path_factory.mktemp("llama"))


def pretokenize(folder: Path, text: TextTokenizer, visual):
    rng = np.random.default_rng(0)
    rows = corpora.token_rows(text, rng, images=16, videos=2, texts=6, documents=2)
    held_out = corpora.token_rows(text, rng, images=4, videos=1, texts=1, documents=0)
    return corpora.pretokenize(folder, {"train": [rows], "validation": [held_out]}, text, visual_digest=visual.digest)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, llama, visual):
    text = TextTokenizer.load(llama / "tokenizer.json")
    return pretokenize(tmp_path_factory.mktemp("tokens") / "tokens", text, visual)


def config(llama, **fields) -> train_unified.Config:
    return train_unified.Config.model_validate(
        {
            "init_from": str(llama),
            "model": {"time_dim": 16},
            "packing": {"length": 64, "window_rows": 6},
            "batch_rows": 4,
            "steps": 4,
            "seed": 3,
            "optimizer": {"lr": 5e-3, "warmup_steps": 2},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "workers": {"count": 1, "checkpoint_every": 2, "log_every": 2},
            "validate_every": 4,
            "validation_rows": 2,
            "samples": {"count": 1, "num_steps": 2},
            **fields,
        }
    )


def train(folder: Path, llama, tokens, visual, progress=None, **fields) -> dict[str, torch.Tensor]:
    unified_worker.train_worker(
        unified_worker.Job(
            config(llama, **fields),
            tokens,
            visual,
            output=str(folder / "output"),
            state=str(folder / "state"),
            tracker=corpora.Silent(),
            progress=progress or corpora.Silent(),
        )
    )
    return load_file(folder / "output" / "model" / "unified.safetensors")


def test_training_goes_on_from_the_checkpoint(tmp_path, llama, tokens, visual):
    text = TextTokenizer.load(llama / "tokenizer.json")
    start = load_llama(llama, latent_dim=4, specials=SpecialIds(**text.specials), time_dim=16).eval()
    rows = start.config.vocab_size - 4
    # A rate too small to move anything shows what training starts from.
    train(tmp_path / "still", llama, tokens, visual, steps=1, optimizer={"lr": 1e-12, "weight_decay": 0.0})
    model = OmniLoom.load(tmp_path / "still" / "output" / "model")
    assert model.config.unified == start.config
    assert model.config.unified.specials == SpecialIds(**text.specials) and model.text.digest == text.digest
    line = torch.randint(rows, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = transformers.AutoModelForCausalLM.from_pretrained(llama)(line).logits
        assert (model.model.text_logits(line)[..., :rows] - reference).abs().max() < 1e-4
    train(tmp_path / "on", llama, tokens, visual, steps=30, validate_every=30)
    curve = (tmp_path / "on" / "output" / "report" / "history.jsonl").read_text().splitlines()
    losses = [row["text_loss"] for row in map(json.loads, curve) if "text_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    trained = OmniLoom.load(tmp_path / "on" / "output" / "model")
    assert isinstance(trained.text_to_text(["a red"], TextSampling(max_new_tokens=4))[0], str)
    assert trained.text_to_image(["a red square"], VisualSampling(num_steps=2)).shape == (1, 24, 24, 3)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("frozen", ["text", "visual"])
def test_a_frozen_part_stays_as_it_was_to_the_last_bit(tmp_path, llama, tokens, visual, zero_stage, frozen):
    model = train(
        tmp_path, llama, tokens, visual, lr_scale={frozen: 0.0}, engine={"zero_stage": zero_stage, "ema_decay": 0.9}
    )
    torch.manual_seed(3)  # the config's
    text = TextTokenizer.load(llama / "tokenizer.json")
    start = load_llama(llama, latent_dim=4, specials=SpecialIds(**text.specials), time_dim=16).state_dict()
    assert set(start) == set(model)
    for name, value in start.items():
        assert torch.equal(model[name], value) == (is_text_parameter(name) == (frozen == "text")), name


def test_a_killed_run_ends_with_the_same_weights(tmp_path, llama, tokens, visual):
    fields = {"lr_scale": {"text": 0.1, "visual": 1.0}}
    straight = train(tmp_path / "straight", llama, tokens, visual, **fields)
    with pytest.raises(corpora.Killed):
        train(tmp_path / "broken", llama, tokens, visual, corpora.KilledAt(3), **fields)
    broken = train(tmp_path / "broken", llama, tokens, visual, **fields)
    assert all(torch.equal(broken[name], value) for name, value in straight.items())


def test_a_folder_on_another_filesystem_is_copied_once(llama, tmp_path):
    uri = f"memory://{uuid.uuid4().hex}/llama"
    storage.copy_tree(str(llama), uri)
    storage.write_bytes(uri + "/original/consolidated.00.pth", b"the same weights again")
    folder = local_folder(uri)
    assert folder.parent == storage.cache_folder()
    assert {path.name for path in folder.iterdir()} == {path.name for path in llama.iterdir()}
    assert local_folder(uri) == folder and local_folder(str(llama)) == llama
    ids = torch.arange(20)[None]
    assert torch.equal(load_llama(folder).text_logits(ids), load_llama(llama).text_logits(ids))
    storage.write_bytes(uri + "/config.json", b"{ }")
    assert local_folder(uri) != folder
    found = unified_settings.unified_config(config(llama), 0, {"latent_dim": 4}, None)
    assert isinstance(found, UnifiedConfig) and found.width == 32
    with pytest.raises(InputError, match="config.json: architectures"):
        unified_settings.unified_config(config(uri), 0, {"latent_dim": 4}, None)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"width": 64}, "width"),
        ({"layers": 2, "heads": 8}, "heads"),
        ({"tied": True}, "tied"),
        (
            {"rope_scaling": {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_length": 64}},
            "rope_scaling",
        ),
    ],
)
def test_a_field_that_contradicts_the_checkpoint_is_named(llama, model, field):
    with pytest.raises(InputError, match="leave it out") as caught:
        unified_settings.unified_config(config(llama, model=model), 0, {"latent_dim": 4}, None)
    assert caught.value.field == f"model.{field}" and caught.value.file == str(llama / "config.json")
    agreeing = config(llama, model={"width": 32, "kv_heads": None, "axes": 2, "rope_scheme": "axial"})
    found = unified_settings.unified_config(agreeing, 0, {"latent_dim": 4}, None)
    assert (found.kv_heads, found.axes, found.rope_scheme) == (2, 2, "axial")


def context(settings, tokens, visual, tmp_path) -> StageContext:
    return StageContext(
        "train",
        "0" * 64,
        settings,
        {"tokens": tokens, "tokenizer": visual},
        str(tmp_path / "work"),
        corpora.Silent(),
        corpora.Silent(),
    )


def test_tokens_of_another_text_tokenizer_are_refused_before_workers_start(tmp_path, llama, visual):
    tokens = pretokenize(tmp_path / "tokens", corpora.text_tokenizer(), visual)
    with pytest.raises(InputError, match="set stages.pretokenize.text_tokenizer to .*tokenizer.json") as caught:
        train_unified.run(context(config(llama), tokens, visual, tmp_path))
    assert caught.value.field == "init_from" and str(llama) in str(caught.value)
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(InputError, match="tokenizer.json.*no tokenizer"):
        train_unified.run(context(config(bare), tokens, visual, tmp_path))
    (bare / "tokenizer.json").write_bytes((llama / "tokenizer.json").read_bytes())
    right = pretokenize(tmp_path / "right", TextTokenizer.load(llama / "tokenizer.json"), visual)
    with pytest.raises(InputError, match="no checkpoint to start from.*config.json") as caught:
        train_unified.run(context(config(bare), right, visual, tmp_path))
    assert caught.value.file == str(bare)


def test_tokens_of_another_visual_tokenizer_are_refused_before_workers_start(tmp_path, llama, tokens, visual):
    """Codes and latents of one tokenizer mean nothing to another, though it has the same sizes."""
    other = corpora.tokenizer(tmp_path / "other")
    other.manifest["files"][0]["sha256"] = "0" * 64
    assert other.digest != visual.digest
    train_unified.check_tokens(config(llama), tokens, visual)
    for refused in (
        lambda: train_unified.check_tokens(config(llama), tokens, other),
        lambda: train_unified.run(context(config(llama), tokens, other, tmp_path)),
    ):
        with pytest.raises(InputError, match="made by another tokenizer.*run pretokenize again") as caught:
            refused()
        assert caught.value.file == tokens.uri


def test_a_config_that_trains_nothing_is_refused(llama):
    with pytest.raises(ValidationError, match="text and visual are both 0"):
        config(llama, lr_scale={"text": 0, "visual": 0})


def test_a_layer_to_align_that_the_checkpoint_lacks_is_refused_before_workers_start(tmp_path, llama, visual):
    tokens = pretokenize(tmp_path / "tokens", TextTokenizer.load(llama / "tokenizer.json"), visual)
    with pytest.raises(InputError, match="alignment: the tokens hold no features"):
        train_unified.check_tokens(config(llama, alignment={}), tokens, visual)
    facts = storage.read_json(tokens.file("tokens.json"))
    storage.write_json(tokens.file("tokens.json"), facts | {"feature_dim": 24})
    train_unified.check_tokens(config(llama, alignment={"layer": 2}), tokens, visual)
    with pytest.raises(InputError, match="alignment.layer: expected at most the model's 2, got 3"):
        train_unified.check_tokens(config(llama, alignment={"layer": 3}), tokens, visual)
