"""`train` with `adapter`: on tiny Llama and Qwen folders that transformers saved, and on models of ours. What is
trained, kept in checkpoints, merged and written for PEFT; resumed; refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.models.linear import Linear
from omniloom.models.model import OmniLoom
from omniloom.models.text import TextTokenizer
from omniloom.models.unified import SpecialIds, load_llama
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.models.unified.llama.load import is_text_parameter
from omniloom.stages.base import StageContext
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker
from omniloom.stages.train.config import Config, expected_config, parameters_of

ADAPTER = {"rank": 4, "alpha": 8.0}
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return corpora.language_model(tmp_path_factory.mktemp("llama"))


def tokens_of(folder: Path, text: TextTokenizer, visual: Artifact, **options) -> Artifact:
    rng = np.random.default_rng(0)
    rows = corpora.token_rows(text, rng, images=16, videos=2, texts=6, documents=2, **options)
    held_out = corpora.token_rows(text, rng, images=4, videos=1, texts=1, documents=0, **options)
    options = {name: value for name, value in options.items() if name == "pixel_patch"}
    splits = {"train": [rows], "validation": [held_out]}
    return corpora.pretokenize(folder, splits, text, visual_digest=visual.digest, **options)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, llama, visual) -> Artifact:
    return tokens_of(tmp_path_factory.mktemp("tokens") / "tokens", TextTokenizer.load(llama / "tokenizer.json"), visual)


def config(start: Path | None, **fields) -> Config:
    return Config.model_validate(
        {
            "init_from": start and str(start),
            "adapter": ADAPTER,
            "packing": {"length": 64, "window_rows": 6},
            "batch_rows": 4,
            "steps": 4,
            "seed": 3,
            "optimizer": {"lr": 2e-2, "warmup_steps": 1},
            "engine": {"zero_stage": 1, "ema_decay": 0.5},
            "workers": {"count": 1, "checkpoint_every": 2, "log_every": 2},
            "validate_every": 4,
            "validation_rows": 2,
            "samples": {"count": 1, "num_steps": 2},
            **fields,
        }
    )


def job(folder: Path, settings: Config, tokens: Artifact, visual: Artifact, progress=None) -> worker.Job:
    places = {"output": str(folder / "output"), "state": str(folder / "state"), "tracker": corpora.Silent()}
    return worker.Job(settings, tokens, visual, **places, progress=progress or corpora.Silent())


def train(folder: Path, settings: Config, tokens, visual, progress=None) -> dict[str, torch.Tensor]:
    worker.train_worker(job(folder, settings, tokens, visual, progress))
    return load_file(folder / "output" / "model" / "unified.safetensors")


def checkpoint_keys(folder: Path, step: int = 4) -> set[str]:
    index = storage.load_json(str(folder / "state" / "checkpoints" / f"step-{step:08d}" / "model" / "index.json"))
    return set(index["tensors"])


def start_of(llama: Path) -> dict[str, torch.Tensor]:
    """What a training begins with, by the seed of `config`."""
    torch.manual_seed(3)
    text = TextTokenizer.load(llama / "tokenizer.json")
    return load_llama(
        llama, latent_dim=4, specials=SpecialIds(**text.specials), vocab_size=text.vocab_size, new_tokens=text.added
    ).state_dict()


@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Qwen2", True), ("Qwen3", False), ("Phi", False)])
def test_the_exported_model_is_the_start_with_the_adapter_that_peft_reads(tmp_path, visual, family, tied):
    """By a second implementation: transformers' own model, whose matrices get alpha / r * B A of the files."""
    folder = corpora.language_model(tmp_path / "start", family, tied)
    text = TextTokenizer.load(folder / "tokenizer.json")
    tokens = tokens_of(tmp_path / "tokens", text, visual)
    train(tmp_path / "run", config(folder), tokens, visual)
    output = tmp_path / "run" / "output"
    factors = load_file(output / "adapter" / "adapter_model.safetensors")
    written = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORA" and written["task_type"] == "CAUSAL_LM" and written["bias"] == "none"
    assert (written["r"], written["lora_alpha"], written["lora_dropout"], written["use_rslora"]) == (4, 8.0, 0.0, False)
    matrices = (*MATRICES[:3], "dense", "fc1", "fc2") if family == "Phi" else MATRICES
    assert written["target_modules"] == list(matrices) and written["base_model_name_or_path"] == str(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    known = text.vocab_size - len(text.added)
    line = torch.randint(known, (2, 20), generator=torch.Generator().manual_seed(0))
    model = OmniLoom.load(output / "model")
    with torch.no_grad():
        before = reference(line).logits
        for layer in range(2):
            for name in matrices:
                owner = "self_attn" if name in matrices[:4] else "mlp"
                A, B = (
                    factors.pop(f"base_model.model.model.layers.{layer}.{owner}.{name}.lora_{f}.weight") for f in "AB"
                )
                assert A.shape[0] == B.shape[1] == 4
                matrix = reference.get_submodule(f"model.layers.{layer}.{owner}.{name}").weight
                matrix += 2.0 * B @ A
        assert not factors
        after, ours = reference(line).logits, model.model.text_logits(line)[..., :known]
    assert (after - before).abs().max() > 0.05
    assert (ours - after[..., :known]).abs().max() < 1e-5
    assert type(model.model.blocks[0].attention.qkv) is Linear
    assert model.text_to_image(["a red square"], VisualSampling(num_steps=2)).shape == (1, 24, 24, 3)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_all_but_the_adapter_and_what_the_start_lacks_stays_as_it_was(tmp_path, llama, tokens, visual, zero_stage):
    settings = config(
        llama,
        adapter=ADAPTER | {"targets": ["q_proj", "v_proj", "down_proj"]},
        engine={"zero_stage": zero_stage, "ema_decay": 0.5},
    )
    engine, trainer, loader = worker.assemble(job(tmp_path, settings, tokens, visual))
    frozen = {
        name: value.clone()
        for name, value in engine.state_dict(average=False).items()
        if not dict(engine.module.named_parameters())[name].requires_grad
    }
    for step in range(3):
        trainer.train_step(step, loader.at(step))
    loader.close()
    after = engine.state_dict(average=False)
    start = start_of(llama)
    text = {name for name in start if is_text_parameter(name)}
    assert {name.removeprefix("model.") for name in frozen} == text
    for name, value in frozen.items():
        assert torch.equal(after[name], value) and torch.equal(value, start[name.removeprefix("model.")]), name
    assert all((after[name] != 0).any() for name in after if name.endswith((".B", ".new_rows")))
    stepped = [group["params"] for group in engine.engine.optimizer.param_groups]
    held = sum(p.numel() for p in engine.module.parameters() if p.requires_grad)
    if zero_stage == 0:
        assert sum(p.numel() for group in stepped for p in group) == held < 0.6 * sum(v.numel() for v in after.values())
    assert all(parameter.grad is None for parameter in engine.module.parameters() if not parameter.requires_grad)


def test_the_export_changes_targets_and_rows_of_new_tokens_alone(tmp_path, llama, tokens, visual):
    model = train(tmp_path, config(llama, adapter=ADAPTER | {"targets": ["v_proj", "down_proj"]}), tokens, visual)
    start = start_of(llama)
    text = TextTokenizer.load(llama / "tokenizer.json")
    new = sorted(text.added)
    assert len(new) == 4
    pad = text.specials["pad"]  # is never read, and its logit takes part
    for name, value in start.items():
        changed = ~torch.isclose(model[name], value, rtol=0, atol=0)
        if name in ("embed.weight", "head.weight"):
            assert set(changed.nonzero()[:, 0].tolist()) == {*new} - ({pad} if name == "embed.weight" else set()), name
        elif name.endswith("qkv.weight"):
            assert changed[-24:].all() and not changed[:-24].any(), name
        else:
            assert changed.any() == (not is_text_parameter(name) or name.endswith("down.weight")), name


def test_a_checkpoint_holds_what_is_trained_and_a_digest_of_the_rest(tmp_path, llama, tokens, visual):
    start = tmp_path / "start"
    shutil.copytree(llama, start)
    with pytest.raises(corpora.Killed):
        train(tmp_path, config(start), tokens, visual, corpora.KilledAt(3))
    keys = checkpoint_keys(tmp_path, 2)
    trained = {key.partition("/")[2] for key in keys if key.startswith("weight/")}
    assert {key.partition("/")[2] for key in keys if key.startswith("exp_avg/")} == trained
    assert {key.partition("/")[0] for key in keys} == {"weight", "ema", "exp_avg", "exp_avg_sq", "step"}
    lacking = {f"model.{name}" for name in start_of(llama) if not is_text_parameter(name)}
    adapters = {name for name in trained if ".adapters." in name}
    assert len(adapters) == 2 * 2 * 7
    assert trained == adapters | lacking | {"model.embed.new_rows", "model.head.new_rows"}
    manifest = storage.load_json(str(tmp_path / "state" / "checkpoints" / "step-00000002.json"))
    assert len(manifest["frozen_from"]["model"]) == 64
    (start / "config.json").write_text((start / "config.json").read_text() + "\n")
    with pytest.raises(OmniLoomError, match="was trained on frozen weights of .*put back what it started from"):
        train(tmp_path, config(start), tokens, visual)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, llama, tokens, visual, zero_stage):
    fields = {"adapter": ADAPTER | {"dropout": 0.3}, "engine": {"zero_stage": zero_stage, "ema_decay": 0.5}}
    straight = train(tmp_path / "straight", config(llama, **fields), tokens, visual)
    with pytest.raises(corpora.Killed):
        train(tmp_path / "broken", config(llama, **fields), tokens, visual, corpora.KilledAt(3))
    broken = train(tmp_path / "broken", config(llama, **fields), tokens, visual)
    assert all(torch.equal(broken[name], value) for name, value in straight.items())
    undropped = train(tmp_path / "all", config(llama, engine=fields["engine"]), tokens, visual)
    assert not torch.equal(undropped["blocks.1.mlp.down.weight"], straight["blocks.1.mlp.down.weight"])


