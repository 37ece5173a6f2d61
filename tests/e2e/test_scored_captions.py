"""A scorer in a pipeline on Ray: it is trained by two workers, leaves out wrong captions before pretokenize, measures
in evaluate, and judges what the pipeline's own model writes in a second pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import corpora
import numpy as np
import pytest
import yaml

from omniloom.infra import storage
from omniloom.infra.artifacts import ArtifactStore
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import encode_png

pytestmark = pytest.mark.slow

SCORER = {
    "model": {"image_size": 24, "patch_size": 8, "width": 32, "heads": 2, "layers": 1, "text_layers": 1, "dim": 16},
    "folds": 2,
    "batch": 32,
    "steps": 80,
    "vocab_size": 300,
    "colour": 0.05,
    "optimizer": {"lr": 1e-3, "warmup_steps": 10},
    "workers": {"count": 2, "checkpoint_every": 40},
    "validate_every": 20,
}
TOKENIZER = {
    "model": {
        "patch_size": 8,
        "width": 16,
        "heads": 2,
        "head_dim": 8,
        "spatial_layers": "t",
        "temporal_layers": 1,
        "decoder_spatial_layers": "t",
        "quantizer": {"kind": "vq", "codebook_size": 16, "latent_dim": 4},
    },
    "data": {"kinds": ["image"], "sizes": [24], "image_batch": 8},
    "steps": 2,
    "workers": {"count": 1},
    "validate_every": 2,
}
TRAIN = {
    "model": {"width": 16, "layers": 1, "heads": 2, "time_dim": 8},
    "packing": {"length": 64},
    "batch_rows": 2,
    "steps": 2,
    "workers": {"count": 1},
    "validation_rows": 2,
    "samples": {"count": 0},
}


def run(folder: Path, name: str, stages: dict, **more) -> ArtifactStore:
    store = ArtifactStore(str(folder / "runs"))
    config = {
        "name": name,
        "storage": store.root,
        "tracking": {"system_metrics": False},
        "cluster": {"num_cpus": 4, "object_store_bytes": 100 << 20},
        "stages": stages,
        **more,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "omniloom.pipelines.cli", "run", f"{name}.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return store


def test_a_scorer_in_a_pipeline(tmp_path):
    rng, lines = np.random.default_rng(0), []
    colours = list(corpora.COLOURS)
    for number, place in enumerate(rng.permutation(256)[:200].tolist()):
        picture = encode_png(corpora.square(colours[number % 4], divmod(place, 16)))
        storage.write_bytes(str(tmp_path / "pictures" / f"{number}.png"), picture)
        said = colours[(number + (number % 7 == 0)) % 4]
        lines.append({"file": f"{number}.png", "caption": f"a {said} square", "label": colours[number % 4]})
    (tmp_path / "pictures" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"kind": "image_folder", "uri": str(tmp_path / "pictures"), "captions": {"manifest": "manifest.jsonl"}}
    ingest = {"sources": [source], "splits": {"train": 0.8, "validation": 0.1, "test": 0.1}}
    stages = {
        "ingest": ingest,
        "train_scorer": SCORER,
        "recaption": {},
        "tokenizer_image": TOKENIZER,
        "pretokenize": {"image_size": 24, "vocab_size": 300, "workers": 1},
        "train": TRAIN,
        "evaluate": {"drawings": 2, "captions": 6, "texts": 0, "counterfactuals": 0},
    }
    store = run(tmp_path, "scored", stages)
    made = {name: store.last_used("scored", name) for name in stages}
    assert made["pretokenize"].manifest["inputs"]["recaption"] == made["recaption"].fingerprint
    assert made["evaluate"].manifest["inputs"]["train_scorer"] == made["train_scorer"].fingerprint
    assert made["train_scorer"].metrics["recall_at_1"] > 0.6
    assert 0 <= made["evaluate"].metrics["scorer_recall_at_1"] <= 1
    wrong = {f"{number}.png" for number in range(0, 200, 7)}
    rows = {row["path"]: row for row in records.iterate(made["recaption"].uri)}
    train = {path for path, row in rows.items() if row["split"] == "train"}
    gone = {path for path in train if not rows[path]["captions"]}
    assert len(rows) == 200 and all(rows[path]["captions"] for path in set(rows) - train)
    assert len(gone & wrong) >= 0.8 * len(train & wrong) and len(gone - wrong) <= 0.1 * len(train - wrong)
    report = storage.read_bytes(made["evaluate"].file("report.html")).decode()
    assert "scorer_recall_at_1" in report

    second = {"ingest": ingest, "train_scorer": SCORER, "recaption": {"model": made["train"].uri, "max_tokens": 4}}
    store = run(tmp_path, "rewritten", second)
    rewritten = store.last_used("rewritten", "recaption")
    assert store.last_used("rewritten", "train_scorer").fingerprint == made["train_scorer"].fingerprint
    told = storage.read_bytes(rewritten.file("recaption", "decisions.jsonl")).decode().splitlines()
    assert sum("written" in json.loads(line) for line in told) > 0.5 * len(told)
    assert rewritten.metrics["records_image"] == 200
