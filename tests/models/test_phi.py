"""Phi and Show-o: the logits of `transformers`' Phi, in and out; texts and codes under Show-o's mask; what is not
read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import showo
import torch
import transformers
from safetensors.torch import load_file, save_file
from showo import CODES, WORDS
from torch import Tensor

from omniloom.models.unified import load_llama
from omniloom.models.unified.llama.config import architecture
from omniloom.models.unified.llama.families import FAMILIES, described, read_values
from omniloom.models.unified.llama.write import left_out, write_back
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.parameters import num_parameters

ROWS = WORDS + 10 + CODES + 1
PHIS = {
    "phi": {},
    "phi, QK-norm": {"qk_layernorm": True, "num_key_value_heads": 2},
    "phi, tied, less turned": {
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.4},
    },
}


def load(folder: Path, **fields) -> UnifiedModel:
    """A Show-o with its codes."""
    return load_llama(folder, latent_dim=None, codebook_size=CODES, specials=showo.specials(), **fields).eval()


def difference(model: UnifiedModel, reference, rows: int, columns: slice = slice(None)) -> float:
    ids = torch.randint(rows, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, theirs = model.text_logits(ids), reference(ids).logits
    assert mine.shape == theirs.shape and theirs.abs().max() > 1
    return float((mine - theirs)[..., columns].abs().max())


@torch.no_grad()
def disturb(model: UnifiedModel) -> None:
    """As a training in full would: every weight moves by itself."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        parameter.add_(0.1 * parameter.std(unbiased=False).clamp(min=0.01) * noise)


def tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


@pytest.mark.parametrize("case", PHIS)
def test_a_phi_is_read_and_written_back(tmp_path: Path, case: str) -> None:
    reference, start, out = showo.phi(**PHIS[case]), tmp_path / "start", tmp_path / "out"
    reference.save_pretrained(start, max_shard_size="40KB" if case == "phi" else "5GB")
    model = load_llama(start, latent_dim=None).eval()
    assert difference(model, reference, 97) < 1e-4
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    write_back(model, start, out)
    assert all(torch.equal(value, tensors(out)[key]) for key, value in tensors(start).items())
    disturb(model)
    write_back(model, start, out)
    written = transformers.PhiForCausalLM.from_pretrained(out).eval()
    assert difference(model, written, 97) < 1e-4 < 0.01 < difference(model, reference, 97)
    assert difference(load_llama(out, latent_dim=None).eval(), written, 97) < 1e-4


def test_a_phi_takes_pictures(tmp_path: Path) -> None:
    """What it has not itself is drawn, of the kinds that its blocks are of."""
    reference = showo.phi()
    reference.save_pretrained(tmp_path)
    model = load_llama(tmp_path, latent_dim=3, codebook_size=5, vocab_size=99).eval()
    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model.text_logits(ids)[..., :97] - reference(ids).logits).abs().max() < 1e-4
    assert model.code_out.bias.shape == (5,) and model.visual_norm.bias.shape == (48,)
    known = model.head.bias[:97].detach()
    assert (model.head.bias[97:] - known.mean()).abs().max() < known.std()
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())


def test_rows_that_no_token_trained_start_as_new_ones_with_their_biases(tmp_path: Path) -> None:
    showo.phi().save_pretrained(tmp_path)
    known, model = (load_llama(tmp_path, latent_dim=None, new_tokens=new).eval() for new in ((), (40, 90)))
    moved = (model.head.bias != known.head.bias).nonzero().flatten().tolist()
    mean, spread = known.head.bias.mean(), known.head.bias.std()
    assert moved == [40, 90] and (model.head.bias[moved] - mean).abs().max() < 0.5 * spread


def test_a_show_o_is_read_and_written_back(tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    reference = showo.make(start)
    model = load(start)
    assert model.config.representations == ("codes",) and model.config.rope_scheme == "rope_1d"
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    assert difference(model, reference, ROWS) < 1e-4
    for objective in ("masked_code", "next_code"):
        assert max(showo.difference(model, reference, objective=objective)) < 1e-4
    write_back(model, start, out)
    assert all(torch.equal(value, tensors(out)[key]) for key, value in tensors(start).items())
    disturb(model)
    write_back(model, start, out)
    for file in ("config.json", "llm_config.json"):
        assert (out / file).read_bytes() == (start / file).read_bytes()
    before, after = tensors(start), tensors(out)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) == key.startswith("mm_projector."), key
    written, words = showo.read(out), slice(WORDS + 10)
    for found in (model, load(out)):
        assert difference(found, written, WORDS + 10, words) < 1e-4
        assert max(showo.difference(found, written, words)) < 1e-4
    assert difference(load(out), written, ROWS) < 1e-4 and min(showo.difference(model, reference, words)) > 0.01


