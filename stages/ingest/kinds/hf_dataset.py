"""Datasets of the Hugging Face hub: a repository's files, a snapshot in the hub's cache, or what `save_to_disk` wrote.

Rows lie in Parquet, Arrow, JSON or tables; or the folder holds pictures or videos with metadata files, as `imagefolder`
and `videofolder` of the `datasets` library have them.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations import hugging_face, manifests
from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.files.listing import Files
from omniloom.stages.ingest.files.suffixes import IMAGES, VIDEOS, suffix
from omniloom.stages.ingest.formats.arrow import Arrow
from omniloom.stages.ingest.formats.delimited import Delimited
from omniloom.stages.ingest.formats.json_array import JsonArray
from omniloom.stages.ingest.formats.json_lines import JsonLines
from omniloom.stages.ingest.formats.parquet import Parquet
from omniloom.stages.ingest.kinds.base import Contents
from omniloom.stages.ingest.kinds.image_folder import ImageFolder
from omniloom.stages.ingest.kinds.media_folder import MediaFolder
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.kinds.video_folder import VideoFolder
from omniloom.stages.ingest.look import row_recognition
from omniloom.stages.ingest.look.glimpse import BY_REFERENCE, Glimpse, Recognition
from omniloom.stages.ingest.options import UNNAMED
from omniloom.stages.ingest.rejects import Reject
from omniloom.stages.ingest.text_runs import Texts

_ROWS = (*Parquet.suffixes, *Arrow.suffixes, *JsonLines.suffixes, *JsonArray.suffixes, *Delimited.suffixes)
_MEDIA = (*IMAGES, *VIDEOS)
T = TypeVar("T")


class HfDatasetConfig(RowsConfig):
    """A dataset of the Hugging Face hub as a folder. Of a folder of pictures (`imagefolder`) the column `image` is the
    picture, and metadata files and folders' names say the rest."""

    kind: Literal["hf_dataset"]
    """A dataset of the Hugging Face hub as a folder."""
    subset: str | None = None
    """The subset, also called configuration, that is read; by default the one that the README calls default."""
    split: str | None = None
    """The split that is read, such as train; by default all of them."""


