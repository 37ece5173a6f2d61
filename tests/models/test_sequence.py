"""Sequence parallelism: ranks that share rows out, by real gloo ranks, give the losses and gradients of one that has
them alone: of every objective and head, with pictures that lie across ranks, and of lengths that no number divides."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import ALL, build, config_of, documents, drawing
from thread_groups import on_threads

from omniloom.infra.training.ranks import run_on_ranks
from omniloom.models.unified.attention import DenseAttend
from omniloom.models.unified.batch import Batch, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import DiffusionHeadConfig, MixtureConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.layouts import plain_text
from omniloom.models.unified.mask import dense_mask
from omniloom.models.unified.objectives.alignment import FeatureAlignment
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.models.unified.sequence import RowShare, SequenceGroup

# By name: an option of the backbone, and other fields. All have heads that 2 divides.
CASES: dict[str, tuple[str, dict]] = {
    "plain": ("none", {}),
    "grouped": ("none", {"heads": 12, "kv_heads": 3, "head_dim": 8}),
    "one key head": ("none", {"kv_heads": 1}),
    "flow": ("flow", {}),
    "unet": ("unet", {}),
    "masked": ("mask", {}),
    "modulated": ("modulated", {}),
    "experts": ("experts_all", {}),
    "all": ("all", {"hidden": 96}),  # GAUs of 8 heads
    "mixture": ("none", {"density": MixtureConfig(components=3)}),
    "denoiser": ("none", {"density": DiffusionHeadConfig(layers=1, width=12, times=2)}),
}
LENGTHS = {
    "mixture": (184, "cpu"),
    "denoiser": (183, None),
    "plain": (161, "cpu"),
    "grouped": (160, None),
}  # and what attention is planned for


def config(case: str) -> UnifiedConfig:
    option, fields = CASES[case]
    return config_of(option, **fields)


def objectives(case: str) -> tuple[str, ...]:
    return (*ALL, "next_latent") if config(case).density else ALL


def rows(names: tuple[str, ...] = ALL) -> list[list]:
    """Two rows of every objective: one with ragged texts and larger pictures, which lie across ranks; and a shorter."""
    special = config_of("none").specials
    large = [drawing(name, (1, 6, 8) if name == "latent_diffusion" else (2, 2, 3), 5) for name in names]
    for segment in (one for document in large for one in document if one.kind == "visual"):
        segment.weight = 0.5
    ragged = [plain_text([11] * n, special) for n in (1, 7, 2, 19)]
    return [[*ragged, *large], documents()]


def batch_of(case: str) -> Batch:
    length, device = LENGTHS.get(case, (157, "cpu"))
    given = rows(objectives(case))
    for document in given[1]:
        for segment in document:
            if segment.kind == "visual":
                count = int(np.prod(segment.visual_grid))
                segment.features = np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)
    return collate(given, length, config(case), device, feature_dim=6)


def objective(case: str) -> UnifiedObjective:
    torch.manual_seed(1)
    return UnifiedObjective(
        build(config(case)),
        DiffusionConfig(multiscale=3),
        z_loss=0.01,
        objectives=objectives(case),
        alignment=FeatureAlignment(48, 6, 16),
    )


def figures(module: UnifiedObjective, batch: Batch, group: SequenceGroup | None = None) -> dict[str, torch.Tensor]:
    """Loss, logs and every gradient; this rank's share of them."""
    module.sequence = group
    loss, logs = module(batch, [3, 4])
    loss.backward()
    found = {"loss": loss.detach(), **{name: value.clone() for name, value in logs.items()}}
    return found | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _on_rank(folder: str, path: list[str], cases: list[str], ranks: int) -> None:
    sys.path[:0] = path
    from omniloom.infra.training.sequence import SequenceGroup

    group = SequenceGroup(ranks)
    found = {case: figures(objective(case), batch_of(case), group) for case in cases}
    group.add_up(value for figures_ in found.values() for value in figures_.values())
    if group.rank == 0:
        torch.save(found, Path(folder, "found.pt"))


def check(case: str, found: dict[str, torch.Tensor]) -> None:
    wanted = figures(objective(case), batch_of(case))
    assert found.keys() == wanted.keys() and {"z_loss", "alignment_loss", "masked_code_loss"} < wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=f"{case}: {name}")


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_ranks_that_share_rows_out_add_up_to_one(case, ranks):
    if config(case).attention_heads % ranks:
        return
    modules = [objective(case) for _ in range(ranks)]  # whose seed is one for all threads
    shares = on_threads(ranks, lambda group: figures(modules[group.rank], batch_of(case), group))
    check(case, {name: sum(share[name] for share in shares) for name in shares[0]})


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_by_processes_too(tmp_path, ranks):
    run_on_ranks(_on_rank, ranks, str(tmp_path), sys.path, list(CASES), ranks)
    found = torch.load(tmp_path / "found.pt")
    for case in CASES:
        check(case, found[case])


def test_pictures_lie_across_boundaries():
    """The rows that others are compared on."""
    batch = batch_of("plain")
    for ranks in (2, 3, 4):
        count = -(-batch.ids.shape[1] // ranks)
        assert any((batch.end[:, at - 1] > at + 1).any() for at in range(count, count * ranks - 1, count))


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(12, 12, 4), (12, 3, 2), (12, 3, 4), (12, 4, 6), (6, 1, 3)])
def test_attention_is_that_of_whole_rows(heads, kv_heads, ranks):
    batch = batch_of("plain")
    whole, (B, L) = DenseAttend(dense_mask(batch.start, batch.end)), batch.ids.shape
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, count, L, 8, dtype=torch.float64) for count in (heads, kv_heads, kv_heads))

    def on_rank(group):
        share = RowShare(group, B, L)
        mine = [share.cut(x.transpose(1, 2), 7.0).transpose(1, 2) for x in (q, k, v)]
        out = share.attention(whole)(*mine)
        return share.gathered(out.transpose(1, 2).flatten(0, 1)).view(B, L, heads, 8).transpose(1, 2)

    for found in on_threads(ranks, on_rank):
        torch.testing.assert_close(found, whole(q, k, v), rtol=0, atol=1e-12)


def test_activations_that_are_computed_again_give_the_same():
    modules = [objective("plain") for _ in range(2)]
    for module in modules:
        module.model.checkpoint_activations = True
    shares = on_threads(2, lambda group: figures(modules[group.rank], batch_of("plain"), group))
    check("plain", {name: sum(share[name] for share in shares) for name in shares[0]})


@pytest.mark.slow
def test_compiled_blocks_exchange_within_one_graph(process_group):
    """By DeepSpeed's operator, of a group of one."""
    from omniloom.infra.training.sequence import SequenceGroup

    found, wanted = objective("grouped"), objective("grouped")
    for block in found.model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    batch = collate(rows(), 157, config("grouped"), feature_dim=6)
    compiled, eager = (figures(module, batch, SequenceGroup(1)) for module in (found, wanted))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-4, msg=name)


def test_what_cannot_be_shared_out_is_refused(monkeypatch):
    row = replace(OBJECTIVES["next_code"], separable=False)
    monkeypatch.setitem(OBJECTIVES, "next_code", row)
    with pytest.raises(ValueError, match="UnifiedObjective.sequence: next_code is not separable"):
        UnifiedObjective(build(config("plain")), DiffusionConfig(), objectives=ALL, sequence=object())
