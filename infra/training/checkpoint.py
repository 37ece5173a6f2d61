"""Training checkpoints under a work folder's `state`: one folder a step, published by its own manifest.

    STATE/checkpoints/step-00000500/ENGINE/...   each rank's files, as DeepSpeed writes them
    STATE/checkpoints/step-00000500.json         written last: step, ranks, the loader's position

Every rank writes to its own machine first and uploads its own files, so storage need not be a shared disk.
"""
from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path

import torch.distributed as dist

from infra import storage
from infra.training.engine import Engine


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def latest(state: str) -> dict | None:
    """The manifest of the newest complete checkpoint: {"step", "ranks", "position", "folder"}."""
    folder = storage.join(state, "checkpoints")
    manifests = [name for name in storage.list_files(folder) if name.endswith(".json") and "/" not in name]
    if not manifests:
        return None
    newest = storage.join(folder, max(manifests))
    return {**storage.read_json(newest), "folder": newest.removesuffix(".json")}


def save(state: str, step: int, engines: dict[str, Engine], position: dict, keep: int) -> None:
    """Write the checkpoint after `step` steps and drop all but the newest `keep`. Every rank must call it."""
    folder = storage.join(state, "checkpoints", f"step-{step:08d}")
    local = storage.local_path(folder)
    scratch = local or Path(tempfile.mkdtemp(prefix="omniloom-checkpoint-"))
    scratch.mkdir(parents=True, exist_ok=True)
    for name, engine in engines.items():
        engine.save(str(scratch), tag=name)
    if local is None:
        storage.copy_tree(str(scratch), folder)
        shutil.rmtree(scratch)
    _barrier()
    if _rank() == 0:
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        storage.write_json(folder + ".json", {"step": step, "ranks": ranks, "position": position,
                                              "id": uuid.uuid4().hex})
        parent = storage.join(state, "checkpoints")
        complete = sorted(n for n in storage.list_files(parent) if n.endswith(".json") and "/" not in n)
        for name in complete[:-keep]:
            storage.remove(storage.join(parent, name))
            storage.remove(storage.join(parent, name.removesuffix(".json")))
    _barrier()


def load(manifest: dict, engines: dict[str, Engine]) -> None:
    """Restore every engine from the checkpoint. Every rank must call it."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if manifest["ranks"] != ranks:
        raise ValueError(f"{manifest['folder']}: written by {manifest['ranks']} workers, cannot go on with {ranks}; "
                         f"set workers.count to {manifest['ranks']} or start again with --force")
    # Named by the id, not the place: a step that is trained again is saved at the same place with other content.
    local = storage.localize(manifest["folder"], f"checkpoint-{manifest['id']}")
    for name, engine in engines.items():
        engine.load(str(local), tag=name)
