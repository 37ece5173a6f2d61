"""Sources: what files they hold, which of them are items to ingest, and with which captions.

In: the config's sources. Out: a listing (facts about every file, the input of the fingerprint), and items:
plain dictionaries, one per file to ingest, in a fixed order: {"source", "path", "size"} and, where known,
"caption", "label", "license", "meta", "synthetic", "segments"; or {"source", "path", "reject": [code,
message]} for one that a manifest names and that cannot be used.

Symbolic links are followed only to files inside the source's root. A missing root or one without any file of
the source's kind is an `InputError`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import posixpath
from dataclasses import dataclass
from datetime import datetime

import fsspec

from infra import storage
from infra.errors import InputError
from stages.ingest_config import PLACEHOLDER, Config, Source

fsspec.register_implementation(
    "digits", "stages.digits.DigitsFileSystem"
)  # the demo's corpus; loaded at first use

SUFFIXES = {
    "image_folder": (
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".jp2",
        ".avif",
        ".heic",
        ".heif",
        ".tga",
        ".ico",
    ),
    "video_folder": (
        ".mp4",
        ".m4v",
        ".mov",
        ".webm",
        ".mkv",
        ".avi",
        ".mpg",
        ".mpeg",
        ".gif",
        ".ts",
        ".ogv",
        ".flv",
        ".wmv",
        ".3gp",
    ),
    "text": (".txt", ".text", ".md", ".rst"),
    "jsonl": (".jsonl", ".ndjson"),
    "interleaved": (".md", ".markdown"),
}
# Files that describe media and stand beside them. Anything else in a media folder is tried.
_COMPANIONS = (
    ".txt",
    ".md",
    ".rst",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".html",
    ".htm",
    ".xml",
    ".parquet",
    ".pdf",
    ".py",
    ".sha256",
    ".md5",
    ".srt",
    ".vtt",
)


@dataclass(frozen=True)
class SourceFile:
    """`identity` changes when the content does: an etag, a modification time, or the content's sha256."""

    path: str
    size: int
    identity: str
    reject: tuple[str, str] | None = None


class Root:
    """A source's root, a folder or one file, on any filesystem."""

    def __init__(self, source: Source, index: int):
        self.source, self.index = source, index
        self.field = f"stages.ingest.sources.{index}"
        try:
            self.fs, self.path = storage.filesystem(storage.absolute(source.uri))
        except (ValueError, ImportError) as error:
            raise InputError(f"{source.uri!r} cannot be opened: {error}", field=f"{self.field}.uri") from None
        self.is_file = False

    def uri(self, path: str) -> str:
        """The filesystem's own path of a file below the root."""
        return posixpath.join(self.path, path) if not self.is_file else self.path

    def read(self, path: str) -> bytes:
        return self.fs.cat_file(self.uri(path))

    def escapes(self, path: str) -> bool:
        """True where a symbolic link on the way leads out of the root."""
        if self.is_file or not storage.is_local(self.source.uri):
            return False
        root = os.path.realpath(self.path)
        return os.path.commonpath([root, os.path.realpath(self.uri(path))]) != root

    def files(self) -> list[SourceFile]:
        """Every file below the root, sorted by path; hidden ones (a part begins with a dot) are not looked
        at.
        """
        try:
            info = self.fs.info(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"no such file or folder: {self.source.uri}", field=f"{self.field}.uri"
            ) from None
        except Exception as error:  # each filesystem has its own for refused, unreachable, unauthorised
            message = f"cannot be read: {self.source.uri}: {type(error).__name__}: {error}"
            raise InputError(message, field=f"{self.field}.uri") from error
        if info["type"] == "file":
            self.is_file = True
            return [self._file(posixpath.basename(self.path), info)]
        prefix = self.fs._strip_protocol(self.path).rstrip("/") + "/"
        found = []
        for name, entry in self.fs.find(self.path, detail=True).items():
            path = name.removeprefix(prefix)
            if not any(part.startswith(".") for part in path.split("/")):
                file = self._file(path, entry)
                if file:
                    found.append(file)
        return sorted(found, key=lambda file: file.path)

    def _file(self, path: str, info: dict) -> SourceFile | None:
        reject, size = None, info.get("size") or 0
        if not encodable(path):
            return SourceFile(
                ascii(path), size, _identity(info), ("bad_name", "the file's name is not UTF-8")
            )
        if info.get("islink"):
            if self.escapes(path):
                # The target is none of ours: neither its size nor its time is told.
                return SourceFile(
                    path, 0, "link", ("outside_root", "a symbolic link out of the source's root")
                )
            target = os.path.realpath(self.uri(path))
            if os.path.isdir(target):
                return None  # its files are met where they are
            if not os.path.exists(target):
                return SourceFile(path, 0, "link", ("missing_file", "a symbolic link to nothing"))
            info = self.fs.info(target)
        if info["type"] != "file":
            reject = ("not_a_file", f"is of type {info['type']}")
        identity = _identity(info)
        if self.source.hash == "content" and not reject:
            identity = f"sha256:{hashlib.sha256(self.read(path)).hexdigest()}"
        return SourceFile(path, size, identity, reject)


