"""How pictures enter and leave the backbone: unets against torch's convolutions, the flow head written out, masked
patches, and checkpoints of language models to start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_cases import build, config_of, documents, objective_of
from hypothesis import given, settings
from hypothesis import strategies as st
from visual_batches import forward, picture, target_times

from omniloom.models.unified.batch import collate, visual_segment
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.flow_head import FlowHead
from omniloom.models.unified.llama.load import load_llama
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.corruption import draw_patch_masks
from omniloom.models.unified.patchify import UNet, grid_tables

GRIDS = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)), max_size=3)


# ---- unet ----


@settings(max_examples=40, deadline=None)
@given(grids=GRIDS)
def test_tables_name_the_neighbours(grids: list[tuple[int, int, int]]) -> None:
    tables = grid_tables(grids)
    places = [(s, k, i, j) for s, (t, h, w) in enumerate(grids) for k in range(t) for i in range(h) for j in range(w)]
    cells = list(dict.fromkeys((s, k, i // 2, j // 2) for s, k, i, j in places))
    order = sorted(cells)
    near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]

    def number(of: list, what: tuple) -> int:
        return of.index(what) if what in of else len(of)

    assert tables.around.tolist() == [number(places, (s, k, i + a, j + b)) for s, k, i, j in places for a, b in near]
    assert tables.coarse.tolist() == [number(order, (s, k, i + a, j + b)) for s, k, i, j in order for a, b in near]
    assert tables.parent.tolist() == [order.index((s, k, i // 2, j // 2)) for s, k, i, j in places]
    assert tables.children.tolist() == [
        number(places, (s, k, 2 * i + a, 2 * j + b)) for s, k, i, j in order for a in (0, 1) for b in (0, 1)
    ]


def convolved(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, side: int) -> torch.Tensor:
    """A gathered convolution's matrix in torch's own, on frames (t, C, h, w)."""
    kernel = weight.view(len(weight), side, side, -1).permute(0, 3, 1, 2)
    if side == 3:
        return F.conv2d(x, kernel, bias, padding=1)
    return F.conv2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), kernel, bias, stride=2)


@pytest.mark.parametrize("option", ["unet", "unet_deep"])
@pytest.mark.parametrize("grid", [(1, 4, 6), (1, 5, 3), (3, 1, 4), (2, 1, 1), (1, 7, 2)])
def test_a_unet_is_the_convolutions_of_torch(grid: tuple[int, int, int], option: str) -> None:
    config = config_of(option)
    torch.manual_seed(0)
    unet = UNet(3, config)
    t, h, w = grid
    other = (1, 3, 3)  # before and behind, whose values and times are none of its business
    M, x = t * h * w, torch.randn(t * h * w + 18, 3)
    segment = torch.tensor([0] * 9 + [1] * M + [2] * 9)
    time = torch.randn(3, config.width)
    found = unet(x, time, segment, grid_tables([other, grid, other]))[9 : 9 + M]

    def frames(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(t, h, w, -1).permute(0, 3, 1, 2)

    def norm(own: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(1, keepdim=True) + config.norm_eps).sqrt() * own.weight[:, None, None]

    def residual(own: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        scale, shift = own.time(time[1])[:, None, None].chunk(2)
        inner = convolved(own.first.weight, own.first.bias, F.silu(norm(own.first_norm, x)), 3)
        inner = F.silu(norm(own.second_norm, inner) * (1 + scale) + shift)
        return x + convolved(own.second.weight, own.second.bias, inner, 3)

    y = residual(unet.before, frames(unet.enter(x[9 : 9 + M])))
    cells = residual(unet.middle, convolved(unet.down.weight, unet.down.bias, y, 2))
    assert len(unet.deeper) == (2 if option == "unet_deep" else 0)
    for deeper in unet.deeper:
        cells = residual(deeper, cells)
    cells = F.interpolate(cells, scale_factor=2)[:, :, :h, :w]
    y = F.conv2d(torch.cat((cells, y), 1), unet.up.weight[:, :, None, None], unet.up.bias)
    y = norm(unet.norm, residual(unet.behind, y))
    torch.testing.assert_close(found, y.permute(0, 2, 3, 1).reshape(M, -1), atol=1e-5, rtol=1e-4)


def test_what_is_before_the_blocks_reaches_the_output_past_them() -> None:
    """With blocks that say nothing of the picture its prediction still depends on all of its values."""
    config = config_of("unet", codebook_size=None, pixel_dim=None)
    model = build(config).eval().requires_grad_(False)
    for name in ("visual_in.leave.weight", "visual_in.leave.bias"):
        model.get_parameter(name).zero_()
    batch = collate([[[visual_segment("latent_diffusion", picture((1, 3, 3)), (1, 3, 3))]]], 12, config)
    noisy = batch.parts["latents"].values.clone().requires_grad_()
    _, predictions = forward(model, batch, 0.5, {"latents": noisy})
    gradient = torch.autograd.grad(predictions["latents"][4].sum(), noisy)[0]
    assert (gradient.abs().sum(1) > 0).all()


def test_batches_carry_their_tables() -> None:
    config = config_of("unet")
    batch = collate([documents()], 112, config).to("cpu")
    assert batch.parts["codes"].tables is None and collate([[]], 4, config_of("none")).parts["latents"].tables is None
    for name in ("latents", "pixels"):
        tables, part = batch.parts[name].tables, batch.parts[name]
        wanted = grid_tables([(1, 3, 2), (2, 1, 3)])
        assert len(part.index) == 12 and torch.equal(tables.around, wanted.around)
        assert torch.equal(part.index, part.index.sort().values)


# ---- flow head ----


def test_a_flow_head_is_the_written_out_formula() -> None:
    config = config_of("flow")
    torch.manual_seed(0)
    head = FlowHead(config.width, 3, config)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden, values, time = torch.randn(5, config.width), torch.randn(5, 3), torch.randn(2, config.width)
    segment = torch.tensor([1, 0, 0, 1, 1])

    def normed(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean() + config.norm_eps).sqrt()

    for i, found in enumerate(head(hidden, values, time, segment)):
        condition = F.silu(head.condition(hidden[i]) + head.time(time[segment[i]]))
        x = head.values(values[i])
        for layer in head.layers:
            scale, shift, gate = layer.modulation(condition).chunk(3)
            x = x + gate * layer.out(F.silu(layer.inner(normed(x) * (1 + scale) + shift)))
        scale, shift = head.modulation(condition).chunk(2)
        torch.testing.assert_close(found, head.out(normed(x) * (1 + scale) + shift), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("option", ["flow", "unet", "all"])
def test_predictions_start_at_zero(option: str) -> None:
    torch.manual_seed(0)
    config = config_of(option)
    _, predictions = forward(UnifiedModel(config), collate([documents()], 112, config), 0.5)
    assert not predictions["latents"].any() and not predictions["pixels"].any() and predictions["codes"].any()


@pytest.mark.parametrize("option", ["flow", "unet", "all"])
def test_some_places_are_asked_as_all_are(option: str) -> None:
    config = config_of(option)
    model, batch = build(config).eval(), collate([documents()], 112, config)
    times = target_times(batch, 0.5)
    _, everywhere = forward(model, batch, times)
    values = {name: part.values for name, part in batch.parts.items()}
    chosen = {name: torch.tensor([7, 2, 8]) for name in values}
    _, some = model(
        batch,
        values,
        dict.fromkeys(values, times),
        {name: part.index[chosen[name]] for name, part in batch.parts.items()},
    )
    for name in values:
        torch.testing.assert_close(some[name], everywhere[name][chosen[name]], atol=1e-5, rtol=1e-4)


# ---- masked patches ----


def test_masks_have_the_stated_share_and_depend_on_the_row_alone() -> None:
    config = config_of("mask")
    grid = (1, 10, 10)
    target = [visual_segment("latent_diffusion", picture(grid), grid)]
    context = [visual_segment("latent_diffusion", picture(grid), grid, loss=False, max_time=0.5)]
    batch = collate([[target, context, target]] * 300, 310, config)
    masked = draw_patch_masks(-0.7, 0.3, batch, "latent_diffusion", list(range(300)), 4).reshape(300, 3, 100)
    assert not masked[:, 1].any()
    shares = masked[:, ::2].mean(-1).reshape(-1)
    assert shares.max() <= 0.3 and (shares == 0).mean() == pytest.approx(0.7, abs=0.06)
    assert shares.mean() == pytest.approx(0.3**2 / 2, abs=0.01)
    assert np.ptp(masked[:, ::2].mean((0, 1))) < 0.1  # every position is as likely
    alone = collate([[target, context, target]], 310, config)
    np.testing.assert_array_equal(
        draw_patch_masks(-0.7, 0.3, alone, "latent_diffusion", [17], 4).reshape(3, 100), masked[17]
    )
    assert not draw_patch_masks(-1, 0, batch, "latent_diffusion", 0, 4).any()


def test_a_masked_position_enters_as_the_token_and_stays_a_target() -> None:
    config = config_of("mask")
    objective, plain = objective_of(config), objective_of(config_of("none"))
    batch = collate([documents()], 112, config)
    shown, unmasked = objective.show(batch, [3]), plain.show(batch, [3])
    for name in ("latent_diffusion", "pixel_diffusion"):
        # The draws of the noise stay, and so do the places that are asked.
        assert torch.equal(shown[name].values, unmasked[name].values) and unmasked[name].masked is None
        assert torch.equal(shown[name].places, unmasked[name].places) and 0 < shown[name].masked.sum() < 6
    assert shown["next_code"].masked is shown["masked_code"].masked is None

    def predictions() -> torch.Tensor:
        return objective.predict(batch, shown)[1]["latent_diffusion"]

    before, masked = predictions(), shown["latent_diffusion"].masked
    shown["latent_diffusion"].values[masked] += 1
    assert torch.equal(predictions(), before)
    shown["latent_diffusion"].values[~masked] += 1
    assert not torch.equal(predictions(), before)
    assert objective.eval().show(batch, [3])["latent_diffusion"].masked is None


# ---- language models to start from ----


def llama_folder(path: Path) -> torch.nn.Module:
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    model.save_pretrained(path)
    return model.eval()


def test_a_checkpoint_starts_with_every_option_but_another_block(tmp_path: Path) -> None:
    theirs = llama_folder(tmp_path)
    ours = load_llama(
        tmp_path,
        latent_dim=3,
        time_dim=32,
        long_skips=True,
        latent_patchifier="unet",
        unet_width=8,
        flow_head_layers=1,
        patch_mask_high=0.3,
    )
    ids = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(ours.text_logits(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert all(torch.isfinite(p).all() for p in ours.parameters())
    assert not ours.visual_out.out.weight.any()
    assert float(ours.visual_mask.weight.detach().std()) == pytest.approx(0.02, rel=0.5)
    with pytest.raises(ValueError, match=r"block: .*config.json says 'llama', got 'gau'; leave it out"):
        load_llama(tmp_path, latent_dim=3, block="gau")


def test_under_a_unet_neighbours_do_not_tell_what_a_masked_position_holds():
    config = UnifiedConfig(
        vocab_size=32,
        latent_dim=3,
        width=16,
        layers=1,
        heads=2,
        latent_patchifier="unet",
        unet_width=8,
        patch_mask_high=0.5,
    )
    torch.manual_seed(0)
    model = UnifiedModel(config)
    values, segment = torch.randn(16, 3), torch.zeros(16, dtype=torch.int64)
    time, tables, masked = model.time(torch.zeros(1)), grid_tables([(1, 4, 4)]), torch.arange(16) == 5
    other = values.clone()
    other[5] += 1
    entered = [model.embed_visual("latents", x, time, segment, tables, masked)[0] for x in (values, other)]
    assert torch.equal(*entered)
    seen = [model.embed_visual("latents", x, time, segment, tables)[0] for x in (values, other)]
    assert not torch.equal(*seen)
