"""The config of ingest: which sources there are, what may be read of them, and how they are split."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from omniloom.stages.base import PLACEMENT
from omniloom.stages.data.media.limits import Limits

Kind = Literal["image_folder", "video_folder", "text", "jsonl", "interleaved"]
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Captions(_Strict):
    """Where captions and labels come from: a manifest, texts beside the files, or the names of files or folders."""

    # JSON lines, or a table in .csv or .tsv with a line of column names: a path below the source's uri (or from it,
    # such as ../captions.jsonl), or a URI of its own.
    manifest: str | None = None
    # Names the media file, relative to the source's uri. By default the one of file, file_name, image, path and the
    # like that the rows have (`stages.ingest.manifests.FILE_FIELDS`).
    file_field: str | None = None
    # By default the one of caption, captions, text and the like that the rows have. A value is a text or several.
    caption_field: str | None = None
    label_field: str | None = "label"
    # Rows with the same value (a person, a recording, a patient), in whichever source, are in one split.
    group_field: str | None = None
    license_field: str | None = "license"
    meta_fields: list[str] = Field(default_factory=list)  # kept in the record's meta
    # sidecar: the text in the .txt (or .caption) file of the same name beside the picture; file, folder: its name.
    from_: Literal["folder", "file", "sidecar"] | None = Field(default=None, alias="from")
    template: str = "{name}"  # {name}: the folder's or file's name, `_` and `-` as spaces

    @field_validator("template")
    @classmethod
    def _known_placeholder(cls, template: str) -> str:
        if set(PLACEHOLDER.findall(template)) != {"name"}:
            raise ValueError("expected the placeholder {name} and no other")
        return template

    @model_validator(mode="after")
    def _one_origin(self) -> Captions:
        if (self.manifest is None) == (self.from_ is None):
            raise ValueError("expected either manifest or from")
        if self.from_ not in ("file", "folder") and self.template != "{name}":
            raise ValueError("template goes with from: file or from: folder")
        return self


class Source(_Strict):
    """One folder (or one file) of raw input on any fsspec URI; moving it does not change what it is."""

    kind: Kind
    uri: str = Field(min_length=1, json_schema_extra=PLACEMENT)
    name: str | None = None  # as records tell it; by default the kind and the source's number
    # Globs over paths below uri (`*` crosses folders); an empty include takes every file of the kind.
    include: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    # image_folder, video_folder; by default metadata.jsonl or metadata.csv where one lies in the folder, else none.
    captions: Captions | None = None
    # Symbolic links that lead out of uri (or to a hidden folder) are followed; by default each is a reject.
    follow_links: bool = False
    # Of texts, JSONL files, manifests and sidecars; a byte order mark in a file says more than this.
    encoding: str = "utf-8"
    license: str | None = None  # for records whose manifest names none
    synthetic: bool = False  # every record was made by a model of this project
    # How the listing tells a changed file: by size and etag or modification time, or by sha256.
    hash: Literal["stat", "content"] = "stat"
    text_field: str | None = None  # jsonl
    template: str | None = None  # jsonl: "{question}\n{answer}"
    image_field: str | None = None  # jsonl: path of an image, relative to the folder of the JSONL file
    video_field: str | None = None  # jsonl: likewise of a video
    caption_field: str | None = None  # jsonl with media; by default as in `Captions`
    label_field: str | None = "label"  # jsonl with media
    group_field: str | None = None  # jsonl, interleaved with a manifest: as in `Captions`
    manifest: str | None = None  # interleaved: JSONL of {file, segments} in place of parsing Markdown
    # jsonl with media, interleaved: a folder beside or above uri that rows may name files in, relative to the JSONL
    # file or to this folder; by default nothing outside uri is read.
    media_root: str | None = Field(default=None, min_length=1, json_schema_extra=PLACEMENT)
    # interleaved: prefix of a link -> prefix of a path below uri
    links: dict[str, str] = Field(default_factory=dict)

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_or_many(cls, value):
        return [value] if isinstance(value, str) else value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            "\n".encode(encoding)
        except (LookupError, ValueError, TypeError):
            raise ValueError(
                f"expected an encoding that Python knows, such as utf-8, latin-1, gb18030 or utf-16, got {encoding!r}"
            ) from None
        return encoding

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Source:
        belongs = {
            "captions": ("image_folder", "video_folder"),
            **dict.fromkeys(("text_field", "template", "image_field", "video_field"), ("jsonl",)),
            **dict.fromkeys(("manifest", "links"), ("interleaved",)),
            "media_root": ("jsonl", "interleaved"),
        }
        for name, kinds in belongs.items():
            if getattr(self, name) not in (None, {}) and self.kind not in kinds:
                raise ValueError(f"{name} goes with kind {' or '.join(kinds)}, not with {self.kind}")
        if self.kind == "jsonl":
            given = [n for n in ("text_field", "template", "image_field", "video_field") if getattr(self, n)]
            if not given:
                raise ValueError("kind jsonl needs one of text_field, template, image_field, video_field")
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.template is not None and not PLACEHOLDER.search(self.template):
            raise ValueError("template: expected at least one placeholder such as {question}")
        return self


class Splits(_Strict):
    """Shares of the records; they sum to 1. Each falls by its content or its group, and with its near twins."""

    train: float = Field(default=0.9, ge=0, le=1)
    validation: float = Field(default=0.05, ge=0, le=1)
    test: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _sum(self) -> Splits:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"expected train + validation + test = 1, got {total:g}")
        return self


class Config(_Strict):
    sources: list[Source] = Field(min_length=1)
    splits: Splits = Field(default_factory=Splits)
    limits: Limits = Field(default_factory=Limits)
    chunk_chars: int = Field(default=2000, ge=1)  # about so many characters of a text file make one record
    max_synthetic_fraction: float = Field(default=0.0, ge=0, le=1)
    shard_items: int = Field(default=512, ge=1)  # files in a shard, at most
    shard_bytes: int = Field(default=64 << 20, ge=1)  # bytes of files in a shard, about
    # Groups worked on at once; by default as many as there are CPUs.
    num_workers: int | None = Field(default=None, ge=1, json_schema_extra=PLACEMENT)

    @model_validator(mode="after")
    def _names(self) -> Config:
        names = [self.source_name(i) for i in range(len(self.sources))]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"sources.{i}.name: {name!r} is taken by sources.{names.index(name)}")
        return self

    def source_name(self, index: int) -> str:
        return self.sources[index].name or f"{self.sources[index].kind}_{index}"

    @property
    def kinds(self) -> set[str]:
        """The kinds of records (image, video, text, document) that the sources give, whatever they hold."""
        kinds = {"image_folder": "image", "video_folder": "video", "text": "text", "interleaved": "document"}
        return {
            kinds.get(source.kind) or ("image" if source.image_field else "video" if source.video_field else "text")
            for source in self.sources
        }
