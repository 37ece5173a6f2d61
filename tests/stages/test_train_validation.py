"""What training measures on the validation split: means over targets, and captions of every kind of picture."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import corpora
import pytest
import torch

from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train.samples import drawn_shape, held_out_captions
from omniloom.stages.train.trainer import mean_losses


class Batch:
    def __init__(self, losses: dict[str, float], targets: dict[str, int]):
        self.losses, self.targets = losses, targets

    def to(self, device):
        return self


def test_validation_losses_are_means_over_targets():
    """Two batches of 3 and 1 text targets, 0 and 8 positions of pictures: by hand, and not the mean of the means."""
    batches = [
        (Batch({"text_loss": 2.0, "visual_loss": 0.0}, {"text": 3, "latent_diffusion": 0}), [0]),
        (Batch({"text_loss": 6.0, "visual_loss": 0.5}, {"text": 1, "latent_diffusion": 8}), [1]),
    ]
    engine = SimpleNamespace(autocast=nullcontext, device=torch.device("cpu"), collective=False)
    found = mean_losses(
        lambda batch, seeds: (None, batch.losses),
        batches,
        engine,
        {"text": "text_loss", "latent_diffusion": "visual_loss"},
    )
    assert found == {"validation_text_loss": (3 * 2.0 + 1 * 6.0) / 4, "validation_visual_loss": 0.5}
    none = mean_losses(
        lambda batch, seeds: (None, batch.losses), batches[:1], engine, {"latent_diffusion": "visual_loss"}
    )
    assert none == {}, "what has no targets has no loss"


@pytest.mark.parametrize("seed", range(3))
def test_sample_captions_are_of_every_label_and_source(tmp_path, seed):
    """All ants come first, and most of the captions are theirs."""
    text = corpora.text_tokenizer()
    rows = [
        {
            "id": f"{label}{number}",
            "kind": "image",
            "label": label,
            "source": source,
            "path": str(number),
            "bytes": 1,
            "segments": [
                {"kind": "text", "loss": True, "ids": text.encode(f"{label} {number}")},
                {"kind": "visual", "loss": True, "grid": [1, 1, 1], "latents": [0.0] * 4, "codes": [1]},
            ],
        }
        for source, label, count in (("one", "ant", 30), ("one", "bee", 3), ("two", None, 3))
        for number in range(count)
    ]
    rows.append({**rows[0], "id": "silent", "segments": rows[0]["segments"][1:]})
    held_out = TokenSet(corpora.pretokenize(tmp_path, {"validation": [rows]}, text), "validation")
    config = train_unified.Config.model_validate({"samples": {"count": 8}, "seed": seed})
    captions = held_out_captions(held_out, text, config)
    assert captions == held_out_captions(held_out, text, config) and len(set(captions)) == 8
    assert (
        sorted(caption.split()[0] for caption in captions) == ["None"] * 3 + ["ant"] * 2 + ["bee"] * 3
        or sorted(caption.split()[0] for caption in captions) == ["None"] * 3 + ["ant"] * 3 + ["bee"] * 2
    )
    assert (
        held_out_captions(
            held_out, text, config.model_copy(update={"samples": config.samples.model_copy(update={"count": 0})})
        )
        == []
    )


@pytest.mark.parametrize(
    "aspects, shape", [(None, (32, 32)), (["1:1"], (32, 32)), (["3:2", "1:1"], (32, 32)), (["2:1", "1:2"], (24, 48))]
)
def test_what_is_drawn_by_default_has_a_trained_shape(aspects, shape):
    facts = {"image_size": 32} | ({"aspects": aspects} if aspects else {})
    assert drawn_shape(facts, 8) == shape
