"""Captions of media files: from a manifest's rows, from texts beside the files, or from names.

In: items of a folder, one per media file. Out: the same with "captions", "label", "license", "group", "meta",
"synthetic" or "sidecar" as far as they are known, and an item for each thing that a manifest says and that cannot be
used. A manifest that does not fit the folder is an `InputError`.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable
from typing import cast

from omniloom.infra.errors import InputError
from omniloom.stages.ingest.annotations import fields, manifests
from omniloom.stages.ingest.annotations.manifests import Manifest
from omniloom.stages.ingest.annotations.names import Names, normal_path
from omniloom.stages.ingest.files.listing import SourceFile
from omniloom.stages.ingest.files.suffixes import COMPANIONS, SIDECARS, TEXTS_BESIDE, suffix
from omniloom.stages.ingest.kinds.base import Contents, SourceKind
from omniloom.stages.ingest.look.glimpse import BY_REFERENCE, Glimpse, Recognition
from omniloom.stages.ingest.options import UNNAMED, Captions
from omniloom.stages.ingest.rejects import Reject


def with_captions(kind: SourceKind, contents: Contents, notes: Counter) -> Iterable[dict]:
    """The items of the source `kind` with what `config.captions` says of them. `notes` counts metadata_captions,
    metadata_unread and sidecars_unread."""
    captions: Captions | None = kind.config.captions
    files, items = contents.files, map(kind.item, contents.of_kind)
    if kind.manifest:
        manifest = kind.manifest.read(("", posixpath.dirname(kind.manifest.below or "")))
        if not manifest.rows:
            raise InputError(f"{manifest.name}: holds no row", field=manifest.field)
        return _with_rows(kind, list(items), [manifest], _names(kind, files))
    if captions and captions.from_ == "sidecar":
        return _with_sidecars(kind, list(items), contents)
    notes["sidecars_unread"] += len(_sidecars(kind, contents, TEXTS_BESIDE))
    if captions:
        return ({**item, **_named(captions, item["path"])} for item in items)
    tables = [
        manifests.read_manifest(
            kind.root, kind.root.uri(path), path, f"{kind.field}.captions", (posixpath.dirname(path), "")
        )
        for path in metadata(kind, files)
    ]
    named = [manifest for manifest in tables if fields.names_files(manifest, kind.metadata_fields)]
    notes["metadata_unread"] += len(tables) - len(named)
    if not named:
        return items
    captioned = _with_rows(kind, list(items), named, _names(kind, files))
    notes["metadata_captions"] += sum("captions" in item for item in captioned)
    return captioned


def metadata(kind: SourceKind, files: Iterable[SourceFile]) -> list[str]:
    """Paths of the manifests that the datasets library would take: at the top or in any folder."""
    if kind.config.captions:
        return []
    return [
        file.path
        for file in files
        if posixpath.basename(file.path) in manifests.METADATA and not file.reject and not kind.excluded(file.path)
    ]


def _names(kind: SourceKind, files: Iterable[SourceFile]) -> Names:
    return Names(kind.root, (file.path for file in files))


# ---- recognition ----

_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".tab")


def recognize(glimpse: Glimpse, media: frozenset[str]) -> Recognition:
    """Media files with the captions that name them: metadata that are read by themselves, else a manifest, else texts
    beside them; without captions where there is nothing of the kind."""
    names = Names(glimpse.root, media)
    metadata = [path for path in glimpse.named(manifests.METADATA) if _naming(glimpse, path, names)]
    if metadata:
        return Recognition(media.union(metadata), {}, BY_REFERENCE)
    tables = [path for path in glimpse.having(_TABLES) if _naming(glimpse, path, names)]
    if len(tables) == 1:
        return Recognition(media.union(tables), {"captions": {"manifest": tables[0]}}, BY_REFERENCE)
    texts = beside(media, Names(glimpse.root, glimpse.having(TEXTS_BESIDE)))
    some = list(texts.values())[:20]
    if 2 * sum(map(glimpse.speaks, some)) < len(some):
        texts = {}
    objects = beside(media, Names(glimpse.root, glimpse.having((".json",))))
    rows = [glimpse.rows(path, 1) for path in list(objects.values())[:20]]
    says = any(row and fields.captions_of(row[0]) for row in rows)
    if 2 * len(texts) >= len(media) or (says and 2 * len(objects) >= len(media)):
        taken = media.union(texts.values(), objects.values())
        return Recognition(taken, {"captions": {"from": "sidecar"}}, BY_REFERENCE)
    return Recognition(media.union(objects.values()))


def _naming(glimpse: Glimpse, path: str, names: Names) -> bool:
    """Whether the first rows of a table name media files, in one field, and say something of them in another."""
    manifest = Manifest(path, list(enumerate(glimpse.rows(path), 1)), "captions", (posixpath.dirname(path), ""))
    if not fields.names_files(manifest):
        return False
    try:
        key = fields.file_field(manifest, None, names)
        fields.caption_fields(manifest, UNNAMED)
    except InputError:  # several fields may be meant: a person has to choose
        return False
    found = [names.find(row.get(key), manifest.starts) for _, row in manifest.rows if isinstance(row, dict)]
    return 2 * sum(path is not None for path in found) > len(found)


# ---- rows of manifests ----


def _with_rows(kind: SourceKind, items: list[dict], tables: list[Manifest], names: Names) -> list[dict]:
    """Items with what the rows say of them; several rows of a file add up their captions.

    InputError where few rows name a file and few files are named: then it is not that a row is wrong.
    """
    by_path = {item["path"]: item for item in items}
    rejected: list[dict] = []
    for manifest in tables:
        named: dict[str, str] = {}
        used = _use_rows(kind, manifest, names, by_path, rejected, named)
        rows, matched = len(used), sum(used)
        files = sum("reject" not in item for item in items)
        if 2 * matched < rows and 2 * len(named) < files:
            raise InputError(_mismatch(kind, manifest, names, matched, rows), field=manifest.field)
    return items + rejected


def _use_rows(
    kind: SourceKind,
    manifest: Manifest,
    names: Names,
    by_path: dict[str, dict],
    rejected: list[dict],
    named: dict[str, str],
) -> list[bool]:
    """Put the rows' facts into the items and what is wrong into `rejected`; whether each row named a file that is."""
    captions = kind.config.captions or kind.metadata_fields
    key = fields.file_field(manifest, captions.file_field, names)
    caption = fields.caption_fields(manifest, captions) if key else []
    fields.check_fields(manifest, captions)
    used: list[bool] = []
    for line, row in manifest.rows:
        where = manifest.where(line)
        name = row.get(key) if isinstance(row, dict) and key else None
        path = names.find(name, manifest.starts)
        if path is None and isinstance(name, str) and not _wanted(kind, name):
            continue
        used.append(path is not None)
        if path is None:
            rejected.append(_unmatched(kind, row, name, key, where))
        elif item := by_path.get(path):
            named[path] = where
            facts, bad = fields.facts(cast(dict, row), captions, caption)
            bad += _add(item, facts)
            rejected += [kind.rejected(where, problem) for problem in bad]
    return used


