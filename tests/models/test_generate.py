"""Generation: the cache changes nothing, the batch changes nothing, and a memorised picture comes back."""

from __future__ import annotations

import math

import backbone_cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import visual
from visual_batches import forward, target_times

from omniloom.models.unified.batch import Segment, collate, document_length, visual_segment
from omniloom.models.unified.config import ROPE_SCHEMES, UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import NetworkDenoiser, sampling_times
from omniloom.models.unified.diffusion.samplers import sample
from omniloom.models.unified.generation import choice
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.choice import sample_tokens
from omniloom.models.unified.generation.draw import draw_and_go_on, draw_visual, open_diffusion
from omniloom.models.unified.generation.generate import (
    Drawing,
    generate_interleaved,
    generate_text,
    generate_visual,
    guided_prefixes,
)
from omniloom.models.unified.generation.sampling import TextSampling
from omniloom.models.unified.layouts import prefix_for_text, prefix_for_visual, text_to_visual, visual_to_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.objective import UnifiedObjective

CONFIG = UnifiedConfig(vocab_size=40, latent_dim=3, width=48, layers=2, heads=4, kv_heads=2, hidden=64)
S = CONFIG.specials
DIFFUSION = DiffusionConfig()
GRID = (1, 2, 3)


def build(config: UnifiedConfig = CONFIG) -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModel(config).eval()
    with torch.no_grad():
        # Larger weights than at the start, so that a sample depends on all of its prefix.
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.15)
    return model


def latents(grid: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(int(np.prod(grid)), 3)).astype(np.float32)


def prefixes() -> list[list[Segment]]:
    return [
        prefix_for_text([7, 8, 9], S),
        prefix_for_text([20], S, latents((1, 3, 2)), (1, 3, 2)),
        prefix_for_text(list(range(10, 25)), S),
        prefix_for_text([], S, latents((2, 2, 2), 1), (2, 2, 2)),
    ]


def full_logits(model: UnifiedModel, document: list[Segment]) -> torch.Tensor:
    """Next-token logits by the packed training forward: a text token appended as a target asks for them."""
    asked = [*document, Segment("text", ids=np.array([7]))]
    batch = collate([[asked]], document_length(asked), model.config)
    return forward(model, batch)[0][-1]


@torch.no_grad()
@pytest.mark.parametrize("scheme", ROPE_SCHEMES)
def test_text_with_the_cache_equals_recomputation(scheme: str) -> None:
    config = UnifiedConfig(vocab_size=40, latent_dim=3, width=48, layers=2, heads=4, rope_scheme=scheme)
    model, documents = build(config), prefixes()
    state, hidden = GenerationState.prefill(model, documents)
    for token in (9, 30, 31, 12):
        logits = model.text_head(hidden)
        for b, document in enumerate(documents):
            torch.testing.assert_close(logits[b], full_logits(model, document), atol=1e-5, rtol=1e-5)
            documents[b] = [*document, Segment("text", ids=np.array([token + b]), loss=False)]
        hidden = state.feed_text([token + b for b in range(len(documents))])


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"block": "gau"}, {"block": "gau", "gau_length": 40}], ids=str)
def test_prefixes_of_very_different_lengths_are_read_as_if_each_were_alone(fields: dict) -> None:
    """Several passes, and rows of one length in neighbouring places and apart; pictures in some of them."""
    config = UnifiedConfig(vocab_size=40, latent_dim=3, width=48, layers=2, heads=4, **fields)
    model, rng = build(config), np.random.default_rng(0)
    documents = [prefix_for_text(rng.integers(6, 40, size).tolist(), S) for size in (70, 2, 2, 200, 70, 110, 2)]
    documents[5] = prefix_for_text(rng.integers(6, 40, 90).tolist(), S, latents((1, 3, 2)), (1, 3, 2))
    state, hidden = GenerationState.prefill(model, documents)
    tokens = rng.integers(6, 40, (3, len(documents))).tolist()
    alone = [GenerationState.prefill(model, [document]) for document in documents]
    shown = torch.from_numpy(np.stack([latents((1, 4, 5), seed) for seed in range(len(documents))]))
    for step in range(3):
        torch.testing.assert_close(hidden, torch.cat([own for _, own in alone]), atol=1e-5, rtol=1e-4)
        drawn = state.feed_visual("latent_diffusion", shown, (1, 4, 5), 0.5, keep=False)
        for row, (own, _) in enumerate(alone):
            expected = own.feed_visual("latent_diffusion", shown[row : row + 1], (1, 4, 5), 0.5, keep=False)
            torch.testing.assert_close(drawn[row : row + 1], expected, atol=1e-5, rtol=1e-4)
        hidden = state.feed_text(tokens[step])
        alone = [(own, own.feed_text([token])) for (own, _), token in zip(alone, tokens[step], strict=True)]
    assert state.lengths == [own.lengths[0] for own, _ in alone] and state.last == [own.last[0] for own, _ in alone]


