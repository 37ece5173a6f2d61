"""The backbone's options, every one alike: size, gradients, isolation, generation, learning; and the blocks by name."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from backbone_cases import ALL, OPTIONS, build, config_of, documents, drawing, objective_of, values
from sampling_cases import visual
from torch._dynamo.testing import CompileCounterWithBackend
from visual_batches import forward, target_times

from omniloom.models.fused import rotate
from omniloom.models.unified.attention import DenseAttend, attend_for, dense
from omniloom.models.unified.batch import Batch, collate, document_length
from omniloom.models.unified.blocks import GatedAttentionUnit
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.cache import GenerationState, joined
from omniloom.models.unified.generation.generate import generate_visual
from omniloom.models.unified.layouts import plain_text, prefix_for_visual
from omniloom.models.unified.llama.load import is_text_parameter
from omniloom.models.unified.mask import intervals
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.positions import rotary
from omniloom.models.unified.representations import OBJECTIVES

every_option = pytest.mark.parametrize("option", OPTIONS)
LENGTH = 112


# ---- every option ----


@every_option
@pytest.mark.parametrize("fields", [{}, {"tied": False, "layers": 2, "pixel_dim": None}, {"latent_dim": None}])
def test_num_parameters_is_that_of_the_module(option: str, fields: dict) -> None:
    config = config_of(option, **fields)
    assert num_parameters(config) == sum(p.numel() for p in UnifiedModel(config).parameters())


@every_option
def test_configs_are_read_back_from_json(option: str) -> None:
    config = config_of(option)
    assert UnifiedConfig(**json.loads(json.dumps(asdict(config)))) == config


@every_option
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(option: str) -> None:
    config = config_of(option)
    objective = objective_of(config)
    for rows in ([documents()], [[documents()[0]]], [[drawing("next_code")]], [[]]):
        objective.zero_grad()
        loss, _ = objective(collate(rows, LENGTH, config), 0)
        loss.backward()
        missing = [name for name, p in objective.named_parameters() if p.grad is None]
        assert torch.isfinite(loss) and not missing
        assert all(torch.isfinite(p.grad).all() for p in objective.parameters())
        if len(rows[0]) > 1:
            assert not [name for name, p in objective.named_parameters() if not p.grad.any()]


def outputs(model: UnifiedModel, batch: Batch) -> dict[tuple, torch.Tensor]:
    """Logits and predictions by what they are of and flat place."""
    logits, predictions = forward(model, batch, target_times(batch, 0.6))
    found = {("text", int(i)): row for i, row in zip(batch.label_index, logits)}
    return found | {
        (name, int(i)): row for name, rows in predictions.items() for i, row in zip(batch.parts[name].index, rows)
    }


@every_option
def test_packed_documents_are_computed_as_if_alone(option: str) -> None:
    config = config_of(option)
    model = build(config).eval()
    with torch.no_grad():
        packed, at = outputs(model, collate([[], documents()], LENGTH, config)), LENGTH
        for document in documents():
            for (name, place), row in outputs(model, collate([[document]], 20, config)).items():
                torch.testing.assert_close(packed[name, at + place], row, atol=1e-5, rtol=1e-4)
            at += document_length(document)


@every_option
def test_later_text_and_other_documents_change_nothing(option: str) -> None:
    config = config_of(option)
    model, docs = build(config).eval(), documents()
    docs.append(plain_text([30, 31, 32], config.specials))
    starts = [sum(map(document_length, docs[:i])) for i in range(len(docs) + 1)]
    with torch.no_grad():
        before = outputs(model, collate([docs], LENGTH, config))
        docs[-1] = plain_text([30, 31, 33], config.specials)
        docs[1] = drawing(ALL[0], (1, 3, 2), 77)
        after = outputs(model, collate([docs], LENGTH, config))
    changed = {place for (name, place), row in before.items() if not torch.equal(after[name, place], row)}
    # The picture, its <eoi>, and the last word.
    assert changed == {*range(starts[1] + 5, starts[2] - 1), starts[-1] - 2}


@every_option
@pytest.mark.parametrize("objective", ALL)
def test_generation_with_the_cache_is_the_packed_forward_pass(option: str, objective: str) -> None:
    config, grid, time = config_of(option), (1, 3, 2), 0.6
    model, row = build(config).eval(), OBJECTIVES[objective]
    kind, docs = row.representation.name, [drawing(objective, grid, i) for i in range(2)]
    at, count = 5, math.prod(grid)  # <bos>, three words, <boi>
    with torch.no_grad():
        batch = collate([[doc] for doc in docs], 16, config)
        logits, predictions = forward(model, batch, time)
        state, _ = GenerationState.prefill(model, [prefix_for_visual([9, 8, 7], config.specials)] * 2)
        together = joined(config, objective)  # with the tokens around it
        if not together:
            state.feed_text([config.specials.boi] * 2)
        given = torch.stack([torch.from_numpy(values(objective, grid, i)) for i in range(2)])
        if row.causal:
            hidden = torch.cat(
                [state.feed_visual(objective, given[:, i : i + 1], grid, keep=True, first=i) for i in range(count)],
                dim=1,
            )
        else:
            state.feed_visual(objective, given.flip(1), grid, 0.9, keep=False)
            hidden = state.feed_visual(objective, given, grid, time, keep=True)
        made = model.visual_head(kind, hidden, state.given)
        torch.testing.assert_close(made, predictions[kind].view(made.shape), atol=1e-5, rtol=1e-4)
        behind = state.closing if together else state.feed_text([config.specials.eoi] * 2)
        after = model.text_head(behind)
    last = [i for i, place in enumerate(batch.label_index) if int(place) % 16 == at + count]
    torch.testing.assert_close(after, logits[last], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("option", ["unet", "flow"])
def test_pictures_are_drawn_under_guidance(option: str) -> None:
    config = config_of(option)
    model = build(config).eval()
    prefixes = [prefix_for_visual(ids, config.specials) for ids in ([9], [8, 7])]
    for name in ALL:
        how = {"num_steps": 2, "guidance_scale": 2.0, "objective": name, "diffusion": DiffusionConfig()}
        drawn = generate_visual(model, prefixes, (1, 3, 2), visual(**how), seeds=[4, 5])
        alone = generate_visual(model, prefixes[1:], (1, 3, 2), visual(**how), seeds=[5])
        torch.testing.assert_close(drawn[1:], alone, atol=1e-3, rtol=1e-3)


@every_option
def test_checkpointing_gives_the_same_step(option: str) -> None:
    config = config_of(option)
    objective = objective_of(config)
    batch = collate([documents()], LENGTH, config)

    def gradients() -> list[torch.Tensor]:
        objective.zero_grad()
        objective(batch, 0)[0].backward()
        return [p.grad.clone() for p in objective.parameters()]

    plain = gradients()
    objective.model.checkpoint_activations = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients()))


@pytest.mark.parametrize("option", ["gau", "skips", "unet", "flow", "mask"])
def test_the_loss_falls_on_a_fixed_batch(option: str) -> None:
    torch.manual_seed(0)
    config = config_of(option, pixel_dim=None, codebook_size=None, layers=2)
    objective = UnifiedObjective(UnifiedModel(config), DiffusionConfig())
    batch = collate([documents()[:3]] * 2, 32, config)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=4e-3)
    first = objective(batch, 0)[1]
    for step in range(30):
        optimizer.zero_grad()
        objective(batch, step)[0].backward()
        optimizer.step()
    last = objective(batch, 0)[1]
    assert last["text_loss"] < 0.4 * first["text_loss"] and last["visual_loss"] < 0.95 * first["visual_loss"]


@every_option
def test_new_parameters_are_of_the_part_that_they_serve(option: str) -> None:
    named = dict(UnifiedModel(config_of(option)).named_parameters())
    text = {name for name in named if is_text_parameter(name)}
    assert {name.split(".")[0] for name in text} - {"head"} == {"embed", "blocks", "norm"}
    towers = {name for name in named if ".visual." in name}  # what pictures have of blocks for themselves
    assert not towers & text and all(name.replace(".visual.", ".") in text for name in towers)
    assert {name.split("_")[0] for name in named.keys() - text - towers} <= {
        "modulation.weight",
        "modulation.bias",
        "visual",
        "pixel",
        "code",
        "time.mlp.0.weight",
        "time.mlp.0.bias",
        "time.mlp.2.weight",
        "time.mlp.2.bias",
    }


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"block": "nope"}, "block"),
        ({"block": "gau", "kv_heads": 2}, "kv_heads"),
        ({"block": "gau", "hidden": 50}, "hidden"),
        ({"block": "gau", "gau_length": 0}, "gau_length"),
        ({"gau_length": 8}, "gau_length"),
        ({"block": "gau", "gau_length": 8, "mup": {"width": 24, "heads": 4}}, "mup"),
        ({"latent_patchifier": "nope"}, "latent_patchifier"),
        ({"pixel_patchifier": "nope"}, "pixel_patchifier"),
        ({"unet_width": 0}, "unet_width"),
        ({"unet_depth": 0}, "unet_depth"),
        ({"flow_head_layers": -1}, "flow_head_layers"),
        ({"flow_head_width": 0}, "flow_head_width"),
        ({"patch_mask_low": 0.2}, "patch_mask_low"),
        ({"patch_mask_high": 1.5}, "patch_mask_high"),
        ({"patch_mask_low": -0.5, "patch_mask_high": -0.2}, "patch_mask_high"),
        ({"norm_kind": "rms"}, "norm_kind"),
        ({"feed_forward": "relu"}, "feed_forward"),
        ({"rotary_fraction": 0.0}, "rotary_fraction"),
        ({"rotary_fraction": 1.1}, "rotary_fraction"),
        ({"rotary_fraction": True}, "rotary_fraction"),
        ({"rotary_fraction": 0.3}, "rotary_fraction"),  # 3 of 12 channels
        ({"rotary_fraction": 0.4}, "rotary_fraction"),  # 4, of three axes
        ({"head_bias": "yes"}, "head_bias"),
        ({"joined_frame": 2}, "joined_frame"),
        ({"parallel": 2}, "parallel"),
        ({"parallel": True, "norm_after": True}, "norm_after"),
        ({"parallel": True, "modulation": "adaln_zero"}, "modulation"),
        ({"parallel": True, "modality_experts": "all"}, "modality_experts"),
        ({"parallel": True, "attention_every": 2}, "attention_every"),
        ({"joined_frame": True, "attention_every": 2}, "attention_every"),
        ({"block": "gau", "norm_kind": "layer"}, "norm_kind"),
        ({"block": "gau", "feed_forward": "gelu"}, "feed_forward"),
        ({"block": "gau", "rotary_fraction": 0.5}, "rotary_fraction"),
        ({"block": "gau", "parallel": True}, "parallel"),
    ],
)
def test_bad_fields_are_named(fields: dict, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"UnifiedConfig.{wrong}"):
        UnifiedConfig(**{"vocab_size": 40, "latent_dim": 3, "width": 48, "heads": 4, **fields})


# ---- gated attention unit ----


@pytest.mark.parametrize("option", ["gau", "gau_plain", "gau_squared"])
def test_a_gated_attention_unit_is_the_written_out_formula(option: str) -> None:
    config = config_of(option)
    torch.manual_seed(0)
    unit = GatedAttentionUnit(config)
    torch.nn.init.normal_(unit.scale)
    torch.nn.init.normal_(unit.offset, std=0.3)
    e, d, n = config.hidden, config.head_dim, 5
    x, places = torch.randn(1, n, config.width), torch.arange(n).float()[None, :, None].expand(1, n, 3)
    cos, sin = rotary(places, d)
    mask = torch.ones(n, n).tril().bool()
    z, v, u = F.silu(F.linear(x[0], unit.zvu.weight, unit.zvu.bias)).split((d, e, e), dim=-1)
    mixed = torch.zeros(n, e)
    for h in range(e // d):
        own = slice(h * d, (h + 1) * d)

        def turned(which: int, norm: torch.nn.Module, own: slice = own) -> torch.Tensor:
            given = z * unit.scale.view(2, e)[which, own] + unit.offset.view(2, e)[which, own]
            if config.qk_norm:
                given = given / (given.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * norm.weight
            return rotate(given, cos[0], sin[0])

        products = turned(0, unit.q_norm) @ turned(1, unit.k_norm).T
        if config.gau_length:
            weights = (products / config.gau_length).clamp_min(0) ** 2 * mask
        else:
            weights = (products / math.sqrt(d)).masked_fill(~mask, -torch.inf).softmax(-1)
        mixed[:, own] = weights @ v[:, own]
    wanted = F.linear(u * mixed, unit.out.weight, unit.out.bias)
    found = unit(x, cos[:, None], sin[:, None], dense(mask[None, None], config.gau_length), None)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_squared_relus_go_over_what_a_query_sees_and_one_length() -> None:
    """Number by number in float64, of two documents and a picture in one row, whatever else the row holds."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 4, dtype=torch.float64)
    start, end = intervals(7, [(0, 3), (3, 7)], [(4, 6)])
    seen = torch.from_numpy(start)[None].expand(2, -1), torch.from_numpy(end)[None].expand(2, -1)
    found = attend_for(None, *seen, squared=5)(q, k, v)
    expected = torch.zeros_like(q)
    for row, head, i in itertools.product(range(2), range(3), range(7)):
        for j in range(start[i], end[i]):
            score = sum(float(a * b) for a, b in zip(q[row, head, i], k[row, head, j])) / 5
            expected[row, head, i] += max(score, 0) ** 2 * v[row, head, j]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    alone = attend_for(None, *(a[:, 3:] - 3 for a in seen), squared=5)(*(a[:, :, 3:] for a in (q, k, v)))
    torch.testing.assert_close(found[:, :, 3:], alone, atol=1e-14, rtol=1e-12)


