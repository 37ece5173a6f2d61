"""A kind of source for OmniLoom: tables (CSV, TSV) whose rows hold the URL of an image and its caption.

In: a folder of tables, or one table. Planning reads the tables and no image: a row is an item. Workers fetch the
images, from any URI that fsspec reaches, and give a record or a reject for each row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact_uris
from omniloom.stages.base import PLACEMENT
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations.manifests import Manifest, read_manifest
from omniloom.stages.ingest.kinds import Contents, Reject, SourceConfig, SourceKind
from omniloom.stages.ingest.look.glimpse import BY_REFERENCE, Glimpse, Recognition


class CsvUrlsConfig(SourceConfig):
    """Tables whose rows hold the URL of an image and its caption."""

    CANONICAL = {"version": 1}  # raise it when the same tables give other records

    kind: Literal["csv_urls"]
    """Tables whose rows hold the URL of an image and its caption."""
    url_column: str = "url"
    """The column of the image's URI, such as https://host/a.jpg, s3://bucket/a.png or file:///data/a.webp, or an
    absolute path."""
    caption_column: str | None = "caption"
    """The column of the caption; null for images without captions."""
    timeout: float = Field(default=30.0, gt=0, json_schema_extra=PLACEMENT)
    """Seconds that one try to fetch an image over HTTP may take."""
    hash: Literal["stat", "content"] = "content"
    """How a changed table is noticed. What lies behind its URLs is not looked at again."""


class CsvUrls(SourceKind):
    Config = CsvUrlsConfig
    suffixes = (".csv", ".tsv")
    config: CsvUrlsConfig

    @classmethod
    def makes(cls, config: CsvUrlsConfig) -> str:
        return "image"

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Tables with a column `url` of URIs."""
        paths = [p for p in glimpse.having(cls.suffixes) if any("://" in row.get("url", "") for row in glimpse.rows(p))]
        return Recognition(frozenset(paths), strength=BY_REFERENCE) if paths else None

    def check(self, contents: Contents) -> None:
        for file in contents.of_kind:
            if file.reject:
                continue
            table = self._table(file.path)
            for option in ("url_column", "caption_column"):
                column = getattr(self.config, option)
                if column is not None and column not in table.keys:
                    raise InputError(
                        f"{table.name} has no column {column!r}; its columns are {', '.join(table.keys) or 'none'}",
                        field=f"{self.field}.{option}",
                    )

    def items(self, contents: Contents, notes: Counter) -> list[dict]:
        """One per row, whose number in the table is the record's part."""
        items = []
        for file in contents.of_kind:
            if file.reject:
                items.append(self.item(file))
                continue
            table = self._table(file.path)
            for line, row in table.rows:
                if isinstance(row, Reject):
                    items.append(self.rejected(table.where(line), row))
                    continue
                caption = row.get(self.config.caption_column) if self.config.caption_column else None
                said = {"url": row.get(self.config.url_column), "caption": caption, "part": line}
                items.append({**self.item(file), "size": 0, **said})  # how large the image is, no one knows yet
        return items

    def _table(self, path: str) -> Manifest:
        return read_manifest(self.root, self.root.uri(path), path, f"{self.field}.uri")

    def read(self, item: dict) -> Iterator[dict | Reject]:
        from omniloom.stages.ingest import rows
        from omniloom.stages.ingest.annotations import fields
        from omniloom.stages.ingest.files.fetching import fetch

        url = item["url"]
        if not isinstance(url, str) or not ("://" in url or url.startswith("/")):
            expected = "a URI such as https://host/a.jpg, or an absolute path"
            raise MediaError("missing_field", f"{self.config.url_column}: expected {expected}, got {url!r:.80}")
        data = fetch(url.strip(), self.limits.max_bytes, self.config.timeout)
        record = rows.media_row("image", data, self.limits)
        captions, rejects = fields.caption_texts(item["caption"], self.config.caption_column or "")
        meta = {**record.get("meta", {}), "url": redact_uris(url)}
        yield {**record, **rows.captioned(captions), "meta": meta}
        yield from rejects