def test_codes_are_no_likelier_in_texts_than_training_left_them(tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    reference = showo.make(start)
    model = load(start)
    with torch.no_grad():
        model.code_out.weight += 3 * model.norm.weight  # what all rows share, an arbitrary direction
        model.code_out.bias += 2
    write_back(model, start, out)
    assert difference(load(out), reference, WORDS) < 1e-4


def test_the_mask_is_the_last_token(tmp_path: Path) -> None:
    showo.make(tmp_path / "start")
    model = load(tmp_path / "start")
    table = tensors(tmp_path / "start")["showo.model.embed_tokens.weight"]
    assert torch.equal(model.code_in.weight, table[WORDS + 10 :])
    with torch.no_grad():
        model.code_in.weight[-1] += 1
    write_back(model, tmp_path / "start", tmp_path / "out")
    after = tensors(tmp_path / "out")["showo.model.embed_tokens.weight"]
    assert torch.equal(after[:-1], table[:-1]) and torch.equal(after[-1], table[-1] + 1)


def test_a_show_o_of_texts_alone_leaves_its_codes(tmp_path: Path) -> None:
    reference = showo.make(tmp_path / "start")
    model = load_llama(tmp_path / "start", latent_dim=None).eval()
    assert model.config.specials == showo.specials() and difference(model, reference, ROWS) < 1e-4
    disturb(model)
    write_back(model, tmp_path / "start", tmp_path / "out")
    assert difference(model, showo.read(tmp_path / "out"), ROWS) < 1e-4


def test_what_a_show_o_does_not_say_is_phi_1_5s() -> None:
    """By the defaults of `transformers`, which are its shape; vocabulary as showlab/Show-o's configs have it."""
    whole = {"_class_name": "Showo", "vocab_size": 58498, "llm_vocab_size": 50295, "codebook_size": 8192}
    values = read_values({"config.json": whole, "llm_config.json": None}.get)
    found, theirs = architecture(values, "config.json"), transformers.PhiConfig()
    for ours, name in (
        *(("width", "hidden_size"), ("hidden", "intermediate_size"), ("layers", "num_hidden_layers")),
        *(("heads", "num_attention_heads"), ("kv_heads", "num_key_value_heads"), ("norm_eps", "layer_norm_eps")),
        ("tied", "tie_word_embeddings"),
    ):
        assert found[ours] == getattr(theirs, name), ours
    rope = theirs.rope_parameters
    assert (found["rope_base"], found["rotary_fraction"]) == (rope["rope_theta"], rope["partial_rotary_factor"])
    assert found["qk_norm"] and found["qk_norm_kind"] == "shared_layer" and found["vocab_size"] == 58498
    codes = described(values, "config.json").codes
    assert codes.tokens == tuple(range(50305, 58497)) and codes.mask == 58497
    assert dict(codes.specials) == {"pad": 50295, "boi": 50296, "eoi": 50297, "bov": 50298}


def change(folder: Path, name: str, **fields) -> None:
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, **fields}))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"mask_token_id": 3}, "config.json: mask_token_id: expected 98"),
        ("config.json", {"codebook_size": 16}, "vocab_size: expected more than llm_vocab_size"),
        ("config.json", {"llm_vocab_size": None}, "config.json: llm_vocab_size: expected a positive integer"),
        ("llm_config.json", {"hidden_act": "gelu"}, "llm_config: hidden_act: expected 'gelu_new'"),
        ("llm_config.json", {"partial_rotary_factor": 0.3}, "UnifiedConfig.rotary_fraction: expected an even number"),
        ("llm_config.json", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, name: str, fields: dict, message: str) -> None:
    showo.make(tmp_path)
    change(tmp_path, name, **fields)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_what_a_family_cannot_have_is_refused(tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    showo.make(start)
    with pytest.raises(ValueError, match="specials.boi: .*config.json has it at 81, the tokenizer at 83"):
        own = showo.specials()
        load_llama(start, latent_dim=None, specials=replace(own, boi=own.bov, bov=own.boi))
    with pytest.raises(ValueError, match="codebook_size: .* has 8 codes, got 16"):
        load_llama(start, latent_dim=None, codebook_size=16, specials=showo.specials())
    with pytest.raises(ValueError, match=f"UnifiedConfig.vocab_size: .* has {ROWS} tokens, the model {ROWS + 1}"):
        write_back(load(start, vocab_size=ROWS + 1), start, out)
    showo.phi().save_pretrained(tmp_path / "phi")
    plain = load_llama(tmp_path / "phi", latent_dim=None)
    with pytest.raises(ValueError, match="UnifiedConfig.vocab_size|UnifiedConfig.qk_norm"):
        write_back(plain, start, out)
    values = {"architectures": ["PhiForCausalLM"], **json.loads((tmp_path / "phi" / "config.json").read_text())}
    assert left_out(load(start).config, values, "config.json") == ("codes",)
    held = tensors(start)
    held.pop("showo.model.layers.1.self_attn.q_layernorm.bias")
    save_file(held, start / showo.WEIGHTS)
    with pytest.raises(ValueError, match="q_layernorm.bias: missing"):
        load(start)


def test_modules_are_called_as_the_names_say() -> None:
    """By these an adapter's folder names what it is on."""
    names, modules = FAMILIES["PhiForCausalLM"].names[-1], dict(showo.phi(qk_layernorm=True).named_modules())
    for part in (f"self_attn.{names.out}", *(f"self_attn.{norm}" for norm in names.head_norms), "mlp.fc1"):
        assert f"{names.body}layers.2.{part}" in modules
    assert f"{names.body}{names.norm}" in modules and names.head_bias.removesuffix(".bias") in modules
