"""What pictures have for themselves in the blocks: modulation by their times against DiT's, own parts against two
separate models; places by modality for any row; and that a language model is started from without a change."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from backbone_cases import build, config_of, documents, drawing
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from visual_batches import forward, target_times

from omniloom.models.folder import stored_state
from omniloom.models.fused import rotate
from omniloom.models.hf.repository import copy_modules
from omniloom.models.unified.adapter import lora
from omniloom.models.unified.adapter.config import AdapterConfig, filled, trained_parameters
from omniloom.models.unified.attention import DenseAttend
from omniloom.models.unified.batch import VisualPart, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.flops import dense_flops
from omniloom.models.unified.layouts import plain_text
from omniloom.models.unified.llama.load import load_llama
from omniloom.models.unified.mask import dense_mask
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.own_start import load_own
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.places import Modulation, places_of
from omniloom.models.unified.positions import rotary

KEPT = {
    "specials": config_of("none").specials,
    "latent_dim": 3,
    "pixel_dim": 12,
    "pixel_bottleneck": 8,
    "codebook_size": 11,
}


def turns(config: UnifiedConfig, places: int) -> list[torch.Tensor]:
    line = torch.arange(float(places))[None, :, None].expand(1, places, 3)
    return [a[:, None] for a in rotary(line, config.head_dim)]


# ---- modulation ----


def test_a_block_is_modulated_as_dits_is() -> None:
    """DiT's block as its authors write it (facebookresearch/DiT, `DiTBlock.forward`), with our norms; one segment, all
    of whose places see each other."""
    config = config_of("modulated")
    model, n = build(config).eval(), 6
    block, x, times = model.blocks[1], torch.randn(1, n, 48), torch.randn(3, 48)
    part = VisualPart(torch.arange(n), torch.zeros(n, 3), torch.full((n,), 2))
    places = places_of({"latents": part}, {"latents": times}, n, x.device, experts=False)
    attend = DenseAttend(torch.ones(1, 1, n, n, dtype=torch.bool))
    with torch.no_grad():
        found = block(x, *turns(config, n), attend, places=places, modulation=model._modulations(places)[1])
        size, condition = 6 * 48, F.silu(times[2:])
        weight, bias = (a[size : 2 * size] for a in (model.modulation.weight, model.modulation.bias))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (condition @ weight.T + bias)[:, None].chunk(6, dim=-1)
        h = block.attention_norm(x) * (1 + scale) + shift
        wanted = x + gate * block.attention(h, *turns(config, n), attend, None)
        wanted = wanted + gate_mlp * block.mlp(block.mlp_norm(wanted) * (1 + scale_mlp) + shift_mlp)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_each_segment_is_modulated_by_its_own_time_and_nothing_else_is() -> None:
    config = config_of("modulated")
    model = build(config).eval()
    batch = collate([documents()], 112, config)
    times = target_times(batch, 0.6)
    with torch.no_grad():
        model.blocks = model.blocks[:1]  # so that what changed shows where it did
        x, _, places = model.embed_inputs(
            batch.ids, batch.parts, {n: p.values for n, p in batch.parts.items()}, dict.fromkeys(batch.parts, times)
        )
        places.times = torch.randn(places.times.shape)
        table = model.modulation(F.silu(places.times)).view(-1, config.layers, 6, 48)[:, 0]
        marks = torch.ones(112, 48)
        entered = Modulation(table, places.index, places.row).enter(marks[None], 1)[0]
        wanted = marks.clone()
        for number, name in enumerate(("latents", "pixels")):
            part = batch.parts[name]
            for place, segment in zip(part.index.tolist(), part.segment.tolist()):
                row = table[number * batch.num_segments + segment]
                wanted[place] = 1 + row[4] + row[3]
        assert len(batch.parts["codes"].index) and torch.equal(
            wanted[batch.parts["codes"].index], marks[:1].expand(len(batch.parts["codes"].index), -1)
        )
    torch.testing.assert_close(entered, wanted)


@pytest.mark.parametrize("option", ["modulated", "modulated_gau"])
def test_pictures_pass_fresh_blocks_as_they_are_and_text_as_without(option: str) -> None:
    torch.manual_seed(0)
    config = config_of(option)
    model, plain = UnifiedModel(config).eval(), UnifiedModel(replace(config, modulation=None)).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "modulation" not in name})
    batch = collate([documents()], 112, config)
    given, times = {n: p.values for n, p in batch.parts.items()}, dict.fromkeys(batch.parts, target_times(batch, 0.6))
    with torch.no_grad():
        x, _, places = model.embed_inputs(batch.ids, batch.parts, given, times)
        attend = DenseAttend(dense_mask(batch.start, batch.end))
        hidden = model.backbone(x, batch.positions, attend, places=places)
        timed = torch.cat([batch.parts[name].index for name in ("latents", "pixels")])
        assert torch.equal(hidden[0, timed], x[0, timed]) and not torch.equal(hidden[0, :5], x[0, :5])
        ids = torch.tensor([[1, 7, 8, 9]])
        assert torch.equal(model.text_logits(ids), plain.text_logits(ids))


# ---- parts of pictures ----


@pytest.mark.parametrize("option", ["experts", "experts_all", "experts_plain"])
def test_text_and_pictures_go_through_two_separate_blocks(option: str) -> None:
    config = config_of(option, modulation=None, long_skips=False)
    model, n = build(config).eval(), 9
    block, x = model.blocks[1], torch.randn(1, n, 48)
    plain = replace(config, modality_experts=None)
    text, pictures = (UnifiedModel(plain).blocks[1].eval() for _ in range(2))
    state = block.state_dict()
    text.load_state_dict({name: value for name, value in state.items() if not name.startswith("visual.")})
    own = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    pictures.load_state_dict({**text.state_dict(), **own})
    assert any(not torch.equal(a, b) for a, b in zip(text.parameters(), pictures.parameters()))

    visual = torch.tensor([2, 3, 4, 7])
    part = VisualPart(visual, torch.zeros(4, 3), torch.tensor([0, 0, 0, 1]))
    places = places_of({"latents": part}, {}, n, x.device, experts=True)
    mask = torch.ones(n, n).tril().bool()
    mask[2:5, 2:5] = True
    cos, sin = turns(config, n)
    which = torch.zeros(n, dtype=torch.long).index_fill_(0, visual, 1)

    def chosen(apply) -> torch.Tensor:
        """(n, ...): of both blocks at all places, each place's own."""
        return torch.stack([apply(block) for block in (text, pictures)])[which, torch.arange(n)]

    with torch.no_grad():
        found = block(x, cos, sin, DenseAttend(mask[None, None]), places=places)[0]
        h, d = chosen(lambda b: b.attention_norm(x[0])), config.head_dim
        qkv = torch.stack([b.attention.qkv(h) for b in (text, pictures)])[which, torch.arange(n)]
        heads = qkv.view(n, -1, d)
        parts = list(heads.split((config.heads, config.kv_heads, config.kv_heads), dim=1))
        if config.qk_norm:
            for i, name in enumerate(("q_norm", "k_norm")):
                parts[i] = chosen(lambda b, i=i, name=name: getattr(b.attention, name)(parts[i]))
        q, k = (rotate(a.transpose(0, 1), cos[0], sin[0]) for a in parts[:2])
        k, v = (a.repeat_interleave(config.heads // config.kv_heads, dim=0) for a in (k, parts[2].transpose(0, 1)))
        scores = (q @ k.transpose(1, 2) / math.sqrt(d)).masked_fill(~mask, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        y = x[0] + chosen(lambda b: b.attention.out(mixed))
        wanted = y + chosen(lambda b: b.mlp(b.mlp_norm(y)))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        # Of one modality alone each is a block by itself.
        attend = DenseAttend(mask[None, None])
        assert torch.equal(block(x, cos, sin, attend), text(x, cos, sin, attend))
        alone = places_of({"": VisualPart(*3 * [torch.arange(n)])}, {}, n, x.device, experts=True)
        torch.testing.assert_close(
            block(x, cos, sin, attend, places=alone), pictures(x, cos, sin, attend), atol=1e-5, rtol=1e-4
        )


@given(st.lists(st.sampled_from(["text", "latents", "pixels"]), min_size=1, max_size=40), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_each_place_goes_through_its_modality(kinds: list[str], repeated: int) -> None:
    kinds = kinds * repeated
    where = {
        name: torch.tensor([i for i, kind in enumerate(kinds) if kind == name]).long() for name in ("latents", "pixels")
    }
    parts = {name: VisualPart(index, index, index % 3) for name, index in where.items()}
    times = {"latents": torch.randn(3, 2), "pixels": torch.randn(5, 2)}
    places = places_of(parts, times, len(kinds), torch.device("cpu"), experts=True)
    x = torch.arange(float(len(kinds)))[None, :, None].requires_grad_()
    out = places.split(x, lambda a: a + 100, lambda a: -a)
    wanted = [i + 100.0 if kind == "text" else -float(i) for i, kind in enumerate(kinds)]
    assert out.flatten().tolist() == wanted
    out.sum().backward()
    assert x.grad.flatten().tolist() == [1.0 if kind == "text" else -1.0 for kind in kinds]
    rows = dict(zip(places.index.tolist(), places.row.tolist()))
    assert rows == {i: (i % 3) + (3 if kind == "pixels" else 0) for i, kind in enumerate(kinds) if kind != "text"}


def test_two_sets_of_parts_cost_what_one_costs() -> None:
    one, own = (config_of("none", modality_experts=which) for which in (None, "all"))
    assert dense_flops(own, 100, 900.0, 60, pictures=40) == dense_flops(one, 100, 900.0, 60)
    grown = num_parameters(own) - num_parameters(one)
    assert grown == sum(p.numel() for p in UnifiedModel(one).blocks.parameters())
    assert num_parameters(replace(own, latent_dim=None, pixel_dim=None, codebook_size=None)) < num_parameters(one)


# ---- starts ----

OWN = [
    {"modulation": "adaln_zero"},
    {"modality_experts": "feed_forward"},
    {"modality_experts": "all", "modulation": "adaln_zero"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    shape = {"vocab_size": 40, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    config = transformers.Qwen3Config(**shape, num_attention_heads=4, num_key_value_heads=2, head_dim=12)
    folder = tmp_path_factory.mktemp("qwen3")
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fields", OWN, ids=lambda fields: "+".join(fields))
def test_a_language_model_keeps_its_text_logits(folder: Path, fields: dict) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model, plain = load_llama(folder, **KEPT, **fields).eval(), load_llama(folder, **KEPT).eval()
    ids = torch.randint(6, 40, (2, 17))
    with torch.no_grad():
        logits = model.text_logits(ids)
        torch.testing.assert_close(logits, reference(ids).logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(logits, plain.text_logits(ids))
        batch = collate([[plain_text(range(6, 20), model.config.specials)], [drawing("next_code")]], 20, model.config)
        packed = [forward(m, batch)[0] for m in (model, plain)]
    text = batch.label_index < 20
    assert torch.equal(packed[0][text], packed[1][text])


def test_pictures_begin_with_the_languages_weights(folder: Path) -> None:
    model = load_llama(folder, **KEPT, modality_experts="all")
    named = dict(model.named_parameters())
    towers = {name for name in named if ".visual." in name}
    assert len(towers) == 3 * 8  # two norms, four matrices, norms of queries and keys
    for name in towers:
        assert torch.equal(named[name], named[name.replace(".visual.", ".")]) and named[name].any()
        assert named[name].data_ptr() != named[name.replace(".visual.", ".")].data_ptr()
    # Started so, pictures are computed as by one set of parts.
    plain = load_llama(folder, **KEPT)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if ".visual." not in name})
    batch = collate([documents()], 112, model.config)
    with torch.no_grad():
        one, other = (forward(m.eval(), batch, target_times(batch, 0.6)) for m in (model, plain))
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-4)


def test_a_model_of_ours_is_copied_both_ways_too(tmp_path: Path) -> None:
    start = config_of("none")
    model = build(start).eval()
    save_file(stored_state(model), tmp_path / "unified.safetensors")
    config = replace(start, modality_experts="all")
    grown = load_own(tmp_path, start, config).eval()
    batch = collate([documents()], 112, config)
    with torch.no_grad():
        one, other = (forward(m, batch, target_times(batch, 0.6)) for m in (model, grown))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    # And one that has them keeps its own.
    (tmp_path / "own").mkdir()
    save_file(stored_state(own := build(config)), tmp_path / "own" / "unified.safetensors")
    again = load_own(tmp_path / "own", config, config)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), again.parameters()))


@pytest.mark.parametrize("fields", OWN, ids=lambda fields: "+".join(fields))
@pytest.mark.parametrize("whole", [(), ("norms",), ("visual",), ("norms", "visual", "vocabulary")])
def test_an_adapter_is_of_text_and_what_is_new_is_trained_whole(fields: dict, whole: tuple) -> None:
    config, adapter = config_of("none", **fields), AdapterConfig(rank=4, trained_whole=whole)
    for start in (
        replace(config, latent_dim=None, pixel_dim=None, codebook_size=None),
        replace(config),
        config_of("none"),
    ):
        model = UnifiedModel(config)
        lora.attach(model, adapter)
        is_trained = lora.trains(adapter, config, start)
        added, own = trained_parameters(adapter, config, start)
        counted = {True: 0, False: 0}
        for name, parameter in model.named_parameters():
            assert not (".adapters." in name and ".visual." in name)
            counted[".adapters." in name] += parameter.numel() if is_trained(name) else 0
        assert counted == {True: added, False: own}
        known = num_parameters(filled(config, start))
        assert (own >= num_parameters(config) - known) and (start == config) == (known == num_parameters(config))


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"modulation": "nope"}, "modulation"),
        ({"modality_experts": "nope"}, "modality_experts"),
        ({"modality_experts": "all", "block": "gau"}, "modality_experts"),
    ],
)
def test_bad_fields_are_named(fields: dict, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"UnifiedConfig.{wrong}"):
        config_of("none", **fields)


