"""Readers: one file of a source into records, or into the reason why not.

In: an item of `stages.sources` and where to read it. Out: record rows (see `stages.records`; `split` and
`source` are set by ingest) and rejects {"path", "part", "code", "message"}. An item gives at least one of
either; a text file gives a row per chunk, a JSONL file a row or a reject per line.

Reason codes beyond those of `stages.media`: missing_file, outside_root, not_a_file, bad_name, unreadable,
invalid_utf8, not_text, invalid_json, missing_field, bad_manifest_row, repeated, remote_media, bad_segments.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote, urldefrag

from stages import media, sources
from stages.ingest_config import Config
from stages.limits import Limits
from stages.markdown import Picture, front_matter, split_markdown
from stages.media import MediaError

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")


class Reader:
    """Reads the items of one source."""

    def __init__(self, config: Config, index: int):
        self.config, self.source, self.limits = config, config.sources[index], config.limits
        self.root = sources.Root(self.source, index)
        self.root.is_file = self.root.fs.isfile(self.root.path)

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
        except MediaError as error:
            yield _reject(path, error.code, error.message)

    def _completed(self, row: dict, item: dict) -> dict:
        row.setdefault("part", 0)
        row["path"] = item["path"]
        row["license"] = item.get("license") or self.source.license
        row["synthetic"] = bool(row.get("synthetic") or item.get("synthetic") or self.source.synthetic)
        row["meta"] = json.dumps(
            {**item.get("meta", {}), **row.get("meta", {})}, ensure_ascii=False, default=str
        )
        return row

    def _bytes(self, path: str, size: int | None = None, limit: int | None = None) -> bytes:
        """The content of a file below the root; the size is looked at before anything is read."""
        limit = limit or self.limits.max_bytes
        if self.root.escapes(path):
            raise MediaError("outside_root", f"{path} leads out of the source's root")
        try:
            size = size if size is not None else self.root.fs.size(self.root.uri(path))
            if size and size > limit:
                raise MediaError("too_large", f"{size} bytes, at most {limit}")
            return self.root.read(path)
        except FileNotFoundError:
            raise MediaError("missing_file", f"{path} is not there") from None
        except (IsADirectoryError, NotADirectoryError):
            raise MediaError("not_a_file", f"{path} is no file") from None
        except PermissionError as error:
            raise MediaError("unreadable", " ".join(str(error).split())) from None

    # ---- images and videos ----

    def _media(self, item: dict) -> Iterator[dict]:
        kind = "image" if self.source.kind == "image_folder" else "video"
        data = self._bytes(item["path"], item["size"])
        yield {
            **media_row(kind, data, self.limits),
            "caption": item.get("caption"),
            "label": item.get("label"),
        }

    # ---- text ----

    def _text(self, item: dict) -> Iterator[dict]:
        text = decode_text(self._bytes(item["path"], item["size"]))
        for part, chunk in enumerate(chunk_text(text, self.config.chunk_chars)):
            yield text_row(chunk, part)

    # ---- JSONL ----

    def _jsonl(self, item: dict) -> Iterator[dict]:
        empty = True
        for number, line in enumerate(self._lines(item["path"])):
            if line is not None and not line.strip():
                continue
            empty = False
            part = number + 1
            try:
                if line is None:
                    raise MediaError("too_large", f"a line of more than {self.limits.max_bytes} bytes")
                yield {**self._jsonl_row(line, item), "part": part}
            except MediaError as error:
                yield _reject(item["path"], error.code, error.message, part)
        if empty:
            raise MediaError("empty", "no line in the file")

    def _lines(self, path: str) -> Iterator[bytes | None]:
        """Lines without their ends, read as a stream; None for one beyond `max_bytes`."""
        if self.root.escapes(path):
            raise MediaError("outside_root", f"{path} leads out of the source's root")
        with self.root.fs.open(self.root.uri(path), "rb") as file:
            first, skipping = True, False
            while line := file.readline(self.limits.max_bytes + 1):
                complete = line.endswith(b"\n")
                if first:
                    line, first = line.removeprefix(b"\xef\xbb\xbf"), False
                if not complete and len(line) > self.limits.max_bytes:
                    if not skipping:
                        yield None
                    skipping = True
                elif not skipping:
                    yield line
                else:
                    skipping = not complete

    def _jsonl_row(self, line: bytes, item: dict) -> dict:
        source = self.source
        try:
            row = sources.parse_row(line)
        except ValueError as error:
            raise MediaError("invalid_json", str(error)) from None
        synthetic = sources.marked(row)
        if media_field := source.image_field or source.video_field:
            caption, label = (
                _optional_text(row, field) for field in (source.caption_field, source.label_field)
            )
            path = _text_field(row, media_field)
            data = self._bytes(self._resolve(path, item["path"], {}))
            found = media_row("image" if source.image_field else "video", data, self.limits)
            found |= {"caption": caption, "label": label, "meta": {"file": path}}
        else:
            try:
                text = (
                    sources.fill(source.template, row)
                    if source.template
                    else _text_field(row, source.text_field)
                )
            except ValueError as error:
                raise MediaError("missing_field", str(error)) from None
            if not sources.encodable(text):
                raise MediaError("invalid_utf8", "a lone surrogate")
            if not text.strip():
                raise MediaError("empty", "no text in it")
            found = text_row(text, 0)
        found["synthetic"] = found.get("synthetic", False) or synthetic
        return found

    # ---- documents ----

    def _document(self, item: dict) -> Iterator[dict]:
        meta = {}
        if "segments" in item:
            segments = [self._manifest_segment(segment) for segment in item["segments"]]
        else:
            text = decode_text(self._bytes(item["path"], item["size"]))
            fields, text = front_matter(text)
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
        content = [
            [s["type"], s["text"] if s["type"] == "text" else hashlib.sha256(s["media"]).hexdigest()]
            for s in segments
        ]
        yield {
            "id": hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest(),
            "kind": "document",
            "format": "markdown",
            "segments": segments,
            "synthetic": marked,
            "meta": meta,
        }

    def _manifest_segment(self, segment) -> dict:
        if (
            isinstance(segment, dict)
            and segment.get("type") == "text"
            and isinstance(segment.get("text"), str)
        ):
            if not sources.encodable(segment["text"]):
                raise MediaError("invalid_utf8", "a lone surrogate")
            return _text_segment(segment["text"])
        if (
            isinstance(segment, dict)
            and segment.get("type") == "image"
            and isinstance(segment.get("file"), str)
        ):
            alt = segment.get("alt")
            return self._image(
                segment["file"], alt if isinstance(alt, str) and sources.encodable(alt) else "", ""
            )
        raise MediaError(
            "bad_segments", f"expected {{type: text, text}} or {{type: image, file}}, got {segment!r:.80}"
        )

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
        path = self._resolve(link, document, self.source.links)
        try:
            data = self._bytes(path)
            info = media.probe_image(data, self.limits)
        except MediaError as error:
            raise MediaError(error.code, f"image {path}: {error.message}") from None
        return {
            "type": "image",
            "text": alt,
            "media": data,
            "format": info.format,
            "width": info.width,
            "height": info.height,
            "marked": info.mark is not None,
        }

    def _resolve(self, link: str, document: str, links: dict[str, str]) -> str:
        """The path below the root that a link means: `/x` from the root, else from the document's folder."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", link):
            raise MediaError("remote_media", f"{link[:200]}: only files below the source's root are read")
        for prefix, path in links.items():
            if link.startswith(prefix):
                target = path + unquote(link[len(prefix) :])
                break
        else:
            folder = "" if link.startswith("/") else posixpath.dirname(document)
            target = posixpath.join(folder, unquote(link).lstrip("/"))
        clean = sources.normal_path(target)
        if clean is None:
            raise MediaError("outside_root", f"{link[:200]!a} lies outside the source's root")
        return clean


