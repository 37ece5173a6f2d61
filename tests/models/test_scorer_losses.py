"""The scorer's losses and towers against `transformers`' CLIP and SigLIP, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omniloom.models.checks import FieldError
from omniloom.models.features.clip_config import clip_config, clip_document
from omniloom.models.scorer.config import ScorerConfig
from omniloom.models.scorer.losses import AtMost, clip_loss, siglip_loss
from omniloom.models.scorer.objective import ScorerObjective, fresh_clip


def _rows(seed: int, count: int = 6, dim: int = 5) -> torch.Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def _clip(**fields):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    own = ScorerConfig(**{"image_size": 16, "patch_size": 8, "width": 16, "heads": 2, "length": 7, "dim": 12, **fields})
    config = own.clip(vocab_size=40, eos=3)
    theirs = CLIPModel(CLIPConfig(**clip_document(config))).eval()
    return own, config, theirs


def test_softmax_loss_and_its_gradient_are_those_of_transformers():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss as reference

    pictures, texts = _rows(0).requires_grad_(), _rows(1).requires_grad_()
    scale = torch.tensor(7.3, dtype=torch.float64, requires_grad=True)
    mine = clip_loss(pictures, texts, scale)
    theirs = reference(scale * texts @ pictures.T)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, (pictures, texts, scale)) for loss in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_sigmoid_loss_is_that_of_transformers():
    """By the model's own forward, whose embeddings, scale and bias go into ours."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shape, "vocab_size": 30, "max_position_embeddings": 6, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**shape, "image_size": 16, "patch_size": 8}))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    out = model(input_ids=torch.randint(0, 30, (5, 6)), pixel_values=torch.randn(5, 3, 16, 16), return_loss=True)
    mine = siglip_loss(out.image_embeds, out.text_embeds, model.logit_scale.exp(), model.logit_bias)
    torch.testing.assert_close(mine, out.loss)


def test_equal_captions_are_no_negatives():
    """Of four pairs the first and the last say the same: closed forms, one term at a time."""
    pictures, texts = _rows(2, 4), _rows(3, 4)
    texts[3] = texts[0]
    same = torch.eye(4, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    right = [[0, 3], [1], [2], [0, 3]]
    logits = (5.0 * pictures @ texts.T).tolist()

    def entropy(rows: list[list[float]]) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            log_sum = math.log(sum(map(math.exp, row)))
            total += sum((log_sum - row[j]) / len(right[i]) for j in right[i])
        return total / len(rows)

    expected = (entropy(logits) + entropy([list(column) for column in zip(*logits, strict=True)])) / 2
    assert clip_loss(pictures, texts, torch.tensor(5.0), same).item() == pytest.approx(expected, rel=1e-12)
    biased = [[x - 2.0 for x in row] for row in logits]
    expected = sum(
        math.log1p(math.exp(-x if j in right[i] else x)) for i, row in enumerate(biased) for j, x in enumerate(row)
    )
    mine = siglip_loss(pictures, texts, torch.tensor(5.0), torch.tensor(-2.0), same)
    assert mine.item() == pytest.approx(expected / 4, rel=1e-12)


def test_what_is_clipped_can_come_back():
    """Gradient descent on a clipped number is that of clipping it behind each step."""
    for pull in (-1.0, 1.0):  # which way the loss falls
        free = nn.Parameter(torch.tensor([2.0]))
        clipped = torch.tensor([2.0])
        for turn in range(40):
            sign = pull if turn < 20 else 1.0  # at last it is pulled back
            (grad,) = torch.autograd.grad(sign * AtMost.apply(free, 2.5).sum(), free)
            with torch.no_grad():
                free -= 0.1 * grad
            clipped = (clipped - 0.1 * sign).clamp(max=2.5)
            assert min(free.item(), 2.5) == pytest.approx(clipped.item(), abs=0.101)
        assert free.item() <= 2.6


def test_scale_is_at_most_100_and_starts_as_published():
    for loss, scale, bias in (("clip", 1 / 0.07, None), ("siglip", 10.0, -10.0)):
        objective = ScorerObjective(fresh_clip(_clip()[1]), loss)
        assert objective.log_scale.exp().item() == pytest.approx(scale, rel=1e-6)
        assert (objective.bias is None) if bias is None else (objective.bias.item() == bias)
    objective = ScorerObjective(fresh_clip(_clip()[1]), "clip")
    with torch.no_grad():
        objective.log_scale.fill_(9.0)
    _, logs = objective(torch.randn(2, 3, 16, 16), [[4, 3], [5, 6, 3]])
    assert logs["scale"].item() == pytest.approx(100.0, rel=1e-5)


def test_objective_is_the_loss_of_transformers_model_on_the_same_weights():
    _, config, theirs = _clip(text_layers=1, layers=2)
    objective = ScorerObjective(fresh_clip(config), "clip")
    state = {key: value for key, value in theirs.state_dict().items() if "position_ids" not in key}
    scale = state.pop("logit_scale")
    objective.clip.load_state_dict(state)
    with torch.no_grad():
        objective.log_scale.fill_(scale)
    pixels, ids = torch.randn(4, 3, 16, 16), torch.randint(4, 40, (4, 7))
    lengths = (3, 7, 5, 2)
    for row, length in enumerate(lengths):
        ids[row, length - 1 :] = 3
    expected = theirs(
        input_ids=ids,
        pixel_values=pixels,
        attention_mask=(torch.arange(7) < torch.tensor(lengths)[:, None]).long(),
        return_loss=True,
    )
    loss, _ = objective(pixels, [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)])
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


def test_document_says_the_config_again():
    _, config, _ = _clip(length=9)
    assert clip_config(clip_document(config), "here") == config


def test_fresh_weights_keep_the_size_of_what_they_carry():
    """Embeddings of a new model are neither all alike nor of sizes that differ by orders."""
    torch.manual_seed(0)
    model = fresh_clip(ScorerConfig().clip(vocab_size=500, eos=3))
    with torch.no_grad():
        found = model.of_pictures(torch.randn(16, 3, 32, 32))
        texts = model.of_texts([[i, 2 * i, 3] for i in range(5, 21)])
    for rows in (found, texts):
        assert 0.1 < rows.norm(dim=-1).mean() < 30
        assert rows.std(0).mean() > 1e-3


@pytest.mark.parametrize(
    ("fields", "name"), [({"heads": 3}, "heads"), ({"patch_size": 5}, "patch_size"), ({"length": 1}, "length")]
)
def test_sizes_that_do_not_fit_are_named(fields, name):
    with pytest.raises(FieldError) as error:
        ScorerConfig(**fields)
    assert error.value.field == name
