"""Saves checkpoints beside the training, which waits only while what it is about to change is read.

Each rank writes what it holds (`shards`) to its own disk and brings it to the checkpoint's folder; when all have,
rank 0 writes the manifest that makes it count (`checkpoint`).

    start       buffers, and what lies on a GPU, are copied to host memory, which is kept for the next save
    training    goes on. Where weights or optimizer states lie in host memory anyway, the next optimizer step waits
                until they are in the file, which a forward and a backward pass mostly hide: a copy of them would be
                most of the training's memory again
    background  write, hash, sync, send; a part's manifest a rank; then rank 0's

One save is under way at a time. What fails is told at the next one, which is tried all the same.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omniloom.infra import disk, integrity, storage
from omniloom.infra.lease import Holder
from omniloom.infra.training import tensors
from omniloom.infra.training.host_copies import HostCopies
from omniloom.infra.training.manifests import FORMAT, manifests
from omniloom.infra.training.shards import Shard, gathered, ranks, shards

if TYPE_CHECKING:
    from omniloom.infra.training.engine import Engine

_PART = "part-{:05d}.json"
_LEFT_SECONDS = 30.0  # for a save whose training has failed; another rank may be gone
_LOOK_AGAIN = 0.5  # seconds at most between looks at whether the other ranks are done


class Saver:
    """Saves `engines` below the URI `state`. `keep` is how many of the last checkpoints stay, `keep_every` of which
    steps they stay for good. `note` is told, on rank 0, what failed."""

    def __init__(
        self,
        state: str,
        engines: dict[str, Engine],
        keep: int,
        keep_every: int | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.parent, self.engines, self.keep, self.keep_every = (
            storage.join(state, "checkpoints"),
            engines,
            keep,
            keep_every,
        )
        self.note = note
        # A worker whose run is gone must not write into the next one's checkpoints; rank 0, which completes them, asks.
        self._holder = Holder(state) if ranks()[0] == 0 else None
        self._copies: HostCopies | None = None  # of what lies on a GPU
        self._save: _Save | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """A training that fails leaves the save that is under way the time to end, without asking the other ranks."""
        if kind and self._save:
            self._save.join(_LEFT_SECONDS)
        if self._copies:
            self._copies.close()

    def prepare(self) -> None:
        """Make room in the background for what a save copies, once the optimizer has its states: after a step."""
        self._make_room(self._held())

    def _held(self) -> dict[str, list[Shard]]:
        return {name: list(shards(engine)) for name, engine in self.engines.items()}

    def _make_room(self, held: dict[str, list[Shard]]) -> None:
        on_gpu = {(name, s.key): s.values for name, some in held.items() for s in some if s.values.is_cuda}
        if on_gpu and not (self._copies and self._copies.fits(on_gpu)):
            if self._copies:
                self._copies.close()
            self._copies = HostCopies(on_gpu)

    def start(self, step: int, position: dict[str, Any]) -> None:
        """Begin the checkpoint after `step` steps; returns when training may go on. Every rank must call it."""
        if error := self.finish():
            self.note(f"checkpoint not saved: {error}; training goes on and tries again")
        self._require_holder()
        rank, size = ranks()
        if rank == 0:
            _clear(self.parent, step)
        frozen = {name: engine.frozen_from for name, engine in self.engines.items() if engine.frozen_from}
        facts = {"step": step, "ranks": size, "position": position, "id": uuid.uuid4().hex}
        facts = gathered(facts | ({"frozen_from": frozen} if frozen else {}))[0]
        self._save = _Save(storage.join(self.parent, f"step-{step:08d}"), facts, self._complete)
        held = self._held()
        self._make_room(held)
        for name, engine in self.engines.items():
            self._save.add(name, [self._stays(name, shard) for shard in held[name]])
            if engine.steps_in_host_memory:
                engine.hold(self._save.read)
        if self._copies:
            torch.cuda.synchronize()
        self._save.start()

    def finish(self) -> BaseException | None:
        """Wait until the save under way is complete, on all ranks; gives what went wrong. Every rank must call it."""
        if (save := self._save) is None:
            return None
        self._save = None
        if ranks()[0]:
            save.join()
        failed = [rank for rank, text in enumerate(gathered(save.failure)) if text]
        if failed and ranks()[0] == 0:
            save.given_up.set()
        save.join()
        told = gathered(save.failure)
        first = next((text for text in [*told[1:], told[0]] if text), None)
        return save.error or (None if first is None else OSError(first))

    def save(self, step: int, position: dict[str, Any]) -> None:
        """Save the checkpoint after `step` steps and return when it is complete, on all ranks; raises what went wrong.
        Every rank must call it."""
        self.start(step, position)
        if error := self.finish():
            raise error

    def _require_holder(self) -> None:
        if self._holder:
            self._holder.require()

    def _stays(self, engine: str, shard: Shard) -> Shard:
        """The numbers in host memory: what lies there is what it is until `hold` ends."""
        if self._copies is None or shard.values.device.type == "cpu":
            return shard
        copy = self._copies[engine, shard.key].copy_(shard.values, non_blocking=True)
        return Shard(shard.key, shard.shape, shard.start, copy)

    def _complete(self, manifest: dict[str, Any], folder: str) -> None:
        """Declare the checkpoint complete, and drop those that are not kept."""
        self._require_holder()
        storage.write_json(folder + ".json", manifest)
        for name in manifests(self.parent)[self.keep :]:
            step = int(name.removeprefix("step-").removesuffix(".json"))
            if self.keep_every is None or step % self.keep_every:
                storage.remove(storage.join(self.parent, name))
                storage.remove(storage.join(self.parent, name.removesuffix(".json")))


class _Save:
    """One checkpoint on its way, in a thread of its own: no collective is called there."""

    def __init__(self, folder: str, facts: dict[str, Any], complete: Callable[[dict[str, Any], str], None]):
        self.folder, self.facts, self.complete = folder, facts, complete
        self.read, self.given_up = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._shards: dict[str, list[Shard]] = {}
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def add(self, engine: str, some: list[Shard]) -> None:
        self._shards[engine] = some

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    @property
    def failure(self) -> str | None:
        """What went wrong, in words that another rank can be told."""
        return None if self.error is None else f"{type(self.error).__name__}: {self.error}"

    def _run(self) -> None:
        try:
            self._write()
            if ranks()[0] == 0:
                self._declare(self._parts())
        except BaseException as error:  # told where the training waits for this save
            self.error = error
        finally:
            self.read.set()

    def _write(self) -> None:
        """This rank's files and their manifest, on the disk when this returns."""
        rank = ranks()[0]
        with self._scratch(rank) as scratch:
            indices = {}
            for engine, some in self._shards.items():
                disk.make_folder(Path(scratch, engine))
                indices[engine] = tensors.write(Path(scratch, engine), f"rank-{rank:05d}", some)
            self._shards.clear()
            self.read.set()
            files = integrity.describe(scratch)
            storage.move_files(scratch, self.folder, [entry["path"] for entry in files])
        part = {"id": self.facts["id"], "files": files, "indices": indices}
        storage.write_json(storage.join(self.folder, _PART.format(rank)), part)

    @contextlib.contextmanager
    def _scratch(self, rank: int):
        """A local folder to write in, beside the checkpoint where that is local."""
        if local := storage.local_path(self.folder):
            scratch = str(local.parent / f"{disk.UNFINISHED}rank-{rank}")
            disk.make_folder(scratch)
            try:
                yield scratch
            finally:
                storage.remove(scratch)
        else:
            with tempfile.TemporaryDirectory(prefix="omniloom-checkpoint-") as scratch:
                yield scratch

    def _parts(self) -> list[dict[str, Any]]:
        """What each rank has written, when all have."""
        found: list[dict[str, Any]] = []
        pause = 0.01
        while len(found) < self.facts["ranks"]:
            part = storage.read_json(storage.join(self.folder, _PART.format(len(found))))
            if part and part["id"] == self.facts["id"]:
                found.append(part)
            elif self.given_up.wait(pause):
                raise OSError("another rank could not write its part")
            pause = min(2 * pause, _LOOK_AGAIN)
        return found

    def _declare(self, found: list[dict[str, Any]]) -> None:
        """The index of each engine, and then the manifest."""
        files = [entry for part in found for entry in part["files"]]
        for engine in found[0]["indices"]:
            index = tensors.merge([part["indices"][engine] for part in found])
            name = f"{engine}/index.json"
            data = tensors.encode(index)
            storage.write_bytes(storage.join(self.folder, name), data)
            files.append({"path": name, **integrity.describe_bytes(data)})
        for rank in range(len(found)):
            storage.remove(storage.join(self.folder, _PART.format(rank)))
        listed = {entry["path"]: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for entry in files}
        manifest = {"format": FORMAT, **self.facts, "written": time.time(), "files": dict(sorted(listed.items()))}
        self.complete(manifest, self.folder)


def _clear(parent: str, step: int) -> None:
    """Remove what no training will go on from: saves that were killed, and checkpoints of this step and later ones, of
    an attempt that came further and was damaged."""
    names = manifests(parent)
    kept = {name.removesuffix(".json") for name in names if name < f"step-{step:08d}"}
    for name in names:
        if name.removesuffix(".json") not in kept:
            storage.remove(storage.join(parent, name))
    for name in {name.partition("/")[0] for name in storage.list_files(parent) if "/" in name} - kept:
        storage.remove(storage.join(parent, name))
    if local := storage.local_path(parent):
        for left in local.glob(f"{disk.UNFINISHED}*"):
            storage.remove(str(left))
