"""Training checkpoints under a work folder's `state`: one folder a step, published by its own manifest.

    STATE/checkpoints/step-00000500/ENGINE/rank-RANK-NUMBER.safetensors   ranges of tensors, by parameter (`shards`)
    STATE/checkpoints/step-00000500/ENGINE/index.json                     which file holds which range (`tensors`)
    STATE/checkpoints/step-00000500.json      written last, when the files are on the disk: step, how many ranks wrote
                                              it, the loader's position, {file: bytes, sha256}; of an engine whose
                                              frozen weights are not in it, a digest of what they are read from

Nothing in it depends on how the training was divided: it goes on under any number of ranks, ZeRO stage, offload or
accumulation, from the newest checkpoint whose files are what its manifest says. Every rank writes its own files and
reads the ranges that it needs, so storage need not be a shared disk. `saving` writes checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import some
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.training.manifests import FORMAT, manifests

if TYPE_CHECKING:
    from omniloom.infra.training.engine import Engine


def newest_step(state: str) -> int:
    """The step of the newest checkpoint, whatever its files hold; 0 where there is none."""
    return max((int(name[5:-5]) for name in manifests(storage.join(state, "checkpoints"))), default=0)


def _read(uri: str) -> tuple[dict | None, str]:
    """A checkpoint as its manifest says, with "folder"; or what is wrong with it, "" where nothing is. Reads no content
    of its files. InputError where it was written by a version that kept it otherwise."""
    try:
        manifest = storage.read_json(uri)
    except InputError as error:
        return None, f"{uri}: {error.message.partition(';')[0]}"
    if manifest is None:
        return None, f"{uri} is gone"
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"expected a checkpoint of format {FORMAT}, got {manifest.get('format', 1)}, which another version of "
            "OmniLoom wrote; finish this training with that version, or start this stage from its first step with "
            "--force",
            file=uri,
        )
    folder = uri.removesuffix(".json")
    if bad := integrity.wrong_sizes(folder, _files(manifest)):
        return None, f"{folder}: {some(bad)} missing or of another size"
    return {**manifest, "folder": folder}, ""


def _files(manifest: dict) -> list[dict]:
    return [{"path": path, **facts} for path, facts in manifest["files"].items()]


def _hashes_differ(found: dict) -> str:
    """The fault in the content of a checkpoint, "" for none; each rank reads its share. Every rank must call it."""
    from omniloom.infra.training.shards import gathered, ranks

    rank, size = ranks()
    bad = integrity.wrong(found["folder"], _files(found)[rank::size], remembered=False)
    bad = [path for paths in gathered(bad) for path in paths]
    return f"{found['folder']}: {some(bad)} not as written" if bad else ""


def latest(state: str, say: Callable[[str], None] = lambda text: None, at_most: int | None = None) -> dict | None:
    """The newest checkpoint that is intact, of `at_most` so many steps where that is given: {"step", "ranks",
    "position", "folder", ...}; None where there is none at all. `say` is told in words what is damaged. OmniLoomError
    where all are: a start from step 0 would hide the loss. Every rank must call it."""
    from omniloom.infra.training.shards import gathered

    folder, damaged = storage.join(state, "checkpoints"), []
    for name in gathered(manifests(folder))[0]:  # as the first rank sees them
        if at_most is not None and int(name.removeprefix("step-").removesuffix(".json")) > at_most:
            continue
        found, wrong = gathered(_read(storage.join(folder, name)))[0]
        if found and (differ := _hashes_differ(found)):
            found, wrong = None, differ
        if found is None:
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


def newest_facts(state: str) -> dict | None:
    """What the newest manifest of a checkpoint says, whatever its files hold; None where there is none."""
    folder = storage.join(state, "checkpoints")
    return next((storage.read_json(storage.join(folder, name)) for name in manifests(folder)), None)


def check(state: str) -> None:
    """Check that training can go on from what is in `state`: InputError where that is of another version, OmniLoomError
    where every checkpoint is damaged. Reads no content, so that it is asked before workers start; hashes are compared
    when they load."""
    folder, damaged = storage.join(state, "checkpoints"), []
    for name in manifests(folder):
        found, wrong = _read(storage.join(folder, name))
        if found:
            return
        damaged.append(wrong)
    if damaged:
        raise _all_damaged(folder, damaged)


def save(state: str, step: int, engines: dict[str, Engine], position: dict[str, Any], keep: int) -> None:
    """Write the checkpoint after `step` steps, complete when this returns, and drop all but the newest `keep`. Every
    rank must call it."""
    from omniloom.infra.training.saving import Saver

    Saver(state, engines, keep).save(step, position)


def load(found: dict, engines: dict[str, Engine]) -> None:
    """Restore every engine from the checkpoint that `latest` gave. Every rank must call it; OmniLoomError where it
    holds another model's."""
    from omniloom.infra.training.restoring import restore
    from omniloom.infra.training.tensors import Tensors

    for name, engine in engines.items():
        folder = storage.join(found["folder"], name)
        if (frozen := found.get("frozen_from", {}).get(name)) != engine.frozen_from:
            raise OmniLoomError(
                f"{found['folder']}: was trained on frozen weights of {frozen or 'its own'}, the training that goes on "
                f"has those of {engine.frozen_from or 'its own'}; put back what it started from"
            )
        if (index := storage.read_json(storage.join(folder, "index.json"))) is None:
            raise OmniLoomError(f"{found['folder']}: holds no checkpoint of {name!r}")
        with Tensors(folder, index) as tensors:
            restore(engine, tensors)
