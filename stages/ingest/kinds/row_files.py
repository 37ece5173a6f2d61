"""Sources whose files hold rows: what kinds of them have in common, whatever the format of the files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

from omniloom.infra.errors import InputError
from omniloom.stages.ingest.annotations import fields
from omniloom.stages.ingest.annotations.row_mapping import RowMapping, RowsConfig
from omniloom.stages.ingest.files.listing import SourceFile
from omniloom.stages.ingest.files.suffixes import suffix
from omniloom.stages.ingest.formats.base import Files, Format, Peek
from omniloom.stages.ingest.kinds.base import Contents, SourceKind
from omniloom.stages.ingest.look import row_recognition
from omniloom.stages.ingest.look.glimpse import Glimpse, Recognition
from omniloom.stages.ingest.rejects import Reject
from omniloom.stages.ingest.text_runs import AT_ONCE, Texts

_PEEKED = 64  # files at most that are looked into for a column, on every plan


class RowFiles(SourceKind):
    """A row is a record. A kind has `known` formats, and overrides `record` and `named_fields` where its rows mean
    something of their own."""

    one_file_one_split = False
    usual_options = {"text_field": "text"}
    known: ClassVar[Sequence[Format]]  # the formats, where no option says more of them

    @classmethod
    def makes(cls, config: Any) -> str:
        return config.record_kind

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """By what the first rows hold."""
        return row_recognition.recognize(glimpse, glimpse.having(cls.suffixes), cls.known, cls.usual_options)

    @cached_property
    def formats(self) -> Sequence[Format]:
        """How the files are read, by their suffixes; the first one where a suffix says nothing."""
        return self.known

    def format_of(self, path: str) -> Format:
        return next((known for known in self.formats if suffix(path) in known.suffixes), self.formats[0])

    @cached_property
    def files(self) -> Files:
        return Files(self.root, self.config.encoding, self.limits.max_bytes)

    @property
    def names_files(self) -> bool:
        return bool(self.config.media_field)

    @cached_property
    def mapping(self) -> RowMapping:
        return RowMapping(self)

    # ---- for kinds whose rows mean something of their own ----

    def record(self, row: dict, path: str) -> tuple[dict, list[Reject]]:
        """The record of a row, and what of the row it goes without; MediaError where the row is none."""
        return self.mapping.record(row, path)

    @cached_property
    def text_of(self) -> Callable[[dict], str | None]:
        """The text of a row where the record is that alone; None where `record` has to look."""
        return self.mapping.text_of if type(self).record is RowFiles.record else lambda row: None

    def wanted(self, columns: Sequence[str]) -> list[str]:
        """Those of a table's columns that are read."""
        return self.mapping.wanted(columns)

    def named_fields(self) -> Iterable[tuple[str, str]]:
        """(option, field) of every field that some row has to have."""
        return self.config.named_fields()

    # ---- planning ----

    def check(self, contents: Contents) -> None:
        """InputError for a field that no row has, as far as heads of files tell, and for captions that may be several
        columns of a table."""
        missing = dict.fromkeys(self.named_fields())
        names: dict[str, None] = {}
        step = max(1, len(contents.of_kind) // _PEEKED)
        whole = step == 1
        for peek in self._peeks(islice(contents.of_kind, 0, None, step)):
            names |= dict.fromkeys(peek.columns)
            whole = whole and peek.whole
            self._one_caption(peek)
            missing = {pair: None for pair in missing if not has(names, pair[1])}
            if not missing:
                return
        if not names:
            return  # nothing could be read: the rejects say why
        rows = "no row" if whole else "none of the first rows"
        for option, field in missing:
            raise InputError(
                f"{self.root.place}: {rows} has a field {field!r}; the fields are {', '.join(names)}",
                field=f"{self.field}.{option}",
            )

    def _peeks(self, files: Iterable[SourceFile]) -> Iterator[Peek]:
        for file in files:
            if file.reject:
                continue
            try:
                yield self.format_of(file.path).peek(self.files, file.path)
            except Exception:
                continue  # whoever reads the file says what is wrong with it

    def _one_caption(self, peek: Peek) -> None:
        config: Any = self.config
        if not isinstance(config, RowsConfig) or config.record_kind not in ("image", "video") or config.caption_fields:
            return
        top = [name for name in peek.columns if "." not in name]
        if peek.table and len(candidates := fields.captions_of(top)) > 1:
            raise InputError(
                f"{self.root.place}: {' and '.join(map(repr, candidates))} may both be captions; set caption_field to "
                f"one of them, or to a list (the fields are {', '.join(top)})",
                field=f"{self.field}.caption_field",
            )

    def cut(self, item: dict, size: int, count: int) -> Iterator[dict]:
        """By bytes or rows; by `count` rows where they name files, each of which may be large."""
        return self.format_of(item["path"]).cut(self.files, item, size, count if self.names_files else sys.maxsize)

    # ---- reading ----

    def read(self, item: dict) -> Iterator[dict | Texts | Reject]:
        """A record or a reject per row, with the row's number as its part; texts in runs. A file that fails half way
        keeps what came before."""
        path, number = item["path"], 0
        texts: list[str] = []
        parts: list[int] = []
        size = 0
        text_of = self.text_of
        try:
            for number, row in self.format_of(path).rows(self.files, item, self.wanted):
                text = text_of(row) if type(row) is dict else None
                if text is not None:
                    texts.append(text)
                    parts.append(number)
                    size += len(text)
                if texts and (text is None or size >= AT_ONCE):
                    yield Texts(texts, parts)
                    texts, parts, size = [], [], 0
                if text is None:
                    yield from self._row(row, path, number)
            if texts:
                yield Texts(texts, parts)
        except Exception as error:
            if texts:
                yield Texts(texts, parts)
            if not number and "from" not in item:
                raise  # the whole file's reject
            yield Reject.of(error, path, number + 1 if number else item.get("part", 0))
            return
        if not number and item.get("part", 1) == 1 and not item.get("rows"):
            yield Reject("empty", "no row in the file", 0)

    def _row(self, row: dict | Reject, path: str, number: int) -> Iterator[dict | Reject]:
        """The record of a row, or the reject; and a reject for each value that the record goes without."""
        if isinstance(row, Reject):
            yield Reject(row.code, row.message, number)
            return
        try:
            record, rejects = self.record(row, path)
        except Exception as error:
            yield Reject.of(error, path, number)
            return
        yield {**record, "part": number}
        for problem in rejects:
            yield Reject(problem.code, problem.message, number)


def has(names: Iterable[str], field: str) -> bool:
    """Whether one of the columns is the field, or may hold it."""
    return field in names or any(field.startswith(f"{name}.") and name.count(".") >= 2 for name in names)
