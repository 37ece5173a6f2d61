"""A step of a tokenizer's training once more: the same loss bit for bit, and the clip to blame by name."""

from __future__ import annotations

from pathlib import Path

import corpora
import numpy as np
import pytest

from omniloom.infra import storage
from omniloom.stages.data.clips import ClipBatches
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.replay import Replay, replay
from omniloom.stages.reporting import history
from omniloom.stages.tokenizer.config import Config
from omniloom.stages.tokenizer.replayed import parts
from omniloom.stages.tokenizer.stage import job_of
from omniloom.stages.tokenizer.worker import train_worker

MODEL = {
    "patch_size": 8,
    "temporal_patch": 4,
    "width": 16,
    "heads": 2,
    "head_dim": 8,
    "spatial_layers": "t",
    "temporal_layers": 1,
    "decoder_spatial_layers": "t",
}
ADVERSARIAL = {
    "loss": {"adversarial_start": 2, "adaptive_weight": True},
    "discriminator": {"channels": 4, "layers": 1, "r1_gamma": 1.0, "r1_every": 2, "lecam_weight": 0.1},
}


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


def config(steps: int, quantizer: dict, **fields) -> Config:
    return Config.model_validate(
        {
            "model": {**MODEL, "quantizer": quantizer},
            "data": {"kinds": ["image", "video"], "sizes": [16], "frames": 5, "image_batch": 8, "video_batch": 4},
            "steps": steps,
            "seed": 1,
            "optimizer": {"lr": 3e-3, "warmup_steps": 2},
            "workers": {"count": 1, "checkpoint_every": 4, "log_every": 1, "keep_checkpoints": 3},
            "validate_every": 100,
            "validation_examples": 3,
            **fields,
        }
    )


def job(settings: Config, records, folder: Path):
    return job_of(settings, records, None, f"{folder}/output", f"{folder}/state", corpora.Silent(), corpora.Silent())


def asked(folder: Path, records, settings: Config, step: int, ranks: int = 1) -> Replay:
    curve = [row for row in history.load(str(folder / "output" / "report" / "history.jsonl")) if "loss" in row]
    return Replay(parts, job(settings, records, folder), str(folder / "state"), step, curve, [], ranks, step)


def origins(records, settings: Config, step: int) -> list[dict]:
    clips = ClipBatches(records, "train", settings.data, 8, settings.seed, 0, 1)
    try:
        return clips.origins(step)
    finally:
        clips.close()


VQ = {"kind": "vq", "codebook_size": 32, "latent_dim": 4, "restart_dead_after": 2.0}
QUANTIZERS = {"vq": VQ, "kl": {"kind": "kl", "latent_dim": 4}}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_it_is_the_same_step_bit_for_bit_and_names_every_clip(tmp_path, quantizer):
    """With a codebook that moves and restarts or a bottleneck that draws, and with a discriminator."""
    records = corpora.ingest(tmp_path / "ingest")
    settings = config(10, QUANTIZERS[quantizer], **ADVERSARIAL)
    train_worker(job(settings, records, tmp_path / "run"))
    before = storage.list_files(str(tmp_path / "run"))
    for step, start in ((6, 4), (9, 8)):
        found = replay(asked(tmp_path / "run", records, settings, step))
        assert (found["from"], found["equal"], found["row"]["step"]) == (start, True, step + 1)
        told = sorted((clip["id"], clip["path"]) for clip in found["documents"])
        assert told == sorted((clip["id"], clip["path"]) for clip in origins(records, settings, step))
        assert all(clip["loss"] > 0 and clip["grad_norm"] > 0 for clip in found["documents"])
    assert storage.list_files(str(tmp_path / "run")) == before  # it reads alone
    other = settings.model_copy(update={"seed": 2})
    assert replay(asked(tmp_path / "run", records, other, 6))["equal"] is False


def test_the_clips_losses_are_those_of_the_step(tmp_path):
    """Without terms of the whole batch their mean is the step's loss."""
    records = corpora.ingest(tmp_path / "ingest")
    settings = config(6, QUANTIZERS["kl"])
    train_worker(job(settings, records, tmp_path / "run"))
    found = replay(asked(tmp_path / "run", records, settings, 5))
    assert np.mean([clip["loss"] for clip in found["documents"]]) == pytest.approx(found["loss"], rel=1e-5)


def test_the_picture_that_is_unlike_all_others_is_blamed(tmp_path):
    noise = encode_png(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    records = corpora.ingest(tmp_path / "ingest", images=24, videos=0, instead={7: noise})
    settings = config(41, VQ, data={**config(1, VQ).data.model_dump(), "kinds": ["image"]})
    train_worker(job(settings, records, tmp_path / "run"))
    step = next(n for n in range(36, 41) if "7" in {clip["path"] for clip in origins(records, settings, n)})
    found = replay(asked(tmp_path / "run", records, settings, step))
    assert [clip["path"] for clip in found["documents"] if clip["blamed"]] == ["7"]
    assert found["documents"][0]["deviations"] > 8 and found["documents"][0]["task"] == "image"


@pytest.mark.slow
def test_ranks_of_its_own_agree_with_one(tmp_path):
    """On three ranks, which divide 8 images and 4 videos unevenly."""
    records = corpora.ingest(tmp_path / "ingest")
    settings = config(6, QUANTIZERS["kl"], **ADVERSARIAL)
    train_worker(job(settings, records, tmp_path / "run"))
    one = replay(asked(tmp_path / "run", records, settings, 5))
    three = replay(asked(tmp_path / "run", records, settings, 5, ranks=3))
    assert three["ranks"] == 3 and three["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert len(three["documents"]) == len(one["documents"])
