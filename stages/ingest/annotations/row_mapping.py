"""Row mapping: what a row of a table is as a record, by options that name its fields.

In: a row (a dictionary of a JSON line's values, or of a table's cells). Out: a record and a `Reject` for each value
that the record goes without; `MediaError` where the row is no record. How rows come out of a file is the kind's own
matter, so that every kind of rows has the same options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from omniloom.infra.secrets import redact_uris
from omniloom.stages.base import LATER, PATH, PLACEMENT
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations import cells, fields
from omniloom.stages.ingest.annotations.references import References
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.kinds.base import SourceKind
from omniloom.stages.ingest.options import PLACEHOLDER, SourceConfig, refuse
from omniloom.stages.ingest.rejects import Reject

_ONE_OF = ("text_field", "template", "image_field", "video_field", "conversations_field")


class RowsConfig(SourceConfig):
    """A source whose files hold rows. One of text_field, template, image_field, video_field and conversations_field
    says what a row is. A field within a field is named with a dot: "json.caption"."""

    text_field: str | None = None
    """The field whose text is the record."""
    template: str | None = None
    """The record's text, with each {field} replaced by the row's value, such as "{question}\\n{answer}"."""
    image_field: str | None = None
    """The field of an image: its bytes, a data: URI or base64 text, or its path relative to the folder of the file that
    holds the row."""
    video_field: str | None = None
    """The field of a video: its bytes, or its path relative to the folder of the file that holds the row."""
    conversations_field: str | None = Field(default=None, json_schema_extra=LATER)
    """The field of a conversation, a list of turns {from, value} or {role, content}. With image_field the record is a
    document with the row's images where the turns have <image>, otherwise a text."""
    caption_field: str | list[str] | None = None
    """The field of an image's or a video's caption, a text or a list of texts; or several such fields. By default the
    one of caption, captions, text and similar names that the row has."""
    label_field: str | None = "label"
    """The field of an image's or a video's label, a text or a number."""
    group_field: str | None = None
    """The field that names a group (a person, a recording, a patient). Records with the same value, in whichever
    source, lie in one split."""
    license_field: str | None = Field(default=None, json_schema_extra=LATER)
    """The field of the row's license."""
    media_root: str | None = Field(default=None, min_length=1, json_schema_extra=PATH | PLACEMENT)
    """A folder beside or above `uri` in which rows may name images and videos, relative to the file that holds the row
    or to this folder. By default nothing outside `uri` is read."""
    remote: bool | None = Field(default=None, json_schema_extra=LATER)
    """Fetch images and videos that rows name by a URI (http, https, s3, ...). By default such rows are rejects."""

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
        if len(chosen) > 1 and set(chosen) != {"image_field", "conversations_field"}:
            raise ValueError(f"{' and '.join(chosen)} exclude each other")
        if not self.media_field:
            refuse(self, ("caption_field", "label_field", "media_root", "remote"), "image_field or video_field")
        if self.conversations_field:
            refuse(self, ("caption_field", "label_field"), "image_field or video_field alone")
        return self

    @property
    def media_field(self) -> str | None:
        return self.image_field or self.video_field

    @property
    def record_kind(self) -> str:
        if self.conversations_field:
            return "document" if self.image_field else "text"
        return "image" if self.image_field else "video" if self.video_field else "text"

    @property
    def caption_fields(self) -> list[str]:
        """Those that are named."""
        named = self.caption_field or []
        return [named] if isinstance(named, str) else named

    def named_fields(self) -> Iterator[tuple[str, str]]:
        """(option, field) of every field that some row has to have."""
        for option in ("text_field", "image_field", "video_field", "conversations_field"):
            if field := getattr(self, option):
                yield option, field
        yield from (("template", field) for field in PLACEHOLDER.findall(self.template or ""))
        yield from (("caption_field", field) for field in self.caption_fields)
        for option in ("label_field", "group_field", "license_field"):
            field = getattr(self, option)
            if field and field != type(self).model_fields[option].default:
                yield option, field


