"""Lists of URLs: pictures and videos of the web, with the captions that stand beside their addresses."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from omniloom.infra import storage
from omniloom.infra.secrets import redact_uris
from omniloom.stages.base import PATH, PLACEMENT
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations import cells, fields
from omniloom.stages.ingest.files.suffixes import VIDEOS, suffix
from omniloom.stages.ingest.formats.base import Files, Format, Row
from omniloom.stages.ingest.formats.delimited import Delimited
from omniloom.stages.ingest.formats.json_array import JsonArray
from omniloom.stages.ingest.formats.json_lines import JsonLines
from omniloom.stages.ingest.formats.parquet import Parquet
from omniloom.stages.ingest.formats.url_lines import UrlLines
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.look.glimpse import BY_REFERENCE, Glimpse, Recognition
from omniloom.stages.ingest.options import SourceConfig
from omniloom.stages.ingest.rejects import Reject

URL_FIELDS = (
    *("url", "image_url", "img_url", "video_url", "contenturl"),
    *("image", "img", "src", "link", "uri", "image_link"),
)
_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_HELD_BYTES = 4 << 20  # of a file that waits in memory for those before it
_MOST_PIECES = 256  # of one list: each is read up to where the piece begins


class UrlListConfig(SourceConfig):
    """Lists of URLs with captions: text (a URL a line), CSV or TSV, JSON, JSON lines or Parquet. What is fetched is
    kept in `cache`."""

    kind: Literal["url_list"]
    """Lists of URLs with captions, fetched and kept."""
    media: Literal["image", "video"] = "image"
    """What lies behind the URLs."""
    url_field: str | None = None
    """The field of the URL. By default the one of url, image_url, image and similar names that the row has."""
    caption_field: str | list[str] | None = None
    """The field of the caption, a text or a list of texts; or several such fields. By default the one of caption,
    captions, text and similar names that the row has."""
    label_field: str | None = "label"
    """The field of the label, a text or a number."""
    group_field: str | None = None
    """The field that names a group. Records with the same value, in whichever source, lie in one split."""
    license_field: str | None = None
    """The field of the license."""
    columns: list[str] = Field(default_factory=list)
    """The names of the columns where tables (.csv, .tsv) have no line of names at their top."""
    cache: str | None = Field(default=None, min_length=1, json_schema_extra=PATH | PLACEMENT)
    """A folder or URI in which what was fetched is kept, so that it is never fetched again. By default the machine's
    cache, $OMNILOOM_CACHE/downloads; on a cluster name one that all machines reach."""
    connections: int = Field(default=16, ge=1, le=256, json_schema_extra=PLACEMENT)
    """How many files a worker fetches at once."""
    per_host: int = Field(default=4, ge=1, le=64, json_schema_extra=PLACEMENT)
    """How many connections to one host a machine has at most, by all its workers."""
    timeout: float = Field(default=30.0, gt=0, json_schema_extra=PLACEMENT)
    """Seconds that one try to fetch a file may take."""
    user_agent: str = Field(default="", json_schema_extra=PLACEMENT)
    """How servers are told who asks, such as "example.org crawler (me@example.org)". By default OmniLoom's name and
    version."""


class UrlList(RowFiles):
    Config = UrlListConfig
    suffixes = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".json", *UrlLines.suffixes)
    names_files = False
    fetches = True

    @classmethod
    def makes(cls, config: Any) -> str:
        return config.media

    @cached_property
    def formats(self) -> Sequence[Format]:
        return _formats(self.config.columns)

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Lists most of whose first rows have a URL in a field that is called so, or are one."""
        found = {path: urls for path in glimpse.having(cls.suffixes) if (urls := _urls(glimpse, path))}
        videos = [all(suffix(urlsplit(url).path) in VIDEOS for url in urls) for urls in found.values()]
        paths = [path for path, of_videos in zip(found, videos, strict=True) if of_videos == videos[0]]
        options = {"media": "video"} if videos and videos[0] else {}
        return Recognition(frozenset(paths), options, BY_REFERENCE) if paths else None

    # ---- planning ----

    def named_fields(self) -> Iterator[tuple[str, str]]:
        config = self.config
        named = [config.caption_field] if isinstance(config.caption_field, str) else config.caption_field or []
        yield from (("caption_field", field) for field in named)
        for option in ("url_field", "label_field", "group_field", "license_field"):
            field = getattr(config, option)
            if field and field != UrlListConfig.model_fields[option].default:
                yield option, field

    def wanted(self, columns: Sequence[str]) -> list[str]:
        named = {field.split(".", 1)[0] for _, field in self.named_fields()} | {self.config.label_field}
        named |= {*fields.captions_of(columns), "synthetic", "omniloom"}
        return [column for column in columns if column in named or column.lower() in URL_FIELDS]

    def cut(self, item: dict, size: int, count: int) -> Iterator[dict]:
        """By rows, for the size of what they name is not known."""
        rows = sum(1 for _ in self._rows(item))
        step = max(count, -(-rows // _MOST_PIECES))
        if rows <= step:
            yield item
            return
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            share = {"size": item["size"] * (stop - start) // rows, "rows": stop - start}
            yield {**item, "from": start, "to": stop, "part": start + 1, **share}

    # ---- reading ----

    def read(self, item: dict) -> Iterator[dict | Reject]:
        """A record or a reject per row, in order; the files of the next rows are fetched meanwhile."""
        path, rows = item["path"], islice(self._rows(item), item.get("from", 0), item.get("to"))
        waiting: deque[tuple[int, dict | Reject, Future | None]] = deque()
        with ThreadPoolExecutor(self.config.connections) as pool:
            try:
                for number, row in rows:
                    fetched = pool.submit(self._fetch, row) if isinstance(row, dict) else None
                    waiting.append((number, row, fetched))
                    if len(waiting) > self.config.connections:
                        yield from self._done(*waiting.popleft(), path)
                while waiting:
                    yield from self._done(*waiting.popleft(), path)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _rows(self, item: dict) -> Iterator[Row]:
        whole = {"path": item["path"], "size": item["size"]}
        return self.format_of(item["path"]).rows(self.files, whole, self.wanted)

    def _done(self, number: int, row: dict | Reject, fetched: Future | None, path: str) -> Iterator[dict | Reject]:
        if isinstance(row, Reject) or fetched is None:
            yield from self._row(row, path, number)
            return
        try:
            data = fetched.result()
            data = self.downloader.get(self._url(row)) if data is None else data
        except Exception as error:
            yield Reject.of(error, path, number)
            return
        yield from self._row({**row, _CONTENT: data}, path, number)

    def record(self, row: dict, path: str) -> tuple[dict, list[Reject]]:
        from omniloom.stages.ingest import rows

        record = rows.media_row(self.config.media, row[_CONTENT], self.limits)
        captions, rejects = self._captions(row)
        facts: dict[str, Any] = {}
        for key in ("label", "group", "license"):
            name = getattr(self.config, f"{key}_field")
            facts[key], problem = fields.short_text(cells.value_at(row, name) if name else None, name or "")
            rejects += [problem] if problem else []
        facts = {key: value for key, value in facts.items() if value or key != "license"}
        meta = {**record.get("meta", {}), "url": redact_uris(self._url(row))}
        marked = record.get("synthetic", False) or fields.marked(row)
        return {**record, **rows.captioned(captions), **facts, "meta": meta, "synthetic": marked}, rejects

    def _captions(self, row: dict) -> tuple[list[str], list[Reject]]:
        names = [field for option, field in self.named_fields() if option == "caption_field"]
        rejects: list[Reject] = []
        if not names:
            name, ambiguous = fields.row_caption(row)
            names, rejects = [name] if name else [], [ambiguous] if ambiguous else []
        captions: list[str] = []
        for name in names:
            texts, bad = fields.caption_texts(cells.value_at(row, name), name)
            captions += texts
            rejects += bad
        return list(dict.fromkeys(captions)), rejects

    # ---- fetching ----

    @cached_property
    def downloader(self):
        from omniloom.stages.ingest.files.downloads import Downloader

        cache = self.config.cache or str(storage.cache_folder() / "downloads")
        agent = self.config.user_agent or f"OmniLoom/{version('omniloom')} (dataset download)"
        config = self.config
        return Downloader(storage.absolute(cache), self.limits.max_bytes, config.timeout, config.per_host, agent)

    def _fetch(self, row: dict) -> bytes | None:
        """The content, if it is small; a large one waits in the cache until it is its turn."""
        data = self.downloader.get(self._url(row))
        return data if len(data) <= _HELD_BYTES else None

    def _url(self, row: dict) -> str:
        value = cells.value_at(row, self.config.url_field) if self.config.url_field else _usual_url(row)
        name = self.config.url_field or "url"
        if not isinstance(value, str) or not _URL.fullmatch(value.strip()):
            raise MediaError("missing_field", f"{name}: expected a URL such as https://host/a.jpg, got {value!r:.80}")
        return value.strip()


def _formats(columns: Sequence[str] = ()) -> tuple[Format, ...]:
    return UrlLines(), Delimited(columns), JsonLines(), JsonArray(), Parquet()


_CONTENT = "\0content"  # of a row: what was fetched for it; no field is called so


def _usual_url(row: dict) -> Any:
    """The first field of a usual name that holds a URL, else the first of such a name."""
    values = [value for name in URL_FIELDS for key, value in row.items() if key.lower() == name]
    urls = [value for value in values if isinstance(value, str) and _URL.match(value.strip())]
    return next(iter(urls or values), None)


def _urls(glimpse: Glimpse, path: str) -> list[str]:
    """The URLs of a list's first rows; none where fewer than four of five are."""
    known = next(format for format in _formats() if suffix(path) in format.suffixes)
    try:
        rows = islice(known.rows(Files(glimpse.root, "utf-8", 1 << 20), {"path": path, "size": 0}, list), 20)
        found = [_usual_url(row) if isinstance(row, dict) else None for _, row in rows]
    except Exception:  # whoever reads it says what is wrong with it
        return []
    urls = [value.strip() for value in found if isinstance(value, str) and _URL.fullmatch(value.strip())]
    return urls if urls and 5 * len(urls) >= 4 * len(found) else []
