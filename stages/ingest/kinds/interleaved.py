"""Documents with pictures between their paragraphs: Markdown, or a manifest of segments."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urldefrag

from pydantic import Field, model_validator

from omniloom.infra.errors import InputError
from omniloom.stages.base import PATH, PLACEMENT, path_to
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import texts
from omniloom.stages.ingest.annotations import fields
from omniloom.stages.ingest.annotations.manifests import Manifest, ManifestFile
from omniloom.stages.ingest.annotations.names import Names
from omniloom.stages.ingest.annotations.references import References
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.listing import SourceFile
from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.files.suffixes import IMAGES
from omniloom.stages.ingest.kinds.base import Contents, SourceKind
from omniloom.stages.ingest.look.glimpse import BY_DOCUMENT, Glimpse, Recognition
from omniloom.stages.ingest.options import FORMER_FIELDS, SourceConfig, refuse
from omniloom.stages.ingest.rejects import Reject

if TYPE_CHECKING:
    from omniloom.stages.ingest.annotations.markdown import Picture

_LINK = re.compile(r"!\[[^\]]*\]\(<?([^)>\s]+)|!\[\[([^\]|]+)")  # a good guess; what counts, the parser says
_PEEKED = 20  # documents that are looked into to recognize the kind


class InterleavedConfig(SourceConfig):
    """Documents with pictures between their paragraphs: Markdown files, or a manifest that lists their segments."""

    CANONICAL = FORMER_FIELDS

    kind: Literal["interleaved"]
    """Documents with pictures between their paragraphs."""
    manifest: str | None = Field(None, json_schema_extra=path_to("source"))
    """JSON lines of {file, segments} in place of Markdown: a path below `uri` (or starting there), or a URI. A segment
    is {type: text, text} or {type: image, file, alt}."""
    group_field: str | None = None
    """The manifest's field that names a group (a person, a book). Records with the same value, in whichever source, lie
    in one split."""
    links: dict[str, str] = Field(default_factory=dict)
    """Beginnings of links and the beginnings of paths below `uri` that they stand for, such as {/assets/: img/}."""
    media_root: str | None = Field(default=None, min_length=1, json_schema_extra=PATH | PLACEMENT)
    """A folder beside or above `uri` in which documents may name images, relative to the document or to this folder. By
    default nothing outside `uri` is read."""

    @model_validator(mode="after")
    def _groups_of_a_manifest(self) -> InterleavedConfig:
        if self.manifest is None:
            refuse(self, ("group_field",), "manifest")
        return self


class Interleaved(SourceKind):
    Config = InterleavedConfig
    suffixes = (".md", ".markdown")
    names_files = True

    @classmethod
    def makes(cls, config: InterleavedConfig) -> str:
        return "document"

    @cached_property
    def manifest(self) -> ManifestFile | None:
        return ManifestFile(self.root, self.config.manifest, f"{self.field}.manifest") if self.config.manifest else None

    @cached_property
    def references(self) -> References:
        return References(self, self.config.links)

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Documents that name pictures which are there: rows of a manifest, or Markdown. All pictures beside those are
        taken for theirs, for which of them are named only reading every document tells."""
        pictures = Names(glimpse.root, glimpse.having(IMAGES))
        if not pictures.paths:
            return None
        for path in glimpse.having((".jsonl", ".ndjson")):
            if recognition := _of_manifest(glimpse, path, pictures):
                return recognition
        documents = glimpse.having(cls.suffixes)
        found: set[str | None] = set()
        for path in documents[:_PEEKED]:
            links = [unquote(link).strip() for pair in _LINK.findall(glimpse.text(path)) for link in pair if link]
            found |= {pictures.find(link, (posixpath.dirname(path), "")) for link in links} - {None}
        return Recognition(_beside(found, pictures, documents), strength=BY_DOCUMENT) if found else None

    # ---- planning ----

    def is_item(self, path: str) -> bool:
        return super().is_item(path) and not (self.manifest and path == self.manifest.below)

    def holds_some(self, contents: Contents) -> bool:
        return self.manifest is not None or super().holds_some(contents)

    def items(self, contents: Contents, notes: Counter) -> Iterable[dict]:
        """One per Markdown file; with a manifest one per row of it, with "segments"."""
        if self.manifest:
            return self._documents(self.manifest.read(), contents.files)
        return super().items(contents, notes)

    def _documents(self, manifest: Manifest, files: Iterable[SourceFile]) -> list[dict]:
        """One item per manifest row {file, segments: [{type, text | file, alt}]}; its part is the manifest's line."""
        sizes = {file.path: file.size for file in files}
        items = []
        for line, row in manifest.rows:
            where = manifest.where(line)
            if isinstance(row, Reject) or not isinstance(row.get("segments"), list):
                bad = row if isinstance(row, Reject) else Reject("bad_manifest_row", "no list 'segments' in it")
                items.append(self.rejected(where, bad))
                continue
            path = row["file"] if isinstance(row.get("file"), str) and encodable(row["file"]) else where
            if not self.selected(path):
                continue
            named = [segment.get("file") for segment in row["segments"] if isinstance(segment, dict)]
            size = sum(sizes.get(name, 0) for name in named if isinstance(name, str))
            item = {"source": self.index, "path": path, "size": size, "segments": row["segments"], "part": line}
            for key, name in (("title", "title"), ("license", "license"), ("group", self.config.group_field)):
                value, problem = fields.short_text(row.get(name) if name else None, name or "")
                if problem:
                    items.append(self.rejected(where, problem))
                elif value:
                    item |= {"meta": {key: value}} if key == "title" else {key: value}
            items.append({**item, **({"synthetic": True} if fields.marked(row) else {})})
        if manifest.rows and not any("segments" in item for item in items) and len(items) == len(manifest.rows):
            reasons = Counter(item["reject"][1] for item in items).most_common(1)
            raise InputError(
                f"{manifest.name}: no row is a document: {reasons[0][0]}; expected {{file, segments: [...]}}; "
                f"the keys are {', '.join(manifest.keys) or 'none'}",
                field=manifest.field,
            )
        return items

    # ---- reading ----

    def read(self, item: dict) -> Iterator[dict]:
        from omniloom.stages.ingest import rows

        if "segments" in item:
            yield rows.document_row([self._segment(segment) for segment in item["segments"]], {})
        else:
            yield rows.document_row(*self._markdown(item))

    def _markdown(self, item: dict) -> tuple[list[dict], dict]:
        """The segments of a Markdown file, and what its front matter says of it."""
        from omniloom.stages.ingest import rows
        from omniloom.stages.ingest.annotations.markdown import Picture, front_matter, split_markdown

        text = texts.decode_text(self.content(item["path"], item["size"]), self.config.encoding)
        front, text = front_matter(text)
        segments = [
            self._picture(part, item["path"]) if isinstance(part, Picture) else rows.text_segment(part)
            for part in split_markdown(text)
        ]
        return segments, {"title": front["title"]} if isinstance(front.get("title"), str) else {}

    def _segment(self, segment: object) -> dict:
        """A segment as a manifest has it."""
        from omniloom.stages.ingest import rows

        if isinstance(segment, dict) and segment.get("type") == "text" and isinstance(segment.get("text"), str):
            if not encodable(segment["text"]):
                raise MediaError("invalid_utf8", "a lone surrogate")
            return rows.text_segment(encoding.no_nul(segment["text"]))
        if isinstance(segment, dict) and segment.get("type") == "image" and isinstance(segment.get("file"), str):
            alt = segment.get("alt")
            return self._image(
                segment["file"], alt if isinstance(alt, str) and encodable(alt) and "\0" not in alt else "", ""
            )
        raise MediaError("bad_segments", f"expected {{type: text, text}} or {{type: image, file}}, got {segment!r:.80}")

    def _picture(self, picture: Picture, document: str) -> dict:
        """A Markdown picture's segment. Its link is a URL: what follows `?` or `#` names no part of a file, unless a
        file is called so; what is embedded may be named from the root.
        """
        link, _ = urldefrag(picture.link)
        names = [link.split("?")[0], picture.link]
        if picture.embedded:
            names += [f"/{name}" for name in names]
        gone = []
        for name in dict.fromkeys(names):
            try:
                return self._image(name, picture.alt, document)
            except MediaError as error:
                if error.code not in ("missing_file", "not_a_file"):
                    raise
                gone.append(error)
        raise gone[0]

    def _image(self, link: str, alt: str, document: str) -> dict:
        """An image segment; an image that cannot be used makes the document unusable, for its text speaks
        of it.
        """
        from omniloom.stages.ingest import rows

        places = self.references.places(link, document)
        try:
            return rows.image_segment(self.references.first(places), alt, self.limits)
        except MediaError as error:
            raise MediaError(error.code, f"image {places[0][1][:200]}: {error.message}") from None


def _of_manifest(glimpse: Glimpse, path: str, pictures: Names) -> Recognition | None:
    """That a file is a manifest of documents whose pictures go by the root, or by the manifest's folder."""
    rows = [row for row in glimpse.rows(path) if isinstance(row.get("segments"), list)]
    files = [part.get("file") for row in rows for part in row["segments"] if isinstance(part, dict)]
    documents = Names(glimpse.root, glimpse.having(Interleaved.suffixes))
    for start in dict.fromkeys(("", posixpath.dirname(path))):
        if found := {pictures.find(name, (start,)) for name in files} - {None}:
            named = {documents.find(row.get("file"), (start,)) for row in rows} - {None}
            texts = _beside(named, documents, ())
            manifest = posixpath.relpath(path, start or ".")
            return Recognition(
                texts | _beside(found, pictures, {path}), {"manifest": manifest}, BY_DOCUMENT, below=start
            )
    return None


def _beside(found: set, names: Names, others: Iterable[str]) -> frozenset[str]:
    """All files of the folders in which some were found, and others."""
    folders = {posixpath.dirname(path) for path in found}
    return frozenset(others) | {path for path in names.paths if posixpath.dirname(path) in folders}
