"""`train` from a Show-o on masked codes, in full and by LoRA, and back into its authors' layout."""

from __future__ import annotations

from pathlib import Path

import corpora
import numpy as np
import pytest
import showo
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.unified import load_llama
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.pipelines.exporting.export import export
from omniloom.stages.checkpoints.outside import require_folder_of_weights
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker
from omniloom.stages.train.config import Config, parameters_of, unified_config

CODES = 64  # those of the corpus
AROUND = ["<pad>", "<boi>", "<eoi>", "<bov>", "<eov>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>"]


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A Show-o with the tokenizer of its words, behind which docs/open_models.md adds those around pictures."""
    folder = tmp_path_factory.mktemp("showo")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["a red square moves", "the green square"] * 3,
        trainers.BpeTrainer(vocab_size=290, show_progress=False, initial_alphabet=alphabet),
    )
    tokenizer.add_special_tokens(["<|endoftext|>"])
    words, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|endoftext|>")
    showo.make(folder, words, CODES, num_hidden_layers=2, bos_token_id=end, eos_token_id=end)
    tokenizer.save(str(folder / "words.json"))
    tokenizer.add_special_tokens(AROUND)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, start, visual):
    rng = np.random.default_rng(0)
    text = TextTokenizer.load(start / "tokenizer.json")
    assert not text.added and text.token(text.specials["bos"]) == "<|endoftext|>"
    rows = corpora.token_rows(text, rng, images=16, videos=0, texts=16, documents=2)
    held_out = corpora.token_rows(text, rng, images=4, videos=0, texts=4, documents=0)
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    return corpora.pretokenize(folder, {"train": [rows], "validation": [held_out]}, text, visual_digest=visual.digest)


def train(folder: Path, start: Path, tokens, visual, **fields) -> tuple[Config, Path]:
    settings = Config.model_validate(
        {
            "init_from": str(start),
            "objectives": {"masked_code": 1},
            "packing": {"length": 64, "window_rows": 6},
            "batch_rows": 4,
            "seed": 3,
            "engine": {"zero_stage": 1, "ema_decay": 0.0},
            "workers": {"count": 1, "checkpoint_every": 500, "log_every": 50},
            "validate_every": 500,
            "validation_rows": 2,
            "samples": {"count": 0},
            **fields,
        }
    )
    require_folder_of_weights(str(start), "init_from")
    train_unified.check_tokens(settings, tokens, visual)
    silent = corpora.Silent()
    places = {"output": str(folder / "output"), "state": str(folder / "state"), "tracker": silent, "progress": silent}
    worker.train_worker(worker.Job(settings, tokens, visual, **places))
    return settings, folder / "output" / "model"


def words_of(loom: OmniLoom) -> slice:
    return slice(loom.config.unified.specials.pad)


def check_equal(loom: OmniLoom, folder: Path) -> None:
    reference, words = showo.read(folder), words_of(loom)
    specials = loom.config.unified.specials
    again = load_llama(folder, latent_dim=None, codebook_size=CODES, specials=specials).eval()
    for model in (loom.model, again):
        assert max(showo.difference(model, reference, words)) < 1e-4


def test_trained_in_full_and_by_lora_and_back(tmp_path, start, tokens, visual):
    _, model = train(tmp_path / "full", start, tokens, visual, steps=4, optimizer={"lr": 3e-3, "warmup_steps": 0})
    loom = OmniLoom.load(model)
    (line,) = export(str(model), "transformers", tmp_path / "out", start=str(start))
    assert "layout of its authors" in line
    check_equal(loom, tmp_path / "out")
    assert min(showo.difference(loom.model, showo.read(start), words_of(loom))) > 0.01
    assert loom.text_to_image(["a red square"], VisualSampling(num_steps=2)).shape == (1, 24, 24, 3)

    adapter = {"rank": 2, "targets": ["q_proj", "o_proj", "fc1", "fc2"]}
    options = {"adapter": adapter, "optimizer": {"lr": 1e-2, "warmup_steps": 0}}
    settings, model = train(tmp_path / "lora", tmp_path / "out", tokens, visual, steps=3, **options)
    tuned = OmniLoom.load(model)
    assert parameters_of(settings, tuned.config.unified)[0] == 2 * 2 * (2 * 48 + 2 * 48 + 2 * (48 + 80))
    export(str(model), "transformers", tmp_path / "tuned", start=str(tmp_path / "out"))
    check_equal(tuned, tmp_path / "tuned")
    before, after = (load_file(folder / showo.WEIGHTS) for folder in (tmp_path / "out", tmp_path / "tuned"))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    parts = ("self_attn.q_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2")
    assert changed == {f"showo.model.layers.{i}.{part}.weight" for i in range(2) for part in parts}
    named = {name.split("layers.0.")[-1] for name in load_file(model.parent / "adapter" / "adapter_model.safetensors")}
    assert {f"{part}.lora_A.weight" for part in parts} <= named


def test_what_is_of_other_tokenizers_is_refused_at_planning(start):
    settings = Config.model_validate({"init_from": str(start), "objectives": {"masked_code": 1}, "steps": 1})
    with pytest.raises(InputError, match="has 64 codes of pictures, the tokens have 512"):
        unified_config(settings, 300, {"codebook_size": 512}, None)
    words = TextTokenizer.load(start / "words.json")  # without the tokens around pictures
    with pytest.raises(InputError, match="specials.eoi: .* it lacks the tokens around pictures") as caught:
        unified_config(settings, words.vocab_size, {"codebook_size": CODES}, words.specials)
    assert caught.value.field == "init_from" and caught.value.file == str(start)
