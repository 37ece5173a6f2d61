"""WebDataset tars: samples of files that share a name."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import model_validator

from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.files.suffixes import suffix
from omniloom.stages.ingest.formats.base import Files
from omniloom.stages.ingest.formats.tar_samples import TarSamples, media, parts
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.look.glimpse import BY_CONTENT, BY_REFERENCE, Glimpse, Recognition
from omniloom.stages.ingest.options import refuse
from omniloom.stages.ingest.rejects import Reject

MEANINGS = ("text_field", "template", "image_field", "video_field", "conversations_field")
_PEEKED_BYTES = 1 << 20  # of a JSON or a text in a tar that is looked into
_ABOUT = (".parquet", ".json", ".jsonl", ".csv", ".idx")  # files that say what is in a tar of their name
_OTHER_CAPTIONS = ("captions", "text", "texts")


class WebDatasetConfig(RowsConfig):
    """Tars of samples, each sample the files of one name: 0001.jpg, 0001.txt, 0001.json. Fields are what follows the
    first dot (jpg, seg.png, json.caption); "image" and "video" are the first file that is one, and several may be named
    with semicolons, such as jpg;png. By default a sample is its image."""

    kind: Literal["webdataset"]
    """WebDataset tars, each sample a record."""

    @model_validator(mode="before")
    @classmethod
    def _an_image(cls, given: Any) -> Any:
        if isinstance(given, dict) and not any(given.get(name) for name in MEANINGS):
            return {**given, "image_field": "image"}
        return given

    @model_validator(mode="after")
    def _nothing_outside(self) -> WebDatasetConfig:
        refuse(self, ("media_root", "remote"), "files that name others; a tar holds its samples itself")
        return self


class WebDataset(RowFiles):
    Config = WebDatasetConfig
    suffixes = TarSamples.suffixes
    reads_archives = True
    names_files = False

    @cached_property
    def formats(self) -> tuple[TarSamples]:
        return (TarSamples([field for _, field in self.config.named_fields() if ";" in field]),)

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Tars whose first samples are pictures, videos or texts. All in a folder are taken to be as its first. Tables
        and counts of a tar's name, as img2dataset writes them, say again what is in the tar."""
        if glimpse.root.is_archive:
            return _of_members(glimpse)
        by_folder: dict[str, list[str]] = {}
        for path in glimpse.having(cls.suffixes):
            by_folder.setdefault(posixpath.dirname(path), []).append(path)
        found: dict[str, Any] | None = None
        paths: list[str] = []
        for tars in by_folder.values():
            options = _options(glimpse, tars[0])
            found = options if found is None else found
            paths += tars if options is not None and options == found else []
        if found is None:
            return None
        about = _about(glimpse, paths)
        return Recognition(frozenset([*paths, *about]), found, BY_REFERENCE if about else BY_CONTENT)

    def record(self, row: dict, path: str) -> tuple[dict, list[Reject]]:
        if not self.config.caption_fields and self.config.media_field:  # "caption" has all of them
            row = {name: value for name, value in row.items() if name not in _OTHER_CAPTIONS}
        record, rejects = super().record(row, path)
        return record | {"meta": {**record.get("meta", {}), "key": row["__key__"]}}, rejects


def _about(glimpse: Glimpse, tars: Sequence[str]) -> list[str]:
    """The files that are called as one of the tars: 00000.parquet, 00000_stats.json and 00000.idx of 00000.tar."""
    stems = {path.removesuffix(posixpath.basename(path)) + posixpath.basename(path).split(".")[0] for path in tars}
    found = glimpse.having(_ABOUT)
    return [path for path in found if posixpath.splitext(path)[0].removesuffix("_stats") in stems]


def _options(glimpse: Glimpse, path: str) -> dict[str, Any] | None:
    """The options with which a tar's samples are records; None where nothing in it can be one."""
    try:
        columns = TarSamples().peek(Files(glimpse.root, "utf-8", _PEEKED_BYTES), path).columns
    except Exception:  # whoever reads it says what is wrong with it
        return None
    return _meaning(columns)


def _meaning(columns: Sequence[str]) -> dict[str, Any] | None:
    if "image" in columns:
        return {}
    if "video" in columns:
        return {"video_field": "video"}
    texts = [name for name in ("txt", "text", "json.text", "json.content") if name in columns]
    return {"text_field": texts[0]} if texts else None


def _of_members(glimpse: Glimpse) -> Recognition | None:
    """That the root, a tar that is looked at as a folder, holds pictures or videos with other files of their names."""
    if suffix(glimpse.root.place) != ".tar":
        return None
    samples: dict[str, list[str]] = {}
    for path in glimpse.paths:
        key, name = parts(path)
        if key:
            samples.setdefault(key, []).append(name)
    several = sum(len(names) > 1 and bool(media(names)) for names in samples.values())
    if 2 * several <= len(samples):
        return None
    columns = {name: None for names in samples.values() for name in [*names, *media(names)]}
    options = _meaning(list(columns))
    return Recognition(frozenset(glimpse.paths), options, BY_REFERENCE) if options is not None else None
