"""Readers: one item of a source into records, or into the reason why not.

In: an item of `stages.ingest.sources`. Out: record rows (see `stages.data.records`; `split` and `source` are set by
ingest) with what `ingest.splits` asks for, runs of texts in columns (`stages.ingest.text_runs`), and rejects {"path",
"part", "code", "message"}. An item gives at least one of them; a text file gives a record per chunk, a JSONL file a
record or a reject per line.

No exception leaves `Reader.read`: what fails costs its item, line or caption, and is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.kinds.table import open_source
from omniloom.stages.ingest.rejects import Reject
from omniloom.stages.ingest.splitting.splits import group_key
from omniloom.stages.ingest.text_runs import Facts, TextRun, Texts, completed

_LAST_PART = (1 << 31) - 1
# Of an item: where a file, or a piece of it, lies, and how much it holds.
_OF_THE_FILE = frozenset(
    ("source", "path", "size", "identity", "held", "packed", "part", "from", "to", "rows", "encoding", "digest")
)


class Reader:
    """Reads the items of one source."""

    def __init__(self, config: Config, index: int):
        self.kind = open_source(config.sources[index], index, config.limits, config.chunk_chars)
        self.kind.root.settle()

    def read(self, item: dict) -> Iterator[dict]:
        """Rows and rejects of one item, told apart by the key `code` of a reject. Raises for no content
        whatever.
        """
        for entry in self.entries(item):
            yield from entry.rows() if isinstance(entry, TextRun) else (entry,)

    def entries(self, item: dict) -> Iterator[dict | TextRun]:
        """The same, texts in runs."""
        path, part = item["path"], item.get("part", 0)
        if "reject" in item:
            code, message = item["reject"]
            yield Reject(code, message, 0).row(path, part)
            return
        try:
            for row in self.kind.read(item):
                if isinstance(row, Reject):
                    yield row.row(path, part)
                elif isinstance(row, Texts):
                    yield from self._run(row, item)
                else:
                    yield _entry(self._completed(row, item))
        except Exception as error:
            yield Reject.of(error, path).row(path, part)

    def asked(self, item: dict) -> list[str]:
        """The files besides its own that reading an item asked for, as the listing names them; to be called once it
        has been read."""
        own = item["path"] if "identity" in item else None
        found: list[str] = []
        for root, prefix in ((self.kind.root, ""), (self.kind.media_root, "media_root/")):
            if root:
                found += [prefix + path for path in root.asked] if root.asked != [own] or prefix else ()
                root.asked = []
        return [path for path in dict.fromkeys(found) if path != own]

    def _run(self, texts: Texts, item: dict) -> Iterator[dict | TextRun]:
        if texts.parts[-1] <= _LAST_PART:
            yield TextRun(texts.texts, texts.parts, self._facts(item))
        else:  # of which no record can say where it is: whoever writes them refuses them
            row = {"kind": "text", "format": "text", **self._facts(item)._asdict()}
            for text, part in zip(*texts, strict=True):
                yield completed({**row, "text": text, "part": part})

    def _facts(self, item: dict) -> Facts:
        """What all texts of an item have."""
        if _OF_THE_FILE.issuperset(item):  # nearly all: nothing is said of it
            path, config = item["path"], self.kind.config
            group = group_key("file", path) if self.kind.one_file_one_split else None
            return Facts(path, group, config.license, config.synthetic, "{}")
        row = self._completed({"kind": "text"}, item)
        return Facts(row["path"], row["group"], row["license"], row["synthetic"], row["meta"])

    def _completed(self, row: dict, item: dict) -> dict:
        row.setdefault("part", item.get("part", 0))
        row["path"] = item["path"]
        of_file = row.pop("of_file", row["kind"] in ("text", "document") and self.kind.one_file_one_split)
        if group := item.get("group") or row.get("group"):
            row["group"] = group_key("named", group)
        elif of_file:
            row["group"] = group_key("file", item["path"])
        else:
            row["group"] = None
        row["license"] = item.get("license") or row.get("license") or self.kind.config.license
        row["synthetic"] = bool(row.get("synthetic") or item.get("synthetic") or self.kind.config.synthetic)
        meta = {**item.get("meta", {}), **row.get("meta", {})}
        row["meta"] = json.dumps(meta, ensure_ascii=False, default=str) if meta else "{}"
        if not encodable(row["meta"]):
            row["meta"] = json.dumps(meta, default=str)
        return row


def _entry(row: dict) -> dict | TextRun:
    if row["kind"] != "text" or "id" in row:
        return row
    plain = row["part"] <= _LAST_PART and encodable(row["text"])
    return (plain and TextRun.of_row(row)) or completed(row)
