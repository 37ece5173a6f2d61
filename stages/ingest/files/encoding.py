"""Encodings of text: bytes of a file into text or lines. A byte order mark says more than the config.

Errors: `MediaError` `invalid_utf8` or `invalid_encoding` that names the place and the option; `not_text` for NUL.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain

from blake3 import blake3

from omniloom.stages.data.media.limits import MediaError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FIRST = {mark[:1] for mark, _ in _MARKS}


def by_mark(head: bytes, encoding: str) -> tuple[str, int]:
    """The encoding that the first bytes tell, else `encoding`; and how many bytes the mark takes."""
    if head[:1] not in _FIRST:
        return encoding, 0
    return next(((name, len(mark)) for mark, name in _MARKS if head.startswith(mark)), (encoding, 0))


def decode(data: bytes, encoding: str = "utf-8") -> str:
    encoding, skip = by_mark(data, encoding)
    try:
        return data[skip:].decode(encoding)
    except UnicodeError as error:
        raise undecodable(error, encoding, skip, len(data)) from None


def undecodable(error: UnicodeError, encoding: str, skip: int = 0, size: int | None = None) -> MediaError:
    at = "" if (start := getattr(error, "start", None)) is None else f" at byte {start + skip}"
    code = "invalid_utf8" if codecs.lookup(encoding).name == "utf-8" else "invalid_encoding"
    return MediaError(
        code,
        f"not {encoding}{at}{'' if size is None else f' of {size}'}; a source's option `encoding` "
        "names another encoding, such as latin-1, gb18030 or utf-16",
    )


def no_nul(text: str) -> str:
    """The text; MediaError where it has a NUL, which no text of a person has."""
    if (at := text.find("\0")) >= 0:
        raise MediaError("not_text", f"a NUL character at {at}; is it UTF-16? A source's option `encoding` says so")
    return text


def has_lines(encoding: str) -> bool:
    """Whether lines can be found in the bytes: not so in UTF-16."""
    return "\n".encode(encoding) == b"\n"


def lines(blocks: Iterator[bytes], limit: int, encoding: str = "utf-8") -> Iterator[tuple[bytes | None, str]]:
    """(line without its end, its encoding), read as a stream; None for a line of more than `limit` bytes.

    A line is decoded by who reads it, so that one that cannot be is one reject.
    """
    first = next(blocks, b"")
    encoding, skip = by_mark(first, encoding)
    blocks = chain([first[skip:]], blocks)
    if not has_lines(encoding):
        blocks, encoding = _recoded(blocks, encoding), "utf-8"
    for line in _split(blocks, limit):
        yield line, encoding


def line_ranges(blocks: Iterator[bytes], size: int, count: int) -> Iterator[tuple[int, int, int, str]]:
    """(start, stop, lines, digest) of ranges of bytes that hold whole lines, each closed by the line that brings it to
    `size` bytes or `count` lines; in order and without gaps."""
    start = at = held = 0
    block, digest = b"\n", blake3()
    for block in blocks:
        done, view = 0, memoryview(block)  # of this block
        while end := _closing(block, done, at - start + done, held, size, count):
            digest.update(view[done:end])
            yield start, at + end, held + block.count(b"\n", done, end), digest.hexdigest(16)
            start, held, done, digest = at + end, 0, end, blake3()
        digest.update(view[done:])
        held += block.count(b"\n", done)
        at += len(block)
    if at > start:
        yield start, at, held + (not block.endswith(b"\n")), digest.hexdigest(16)


def _closing(block: bytes, done: int, size_held: int, lines_held: int, size: int, count: int) -> int:
    """The end of the line in this block that closes a range, of which `size_held` bytes and `lines_held` lines come
    before `done`; 0 where none does."""
    by_size = block.find(b"\n", max(done, done + size - size_held - 1)) + 1
    if lines_held + block.count(b"\n", done, by_size or len(block)) < count:
        return by_size
    at = done - 1
    for _ in range(count - lines_held):
        at = block.find(b"\n", at + 1)
    return at + 1


def _recoded(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """UTF-8 of an encoding whose lines cannot be found in its bytes."""
    decoder, at = codecs.getincrementaldecoder(encoding)(), 0
    for block, last in chain(((block, False) for block in blocks), [(b"", True)]):
        try:
            yield decoder.decode(block, last).encode("utf-8")
        except UnicodeError as error:
            raise undecodable(error, encoding, at) from None
        at += len(block)


def _split(blocks: Iterator[bytes], limit: int) -> Iterator[bytes | None]:
    line, over = bytearray(), False  # the one that has no end yet
    for block in blocks:
        first, *others = block.split(b"\n")
        if not over:
            line += first
            over = len(line) > limit
        if not others:
            continue
        yield None if over else bytes(line)
        last = others.pop()
        for whole in others:
            yield None if len(whole) > limit else whole
        line, over = bytearray(last), len(last) > limit
    if line:
        yield None if over else bytes(line)