def media_row(kind: str, data: bytes, limits: Limits) -> dict:
    """The row of an image's or a video's bytes, once they have been decoded whole. Raises MediaError."""
    row = {"id": hashlib.sha256(data).hexdigest(), "kind": kind, "media": data}
    if kind == "image":
        info = media.probe_image(data, limits)
        row["frames"] = 1
    else:
        info = media.probe_video(data, limits)
        row |= {
            "frames": info.frames,
            "fps": info.fps,
            "duration": info.duration,
            "meta": {"codec": info.codec},
        }
    return row | {
        "format": info.format,
        "width": info.width,
        "height": info.height,
        "synthetic": info.mark is not None,
    }


def text_row(text: str, part: int) -> dict:
    return {
        "id": hashlib.sha256(text.encode()).hexdigest(),
        "kind": "text",
        "format": "text",
        "text": text,
        "part": part,
    }


def decode_text(data: bytes) -> str:
    """UTF-8 without its byte order mark, line ends as one line feed. Raises MediaError."""
    if not data:
        raise MediaError("empty", "the file has no bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaError("invalid_utf8", f"at byte {error.start} of {len(data)}") from None
    if "\0" in text:
        raise MediaError("not_text", f"a NUL character at {text.index(chr(0))}")
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


def _optional_text(row: dict, field: str | None) -> str | None:
    value = row.get(field) if field else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is not None and (not isinstance(value, str) or not sources.encodable(value)):
        raise MediaError("missing_field", f"{field}: expected text, got {value!a:.80}")
    return value or None


def _reject(path: str, code: str, message: str, part: int = 0) -> dict:
    return {"path": path, "part": part, "code": code, "message": message}
