"""Row mapping: what a row of a table is as a record, by options that name its fields.

In: a row (a dictionary of a JSON line's values, or of a table's cells). Out: a record and a `Reject` for each value
that the record goes without; `MediaError` where the row is no record. How rows come out of a file is the kind's own
matter, so that every kind of rows has the same options.
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from omniloom.stages.base import PATH, PLACEMENT
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import encoding, fields
from omniloom.stages.ingest.kinds.base import SourceKind
from omniloom.stages.ingest.options import PLACEHOLDER, SourceConfig, refuse
from omniloom.stages.ingest.paths import encodable
from omniloom.stages.ingest.references import References
from omniloom.stages.ingest.rejects import Reject

_ONE_OF = ("text_field", "template", "image_field", "video_field")


class RowsConfig(SourceConfig):
    """A source whose files hold rows. One of text_field, template, image_field and video_field says what a row is."""

    text_field: str | None = None
    """The field whose text is the record."""
    template: str | None = None
    """The record's text, with each {field} replaced by the row's value, such as "{question}\\n{answer}"."""
    image_field: str | None = None
    """The field that names an image, by a path relative to the folder of the file that holds the row."""
    video_field: str | None = None
    """The field that names a video, by a path relative to the folder of the file that holds the row."""
    caption_field: str | None = None
    """The field of an image's or a video's caption, a text or a list of texts. By default the one of caption, captions,
    text and similar names that the row has."""
    label_field: str | None = "label"
    """The field of an image's or a video's label, a text or a number."""
    group_field: str | None = None
    """The field that names a group (a person, a recording, a patient). Records with the same value, in whichever
    source, lie in one split."""
    media_root: str | None = Field(default=None, min_length=1, json_schema_extra=PATH | PLACEMENT)
    """A folder beside or above `uri` in which rows may name images and videos, relative to the file that holds the row
    or to this folder. By default nothing outside `uri` is read."""

    @field_validator("template")
    @classmethod
    def _a_placeholder(cls, template: str | None) -> str | None:
        if template is not None and not PLACEHOLDER.search(template):
            raise ValueError("expected at least one placeholder such as {question}")
        return template

    @model_validator(mode="after")
    def _one_meaning(self) -> RowsConfig:
        chosen = [name for name in _ONE_OF if getattr(self, name)]
        if not chosen:
            raise ValueError(f"kind {self.kind} needs one of {', '.join(_ONE_OF)}")
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other")
        if not self.media_field:
            refuse(self, ("caption_field", "label_field", "media_root"), "image_field or video_field")
        return self

    @property
    def media_field(self) -> str | None:
        return self.image_field or self.video_field

    @property
    def record_kind(self) -> str:
        return "image" if self.image_field else "video" if self.video_field else "text"


class RowMapping:
    """Rows of one source into records."""

    def __init__(self, kind: SourceKind):
        self.config: RowsConfig = kind.config
        self.limits = kind.limits
        self.references = References(kind) if self.config.media_field else None

    def record(self, row: dict, path: str) -> tuple[dict, list[Reject]]:
        """The record of a row of the file at `path`, and what of the row it goes without."""
        if self.references:
            record, rejects = self._media(row, path, self.references)
        else:
            record, rejects = self._text(row), []
        group, problem = fields.short_text(*_value(row, self.config.group_field))
        record["group"] = group
        record["synthetic"] = record.get("synthetic", False) or fields.marked(row)
        return record, [*rejects, *([problem] if problem else [])]

    def _text(self, row: dict) -> dict:
        from omniloom.stages.ingest import rows

        config = self.config
        try:
            text = fields.fill(config.template, row) if config.template else _text_of(row, config.text_field)
        except ValueError as error:
            raise MediaError("missing_field", str(error)) from None
        if not encodable(text):
            raise MediaError("invalid_utf8", "a lone surrogate")
        if not encoding.no_nul(text).strip():
            raise MediaError("empty", "no text in it")
        return rows.text_row(text, 0)

    def _media(self, row: dict, path: str, references: References) -> tuple[dict, list[Reject]]:
        from omniloom.stages.ingest import rows

        name = _text_of(row, self.config.media_field)
        record = rows.media_row(self.config.record_kind, references.read(name, path), self.limits)
        key, ambiguous = fields.row_caption(row, self.config.caption_field)
        captions, rejects = fields.caption_texts(*_value(row, key))
        label, wrong = fields.short_text(*_value(row, self.config.label_field))
        record |= {**rows.captioned(captions), "label": label, "meta": {**record.get("meta", {}), "file": name}}
        return record, [*rejects, *(problem for problem in (ambiguous, wrong) if problem)]


def _value(row: dict, field: str | None) -> tuple[object, str]:
    """A field's value and its name; None without a field."""
    return (row.get(field), field) if field else (None, "")


def _text_of(row: dict, field: str | None) -> str:
    value, name = _value(row, field)
    if not isinstance(value, str) or not value:
        raise MediaError("missing_field", f"{name}: expected text, got {value!r:.80}")
    return value
