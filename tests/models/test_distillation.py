"""Distillation of a diffusion: its targets against the sampler's own path through the cache, which draws by other code,
and a student that comes nearer to its teacher."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sampling_cases import visual

from omniloom.models.unified.batch import Batch, Document, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import NetworkDenoiser, denoised, sampling_times
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.models.unified.diffusion.samplers import ddim, sample
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.draw import open_diffusion
from omniloom.models.unified.generation.generate import generate_visual, guided_prefixes
from omniloom.models.unified.layouts import plain_text, prefix_for_visual, text_to_visual, visual_to_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.distillation import DistilledObjective
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.models.unified.objectives.objective import UnifiedObjective

CONFIG = UnifiedConfig(vocab_size=40, latent_dim=3, width=32, layers=2, heads=4)
TOLD = replace(CONFIG, step_sizes=True)
S = CONFIG.specials
SCALE = 1.7
PATHS = [
    DiffusionConfig("flow"),
    DiffusionConfig("vp", predict="noise"),
    DiffusionConfig("edm", sigma_max=10.0),
    DiffusionConfig("flow", predict="x", shift=2.0),
]


def build(seed: int = 0, config: UnifiedConfig = CONFIG) -> UnifiedModel:
    torch.manual_seed(seed)
    model = UnifiedModel(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.2)
    return model


def picture(grid: tuple[int, int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(int(np.prod(grid)), 3)).astype(np.float32)


GRIDS = {(9, 8, 7): (1, 2, 2), (21,): (2, 1, 2), (): (1, 3, 1)}  # by caption; the last has no condition


def rows() -> list[list[Document]]:
    """Drawn pictures of several shapes, beside a text and a picture that is described."""
    drawn = [
        text_to_visual(caption, picture(grid, number), grid, S) for number, (caption, grid) in enumerate(GRIDS.items())
    ]
    described = visual_to_text(picture((1, 2, 1), 9), (1, 2, 1), [20, 21], S)
    return [[plain_text([11, 12], S), drawn[0], described], [drawn[1], drawn[2]]]


def distilled(method: str, path: DiffusionConfig, steps: int = 2, teacher_steps: int = 6, scale: float = SCALE):
    how = Distillation(method, steps, teacher_steps, scale)
    student = build(1, TOLD if how.tells_steps else CONFIG)
    return DistilledObjective(student, path, teacher=build(0), distillation=how).train()


def nodes_of(objective: DistilledObjective) -> torch.Tensor:
    (nodes,) = objective.losses["latent_diffusion"].ways
    return nodes


def batch_of(objective: DistilledObjective) -> Batch:
    batch = collate(rows(), 32, CONFIG)
    batch.unconditioned = objective.beside(rows(), "cpu")
    return batch


def denoiser(model: UnifiedModel, caption: tuple, grid: tuple, path: DiffusionConfig, scale: float) -> NetworkDenoiser:
    """As sampling sees it, behind the caption alone."""
    how = visual(diffusion=path, guidance_scale=scale)
    with torch.no_grad():
        state, _ = GenerationState.prefill(model, guided_prefixes([prefix_for_visual(caption, S)], how, S))
        return open_diffusion(state, [(0, 0)], grid, how)[0]


def sizes() -> list[int]:
    return [int(np.prod(grid)) for grid in GRIDS.values()]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.formulation} {path.predict}")
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_reflow_learns_from_what_the_teacher_draws(path, scale) -> None:
    objective = distilled("reflow", path, scale=scale)
    batch = batch_of(objective)
    shown = objective.show(batch, [3, 4])["latent_diffusion"]
    plain = UnifiedObjective(build(1), path).show(batch, [3, 4])["latent_diffusion"]
    torch.testing.assert_close(shown.extras["noise"], plain.extras["noise"])  # that of the row's seed
    pieces = (shown.extras[name].split(sizes()) for name in ("noise", "clean", "time"))
    grid_times = sampling_times(path, 2)[:-1]
    for (caption, grid), noise, clean, time in zip(GRIDS.items(), *pieces, strict=True):
        teacher = denoiser(build(0).eval(), caption, grid, path, scale)
        with torch.no_grad():
            expected = sample("ddim", teacher, noise[None], sampling_times(path, 6))[0]
        torch.testing.assert_close(clean, expected, rtol=1e-3, atol=1e-4)
        assert len(time.unique()) == 1 and any(float(time[0]) == pytest.approx(t) for t in grid_times)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.formulation} {path.predict}")
def test_consistency_looks_from_the_teachers_next_step_to_the_end(path) -> None:
    objective = distilled("consistency", path)
    batch, ends, outer = batch_of(objective), set(), sampling_times(path, 2)
    for seed in range(4):
        shown = objective.show(batch, [seed, seed + 50])["latent_diffusion"]
        plain = UnifiedObjective(build(1), path).show(batch, [seed, seed + 50])["latent_diffusion"]
        parts = (shown.extras[name].split(sizes()) for name in ("noise", "clean", "time"))
        drawn = (plain.extras[name].split(sizes()) for name in ("noise", "clean"))
        for (caption, grid), noise, clean, time, e, x in zip(GRIDS.items(), *parts, *drawn, strict=True):
            now = float(time[0])
            nodes = nodes_of(objective)
            now, after, end, _ = nodes[(nodes[:, 0] - now).abs().argmin()].tolist()
            assert end in [pytest.approx(t) for t in outer[1:]] and end <= after < now
            ends.add(after == end)
            teacher = denoiser(build(0).eval(), caption, grid, path, SCALE)
            student = denoiser(build(1).eval(), caption, grid, path, 1.0)
            a, b = teacher.scales(now)
            x_t = (a * x + b * e)[None]
            with torch.no_grad():
                ahead = ddim(teacher, x_t, [now, after])
                wanted = ahead if after == end else ddim(student, ahead, [after, end])
            (a_end, b_end) = teacher.scales(end)
            torch.testing.assert_close((a * clean + b * noise)[None], x_t, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close((a_end * clean + b_end * noise)[None], wanted, rtol=2e-3, atol=1e-3)
    assert ends == {True, False}


HALVED = [DiffusionConfig("flow"), DiffusionConfig("vp"), DiffusionConfig("flow", predict="x", shift=2.0)]


def said(
    model: UnifiedModel, caption: tuple, grid: tuple, path: DiffusionConfig, x: torch.Tensor, now: float, d: float
):
    """What the network says behind the caption of x (1, N, C) at a time, told a size."""
    with torch.no_grad():
        state, _ = GenerationState.prefill(model, [prefix_for_visual(caption, S)])
        state.feed_text([S.boi if grid[0] == 1 else S.bov])
        hidden = state.feed_visual("latent_diffusion", x, grid, now, keep=False, step=d)
        return denoised(path, model.visual_head("latents", hidden, state.given), x, now)


@pytest.mark.parametrize("path", HALVED, ids=lambda path: f"{path.formulation} {path.predict}")
def test_a_shortcut_goes_where_two_of_half_its_size_do(path) -> None:
    """1, 2 and 4 steps, of which the least are two of the teacher's eighths."""
    objective, sizes_seen = distilled("shortcut", path, steps=4, teacher_steps=8), Counter()
    assert objective.how.counts == [1, 2, 4]
    batch, eighths = batch_of(objective), sampling_times(path, 8)
    teacher, student = build(0).eval(), build(1, TOLD).eval()
    for seed in range(12):
        shown = objective.show(batch, [seed, seed + 50])["latent_diffusion"]
        plain = UnifiedObjective(build(1), path).show(batch, [seed, seed + 50])["latent_diffusion"]
        parts = (shown.extras[name].split(sizes()) for name in ("noise", "clean", "time"))
        drawn = (plain.extras[name].split(sizes()) for name in ("noise", "clean"))
        rows_of = batch.parts["latents"].segment[batch.tasks["latent_diffusion"].rows]
        rows_of = rows_of[batch.tasks["latent_diffusion"].targets].split(sizes())
        for (caption, grid), noise, clean, time, e, x, number in zip(
            GRIDS.items(), *parts, *drawn, rows_of, strict=True
        ):
            now, size = float(time[0]), float(shown.steps.flatten()[number[0]])
            if size == 0:
                assert torch.equal(clean, x) and torch.equal(noise, e)
                sizes_seen[0] += 1
                continue
            at = int(np.abs(np.array(eighths) - now).argmin())
            count = next(c for c in (2, 4, 8) if eighths[min(at + c, 8)] == pytest.approx(now - size, abs=1e-6))
            sizes_seen[count] += 1
            middle, end = eighths[at + count // 2], eighths[at + count]
            guide = denoiser(teacher, caption, grid, path, SCALE)
            a, b = guide.scales(now)
            x_t = arrived = (a * x + b * e)[None]
            for start, stop in ((now, middle), (middle, end)):
                if count == 2:
                    data = guide.denoised(arrived, start).detach()
                else:
                    data = said(student, caption, grid, path, arrived, start, start - stop)
                (a, b), (a_stop, b_stop) = guide.scales(start), guide.scales(stop)
                arrived = a_stop * data + b_stop * (arrived - a * data) / b
            (a, b), (a_end, b_end) = guide.scales(now), guide.scales(end)
            torch.testing.assert_close((a * clean + b * noise)[None], x_t, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close((a_end * clean + b_end * noise)[None], arrived, rtol=2e-3, atol=1e-3)
    assert set(sizes_seen) == {0, 2, 4, 8}


def test_a_shortcut_of_flow_matching_is_the_mean_of_its_halves() -> None:
    """The paper's equation 5, of velocities as the student says them: s(x, t, 2d) = (s(x, t, d) + s(x', t', d)) / 2."""
    path, caption, grid = DiffusionConfig("flow"), (9, 8, 7), (1, 2, 2)
    objective = distilled("shortcut", path, steps=4, teacher_steps=8, scale=1.0)
    student, documents = build(1, TOLD).eval(), [text_to_visual(caption, picture(grid, 1), grid, S)]
    batch, found = collate([documents], 16, CONFIG), 0
    for seed in range(40):
        shown = objective.show(batch, [seed])["latent_diffusion"]
        now, size = float(shown.extras["time"][0]), float(shown.steps.max())
        if size < 0.5:
            continue
        d = size / 2
        x = ((1 - now) * torch.from_numpy(picture(grid, 1)) + now * shown_noise(batch, path, seed))[None]
        first = (x - said(student, caption, grid, path, x, now, d)) / now
        there = x - d * first
        second = (there - said(student, caption, grid, path, there, now - d, d)) / (now - d)
        target = shown.extras["noise"] - shown.extras["clean"]
        torch.testing.assert_close(target[None], (first + second) / 2, rtol=1e-3, atol=1e-4)
        found += 1
    assert found > 8


def shown_noise(batch: Batch, path: DiffusionConfig, seed: int) -> torch.Tensor:
    return UnifiedObjective(build(1), path).show(batch, [seed])["latent_diffusion"].extras["noise"]


def test_each_size_of_a_shortcut_is_as_likely_and_any_of_its_ways() -> None:
    objective = distilled("shortcut", DiffusionConfig("flow"), steps=1, teacher_steps=5)
    assert objective.how.counts == [1, 2, 4]
    batch = batch_of(objective)
    ways = [objective.losses["latent_diffusion"].draw_ahead(batch, [s, s + 999])[1][0, 0] for s in range(600)]
    seen = Counter((float(way[0]), float(way[0] - way[2])) for way in ways if way[0] > way[2])
    assert {size for _, size in seen} == {1.0, 0.5, 0.25} and len(seen) == 7
    for size in (1.0, 0.5, 0.25):
        assert abs(sum(n for (_, s), n in seen.items() if s == size) - 150) < 45
    anytime = [float(way[0]) for way in ways if way[0] == way[2]]
    assert abs(len(anytime) - 150) < 45 and len(set(anytime)) > 100
    assert abs(np.mean(anytime) - 0.5) < 0.1 and min(anytime) < 0.1 and max(anytime) > 0.9
    finest = {round(float(way[0] - way[2]), 4) for way in ways if way[3] == 1 and way[0] > way[2]}
    assert finest == {0.25}


def test_a_shortcut_is_told_the_way_to_the_next_time_of_its_sampler() -> None:
    """By 1, 2 and 4 steps, as it was trained; and at size 0 it is the model that it would be without."""
    path, caption, grid = DiffusionConfig("flow"), (9, 8, 7), (1, 2, 2)
    model, noise = build(1, TOLD).eval(), torch.randn(1, 4, 3)
    for steps in (1, 2, 4):
        how = visual(diffusion=path, num_steps=steps, guidance_scale=1.0)
        with torch.no_grad():
            state, _ = GenerationState.prefill(model, [prefix_for_visual(caption, S)])
            network = open_diffusion(state, [(0, 0)], grid, how)[0]
            for now in sampling_times(path, steps)[:-1]:
                expected = said(model, caption, grid, path, noise, now, 1 / steps)
                torch.testing.assert_close(network.denoised(noise, now), expected)
                other = said(model, caption, grid, path, noise, now, 0.9 / steps)
                assert not torch.allclose(expected, other, atol=1e-3)
    plain = build(1)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("step.")})
    at_zero = said(model, caption, grid, path, noise, 0.7, 0.0)
    torch.testing.assert_close(at_zero, said(plain.eval(), caption, grid, path, noise, 0.7, 0.0))