def _wanted(kind: SourceKind, name: str) -> bool:
    """Whether a file of this name would be read if it were there."""
    path = normal_path(name)
    return path is None or kind.selected(path)


def _unmatched(kind: SourceKind, row: dict | Reject, name: object, key: str | None, where: str) -> dict:
    if isinstance(row, Reject):
        return kind.rejected(where, row)
    if not isinstance(name, str) or not name:
        return kind.rejected(where, Reject("bad_manifest_row", f"no {key or 'file'!r} in it"))
    if normal_path(name) is None:
        return kind.rejected(where, Reject("outside_root", f"{name[:200]!a} lies outside the source's root"))
    return kind.rejected(name, Reject("missing_file", f"named in {where}"))


def _add(item: dict, facts: dict) -> list[Reject]:
    """Add what one more row says of an item; what contradicts a row above is told."""
    bad = [
        Reject("bad_manifest_row", f"{key}: {facts[key]!a:.80}, a row above says {item[key]!a:.80}")
        for key in ("label", "license", "group")
        if item.get(key) not in (None, facts.get(key)) and key in facts
    ]
    captions = [*item.get("captions", ()), *facts.pop("captions", ())]
    item |= {key: value for key, value in facts.items() if key not in item}
    if captions:
        item["captions"] = list(dict.fromkeys(captions))
    return bad


