"""How a corpus has grown since something learnt from it. In: artifacts of ingest, and listings. Out: shares.

An artifact of ingest keeps, for the next one, under `resume/`:

    files.npy      of each file of the listing that it read 64 bits of its place, 64 of its identity, and its bytes
    lineage.json   {"records": {kind: count}, "generations": [{"fingerprint", "records": {kind: count}, "kept": ...}]}:
                   of each artifact that it was built on, directly or through others, how many records that one had and
                   how many of them are still there
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from omniloom.infra import npy, storage
from omniloom.infra.artifacts import RESUME, Artifact

if TYPE_CHECKING:
    import numpy as np

FILES, LINEAGE = f"{RESUME}files.npy", f"{RESUME}lineage.json"


@dataclass(frozen=True)
class FileChanges:
    """Between two listings: how many files were added, removed and changed; the bytes of those added and changed; and
    of how many files that is."""

    added: int
    removed: int
    changed: int
    bytes: int
    files: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        """`+1,204 files, -3, 2 changed`."""
        counts = {f"+{self.added:,}": self.added, f"-{self.removed:,}": self.removed, f"{self.changed:,}": self.changed}
        first, *rest = [(text, count) for text, count in counts.items() if count] or [("+0", 0)]
        unit = " file" if first[1] == 1 else " files"
        words = [first[0] + unit, *(text for text, _ in rest)]
        return ", ".join(words) + (" changed" if self.changed else "")


@dataclass(frozen=True)
class Growth:
    """Since a corpus was learnt from: the share of what it is now that is new, and of what it was that is gone.
    `expected`: by the files' listing, before they are read."""

    new: float
    gone: float
    expected: bool = False

    def __str__(self) -> str:
        gone = f", {self.gone:.1%} of what it learnt from is gone" if self.gone else ""
        return f"{self.new:.1%} of its corpus is new to it{gone}" + (", by the listing" if self.expected else "")


def file_table(facts: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Facts of a listing as they are kept, sorted by place."""
    import numpy as np

    digests, sizes = bytearray(), array("Q")
    for fact in facts:
        digests += _digest(f"{fact['source']} {fact['path']}")
        digests += _digest(fact["identity"])
        sizes.append(fact.get("size") or 0)
    table = np.empty(len(sizes), [("path", "<u8"), ("identity", "<u8"), ("bytes", "<u8")])
    table["path"], table["identity"] = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    table["bytes"] = sizes
    table.sort(order="path")
    return table


def place(source: int, path: str) -> int:
    """What stands for a file's place in a table."""
    return int.from_bytes(_digest(f"{source} {path}"), "little")


_SHORT = blake2b(digest_size=8)  # to copy it takes half of what a new one does


def _digest(text: str) -> bytes:
    digest = _SHORT.copy()
    digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.digest()


def to_bytes(table: np.ndarray) -> bytes:
    import numpy as np

    sink = io.BytesIO()
    np.save(sink, table)
    return sink.getvalue()


def known_files(artifact: Artifact) -> np.ndarray | None:
    """The listing that the artifact was read from; None where it kept none."""
    try:
        return npy.load(io.BytesIO(storage.read_bytes(artifact.file(FILES))))
    except (FileNotFoundError, ValueError):
        return None


def compare(old: np.ndarray, new: np.ndarray) -> FileChanges:
    import numpy as np

    place = np.searchsorted(old["path"], new["path"])
    place[place == len(old)] = 0
    known = old["path"][place] == new["path"] if len(old) else np.zeros(len(new), bool)
    changed = known.copy()
    changed[known] = old["identity"][place[known]] != new["identity"][known]
    fresh = changed | ~known
    both = int(known.sum())
    return FileChanges(len(new) - both, len(old) - both, int(changed.sum()), int(new["bytes"][fresh].sum()), len(new))


def since(artifact: Artifact, fingerprint: str, kinds: Collection[str] = ()) -> Growth | None:
    """The growth of an artifact of ingest since another one, that it is or was built on; of records of these kinds, by
    default of all. None where it was not built on that."""
    if artifact.fingerprint == fingerprint:
        return Growth(0.0, 0.0)
    known = storage.read_json(artifact.file(LINEAGE)) or {}
    for generation in known.get("generations", ()):
        if generation["fingerprint"] == fingerprint:
            now, then, kept = (
                sum(count for kind, count in counts.items() if not kinds or kind in kinds)
                for counts in (known["records"], generation["records"], generation["kept"])
            )
            return Growth(1 - kept / now if now else 0.0, 1 - kept / then if then else 0.0)
    return None


def expected(before: Growth, changes: FileChanges) -> Growth:
    """The growth of what is to be built on an artifact that has itself grown, by the changes of files since."""
    stay = changes.files - changes.added - changes.changed
    was = stay + changes.changed + changes.removed
    kept_of_new = stay / changes.files if changes.files else 1.0
    kept_of_old = stay / was if was else 1.0
    return Growth(1 - (1 - before.new) * kept_of_new, 1 - (1 - before.gone) * kept_of_old, expected=True)
