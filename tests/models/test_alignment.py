"""Alignment with frozen features: the loss by its definition, in a step of the whole model, features brought to a
segment's grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_cases import ALL, build, config_of, drawing
from hypothesis import given
from hypothesis import strategies as st

from omniloom.models.unified.batch import Batch, Segment, collate
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.layouts import plain_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.alignment import FeatureAlignment, features_on_grid, on_frames
from omniloom.models.unified.objectives.objective import UnifiedObjective, part_of

DIM = 5


def test_the_loss_is_one_minus_the_cosine_of_the_projected_state():
    torch.manual_seed(0)
    module, hidden, features = FeatureAlignment(12, 6, inner=20), torch.randn(5, 12), torch.randn(5, 6)
    loss = module(hidden, features)

    def silu(x):
        return x / (1 + np.exp(-x))

    with torch.no_grad():
        x = hidden.double().numpy()
        for number, layer in enumerate(module.mlp[::2]):
            x = (silu(x) if number else x) @ layer.weight.double().numpy().T + layer.bias.double().numpy()
        y = features.double().numpy()
        wanted = 1 - (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert loss.shape == (5,) and loss.dtype == torch.float32
    np.testing.assert_allclose(loss.detach(), wanted, atol=1e-5)
    published = FeatureAlignment(1152, 768)
    assert sum(p.numel() for p in published.parameters()) == 1153 * 2048 + 2049 * 2048 + 2049 * 768


def test_it_learns_what_a_hidden_state_tells_and_no_features_gradient_is_needed():
    torch.manual_seed(0)
    module, hidden = FeatureAlignment(8, 6, inner=24), torch.randn(64, 8)
    features = (hidden @ torch.randn(8, 6)).half()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    first = float(module(hidden, features).mean().detach())
    for _ in range(60):
        optimizer.zero_grad()
        module(hidden, features).mean().backward()
        optimizer.step()
    assert first > 0.7 and float(module(hidden, features).mean().detach()) < 0.1


def test_of_no_positions_every_parameter_still_has_a_gradient():
    module = FeatureAlignment(8, 6, inner=16)
    module(torch.zeros(0, 8), torch.zeros(0, 6)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    with pytest.raises(ValueError, match="features: expected those of 3 positions, got 2"):
        module(torch.zeros(3, 8), torch.zeros(2, 6))


@given(h=st.integers(1, 4), w=st.integers(1, 4), down=st.integers(1, 3), t=st.integers(1, 3))
def test_a_coarser_grid_has_the_mean_of_each_area(h, w, down, t):
    features = torch.randn(t, h * down, w * down, 5)
    found = features_on_grid(features.flatten(0, 2), (t, h * down, w * down), (t, h, w))
    wanted = features.view(t, h, down, w, down, 5).mean((2, 4)).flatten(0, 2)
    torch.testing.assert_close(found, wanted)


@given(h=st.integers(2, 5), w=st.integers(2, 5), up=st.integers(1, 3))
def test_a_finer_grid_is_linear_between_features(h, w, up):
    """A plane in row and column stays one, wherever a position lies between features."""
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    plane = torch.stack((rows, columns), -1).flatten(0, 1)
    found = features_on_grid(plane, (1, h, w), (1, h * up, w * up)).view(h * up, w * up, 2)
    rows = ((torch.arange(h * up) + 0.5) / up).clamp(0.5, h - 0.5)
    columns = ((torch.arange(w * up) + 0.5) / up).clamp(0.5, w - 0.5)
    torch.testing.assert_close(found[..., 0], rows[:, None].expand(-1, w * up))
    torch.testing.assert_close(found[..., 1], columns[None].expand(h * up, -1))


def test_an_axis_grows_while_the_other_shrinks():
    features = torch.arange(8.0).view(8, 1)  # 2 rows of 4
    found = features_on_grid(features, (1, 2, 4), (1, 4, 1)).view(4)
    torch.testing.assert_close(found, torch.tensor([1.5, 2.5, 4.5, 5.5]))


def test_half_precision_and_grids_that_do_not_divide():
    features = torch.ones(16 * 18, 3, dtype=torch.float16)
    for grid in ((1, 16, 18), (1, 5, 7), (1, 32, 9), (1, 40, 40)):
        found = features_on_grid(features, (1, 16, 18), grid)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.ones(grid[1] * grid[2], 3))


@given(groups=st.integers(1, 4), size=st.integers(1, 4))
def test_frames_gather_behind_the_first(groups, size):
    frames = torch.randn(1 + groups * size, 2)
    few = on_frames(frames, 1 + groups)
    assert torch.equal(few[0], frames[0])
    torch.testing.assert_close(few[1:], torch.stack([part.mean(0) for part in frames[1:].split(size)]))
    many = on_frames(few, 1 + groups * size)
    assert len(many) == len(frames) and torch.equal(many[0], few[0])
    assert all(torch.equal(many[1 + i], few[1 + i // size]) for i in range(groups * size))


@pytest.mark.parametrize(
    "features, feature_grid, grid, message",
    [
        (torch.zeros(5, 3), (1, 2, 3), (1, 2, 3), "features: grid .1, 2, 3. does not fit .5, 3."),
        (torch.zeros(6), (1, 2, 3), (1, 2, 3), "does not fit"),
        (torch.zeros(4, 3), (4, 1, 1), (3, 1, 1), "4 frames do not"),
        (torch.zeros(4, 3), (4, 1, 1), (1, 1, 1), "4 frames do not gather into 1"),
        (torch.zeros(1, 3), (1, 1, 1), (2, 1, 1), "1 frames do not gather into 2"),
    ],
)
def test_what_does_not_fit(features, feature_grid, grid, message):
    with pytest.raises(ValueError, match=message):
        features_on_grid(features, feature_grid, grid)


# ---- in a step of the whole model ----


def featured(objective: str, grid: tuple[int, int, int], seed: int, weight: float = 1.0) -> list[Segment]:
    document = drawing(objective, grid, seed)
    count = int(np.prod(grid))
    document[1].features = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float16)
    for segment in document:
        segment.weight = weight
    return document


def rows() -> list[list[list[Segment]]]:
    """Features of latents and of pixels; a picture without; codes, which have none whatever is given; a text."""
    plain = drawing("latent_diffusion", (1, 2, 2), 7)
    return [
        [featured("pixel_diffusion", (1, 3, 2), 1), plain, featured("latent_diffusion", (2, 1, 3), 2, 0.5)],
        [
            featured("next_code", (1, 2, 2), 3),
            featured("latent_diffusion", (1, 1, 4), 4),
            plain_text([11, 12], config_of("none").specials),
        ],
    ]


def laid_out(given: list | None = None, feature_dim: int | None = DIM) -> Batch:
    return collate(rows() if given is None else given, 40, config_of("none"), feature_dim=feature_dim)


def aligned(weight: float = 0.5, layer: int | None = None, option: str = "none", **fields) -> UnifiedObjective:
    config = config_of(option, **fields)
    return UnifiedObjective(
        build(config),
        DiffusionConfig(),
        objectives=ALL,
        alignment=FeatureAlignment(config.width, DIM, inner=16),
        alignment_weight=weight,
        alignment_layer=layer,
    )


def test_a_batch_holds_the_features_of_targets_of_diffusions():
    batch = laid_out()
    assert batch.targets["alignment"] == 6 + 6 + 4
    task = batch.tasks["latent_diffusion"]
    assert task.features.shape == (14, DIM) and task.features.dtype == torch.float32
    assert task.has_features.tolist() == [False] * 4 + [True] * 10 and not task.features[:4].any()
    wanted = np.concatenate(
        [featured("latent_diffusion", (2, 1, 3), 2)[1].features, featured("latent_diffusion", (1, 1, 4), 4)[1].features]
    )
    np.testing.assert_array_equal(task.features[4:], wanted.astype(np.float32))
    assert batch.tasks["next_code"].features is None and batch.tasks["masked_code"].features is None
    moved = batch.to("cpu").tasks["pixel_diffusion"]
    assert torch.equal(moved.features, batch.tasks["pixel_diffusion"].features) and moved.has_features.all()
    without = laid_out(feature_dim=None)
    assert "alignment" not in without.targets and without.tasks["latent_diffusion"].features is None
    context = featured("latent_diffusion", (1, 1, 4), 4)
    context[1].loss, context[1].max_time = False, 0.5
    assert laid_out([[context]]).targets["alignment"] == 0
    document = featured("latent_diffusion", (1, 1, 4), 4)
    with pytest.raises(ValueError, match=r"row 1, document 0: features of grid \(1, 1, 4\): expected \(4, 6\), got"):
        laid_out([[], [document]], 6)


def naive(objective: UnifiedObjective, batch: Batch, seed: int) -> float:
    """The mean over positions that have features, from hidden states that a hook sees and a segment at a time."""
    seen = {}
    hook = objective.model.blocks[objective.alignment_layer - 1].register_forward_hook(
        lambda module, inputs, output: seen.update(hidden=output)
    )
    objective(batch, seed)
    hook.remove()
    total, count = 0.0, 0
    for b, documents in enumerate(rows()):
        at = 0
        for document in documents:
            for segment in document:
                if segment.kind == "visual" and segment.features is not None and segment.objective != "next_code":
                    first = at + 1
                    hidden = seen["hidden"][b, first : first + len(segment.features)]
                    cosine = F.cosine_similarity(
                        objective.alignment.mlp(hidden), torch.from_numpy(segment.features).float(), dim=-1
                    )
                    total, count = total + segment.weight * (1 - cosine).sum(), count + len(segment.features)
                at += segment.length
    return float(total.detach() / count)


@pytest.mark.parametrize("layer, option", [(1, "none"), (2, "skips"), (3, "all")])
def test_the_loss_is_the_mean_over_positions_with_features(layer, option):
    objective, batch = aligned(0.7, layer, option), collate(rows(), 40, config_of(option), feature_dim=DIM)
    with torch.no_grad():
        loss, logs = objective(batch, 3)
    assert logs["alignment_loss"] == pytest.approx(naive(objective, batch, 3), rel=1e-5)
    objective.alignment_weight = 0.0
    assert float(loss - objective(batch, 3)[0].detach()) == pytest.approx(0.7 * float(logs["alignment_loss"]), rel=1e-4)


def test_the_default_layer_is_a_third_and_what_does_not_fit_is_named():
    assert aligned().alignment_layer == 1 and aligned(layers=7).alignment_layer == 2
    with pytest.raises(ValueError, match="alignment_layer: expected 1 to 3, got 4"):
        aligned(layer=4)
    config = config_of("none", latent_dim=None, pixel_dim=None)
    with pytest.raises(ValueError, match="alignment: expected None without a diffusion"):
        UnifiedObjective(build(config), DiffusionConfig(), objectives=("next_code",), alignment=FeatureAlignment(48, 5))
    with pytest.raises(ValueError, match="batch: expected features to align with"):
        aligned()(laid_out(feature_dim=None), 0)
    assert part_of("alignment.mlp.0.weight") == "visual"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_gradient_ends_at_the_layer(checkpointing):
    objective, batch = aligned(1.0, 2), laid_out()
    objective.model.checkpoint_activations = checkpointing
    nothing = dict.fromkeys(batch.targets, float("inf")) | {"alignment": 1.0}  # every other loss over infinity
    objective(batch, 0, nothing)[0].backward()
    reached = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(f"model.blocks.{i}.attention.qkv.weight" in reached for i in (0, 1))
    assert not [name for name in reached if name.startswith(("model.blocks.2", "model.head", "model.visual_out"))]
    assert {"alignment.mlp.0.weight", "alignment.mlp.4.bias", "model.visual_in.weight"} <= reached


def test_off_is_bit_for_bit_as_without_and_so_is_evaluation():
    plain = UnifiedObjective(build(config_of("none")), DiffusionConfig(), objectives=ALL)
    on, off = aligned(0.5), aligned(0.0)
    wanted, logs = plain(laid_out(feature_dim=None), 5)
    found = off(laid_out(), 5)
    assert torch.equal(found[0], wanted) and all(torch.equal(found[1][name], value) for name, value in logs.items())
    assert set(found[1]) - set(logs) == {"alignment_loss"}
    for batch in (laid_out(), laid_out(feature_dim=None)):
        loss, evaluated = on.eval()(batch, 5)
        assert torch.equal(loss, wanted) and evaluated.keys() == logs.keys()


def test_of_no_features_at_all_it_adds_nothing_and_takes_part():
    texts = [[plain_text([11, 12], config_of("none").specials)], [drawing("latent_diffusion", (1, 2, 2), 7)]]
    objective = aligned()
    for packed in (texts, texts[:1]):
        objective.zero_grad()
        loss, logs = objective(laid_out(packed), 0)
        loss.backward()
        assert logs["alignment_loss"] == 0 and all(p.grad is not None for p in objective.parameters())
        assert not any(p.grad.any() for p in objective.alignment.parameters())


def test_counts_of_all_passes_normalise_it():
    """Two passes over a row each, with the counts of both by two, are one pass over both."""
    objective, whole = aligned(), laid_out()
    whole_loss = objective(whole, [3, 4])[0]
    counts = {name: count / 2 for name, count in whole.targets.items()}
    parts = [objective(laid_out([row]), [3 + i], counts)[0] for i, row in enumerate(rows())]
    torch.testing.assert_close(sum(parts) / 2, whole_loss)


def test_hidden_states_learn_the_features():
    """Which are turned values of the picture, as far as noise leaves them to be seen."""
    torch.manual_seed(0)
    turn = np.random.default_rng(0).normal(size=(3, DIM))
    documents = [featured("latent_diffusion", (1, 3, 3), i) for i in range(4)]
    for document in documents:
        document[1].features = document[1].latents @ turn
    config = config_of("none", pixel_dim=None, codebook_size=None)
    objective = UnifiedObjective(
        UnifiedModel(config), DiffusionConfig(), alignment=FeatureAlignment(config.width, DIM, inner=32)
    )
    batch = collate([[document] for document in documents], 16, config, feature_dim=DIM)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=4e-3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss, logs = objective(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(float(logs["alignment_loss"]))
    assert losses[0] > 0.8 and np.mean(losses[-10:]) < 0.75 * losses[0]