def _mismatch(kind: SourceKind, manifest: Manifest, names: Names, matched: int, rows: int) -> str:
    captions = kind.config.captions or kind.metadata_fields
    key = fields.file_field(manifest, captions.file_field, names)
    if key is None:
        keys = ", ".join(manifest.keys) or "none, for no line of it is a row"
        bad = Counter(row.message for _, row in manifest.rows if isinstance(row, Reject)).most_common(1)
        return (
            f"{manifest.name}: no row names a file; the keys are {keys}; set captions.file_field to the one that "
            f"does{f' (most lines: {bad[0][0]})' if bad else ''}"
        )
    values = [row[key] for _, row in manifest.rows if isinstance(row, dict) and key in row]
    unmatched = [name for name in values if names.find(name, manifest.starts) is None]
    there = sorted(path for path in names.paths if suffix(path) not in COMPANIONS)
    return (
        f"{manifest.name}: {matched} of {rows} rows name a file of {kind.root.place}. The rows say, as {key!r}: "
        f"{_some(unmatched)}; the folder holds: {_some(there)}. Names are relative to the source's uri: set uri, "
        f"or captions.file_field to another of the keys {', '.join(manifest.keys)}"
        + ("" if kind.config.captions else "; nobody named this manifest: exclude it if it is about other files")
    )


def _some(values: list) -> str:
    text = ", ".join(f"{value!a:.100}" for value in values[:3])
    return (f"{text}, ... ({len(values)})" if len(values) > 3 else text) or "nothing"


# ---- texts beside the files, and names ----


def _with_sidecars(kind: SourceKind, items: list[dict], contents: Contents) -> list[dict]:
    texts = _sidecars(kind, contents, SIDECARS)
    if not texts:
        raise InputError(
            f"no picture of {kind.root.place} has a text of its name beside it (a.png and a.txt, a.caption or a.json); "
            f"the folder holds: {_some([file.path for file in contents.files])}",
            field=f"{kind.field}.captions.from",
        )
    return [{**item, "sidecar": texts[item["path"]]} if item["path"] in texts else item for item in items]


def _sidecars(kind: SourceKind, contents: Contents, endings: tuple[str, ...]) -> dict[str, str]:
    names = Names(kind.root, (file.path for file in contents.files if suffix(file.path) in endings))
    return beside((file.path for file in contents.of_kind), names)


def beside(media: Iterable[str], names: Names) -> dict[str, str]:
    """Path of a media file -> that of the text beside it: of its name with another suffix, or with one more. `names`
    has the texts."""
    texts: dict[str, str] = {}
    for path in media if names.paths else ():
        stems = dict.fromkeys((posixpath.splitext(path)[0], path))
        text = next((text for stem in stems for ending in SIDECARS if (text := names.find(stem + ending))), None)
        if text and text != path:
            texts[path] = text
    return texts


def _named(captions: Captions, path: str) -> dict:
    if captions.from_ == "file":
        name = posixpath.splitext(posixpath.basename(path))[0]
    else:
        name = posixpath.basename(posixpath.dirname(path))
    words = " ".join(name.replace("_", " ").replace("-", " ").split())
    return {"captions": [captions.template.replace("{name}", words)], "label": name} if words else {}
