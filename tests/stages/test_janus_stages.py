"""A Janus through the stages: its picture tokenizer as it is, codes of a corpus, LoRA on them, pictures, and back."""

from __future__ import annotations

import json
from pathlib import Path

import corpora
import open_models
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.model import OmniLoom, to_pixels
from omniloom.models.text import TextTokenizer
from omniloom.models.tokenizer.config import VQGANConfig
from omniloom.models.unified import load_llama
from omniloom.models.unified.generation.sampling import TextSampling
from omniloom.pipelines.exporting.export import export
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data import records
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.pretokenize.stats import combine
from omniloom.stages.tokenizer import stage as train_tokenizer
from omniloom.stages.tokenizer import worker as tokenizer_worker
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker

VQ = {"embed_dim": 6, "num_embeddings": 40, "channel_multiplier": [1, 1, 1]}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return corpora.ingest(tmp_path_factory.mktemp("corpus") / "ingest", images=24, videos=0)


SQUARES = to_pixels([corpora.square(colour, (4, 4)) for colour in corpora.COLOURS], (24, 24))


@pytest.fixture(scope="module")
def janus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("janus")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a red square moves", "the green square"] * 3, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>"])
    torch.manual_seed(0)
    model = open_models.janus(
        vq=VQ,
        vocab_size=tokenizer.get_vocab_size(),
        num_hidden_layers=2,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a frozen head of weights near 0 would say nothing
            if "generation_" in name:
                parameter.normal_(std=0.3)
        vq = model.model.vqmodel.eval()
        latents = vq.quant_conv(vq.encoder(2 * SQUARES)).movedim(1, -1).flatten(0, -2)
        vq.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:40]])
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def tokenizer_config(janus: Path, **fields) -> train_tokenizer.Config:
    data = {"kinds": ["image"], "sizes": [24], "image_batch": 8}
    workers = {"count": 1, "checkpoint_every": 10}
    return train_tokenizer.Config.model_validate(
        {"official": str(janus), "steps": 0, "data": data, "workers": workers, "validation_examples": 4, **fields}
    )


@pytest.fixture(scope="module")
def visual(tmp_path_factory, pictures, janus):
    folder, settings = tmp_path_factory.mktemp("visual"), tokenizer_config(janus)
    train_tokenizer.check(settings, {})
    assert train_tokenizer.resolved(settings, {}).model.codebook_size == 40
    where = str(folder / "output"), str(folder / "state"), corpora.Silent(), corpora.Silent()
    tokenizer_worker.train_worker(train_tokenizer.job_of(settings, pictures, None, *where))
    return corpora.seal(folder / "output", "tokenizer_image", settings)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, pictures, janus, visual):
    folder = tmp_path_factory.mktemp("tokens")
    text = TextTokenizer.load(janus / "tokenizer.json")
    (folder / "text.json").write_text(text.to_json(), encoding="utf-8")
    settings = pretokenize.Config(image_size=24, batch_size=5)
    where = str(folder / "text.json"), str(folder / "output"), str(folder / "state")
    actor, stats = ShardTokenizer(settings, visual, *where), []
    for index, uri in enumerate(records.shards(pictures.uri)):
        actor({"index": index, "uri": uri})
        stats.append(storage.read_json(str(folder / "state" / "shards" / f"{index:05d}.json")))
    artifact = corpora.pretokenize(folder / "output", {}, text, visual_digest=visual.digest)
    facts, found = combine(stats), storage.read_json(artifact.file("tokens.json"))
    known = {"codebook_size": 40, "latent_mean": facts["latent_mean"], "latent_std": facts["latent_std"]}
    storage.write_json(artifact.file("tokens.json"), found | known)
    return corpora.seal(folder / "output", "pretokenize")


@torch.no_grad()
def test_the_tokenizer_is_taken_as_it_is(janus, visual):
    model, theirs = load_tokenizer(visual), open_models.read(janus).model.vqmodel
    assert isinstance(model.config, VQGANConfig) and model.config.patch_size == 4
    codes = model.encode(SQUARES).codes
    assert torch.equal(codes.flatten(), theirs.encode(2 * SQUARES, return_dict=True).image_tokens)
    assert len(codes.unique()) > 5
    rows = [json.loads(line) for line in Path(visual.file("report", "history.jsonl")).read_text().splitlines()]
    assert any("validation_psnr_image" in row for row in rows)