class HfDataset(RowFiles):
    Config = HfDatasetConfig
    suffixes = (*_ROWS, *_MEDIA)
    known = (Parquet(), Arrow(), JsonLines(), JsonArray(), Delimited())
    usual_options = {"image_field": "image"}

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """What the library leaves beside data: its notes, a card that lists files, shards of its names."""
        data = [path for path in glimpse.having(_ROWS) if not hugging_face.is_note(path)]
        marks = [path for path in glimpse.paths if hugging_face.is_note(path) and path.endswith(".json")]
        card = "README.md" in glimpse.paths and hugging_face.Card(glimpse.text("README.md")).subsets
        shards = [path for path in data if hugging_face.is_shard(path)]
        if not data or not (marks or card or shards):
            return None
        found = row_recognition.recognize(glimpse, data, cls.known, cls.usual_options)
        notes = frozenset(path for path in glimpse.paths if hugging_face.is_note(path))
        return replace(found, paths=found.paths | notes, strength=BY_REFERENCE) if found else None

    # ---- planning ----

    def is_item(self, path: str) -> bool:
        return super().is_item(path) and not hugging_face.is_note(path)

    def matters(self, path: str) -> bool:
        return super().matters(path) or posixpath.basename(path) == "README.md" or path.startswith("refs/")

    def check(self, contents: Contents) -> None:
        first = next(iter(contents.of_kind), None)
        if first and first.reject and all(file.reject for file in contents.of_kind):
            raise InputError(
                f"{self.root.place}: none of its files can be read: {first.reject[0]}: {first.reject[1]}",
                field=self.root.uri_field,
            )
        rows, media = self._data(contents)
        if rows:
            super().check(replace(contents, of_kind=rows))
        else:
            self._in_folder(lambda: self._folder.check(replace(contents, of_kind=media)))

    def items(self, contents: Contents, notes: Counter) -> Iterable[dict]:
        """One per file of rows; where there is none, one per picture or video."""
        rows, media = self._data(contents)
        if rows:
            return super().items(replace(contents, of_kind=rows), notes)
        items = self._in_folder(lambda: self._folder.items(replace(contents, of_kind=media), notes))
        captioned = any(posixpath.basename(file.path) in manifests.METADATA for file in contents.of_kind)
        return items if captioned else self._labelled(media, items)

    def _data(self, contents: Contents) -> tuple[Files, Files]:
        """(files of rows, media files) of the subset and the split. Where a folder holds media beside metadata files,
        it has no files of rows."""
        paths = [file.path for file in contents.of_kind]
        if not self.root.is_file:
            chosen = self._chosen(contents.files, paths)
            paths = [file.path for file in contents.of_kind if file.path in chosen or file.reject]
        media = {path for path in paths if suffix(path) in _MEDIA}
        rows = {path for path in paths if suffix(path) in _ROWS}
        if media and all(posixpath.basename(path) in manifests.METADATA for path in rows):
            rows = set()
        media = {path for path in media if suffix(path) in self._folder.suffixes}
        return contents.files.where(lambda file: file.path in rows), contents.files.where(lambda f: f.path in media)

    def _chosen(self, files: Files, data: list[str]) -> set[str]:
        try:
            folder = hugging_face.snapshot((file.path for file in files), self._text("refs/main").strip() or None)
        except ValueError as error:
            raise InputError(f"{self.root.place}: {error}", field=self.root.uri_field) from None
        start = f"{folder}/" if folder else ""
        below = [path.removeprefix(start) for path in data if path.startswith(start)]
        card = hugging_face.Card(self._text(f"{start}README.md"))
        try:
            chosen = hugging_face.chosen(below, card, self.config.subset, self.config.split)
        except ValueError as error:
            option, _, message = str(error).partition(": ")
            raise InputError(f"{self.root.place}: {message}", field=f"{self.field}.{option}") from None
        return {start + path for path in chosen}

    def _text(self, path: str) -> str:
        """The text of a small file; empty where there is none."""
        try:
            return self.content(path).decode("utf-8", "replace")
        except MediaError:
            return ""

    @cached_property
    def _folder(self) -> MediaFolder:
        """The same source as a folder of pictures or videos."""
        kind: type[MediaFolder] = VideoFolder if self.config.video_field else ImageFolder
        options = self.config.model_dump(include={*kind.Config.model_fields} - {"kind", "captions"})
        folder = kind(kind.Config.model_validate({**options, "kind": kind.name()}), self.index, self.limits)
        folder.root = self.root
        named: dict[str, Any] = {"caption_field": self.config.caption_field, "label_field": self.config.label_field}
        named |= {"license_field": self.config.license_field or "license", "group_field": self.config.group_field}
        folder.metadata_fields = UNNAMED.model_copy(update=named)
        return folder

    def _in_folder(self, call: Callable[[], T]) -> T:
        """What a call to the folder gives; its errors name the options of this kind."""
        try:
            return call()
        except InputError as error:
            field = (error.field or "").replace(f"{self.field}.captions", self.field)
            raise InputError(error.message, field=field) from None

    def _labelled(self, files: Files, items: Iterable[dict]) -> Iterable[dict]:
        """Labels by the names of folders, where these are classes: several, and no splits."""
        names = {posixpath.basename(posixpath.dirname(file.path)) for file in files}
        if len(names) < 2 or any(not name or hugging_face.split_of(f"{name}/") for name in names):
            return items
        return ({**item, "label": posixpath.basename(posixpath.dirname(item["path"]))} for item in items)

    def cut(self, item: dict, size: int, count: int) -> Iterator[dict]:
        return iter([item]) if self._is_media(item) else super().cut(item, size, count)

    # ---- reading ----

    def read(self, item: dict) -> Iterator[dict | Texts | Reject]:
        return self._folder.read(item) if self._is_media(item) else super().read(item)

    def _is_media(self, item: dict) -> bool:
        return suffix(item["path"]) in _MEDIA