def test_what_is_drawn_may_be_trained_on() -> None:
    drawn = generate_visual(build(), prefixes(), GRID, visual(diffusion=DIFFUSION, num_steps=1))
    weight = torch.ones(3, requires_grad=True)
    (drawn * weight).sum().backward()
    assert torch.equal(weight.grad, drawn.sum((0, 1, 2, 3)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("grid", "sampler", "of_images"),
    [((1, 2, 3), "euler", None), ((3, 2, 2), "heun", 1.5), ((1, 5, 4), "euler", 2.0), ((1, 2, 2), "euler", 1.0)],
)
def test_pictures_with_the_cache_equal_recomputation(
    grid: tuple[int, int, int], sampler: str, of_images: float | None
) -> None:
    """Guided by the formulas as they are published, each pass a document as training packs it."""
    model, documents = build(), prefixes()
    drawn = generate_visual(
        model,
        documents,
        grid,
        visual(diffusion=DIFFUSION, num_steps=3, guidance_scale=2.0, image_guidance_scale=of_images, sampler=sampler),
        seeds=[5, 6, 7, 8],
    )
    assert drawn.shape == (4, *grid, 3) and drawn.dtype == torch.float32
    for b, document in enumerate(documents):

        def network(x: torch.Tensor, time: float, document: list[Segment] = document) -> torch.Tensor:
            outputs = []
            pictures = [Segment("text", ids=np.array([S.bos])), *[s for s in document if s.kind == "visual"]]
            for prefix in (document, pictures, prefix_for_visual([], S)):
                row = [*prefix, Segment("visual", latents=x.numpy(), grid=grid)]
                batch = collate([[row]], document_length(row), CONFIG)
                _, predictions = forward(model, batch, target_times(batch, time))
                outputs.append(predictions["latents"][-len(x) :])
            both, image, neither = outputs
            if of_images is None:
                return neither + 2.0 * (both - neither)
            return neither + of_images * (image - neither) + 2.0 * (both - image)

        noise = torch.randn(int(np.prod(grid)), 3, generator=torch.Generator().manual_seed(5 + b))
        expected = sample(sampler, NetworkDenoiser(DIFFUSION, network), noise, sampling_times(DIFFUSION, 3))
        torch.testing.assert_close(drawn[b].reshape(-1, 3), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_does_not_depend_on_the_batch_nor_on_the_limit(temperature: float) -> None:
    model, requests = build(), prefixes()
    together = generate_text(
        model, requests, TextSampling(max_new_tokens=12, temperature=temperature, top_p=0.95), seeds=[3, 4, 5, 6]
    )
    for b, request in enumerate(requests):
        alone = generate_text(
            model, [request], TextSampling(max_new_tokens=12, temperature=temperature, top_p=0.95), seeds=[3 + b]
        )
        assert alone[0] == together[b]
    longer = generate_text(
        model, requests, TextSampling(max_new_tokens=80, temperature=temperature, top_p=0.95), seeds=3
    )
    assert [ids[:12] for ids in longer] == together
    assert not set(sum(longer, [])) & {S.pad, S.bos, S.eos, S.boi, S.bov, S.eoi}
    if temperature:
        assert together != generate_text(
            model, requests, TextSampling(max_new_tokens=12, temperature=temperature, top_p=0.95), seeds=30
        )


def test_pictures_do_not_depend_on_the_batch() -> None:
    model, requests = build(), prefixes()
    arguments = {"diffusion": DIFFUSION, "num_steps": 4, "guidance_scale": 3.0}
    together = generate_visual(model, requests, GRID, visual(**arguments), seeds=[1, 2, 3, 4])
    for b in (0, 3):
        alone = generate_visual(model, [requests[b]], GRID, visual(**arguments), seeds=[1 + b])
        torch.testing.assert_close(alone[0], together[b], atol=1e-5, rtol=1e-4)
    other = generate_visual(model, requests, GRID, visual(**arguments), seeds=[1, 2, 3, 5])
    assert torch.equal(other[:3], together[:3]) and not torch.allclose(other[3], together[3])


def test_greedy_text_is_argmax_of_recomputation_and_stops() -> None:
    model, document = build(), prefixes()[0]
    made = generate_text(model, [document], TextSampling(max_new_tokens=10), stop_ids=[])[0]
    assert len(made) == 10
    forbidden = [S.pad, S.bos, S.eos, S.boi, S.bov, S.eoi]
    for token in made:
        with torch.no_grad():
            logits = full_logits(model, document)
        logits[forbidden] = -torch.inf
        assert int(logits.argmax()) == token
        document = [*document, Segment("text", ids=np.array([token]), loss=False)]
    stop = made[4]
    assert (
        generate_text(model, [prefixes()[0]], TextSampling(max_new_tokens=10), stop_ids=[stop])[0]
        == made[: made.index(stop)]
    )


def interleaving(model: UnifiedModel) -> UnifiedModel:
    """Flatten the vocabulary's distribution, so that pictures are opened now and then."""
    with torch.no_grad():
        model.norm.weight.mul_(0.6)
    return model


@pytest.mark.parametrize("of_images", [None, 1.2])
def test_interleaved_equals_its_parts_and_does_not_depend_on_the_batch(of_images: float | None) -> None:
    model, requests = interleaving(build()), prefixes()
    how = visual(diffusion=DIFFUSION, num_steps=3, guidance_scale=1.5, image_guidance_scale=of_images)
    text, drawing = TextSampling(max_new_tokens=40, temperature=3.0), Drawing(how, GRID, (2, 2, 2), max_visuals=2)
    together = generate_interleaved(model, requests, text, drawing, seeds=[3, 4, 5, 6])
    kinds = [[s.grid if s.kind == "visual" else "text" for s in made] for made in together]
    assert sum(kind == GRID for row in kinds for kind in row) > 0
    assert sum(kind == (2, 2, 2) for row in kinds for kind in row) > 0
    assert any("text" in row[row.index(GRID) :] for row in kinds if GRID in row)
    for b, request in enumerate(requests):
        alone = generate_interleaved(model, [request], text, drawing, seeds=[3 + b])[0]
        assert len(alone) == len(together[b])
        for one, two in zip(alone, together[b]):
            if one.kind == "text":
                assert one.ids.tolist() == two.ids.tolist()
            else:
                np.testing.assert_allclose(one.latents, two.latents, atol=1e-4)
        assert sum(s.kind == "visual" for s in together[b]) <= 2
    # A picture that the model opened is the one that would be drawn on request behind the same prefix.
    opened = [b for b, row in enumerate(kinds) if any(k != "text" for k in row)]
    firsts = [(b, next(i for i, k in enumerate(kinds[b]) if k != "text")) for b in opened]
    assert any(s.kind == "visual" for b, _ in firsts for s in requests[b])
    for b, at in firsts:
        asked = generate_visual(
            model,
            [[*requests[b], *together[b][:at]]],
            kinds[b][at],
            visual(diffusion=DIFFUSION, num_steps=3, guidance_scale=1.5, image_guidance_scale=of_images),
            seeds=[3 + b],
        )
        np.testing.assert_allclose(asked.reshape(-1, 3), together[b][at].latents, atol=1e-4)


def test_passes_that_have_no_weight_are_not_computed() -> None:
    def dropped(text: float, image: float | None) -> list[set[str]]:
        how = visual(diffusion=DIFFUSION, guidance_scale=text, image_guidance_scale=image)
        return [set(sources) for _, sources in how.variants]

    every = {"text", "image"}
    assert dropped(1, None) == dropped(1, 1) == [set()]
    assert dropped(3, None) == dropped(3, 3) == [set(), every]
    assert dropped(3, 1) == [set(), {"text"}] and dropped(1, 3) == dropped(3, 2) == [set(), {"text"}, every]


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 2, 3), (2, 2, 1)])
@pytest.mark.parametrize("objective", backbone_cases.ALL)
def test_what_follows_a_drawn_picture_sees_the_clean_one(objective: str, grid: tuple[int, int, int]) -> None:
    """After draw_and_go_on the state is that of a prefill with what was drawn, in all variants of the guided
    requests: where it stands, the hidden state at <eoi>, and every token behind it."""
    model = backbone_cases.build(backbone_cases.config_of("none")).eval()
    earlier = backbone_cases.values("latent_diffusion", (1, 3, 2), 7)
    requests = [prefix_for_text([7, 8, 9], S), prefix_for_text([20], S, earlier, (1, 3, 2)), prefix_for_text([], S)]
    how = visual(diffusion=DIFFUSION, num_steps=2, guidance_scale=1.5, image_guidance_scale=1.2, objective=objective)
    rows = guided_prefixes(requests, how, S)
    assert len(rows) == 9
    state, _ = GenerationState.prefill(model, rows)
    drawn, hidden = draw_and_go_on(state, [(3, 0), (4, 1), (5, 0)], grid, how)
    shown = [visual_segment(objective, drawn[b % 3].numpy(), grid, loss=False) for b in range(9)]
    expected, at_end = GenerationState.prefill(model, [[*row, picture] for row, picture in zip(rows, shown)])
    assert (state.lengths, state.last) == (expected.lengths, expected.last)
    torch.testing.assert_close(hidden, at_end, atol=1e-4, rtol=1e-4)
    for token in (9, 12):
        after, wanted = (s.feed_text([token + b for b in range(9)]) for s in (state, expected))
        torch.testing.assert_close(after, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_picture_of_an_answer_has_noise_of_its_own() -> None:
    """By the request's seed and the picture's number in it: the first from the seed alone."""
    model, how = build(), visual(diffusion=DIFFUSION, num_steps=2)
    draws = [(5, 0), (5, 1), (5, 2), (6, 0), (6, 1)]
    state, _ = GenerationState.prefill(model, [prefixes()[0]] * len(draws))
    noise = open_diffusion(state, draws, GRID, how)[1]
    assert torch.equal(noise[0], torch.randn(6, 3, generator=torch.Generator().manual_seed(5)))
    for a in range(len(draws)):
        assert all((noise[a] - noise[b]).abs().max() > 0.1 for b in range(a))
    alone, _ = GenerationState.prefill(model, [prefixes()[0]])
    assert torch.equal(open_diffusion(alone, [(6, 1)], GRID, how)[1][0], noise[4])


@torch.no_grad()
def test_two_pictures_of_an_answer_are_those_drawn_in_turn() -> None:
    """Each as the number that it has in its answer, and the second behind the first."""
    model, how = interleaving(build()), visual(diffusion=DIFFUSION, num_steps=2)
    for seed in range(60):
        text = TextSampling(max_new_tokens=12, temperature=3.0)
        made = generate_interleaved(model, [prefixes()[0]], text, Drawing(how, GRID), seeds=[seed])[0]
        if sum(part.kind == "visual" for part in made) > 1:
            break
    at = [i for i, part in enumerate(made) if part.kind == "visual"]
    for number, place in enumerate(at):
        state, _ = GenerationState.prefill(model, [[*prefixes()[0], *made[:place]]])
        drawn = draw_visual(state, [(seed, number)], GRID, how)
        np.testing.assert_allclose(drawn[0], made[place].latents, atol=1e-4)
    assert len(at) > 1


def test_sampling_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(20001, 4)
    uniforms = torch.linspace(0, 1 - 1e-6, 20001)

    def shares(**how: float) -> list[float]:
        drawn = sample_tokens(logits, uniforms, TextSampling(**how))
        return [float((drawn == i).double().mean()) for i in range(4)]

    def close(*weights: float) -> object:
        return pytest.approx([w / sum(weights) for w in weights], abs=1e-3)

    assert shares(temperature=1.0) == close(0.5, 0.3, 0.15, 0.05)
    assert shares(temperature=1.0, top_k=2) == close(0.5, 0.3, 0, 0)
    assert shares(temperature=1.0, top_p=0.75) == close(0.5, 0.3, 0, 0)
    assert shares(temperature=1.0, top_p=0.85) == close(0.5, 0.3, 0.15, 0)
    assert shares(temperature=0.0) == [1, 0, 0, 0]
    assert shares(temperature=0.5) == close(0.25, 0.09, 0.0225, 0.0025)


@pytest.mark.parametrize(
    "how", [{}, {"top_p": 0.9}, {"top_p": 1.0}, {"top_k": 40}, {"top_k": 300, "top_p": 0.7}], ids=str
)
@pytest.mark.parametrize("spread", [0.1, 4.0])
@pytest.mark.parametrize("steps", [None, 0.5, 100.0])
def test_the_likeliest_of_many_tokens_give_what_all_give(
    how: dict[str, float], spread: float, steps: float | None
) -> None:
    """Flat and peaked distributions, logits that are many times equal, tokens that are forbidden, and no numbers."""
    torch.manual_seed(0)
    logits, uniforms = spread * torch.randn(64, 5000), torch.rand(64)
    if steps:
        logits = (logits / steps).round() * steps
    logits[:, 7] = -torch.inf
    logits[0, 3], logits[1] = torch.nan, -torch.inf
    uniforms[2], uniforms[3] = 0, 1 - 2**-24
    text = TextSampling(temperature=0.8, **how)  # type: ignore[arg-type]
    expected = choice._by_all(logits.double() / 0.8, uniforms.double(), text)
    assert torch.equal(sample_tokens(logits, uniforms, text), expected)
    if spread == 4.0 and not steps:
        _, sure = choice._by_the_likeliest(logits.double() / 0.8, uniforms.double(), text, 600)
        assert sure[4:].float().mean() > 0.95


@pytest.mark.parametrize("top_p", [None, 0.5, 0.7, 0.95])
def test_what_is_sure_of_a_few_likeliest_is_right(top_p: float | None) -> None:
    torch.manual_seed(0)
    uniforms = torch.linspace(0, 1 - 2**-24, 2001, dtype=torch.float64)
    logits = torch.randn(1, 12, dtype=torch.float64).expand(len(uniforms), -1)
    text = TextSampling(temperature=1.0, top_p=top_p)
    expected = choice._by_all(logits, uniforms, text)
    for head in range(1, 13):
        tokens, sure = choice._by_the_likeliest(logits, uniforms, text, head)
        assert torch.equal(tokens[sure], expected[sure])
        assert head < 3 or sure.any()


@given(st.integers(0, 10**6), st.floats(0.1, 3), st.none() | st.integers(1, 14), st.none() | st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_choices_are_those_of_a_naive_reading(seed: int, temperature: float, k: int | None, p: float | None) -> None:
    """Of one row of 12 tokens, two of them forbidden: weights by temperature, cut to k and to p, in plain Python."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(12, generator=generator)
    logits[[3, 7]] = -torch.inf
    weights = {i: math.exp(x / temperature) for i, x in enumerate(logits.tolist()) if x > -math.inf}
    ranked = sorted(weights, key=lambda i: -weights[i])[:k]
    total, kept = sum(weights[i] for i in ranked), []
    for i in ranked:
        if p is not None and sum(weights[j] for j in kept) >= p * total:
            break
        kept.append(i)
    bounds = np.cumsum([weights[i] for i in kept]) / sum(weights[i] for i in kept)
    uniforms = torch.rand(50, generator=generator)
    drawn = sample_tokens(
        logits.expand(50, 12), uniforms, TextSampling(temperature=temperature, top_k=k, top_p=p)
    ).tolist()
    for u, token in zip(uniforms.tolist(), drawn):
        if np.abs(bounds - u).min() > 1e-6:  # else rounding decides
            assert token == kept[int(np.searchsorted(bounds, u, side="right"))]


def test_requests_that_cannot_be_met_are_named() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"prefixes\[1\]"):
        generate_text(model, [prefixes()[0], []])
    with pytest.raises(ValueError, match="seeds: expected 1"):
        generate_text(model, prefixes()[:1], seeds=[1, 2])
    with pytest.raises(ValueError, match="seeds: expected 4, one a request, got 3"):
        generate_visual(model, prefixes(), GRID, visual(diffusion=DIFFUSION), seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="sampler"):
        generate_visual(model, prefixes(), GRID, visual(diffusion=DIFFUSION, sampler="nope"))
    with pytest.raises(ValueError, match="num_steps"):
        generate_visual(model, prefixes(), GRID, visual(diffusion=DIFFUSION, num_steps=0))
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            generate_visual(model, prefixes(), GRID, visual(diffusion=DIFFUSION, **wrong))
        with pytest.raises(ValueError, match=next(iter(wrong))):
            generate_text(model, prefixes(), TextSampling(**wrong))
    with pytest.raises(ValueError, match="grid_thw"):
        generate_visual(model, prefixes(), (2, 2), visual(diffusion=DIFFUSION))
    assert generate_text(model, []) == [] and len(generate_visual(model, [], GRID, visual(diffusion=DIFFUSION))) == 0


@pytest.mark.parametrize("predict", ["v", "x"])
def test_four_memorised_pictures_come_back_by_caption_and_captions_by_picture(predict: str) -> None:
    torch.manual_seed(0)
    diffusion = DiffusionConfig(predict=predict)
    config = UnifiedConfig(vocab_size=20, latent_dim=4, width=64, layers=2, heads=4)
    model = UnifiedModel(config)
    objective = UnifiedObjective(model, diffusion)
    grid = (1, 2, 2)
    pictures = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    captions = [[10 + i, 15] for i in range(4)]
    rows = [[text_to_visual(c, p, grid, S), visual_to_text(p, grid, c, S)] for c, p in zip(captions, pictures)]
    batch = collate(rows * 3, 20, config)
    steps = 300
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        objective(batch, step)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    drawn = (
        generate_visual(
            model.eval(),
            [prefix_for_visual(c, S) for c in captions],
            grid,
            visual(diffusion=diffusion, num_steps=20, guidance_scale=1.0),
        )
        .reshape(4, 16)
        .numpy()
    )
    distance = np.square(drawn[:, None] - pictures.reshape(1, 4, 16)).mean(-1)
    assert distance.argmin(1).tolist() == [0, 1, 2, 3]
    assert np.diag(distance).max() < 0.1
    written = generate_text(model, [prefix_for_text([], S, p, grid) for p in pictures], TextSampling(max_new_tokens=4))
    assert written == captions