def test_in_bf16_with_blocks_that_are_computed_again(tmp_path, llama, tokens, visual):
    """What is dropped is dropped again: as without, but for the order of sums."""
    engine = {"zero_stage": 2, "precision": "bf16", "ema_decay": 0.5}
    dropped = ADAPTER | {"dropout": 0.3}
    kept, again = (
        train(
            tmp_path / name,
            config(llama, adapter=dropped, engine=engine | {"activation_checkpointing": r}),
            tokens,
            visual,
        )
        for name, r in (("kept", False), ("again", True))
    )
    start = start_of(llama)
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-4)
        assert value.dtype == torch.float32
        if name.endswith("norm.weight") and is_text_parameter(name):
            assert torch.equal(value, start[name])
    assert (kept["blocks.0.mlp.down.weight"] - start["blocks.0.mlp.down.weight"]).abs().max() > 1e-3


def test_it_goes_on_under_another_zero_stage(tmp_path, llama, tokens, visual):
    straight = train(tmp_path / "straight", config(llama), tokens, visual)
    with pytest.raises(corpora.Killed):
        train(tmp_path / "broken", config(llama), tokens, visual, corpora.KilledAt(3))
    settings = config(llama, engine={"zero_stage": 3, "ema_decay": 0.5})
    broken = train(tmp_path / "broken", settings, tokens, visual)
    assert all(torch.allclose(broken[name], value, atol=1e-6) for name, value in straight.items())


