"""Pipelines of a part of the stages, each a small real run on Ray: ingest alone, a stage of another distribution in
between, a tokenizer alone, and from tokens on by pins.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from distributions import EXAMPLES, install

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.data.tokens import TokenSet

pytestmark = pytest.mark.slow

TOKENIZER = {
    "model": {
        "width": 16,
        "heads": 2,
        "head_dim": 8,
        "spatial_layers": "t",
        "temporal_layers": 1,
        "decoder_spatial_layers": "t",
        "quantizer": {"kind": "vq", "codebook_size": 16, "latent_dim": 4},
    },
    "data": {"kinds": ["image"], "sizes": [16], "image_batch": 4},
    "steps": 2,
    "workers": {"count": 1},
    "validate_every": 2,
    "validation_examples": 2,
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


class Folder:
    """Pictures of two sizes and a text, and a storage; `run` is the command, with the example on the path."""

    def __init__(self, folder: Path):
        self.folder, self.store = folder, ArtifactStore(str(folder / "runs"))
        for number in range(40):
            side = 16 if number % 4 else 8
            pixels = np.full((side, side, 3), number * 6, np.uint8)
            pixels[number % side] = 255 - number
            storage.write_bytes(str(folder / "pictures" / f"{number}.png"), encode_png(pixels))
        (folder / "pictures" / "text.txt").write_text("A text.\n\nAnd another one.")
        self.example = install(EXAMPLES / "filter_stage", folder / "site")

    def run(self, stages: dict, *arguments: str, command: str = "run", **more) -> str:
        picture = {"kind": "image_folder", "uri": str(self.folder / "pictures"), "captions": {"from": "file"}}
        text = {"kind": "text", "uri": str(self.folder / "pictures"), "include": "*.txt"}
        known = {"ingest": {"sources": [picture, text]}, "tokenizer_image": TOKENIZER, "train": TRAIN}
        config = {
            "name": "part",
            "storage": self.store.root,
            "tracking": {"system_metrics": False},
            "cluster": {"num_cpus": 4},
            "stages": {name: {**known.get(name, {}), **own} for name, own in stages.items()},
            **more,
        }
        (self.folder / "part.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [sys.executable, "-m", "omniloom.pipelines.cli", command, "part.yaml", *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.example)},
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def made(self, stage: str) -> Artifact:
        artifact = self.store.last_used("part", stage)
        assert artifact is not None
        return artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    return Folder(tmp_path_factory.mktemp("parts"))


def test_ingest_alone(folder):
    out = folder.run({"ingest": {}})
    ingest = folder.made("ingest")
    assert ingest.metrics["records_image"] == 40 and f"ingest: {ingest.uri}" in out
    assert [artifact.stage for artifact in folder.store.all()] == ["ingest"]
    assert "up to date" in folder.run({"ingest": {}}) and "ingest" in folder.run({"ingest": {}}, command="status")
    folder.run({"ingest": {}}, command="doctor")


def test_a_stage_between_ingest_and_what_follows(folder):
    stages = {
        "ingest": {},
        "filter_records": {"min_side": 12},
        "tokenizer_image": {},
        "pretokenize": {"image_size": 16, "vocab_size": 300},
    }
    out = folder.run(stages)
    kept, tokens = folder.made("filter_records"), folder.made("pretokenize")
    assert f"pretokenize: {tokens.uri}" in out
    assert kept.metrics["records_image"] == 30 and kept.metrics["left_out"] == 10
    assert tokens.manifest["inputs"] == {
        "filter_records": kept.fingerprint,
        "tokenizer_image": folder.made("tokenizer_image").fingerprint,
    }
    ids = {row["id"] for row in records.iterate(kept.uri)}
    sets = [TokenSet(tokens, split) for split in records.SPLITS]
    written = {one.row(index)["id"] for one in sets for index in range(len(one))}
    assert written == ids and len(ids) < folder.made("ingest").metrics["records"]
    # What the filter is told to do runs it and what reads it again, and nothing before it.
    out = folder.run({**stages, "filter_records": {"min_side": 4}}, command="plan")
    assert [line.split()[:2] for line in out.splitlines()[2:6]] == [  # what is predicted follows
        ["ingest", "cached"],
        ["filter_records", "run"],
        ["tokenizer_image", "run"],
        ["pretokenize", "run"],
    ]


def test_from_tokens_on_by_pins(folder):
    pins = {name: folder.made(name).fingerprint for name in ("filter_records", "tokenizer_image", "pretokenize")}
    out = folder.run({"train": {}, "evaluate": {"drawings": 2, "captions": 2, "texts": 1}}, pins=pins)
    model = folder.made("train")
    assert "ran train, evaluate" in out and f"model:  {model.file('model')}" in out and "report: " in out
    assert model.manifest["inputs"] == {name: pins[name] for name in ("pretokenize", "tokenizer_image")}
    assert set(folder.made("evaluate").manifest["inputs"]) == {*pins, "train"}
    folder.run({"train": {}}, command="doctor", pins=pins)
    folder.run({"train": {}}, command="status", pins=pins)
