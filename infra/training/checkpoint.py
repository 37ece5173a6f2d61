"""Training checkpoints under a work folder's `state`: one folder a step, published by its own manifest.

    STATE/checkpoints/step-00000500/ENGINE/...   each rank's files, as DeepSpeed writes them
    STATE/checkpoints/step-00000500.json         written last, when the files are on the disk: step, ranks, how each
                                                 engine was divided, the loader's position, {file: bytes, sha256}

Every rank writes to its own machine first and uploads its own files, so storage need not be a shared disk. Training
goes on from the newest checkpoint whose files are what its manifest says.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.infra import disk, integrity, storage
from omniloom.infra.artifacts import some
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.training.config import EngineConfig

if TYPE_CHECKING:
    from omniloom.infra.training.engine import Engine

# What each ZeRO stage divides over the ranks: files of one are read by those that divide alike. Offloading changes
# nothing in them.
_DIVIDED = {0: "whole", 1: "optimizer", 2: "optimizer", 3: "weights"}


def _ranks() -> tuple[int, int]:
    """(this rank, how many there are)."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _gathered(value: Any) -> list:
    """The value of every rank, in their order. Every rank must call it."""
    import torch.distributed as dist

    if _ranks()[1] == 1:
        return [value]
    values = [None] * _ranks()[1]
    dist.all_gather_object(values, value)
    return values


def _manifests(folder: str) -> list[str]:
    """Names of the manifests, newest first."""
    return sorted((n for n in storage.list_files(folder) if n.endswith(".json") and "/" not in n), reverse=True)


def newest_step(state: str) -> int:
    """The step of the newest checkpoint, whatever its files hold; 0 where there is none."""
    return max((int(name[5:-5]) for name in _manifests(storage.join(state, "checkpoints"))), default=0)


def _read(uri: str) -> tuple[dict | None, str]:
    """A checkpoint as its manifest says, with "folder"; or what is wrong with it, "" where nothing is. Reads no content
    of its files."""
    try:
        manifest = storage.read_json(uri)
    except InputError as error:
        return None, f"{uri}: {error.message.partition(';')[0]}"
    if manifest is None:
        return None, f"{uri} is gone"
    folder = uri.removesuffix(".json")
    if bad := integrity.wrong_sizes(folder, _files(manifest)):
        return None, f"{folder}: {some(bad)} missing or of another size"
    return {**manifest, "folder": folder}, ""


def _files(manifest: dict) -> list[dict]:
    """None in a checkpoint of a version that listed none, which is taken as it is."""
    return [{"path": path, **facts} for path, facts in manifest.get("files", {}).items()]


def _hashes_differ(found: dict) -> str | None:
    """What is wrong with the content of a checkpoint; each rank reads its share. Every rank must call it."""
    rank, ranks = _ranks()
    local = _local(found)
    bad = integrity.wrong(str(local), _files(found)[rank::ranks], remembered=False)
    bad = [path for paths in _gathered(bad) for path in paths]
    if bad and not storage.is_local(found["folder"]):
        storage.remove(str(local))  # perhaps it is the copy alone
    return f"{found['folder']}: {some(bad)} not as written" if bad else None


def _local(found: dict) -> Path:
    # Named by the id, not the place: a step that is trained again is saved at the same place with other content.
    return storage.localize(found["folder"], f"checkpoint-{found['id']}")


def latest(state: str, say: Callable[[str], None] = lambda text: None) -> dict | None:
    """The newest checkpoint that is intact: {"step", "ranks", "position", "folder", ...}; None where there is none at
    all. `say` is told in words what is damaged. OmniLoomError where all are: a start from step 0 would hide the loss.
    Every rank must call it."""
    folder, damaged = storage.join(state, "checkpoints"), []
    for name in _gathered(_manifests(folder))[0]:  # as the first rank sees them
        found, wrong = _gathered(_read(storage.join(folder, name)))[0]
        if wrong := wrong or _hashes_differ(found):
            damaged.append(wrong)
            continue
        for text in damaged:
            say(f"damaged checkpoint: {text}; training goes on from {found['folder']}")
        return found
    if damaged:
        raise _all_damaged(folder, damaged)
    return None


def _all_damaged(folder: str, damaged: list[str]) -> OmniLoomError:
    return OmniLoomError(
        f"{folder}: no checkpoint is intact ({'; '.join(damaged)}); put the files back from a copy, "
        "or start this stage from its first step with --force"
    )