def test_two_gated_attention_units_are_as_large_as_a_llama_block() -> None:
    llama, gau = (
        sum(
            p.numel()
            for p in UnifiedModel(
                UnifiedConfig(vocab_size=40, width=192, heads=4, layers=layers, block=block)
            ).blocks.parameters()
        )
        for block, layers in (("llama", 1), ("gau", 2))
    )
    assert gau == pytest.approx(llama, rel=0.06)


# ---- long skips ----


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_long_skips_pair_mirror_images_and_start_as_nothing(layers: int) -> None:
    torch.manual_seed(0)
    config = config_of("skips", layers=layers)
    model, plain = UnifiedModel(config), UnifiedModel(config_of("none", layers=layers))
    names = plain.state_dict().keys()
    assert {name.split(".")[1] for name in model.state_dict().keys() - names} == {
        str(layers - 1 - i) for i in range(layers // 2)
    }
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    ids = torch.tensor([[1, 7, 8, 9]])
    assert torch.equal(model.text_logits(ids), plain.text_logits(ids))

    model = build(config)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    cos, sin = (a[:, None] for a in rotary(torch.arange(4.0)[None, :, None].expand(1, 4, 3), config.head_dim))
    attend, inputs = DenseAttend(torch.ones(4, 4).tril().bool()[None, None]), []
    x = plain.embed(ids)
    for i, block in enumerate(plain.blocks):
        inputs.append(x)
        if layers - 1 - i < i:
            x = x + F.linear(torch.cat((x, inputs[layers - 1 - i]), dim=-1), model.blocks[i].skip.weight)
        x = block(x, cos, sin, attend)
    torch.testing.assert_close(model.text_logits(ids), plain.text_head(x), atol=1e-5, rtol=1e-4)


# ---- compilation ----


@pytest.mark.parametrize(
    ("option", "dense"),
    [
        ("gau", False),
        pytest.param("gau_squared", False, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("none", True),
                ("none", False),
                ("gau", True),
                ("skips", True),
                ("skips", False),
                ("experts_plain", False),
                ("recurrent", False),
                ("phi", True),
                ("phi_skips", False),
            )
        ),
    ],
)
def test_compiled_blocks_are_one_graph_and_compute_the_same(option: str, dense: bool) -> None:
    torch._dynamo.reset()
    config = config_of(option, layers=4, pixel_dim=None, codebook_size=None)
    objective = UnifiedObjective(build(config), DiffusionConfig())
    batches = [collate([documents()[:n]], 48, config) for n in (3, 2)]
    if dense:
        for batch in batches:
            batch.plan = None

    def gradients() -> list[torch.Tensor]:
        found = []
        for batch in batches:
            objective.zero_grad()
            objective(batch, 0)[0].backward()
            found += [p.grad.clone() for p in objective.parameters()]
        return found

    plain, names = gradients(), list(objective.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    objective.model.compile_blocks(backend=counter, fullgraph=True)
    for one, other in zip(plain, gradients()):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)
    assert list(objective.state_dict()) == names
    # Blocks that merge are another graph; of a plan's sizes the compiler learns that they vary.
    kinds = (2 if config.long_skips else 1) * (2 if config.attention_every else 1)
    assert counter.frame_count <= kinds * (1 if dense else 3)


def test_a_joined_frame_is_of_pictures_that_do_not_join_it_anyway() -> None:
    applies = UnifiedConfig.USES["joined_frame"].applies
    none = {"latent_dim": None, "pixel_dim": None, "codebook_size": None}
    assert applies(config_of("none")) and not applies(config_of("one_place")) and not applies(config_of("none", **none))
