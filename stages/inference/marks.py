"""Marks: what a file that a model made says of its making, which ingest knows it by and people can make it again by.

In: a model's folder or URI, a request. Out: a JSON object for `encode_png` and `encode_mp4`:
    {"model": "omniloom", "prompt", "seed", "fingerprint" of the training, "weights": sha256 of its file, "settings"}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.artifacts import MANIFEST

if TYPE_CHECKING:
    from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling

_WEIGHTS = "unified.safetensors"
_SWEPT = "sampling.json"  # of an evaluation that has the model's folder: it names the training


def identity(model: str) -> dict[str, str]:
    """{"fingerprint", "weights"} of the model in a train artifact or model folder; a folder that lies in no artifact
    has weights alone."""
    uri = storage.absolute(model)
    for root, path in ((uri, f"model/{_WEIGHTS}"), (uri.rpartition("/")[0], f"{uri.rpartition('/')[2]}/{_WEIGHTS}")):
        if manifest := storage.read_json(storage.join(root, MANIFEST)):
            known = {entry["path"]: entry["sha256"] for entry in manifest.get("files", ())}
            if path in known and (fingerprint := manifest.get("fingerprint")):
                told = storage.load_json(storage.join(root, _SWEPT)) if _SWEPT in known else {}
                return {"fingerprint": told.get("model", fingerprint), "weights": known[path]}
    for candidate in (uri, storage.join(uri, "model")):
        if storage.exists(weights := storage.join(candidate, _WEIGHTS)):
            return {"weights": storage.sha256(weights)}
    return {}


def mark(
    made_by: Mapping[str, str], prompt: str, seed: int, settings: TextSampling | VisualSampling | None = None
) -> dict[str, Any]:
    chosen = {"settings": _plain(settings)} if settings is not None else {}
    return {"model": "omniloom", "prompt": prompt, "seed": seed, **made_by, **chosen}


def _plain(settings: TextSampling | VisualSampling) -> dict[str, Any]:
    """The choices of sampling that were made or filled in, as literals."""
    from omniloom.models.unified.generation.sampling import knobs

    found = {name: getattr(settings, name) for name in knobs(type(settings))}
    return {
        name: list(value)
        if isinstance(value, tuple)
        else value
        if isinstance(value, bool | int | float | str)
        else Path(value).name
        if isinstance(value, Path)
        else type(value).__name__
        for name, value in found.items()
        if value is not None
    }
