"""`train` from a Chameleon that transformers saved, in full and by LoRA, and back: texts are not forgotten, and what
`export` writes loads in `transformers` with equal logits."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import corpora
import numpy as np
import open_models
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.unified import load_llama
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.pipelines.exporting.export import export
from omniloom.stages.checkpoints.outside import require_folder_of_weights
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker
from omniloom.stages.train.config import Config, parameters_of, unified_config

CODES = 64  # those of the corpus
HELD_OUT = ("the green square moves", "a red square", "a blue square moves the red square")


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory) -> Path:
    """A folder with weights and a text tokenizer, whose special tokens are called as Chameleon's are."""
    folder = tmp_path_factory.mktemp("chameleon")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["a red square moves", "the green square"] * 3,
        trainers.BpeTrainer(vocab_size=290, show_progress=False, initial_alphabet=alphabet),
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<image>", "<racm3:break>", "<eoss>"])
    tokenizer.add_special_tokens([open_models.chameleon_token(code) for code in range(CODES)])
    torch.manual_seed(0)
    model = open_models.chameleon(
        tokens=[tokenizer.token_to_id(open_models.chameleon_token(code)) for code in range(CODES)],
        vocab_size=tokenizer.get_vocab_size(),
        num_hidden_layers=2,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
    )
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "processor_config.json").write_text('{"image_seq_length": 9}')
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, chameleon, visual):
    rng = np.random.default_rng(0)
    text = TextTokenizer.load(chameleon / "tokenizer.json")
    rows = corpora.token_rows(text, rng, images=16, videos=0, texts=16, documents=2)
    held_out = corpora.token_rows(text, rng, images=4, videos=0, texts=4, documents=0)
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    return corpora.pretokenize(folder, {"train": [rows], "validation": [held_out]}, text, visual_digest=visual.digest)


def config(start: Path, **fields) -> Config:
    return Config.model_validate(
        {
            "init_from": str(start),
            "objectives": {"next_code": 1},
            "packing": {"length": 64, "window_rows": 6},
            "batch_rows": 4,
            "seed": 3,
            "engine": {"zero_stage": 0, "ema_decay": 0.0},
            "workers": {"count": 1, "checkpoint_every": 500, "log_every": 50},
            "validate_every": 500,
            "validation_rows": 2,
            "samples": {"count": 0},
            **fields,
        }
    )


def train(folder: Path, tokens, visual, settings: Config) -> Path:
    silent = corpora.Silent()
    places = {"output": str(folder / "output"), "state": str(folder / "state"), "tracker": silent, "progress": silent}
    worker.train_worker(worker.Job(settings, tokens, visual, **places))
    return folder / "output" / "model"


def bits_per_byte(model, text: TextTokenizer) -> float:
    """Of held-out texts behind <bos>; `model` gives logits of ids (1, N)."""
    bits = 0.0
    for words in HELD_OUT:
        ids = torch.tensor([[text.specials["bos"], *text.encode(words)]])
        with torch.no_grad():
            bits += float(F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="sum")) / math.log(2)
    return bits / sum(map(len, HELD_OUT))


def written(model: Path, folder: Path, start: Path):
    """What `transformers` loads of the exported model."""
    (line,) = export(str(model), "transformers", folder, start=str(start))
    assert "ChameleonForConditionalGeneration" in line
    assert json.loads((folder / "processor_config.json").read_text()) == {"image_seq_length": 9}
    return open_models.read(folder)