@pytest.mark.parametrize("method", ["reflow", "consistency", "shortcut"])
def test_the_network_sees_the_point_that_its_target_is_of(method) -> None:
    for path in HALVED if method == "shortcut" else PATHS:
        objective = distilled(method, path)
        batch = batch_of(objective)
        shown = objective.show(batch, [1, 2])["latent_diffusion"]
        clean, noise, time = (shown.extras[name] for name in ("clean", "noise", "time"))
        row = formulation(path)
        a, b = row.scales(time)
        seen = shown.values[batch.tasks["latent_diffusion"].targets] / row.input_scale(time)
        torch.testing.assert_close(seen, a * clean + b * noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["reflow", "consistency", "shortcut"])
def test_a_target_that_is_never_noised_in_full_is_not_here_either(method) -> None:
    objective = distilled(method, DiffusionConfig("flow"))
    documents = [
        [[replace(part, max_time=0.25) if part.kind == "visual" else part for part in document] for document in row]
        for row in rows()
    ]
    batch = collate(documents, 32, objective.model.config)
    batch.unconditioned = objective.beside(documents, "cpu")
    times = torch.cat([objective.show(batch, [seed, 2])["latent_diffusion"].extras["time"] for seed in range(20)])
    assert 0.2 < times.max() <= 0.25


