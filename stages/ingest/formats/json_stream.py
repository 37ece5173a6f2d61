"""Values of a large JSON text, one at a time, of which none but the present one is held.

In: blocks of bytes. Out: (number, object) for each value of an array, or a `Reject` for one that is no object or that
cannot be parsed; the others stay. `json` parses each value; where that fails, brackets and quotes tell where it ends.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import encoding as encodings
from omniloom.stages.ingest.formats.json_rows import checked_row
from omniloom.stages.ingest.rejects import Reject

_BLANK = re.compile(r"[ \t\r\n]*")
# A bracket, or a text with the quote that ends it where that is there; the same from within a text.
_STRUCTURE = re.compile(r'[\[{\]}]|"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_REST_OF_TEXT = re.compile(r'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_SCALAR = re.compile(r"[^,\[\]{}\"\s]+")
_DECODER = json.JSONDecoder()


class _Ends(Exception):
    """The text ends within a value."""


def objects(
    blocks: Iterator[bytes], limit: int, encoding: str = "utf-8", field: str | None = None
) -> Iterator[tuple[int, dict | Reject]]:
    """(number, row) of the objects of an array at the top, or under the key `field` of an object at the top, or that
    come one after another; numbers begin with 1. An object of more than `limit` characters is a reject. MediaError
    where there is no such array."""
    text = _Text(blocks, encoding)
    if not (opening := text.peek()):
        raise MediaError("empty", "no value in the file")
    if field is not None:
        _enter(text, field)
    elif opening == "[":
        text.at += 1
    in_array = field is not None or opening == "["
    number = 0
    try:
        while (following := text.after(",")) and not (in_array and following == "]"):
            number += 1
            yield number, _row(text, limit)
    except _Ends:
        yield number, Reject("invalid_json", "the file ends within a value")
        return
    if in_array and following != "]":
        yield number + 1, Reject("invalid_json", "the file ends within the array")
    elif in_array and field is None:
        text.at += 1
        if text.peek():
            yield number + 1, Reject("invalid_json", "more text behind the array's end")


class _Text:
    """What of the text has been read and not used: `text` from `at` on."""

    def __init__(self, blocks: Iterator[bytes], encoding: str):
        head = next(blocks, b"")
        self.encoding, skip = encodings.by_mark(head, encoding)
        # Bytes that are wrong become lone surrogates, which cost their value and no other.
        self._decoder = codecs.getincrementaldecoder(self.encoding)("surrogateescape")
        self._blocks = chain([head[skip:]], blocks)
        self.text, self.at, self.ended = "", 0, False

    def more(self, least: int = 1) -> bool:
        """Read on by `least` characters or a few more; whether there were any."""
        parts, size = [self.text[self.at :]], 0
        while size < least and not self.ended:
            block = next(self._blocks, None)
            self.ended = block is None
            try:
                part = self._decoder.decode(block or b"", self.ended)
            except UnicodeError as error:
                raise encodings.undecodable(error, self.encoding) from None
            parts.append(part)
            size += len(part)
        self.text, self.at = "".join(parts), 0
        return size > 0

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            if match := _BLANK.match(self.text, self.at):
                self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def after(self, separator: str) -> str:
        """The same, behind separators."""
        while self.peek() == separator:
            self.at += 1
        return self.peek()


def _row(text: _Text, limit: int) -> dict | Reject:
    """The value at hand; the text is behind it afterwards."""
    while True:
        start, wrong = text.at, ""
        try:
            value, end = _DECODER.raw_decode(text.text, start)
        except (ValueError, RecursionError) as error:
            wrong = "nested too deep" if isinstance(error, RecursionError) else str(error)
            end = _end(text.text, start)
        # A number, or a wrong value, may go on in the next block.
        if 0 < end < len(text.text) or end and (text.ended or not wrong and isinstance(value, dict)):
            text.at = end
            if end - start > limit:
                return _too_large(limit)
            brackets = text.text.count("[", start, end) + text.text.count("{", start, end)
            return Reject("invalid_json", wrong) if wrong else _checked(value, brackets)
        held = len(text.text) - start
        if held > limit:
            _skip(text)
            return _too_large(limit)
        if not text.more(held):  # twice as much, so that a long value is not parsed again for every block
            raise _Ends


def _too_large(limit: int) -> Reject:
    return Reject("too_large", f"an object of more than {limit} bytes")


def _checked(value: object, brackets: int) -> dict | Reject:
    try:
        return checked_row(value, brackets)
    except MediaError as error:
        return Reject(error.code, error.message)


def _enter(text: _Text, field: str) -> None:
    """Go to the first value of the array under the key `field` of the object at hand."""
    keys: list[str] = []
    try:
        if text.peek() != "{":
            raise MediaError("invalid_json", f"expected an object with the key {field!r}, got {text.peek()!r}")
        text.at += 1
        while (following := text.after(",")) != "}":
            keys.append(_key(text))
            if text.peek() != ":":
                raise MediaError("invalid_json", f"expected ':' behind the key {keys[-1]!r:.80}")
            text.at += 1
            following = text.peek()
            if keys[-1] == field:
                if following != "[":
                    raise MediaError("invalid_json", f"{field}: expected an array, got {following!r}")
                text.at += 1
                return
            _skip(text)
    except _Ends:
        raise MediaError("invalid_json", f"the file ends before an array {field!r}") from None
    raise MediaError("missing_field", f"no array {field!r}; the keys are {', '.join(keys)[:300] or 'none'}")


def _key(text: _Text) -> str:
    while not (end := _end(text.text, text.at)):
        if not text.more():
            raise _Ends
    try:
        key, text.at = json.loads(text.text[text.at : end]), end
    except ValueError as error:
        raise MediaError("invalid_json", str(error)) from None
    return str(key)


def _skip(text: _Text) -> None:
    """Go behind the value at hand, however long it is."""
    text.peek()
    if end := _end(text.text, text.at):
        text.at = end
        return
    depth, within, done = 0, False, False
    while not done:
        text.at, depth, within, done = _walk(text.text, text.at, depth, within)
        if not done and not text.more():
            raise _Ends


def _end(text: str, start: int) -> int:
    """Where the value that starts here ends; 0 where it goes on behind the text."""
    if start < len(text) and text[start] not in '[{"':
        match = _SCALAR.match(text, start)
        return match.end() if match else start + 1
    end, _, _, done = _walk(text, start, 0, False)
    return end if done else 0


def _walk(text: str, at: int, depth: int, within: bool) -> tuple[int, int, bool, bool]:
    """From `at`, `depth` brackets deep and perhaps `within` quotes, to the value's end or as far as the text goes:
    (where, depth, within quotes, whether the value has ended)."""
    if within:
        rest = _REST_OF_TEXT.match(text, at)
        if not (rest and rest.group(1)):
            return rest.end() if rest else at, depth, True, False
        at = rest.end()
        if not depth:
            return at, 0, False, True
    for match in _STRUCTURE.finditer(text, at):
        at, first = match.end(), match.group()[0]
        if first == '"':
            if not match.group(1):
                return at, depth, True, False
        else:
            depth += 1 if first in "[{" else -1
        if depth <= 0:
            return at, 0, False, True
    return len(text), depth, False, False
