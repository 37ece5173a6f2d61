"""Fields of rows: which of them name the file and the caption, and what a row says of its file.

In: the rows of a manifest, or one row of a JSONL file or a table. Out: names of fields; values, and a `Reject` for each
that cannot be used: it costs that value, and what the row is about stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.stages.ingest.annotations.manifests import Manifest
from omniloom.stages.ingest.annotations.names import Names
from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.options import PLACEHOLDER, UNNAMED, Captions
from omniloom.stages.ingest.rejects import Reject

FILE_FIELDS = (
    "file",
    "file_name",
    "filename",
    "file_path",
    "filepath",
    "path",
    "image",
    "image_file",
    "image_file_name",
    "image_name",
    "image_path",
    "img",
    "img_path",
    "video",
    "video_file",
    "video_file_name",
    "video_name",
    "video_path",
)
# The second are looked at where none of the first is there.
CAPTION_FIELDS = (
    ("caption", "captions", "text", "texts"),
    ("description", "descriptions", "sentence", "sentences", "comment", "comments", "prompt", "alt_text"),
)


def file_field(manifest: Manifest, configured: str | None, names: Names) -> str | None:
    """The field that names the file: the configured one, else the usual one that the rows have; None without any.

    Of several, the one whose values are files of the folder. InputError where that leaves a choice, or where no row
    has the configured one.
    """
    if configured:
        return _present(manifest, configured, "file_field")
    usual = _known(manifest.keys, FILE_FIELDS)
    candidates = (
        [
            key
            for key in usual
            if any(names.find(row.get(key), manifest.starts) for _, row in manifest.rows if isinstance(row, dict))
        ]
        if len(usual) > 1
        else usual
    )
    if len(candidates) > 1 and not _equal(manifest, candidates):
        raise InputError(
            f"{manifest.name}: {' and '.join(map(repr, candidates))} both name files; set captions.file_field "
            f"to one of them (the keys are {', '.join(manifest.keys)})",
            field=manifest.field,
        )
    return next(iter(candidates or usual), None)


def caption_fields(manifest: Manifest, captions: Captions) -> list[str]:
    """The fields of the captions, as `file_field`; none where the rows have labels or meta alone."""
    if named := captions.caption_field:
        return [_present(manifest, name, "caption_field") for name in ([named] if isinstance(named, str) else named)]
    candidates = captions_of(manifest.keys)
    if len(candidates) > 1 and not _equal(manifest, candidates):
        raise InputError(
            f"{manifest.name}: {' and '.join(map(repr, candidates))} may both be captions; set "
            f"captions.caption_field to one of them (the keys are {', '.join(manifest.keys)})",
            field=manifest.field,
        )
    others = [captions.label_field, captions.license_field, *captions.meta_fields]
    if not candidates and not any(key in manifest.keys for key in others):
        raise InputError(
            f"{manifest.name}: no row has a caption; its keys are {', '.join(manifest.keys)}; set "
            "captions.caption_field to the one of captions",
            field=manifest.field,
        )
    return candidates[:1]


def names_files(manifest: Manifest, captions: Captions = UNNAMED) -> bool:
    """Whether a manifest that nobody named is one of files and what is on them."""
    said = captions.caption_field or captions_of(manifest.keys) or captions.label_field in manifest.keys
    return bool(_known(manifest.keys, FILE_FIELDS) and said)


def row_caption(row: dict) -> tuple[str | None, Reject | None]:
    """The field of one row's caption where rows come one by one and nobody named it: the known one that it has."""
    candidates = captions_of([key for key, value in row.items() if value is not None])
    if len(candidates) > 1 and any(row[key] != row[candidates[0]] for key in candidates):
        return None, Reject(
            "bad_caption", f"{' and '.join(map(repr, candidates))} may both be captions; set caption_field"
        )
    return (candidates[0] if candidates else None), None


def check_fields(manifest: Manifest, captions: Captions) -> None:
    """InputError for a field that was asked for and that no row has."""
    for name in ("label_field", "license_field", "group_field"):
        if (key := getattr(captions, name)) and key != getattr(UNNAMED, name):
            _present(manifest, key, name)
    for key in captions.meta_fields:
        _present(manifest, key, "meta_fields")


def _present(manifest: Manifest, key: str, name: str) -> str:
    if key not in manifest.keys:
        raise InputError(
            f"{manifest.name}: no row has {key!r}; its keys are {', '.join(manifest.keys)}",
            field=f"{manifest.field.removesuffix('.manifest')}.{name}",
        )
    return key


def captions_of(keys: Iterable[str]) -> list[str]:
    """Those of the keys that captions usually have: several are a choice to make."""
    keys = list(keys)
    return next((matches for tier in CAPTION_FIELDS if (matches := _known(keys, tier))), [])


def _known(keys: Iterable[str], names: tuple[str, ...]) -> list[str]:
    return [key for key in keys if key.lower() in names]


def _equal(manifest: Manifest, keys: list[str]) -> bool:
    return all(row.get(key) == row.get(keys[0]) for _, row in manifest.rows if isinstance(row, dict) for key in keys)


# ---- values ----


def facts(row: dict, captions: Captions, caption_fields: list[str]) -> tuple[dict, list[Reject]]:
    """What a row says of its file, and what of it cannot be used."""
    result: dict[str, Any] = {}
    texts: list[str] = []
    bad: list[Reject] = []
    for field in caption_fields:
        more, wrong = caption_texts(row.get(field), field)
        texts, bad = texts + more, bad + wrong
    if texts:
        result["captions"] = list(dict.fromkeys(texts))
    for key, name in (
        ("label", captions.label_field),
        ("license", captions.license_field),
        ("group", captions.group_field),
    ):
        value, problem = short_text(row.get(name) if name else None, name or "")
        bad += [problem] if problem else []
        if value is not None:
            result[key] = value
    if meta := {name: row[name] for name in captions.meta_fields if name in row}:
        result["meta"] = meta
    if marked(row):
        result["synthetic"] = True
    return result, bad


def caption_texts(value: Any, name: str) -> tuple[list[str], list[Reject]]:
    """A caption or a list of captions without blank and repeated ones, and what cannot be one."""
    texts: list[str] = []
    bad: list[Reject] = []
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and encodable(text) and "\0" not in text:
            if (text := text.strip()) and text not in texts:
                texts.append(text)
        elif text is not None:
            bad.append(Reject("bad_caption", f"{name}: expected text, got {text!a:.80}"))
    return texts, bad


def short_text(value: Any, name: str) -> tuple[str | None, Reject | None]:
    """A label, a license, a title: text, or a number, which stands for a class; None for an empty one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        return None, None
    if not isinstance(value, str) or not encodable(value) or "\0" in value:
        return None, Reject("bad_manifest_row", f"{name}: expected text, got {value!a:.80}")
    return value.strip() or None, None


def fill(template: str, row: dict) -> str:
    """`template` with each {field} replaced by the row's value; ValueError where one is missing or no scalar."""

    def value(match) -> str:
        replacement = row.get(match.group(1))
        if not isinstance(replacement, str | int | float) or isinstance(replacement, bool):
            raise ValueError(f"{match.group(1)}: expected text or a number, got {replacement!r:.80}")
        return str(replacement)

    return PLACEHOLDER.sub(value, template)


def marked(row: dict) -> bool:
    """Whether a manifest row says that a model of this project made the sample."""
    return row.get("synthetic") is True or "omniloom" in row
