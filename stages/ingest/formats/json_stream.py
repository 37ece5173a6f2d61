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
from omniloom.stages.ingest.files import encoding as encodings
from omniloom.stages.ingest.formats.json_rows import checked_row
from omniloom.stages.ingest.rejects import Reject

_BLANK = re.compile(r"[ \t\r\n]*")
# A bracket, or a text with the quote that ends it where that is there; the same from within a text.
_STRUCTURE = re.compile(r'[\[{\]}]|"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_REST_OF_TEXT = re.compile(r'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_SCALAR = re.compile(r"[^,\[\]{}\"\s]+")
_HELD = 1 << 24  # characters of a value that is parsed to find its end
_DECODER = json.JSONDecoder()


class _Ends(Exception):
    """The text ends within a value."""


def objects(
    blocks: Iterator[bytes],
    limit: int,
    encoding: str = "utf-8",
    field: str | None = None,
    within: str | None = None,
    first: int = 1,
) -> Iterator[tuple[int, dict | Reject]]:
    """(number, row) of the objects of an array at the top, or under the key `field` of an object at the top, or that
    come one after another. An object of more than `limit` characters is a reject. MediaError where there is no such
    array. Of a piece of a text, `within` says what `ranges` does, and `first` is its first object's number."""
    text, number = _Text(blocks, encoding), first - 1
    ending = _begin(text, field) if within is None else within
    try:
        while (following := text.after(",")) and not (ending and following == "]"):
            number += 1
            yield number, _row(text, limit)
    except _Ends:
        yield number, Reject("invalid_json", "the file ends within a value")
        return
    if ending in ("]", "] and the end") and following != "]":
        yield number + 1, Reject("invalid_json", "the file ends within the array")
    elif ending == "] and the end":
        text.at += 1
        if text.peek():
            yield number + 1, Reject("invalid_json", "more text behind the array's end")


def _begin(text: _Text, field: str | None) -> str:
    """Go before the first object. What has to end the objects: "]", nothing else behind it, or anything ("")."""
    if not (opening := text.peek()):
        raise MediaError("empty", "no value in the file")
    if field is not None:
        _enter(text, field)
        return "]"
    text.at += opening == "["
    return "] and the end" if opening == "[" else ""


def ranges(
    blocks: Iterator[bytes], size: int, count: int, encoding: str = "utf-8", field: str | None = None
) -> Iterator[dict]:
    """{"from", "to", "part", "rows", "within", "encoding"} of pieces of the same text, each of about `size` bytes or
    `count` objects; an empty one where objects cannot be found in the bytes. MediaError as of `objects`."""
    head = next(blocks, b"")
    name, skip = encodings.by_mark(head, encoding)
    if not _of_bytes(name):
        yield {}
        return
    text = _Text(chain([head[skip:]], blocks), "latin-1")  # a character a byte
    ending, part, rows = _begin(text, field), 1, 0
    start = text.passed + text.at
    try:
        while (following := text.after(",")) and not (ending and following == "]"):
            _row(text, _HELD)  # the parser is faster than looking for brackets, and as right in characters of a byte
            rows += 1
            at = text.passed + text.at
            if at - start >= size or rows >= count:
                piece = {"from": start + skip, "to": at + skip, "part": part, "rows": rows}
                yield {**piece, "within": ending and "array", "encoding": name}
                start, part, rows = at, part + rows, 0
    except _Ends:
        rows += 1
    while text.more():
        text.at = len(text.text)
    end = text.passed + len(text.text) + skip
    yield {"from": start + skip, "to": end, "part": part, "rows": rows, "within": ending, "encoding": name}


def _of_bytes(encoding: str) -> bool:
    """Whether brackets and quotes are bytes of their own, which no other character has in it."""
    name = codecs.lookup(encoding).name
    return name in ("utf-8", "ascii") or name.startswith(("iso8859", "cp125"))


def array_fields(blocks: Iterator[bytes], encoding: str = "utf-8") -> list[str]:
    """The keys of an object at the top whose values are arrays of objects, as far as the blocks go."""
    text, found = _Text(blocks, encoding), []
    try:
        for key in _members(text):
            if text.peek() == "[":
                text.at += 1
                found += [key] if text.peek() == "{" else []
                text.text, text.at = "[" + text.text[text.at :], 0
            _skip(text)
    except (_Ends, MediaError):
        pass
    return found


class _Text:
    """What of the text has been read and not used: `text` from `at` on."""

    def __init__(self, blocks: Iterator[bytes], encoding: str):
        head = next(blocks, b"")
        self.encoding, skip = encodings.by_mark(head, encoding)
        # Bytes that are wrong become lone surrogates, which cost their value and no other.
        self._decoder = codecs.getincrementaldecoder(self.encoding)("surrogateescape")
        self._blocks = chain([head[skip:]], blocks)
        self.text, self.at, self.ended = "", 0, False
        self.passed = 0  # characters before `text`

    def more(self, least: int = 1) -> bool:
        """Read on by `least` characters or a few more; whether there were any."""
        parts, size = [self.text[self.at :]], 0
        self.passed += self.at
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
            wrong = _told(error, start)
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
        if not text.more(held) and not end:  # twice as much: a long value is not parsed again for every block
            raise _Ends


def _told(error: Exception, start: int) -> str:
    """What is wrong with the value that starts there; places are counted from its first character."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (char {error.pos - start})"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


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
        for key in _members(text):
            keys.append(key)
            if key == field:
                if text.peek() != "[":
                    raise MediaError("invalid_json", f"{field}: expected an array, got {text.peek()!r}")
                text.at += 1
                return
            _skip(text)
    except _Ends:
        raise MediaError("invalid_json", f"the file ends before an array {field!r}") from None
    raise MediaError("missing_field", f"no array {field!r}; the keys are {', '.join(keys)[:300] or 'none'}")


def _members(text: _Text) -> Iterator[str]:
    """The keys of the object at hand. At each of them the text is before the value, which the caller goes behind."""
    if text.peek() != "{":
        raise MediaError("invalid_json", f"expected an object, got {text.peek()!r}")
    text.at += 1
    while text.after(",") != "}":
        key = _key(text)
        if text.peek() != ":":
            raise MediaError("invalid_json", f"expected ':' behind the key {key!r:.80}")
        text.at += 1
        yield key


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
