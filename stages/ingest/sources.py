"""Sources: which of their files are items to ingest, and with which captions.

In: the config's sources. Out: a listing (facts about every file, the input of the fingerprint), and items: plain
dictionaries in a fixed order, one per file to ingest: {"source", "path", "size"} and, where known, "captions", "label",
"group", "license", "meta", "synthetic", "segments", "part", "sidecar"; or {"source", "path", "reject": [code,
message]} for what cannot be used.

A missing root, one without any file of the source's kind, and a manifest that does not fit it are `InputError`s.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections import Counter

from fsspec.core import split_protocol

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import manifests
from omniloom.stages.ingest.config import Config, Source
from omniloom.stages.ingest.manifests import Bad, Manifest, Names
from omniloom.stages.ingest.roots import Root, SourceFile, encodable, hidden

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
    ".caption",
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
SIDECARS = (".txt", ".caption")
_MEDIA = ("image_folder", "video_folder")
_CHECKED_BYTES = 4 << 20  # of a manifest that is checked when the sources are listed; a larger one when they are read


def listing(config: Config) -> list[dict]:
    """[{"source", "path", "size", "identity"}] of what each source offers, in order: cheap, nothing is decoded.

    Raises InputError for a root that is missing or holds no file of the source's kind, and for a small manifest that
    does not fit its folder.
    """
    facts = []
    for index, source in enumerate(config.sources):
        root = Root(source, index)
        files = root.files()
        candidates = _candidates(root, files)
        uri, below = _place(root) if manifest_of(source) else (None, None)
        found = [
            (file.path, file.size, file.identity) for file in files if root.is_file or _relevant(source, file, below)
        ]
        if uri and below is None:
            found.append(_outside_fact(root, uri))
        if media := media_root(root):
            found += [(f"media_root/{file.path}", file.size, file.identity) for file in media.files()]
        facts += [{"source": index, "path": path, "size": size, "identity": identity} for path, size, identity in found]
        if source.kind in _MEDIA and _checked(root, files):
            _media_items(root, files, candidates, Counter())  # raises where the captions do not fit
    return facts


def items(config: Config, notes: Counter | None = None) -> list[dict]:
    """What is to be ingested, in the order of the sources and of the paths within each.

    `notes` counts what a person should be told: metadata_captions, metadata_unread, sidecars_unread.
    """
    found: list[dict] = []
    notes = Counter() if notes is None else notes
    for index, source in enumerate(config.sources):
        root = Root(source, index)
        files = root.files()
        candidates = _candidates(root, files)
        if source.kind in _MEDIA:
            found += _media_items(root, files, candidates, notes)
        elif source.kind == "interleaved" and source.manifest:
            found += _manifest_documents(root, files)
        else:
            found += [_item(index, file) for file in candidates]
    return found


def media_root(root: Root) -> Root | None:
    """Where rows and documents may name files besides the root: the source's `media_root`, or the folder of the one
    file that the source is.
    """
    if root.source.media_root:
        return Root(root.source, root.index, root.source.media_root, "media_root")
    if root.is_file and _refers(root.source):
        return Root(root.source, root.index, root.place[: root.place.rindex("/") + 1])
    return None


def _refers(source: Source) -> bool:
    """Whether what the source's files say may name other files."""
    return bool(source.kind == "interleaved" or source.image_field or source.video_field)


# ---- manifests ----


def manifest_of(source: Source) -> str | None:
    return source.captions.manifest if source.captions else source.manifest


def _manifest_field(root: Root) -> str:
    of_media = "captions.manifest" if root.source.captions else "captions"
    return f"{root.field}.{of_media if root.source.kind in _MEDIA else 'manifest'}"


def _place(root: Root) -> tuple[str, str | None]:
    """The URI of a source's manifest, and its path below the root where it lies among the files there."""
    manifest = manifest_of(root.source)
    if "://" in manifest or manifest.startswith(("/", "~")):
        uri = storage.absolute(manifest)
    else:
        folder = posixpath.dirname(root.place) if root.is_file else root.place
        protocol, path = split_protocol(storage.join(folder, manifest))
        path = posixpath.normpath(path)
        uri = f"{protocol}://{path}" if protocol else path
    below = None if root.is_file else root.relative(uri)
    return uri, None if below is None or hidden(below) else below


def _outside_fact(root: Root, uri: str) -> tuple[str, int, str]:
    outside = Root(root.source, root.index, uri, _manifest_field(root).removeprefix(f"{root.field}."))
    found = outside.files()
    if not outside.is_file:
        raise InputError(f"is a folder, expected a file: {uri}", field=outside.uri_field)
    return found[0].path, found[0].size, found[0].identity


