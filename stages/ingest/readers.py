"""Readers: one file of a source into records, or into the reason why not.

In: an item of `stages.ingest.sources` and where to read it. Out: record rows (see `stages.data.records`; `split` and
`source` are set by ingest) with what `ingest.splits` asks for, and rejects {"path", "part", "code", "message"}. An item
gives at least one of either; a text file gives a row per chunk, a JSONL file a row or a reject per line.

No exception leaves `Reader.read`: what fails costs its item, line or caption, and is told.

Reason codes beyond those of `stages.data.media.decode`: missing_file, outside_root, not_a_file, bad_name, unreadable,
invalid_utf8, invalid_encoding, not_text, invalid_json, missing_field, bad_manifest_row, bad_caption, repeated,
remote_media, bad_segments, failed (an error that nobody foresaw, by its name).
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote, urldefrag

from omniloom.stages.data.media import decode as media
from omniloom.stages.data.media.decode import MediaError
from omniloom.stages.data.media.identity import text_identity, text_sketch
from omniloom.stages.data.media.limits import Limits, one_line
from omniloom.stages.ingest import encoding, manifests, sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.markdown import Picture, front_matter, split_markdown
from omniloom.stages.ingest.roots import Root, encodable, patiently, unreadable
from omniloom.stages.ingest.splits import group_key

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")


class Reader:
    """Reads the items of one source."""

    def __init__(self, config: Config, index: int):
        self.config, self.source, self.limits = config, config.sources[index], config.limits
        self.root = Root(self.source, index)
        self.root.is_file = patiently(lambda: self.root.fs.isfile(self.root.path))
        self.media_root = sources.media_root(self.root)

    def read(self, item: dict) -> Iterator[dict]:
        """Rows and rejects of one item, told apart by the key `code` of a reject. Raises for no content
        whatever.
        """
        path = item["path"]
        if "reject" in item:
            yield _reject(path, *item["reject"])
            return
        reader = {
            "image_folder": self._media,
            "video_folder": self._media,
            "text": self._text,
            "jsonl": self._jsonl,
            "interleaved": self._document,
        }[self.source.kind]
        try:
            for row in reader(item):
                yield self._completed(row, item) if "code" not in row else row
        except Exception as error:
            yield _refused(path, error, item.get("part", 0))

    def _completed(self, row: dict, item: dict) -> dict:
        row.setdefault("part", item.get("part", 0))
        row["path"] = item["path"]
        if group := item.get("group") or row.get("group"):
            row["group"] = group_key("named", group)
        elif row["kind"] in ("text", "document") and self.source.kind != "jsonl":
            row["group"] = group_key("file", item["path"])
        else:
            row["group"] = None
        row["license"] = item.get("license") or self.source.license
        row["synthetic"] = bool(row.get("synthetic") or item.get("synthetic") or self.source.synthetic)
        meta = {**item.get("meta", {}), **row.get("meta", {})}
        row["meta"] = json.dumps(meta, ensure_ascii=False, default=str)
        if not encodable(row["meta"]):
            row["meta"] = json.dumps(meta, default=str)
        return row

    def _bytes(self, path: str, size: int | None = None) -> bytes:
        return self.root.read(path, self.limits.max_bytes, size)

    def _decoded(self, item: dict) -> str:
        return decode_text(self._bytes(item["path"], item["size"]), self.source.encoding)

    # ---- images and videos ----

    def _media(self, item: dict) -> Iterator[dict]:
        kind = "image" if self.source.kind == "image_folder" else "video"
        row = media_row(kind, self._bytes(item["path"], item["size"]), self.limits)
        captions = item.get("captions", [])
        if sidecar := item.get("sidecar"):
            try:
                text = encoding.no_nul(encoding.decode(self._bytes(sidecar), self.source.encoding))
                captions = [text.replace("\r\n", "\n").strip()]
            except Exception as error:
                reason = _refused(sidecar, error)
                yield {**reason, "code": "bad_caption", "message": f"{reason['code']}: {reason['message']}"}
        yield {**row, **_captioned(captions), "label": item.get("label")}

    # ---- text ----

    def _text(self, item: dict) -> Iterator[dict]:
        for part, chunk in enumerate(chunk_text(self._decoded(item), self.config.chunk_chars)):
            yield text_row(chunk, part)

    # ---- JSONL ----

    def _jsonl(self, item: dict) -> Iterator[dict]:
        part, empty = 0, True
        blocks = self.root.blocks(item["path"])
        try:
            for part, (line, line_encoding) in enumerate(
                encoding.lines(blocks, self.limits.max_bytes, self.source.encoding), 1
            ):
                if line is None or line.strip():
                    empty = False
                    yield from self._jsonl_line(line, line_encoding, item, part)
        except Exception as error:  # of the file: what came before it stays
            yield _refused(item["path"], error, part + 1 if part else 0)
            return
        if empty:
            raise MediaError("empty", "no line in the file")

    def _jsonl_line(self, line: bytes | None, line_encoding: str, item: dict, part: int) -> Iterator[dict]:
        """The row of a line, or the reject; and a reject for each value of a row that goes without it."""
        try:
            if line is None:
                raise MediaError("too_large", f"a line of more than {self.limits.max_bytes} bytes")
            row, bad = self._jsonl_row(line, line_encoding, item)
        except Exception as error:
            yield _refused(item["path"], error, part)
            return
        yield {**row, "part": part}
        for problem in bad:
            yield _reject(item["path"], problem.code, problem.message, part)

    def _jsonl_row(self, line: bytes, line_encoding: str, item: dict) -> tuple[dict, list[manifests.Bad]]:
        source = self.source
        row = manifests.parse_row(line, line_encoding)
        bad: list[manifests.Bad] = []
        if media_field := source.image_field or source.video_field:
            name = _text_field(row, media_field)
            data = self._first(self._places(name, item["path"]))
            found = media_row("image" if source.image_field else "video", data, self.limits)
            said, bad = self._said(row)
            found |= {**said, "meta": {**found.get("meta", {}), "file": name}}
        else:
            try:
                text = manifests.fill(source.template, row) if source.template else _text_field(row, source.text_field)
            except ValueError as error:
                raise MediaError("missing_field", str(error)) from None
            if not encodable(text):
                raise MediaError("invalid_utf8", "a lone surrogate")
            if not encoding.no_nul(text).strip():
                raise MediaError("empty", "no text in it")
            found = text_row(text, 0)
        found["group"], problem = manifests.short_text(
            row.get(source.group_field) if source.group_field else None, source.group_field or ""
        )
        bad += [problem] if problem else []
        found["synthetic"] = found.get("synthetic", False) or manifests.marked(row)
        return found, bad

    def _said(self, row: dict) -> tuple[dict, list[manifests.Bad]]:
        """Captions and label of a JSONL row about a picture, and what of them cannot be used."""
        name, problem = manifests.row_caption(row, self.source.caption_field)
        captions, bad = manifests.caption_texts(row.get(name) if name else None, name or "")
        field = self.source.label_field
        label, wrong = manifests.short_text(row.get(field) if field else None, field or "")
        return {**_captioned(captions), "label": label}, [*bad, *(p for p in (problem, wrong) if p)]

    # ---- documents ----

    def _document(self, item: dict) -> Iterator[dict]:
        meta = {}
        if "segments" in item:
            segments = [self._manifest_segment(segment) for segment in item["segments"]]
        else:
            fields, text = front_matter(self._decoded(item))
            if isinstance(fields.get("title"), str):
                meta["title"] = fields["title"]
            segments = [
                self._picture(part, item["path"]) if isinstance(part, Picture) else _text_segment(part)
                for part in split_markdown(text)
            ]
        marked = any(segment.pop("marked", False) for segment in segments)
        segments = [s for s in segments if s["type"] == "image" or s["text"].strip()]
        if not segments:
            raise MediaError("empty", "neither text nor images")
        shown = [segment.pop("shown", None) for segment in segments]
        content = [[s["type"], look[0] if look else s["text"]] for s, look in zip(segments, shown, strict=True)]
        pictures = dict(look for look in shown if look)
        yield {
            "id": hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest(),
            "kind": "document",
            "format": "markdown",
            "pictures": list(pictures),
            "looks": list(pictures.values()),
            "sketch": text_sketch("\n".join(s["text"] for s in segments if s["type"] == "text")),
            "segments": segments,
            "synthetic": marked,
            "meta": meta,
        }

    def _manifest_segment(self, segment) -> dict:
        if isinstance(segment, dict) and segment.get("type") == "text" and isinstance(segment.get("text"), str):
            if not encodable(segment["text"]):
                raise MediaError("invalid_utf8", "a lone surrogate")
            return _text_segment(encoding.no_nul(segment["text"]))
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
        places = self._places(link, document)
        try:
            data = self._first(places)
            info = media.probe_image(data, self.limits)
        except MediaError as error:
            raise MediaError(error.code, f"image {places[0][1][:200]}: {error.message}") from None
        return {
            "type": "image",
            "text": alt,
            "media": data,
            "format": info.format,
            "width": info.width,
            "height": info.height,
            "marked": info.mark is not None,
            "shown": (info.identity, info.look),
        }

    # ---- files that rows and documents name ----

    def _first(self, places: list[tuple[Root, str]]) -> bytes:
        """The content of the first file that is there. MediaError of the first place where none is."""
        missing = None
        for root, path in places:
            try:
                return root.read(path, self.limits.max_bytes)
            except MediaError as error:
                if error.code not in ("missing_file", "not_a_file"):
                    raise
                missing = missing or error
                if found := root.locate(path):
                    if found != path:
                        return root.read(found, self.limits.max_bytes)
        raise missing

    def _places(self, link: str, document: str) -> list[tuple[Root, str]]:
        """(root, path below it) that a link may mean: `/x` from the root, else from the document's folder; under
        `media_root` likewise. What is written comes before what it means as a URL. MediaError where there is none.
        """
        roots = [root for root in (None if self.root.is_file else self.root, self.media_root) if root]
        whole = link.startswith("/") or "://" in link
        inside = [(root, path) for root in roots if whole and (path := root.relative(link))]
        if not inside and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:|//", link):
            raise MediaError("remote_media", f"{link[:200]}: only files below the source's root are read")
        found = [(root, manifests.normal_path(path)) for root, path in inside]
        for spelt in dict.fromkeys((link, unquote(link))):
            for root in () if inside else roots:
                for target in self._targets(root, spelt, document):
                    # A backslash parts folders unless a file is called so.
                    found += [(root, manifests.normal_path(target, parts)) for parts in ("/", "/\\")]
        places = [place for place in dict.fromkeys(found) if place[1] is not None]
        if not places:
            hint = (
                ""
                if self.source.media_root or self.source.kind not in ("jsonl", "interleaved")
                else (f"; name a folder that holds it in {self.root.field}.media_root")
            )
            raise MediaError("outside_root", f"{link[:200]!a} lies outside the source's root{hint}")
        return places

    def _targets(self, root: Root, link: str, document: str) -> list[str]:
        """Paths that a link may mean in a root, not yet in normal form."""
        for prefix, path in self.source.links.items():
            if link.startswith(prefix):
                return [path + link[len(prefix) :]]
        if link.startswith("/"):
            return [link.lstrip("/")]
        folder = posixpath.dirname(document)
        if root is self.root:
            return [posixpath.join(folder, link)]
        # The document's own folder as seen from the media root, then the media root.
        own = posixpath.dirname(self.root.path) if self.root.is_file else self.root.path
        own = [posixpath.relpath(own, root.path)] if type(root.fs) is type(self.root.fs) else []
        return [*(posixpath.join(base, folder, link) for base in own), link]


def media_row(kind: str, data: bytes, limits: Limits) -> dict:
    """The row of an image's or a video's bytes, once they have been decoded whole. Raises MediaError."""
    row = {"kind": kind, "media": data}
    if kind == "image":
        info = media.probe_image(data, limits)
        row["frames"] = 1
        if (pages := _pages(data, info.format)) > 1:
            row["meta"] = {"pages": pages}
    else:
        info = media.probe_video(data, limits)
        row |= {
            "frames": info.frames,
            "fps": info.fps,
            "duration": info.duration,
            "meta": {"codec": info.codec},
        }
    return row | {
        "id": info.identity,
        "pictures": [info.identity],
        "looks": [info.look],
        "sketch": None,
        "format": info.format,
        "width": info.width,
        "height": info.height,
        "synthetic": info.mark is not None,
    }


def _pages(data: bytes, format: str) -> int:
    """How many pages or frames the file of a picture holds, of which the first is taken."""
    from PIL import Image

    if format not in ("tiff", "gif", "webp", "png"):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # what decoded by other means; only a note would be lost
        return 1


def text_row(text: str, part: int) -> dict:
    return {
        "id": text_identity(text),
        "pictures": [],
        "looks": [],
        "sketch": text_sketch(text),
        "kind": "text",
        "format": "text",
        "text": text,
        "part": part,
    }


def _captioned(captions: list[str]) -> dict:
    """The columns `caption`, the first, and `captions`, all of them."""
    captions = [caption for caption in captions if caption]
    return {"caption": captions[0] if captions else None, "captions": captions}


def decode_text(data: bytes, name: str = "utf-8") -> str:
    """Text of the encoding `name`, without its byte order mark, line ends as one line feed. Raises MediaError."""
    if not data:
        raise MediaError("empty", "the file has no bytes")
    text = encoding.no_nul(encoding.decode(data, name))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise MediaError("empty", "nothing but white space")
    return text


def chunk_text(text: str, chunk_chars: int) -> list[str]:
    """Cut at the ends of paragraphs into pieces of about `chunk_chars`; joined they are `text` again.

    A piece ends with the paragraph that brings it to `chunk_chars`. A paragraph that would bring it to twice
    that is cut itself: after a line, else after a space, else anywhere. No piece is blank unless the whole
    text is.
    """
    chunks, start, at = [], 0, 0
    ends = [match.end() for match in _PARAGRAPH_END.finditer(text)]
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    for end in ends:
        while end - start >= 2 * chunk_chars:
            if at - start >= chunk_chars // 2 and at > start:
                cut = at
            else:
                window = text[start : start + chunk_chars]
                cut = start + (window.rfind("\n") + 1 or window.rfind(" ") + 1 or chunk_chars)
            chunks.append(text[start:cut])
            start = at = cut
        at = end
        if end - start >= chunk_chars:
            chunks.append(text[start:end])
            start = end
    if start < len(text):
        chunks.append(text[start:])
    return _without_blank(chunks)


def _without_blank(chunks: list[str]) -> list[str]:
    """Blank pieces joined to the one before, or after where there is none before."""
    out: list[str] = []
    for chunk in chunks:
        if out and (not chunk.strip() or not out[-1].strip()):
            out[-1] += chunk
        else:
            out.append(chunk)
    return out


def _text_segment(text: str) -> dict:
    return {"type": "text", "text": text.strip("\n")}


def _text_field(row: dict, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise MediaError("missing_field", f"{field}: expected text, got {value!r:.80}")
    return value


def _reject(path: str, code: str, message: str, part: int = 0) -> dict:
    return {"path": _written(path), "part": part, "code": code, "message": _written(message)}


def _refused(path: str, error: Exception, part: int = 0) -> dict:
    """The reject that an error means."""
    if isinstance(error, OSError):
        error = unreadable(error, path)
    if isinstance(error, MediaError):
        return _reject(path, error.code, error.message, part)
    return _reject(path, "failed", f"{type(error).__name__}: {one_line(error)}", part)


def _written(text: str) -> str:
    return text if encodable(text) else ascii(text)
