"""A tokenizer's training on pictures and clips of several shapes and sizes: it learns, and resumes bit for bit."""

from __future__ import annotations

from pathlib import Path

import corpora
import pytest
import torch
from safetensors.torch import load_file

from omniloom.stages.reporting import history
from omniloom.stages.tokenizer import stage as train_tokenizer
from omniloom.stages.tokenizer import worker as tokenizer_worker


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


def train(folder: Path, corpus, progress=None) -> None:
    config = train_tokenizer.Config.model_validate(
        {
            "model": {
                "patch_size": 8,
                "temporal_patch": 4,
                "width": 16,
                "heads": 2,
                "head_dim": 8,
                "spatial_layers": "tw",
                "temporal_layers": 1,
                "decoder_spatial_layers": "tw",
                "quantizer": {"kind": "vq", "codebook_size": 32, "latent_dim": 4},
            },
            "loss": {"adversarial_start": 4, "adversarial_ramp": 2},
            "discriminator": {"channels": 4, "layers": 1},
            "data": {
                "kinds": ["image", "video"],
                "sizes": [16, 24],
                "aspects": ["1:1", "3:2", "2:3"],
                "frames": 5,
                "image_batch": 4,
                "video_batch": 2,
            },
            "steps": 12,
            "seed": 2,
            "optimizer": {"lr": 3e-3, "warmup_steps": 3},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "validate_every": 6,
            "validation_examples": 4,
            "workers": {"count": 1, "checkpoint_every": 3, "log_every": 1},
        }
    )
    tokenizer_worker.train_worker(
        tokenizer_worker.Job(
            config,
            config.model,
            corpus,
            None,
            str(folder / "output"),
            str(folder / "state"),
            progress or corpora.Silent(),
            corpora.Silent(),
        )
    )


def test_training_on_several_shapes_learns_and_resumes_bit_for_bit(tmp_path):
    corpus = corpora.ingest_shapes(tmp_path / "ingest")
    train(tmp_path / "straight", corpus)
    with pytest.raises(corpora.Killed):
        train(tmp_path / "broken", corpus, corpora.KilledAt(8))
    train(tmp_path / "broken", corpus)
    wanted, found = (
        load_file(tmp_path / name / "output" / "tokenizer" / "tokenizer.safetensors") for name in ("straight", "broken")
    )
    assert set(wanted) == set(found) and all(torch.equal(value, found[name]) for name, value in wanted.items())
    rows = history.load(str(tmp_path / "straight" / "output" / "report" / "history.jsonl"))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert all(
        {"validation_psnr_image", "validation_psnr_video"} <= set(row) for row in rows if "validation_psnr_image" in row
    ) and any("validation_psnr_video" in row for row in rows)
    assert (tmp_path / "straight" / "output" / "report" / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