def _checked(root: Root, files: list[SourceFile]) -> bool:
    """Whether a source has captions that can be looked at when it is listed: what they take to read is small."""
    sizes = {file.path: file.size for file in files}
    if manifest_of(root.source):
        uri, below = _place(root)
        return (sizes.get(below, 0) if below else _outside_fact(root, uri)[1]) <= _CHECKED_BYTES
    if root.source.captions:
        return root.source.captions.from_ == "sidecar"
    metadata = _metadata(root.source, files)
    return bool(metadata) and sum(sizes[path] for path in metadata) <= _CHECKED_BYTES


def _read_manifest(root: Root, below: str | None, uri: str, starts: tuple[str, ...] = ("",)) -> Manifest:
    """Raises InputError where the manifest cannot be read: what it says of the files was asked for."""
    try:
        if below is not None:
            data = root.read(below)
        else:
            outside = Root(root.source, root.index, uri)
            outside.is_file = True
            data = outside.read(posixpath.basename(uri))
        rows = manifests.parse(data, uri, root.source.encoding)
    except MediaError as error:
        if error.code == "missing_file":
            raise InputError(f"no such file: {uri}", field=_manifest_field(root)) from None
        raise InputError(f"{uri} cannot be read: {error.message}", field=_manifest_field(root)) from None
    return Manifest(uri, rows, _manifest_field(root), starts)


def _metadata(source: Source, files: list[SourceFile]) -> list[str]:
    """Paths of the manifests that the datasets library would take: at the top or in any folder."""
    if source.captions:
        return []
    return [
        file.path
        for file in files
        if posixpath.basename(file.path) in manifests.METADATA
        and not file.reject
        and not any(_matches(file.path, pattern) for pattern in source.exclude)
    ]


# ---- which files ----


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


def _relevant(source: Source, file: SourceFile, manifest: str | None) -> bool:
    """Whether a file can change what is ingested; a document or a JSONL row may name any other file by its path."""
    if _refers(source) or file.path == manifest or _is_candidate(source, file):
        return True
    if source.captions:
        return source.captions.from_ == "sidecar" and _suffix(file.path) in SIDECARS
    return source.kind in _MEDIA and posixpath.basename(file.path) in manifests.METADATA


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _is_candidate(source: Source, file: SourceFile) -> bool:
    manifest, suffix = manifest_of(source), _suffix(file.path)
    if file.beyond and suffix not in {*_COMPANIONS, *(s for known in SUFFIXES.values() for s in known)}:
        return not any(_matches(file.path, pattern) for pattern in source.exclude)
    if (manifest and file.path == posixpath.normpath(manifest)) or not _selected(source, file.path):
        return False
    if source.kind in _MEDIA:
        return bool(source.include) or suffix not in _COMPANIONS
    return bool(source.include) or suffix in SUFFIXES[source.kind]


def _candidates(root: Root, files: list[SourceFile]) -> list[SourceFile]:
    """The files that are items. Raises InputError where there is none of the source's kind, or no manifest."""
    source = root.source
    found = files if root.is_file else [file for file in files if _is_candidate(source, file)]
    typical = [f for f in found if root.is_file or source.include or _suffix(f.path) in SUFFIXES[source.kind]]
    manifest = manifest_of(source)
    if manifest:
        uri, below = _place(root)
        if below is not None and below not in {file.path for file in files}:
            raise InputError(f"no such file: {uri}", field=_manifest_field(root))
    if not typical and not (manifest and (found or source.kind == "interleaved")):
        raise InputError(_nothing(root, files), field=root.uri_field)
    return found


def _nothing(root: Root, files: list[SourceFile]) -> str:
    """Why a source is empty, what its files look like, and the line of the config that reads them."""
    source = root.source
    seen = f"{len(files)} files, none of them" if files else "an empty folder, no file"
    message = (
        f"empty corpus: {root.place} holds {seen} of kind {source.kind} ({', '.join(SUFFIXES[source.kind][:5])}, ...)"
    )
    if source.include or source.exclude:
        message += f" that include {source.include} and exclude {source.exclude} leave"
    refused = Counter(f"{file.reject[0]}: {file.reject[1]}" for file in files if file.reject)
    if refused:
        return f"{message}; {', '.join(f'{n} {reason}' for reason, n in refused.most_common(3))}"
    suffixes = Counter(_suffix(file.path) or "no suffix" for file in files)
    kinds = Counter({kind: sum(suffixes[suffix] for suffix in known) for kind, known in SUFFIXES.items()})
    kind, count = kinds.most_common(1)[0]
    if count and kind != source.kind:
        more = ", text_field: text" if kind == "jsonl" else ""
        return f"{message}; {count} look like {kind}, which `{{kind: {kind}, uri: {source.uri}{more}}}` reads"
    if files and not count:
        most = ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common(3))
        return f"{message}; it holds {most}, which no kind reads"
    return message