def check_equal(loom: OmniLoom, reference, start: Path) -> None:
    values = json.loads((start / "config.json").read_text())["vocabulary_map"]
    codes = [values[open_models.chameleon_token(code)] for code in range(CODES)]
    words = [number for number in range(len(loom.model.embed.weight)) if number not in codes]
    tokens = torch.tensor(words)[torch.randint(len(words), (2, 30), generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        mine, theirs = loom.model.text_logits(tokens), reference(tokens).logits
    assert (mine - theirs)[..., words].abs().max() < 1e-4
    embedded, predicted = reference.get_input_embeddings().weight, reference.lm_head.weight
    assert (embedded[codes] - loom.model.code_in.weight[:-1]).abs().max() < 1e-6
    ratio = loom.model.code_norm.weight / loom.model.norm.weight
    moved = predicted[codes] - loom.model.code_out.weight * ratio  # all by one vector, which no choice of codes sees
    assert (moved - moved.mean(0)).abs().max() < 1e-6


def test_trained_in_full_and_by_lora_and_back(tmp_path, chameleon, tokens, visual):
    full = config(chameleon, steps=60, optimizer={"lr": 5e-3, "warmup_steps": 2})
    first = train(tmp_path / "full", tokens, visual, full)
    start = tmp_path / "start"
    reference, loom = written(first, start, chameleon), OmniLoom.load(first)
    check_equal(loom, reference, chameleon)
    specials = loom.config.unified.specials
    assert [loom.text.token(i) for i in (specials.boi, specials.eoi, specials.pad)] == [
        "<racm3:break>",
        "<eoss>",
        "<pad>",
    ]
    before = bits_per_byte(loom.model.text_logits, loom.text)
    fresh = bits_per_byte(lambda ids: open_models.read(chameleon)(ids).logits, loom.text)
    assert before < 0.7 * fresh  # it has learnt something that it could forget

    frozen = load_llama(start, latent_dim=None, codebook_size=CODES, specials=specials)
    assert bits_per_byte(frozen.text_logits, loom.text) < 1.01 * before  # what was written predicts texts as well

    before = bits_per_byte(lambda ids: reference(ids).logits, loom.text)
    lora = config(start, steps=20, adapter={"rank": 4, "alpha": 8.0}, optimizer={"lr": 5e-4, "warmup_steps": 2})
    second = train(tmp_path / "lora", tokens, visual, lora)
    reference, tuned = written(second, tmp_path / "tuned", start), OmniLoom.load(second)
    check_equal(tuned, reference, start)
    assert not torch.equal(tuned.model.blocks[0].attention.qkv.weight, frozen.blocks[0].attention.qkv.weight)
    for part in ("embed", "head", "norm", "code_in", "code_out", "code_norm"):  # all that the start has of pictures
        one, other = getattr(tuned.model, part).weight, getattr(frozen, part).weight
        rows = slice(CODES) if part == "code_in" else slice(None)  # the mask is drawn
        assert torch.equal(one[rows], other[rows]), part
    assert bits_per_byte(lambda ids: reference(ids).logits, tuned.text) < 1.01 * before
    mine = bits_per_byte(tuned.model.text_logits, tuned.text)
    assert mine < 1.01 * bits_per_byte(frozen.text_logits, tuned.text)
    assert tuned.text_to_image(["a red square"], VisualSampling(num_steps=2)).shape == (1, 24, 24, 3)
    assert isinstance(tuned.text_to_text(["a red"], TextSampling(max_new_tokens=4))[0], str)


def test_an_adapter_is_named_as_transformers_names_modules(tmp_path, chameleon, tokens, visual):
    settings = config(chameleon, steps=1, adapter={"rank": 2, "targets": ["q_proj"]})
    model = train(tmp_path / "lora", tokens, visual, settings)
    named = {name.rpartition(".lora_")[0] for name in load_file(model.parent / "adapter" / "adapter_model.safetensors")}
    modules = {f"base_model.model.{name}" for name, _ in open_models.read(chameleon).named_modules()}
    assert named and named <= modules


def test_codes_of_another_number_are_refused_at_planning(chameleon):
    with pytest.raises(InputError, match="has 64 codes of pictures, the tokens have 512") as caught:
        unified_config(config(chameleon, steps=1), 300, {"codebook_size": 512}, None)
    assert caught.value.field == "init_from" and caught.value.file == str(chameleon)


def test_a_start_that_is_nowhere_named_is_asked_for(tmp_path, chameleon, tokens, visual):
    model = train(tmp_path / "full", tokens, visual, config(chameleon, steps=1))
    with pytest.raises(InputError, match="names no folder of transformers that it started from") as caught:
        export(str(model), "transformers", tmp_path / "out")
    assert caught.value.field == "--start"
    with pytest.raises(InputError, match="goes with --to transformers"):
        export(str(model), "hf", tmp_path / "out", start=str(chameleon))
    llama = corpora.language_model(tmp_path / "llama")
    with pytest.raises(InputError, match="cannot be written as .*UnifiedConfig"):
        export(str(model), "transformers", tmp_path / "other", start=str(llama))


def test_a_bagel_is_trained_by_lora_and_back(tmp_path, chameleon, tokens, visual):
    start, vocabulary = tmp_path / "bagel", json.loads((chameleon / "config.json").read_text())["vocab_size"]
    start.mkdir()
    reference = open_models.bagel(start, vocabulary)
    (start / "tokenizer.json").write_bytes((chameleon / "tokenizer.json").read_bytes())
    texts = {"objectives": {}, "packing": {"length": 64, "window_rows": 6, "mixture": {"text": 1}}}
    settings = config(start, steps=4, adapter={"rank": 2}, optimizer={"lr": 1e-2, "warmup_steps": 0}, **texts)
    require_folder_of_weights(str(start), "init_from")
    train_unified.check_tokens(settings, tokens, None)
    model = train(tmp_path / "lora", tokens, None, settings)
    (line,) = export(str(model), "transformers", tmp_path / "out", start=str(start))
    assert "layout of its authors" in line and (tmp_path / "out" / "ae.safetensors").exists()
    ids = torch.randint(vocabulary, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, theirs = OmniLoom.load(model).model.text_logits(ids), open_models.read_bagel(tmp_path / "out")(ids).logits
        assert (mine - theirs).abs().max() < 1e-4 and (
            theirs[..., :vocabulary] - reference(ids).logits
        ).abs().max() > 0.1


def test_a_bagels_pictures_are_trained_and_written_back(tmp_path, chameleon, tokens, visual):
    start, vocabulary = tmp_path / "bagel", json.loads((chameleon / "config.json").read_text())["vocab_size"]
    start.mkdir()
    open_models.bagel(start, vocabulary, latents=4)
    (start / "tokenizer.json").write_bytes((chameleon / "tokenizer.json").read_bytes())
    pictures = {"objectives": {"latent_diffusion": 1}, "optimizer": {"lr": 1e-3, "warmup_steps": 0}}
    full = config(start, steps=3, **pictures)
    train_unified.check_tokens(full, tokens, visual)
    other = tmp_path / "other"
    shutil.copytree(start, other)
    open_models.bagel(other, vocabulary, latents=6)
    with pytest.raises(InputError, match="latents have 6 numbers a position, the tokens' have 4"):
        train_unified.check_tokens(config(other, steps=3, **pictures), tokens, visual)
    model = train(tmp_path / "full", tokens, visual, full)
    assert len(export(str(model), "transformers", tmp_path / "out", start=str(start))) == 1  # nothing is left out
    loom = OmniLoom.load(model)
    assert max(open_models.bagel_difference(loom.model, tmp_path / "out")) < 1e-4
    assert min(open_models.bagel_difference(loom.model, start)) > 1e-3
    assert loom.text_to_image(["a red square"], VisualSampling(num_steps=2)).shape == (1, 24, 24, 3)

    lora = config(start, steps=2, adapter={"rank": 2}, **pictures)
    assert parameters_of(lora, loom.config.unified)[0] < 20000  # neither tower
    model = train(tmp_path / "lora", tokens, visual, lora)
    export(str(model), "transformers", tmp_path / "tuned", start=str(start))
    before, after = (load_file(folder / "ema.safetensors") for folder in (start, tmp_path / "tuned"))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key][: len(value)])}
    assert changed and all(key.startswith("language_model.model.layers.") and "_moe_gen" not in key for key in changed)
    assert max(open_models.bagel_difference(OmniLoom.load(model).model, tmp_path / "tuned")) < 1e-4
