"""References: files that rows and documents name, looked up below the source's root and below its `media_root`.

In: a link as it is written, and the path of the file that it stands in. Out: the content of the file that it means, or
`MediaError` with the reason.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from urllib.parse import unquote

from omniloom.infra import storage
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations.names import normal_path
from omniloom.stages.ingest.files.fetching import fetch
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.kinds.base import SourceKind

_TIMEOUT = 30.0  # seconds that one try to fetch a file over HTTP may take
Place = tuple[Root, str]  # a root and a path below it


class References:
    """What the files of a source whose kind `names_files` may name. A root that is one file is no place to look in.
    `links` maps the beginnings of links to the beginnings of the paths that they stand for."""

    def __init__(self, kind: SourceKind, links: Mapping[str, str] | None = None):
        self.config, self.root, self.media_root, self.links = kind.config, kind.root, kind.media_root, links or {}
        self.max_bytes, self.outside_allowed = kind.limits.max_bytes, bool(kind.config.media_root)
        self.remote = bool(getattr(kind.config, "remote", None))

    def read(self, link: str, document: str) -> bytes:
        """The content of what a link means: of a file, or with the option `remote` of what lies at a URI."""
        try:
            places = self.places(link, document)
        except MediaError as error:
            # Never files of this machine, nor chains such as cache::file:// that lead to them.
            elsewhere = "://" in link and "::" not in link and not storage.is_local(link)
            if error.code != "remote_media" or not self.remote or not elsewhere:
                raise
            return fetch(link, self.max_bytes, _TIMEOUT)
        return self.first(places)

    @property
    def _hint(self) -> str:
        return "; remote: true fetches others" if hasattr(self.config, "remote") else ""

    def first(self, places: list[Place]) -> bytes:
        """The content of the first file that is there. MediaError of the first place where none is."""
        missing: list[MediaError] = []
        for root, path in places:
            try:
                return root.read(path, self.max_bytes)
            except MediaError as error:
                if error.code not in ("missing_file", "not_a_file"):
                    raise
                missing.append(error)
                if other := root.locate(path):
                    if other != path:
                        return root.read(other, self.max_bytes)
        raise missing[0]

    def places(self, link: str, document: str) -> list[Place]:
        """(root, path below it) that a link may mean: `/x` from the root, else from the document's folder; under
        `media_root` likewise. What is written comes before what it means as a URL. MediaError where there is none.
        """
        roots = [root for root in (None if self.root.is_file else self.root, self.media_root) if root]
        whole = link.startswith("/") or "://" in link
        inside = [(root, path) for root in roots if whole and (path := root.relative(link))]
        if not inside and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:|//", link):
            raise MediaError("remote_media", f"{link[:200]}: only files below the source's root are read{self._hint}")
        candidates = [(root, normal_path(path)) for root, path in inside]
        for spelt in dict.fromkeys((link, unquote(link))):
            for root in () if inside else roots:
                for target in self._targets(root, spelt, document):
                    # A backslash parts folders unless a file is called so.
                    candidates += [(root, normal_path(target, parts)) for parts in ("/", "/\\")]
        places = [(root, path) for root, path in dict.fromkeys(candidates) if path is not None]
        if not places:
            beside = f"; name a folder that holds it in {self.root.field}.media_root"
            hint = "" if self.outside_allowed else beside
            raise MediaError("outside_root", f"{link[:200]!a} lies outside the source's root{hint}")
        return places

    def _targets(self, root: Root, link: str, document: str) -> list[str]:
        """Paths that a link may mean in a root, not yet in normal form."""
        for prefix, path in self.links.items():
            if link.startswith(prefix):
                return [path + link[len(prefix) :]]
        if link.startswith("/"):
            return [link.lstrip("/")]
        folder = posixpath.dirname(document)
        if root is self.root:
            return [posixpath.join(folder, link)]
        # The document's own folder as seen from the media root, then the media root.
        near = posixpath.dirname(self.root.path) if self.root.is_file else self.root.path
        own = [posixpath.relpath(near, root.path)] if type(root.fs) is type(self.root.fs) else []
        return [*(posixpath.join(base, folder, link) for base in own), link]