# ---- media with captions ----


def _media_items(root: Root, files: list[SourceFile], candidates: list[SourceFile], notes: Counter) -> list[dict]:
    """One item per media file with what a manifest, a text beside it or its name says; then what cannot be used."""
    source, captions = root.source, root.source.captions
    items = [_item(root.index, file) for file in candidates]
    names = Names(root, (file.path for file in files))
    if captions and captions.manifest:
        uri, below = _place(root)
        manifest = _read_manifest(root, below, uri, ("", posixpath.dirname(below or "")))
        if not manifest.rows:
            raise InputError(f"{uri}: holds no row", field=manifest.field)
        return _with_rows(root, items, [manifest], names)
    if captions and captions.from_ == "sidecar":
        return _with_sidecars(root, items, files)
    notes["sidecars_unread"] += len(_sidecars(root, items, files))
    if captions:
        return [{**item, **_named(captions, item["path"])} for item in items]
    found = [
        _read_manifest(root, path, root.uri(path), (posixpath.dirname(path), "")) for path in _metadata(source, files)
    ]
    named = [manifest for manifest in found if manifests.names_files(manifest)]
    notes["metadata_unread"] += len(found) - len(named)
    items = _with_rows(root, items, named, names) if named else items
    notes["metadata_captions"] += sum("captions" in item for item in items)
    return items


def _with_rows(root: Root, items: list[dict], found: list[Manifest], names: Names) -> list[dict]:
    """Items with what the rows say of them; several rows of a file add up their captions.

    InputError where few rows name a file and few files are named: then it is not that a row is wrong.
    """
    by_path = {item["path"]: item for item in items}
    rejected: list[dict] = []
    for manifest in found:
        named: dict[str, str] = {}
        used = _use_rows(root, manifest, names, by_path, rejected, named)
        rows, matched = len(used), sum(used)
        files = sum("reject" not in item for item in items)
        if 2 * matched < rows and 2 * len(named) < files:
            raise InputError(_mismatch(root, manifest, names, matched, rows), field=manifest.field)
    return items + rejected


def _use_rows(
    root: Root, manifest: Manifest, names: Names, by_path: dict[str, dict], rejected: list[dict], named: dict[str, str]
) -> list[bool]:
    """Put the rows' facts into the items and what is wrong into `rejected`; whether each row named a file that is."""
    captions = root.source.captions or manifests.DEFAULTS
    key = manifests.file_field(manifest, captions.file_field, names)
    caption = manifests.caption_field(manifest, captions) if key else None
    manifests.check_fields(manifest, captions)
    used: list[bool] = []
    for line, row in manifest.rows:
        where = manifest.where(line)
        name = row.get(key) if isinstance(row, dict) and key else None
        path = names.find(name, manifest.starts)
        if path is None and isinstance(name, str) and not _wanted(root, name):
            continue
        used.append(path is not None)
        if path is None:
            rejected.append(_unmatched(root, row, name, key, where))
        elif item := by_path.get(path):
            named[path] = where
            said, bad = manifests.facts(row, captions, caption)
            bad += _add(item, said)
            rejected += [_rejected(root.index, where, problem) for problem in bad]
    return used


def _wanted(root: Root, name: str) -> bool:
    """Whether a file of this name would be read if it were there."""
    path = manifests.normal_path(name)
    return path is None or _selected(root.source, path)


def _unmatched(root: Root, row: dict | Bad, name: object, key: str | None, where: str) -> dict:
    if isinstance(row, Bad):
        return _rejected(root.index, where, row)
    if not isinstance(name, str) or not name:
        return _rejected(root.index, where, Bad("bad_manifest_row", f"no {key or 'file'!r} in it"))
    if manifests.normal_path(name) is None:
        return _rejected(root.index, where, Bad("outside_root", f"{name[:200]!a} lies outside the source's root"))
    return _rejected(root.index, name, Bad("missing_file", f"named in {where}"))


def _add(item: dict, said: dict) -> list[Bad]:
    """Add what one more row says of an item; what contradicts a row above is told."""
    bad = [
        Bad("bad_manifest_row", f"{key}: {said[key]!a:.80}, a row above says {item[key]!a:.80}")
        for key in ("label", "license", "group")
        if item.get(key) not in (None, said.get(key)) and key in said
    ]
    captions = [*item.get("captions", ()), *said.pop("captions", ())]
    item |= {key: value for key, value in said.items() if key not in item}
    if captions:
        item["captions"] = list(dict.fromkeys(captions))
    return bad


