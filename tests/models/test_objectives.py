"""The objectives on pictures: what each shows and asks, how they mix, and what they have learnt and draw."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import visual
from visual_batches import forward

from omniloom.models.patches import patches_to_pixels, pixels_to_patches
from omniloom.models.pixels import full_to_half, half_to_full
from omniloom.models.unified.batch import Segment, collate, visual_segment
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import MixtureConfig
from omniloom.models.unified.diffusion.config import PIXEL_DIFFUSION, DiffusionConfig, pixel_fields
from omniloom.models.unified.generation.generate import Drawing, generate_interleaved, generate_text, generate_visual
from omniloom.models.unified.generation.sampling import TextSampling
from omniloom.models.unified.layouts import prefix_for_text, prefix_for_visual, text_to_visual, visual_to_text
from omniloom.models.unified.mask import dense_mask
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.corruption import draw_masks, mask_ratio
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.representations import OBJECTIVES

ALL = tuple(OBJECTIVES)
CODES = 11
CONFIG = UnifiedConfig(
    vocab_size=40,
    latent_dim=3,
    pixel_dim=12,
    pixel_bottleneck=8,
    codebook_size=CODES,
    width=48,
    layers=2,
    heads=4,
    density=MixtureConfig(components=3),
)
S = CONFIG.specials
GRID = (1, 2, 3)


def values(objective: str, grid: tuple[int, int, int] = GRID, seed: int = 0) -> np.ndarray:
    rng, count = np.random.default_rng(seed), int(np.prod(grid))
    if OBJECTIVES[objective].representation.discrete:
        return rng.integers(0, CODES, count)
    channels = 3 if OBJECTIVES[objective].representation.name == "latents" else 12
    return rng.normal(size=(count, channels)).astype(np.float32)


def build(config: UnifiedConfig = CONFIG, seed: int = 0) -> UnifiedModel:
    """Weights larger than at the start, so that every output depends on all that is seen."""
    torch.manual_seed(seed)
    model = UnifiedModel(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.15)
    return model


def config_for(objective: str, **fields: Any) -> UnifiedConfig:
    sizes: dict[str, Any] = {
        "latents": {"latent_dim": 3},
        "pixels": {"pixel_dim": 12, "pixel_bottleneck": 8},
        "codes": {"codebook_size": CODES},
    }[OBJECTIVES[objective].representation.name]
    if OBJECTIVES[objective].by_density:
        sizes = {**sizes, "density": MixtureConfig(components=8)}
    return UnifiedConfig(**{"vocab_size": 40, "width": 48, "layers": 2, "heads": 4, **sizes, **fields})


def drawing(objective: str, seed: int = 0, grid: tuple[int, int, int] = GRID) -> list[Segment]:
    return text_to_visual([9, 8, 7], values(objective, grid, seed), grid, S, objective=objective)


def describing(objective: str, seed: int = 1, max_time: float = 0.0) -> list[Segment]:
    return visual_to_text(values(objective, GRID, seed), GRID, [20, 21], S, objective, max_time)


def trained(objectives: tuple[str, ...] = ALL, model: UnifiedModel | None = None, **fields) -> UnifiedObjective:
    return UnifiedObjective(model or build(), DiffusionConfig(), objectives=objectives, **fields)


# ---- what a row holds ----


def test_the_causal_ones_alone_are_causal_inside_its_segment() -> None:
    for name, row in OBJECTIVES.items():
        batch = collate([[drawing(name)]], 14, CONFIG)
        mask = dense_mask(batch.start, batch.end)[0, 0]
        inside = mask[5:11, 5:11]
        assert torch.equal(inside, torch.ones(6, 6).tril().bool() if row.causal else torch.ones(6, 6).bool())
        assert batch.targets == {"text": 5, **dict.fromkeys(ALL, 0), name: 6}


def test_parts_list_positions_and_say_whose_they_are() -> None:
    batch = collate([[drawing(name, i), describing(name, 9)] for i, name in enumerate(ALL)], 32, CONFIG)
    assert batch.tokens["visual"] == len(ALL) * 12 and batch.num_segments == 2
    for i, name in enumerate(ALL):
        part, task = batch.parts[OBJECTIVES[name].representation.name], batch.tasks[name]
        assert task.segments == [(2 * i, GRID, 1.0, True)]
        assert part.index[task.rows].tolist() == task.places.tolist() == list(range(32 * i + 5, 32 * i + 11))
        np.testing.assert_array_equal(part.values[task.rows], values(name, GRID, i))
        assert (part.segment[task.rows] == 2 * i).all()


def test_values_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="row 0, document 0: codes outside 0..10"):
        collate([[text_to_visual([], np.array([11]), (1, 1, 1), S, objective="masked_code")]], 8, CONFIG)
    with pytest.raises(ValueError, match="row 0, document 0: holds codes, and the model has no codebook_size"):
        collate([[drawing("next_code")]], 16, config_for("latent_diffusion"))
    with pytest.raises(ValueError, match="pixels have 3 channels, pixel_dim is 12"):
        collate([[[visual_segment("pixel_diffusion", values("latent_diffusion"), GRID)]]], 16, CONFIG)
    for fields, message in (
        ({"codes": np.zeros(6, int)}, "Segment.objective: codes need next_code or masked_code, got None"),
        ({"codes": np.zeros(6, int), "objective": "latent_diffusion"}, "Segment.objective: codes need"),
        ({"codes": np.zeros(5, int), "objective": "next_code"}, r"Segment.codes: grid .* needs \(6,\), got \(5,\)"),
        ({"codes": np.zeros(6, int), "latents": np.zeros((6, 3))}, "needs one of latents, pixels, codes, got latents"),
        ({"latents": np.zeros((6, 3)), "max_time": 1.5}, "Segment.max_time"),
        ({"latents": np.zeros((6, 3)), "max_time": 0.0}, "Segment.max_time: expected a share up to 1, of a target"),
        ({"codes": np.zeros(6, int), "objective": "next_code", "max_time": 0.5}, "next_code has no time"),
    ):
        with pytest.raises(ValueError, match=message):
            Segment("visual", grid=GRID, **fields)
    with pytest.raises(ValueError, match="objective: expected one of latent_diffusion"):
        visual_segment("nope", np.zeros(6), GRID)


def test_a_model_has_the_parts_that_its_config_names() -> None:
    def parts(config: UnifiedConfig) -> set[str]:
        names = (name.split(".")[0] for name, _ in UnifiedModel(config).named_parameters())
        return set(names) - {"embed", "blocks", "norm", "head"}

    assert parts(config_for("latent_diffusion")) == {"visual_in", "visual_norm", "visual_out", "time"}
    assert parts(config_for("pixel_diffusion")) == {"pixel_in", "pixel_norm", "pixel_out", "time"}
    latents = {"visual_in", "visual_norm", "visual_out", "time"}
    assert parts(config_for("next_latent")) == {*latents, "density"}
    assert parts(config_for("next_code", density=MixtureConfig())) == {"code_in", "code_norm", "code_out"}
    assert parts(config_for("next_code")) == {"code_in", "code_norm", "code_out"}
    assert parts(UnifiedConfig(vocab_size=40, width=48, heads=4)) == set()
    with pytest.raises(ValueError, match="UnifiedConfig.codebook_size: expected a positive integer, got 0"):
        UnifiedConfig(vocab_size=40, codebook_size=0)
    with pytest.raises(ValueError, match="the model has codes, the objectives are on latents"):
        UnifiedObjective(UnifiedModel(config_for("next_code")), DiffusionConfig())
    for fields, named in (
        ({"text_weight": -0.5}, "text_weight"),
        ({"z_loss": -1.0}, "z_loss"),
        ({"objective_weights": {"masked_code": -2.0}}, "masked_code"),
    ):
        with pytest.raises(ValueError, match=rf"UnifiedObjective.{named}: expected a number not below 0, got -"):
            trained(("masked_code",), build(config_for("masked_code")), **fields)
    with pytest.raises(ValueError, match="objective_weights: next_code is not trained"):
        trained(("latent_diffusion",), build(config_for("latent_diffusion")), objective_weights={"next_code": 1.0})
    with pytest.raises(ValueError, match="batch: holds targets of masked_code; trained are next_code"):
        trained(("next_code",), build(config_for("next_code")))(
            collate([[drawing("masked_code")]], 16, config_for("next_code")), 0
        )
    for objective in ("latent_diffusion", "masked_code"):
        with pytest.raises(ValueError, match="seed: expected 2 integers, one a row, got 3"):
            trained((objective,), build(config_for(objective)))(
                collate([[drawing(objective)]] * 2, 16, config_for(objective)), [1, 2, 3]
            )


# ---- losses ----


def test_next_code_is_the_cross_entropy_of_each_code_by_the_place_before_it() -> None:
    config = config_for("next_code")
    model = build(config)
    rows = [[drawing("next_code", 3)], [describing("next_code"), drawing("next_code", 4, (2, 2, 2))]]
    batch = collate(rows, 32, config)
    loss, logs = trained(("next_code",), model)(batch, 0)
    total, count = 0.0, 0
    for row, at, seed, grid in ((0, 5, 3, GRID), (1, 17, 4, (2, 2, 2))):
        codes = values("next_code", grid, seed)
        places = torch.arange(at - 1, at - 1 + len(codes)) + 32 * row
        part = batch.parts["codes"]
        logits = model(batch, {"codes": part.values}, {}, {"codes": places})[1]["codes"]
        total += F.cross_entropy(logits, torch.from_numpy(codes), reduction="sum").item()
        count += len(codes)
    assert batch.ids[1, 16] == S.bov and batch.targets["next_code"] == count
    assert logs["visual_loss"].item() == pytest.approx(total / count, rel=1e-5)
    assert loss.item() == pytest.approx(logs["text_loss"].item() + total / count, rel=1e-5)


def weighted(document: list[Segment], weight: float) -> list[Segment]:
    return [replace(segment, weight=weight) for segment in document]


@torch.no_grad()
@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(0, 4), min_size=len(ALL) + 2, max_size=len(ALL) + 2))
def test_a_weight_scales_the_loss_of_its_documents_targets_and_no_count(weights: list[float]) -> None:
    documents = [
        *(drawing(name, i) for i, name in enumerate(ALL)),
        describing("masked_code", max_time=0.5),
        [Segment("text", ids=np.arange(6, 16))],
    ]
    objective = UnifiedObjective(
        build(), DiffusionConfig(multiscale=2), objectives=ALL, z_loss=0.1, objective_weights={"masked_code": 0.7}
    )

    def losses(weights: list[float]) -> tuple[float, dict[str, float]]:
        rows = [
            [weighted(d, w) for d, w in zip(documents[:3], weights[:3])],
            [weighted(d, w) for d, w in zip(documents[3:], weights[3:])],
        ]
        batch = collate(rows, 64, CONFIG)
        assert batch.targets == collate([documents[:3], documents[3:]], 64, CONFIG).targets
        loss, logs = objective(batch, [3, 4])
        return float(loss), {name: float(value) for name, value in logs.items()}

    alone = [losses([float(i == j) for j in range(len(documents))])[0] for i in range(len(documents))]
    found, logs = losses(weights)
    assert found == pytest.approx(sum(w * part for w, part in zip(weights, alone)), rel=1e-4, abs=1e-5)
    assert logs["latent_diffusion_loss"] == pytest.approx(
        weights[0] * losses([1.0] * len(documents))[1]["latent_diffusion_loss"], rel=1e-4, abs=1e-6
    )
    plain, by_name = objective(collate([documents[:3], documents[3:]], 64, CONFIG), [3, 4])
    ones = losses([1.0] * len(documents))
    assert ones == (float(plain), {name: float(value) for name, value in by_name.items()})


def test_the_text_loss_weighs_each_label_by_the_segment_that_it_comes_from() -> None:
    model = build()
    document = [replace(s, weight=w) for s, w in zip(drawing("next_code"), (0.5, 2.0, 3.0))]
    batch = collate([[document]], 13, CONFIG)
    _, logs = trained(model=model)(batch, 0)
    empty = {name: part.values for name, part in batch.parts.items()}
    asked = {name: part.index[:0] for name, part in batch.parts.items()}
    times = {name: torch.zeros(1, 1) for name in ("latents", "pixels")}
    logits = model(batch, empty, times, asked)[0]
    entropy = F.cross_entropy(logits, torch.tensor([9, 8, 7, S.boi, S.eos]), reduction="none")
    wanted = (entropy * torch.tensor([0.5, 0.5, 0.5, 2.0, 3.0])).sum() / 5
    assert float(logs["text_loss"]) == pytest.approx(float(wanted.detach()), rel=1e-5)


@torch.no_grad()
def test_next_code_logits_do_not_know_later_codes() -> None:
    config = config_for("next_code")
    model, codes = build(config), values("next_code")
    other = codes.copy()
    other[3] = (other[3] + 1) % CODES

    def logits(codes: np.ndarray) -> torch.Tensor:
        batch = collate([[text_to_visual([9], codes, GRID, S, objective="next_code")]], 12, config)
        part = batch.parts["codes"]
        return model(batch, {"codes": part.values}, {}, {"codes": part.index - 1})[1]["codes"]

    before, after = logits(codes), logits(other)
    assert torch.equal(before[:4], after[:4]) and not torch.allclose(before[4:], after[4:])


def test_the_cosine_schedule() -> None:
    assert mask_ratio(0.0) == 1 and mask_ratio(1.0) == pytest.approx(0) and mask_ratio(2 / 3) == pytest.approx(0.5)
    progress = torch.linspace(0, 1, 5)
    expected = torch.tensor([math.cos(math.pi / 2 * p) for p in progress.tolist()])
    torch.testing.assert_close(mask_ratio(progress), expected)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4))
def test_masks_by_a_plain_loop(seed: int, sides: list[tuple[int, int]]) -> None:
    documents = [drawing("masked_code", i, (1, h, w)) for i, (h, w) in enumerate(sides)]
    length = sum(h * w + 7 for h, w in sides)
    batch = collate([[], documents], length, CONFIG)
    masked, weight = draw_masks(batch, "masked_code", [0, seed], 3)
    generator = torch.Generator().manual_seed((seed + 3 * 0x9E3779B97F4A7C15) % (1 << 63))
    scores, progress = torch.rand(2, length, generator=generator)
    task, at = batch.tasks["masked_code"], 0
    for i, (h, w) in enumerate(sides):
        n = h * w
        count = max(1, math.ceil(n * math.cos(math.pi / 2 * float(progress[i]))))
        own = [float(scores[place - length]) for place in task.places[at : at + n]]
        chosen = sorted(range(n), key=lambda p: own[p])[:count]
        assert np.flatnonzero(masked[at : at + n]).tolist() == sorted(chosen)
        assert weight[at : at + n] == pytest.approx(n / count)
        at += n


def test_masked_code_is_each_segments_mean_over_what_is_masked() -> None:
    config = config_for("masked_code")
    model = build(config)
    rows = [[drawing("masked_code", 3), describing("masked_code")], [drawing("masked_code", 4, (2, 2, 2))]]
    batch = collate(rows, 32, config)
    objective = trained(("masked_code",), model)
    _, logs = objective(batch, [5, 6])
    masked, _ = draw_masks(batch, "masked_code", [5, 6], 3)
    part, task = batch.parts["codes"], batch.tasks["masked_code"]
    seen = part.values.clone()
    seen[task.rows[torch.from_numpy(masked)]] = CODES
    logits = forward(model, batch, values={"codes": seen})[1]["codes"]
    errors = []
    for number, grid, _, _ in task.segments:
        hidden = ((part.segment == number) & (seen == CODES)).nonzero()[:, 0]
        entropy = F.cross_entropy(logits[hidden], part.values[hidden])
        errors += [entropy.item()] * int(np.prod(grid))
    assert logs["visual_loss"].item() == pytest.approx(np.mean(errors), rel=1e-5)
    context = part.segment == 1
    assert context.any() and torch.equal(seen[context], part.values[context])  # context is shown as it is


def test_pixels_predict_x_by_the_v_loss() -> None:
    config = config_for("pixel_diffusion")
    model = build(config)
    batch = collate([[drawing("pixel_diffusion")]], 16, config)
    objective = trained(("pixel_diffusion",), model)
    shown = objective.show(batch, [7])["pixel_diffusion"]
    t, noise, clean = (shown.extras[name] for name in ("time", "noise", "clean"))
    noisy = (1 - t) * clean + t * noise
    torch.testing.assert_close(shown.values, noisy)
    prediction = forward(model, batch, shown.times, {"pixels": noisy})[1]["pixels"]
    v = (noisy - prediction) / t.clamp(min=0.05)
    wanted = (noisy - clean) / t.clamp(min=0.05)
    expected = (v - wanted).square().mean().item()
    assert objective(batch, [7])[1]["visual_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert (PIXEL_DIFFUSION.predict, PIXEL_DIFFUSION.weight, PIXEL_DIFFUSION.time_mean) == ("x", "v", 0.8)
    assert pixel_fields({"predict": "v"}) == {"predict": "v", "time_mean": 0.8, "time_std": 0.8}
    assert DiffusionConfig(**pixel_fields({"formulation": "vp"})).time == "uniform"


def test_noise_or_v_of_wide_patches_is_warned_of() -> None:
    wide = UnifiedModel(UnifiedConfig(vocab_size=40, pixel_dim=192, width=48, heads=4, layers=1))
    with pytest.warns(UserWarning, match="192 numbers at a width of 48"):
        UnifiedObjective(wide, DiffusionConfig(), objectives=("pixel_diffusion",), pixel_diffusion=DiffusionConfig())


def test_a_mixed_batch_is_the_sum_of_its_objectives() -> None:
    weights = {"next_code": 0.5, "masked_code": 2.0}
    objective = trained(objective_weights=weights)
    rows = [[drawing(name, i), describing(name)] for i, name in enumerate(ALL)]
    mixed = collate(rows, 32, CONFIG)
    loss, logs = objective(mixed, list(range(10, 10 + len(ALL))))
    expected = logs["text_loss"].item()
    for i, (name, row) in enumerate(zip(ALL, rows)):
        alone = collate([row], 32, CONFIG)
        own = objective(alone, [10 + i])[1][f"{name}_loss"].item()
        assert logs[f"{name}_loss"].item() == pytest.approx(own, rel=1e-5)
        expected += weights.get(name, 5.0) * own
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # Means over two passes, as ranks and accumulation make them.
    parts = [collate(rows[:2], 32, CONFIG), collate(rows[2:], 32, CONFIG)]
    counts = {name: mixed.targets[name] / 2 for name in mixed.targets}
    halves = [
        objective(part, seeds, counts)[0].item()
        for part, seeds in zip(parts, ([10, 11], list(range(12, 10 + len(ALL)))))
    ]
    assert sum(halves) / 2 == pytest.approx(loss.item(), rel=1e-5)


def test_every_parameter_takes_part_whatever_the_batch_holds() -> None:
    objective = trained()
    for documents in ([drawing(name) for name in ALL], [drawing("next_code")], [describing("latent_diffusion")], []):
        objective.zero_grad()
        loss, logs = objective(collate([documents], 80, CONFIG), 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())
        present = {s.objective for document in documents for s in document if s.kind == "visual" and s.loss}
        assert all((logs[f"{name}_loss"] != 0) == (name in present) for name in ALL)


@pytest.mark.parametrize("name", ["latent_diffusion", "pixel_diffusion", "masked_code"])
def test_context_with_noise_is_capped_and_is_no_target(name: str) -> None:
    config = config_for(name)
    objective = trained((name,), build(config))
    clean = collate([[describing(name)] * 8], 128, config)
    noisy = collate([[describing(name, max_time=0.25)] * 8], 128, config)
    assert clean.targets == noisy.targets and noisy.targets[name] == 0
    assert len(objective.show(clean, [3])[name].values) == 0
    shown, full = (
        objective.show(collate([[describing(name, max_time=cap)] * 8], 128, config), [3])[name] for cap in (0.25, 1.0)
    )
    assert len(shown.places) == 0
    original = noisy.parts[OBJECTIVES[name].representation.name].values
    if name == "masked_code":
        counts = (shown.values == CODES).view(8, 6).sum(1)
        assert (counts >= 1).all() and (counts <= math.ceil(6 * 0.25)).all()
        assert torch.equal(shown.values[shown.values != CODES], original[shown.values != CODES])
    else:
        torch.testing.assert_close(shown.times, 0.25 * full.times)
        assert (shown.times > 0).all() and not torch.equal(shown.values, original)
    assert objective(clean, [3])[0] != objective(noisy, [3])[0]


def test_draws_of_a_row_depend_on_its_seed_alone() -> None:
    objective = trained()
    rows = [[drawing(name, i) for name in ALL] for i in range(3)]
    together = objective.show(collate(rows, 80, CONFIG), [1, 2, 3])
    alone = objective.show(collate([rows[1]], 80, CONFIG), [2])
    for name in ALL:
        assert torch.equal(together[name].values[6:12], alone[name].values), name
    whole = objective.show(collate(rows, 80, CONFIG), 1)
    assert all(torch.equal(whole[n].values, objective.show(collate(rows, 80, CONFIG), 1)[n].values) for n in ALL)


# ---- generation ----


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["tie_v2", "axial", "streaming", "one_place"])
def test_next_code_with_the_cache_equals_recomputation(scheme: str) -> None:
    config = config_for("next_code", rope_scheme=scheme)
    model, grid = build(config).eval(), (2, 2, 2)
    document = prefix_for_text([9, 8], S, values("next_code", GRID, 5), GRID, objective="next_code")
    drawn = generate_visual(model, [document], grid, visual(objective="next_code", guidance_scale=1.5, temperature=0.0))
    codes = drawn.flatten().tolist()
    for place in range(8):
        logits = []
        for prefix in (document, prefix_for_visual([], S)):
            known = np.array(codes[:place] + [0] * (8 - place))
            row = [*prefix, visual_segment("next_code", known, grid)]
            batch = collate([[row]], sum(s.length for s in row), config)
            part = batch.parts["codes"]
            asked = {"codes": part.index[-8:] - 1}
            logits.append(model(batch, {"codes": part.values}, {}, asked)[1]["codes"][place])
        guided = logits[1] + 1.5 * (logits[0] - logits[1])
        assert int(guided.argmax()) == codes[place]


@torch.no_grad()
def test_masked_code_is_maskgit_by_a_plain_loop() -> None:
    config = config_for("masked_code")
    model, grid, rounds = build(config).eval(), (1, 3, 4), 5
    prefix = prefix_for_visual([9, 8, 7], S)
    drawn = generate_visual(
        model,
        [prefix],
        grid,
        visual(objective="masked_code", num_steps=rounds, guidance_scale=2.0, temperature=0.0),
        seeds=[4],
    )[0].flatten()
    draws = torch.rand(rounds, 2, 12, generator=torch.Generator().manual_seed(4))
    codes = [CODES] * 12
    for step in range(rounds):
        logits = []
        for before in (prefix, prefix_for_visual([], S)):
            row = [*before, visual_segment("masked_code", np.zeros(12, int), grid)]
            batch = collate([[row]], sum(s.length for s in row), config)
            logits.append(forward(model, batch, values={"codes": torch.tensor(codes)})[1]["codes"])
        logits = (logits[1] + 2 * (logits[0] - logits[1])).log_softmax(-1)
        unknown = [p for p in range(12) if codes[p] == CODES]
        guess = {p: int(logits[p].argmax()) for p in unknown}
        gumbel = -(-draws[step, 1].log()).log()
        sure = {p: float(logits[p, guess[p]] + 4.5 * (1 - (step + 1) / rounds) * gumbel[p]) for p in unknown}
        masked = math.floor(12 * math.cos(math.pi / 2 * (step + 1) / rounds)) if step + 1 < rounds else 0
        masked = min(masked, len(unknown) - 1)
        again = sorted(unknown, key=lambda p: sure[p])[:masked]
        for p in unknown:
            codes[p] = CODES if p in again else guess[p]
    assert drawn.tolist() == codes and CODES not in codes


@pytest.mark.parametrize("objective", ALL)
def test_a_seed_gives_the_same_picture_whatever_the_batch(objective: str) -> None:
    model = build(config_for(objective)).eval()
    requests = [
        prefix_for_text([7, 8, 9], S),
        prefix_for_text([], S, values(objective), GRID, objective=objective),
        prefix_for_text(list(range(10, 25)), S),
    ]
    how = {
        "objective": objective,
        "num_steps": 4,
        "guidance_scale": 2.0,
        "diffusion": None if "code" in objective else DiffusionConfig(predict="x"),
    }
    together = generate_visual(model, requests, (1, 3, 3), visual(**how), seeds=[1, 2, 3])
    for b in range(3):
        alone = generate_visual(model, [requests[b]], (1, 3, 3), visual(**how), seeds=[1 + b])[0]
        torch.testing.assert_close(alone, together[b], atol=1e-5, rtol=1e-4)
    other = generate_visual(model, requests, (1, 3, 3), visual(**how), seeds=[1, 2, 4])
    assert torch.equal(other[:2], together[:2]) and not torch.equal(other[2], together[2])
    assert generate_visual(model, [], (1, 3, 3), visual(**how)).shape == (0, *together.shape[1:])
    if OBJECTIVES[objective].representation.discrete:
        assert together.dtype == torch.int64 and 0 <= together.min() and together.max() < CODES
        greedy = [
            generate_visual(model, requests, (1, 3, 3), visual(temperature=1.0, top_k=1, **how), seeds=seed)
            for seed in (0, 9)
        ]
        assert torch.equal(*greedy) or objective == "masked_code"


@pytest.mark.parametrize("objective", ["next_code", "masked_code", "pixel_diffusion", "next_latent"])
def test_text_goes_on_behind_the_clean_picture(objective: str) -> None:
    """What was drawn, read as context, is what the state holds after drawing."""
    model = build(config_for(objective)).eval()
    with torch.no_grad():
        model.norm.weight.mul_(0.6)  # flatter, so that a picture is opened soon
    how = visual(diffusion=DiffusionConfig(predict="x"), num_steps=3, guidance_scale=1.5, objective=objective)
    for seed in range(40):
        made = generate_interleaved(
            model,
            [prefix_for_text([7], S)],
            TextSampling(max_new_tokens=10, temperature=3.0),
            Drawing(how, GRID, max_visuals=1),
            seeds=[seed],
        )[0]
        kinds = [s.kind for s in made]
        if "visual" in kinds[:-1]:
            break
    at = kinds.index("visual")
    assert made[at].objective == objective
    longer = [*prefix_for_text([7], S), *made[:at], visual_segment(objective, made[at].values, GRID, loss=False)]
    asked = generate_visual(
        model,
        [longer[:-1]],
        GRID,
        visual(diffusion=how.diffusion, num_steps=3, guidance_scale=1.5, objective=objective),
        seeds=[seed],
    )
    np.testing.assert_allclose(asked[0].flatten(0, 2), made[at].values, atol=1e-4)
    # The drawn document again as one packed row: the text behind the picture has the logits it was drawn from.
    logits = []
    for document in ([*longer, Segment("text", ids=made[at + 1].ids)],):
        batch = collate([[document]], sum(s.length for s in document), model.config)
        with torch.no_grad():
            logits.append(forward(model, batch)[0][-len(made[at + 1].ids) :])
    from omniloom.models.unified.generation.cache import GenerationState

    state, hidden = GenerationState.prefill(model, [longer])
    with torch.no_grad():
        torch.testing.assert_close(model.text_head(hidden)[0], logits[0][0], atol=1e-5, rtol=1e-4)


def test_what_cannot_be_drawn_is_named() -> None:
    model = build(config_for("next_code"))
    with pytest.raises(ValueError, match="objective: expected one of"):
        generate_visual(model, [prefix_for_visual([], S)], GRID, visual(objective="nope"))
    with pytest.raises(ValueError, match="diffusion: latent_diffusion needs the config"):
        generate_visual(model, [prefix_for_visual([], S)], GRID, visual())
    with pytest.raises(ValueError, match="latent_diffusion needs a model with latent_dim"):
        generate_visual(model, [prefix_for_visual([], S)], GRID, visual(diffusion=DiffusionConfig()))
    with pytest.raises(ValueError, match="num_steps"):
        generate_visual(model, [prefix_for_visual([], S)], GRID, visual(objective="masked_code", num_steps=0))


@pytest.mark.parametrize("objective", ALL)
def test_memorised_pictures_come_back_by_caption_and_captions_by_picture(objective: str) -> None:
    torch.manual_seed(0)
    config, grid = config_for(objective, vocab_size=20, width=64), (1, 2, 2)
    model = UnifiedModel(config)
    trainer = trained((objective,), model, visual_weight=5.0 if OBJECTIVES[objective].by_density else 1.0)
    pictures = [values(objective, grid, 20 + i) for i in range(4)]
    captions = [[10 + i, 15] for i in range(4)]
    rows = [
        [text_to_visual(c, p, grid, S, objective=objective), visual_to_text(p, grid, c, S, objective)]
        for c, p in zip(captions, pictures)
    ]
    batch, steps = collate(rows * 3, 20, config), 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    first = trainer(batch, 0)[1]
    for step in range(steps):
        optimizer.zero_grad()
        trainer(batch, step)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    last = trainer(batch, 0)[1]
    assert last["visual_loss"] < 0.5 * first["visual_loss"] and last["text_loss"] < 0.2 * first["text_loss"]
    drawn = generate_visual(
        model.eval(),
        [prefix_for_visual(c, S) for c in captions],
        grid,
        visual(
            objective=objective,
            diffusion=PIXEL_DIFFUSION if objective == "pixel_diffusion" else DiffusionConfig(),
            num_steps=20,
            temperature=0.5,
        ),
    )
    for found, picture in zip(drawn.flatten(1, 3).numpy(), pictures):
        if OBJECTIVES[objective].representation.discrete:
            assert found.tolist() == picture.tolist()
        else:
            distance = [np.square(found - other).mean() for other in pictures]
            assert np.argmin(distance) == [np.array_equal(picture, p) for p in pictures].index(True)
            assert min(distance) < 0.15
    written = generate_text(
        model, [prefix_for_text([], S, p, grid, objective=objective) for p in pictures], TextSampling(max_new_tokens=4)
    )
    assert written == captions


def test_patches_of_pixels_are_lossless() -> None:
    pixels = torch.randint(0, 256, (2, 3, 2, 6, 9), generator=torch.Generator().manual_seed(0)).float() / 255 - 0.5
    patches = pixels_to_patches(half_to_full(pixels), 3)
    assert patches.shape == (2, 2, 2, 3, 27) and patches.abs().max() <= 1
    # Row 4, column 7 of frame 1: patch (1, 2), pixel (1, 1) in it.
    torch.testing.assert_close(patches[0, 1, 1, 2].view(3, 3, 3)[1, 1], 2 * pixels[0, :, 1, 4, 7])
    assert torch.equal(full_to_half(patches_to_pixels(patches, 3)), pixels)
    with pytest.raises(ValueError, match="multiples of 4, got 6x9"):
        pixels_to_patches(pixels, 4)


def test_what_is_drawn_ahead_is_what_a_step_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, patch_mask_low=0.2, patch_mask_high=0.8)
    rows = [[drawing(name, i) for i, name in enumerate(ALL)], [describing("masked_code", max_time=0.5)]]
    objective = UnifiedObjective(build(config), DiffusionConfig(), objectives=ALL).train()
    batch, seeds = collate(rows, 80, config), [3, 4]
    drawn = objective.draw_ahead(batch, seeds)
    assert {"latent_diffusion", "pixel_diffusion/patches", "masked_code", "next_latent"} <= drawn.keys()
    assert "next_latent/patches" not in drawn
    expected, logs = objective(batch, seeds)
    ahead = replace(batch, drawn=drawn).to("cpu")
    for module in ("losses", "objective", "next_latent"):
        for name in ("draw_noise", "draw_masks", "draw_patch_masks", "draw_by_place"):
            monkeypatch.setattr(f"omniloom.models.unified.objectives.{module}.{name}", None, raising=False)
    loss, same = objective(ahead, seeds)  # nothing is left to draw
    assert torch.equal(loss, expected) and all(torch.equal(same[name], value) for name, value in logs.items())
    noise, times = drawn["latent_diffusion"]
    other, _ = objective(replace(batch, drawn={**drawn, "latent_diffusion": (noise + 1, times)}), seeds)
    assert not torch.equal(other, expected)
    with pytest.raises(TypeError):
        objective(batch, seeds)