def _identity(info: dict) -> str:
    for key in (
        "sha256",
        "ETag",
        "etag",
        "md5",
        "mtime",
        "LastModified",
        "last_modified",
        "updated",
        "created",
    ):
        if (value := info.get(key)) is not None:
            return f"{key}:{value.isoformat() if isinstance(value, datetime) else value}"
    return "unknown"


def listing(config: Config) -> list[dict]:
    """[{"source", "path", "size", "identity"}] of what each source offers, in order: cheap, nothing is
    decoded.

    Raises InputError for a root that is missing or holds no file of the source's kind.
    """
    facts = []
    for index, source in enumerate(config.sources):
        root = Root(source, index)
        files = root.files()
        _candidates(root, files)
        for file in files:
            if root.is_file or _relevant(source, file.path):
                facts.append(
                    {"source": index, "path": file.path, "size": file.size, "identity": file.identity}
                )
        if uri := _outside_manifest(source):
            fs, path = storage.filesystem(uri)
            if not fs.exists(path):
                raise InputError(f"no such file: {uri}", field=f"{root.field}.{_manifest_field(source)}")
            facts.append(
                {
                    "source": index,
                    "path": posixpath.basename(path),
                    "size": fs.info(path).get("size"),
                    "identity": _identity(fs.info(path)),
                }
            )
    return facts


def items(config: Config) -> list[dict]:
    """What is to be ingested, in the order of the sources and of the paths within each."""
    found = []
    for index, source in enumerate(config.sources):
        root = Root(source, index)
        files = root.files()
        candidates = _candidates(root, files)
        if source.kind in ("image_folder", "video_folder"):
            found += _media_items(root, files, candidates)
        elif source.kind == "interleaved" and source.manifest:
            found += _manifest_documents(root, files)
        else:
            found += [_item(index, file) for file in candidates]
    return found


def manifest_path(source: Source) -> str | None:
    return source.captions.manifest if source.captions else source.manifest


def _manifest_field(source: Source) -> str:
    return "captions.manifest" if source.captions else "manifest"


def _outside_manifest(source: Source) -> str | None:
    """The manifest's URI where it does not lie below the source's root."""
    manifest = manifest_path(source)
    return manifest if manifest and ("://" in manifest or manifest.startswith("/")) else None


def _item(index: int, file: SourceFile) -> dict:
    item = {"source": index, "path": file.path, "size": file.size}
    return {**item, "reject": list(file.reject)} if file.reject else item


def _selected(source: Source, path: str) -> bool:
    if any(_matches(path, pattern) for pattern in source.exclude):
        return False
    return not source.include or any(_matches(path, pattern) for pattern in source.include)