class RowMapping:
    """Rows of one source into records."""

    def __init__(self, kind: SourceKind):
        self.config: RowsConfig = kind.config
        self.limits = kind.limits
        self.references = References(kind) if self.config.media_field else None
        more = self.config.conversations_field or self.config.group_field or self.config.license_field
        self._plain = None if more or self.references else self.config.text_field

    def wanted(self, columns: Sequence[str]) -> list[str]:
        """Those of a table's columns that a record is made of."""
        named = [field for _, field in self.config.named_fields()]
        named += [self.config.label_field or "", "synthetic", "omniloom"]
        heads = {*named, *(field.split(".", 1)[0] for field in named)}
        if self.references and not self.config.caption_fields:
            heads.update(fields.captions_of(columns))
        return [column for column in columns if column in heads]

    def record(self, row: dict, path: str) -> tuple[dict, list[Reject]]:
        """The record of a row of the file at `path`, and what of the row it goes without."""
        rejects: list[Reject] = []
        if self.config.conversations_field:
            record = self._conversation(row, path)
        elif self.references:
            record, rejects = self._media(row, path, self.references)
        else:
            record = self._text(row)
        for key, field in (("group", self.config.group_field), ("license", self.config.license_field)):
            value, problem = fields.short_text(*_value(row, field))
            rejects += [problem] if problem else []
            record |= {key: value} if value or key == "group" else {}
        record["synthetic"] = record.get("synthetic", False) or fields.marked(row)
        return record, rejects

    def text_of(self, row: dict) -> str | None:
        """The text of a row that is a field, where nothing else is asked of the row and nothing is wrong with it."""
        if self._plain is None or "synthetic" in row or "omniloom" in row:
            return None
        text = row.get(self._plain)
        if type(text) is not str or not text or text.isspace() or "\0" in text:
            return None
        return text if text.isascii() or encodable(text) else None

    def _text(self, row: dict) -> dict:
        config = self.config
        try:
            text = fields.fill(config.template, row) if config.template else _text_of(row, config.text_field)
        except ValueError as error:
            raise MediaError("missing_field", str(error)) from None
        return _text_record(text)

    def _media(self, row: dict, path: str, references: References) -> tuple[dict, list[Reject]]:
        from omniloom.stages.ingest import rows

        kind = self.config.record_kind
        data, name = cells.media(*_value(row, self.config.media_field), references, path)
        record = rows.media_row(kind, data, self.limits)
        captions, rejects = self._captions(row)
        label, wrong = fields.short_text(*_value(row, self.config.label_field))
        meta = {**record.get("meta", {}), **({"file": redact_uris(name)} if name else {})}
        return record | {**rows.captioned(captions), "label": label, "meta": meta}, [
            *rejects,
            *([wrong] if wrong else []),
        ]

    def _captions(self, row: dict) -> tuple[list[str], list[Reject]]:
        names, rejects = self.config.caption_fields, []
        if not names:
            name, ambiguous = fields.row_caption(row)
            names, rejects = [name] if name else [], [ambiguous] if ambiguous else []
        captions: list[str] = []
        for name in names:
            texts, bad = fields.caption_texts(*_value(row, name))
            captions += texts
            rejects += bad
        return list(dict.fromkeys(captions)), rejects

    def _conversation(self, row: dict, path: str) -> dict:
        """A text, or a document with the row's pictures."""
        from omniloom.stages.ingest import rows
        from omniloom.stages.ingest.annotations import conversations

        field, image_field = self.config.conversations_field or "", self.config.image_field
        parts = conversations.parts(*_value(row, field), pictures=bool(image_field))
        if not image_field or not self.references:
            return _text_record("".join(part for part in parts if isinstance(part, str)))
        own = cells.value_at(row, image_field) if image_field != field else None
        pictures = own if isinstance(own, list) else [own] if own not in (None, "") else []
        segments = []
        for part in conversations.illustrated(parts, pictures, image_field):
            if isinstance(part, str):
                _check_text(part)
                segments.append(rows.text_segment(part))
            else:
                data, _ = cells.media(part.value, image_field, self.references, path)
                segments.append(rows.image_segment(data, "", self.limits))
        return rows.document_row(segments, {})


def _value(row: dict, field: str | None) -> tuple[Any, str]:
    """A field's value and its name; None without a field."""
    return (cells.value_at(row, field), field) if field else (None, "")


def _text_of(row: dict, field: str | None) -> str:
    value, name = _value(row, field)
    if not isinstance(value, str) or not value:
        raise MediaError("missing_field", f"{name}: expected text, got {value!r:.80}")
    return value


def _text_record(text: str) -> dict:
    from omniloom.stages.ingest import rows

    _check_text(text)
    if not text.strip():
        raise MediaError("empty", "no text in it")
    return rows.text_row(text, 0)


def _check_text(text: str) -> None:
    if not encodable(text):
        raise MediaError("invalid_utf8", "a lone surrogate")
    encoding.no_nul(text)
