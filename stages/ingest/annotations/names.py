"""Names: what manifests, rows and documents call files, and the paths below a root that they mean."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable
from typing import Any

from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.files.roots import Root


class Names:
    """The files below a root, found by what a manifest calls them."""

    def __init__(self, root: Root, paths: Iterable[str]):
        self.root, self.paths = root, set(paths)
        self.composed: dict[str, list[str]] = {}
        for path in self.paths:
            self.composed.setdefault(unicodedata.normalize("NFC", path), []).append(path)

    def find(self, name: Any, starts: Iterable[str] = ("",)) -> str | None:
        """The path below the root of a name that is absolute or relative to one of the folders `starts`; None where
        there is no such file. Accents may be composed otherwise, and folders parted by backslashes.
        """
        if not isinstance(name, str) or not name:
            return None
        inside = self.root.relative(name) if name.startswith("/") or "://" in name else None
        for spelt in (inside,) if inside else (name, name.replace("\\", "/")):
            for start in dict.fromkeys(starts):
                path = normal_path(posixpath.join(start, spelt.lstrip("/")), "/")
                if path in self.paths:
                    return path
                if path and len(matches := self.composed.get(unicodedata.normalize("NFC", path), [])) == 1:
                    return matches[0]
        return None


def normal_path(path: str, separators: str = "/\\") -> str | None:
    """A path below the root in normal form; None for one that leaves it (`..`, absolute, NUL, no UTF-8)."""
    clean = posixpath.normpath(path.replace("\\", "/") if "\\" in separators else path)
    if clean.startswith(("/", "../")) or clean in ("..", ".") or "\0" in clean or not encodable(clean):
        return None
    return clean