def _matches(path: str, pattern: str) -> bool:
    """Globs where `*` crosses folders and a leading `**/` may stand for none."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, pattern.removeprefix("**/"))


def _relevant(source: Source, path: str) -> bool:
    """Whether a file can change what is ingested; a document or a JSONL row may name any other file by its
    path.
    """
    refers = source.kind == "interleaved" or source.image_field or source.video_field
    return bool(refers) or path == manifest_path(source) or _is_candidate(source, path)


def _is_candidate(source: Source, path: str) -> bool:
    if path == manifest_path(source) or not _selected(source, path):
        return False
    suffix = posixpath.splitext(path)[1].lower()
    if source.kind in ("image_folder", "video_folder"):
        return bool(source.include) or suffix not in _COMPANIONS
    return bool(source.include) or suffix in SUFFIXES[source.kind]


def _candidates(root: Root, files: list[SourceFile]) -> list[SourceFile]:
    source = root.source
    found = files if root.is_file else [file for file in files if _is_candidate(source, file.path)]
    typical = [
        f
        for f in found
        if root.is_file or source.include or posixpath.splitext(f.path)[1].lower() in SUFFIXES[source.kind]
    ]
    manifest = manifest_path(source)
    if manifest and not _outside_manifest(source) and manifest not in {file.path for file in files}:
        raise InputError(
            f"no such file: {storage.join(source.uri, manifest)}",
            field=f"{root.field}.{_manifest_field(source)}",
        )
    if not typical and not (manifest and (found or source.kind == "interleaved")):
        seen = f"{len(files)} files, none of them" if files else "an empty folder, no file"
        raise InputError(
            f"empty corpus: {source.uri} holds {seen} of kind {source.kind} "
            f"({', '.join(SUFFIXES[source.kind][:5])}, ...)"
            + (f" that include {source.include} selects" if source.include else ""),
            field=f"{root.field}.uri",
        )
    return found


def _media_items(root: Root, files: list[SourceFile], candidates: list[SourceFile]) -> list[dict]:
    """One item per media file with what the manifest or its name says, then what the manifest names in
    vain.
    """
    source, captions = root.source, root.source.captions
    if captions is None:
        return [_item(root.index, file) for file in candidates]
    if captions.from_:
        return [{**_item(root.index, file), **_named(captions, file.path)} for file in candidates]
    present = {file.path for file in files}
    rows, rejected = {}, []
    for number, row in manifest_rows(root, captions.manifest, "captions.manifest"):
        where = f"{posixpath.basename(captions.manifest)}:{number}"
        path = row.get(captions.file_field) if isinstance(row, dict) else None
        if not isinstance(path, str) or not path:
            problem = (
                row
                if isinstance(row, _Bad)
                else _Bad("bad_manifest_row", f"no {captions.file_field!r} in it")
            )
            rejected.append(_rejected(root.index, where, problem.code, problem.message))
        elif (clean := normal_path(path)) is None:
            rejected.append(
                _rejected(root.index, where, "outside_root", f"{path!r} lies outside the source's root")
            )
        elif not _selected(source, clean):
            continue
        elif clean in rows:
            rejected.append(_rejected(root.index, where, "repeated", f"{clean} has a row above"))
        elif clean not in present:
            rejected.append(_rejected(root.index, clean, "missing_file", f"named in {where}"))
        else:
            rows[clean] = _facts(captions, row)
    return [{**_item(root.index, file), **rows.get(file.path, {})} for file in candidates] + rejected


def _named(captions, path: str) -> dict:
    if captions.from_ == "file":
        name = posixpath.splitext(posixpath.basename(path))[0]
    else:
        name = posixpath.basename(posixpath.dirname(path))
    words = " ".join(name.replace("_", " ").replace("-", " ").split())
    return {"caption": captions.template.replace("{name}", words), "label": name} if words else {}


def _facts(captions, row: dict) -> dict:
    """Caption, label and the like out of a manifest row; a value that is no string rejects the item."""
    facts = {}
    for key, field in (
        ("caption", captions.caption_field),
        ("label", captions.label_field),
        ("license", captions.license_field),
    ):
        value = row.get(field) if field else None
        if isinstance(value, int | float) and not isinstance(value, bool) and key == "label":
            value = str(value)  # class numbers are labels too
        if value is None or value == "":
            continue
        if not isinstance(value, str) or not encodable(value):
            return {"reject": ["bad_manifest_row", f"{field}: expected text, got {value!r:.80}"]}
        facts[key] = value
    if meta := {field: row[field] for field in captions.meta_fields if field in row}:
        facts["meta"] = meta
    return {**facts, **({"synthetic": True} if marked(row) else {})}


def _manifest_documents(root: Root, files: list[SourceFile]) -> list[dict]:
    """One item per manifest row {file, segments: [{type, text | file, alt}]}."""
    sizes = {file.path: file.size for file in files}
    found = []
    for number, row in manifest_rows(root, root.source.manifest, "manifest"):
        where = f"{posixpath.basename(root.source.manifest)}:{number}"
        if isinstance(row, _Bad) or not isinstance(row.get("segments"), list):
            problem = row if isinstance(row, _Bad) else _Bad("bad_manifest_row", "no list 'segments' in it")
            found.append(_rejected(root.index, where, problem.code, problem.message))
            continue
        path = row["file"] if isinstance(row.get("file"), str) and encodable(row["file"]) else where
        if _selected(root.source, path):
            size = sum(
                sizes.get(s.get("file"), 0)
                for s in row["segments"]
                if isinstance(s, dict) and isinstance(s.get("file"), str)
            )
            item = {"source": root.index, "path": path, "size": size, "segments": row["segments"]}
            if isinstance(row.get("title"), str) and encodable(row["title"]):
                item["meta"] = {"title": row["title"]}
            if isinstance(row.get("license"), str) and encodable(row["license"]):
                item["license"] = row["license"]
            found.append({**item, **({"synthetic": True} if marked(row) else {})})
    return found


@dataclass(frozen=True)
class _Bad:
    code: str
    message: str


def manifest_rows(root: Root, manifest: str, field: str) -> list[tuple[int, dict | _Bad]]:
    """(line number, row) of a JSONL manifest; a line that is no JSON object comes as `_Bad`."""
    try:
        outside = _outside_manifest(root.source)
        data = (
            storage.read_bytes(outside) if outside else root.fs.cat_file(posixpath.join(root.path, manifest))
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(
            f"no such file: {storage.join(root.source.uri, manifest)}", field=f"{root.field}.{field}"
        ) from None
    rows = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                rows.append((number, parse_row(line)))
            except ValueError as error:
                rows.append((number, _Bad("invalid_json", str(error))))
    return rows


def parse_row(line: bytes) -> dict:
    """A JSON object out of one line; ValueError with the reason for anything else."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    return row


def fill(template: str, row: dict) -> str:
    """`template` with each {field} replaced by the row's value; ValueError where one is missing or no
    scalar.
    """

    def value(match) -> str:
        found = row.get(match.group(1))
        if not isinstance(found, str | int | float) or isinstance(found, bool):
            raise ValueError(f"{match.group(1)}: expected text or a number, got {found!r:.80}")
        return str(found)

    return PLACEHOLDER.sub(value, template)


def marked(row: dict) -> bool:
    """Whether a manifest row says that a model of this project made the sample."""
    return row.get("synthetic") is True or "omniloom" in row


def encodable(text: str) -> bool:
    """False for lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def normal_path(path: str) -> str | None:
    """A path below the root in normal form; None for one that leaves it (`..`, absolute, NUL, no UTF-8)."""
    clean = posixpath.normpath(path.replace("\\", "/"))
    if (
        clean.startswith("/")
        or clean in ("..", ".")
        or clean.startswith("../")
        or "\0" in clean
        or not encodable(clean)
    ):
        return None
    return clean


def _rejected(index: int, path: str, code: str, message: str) -> dict:
    return {
        "source": index,
        "path": path if encodable(path) else ascii(path),
        "size": 0,
        "reject": [code, message],
    }