def test_only_what_a_shortcut_draws_is_told_a_step() -> None:
    objective = distilled("shortcut", DiffusionConfig("flow"))
    batch, told = batch_of(objective), []
    is_target = batch.tasks["latent_diffusion"].caps > 0
    for seed in range(8):
        steps = objective.show(batch, [seed, 2])["latent_diffusion"].steps.flatten()
        assert not steps[~is_target].any(), "a picture that is described, and places of the row without one"
        told.append(steps[is_target])
    assert torch.stack(told).max() > 0.4


def test_all_times_of_the_students_sampler_are_trained_alike() -> None:
    for method, count in (("reflow", 4), ("consistency", 8)):
        objective = distilled(method, DiffusionConfig("flow"), steps=4, teacher_steps=7)
        nodes = nodes_of(objective)[:, 0].tolist()
        assert len(nodes) == count and nodes == sorted(nodes, reverse=True)
        assert nodes[:: count // 4] == pytest.approx(sampling_times(DiffusionConfig("flow"), 4)[:-1])
        for (now, after, end, _), (following, *_) in pairwise(nodes_of(objective).tolist()):
            assert after == pytest.approx(following) and end <= after < now
        batch = batch_of(objective)
        found = [objective.losses["latent_diffusion"].draw_ahead(batch, [s, s + 999])[1][0, 0, 0] for s in range(200)]
        counts = [sum(abs(float(t) - node) < 1e-6 for t in found) for node in nodes]
        assert sum(counts) == 200 and min(counts) > 200 / count / 3


def test_the_teacher_is_no_part_of_what_is_trained() -> None:
    objective = distilled("consistency", DiffusionConfig("flow"))
    names = {name for name, _ in objective.named_parameters()}
    assert names == {name for name, _ in UnifiedObjective(build(), DiffusionConfig("flow")).named_parameters()}
    (teacher,) = objective._teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss, logs = objective(batch_of(objective), [1, 2])
    loss.backward()
    assert logs["text_loss"] > 0 and logs["visual_loss"] > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert objective.model.visual_out.weight.grad.abs().sum() > 0 and objective.model.embed.weight.grad.abs().sum() > 0


def test_text_is_trained_as_without_distillation() -> None:
    objective = distilled("reflow", DiffusionConfig("flow"))
    plain = UnifiedObjective(build(1), DiffusionConfig("flow")).train()
    batch = batch_of(objective)
    texts = collate([[plain_text([11, 12, 13], S)]], 32, CONFIG)
    texts.unconditioned = objective.beside([[plain_text([11, 12, 13], S)]], "cpu")
    torch.testing.assert_close(objective(texts, [1])[0], plain(texts, [1])[0])
    # Looked at in evaluation mode it is what any training's validation is.
    ours, theirs = objective.eval()(batch, [1, 2]), plain.eval()(batch, [1, 2])
    for name, value in theirs[1].items():
        assert torch.equal(ours[1][name], value)


def test_guidance_needs_the_targets_without_their_condition() -> None:
    objective = distilled("reflow", DiffusionConfig("flow"))
    beside = objective.beside(rows(), "cpu")
    assert beside.targets["latent_diffusion"] == sum(sizes()) and len(beside.ids) == 2
    assert int((beside.document_index.max(1).values + 1).sum()) == len(GRIDS)
    assert distilled("reflow", DiffusionConfig("flow"), scale=1.0).beside(rows(), "cpu") is None
    with pytest.raises(ValueError, match="unconditioned: is missing"):
        objective.show(collate(rows(), 32, CONFIG), [1, 2])


def test_what_cannot_be_distilled_is_told() -> None:
    with pytest.raises(ValueError, match="shortcut needs one of step_sizes: true"):
        DistilledObjective(
            build(1), DiffusionConfig(), teacher=build(0), distillation=Distillation("shortcut", 2, 4, 2.0)
        )
    codes = UnifiedConfig(vocab_size=40, codebook_size=8, width=32, layers=2, heads=4)
    how = Distillation("reflow", 2, 4, 2.0)
    with pytest.raises(ValueError, match="next_code, the first objective, is no diffusion"):
        DistilledObjective(
            build(1, codes), DiffusionConfig(), objectives=("next_code",), teacher=build(0, codes), distillation=how
        )


@pytest.mark.parametrize("method", ["reflow", "consistency"])
def test_a_student_comes_near_to_its_teacher(method) -> None:
    """In two steps without guidance, of the noise and captions of a test, where the teacher takes six with it."""
    path, caption, grid = DiffusionConfig("flow"), (9, 8, 7), (1, 2, 2)
    teacher, student = build(0), build(0)
    objective = DistilledObjective(
        student, path, teacher=teacher, distillation=Distillation(method, 2, 6, SCALE)
    ).train()
    documents = [text_to_visual(caption, picture(grid, seed), grid, S) for seed in range(12)]
    batch = collate([documents], 12 * 11, CONFIG)
    batch.unconditioned = objective.beside([documents], "cpu")
    prefixes, seeds = [prefix_for_visual(caption, S)] * 16, range(1000, 1016)

    def drawn(model: UnifiedModel, steps: int, scale: float) -> torch.Tensor:
        how = visual(diffusion=path, num_steps=steps, guidance_scale=scale, sampler="ddim")
        return generate_visual(model, prefixes, grid, how, list(seeds))

    fine = drawn(teacher, 6, SCALE)
    before = (drawn(student, 2, 1.0) - fine).square().mean()
    optimizer = torch.optim.Adam(student.parameters(), 4e-3)
    for step in range(50):
        optimizer.zero_grad()
        objective(batch, [step])[0].backward()
        optimizer.step()
    after = (drawn(student, 2, 1.0) - fine).square().mean()
    assert after < 0.5 * before, (float(before), float(after), float(fine.var()))
