"""The token shards of one split as files of this machine: in place where they are local, else copied here one by one as
they are asked for, once a machine, into a cache that holds so many bytes. A few are open at a time, whatever their
number.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from omniloom.infra import disk, storage
from omniloom.infra.artifacts import Artifact, files_digest
from omniloom.infra.cache import BoundedCache
from omniloom.infra.errors import OmniLoomError
from omniloom.infra.once import once
from omniloom.stages.data.arrow import map_table
from omniloom.stages.data.index import Index, Lengths, lengths_of, write

T = TypeVar("T")
_OPEN = 512  # maps that a process holds; a system allows 65,530
_FETCHES = 8  # files that come at a time


class Shards:
    """`limit`: bytes of the cache, by default most of what the disk has free."""

    def __init__(self, artifact: Artifact, split: str, limit: int | None = None):
        self.artifact, self.split = artifact, split
        self._entries = {entry["path"]: entry for entry in artifact.manifest["files"]}
        self._local = storage.local_path(artifact.uri)
        self._cache = BoundedCache(f"shards-{identity(artifact)}", limit)
        self._held: OrderedDict[int, object] = OrderedDict()
        self._lock = threading.Lock()  # a step's rows are read in a thread of their own
        self._pool: ThreadPoolExecutor | None = None

    @property
    def remote(self) -> bool:
        return self._local is None

    @property
    def numbers(self) -> list[int]:
        """Of the split's shards, rising."""
        pattern = re.compile(rf"tokens/{re.escape(self.split)}/shard-(\d+)\.arrow")
        return sorted(int(found[1]) for path in self._entries if (found := pattern.fullmatch(path)))

    def file(self, number: int) -> Path:
        """The shard on this machine. Errors: OmniLoomError where what came is not what was written."""
        path = f"tokens/{self.split}/shard-{number:05d}.arrow"
        if self._local:
            return self._local / path
        return self._cache.get(
            path.replace("/", "-"), lambda target: _fetch(self.artifact, self._entries[path], target)
        )

    def open(self, number: int, read: Callable[[Path], T]) -> T:
        """What `read` makes of the shard's file, kept for the next time."""
        with self._lock:
            if number not in self._held:
                while len(self._held) >= _OPEN:
                    self._held.popitem(last=False)
                self._held[number] = read(self.file(number))
            self._held.move_to_end(number)
            return self._held[number]  # type: ignore[return-value]  # one `read` a split

    def ahead(self, numbers: list[int]) -> None:
        """Brings these shards here in the background, where they are remote."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="shards")
        for number in numbers:
            self._pool.submit(self.file, number)  # who needs the shard meets its error


def identity(artifact: Artifact) -> str:
    """What the copies of an artifact's files are named by: what it holds."""
    return files_digest(artifact.manifest["files"])[:32]


def _fetch(artifact: Artifact, entry: dict, target: Path) -> None:
    storage.copy_file(artifact.file(entry["path"]), str(target))
    if storage.sha256(str(target)) != entry["sha256"]:
        raise OmniLoomError(f"{artifact.file(entry['path'])} is not as the manifest says; run `omniloom verify CONFIG`")


def open_index(artifact: Artifact, split: str, shards: Shards) -> Index:
    """The split's index on this machine: the artifact's own, or one that is made here of its shards, once."""
    prefix = f"index/{split}/"
    entries = [entry for entry in artifact.manifest["files"] if entry["path"].startswith(prefix)]
    target = storage.cache_folder() / f"index-{identity(artifact)}" / split
    if not entries:
        return Index(once(target, lambda folder: _make(folder, shards)))
    if local := storage.local_path(artifact.uri):
        return Index(local / prefix)

    def fetch(folder: Path) -> None:
        for entry in entries:
            _fetch(artifact, entry, folder / entry["path"].removeprefix(prefix))

    return Index(once(target, fetch))


def _make(folder: Path, shards: Shards) -> None:
    def lengths() -> Iterator[tuple[int, Lengths]]:
        for number in shards.numbers:
            yield number, lengths_of(map_table(shards.file(number)))

    write(folder, lengths())
    disk.sync_tree(folder)
