"""Lists of URLs as text: a URL a line, and behind a tab or a space a caption, or before a tab."""

from __future__ import annotations

from collections.abc import Iterator

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.formats.base import Files, Format, Peek, Row, Wanted
from omniloom.stages.ingest.rejects import Reject


class UrlLines(Format):
    suffixes = (".txt", ".text", ".urls", ".lst", ".list")

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """{url, caption}; the number is the line's. Blank lines and those that begin with # are none."""
        empty = True
        blocks = files.root.blocks(item["path"])
        for number, (line, name) in enumerate(encoding.lines(blocks, files.max_bytes, files.encoding), 1):
            if line is not None and (not line.strip() or line.lstrip().startswith(b"#")):
                continue
            empty = False
            if line is None:
                yield number, Reject("too_large", f"a line of more than {files.max_bytes} bytes")
                continue
            try:
                yield number, _row(encoding.decode(line, name))
            except MediaError as error:
                yield number, Reject(error.code, error.message)
        if empty:
            raise MediaError("empty", "no URL in the list")

    def peek(self, files: Files, path: str) -> Peek:
        return Peek(["url", "caption"], True)


def _row(line: str) -> dict:
    before, tab, behind = line.strip().partition("\t")
    if tab and "://" in behind and "://" not in before:
        before, behind = behind, before
    if not tab:
        before, _, behind = line.strip().partition(" ")
    return {"url": before.strip(), "caption": behind.strip() or None}
