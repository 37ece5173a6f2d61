"""A tokenizer's training does not depend on how many ranks divide its clips: nor what it draws, nor its codebook."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import corpora
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from omniloom.stages.reporting import history

QUANTIZERS = {
    "vq": {"kind": "vq", "codebook_size": 32, "latent_dim": 4, "restart_dead_after": 1},
    "kl": {"kind": "kl", "latent_dim": 4},
    "gumbel": {"kind": "gumbel", "codebook_size": 32, "latent_dim": 4},
    "fsq": {"kind": "fsq", "levels": [4, 3, 3]},
}


CALMED = {"r1_gamma": 1.0, "r1_every": 2, "lecam_weight": 0.1}
DISCRIMINATORS = {
    "wasserstein": {"loss": "wasserstein", "r1_every": 1},
    "relativistic": {"loss": "relativistic", "r1_gamma": 1.0, "r1_every": 2},
}
TRAINED = {name: (quantizer, CALMED) for name, quantizer in QUANTIZERS.items()} | {
    name: (QUANTIZERS["fsq"], fields) for name, fields in DISCRIMINATORS.items()
}


def _config(quantizer: dict, discriminator: dict):
    from omniloom.stages.tokenizer.stage import Config

    return Config.model_validate(
        {
            "model": {
                "patch_size": 8,
                "temporal_patch": 4,
                "width": 16,
                "heads": 2,
                "head_dim": 8,
                "spatial_layers": "t",
                "temporal_layers": 1,
                "decoder_spatial_layers": "t",
                "quantizer": quantizer,
            },
            "loss": {"adversarial_start": 0, "adaptive_weight": True},
            "discriminator": {"channels": 4, "layers": 1, **discriminator},
            "data": {"kinds": ["image", "video"], "sizes": [16], "frames": 5, "image_batch": 8, "video_batch": 4},
            "steps": 6,
            "seed": 1,
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
            "engine": {"zero_stage": 1, "ema_decay": 0.9},
            "workers": {"count": {"min": 1, "max": 4}, "checkpoint_every": 100, "log_every": 1},
            "validate_every": 100,
            "validation_examples": 3,
        }
    )


def _rank(rank: int, ranks: int, folder: str, records, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store-{ranks}", rank=rank, world_size=ranks)
    from omniloom.stages.tokenizer.job import Job
    from omniloom.stages.tokenizer.worker import train_worker

    for name, fields in TRAINED.items():
        config, work = _config(*fields), f"{folder}/{name}-{ranks}"
        places = {"output": f"{work}/output", "state": f"{work}/state"}
        train_worker(
            Job(config, config.model, records, None, **places, progress=corpora.Silent(), tracker=corpora.Silent())
        )
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_do_not_change_what_is_trained(tmp_path):
    """On one rank, and on three that divide 8 images and 4 videos unevenly: losses of every step, the validation's
    figures and the weights, with a codebook that starts and restarts on latents of all ranks."""
    records = corpora.ingest(tmp_path / "ingest")
    for ranks in (1, 3):
        torch.multiprocessing.spawn(_rank, (ranks, str(tmp_path), records, sys.path), nprocs=ranks)
    for name in TRAINED:
        one, three = (_curve(tmp_path / f"{name}-{ranks}") for ranks in (1, 3))
        assert one.keys() == three.keys() and len(one) > 20
        for (step, figure), value in one.items():
            assert three[step, figure] == pytest.approx(value, rel=2e-3, abs=2e-4), f"{name}: {figure} at {step}"
        weights = [
            load_file(tmp_path / f"{name}-{ranks}" / "output/tokenizer/tokenizer.safetensors") for ranks in (1, 3)
        ]
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-3, msg=f"{name}: {key}")


def _curve(folder: Path) -> dict[tuple[int, str], float]:
    rows = history.load(str(folder / "output" / "report" / "history.jsonl"))
    told = ("loss", "adaptive_weight", "lecam", "r1", "r2", "gradient_penalty", "kl", "imbalance", "grad_norm")
    told += ("psnr_image", "dead_codes")
    return {(row["step"], name): value for row in rows for name, value in row.items() if name.endswith(told)}
