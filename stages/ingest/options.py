"""Options that sources have in common: of every source, and of captions. Each kind adds its own, in `kinds/`."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from omniloom.stages.base import PATH, PLACEMENT, path_to

PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Strict(BaseModel):
    """A config that knows its keys; the docstring under a field is its description in the schema."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, use_attribute_docstrings=True)


Globs = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class SourceConfig(Strict):
    """Options of every source: where it lies, which of its files are read, and what holds for all its records.

    Moving a source does not change what it is. A kind's own config derives from this one, names itself by
    `kind: Literal["name"]`, and may give `CANONICAL`, see `pipelines.fingerprint`.
    """

    CANONICAL: ClassVar[dict[str, Any]] = {}

    kind: str
    """How the source is read, one of the kinds that `omniloom schema` lists."""
    uri: str = Field(min_length=1, json_schema_extra=PATH | PLACEMENT)
    """The folder, or the one file, on any filesystem that fsspec reaches; `~` is expanded, and a relative path starts
    at the folder in which the command runs."""
    name: str | None = None
    """The source's name in records; by default its kind and its number."""
    include: Globs = Field(default_factory=list)
    """Patterns of paths below `uri` to read, such as "*.png"; `*` crosses folders. By default every file of the
    kind."""
    exclude: Globs = Field(default_factory=list)
    """Patterns of paths below `uri` to leave out, even where `include` takes them."""
    follow_links: bool = False
    """Follow symbolic links that lead out of `uri` or to a hidden folder; by default each is rejected."""
    encoding: str = "utf-8"
    """The encoding of texts, JSONL files, manifests and sidecars, such as latin-1, gb18030 or utf-16. A byte order
    mark in a file takes precedence."""
    license: str | None = None
    """The license of records for which no manifest names one."""
    synthetic: bool = False
    """Every record of the source was made by a model of this project."""
    hash: Literal["stat", "content"] = "stat"
    """How a changed file is noticed: stat compares sizes and modification times or etags, content compares sha256."""

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


# The sources' configs were one class once. What the other kinds' fields were by default is still part of what a source
# of these kinds is, so that what was made from it stays valid.
FORMER_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("captions", "text_field", "template", "image_field", "video_field", "caption_field")),
    **dict.fromkeys(("group_field", "manifest")),
    "label_field": "label",
    "links": {},
}


class Captions(Strict):
    """Where captions and labels come from: a manifest, texts beside the files, or the names of files or folders."""

    manifest: str | None = Field(None, json_schema_extra=path_to("source"))
    """JSON lines, or a table in .csv or .tsv with a line of column names: a path below the source's `uri` (or starting
    there, such as ../captions.jsonl), or a URI of its own."""
    file_field: str | None = None
    """The manifest's field that names the media file, relative to the source's `uri`. By default the one of file,
    file_name, image, path and similar names that the rows have."""
    caption_field: str | list[str] | None = None
    """The manifest's field of the caption, a text or a list of texts; or several such fields. By default the one of
    caption, captions, text and similar names that the rows have."""
    label_field: str | None = "label"
    """The manifest's field of the label, a text or a number."""
    group_field: str | None = None
    """The manifest's field that names a group (a person, a recording, a patient). Records with the same value, in
    whichever source, lie in one split."""
    license_field: str | None = "license"
    """The manifest's field of the license."""
    meta_fields: list[str] = Field(default_factory=list)
    """Fields of the manifest that are kept in the record's `meta`."""
    from_: Literal["folder", "file", "sidecar"] | None = Field(default=None, alias="from")
    """In place of a manifest: sidecar takes the text of the .txt or .caption file of the same name beside the media
    file, or the captions in its .json; file and folder take its name or its folder's name."""
    template: str = "{name}"
    """With `from: file` or `from: folder`, the caption; {name} stands for the name, with `_` and `-` as spaces."""

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
            raise ValueError("template: goes with from: file or from: folder")
        if self.manifest is None:
            refuse(self, _OF_MANIFESTS, "manifest")
        return self


_OF_MANIFESTS = ("file_field", "caption_field", "label_field", "group_field", "license_field", "meta_fields")


def refuse(config: BaseModel, names: tuple[str, ...], goes_with: str) -> None:
    """ValueError for a field of `names` that has another value than its default, where it has no use."""
    for name in names:
        field = type(config).model_fields[name]
        if getattr(config, name) != field.get_default(call_default_factory=True):
            raise ValueError(f"{name}: goes with {goes_with}")


UNNAMED = Captions(from_="file")  # the fields of a manifest that nobody configured