def test_whole_parts_are_trained_besides_and_peft_gets_no_part_of_the_truth(tmp_path, llama, tokens, visual):
    whole = ["vocabulary", "norms"]
    model = train(tmp_path, config(llama, adapter=ADAPTER | {"trained_whole": whole}), tokens, visual)
    start = start_of(llama)
    assert all((model[name] != value).any() for name, value in start.items())
    assert (model["embed.weight"] != start["embed.weight"]).float().mean() > 0.02
    assert not (tmp_path / "output" / "adapter").exists()
    assert not any("new_rows" in key for key in checkpoint_keys(tmp_path))


@pytest.mark.parametrize("whole", [(), ("norms",), ("vocabulary",)])
def test_what_is_trained_is_what_is_told(tmp_path, llama, tokens, visual, whole):
    settings = config(llama, adapter=ADAPTER | {"trained_whole": list(whole)})
    engine, _, loader = worker.assemble(job(tmp_path, settings, tokens, visual))
    loader.close()
    sizes = [(p.numel(), p.requires_grad) for p in engine.module.parameters()]
    found = tuple(sum(size for size, trained in sizes if trained == kind) for kind in (True, False))
    assert found == parameters_of(settings, engine.module.model.config)


# ---- models of ours


def own_settings(start: Path | None = None, **fields) -> Config:
    shape = {"width": 32, "layers": 2, "heads": 2, "hidden": 64, "time_dim": 16}
    own = {"model": shape, "adapter": None} if start is None else {}
    return config(start, **(own | fields))


