"""A pipeline of 24 pictures of squares that takes a minute: for tests of what people see of a run."""

from __future__ import annotations

from pathlib import Path

import corpora
import yaml

from omniloom.infra import storage
from omniloom.stages.data.media.decode import encode_png


def write(folder: Path, **more: dict) -> Path:
    """Its config, in a folder of its own; `more` are further stages."""
    for number in range(24):
        colour = list(corpora.COLOURS)[number % 4]
        picture = encode_png(corpora.square(colour, (number % 17, number * 5 % 17), 24))
        storage.write_bytes(str(folder / f"images/{colour}/{number}.png"), picture)
    train = {
        "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
        "packing": {"length": 96, "window_rows": 8},
        "batch_rows": 4,
        "steps": 60,
        "workers": {"count": 2, "log_every": 2, "checkpoint_every": 60},
        "validate_every": 60,
        "validation_rows": 2,
        "samples": {"count": 2, "num_steps": 2},
    }
    tokenizer = {
        "model": {
            "patch_size": 8,
            "width": 32,
            "heads": 2,
            "head_dim": 16,
            "spatial_layers": "t",
            "decoder_spatial_layers": "t",
            "temporal_layers": 1,
        },
        "data": {"kinds": ["image"], "sizes": [24], "image_batch": 8},
        "steps": 4,
        "workers": {"count": 1},
        "validate_every": 4,
    }
    captions = {"from": "folder", "template": "a {name} square"}
    source = {"kind": "image_folder", "uri": f"{folder}/images", "captions": captions}
    stages = {
        "ingest": {"sources": [source], "splits": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "tokenizer_image": tokenizer,
        "pretokenize": {"image_size": 24, "vocab_size": 300, "workers": 1},
        "train": train,
    }
    config = {
        "name": "squares",
        "storage": str(folder / "store"),
        "tracking": {"system_metrics": False},
        "cluster": {"num_cpus": 4, "object_store_bytes": 100 << 20},
        "stages": stages | more,
    }
    (folder / "squares.yaml").write_text(yaml.safe_dump(config))
    return folder / "squares.yaml"