def check(state: str, ranks: int, engines: dict[str, EngineConfig]) -> None:
    """That a training with so many ranks and these engines can go on from what is in `state`: InputError naming the
    setting, OmniLoomError where every checkpoint is damaged. Reads no content, so that it is asked before
    workers start; hashes are compared when they load."""
    folder, damaged = storage.join(state, "checkpoints"), []
    for name in _manifests(folder):
        found, wrong = _read(storage.join(folder, name))
        if found:
            _check_fit(found, ranks, engines)
            return
        damaged.append(wrong)
    if damaged:
        raise _all_damaged(folder, damaged)


def _check_fit(found: dict, ranks: int, engines: dict[str, EngineConfig]) -> None:
    """InputError where the checkpoint was written by a training that was divided otherwise."""
    if found["ranks"] != ranks:
        raise InputError(
            f"{found['folder']}: written by {found['ranks']} workers, cannot go on with {ranks}; set workers.count to "
            f"{found['ranks']} or start again with --force",
            field="workers.count",
        )
    for name, config in engines.items():
        before, now = found.get("engines", {}).get(name, {}).get("zero_stage"), config.zero_stage
        if before is not None and _DIVIDED[before] != _DIVIDED[now]:
            raise InputError(
                f"{found['folder']}: written under ZeRO stage {before}, cannot go on under {now}; set it back to "
                "finish this training, or start again with --force",
                field="engine.zero_stage",
            )


def save(state: str, step: int, engines: dict[str, Engine], position: dict, keep: int) -> None:
    """Write the checkpoint after `step` steps and drop all but the newest `keep`. Every rank must call it."""
    parent = storage.join(state, "checkpoints")
    folder = storage.join(parent, f"step-{step:08d}")
    rank, ranks = _ranks()
    if rank == 0:
        _clear(parent, step)
    _gathered(None)
    files: dict[str, dict] = {}
    for part in _gathered(_write(folder, engines, rank)):
        files |= part
    if rank == 0:
        divided = {
            name: {"zero_stage": engine.config.zero_stage, "offload": engine.config.offload}
            for name, engine in engines.items()
        }
        storage.write_json(
            folder + ".json",
            {
                "step": step,
                "ranks": ranks,
                "engines": divided,
                "position": position,
                "id": uuid.uuid4().hex,
                "files": dict(sorted(files.items())),
            },
        )
        for name in _manifests(parent)[keep:]:
            storage.remove(storage.join(parent, name))
            storage.remove(storage.join(parent, name.removesuffix(".json")))
    _gathered(None)


def _clear(parent: str, step: int) -> None:
    """Remove what no training will go on from: saves that were killed, and checkpoints of this step and later ones, of
    an attempt that came further and was damaged."""
    names = _manifests(parent)
    kept = {name.removesuffix(".json") for name in names if name < f"step-{step:08d}"}
    for name in names:
        if name.removesuffix(".json") not in kept:
            storage.remove(storage.join(parent, name))
    for name in {name.partition("/")[0] for name in storage.list_files(parent) if "/" in name} - kept:
        storage.remove(storage.join(parent, name))
    if local := storage.local_path(parent):
        for left in local.glob(f"{disk.UNFINISHED}*"):
            storage.remove(str(left))


def _write(folder: str, engines: dict[str, Engine], rank: int) -> dict[str, dict]:
    """Save this rank's part and bring it to the folder, on the disk when this returns; its files' sizes and hashes."""
    with contextlib.ExitStack() as stack:
        if local := storage.local_path(folder):
            scratch = str(local.parent / f"{disk.UNFINISHED}rank-{rank}")
            disk.make_folder(scratch)
            stack.callback(storage.remove, scratch)
        else:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="omniloom-checkpoint-"))
        for name, engine in engines.items():
            engine.save(scratch, tag=name)
        files = integrity.describe(scratch)
        storage.move_files(scratch, folder, [entry["path"] for entry in files])
    return {entry.pop("path"): entry for entry in files}


def load(found: dict, engines: dict[str, Engine]) -> None:
    """Restore every engine from the checkpoint that `latest` gave. Every rank must call it."""
    _check_fit(found, _ranks()[1], {name: engine.config for name, engine in engines.items()})
    local = _local(found)
    for name, engine in engines.items():
        engine.load(str(local), tag=name)