@pytest.fixture(scope="module")
def own(tmp_path_factory, visual) -> Path:
    """The folder of a trained model, as an artifact has it."""
    folder = tmp_path_factory.mktemp("own")
    tokens = tokens_of(folder / "tokens", corpora.text_tokenizer(), visual)
    train(folder, own_settings(), tokens, visual)
    return folder / "output" / "model"


@pytest.fixture(scope="module")
def more(tmp_path_factory, visual) -> Artifact:
    """Other data of the same tokenizers, whose latents have other statistics."""
    artifact = tokens_of(tmp_path_factory.mktemp("more") / "tokens", corpora.text_tokenizer(), visual, pixel_patch=8)
    facts = storage.load_json(artifact.file("tokens.json"))
    storage.write_json(artifact.file("tokens.json"), facts | {"latent_mean": [0.7] * 4, "latent_std": [2.0] * 4})
    return artifact


def test_a_model_of_ours_goes_on_from_what_it_is(tmp_path, own, more, visual):
    """At step 0 it computes what the start does, on latents that are normalised as the start knows them."""
    engine, trainer, loader = worker.assemble(job(tmp_path, own_settings(own), more, visual))
    start = OmniLoom.load(own)
    ids = torch.arange(40)[None]
    model = engine.module.model.eval()
    with torch.no_grad():
        assert torch.equal(model.text_logits(ids), start.model.text_logits(ids))
    assert trainer.model_config == start.config.unified
    batch = loader.at(0)[0][0]
    stored = more_latents(more)
    seen = batch.parts["latents"].values
    raw = seen * 0.5 + 0.1
    assert any(torch.allclose(raw[: len(one)], one, atol=1e-6) for one in stored)
    loader.close()
    trained = train(tmp_path, own_settings(own), more, visual)
    before = load_file(own / "unified.safetensors")
    targets = ("qkv.weight", "attention.out.weight", "gate_up.weight", "down.weight")
    assert set(trained) == set(before)
    for name, value in before.items():
        assert torch.equal(trained[name], value) == (not name.endswith(targets)), name
    assert OmniLoom.load(tmp_path / "output" / "model").config.latent_mean == start.config.latent_mean
    assert not (tmp_path / "output" / "adapter").exists()


def more_latents(artifact: Artifact) -> list[torch.Tensor]:
    from omniloom.stages.data.tokens import TokenSet

    return [
        torch.from_numpy(np.array(segment.latents)).view(-1, 4)
        for document in TokenSet(artifact, "train")
        for segment in document
        if segment.kind == "visual"
    ]