def test_options_without_effect_are_named() -> None:
    codes = config_of("modulated", latent_dim=None, pixel_dim=None)
    with pytest.raises(ValueError, match="modulation: has no effect here"):
        codes.check_uses(["modulation"])
    assert num_parameters(codes) == num_parameters(replace(codes, modulation=None))
    text = config_of("experts", latent_dim=None, pixel_dim=None, codebook_size=None)
    with pytest.raises(ValueError, match="modality_experts: has no effect here"):
        text.check_uses(["modality_experts"])


# ---- elsewhere ----

ELSEWHERE = """
import sys, torch
from omniloom_model.unified.config import UnifiedConfig
from omniloom_model.unified.model import UnifiedModel
assert not any(name.split(".")[0] == "omniloom" for name in sys.modules)
for found in torch.load("models.pt"):
    model = UnifiedModel(UnifiedConfig(**found["config"])).eval()
    model.load_state_dict(found["state"])
    with torch.no_grad():
        torch.testing.assert_close(model.text_logits(found["ids"]), found["logits"])
"""


def test_copied_modules_have_them_with_torch_alone(tmp_path: Path) -> None:
    """As a repository for Hugging Face holds them."""
    copy_modules(tmp_path / "omniloom_model")
    models = []
    for option in ("experts_plain", "recurrent_experts", "unet_deep"):
        model, ids = build(config_of(option)).eval(), torch.randint(6, 40, (2, 9))
        with torch.no_grad():
            logits = model.text_logits(ids)
        models.append({"config": asdict(model.config), "state": model.state_dict(), "ids": ids, "logits": logits})
    torch.save(models, tmp_path / "models.pt")
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
