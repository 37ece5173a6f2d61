"""Four stages of a pipeline, one after the other in this process: records of coloured squares, a tokenizer, tokens, the
unified model. The stages' own bodies and the store's publication, placed without Ray, so that a test can stop them at
any moment and see what is left. Every stage goes on from what lies in the storage, as the runner does it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import corpora

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.stages.base import StageContext
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.pretokenize.taken import NOTES
from omniloom.stages.tokenizer import stage as train_tokenizer
from omniloom.stages.tokenizer import worker as tokenizer_worker
from omniloom.stages.train import stage as train_unified
from omniloom.stages.train import worker as unified_worker

NAMES = ("ingest", "tokenizer_joint", "pretokenize", "train")
FINGERPRINT = "5" * 64
TOKENIZER = train_tokenizer.Config.model_validate(
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
            "quantizer": {"kind": "vq", "codebook_size": 32, "latent_dim": 4},
        },
        "discriminator": None,
        "data": {"kinds": ["image"], "sizes": [24], "image_batch": 4},
        "steps": 14,
        "seed": 2,
        "optimizer": {"lr": 3e-3, "warmup_steps": 3},
        "engine": {"zero_stage": 1, "ema_decay": 0.9},
        "validate_every": 7,
        "validation_examples": 4,
        "workers": {"count": 1, "checkpoint_every": 3, "log_every": 2},
    }
)
TOKENS = pretokenize.Config.model_validate({"image_size": 24, "video_size": 24, "frames": 5, "vocab_size": 300})
TRAINING = train_unified.Config.model_validate(
    {
        "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
        "packing": {"length": 64, "window_rows": 6},
        "batch_rows": 4,
        "steps": 14,
        "seed": 3,
        "optimizer": {"lr": 5e-3, "warmup_steps": 3},
        "engine": {"zero_stage": 2, "ema_decay": 0.9},
        "workers": {"count": 1, "checkpoint_every": 3, "log_every": 2},
        "validate_every": 7,
        "validation_rows": 2,
        "samples": {"count": 2, "num_steps": 2},
    }
)


def run(root: str, progress: Any = None) -> dict[str, str]:
    """Bring all stages up to date below the storage `root`; {artifact's file: sha256} of what they hold."""
    store, made, progress = ArtifactStore(root), {}, progress or corpora.Silent()
    for name in NAMES:
        work = store.work_uri(name, FINGERPRINT)
        current = store.finish_publishing(name, FINGERPRINT, work, progress.note) or store.find(name, FINGERPRINT)
        if current is None or store.damage(current):
            metrics = BODIES[name](work, made, progress)
            current = store.publish(
                name,
                FINGERPRINT,
                work,
                {
                    "stage": name,
                    "config": {"data": {"kinds": ["image"]}},
                    "metrics": metrics,
                    "times": {"ended_unix": time.time(), "seconds": 1.0},
                },
            )
        made[name] = current
    return {
        f"{name}/{entry['path']}": entry["sha256"]
        for name, artifact in made.items()
        for entry in artifact.manifest["files"]
    }


def _ingest(work: str, made: dict[str, Artifact], progress: Any) -> dict:
    corpora.ingest(Path(work, "output"), images=24, videos=0)
    return {"records_image": 24, "records_video": 0, "records_document": 0, "records_text": 0}


def _where(work: str, progress: Any) -> dict:
    return {"output": f"{work}/output", "state": f"{work}/state", "progress": progress, "tracker": corpora.Silent()}


def _tokenizer(work: str, made: dict[str, Artifact], progress: Any) -> dict:
    tokenizer_worker.train_worker(
        tokenizer_worker.Job(TOKENIZER, TOKENIZER.model, made["ingest"], None, **_where(work, progress))
    )
    return storage.read_json(f"{work}/state/metrics.json")


def _pretokenize(work: str, made: dict[str, Artifact], progress: Any) -> dict:
    from omniloom.stages.data import records

    context = StageContext(
        "pretokenize",
        FINGERPRINT,
        TOKENS,
        {"records": made["ingest"], "tokenizer": made["tokenizer_joint"]},
        work,
        progress,
        corpora.Silent(),
    )
    text = storage.join(context.state, "text.json")
    if not storage.exists(text):
        storage.write_bytes(text, pretokenize._text_tokenizer(TOKENS, made["ingest"]).encode())
    notes = storage.join(context.output, NOTES)
    actor = ShardTokenizer(TOKENS, context.tokenizer, text, context.output, notes)
    done = storage.list_files(storage.join(notes, "shards"))
    for index, uri in enumerate(records.shards(made["ingest"].uri)):
        if f"{index:05d}.json" not in done:
            actor({"index": index, "uri": uri})
    return pretokenize.run(context)  # finds every shard done


def _train(work: str, made: dict[str, Artifact], progress: Any) -> dict:
    unified_worker.train_worker(
        unified_worker.Job(TRAINING, made["pretokenize"], made["tokenizer_joint"], **_where(work, progress))
    )
    return storage.read_json(f"{work}/state/metrics.json")


BODIES: dict[str, Callable[[str, dict[str, Artifact], Any], dict]] = {
    "ingest": _ingest,
    "tokenizer_joint": _tokenizer,
    "pretokenize": _pretokenize,
    "train": _train,
}