def test_pictures_parts_of_a_model_of_ours_are_trained_where_they_are_named(tmp_path, own, more, visual):
    settings = own_settings(own, adapter={"rank": 4, "targets": ["v_proj"], "trained_whole": ["visual"]})
    trained = train(tmp_path, settings, more, visual)
    for name, value in load_file(own / "unified.safetensors").items():
        moved = name.startswith(("visual_", "time.")) or name.endswith("qkv.weight")
        assert torch.equal(trained[name], value) != moved, name


def test_parts_that_a_model_of_ours_lacks_are_trained(tmp_path, own, more, visual):
    settings = own_settings(own, objectives={"latent_diffusion": 0.5, "pixel_diffusion": 0.5})
    trained = train(tmp_path, settings, more, visual)
    before = load_file(own / "unified.safetensors")
    fresh = set(trained) - set(before)
    assert {name.partition(".")[0] for name in fresh} == {"pixel_in", "pixel_norm", "pixel_out"}
    assert all(torch.equal(trained[name], value) for name, value in before.items() if name.startswith("visual_"))
    assert {key for key in checkpoint_keys(tmp_path) if key.startswith("weight/model.pixel_")} == {
        f"weight/model.{name}" for name in fresh
    }
    assert torch.equal(trained["time.mlp.0.weight"], before["time.mlp.0.weight"])


def test_a_model_of_ours_is_trained_on_without_an_adapter(tmp_path, own, more, visual):
    still = own_settings(own, adapter=None, steps=1, optimizer={"lr": 1e-12, "weight_decay": 0.0})
    trained = train(tmp_path / "still", still, more, visual)
    for name, value in load_file(own / "unified.safetensors").items():
        assert torch.allclose(trained[name], value, atol=1e-9), name
    moved = train(tmp_path / "on", own_settings(own, adapter=None), more, visual)
    assert all(not torch.equal(moved[name], value) for name, value in trained.items())


def test_the_artifact_stands_for_its_model_folder(tmp_path, own, more, visual):
    (tmp_path / "artifact").mkdir()
    shutil.copytree(own, tmp_path / "artifact" / "model")
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    settings = own_settings(tmp_path / "artifact")
    engine, _, loader = worker.assemble(job(tmp_path, settings, more, visual))
    loader.close()
    held = engine.state_dict(average=False)
    for name, value in load_file(own / "unified.safetensors").items():
        assert torch.equal(held[f"model.{name}"], value)


# ---- what is refused