def test_lora_on_a_folder_of_pictures_and_back(tmp_path, janus, visual, tokens):
    segment = next(s for s in TokenSet(tokens, "train").document(0) if s.kind == "visual")
    assert segment.grid == (1, 6, 6) and len(segment.codes) == 36
    settings = train_unified.Config.model_validate(
        {
            "init_from": str(janus),
            "adapter": {"rank": 8, "alpha": 16.0},
            "objectives": {"next_code": 1},
            "packing": {"length": 64, "window_rows": 6, "mixture": {"image": 1}},
            "batch_rows": 4,
            "steps": 30,
            "seed": 3,
            "optimizer": {"lr": 2e-2, "warmup_steps": 2},
            "engine": {"zero_stage": 0, "ema_decay": 0.0},
            "workers": {"count": 1, "checkpoint_every": 100, "log_every": 5},
            "validate_every": 100,
            "validation_rows": 2,
            "samples": {"count": 1},
        }
    )
    train_unified.check_tokens(settings, tokens, visual)
    places = {"output": str(tmp_path / "output"), "state": str(tmp_path / "state")}
    silent = corpora.Silent()
    worker.train_worker(worker.Job(settings, tokens, visual, **places, tracker=silent, progress=silent))
    curve = (tmp_path / "output" / "report" / "history.jsonl").read_text().splitlines()
    losses = [row["visual_loss"] for row in map(json.loads, curve) if "visual_loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    loom = OmniLoom.load(tmp_path / "output" / "model")
    assert loom.text.token(loom.config.unified.specials.boi) == "<begin_of_image>"
    drawn = loom.text_to_image(["a red square"])
    assert drawn.shape == (1, 24, 24, 3)
    assert isinstance(loom.image_to_text([drawn[0]], text=TextSampling(max_new_tokens=3))[0], str)

    (line,) = export(str(tmp_path / "output" / "model"), "transformers", tmp_path / "out", start=str(janus))
    assert "JanusForConditionalGeneration" in line
    reference = open_models.read(tmp_path / "out")
    ids = torch.randint(len(loom.model.embed.weight), (2, 30), generator=torch.Generator().manual_seed(0))
    codes = torch.randint(40, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (loom.model.text_logits(ids) - reference(ids).logits).abs().max() < 1e-4
        mine, theirs = loom.model.code_in(codes), reference.prepare_embeddings_for_image_generation(codes)
        assert (mine - theirs).abs().max() < 1e-6
    frozen = load_llama(janus, latent_dim=None, codebook_size=40, specials=loom.config.unified.specials)
    assert torch.equal(frozen.code_out[2].weight, loom.model.code_out[2].weight)
    before, after = (load_file(folder / "model.safetensors") for folder in (janus, tmp_path / "out"))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key][: len(value)])}
    assert changed and all("language_model.layers" in key and "_proj" in key for key in changed)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"steps": 5}, "steps", "expected 0, got 5: the picture tokenizer of an open model is taken as it is"),
        ({"quantizer": {"kind": "fsq"}}, "quantizer", "expected null"),
        ({"data": {"kinds": ["image", "video"], "sizes": [24]}}, None, "a VQGAN is for images alone"),
        ({"data": {"kinds": ["image"], "sizes": [26]}}, None, "26 is no multiple of patch_size 4"),
    ],
)
def test_what_does_not_fit_is_told_when_planning(janus, fields, field, message):
    with pytest.raises((InputError, ValueError), match=message) as caught:
        train_tokenizer.check(tokenizer_config(janus, **fields), {})
    assert field is None or caught.value.field == field


def test_a_folder_without_a_picture_tokenizer_is_named(tmp_path):
    llama = corpora.language_model(tmp_path / "llama")
    with pytest.raises(InputError, match="no picture tokenizer: .*architectures: expected") as caught:
        train_tokenizer.check(tokenizer_config(llama), {})
    assert caught.value.field == "official" and caught.value.file == str(llama)
