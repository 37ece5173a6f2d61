"""Rejects: why an item, a line or a value cannot be used.

Reason codes beyond those of `stages.data.media.decode`: missing_file, outside_root, not_a_file, bad_name, unreadable,
invalid_utf8, invalid_encoding, not_text, invalid_json, missing_field, bad_manifest_row, bad_caption, repeated,
remote_media, bad_segments, failed (an error that nobody foresaw, by its name).
"""

from __future__ import annotations

from dataclasses import dataclass

from omniloom.stages.data.media.limits import MediaError, one_line
from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.files.retrying import unreadable


@dataclass(frozen=True)
class Reject:
    """`part` and `path` are those of the item that is read, unless they are said."""

    code: str
    message: str
    part: int | None = None
    path: str | None = None

    @classmethod
    def of(cls, error: Exception, path: str, part: int | None = None) -> Reject:
        """The reject that an error means which came up while `path` was read."""
        if isinstance(error, OSError):
            error = unreadable(error, path)
        if isinstance(error, MediaError):
            return cls(error.code, error.message, part, path)
        return cls("failed", f"{type(error).__name__}: {one_line(error)}", part, path)

    def row(self, path: str, part: int) -> dict:
        """The line of rejects.jsonl, less its source."""
        return {
            "path": printable(self.path or path),
            "part": part if self.part is None else self.part,
            "code": self.code,
            "message": printable(self.message),
        }


def printable(text: str) -> str:
    """The text, in ASCII where UTF-8 cannot hold it."""
    return text if encodable(text) else ascii(text)
