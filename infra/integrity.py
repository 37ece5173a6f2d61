"""Whether files are what a list of {path, bytes, sha256} says they are.

Sizes cost one listing. A hash costs reading the file, so that on local disks it is taken once per file and machine:
what was found right is remembered with the file's size, inode and times, which any later write changes. A disk that
loses bits by itself changes none of them; `remembered=False` reads everything again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from omniloom.infra import storage


def describe(folder: str, known: Mapping[str, dict] = MappingProxyType({})) -> list[dict]:
    """{path, bytes, sha256} of every file below the folder, sorted by path. `known` has {bytes, sha256} by path of
    files that need not be read again."""
    sizes = storage.list_files(folder)
    found = {path: known[path]["sha256"] for path, size in sizes.items() if known.get(path, {}).get("bytes") == size}
    found |= _hashes(folder, {path: size for path, size in sizes.items() if path not in found})
    return [{"path": path, "bytes": size, "sha256": found[path]} for path, size in sizes.items()]


def describe_bytes(data: bytes) -> dict:
    """{bytes, sha256} of a file of this content."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _hashes(folder: str, sizes: Mapping[str, int | None]) -> dict[str, str]:
    """sha256 by path; the sizes are those that the files are known to have."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing runs outside of Python's lock
        found = pool.map(lambda path: storage.sha256(storage.join(folder, path), sizes[path]), sizes)
        return dict(zip(sizes, found, strict=True))


def wrong_sizes(folder: str, files: list[dict]) -> list[str]:
    """Paths that are missing below the folder, or of another size."""
    present = storage.list_files(folder)
    return [entry["path"] for entry in files if present.get(entry["path"]) != entry["bytes"]]


def wrong(folder: str, files: list[dict], remembered: bool = True) -> list[str]:
    """Paths that are missing, of another size or of another sha256, in the order of `files`."""
    bad = set(wrong_sizes(folder, files))
    present = [entry for entry in files if entry["path"] not in bad]
    facts = _facts(folder, present)  # before the content is read: what is written meanwhile has others
    known = _recall(folder) if remembered else {}
    unsure = [entry for entry in present if not facts or known.get(entry["path"]) != facts[entry["path"]]]
    found = _hashes(folder, {entry["path"]: entry["bytes"] for entry in unsure})
    bad |= {entry["path"] for entry in unsure if found[entry["path"]] != entry["sha256"]}
    if unsure:
        _remember(folder, {path: known for path, known in facts.items() if path not in bad})
    return [entry["path"] for entry in files if entry["path"] in bad]


def remember(folder: str, files: list[dict]) -> None:
    """Record that these files are right, known from the hash that was taken when they were written."""
    _remember(folder, _facts(folder, files))


def hashes(folder: str, paths: list[str], versions: dict[str, list]) -> dict[str, str]:
    """sha256 by path. What was read on this machine and not written since is not read again: a local file is known by
    its size, inode and times, a remote one by what `versions` says of it (a list of literals), if anything."""
    states = {**_states(folder, paths), **versions}  # before the content is read
    known = _recall(folder)
    unread = [path for path in paths if path not in states or known.get(path, [None])[1:] != states[path]]
    read = _hashes(folder, {path: versions[path][0] if path in versions else None for path in unread})
    # A file that was written within the clock's grain could be written again without another time.
    settled = {path for path in read if path in states and (path in versions or time.time_ns() - states[path][3] > 2e9)}
    if settled:
        _remember(folder, known | {path: [read[path], *states[path]] for path in settled})
    return {path: read.get(path) or known[path][0] for path in paths}


def _facts(folder: str, files: list[dict]) -> dict[str, list]:
    """By path the wanted sha256 and what any write to the local file changes; empty where the folder is not local."""
    states = _states(folder, [entry["path"] for entry in files])
    return {entry["path"]: [entry["sha256"], *states[entry["path"]]] for entry in files if entry["path"] in states}


def _states(folder: str, paths: list[str]) -> dict[str, list]:
    """By path what any write to the local file changes; empty where the folder is not local."""
    if (root := storage.local_path(folder)) is None:
        return {}
    found = {path: os.stat(root / path) for path in paths}
    return {path: [s.st_size, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for path, s in found.items()}


def _remember(folder: str, facts: dict[str, list]) -> None:
    """Nothing depends on it: what is forgotten is read again."""
    if facts:
        with contextlib.suppress(OSError):
            storage.write_bytes(str(_memory(folder)), json.dumps(facts).encode())


def _recall(folder: str) -> dict[str, list]:
    try:
        found = json.loads(_memory(folder).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _memory(folder: str) -> Path:
    return storage.cache_folder() / "verified" / f"{hashlib.sha256(folder.encode()).hexdigest()[:32]}.json"
