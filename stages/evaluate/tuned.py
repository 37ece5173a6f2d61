"""A trained model's folder with sampling of its own. In: the model's artifact, and fields of `VisualSampling`. Out: its
folder `model` once more, of the same files but config.json, where `sampling` says how it draws when nothing is chosen.
The artifact of the training stays as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.once import once

_CONFIG = "model/config.json"


def write_tuned(model: Artifact, sampling: Mapping[str, Any], output: str) -> None:
    """`model/` below `output`; weights are shared with the training's where the storage can (a hard link)."""
    names = [entry["path"] for entry in model.manifest["files"] if entry["path"].startswith("model/")]
    storage.share_files(model.uri, output, [name for name in names if name != _CONFIG])
    storage.write_bytes(storage.join(output, _CONFIG), _config(model, sampling))


def local_tuned(model: Artifact, sampling: Mapping[str, Any]) -> Path:
    """The folder on this machine, in its cache."""
    held = hashlib.sha256(f"{model.fingerprint} {json.dumps(sampling, sort_keys=True)}".encode()).hexdigest()

    def make(folder: Path) -> None:
        write_tuned(model, sampling, str(folder))

    return once(storage.cache_folder() / f"tuned-{held[:32]}", make) / "model"


def _config(model: Artifact, sampling: Mapping[str, Any]) -> bytes:
    document = storage.load_json(model.file(*_CONFIG.split("/")))
    return json.dumps({**document, "sampling": dict(sampling)}, indent=2).encode()
