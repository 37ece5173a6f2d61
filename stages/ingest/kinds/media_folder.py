"""Folders of media files, each a record, with captions from a manifest, from texts beside them or from their names."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property

from omniloom.stages.ingest.annotations import captions as captioning
from omniloom.stages.ingest.annotations import fields, manifests
from omniloom.stages.ingest.annotations.manifests import ManifestFile
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.listing import SourceFile
from omniloom.stages.ingest.files.suffixes import COMPANIONS, SIDECARS, suffix
from omniloom.stages.ingest.formats.json_rows import parse_row
from omniloom.stages.ingest.kinds.base import Contents, SourceKind
from omniloom.stages.ingest.look.glimpse import Glimpse, Recognition
from omniloom.stages.ingest.options import FORMER_FIELDS, Captions, SourceConfig
from omniloom.stages.ingest.rejects import Reject

_CHECKED_BYTES = 4 << 20  # of a manifest that is checked when the sources are listed; a larger one when they are read


class MediaFolderConfig(SourceConfig):
    CANONICAL = FORMER_FIELDS

    captions: Captions | None = None
    """Where captions and labels come from. By default metadata.jsonl or metadata.csv where one lies in the folder, else
    there are none."""


class MediaFolder(SourceKind):
    config: MediaFolderConfig
    medium: str  # image or video

    @classmethod
    def makes(cls, config: MediaFolderConfig) -> str:
        return cls.medium

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Media files, with the captions that lie beside them: metadata.jsonl or .csv, another manifest, texts."""
        paths = frozenset(glimpse.having(cls.suffixes))
        return captioning.recognize(glimpse, paths) if paths else None

    # ---- planning ----

    @cached_property
    def manifest(self) -> ManifestFile | None:
        if self.config.captions is None or self.config.captions.manifest is None:
            return None
        return ManifestFile(self.root, self.config.captions.manifest, f"{self.field}.captions.manifest")

    def is_item(self, path: str) -> bool:
        if not self.selected(path) or (self.manifest and path == self.manifest.below):
            return False
        return bool(self.config.include) or suffix(path) not in COMPANIONS

    def matters(self, path: str) -> bool:
        if super().matters(path):
            return True
        if self.config.captions:
            return self.config.captions.from_ == "sidecar" and suffix(path) in SIDECARS
        return posixpath.basename(path) in manifests.METADATA

    def holds_some(self, contents: Contents) -> bool:
        return super().holds_some(contents) or bool(self.manifest and contents.of_kind)

    def check(self, contents: Contents) -> None:
        if self._quick_to_read(contents.files):
            self.items(contents, Counter())  # raises where the captions do not fit

    def _quick_to_read(self, files: Iterable[SourceFile]) -> bool:
        """Whether there are captions that can be looked at on every plan: what they take to read is small."""
        if self.manifest:
            return self.manifest.size(files) <= _CHECKED_BYTES
        if self.config.captions:
            return self.config.captions.from_ == "sidecar"
        metadata = set(captioning.metadata(self, files))
        return bool(metadata) and sum(file.size for file in files if file.path in metadata) <= _CHECKED_BYTES

    def items(self, contents: Contents, notes: Counter) -> Iterable[dict]:
        """One per file, with "captions", "label", "license", "group", "meta", "synthetic" and "sidecar" as far as they
        are known; then what manifests say that cannot be used."""
        return captioning.with_captions(self, contents, notes)

    # ---- reading ----

    def read(self, item: dict) -> Iterator[dict | Reject]:
        from omniloom.stages.ingest import rows

        captions: list[str] | None = None
        for row in self.media(item):
            if isinstance(row, Reject):
                yield row
                continue
            if captions is None:
                captions = yield from self._captions(item)
            yield {**row, **rows.captioned(captions), "label": item.get("label")}

    def media(self, item: dict) -> Iterator[dict | Reject]:
        """What of a file becomes records."""
        from omniloom.stages.ingest import rows

        yield rows.media_row(self.medium, self.content(item["path"], item["size"]), self.limits)

    def _captions(self, item: dict) -> Generator[Reject, None, list[str]]:
        """Those that the file has; what is wrong with them."""
        captions = item.get("captions", [])
        if sidecar := item.get("sidecar"):
            try:
                captions, problems = self._said(sidecar)
                yield from (Reject(problem.code, problem.message, path=sidecar) for problem in problems)
            except Exception as error:
                reason = Reject.of(error, sidecar)
                yield Reject("bad_caption", f"{reason.code}: {reason.message}", path=sidecar)
        return captions

    def _said(self, sidecar: str) -> tuple[list[str], list[Reject]]:
        """The captions in a text, which is one, or in a JSON object, by their usual names."""
        data = self.content(sidecar)
        if suffix(sidecar) != ".json":
            return [encoding.no_nul(encoding.decode(data, self.config.encoding)).replace("\r\n", "\n").strip()], []
        known, skip = encoding.by_mark(data, self.config.encoding)
        row = parse_row(data[skip:], known)
        name, ambiguous = fields.row_caption(row)
        captions, problems = fields.caption_texts(row.get(name) if name else None, name or "")
        return captions, [*problems, *([ambiguous] if ambiguous else [])]
