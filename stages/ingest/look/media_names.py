"""The names by which files and rows speak of media files. In: paths of media files. Out: the one that a value names."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any


class MediaNames:
    """Media files by what may stand for them: their path, any end of it, with and without its ending, its number."""

    def __init__(self, media: Sequence[str]):
        self._known: dict[str, str | None] = {}
        for path in media:
            parts = path.lower().split("/")
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                for spelt in {end, posixpath.splitext(end)[0]}:
                    self._known[spelt] = path if self._known.get(spelt, path) == path else None
        numbers: dict[int, str | None] = {}
        for path in media:
            stem = posixpath.splitext(posixpath.basename(path))[0]
            if digits := re.fullmatch(r"\D*?0*(\d+)", stem):
                number = int(digits[1])
                numbers[number] = path if numbers.get(number, path) == path else None
        self._numbers = numbers

    def find(self, value: Any, folder: str = "") -> str | None:
        """The media file that a value names, in `folder` before others; None where it names none, or several."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        if isinstance(value, int):
            return self._numbers.get(value)
        text = re.sub(r"#\d+$", "", value.strip().strip("\"'")).replace("\\", "/").lower()
        parts = [part for part in text.split("?")[0].split("/") if part not in ("", ".", "..")]
        if not parts or len(text) > 1000:
            return None
        for inside in (f"{folder.lower()}/", "") if folder else ("",):
            for start in range(len(parts)):
                if found := self._known.get(inside + "/".join(parts[start:])):
                    return found
        return self._numbers.get(int(text)) if text.isdecimal() and len(text) < 16 else None
