"""The transformer and its objective: size, isolation, equality of packed and unpacked, learning."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from visual_batches import forward, is_target, is_visual, target_times

from omniloom.models.unified.attention import DenseAttend
from omniloom.models.unified.batch import Batch, collate
from omniloom.models.unified.config import SpecialIds, UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.layouts import plain_text, text_to_visual, visual_to_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.corruption import draw_noise
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.parameters import num_parameters

CONFIG = UnifiedConfig(vocab_size=40, latent_dim=3, width=48, layers=2, heads=4, kv_heads=2, hidden=64)
S = CONFIG.specials


def build(config: UnifiedConfig = CONFIG, seed: int = 0) -> UnifiedModel:
    torch.manual_seed(seed)
    model = UnifiedModel(config)
    # The visual output starts at 0, which would hide what the visual path computes.
    torch.nn.init.normal_(model.visual_out.weight, std=0.1)
    return model


def latents(grid: tuple[int, int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(int(np.prod(grid)), 3)).astype(np.float32)


def documents() -> list[list]:
    return [
        text_to_visual([9, 8, 7], latents((1, 2, 3), 0), (1, 2, 3), S),
        plain_text([11, 12, 13, 14], S),
        visual_to_text(latents((1, 2, 2), 1), (1, 2, 2), [20, 21], S),
        text_to_visual([30], latents((2, 2, 2), 2), (2, 2, 2), S),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tied": False},
        {"qk_norm": False},
        {"kv_heads": 1},
        {"head_dim": 8},
        {"width": 64, "heads": 8, "hidden": None, "kv_heads": None},
        {"latent_dim": None},
        {"latent_dim": None, "codebook_size": 20},
        {"latent_dim": None, "pixel_dim": 12, "pixel_bottleneck": 5},
        {"pixel_dim": 12, "codebook_size": 20, "tied": False},
    ],
)
def test_num_parameters_is_that_of_the_module(change: dict) -> None:
    config = UnifiedConfig(
        **{
            "vocab_size": 40,
            "latent_dim": 3,
            "width": 48,
            "layers": 2,
            "heads": 4,
            "kv_heads": 2,
            "hidden": 64,
            **change,
        }
    )
    assert num_parameters(config) == sum(p.numel() for p in UnifiedModel(config).parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 5),
        ("vocab_size", True),
        ("width", 50),
        ("kv_heads", 3),
        ("head_dim", 7),
        ("head_dim", 4),
        ("rope_scheme", "nope"),
        ("axes", 4),
        ("axes", 1),
        ("layers", 0),
        ("rope_base", 1),
        ("norm_eps", 0),
    ],
)
def test_bad_fields_are_named(field: str, value: object) -> None:
    good = {"vocab_size": 40, "latent_dim": 3, "width": 48, "layers": 2, "heads": 4}
    with pytest.raises(ValueError, match=f"UnifiedConfig.{field}"):
        UnifiedConfig(**{**good, field: value})


def test_special_ids_are_distinct() -> None:
    with pytest.raises(ValueError, match="SpecialIds.pad: expected an id that no other special token has"):
        SpecialIds(pad=1)


def test_configs_import_without_torch() -> None:
    code = "import sys; from omniloom.models.unified import UnifiedConfig, num_parameters; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


def outputs(model: UnifiedModel, batch: Batch) -> tuple[dict, torch.Tensor]:
    """Logits by flat place, and the prediction (B, L, C), 0 outside of pictures."""
    logits, predictions = forward(model, batch, target_times(batch, 0.6))
    index, found = batch.parts["latents"].index, predictions["latents"]
    dense = found.new_zeros(batch.ids.numel(), 3).index_copy(0, index, found)
    return {int(i): row for i, row in zip(batch.label_index, logits)}, dense.view(*batch.ids.shape, 3)


def test_packed_documents_are_computed_as_if_alone() -> None:
    model = build()
    packed = collate([documents(), [documents()[3]]], 48, CONFIG)
    packed_logits, packed_visual = outputs(model, packed)
    at = 0
    for document in documents():
        alone = collate([[document]], 20, CONFIG)
        logits, visual = outputs(model, alone)
        for place, row in logits.items():
            torch.testing.assert_close(packed_logits[at + place], row, atol=1e-5, rtol=1e-5)
        n = int((alone.document_index >= 0).sum())
        torch.testing.assert_close(
            packed_visual[0, at : at + n],
            visual[0, :n],
            atol=1e-5,
            rtol=1e-5,
        )
        at += n


def test_documents_and_padding_leak_nothing() -> None:
    model = build()
    docs = documents()
    before, _ = outputs(model, collate([docs], 48, CONFIG))
    docs[1] = plain_text([31, 32, 33, 34], S)
    changed = collate([docs], 48, CONFIG)
    changed.ids[changed.document_index < 0] = 39
    after, visual = outputs(model, changed)
    for place, row in before.items():
        # All but the changed document, behind its <bos>, stays as it was to the last bit.
        same = changed.document_index[0, place] != 1 or changed.ids[0, place] == S.bos
        assert torch.equal(after[place], row) == same
    empty = collate([docs, []], 48, CONFIG)
    assert all(torch.isfinite(out).all() for out in (outputs(model, empty)[1], visual))


def test_visual_segments_see_themselves_in_full_and_text_is_causal() -> None:
    model = build()
    batch = collate([[documents()[0]]], 16, CONFIG)
    model.requires_grad_(False)
    noisy = batch.parts["latents"].values.clone().requires_grad_()
    _, predictions = forward(model, batch, 0.5, {"latents": noisy})
    gradient = torch.autograd.grad(predictions["latents"][0].sum(), noisy)[0]
    assert (gradient.abs().sum(1) > 0).all()
    ids = torch.tensor([[1, 7, 8, 9]])
    other = torch.tensor([[1, 7, 8, 10]])
    assert torch.equal(model.text_logits(ids)[:, :3], model.text_logits(other)[:, :3])


def test_text_logits_are_those_of_the_packed_forward() -> None:
    model = build()
    ids = [11, 12, 13, 14]
    logits, _ = outputs(model, collate([[plain_text(ids, S)]], 6, CONFIG))
    torch.testing.assert_close(
        model.text_logits(torch.tensor([[S.bos, *ids, S.eos]]))[0, :5],
        torch.stack(list(logits.values())),
        atol=1e-5,
        rtol=1e-5,
    )


def test_grouped_attention_equals_a_written_out_reference() -> None:
    model = build()
    attention = model.blocks[0].attention
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    cos, sin = torch.ones(1, 1, 5, 6), torch.zeros(1, 1, 5, 6)
    mask = torch.ones(5, 5).tril().bool()[None, None]
    q, k, v = attention.qkv(x)[0].split((48, 24, 24), dim=-1)

    def norm(a: torch.Tensor) -> torch.Tensor:
        return a / (a.square().mean() + 1e-6).sqrt()

    out = torch.zeros(5, 4, 12)
    for h in range(4):
        g = h // 2
        for i in range(5):
            scores = torch.stack(
                [norm(q[i, 12 * h : 12 * h + 12]) @ norm(k[j, 12 * g : 12 * g + 12]) for j in range(i + 1)]
            ) / math.sqrt(12)
            out[i, h] = scores.softmax(0) @ v[: i + 1, 12 * g : 12 * g + 12]
    torch.testing.assert_close(
        attention(x, cos, sin, DenseAttend(mask), None)[0], attention.out(out.flatten(1)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("predict", ["v", "x"])
def test_losses_are_the_stated_means(predict: str) -> None:
    model, diffusion = build(), DiffusionConfig(predict=predict)
    objective = UnifiedObjective(model, diffusion, text_weight=0.5, visual_weight=2.0, z_loss=0.01)
    batch = collate([documents(), documents()[:2]], 48, CONFIG)
    loss, logs = objective(batch, 3)
    part, target = batch.parts["latents"], is_target(batch).flatten()
    noise, drawn = draw_noise(diffusion, batch, 3, 3, 0)
    noise, times = noise.flatten(0, 1)[part.index], drawn.flatten()[part.segment] * target[part.index]
    noisy = (1 - times[:, None]) * part.values + times[:, None] * noise
    told = torch.zeros(drawn.numel()).index_copy(0, part.segment, times).view_as(drawn)
    logits, predictions = forward(model, batch, told, {"latents": noisy})
    entropy, squares, errors = [], [], []
    for row, place in zip(logits, batch.label_index):
        entropy.append(-F.log_softmax(row, 0)[batch.labels.flatten()[place]])
        squares.append(row.exp().sum().log() ** 2)
    for i in target[part.index].nonzero()[:, 0].tolist():
        t, prediction = times[i], predictions["latents"][i]
        v = prediction if predict == "v" else (noisy[i] - prediction) / max(t, 0.05)
        wanted = noise[i] - part.values[i]
        if predict == "x":
            wanted = (noisy[i] - part.values[i]) / max(t, 0.05)
        errors.append((v - wanted).square().mean())
    text, visual, z = (torch.stack(values).mean() for values in (entropy, errors, squares))
    torch.testing.assert_close(logs["text_loss"], text.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logs["visual_loss"], visual.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, 0.5 * (text + 0.01 * z) + 2.0 * visual, atol=1e-5, rtol=1e-4)
    # Context is clean: it is no part of what the objective shows.
    shown = objective.show(batch, 3)["latent_diffusion"]
    assert (is_visual(batch) & ~is_target(batch)).any() and len(shown.values) == int(target.sum())
    torch.testing.assert_close(shown.values, noisy[target[part.index]])
    assert torch.equal(shown.times, told)


def test_global_normalisation_adds_up_over_micro_batches() -> None:
    objective = UnifiedObjective(build(), DiffusionConfig())
    halves = [collate([documents()], 48, CONFIG), collate([documents()[:1]], 48, CONFIG)]
    totals = {name: sum(b.targets[name] for b in halves) for name in ("text", "latent_diffusion")}
    counts = {name: total / 2 for name, total in totals.items()}
    averaged = sum(objective(b, 5, counts)[0] for b in halves) / 2
    logs = [objective(b, 5)[1] for b in halves]
    means = [
        sum(log[logged] * b.targets[name] for log, b in zip(logs, halves)) / totals[name]
        for name, logged in (("text", "text_loss"), ("latent_diffusion", "visual_loss"))
    ]
    torch.testing.assert_close(averaged.detach(), means[0] + 5 * means[1], atol=1e-5, rtol=1e-5)


def test_a_seed_repeats_a_step_and_every_parameter_has_a_gradient_without_a_modality() -> None:
    objective = UnifiedObjective(build(), DiffusionConfig())
    batch = collate([documents()], 48, CONFIG)
    assert objective(batch, 7)[0] == objective(batch, 7)[0] != objective(batch, 8)[0]
    for only in ([documents()[1]], []):
        objective.zero_grad()
        loss, logs = objective(collate([only], 16, CONFIG), 0)
        loss.backward()
        assert torch.isfinite(loss) and logs["visual_loss"] == 0
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())


def test_bf16_autocast_and_activation_checkpointing_give_the_same_step() -> None:
    objective = UnifiedObjective(build(), DiffusionConfig())
    batch = collate([documents()], 48, CONFIG)

    def gradients() -> list[torch.Tensor]:
        objective.zero_grad()
        objective(batch, 0)[0].backward()
        return [p.grad.clone() for p in objective.parameters()]

    plain = gradients()
    objective.model.checkpoint_activations = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients()))
    exact = objective(batch, 0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch, 0)[0]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
    whole = UnifiedObjective(build().to(torch.bfloat16), DiffusionConfig())(batch, 0)[0]
    torch.testing.assert_close(whole.float(), exact, rtol=0.02, atol=0)


def test_the_loss_falls_on_a_fixed_batch() -> None:
    torch.manual_seed(0)
    objective = UnifiedObjective(UnifiedModel(CONFIG), DiffusionConfig())
    batch = collate([documents()] * 4, 48, CONFIG)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    first = objective(batch, 0)[1]
    for step in range(60):
        optimizer.zero_grad()
        objective(batch, step)[0].backward()
        optimizer.step()
    last = objective(batch, 0)[1]
    assert first["text_loss"] == pytest.approx(math.log(40), abs=0.3)
    assert last["text_loss"] < 0.3 * first["text_loss"]
    assert last["visual_loss"] < 0.8 * first["visual_loss"]