def context(settings: Config, tokens: Artifact, visual: Artifact, folder: Path) -> StageContext:
    inputs = {"tokens": tokens, "tokenizer": visual}
    return StageContext("train", "0" * 64, settings, inputs, str(folder / "work"), corpora.Silent(), corpora.Silent())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_from": None}, "adapter: adapts the weights of a model; set init_from"),
        ({"lr_scale": {"text": 0}}, "lr_scale.text: is 0, which leaves the adapter untrained"),
        ({"adapter": {"rank": 0}}, "expected a positive integer, got 0"),
        ({"adapter": {"r": 4}}, "r\n"),
        ({"init_from": "models:/mine@champion"}, "expected a folder's path or URI, got a model of the registry"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(llama, fields, message):
    with pytest.raises(ValidationError) as caught:
        config(llama, **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "field", "message"),
    [
        ({"targets": ["q_porj"]}, "adapter.targets", "unknown matrix 'q_porj'; did you mean 'q_proj'?"),
        ({"targets": ["query"]}, "adapter.targets", "expected some of q_proj, k_proj, v_proj, o_proj"),
        ({"trained_whole": ["visual"]}, "adapter.trained_whole", "visual has no effect: the start has no parts"),
        ({"rank": 33}, "adapter.rank", "expected at most 24, as k_proj is 24 x 32, got 33"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_workers_start(
    tmp_path, llama, tokens, visual, adapter, field, message
):
    with pytest.raises(InputError) as caught:
        train_unified.run(context(config(llama, adapter=adapter), tokens, visual, tmp_path))
    assert caught.value.field == field and message in caught.value.message


def test_another_text_tokenizer_than_the_models_is_refused(tmp_path, own, tokens, visual):
    with pytest.raises(InputError, match="set stages.pretokenize.text_tokenizer to .*model/text.json") as caught:
        train_unified.run(context(own_settings(own), tokens, visual, tmp_path))
    assert caught.value.field == "init_from"


def test_another_visual_tokenizer_than_the_models_is_refused(tmp_path, own, visual):
    other = corpora.tokenizer(tmp_path / "other")
    weights = load_file(tmp_path / "other" / "tokenizer" / "tokenizer.safetensors")
    first = min(name for name, value in weights.items() if value.is_floating_point())
    from safetensors.torch import save_file

    save_file(weights | {first: weights[first] + 1}, tmp_path / "other" / "tokenizer" / "tokenizer.safetensors")
    other = corpora.seal(tmp_path / "other", "tokenizer_joint")
    tokens = tokens_of(tmp_path / "tokens", corpora.text_tokenizer(), other)
    with pytest.raises(InputError, match="latents are of another visual tokenizer.*pin the tokenizer") as caught:
        train_unified.check_tokens(own_settings(own), tokens, other)
    assert caught.value.field == "init_from"
    train_unified.check_tokens(own_settings(own, objectives={}, packing={"mixture": {"text": 1}}), tokens, other)


def test_a_field_that_contradicts_the_model_is_named(own):
    for name, value in {"width": 64, "layers": 3, "block": "gau", "latent_patchifier": "unet"}.items():
        settings = own_settings(own, model={name: value})
        with pytest.raises(InputError, match="leave it out") as caught:
            expected_config(settings, tokens_settings(), None)
        assert caught.value.field == f"model.{name}"
    agreeing = own_settings(own, model={"width": 32, "kv_heads": None})
    assert expected_config(agreeing, tokens_settings(), None).width == 32


def tokens_settings():
    from omniloom.stages.pretokenize.config import Config as PretokenizeConfig

    return PretokenizeConfig()


def test_latents_of_another_size_are_refused(own):
    class Tokenizer:
        latent_dim, codebook_size = 7, None

    with pytest.raises(InputError, match="knows latents by latent_dim 4, the tokens have 7"):
        expected_config(own_settings(own), tokens_settings(), Tokenizer)


def test_a_folder_without_weights_is_refused_when_it_is_planned(tmp_path, own):
    shutil.copytree(own, tmp_path / "model")
    (tmp_path / "model" / "unified.safetensors").unlink()
    upstream = {"tokens": tokens_settings().model_copy(update={"text_tokenizer": str(own / "text.json")})}
    upstream["tokenizer"] = None
    train_unified.check(own_settings(own), upstream)
    with pytest.raises(InputError, match="holds no unified.safetensors"):
        train_unified.check(own_settings(tmp_path / "model"), upstream)
    with pytest.raises(InputError, match="adapter.*at most"):
        train_unified.check(own_settings(own, adapter={"rank": 64}), upstream)
    other = tmp_path / "text.json"
    other.write_text(TextTokenizer.train(["another one"], 280).to_json())
    upstream["tokens"] = upstream["tokens"].model_copy(update={"text_tokenizer": str(other)})
    with pytest.raises(InputError, match="another text tokenizer than the model's"):
        train_unified.check(own_settings(own), upstream)


def test_none_changes_no_fingerprint(llama):
    from omniloom.pipelines.fingerprint import canonical

    assert "adapter" not in canonical(config(llama, adapter=None))
    assert canonical(config(llama))["adapter"]["rank"] == 4 and math.isclose(config(llama).adapter.scale, 2.0)