def _mismatch(root: Root, manifest: Manifest, names: Names, matched: int, rows: int) -> str:
    captions = root.source.captions or manifests.DEFAULTS
    key = manifests.file_field(manifest, captions.file_field, names)
    if key is None:
        known = ", ".join(manifest.keys) or "none, for no line of it is a row"
        bad = Counter(row.message for _, row in manifest.rows if isinstance(row, Bad)).most_common(1)
        return (
            f"{manifest.name}: no row names a file; the keys are {known}; set captions.file_field to the one that "
            f"does{f' (most lines: {bad[0][0]})' if bad else ''}"
        )
    said = [row[key] for _, row in manifest.rows if isinstance(row, dict) and key in row]
    unknown = [name for name in said if names.find(name, manifest.starts) is None]
    there = sorted(path for path in names.paths if _suffix(path) not in _COMPANIONS)
    return (
        f"{manifest.name}: {matched} of {rows} rows name a file of {root.place}. The rows say, as {key!r}: "
        f"{_some(unknown)}; the folder holds: {_some(there)}. Names are relative to the source's uri: set uri, "
        f"or captions.file_field to another of the keys {', '.join(manifest.keys)}"
        + ("" if root.source.captions else "; nobody named this manifest: exclude it if it is about other files")
    )


def _some(values: list) -> str:
    shown = ", ".join(f"{value!a:.100}" for value in values[:3])
    return (f"{shown}, ... ({len(values)})" if len(values) > 3 else shown) or "nothing"


def _with_sidecars(root: Root, items: list[dict], files: list[SourceFile]) -> list[dict]:
    found = _sidecars(root, items, files)
    if not found:
        raise InputError(
            f"no picture of {root.place} has a text of its name beside it (a.png and a.txt or a.caption); "
            f"the folder holds: {_some(sorted(file.path for file in files))}",
            field=f"{root.field}.captions.from",
        )
    return [{**item, "sidecar": found[item["path"]]} if item["path"] in found else item for item in items]


def _sidecars(root: Root, items: list[dict], files: list[SourceFile]) -> dict[str, str]:
    """Path of a media file -> that of the text beside it: of its name with another suffix, or with one more."""
    names = Names(root, (file.path for file in files if _suffix(file.path) in SIDECARS))
    found: dict[str, str] = {}
    for item in items if names.paths else ():
        stems = dict.fromkeys((posixpath.splitext(item["path"])[0], item["path"]))
        text = next((text for stem in stems for suffix in SIDECARS if (text := names.find(stem + suffix))), None)
        if text and text != item["path"]:
            found[item["path"]] = text
    return found


def _named(captions, path: str) -> dict:
    if captions.from_ == "file":
        name = posixpath.splitext(posixpath.basename(path))[0]
    else:
        name = posixpath.basename(posixpath.dirname(path))
    words = " ".join(name.replace("_", " ").replace("-", " ").split())
    return {"captions": [captions.template.replace("{name}", words)], "label": name} if words else {}


# ---- documents ----


def _manifest_documents(root: Root, files: list[SourceFile]) -> list[dict]:
    """One item per manifest row {file, segments: [{type, text | file, alt}]}; its part is the manifest's line."""
    sizes = {file.path: file.size for file in files}
    uri, below = _place(root)
    manifest = _read_manifest(root, below, uri)
    found = []
    for line, row in manifest.rows:
        where = manifest.where(line)
        if isinstance(row, Bad) or not isinstance(row.get("segments"), list):
            bad = row if isinstance(row, Bad) else Bad("bad_manifest_row", "no list 'segments' in it")
            found.append(_rejected(root.index, where, bad))
            continue
        path = row["file"] if isinstance(row.get("file"), str) and encodable(row["file"]) else where
        if not _selected(root.source, path):
            continue
        size = sum(
            sizes.get(s["file"], 0) for s in row["segments"] if isinstance(s, dict) and isinstance(s.get("file"), str)
        )
        item = {"source": root.index, "path": path, "size": size, "segments": row["segments"], "part": line}
        for key, name in (("title", "title"), ("license", "license"), ("group", root.source.group_field)):
            value, problem = manifests.short_text(row.get(name) if name else None, name or "")
            if problem:
                found.append(_rejected(root.index, where, problem))
            elif value:
                item |= {"meta": {key: value}} if key == "title" else {key: value}
        found.append({**item, **({"synthetic": True} if manifests.marked(row) else {})})
    if manifest.rows and not any("segments" in item for item in found) and len(found) == len(manifest.rows):
        reasons = Counter(item["reject"][1] for item in found).most_common(1)
        raise InputError(
            f"{manifest.name}: no row is a document: {reasons[0][0]}; expected {{file, segments: [...]}}; "
            f"the keys are {', '.join(manifest.keys) or 'none'}",
            field=manifest.field,
        )
    return found


def _rejected(index: int, path: str, bad: Bad) -> dict:
    return {
        "source": index,
        "path": path if encodable(path) else ascii(path),
        "size": 0,
        "reject": [bad.code, bad.message],
    }
