"""Compressed files: `a.jsonl.gz` is a JSONL file, `b.txt.zst` a text. By the suffix, as a stream.

In: the blocks of a file. Out: the blocks of what it holds; `MediaError` `corrupt` or `truncated` where it is damaged.
Files that were joined (several gzip members, several zstd frames) give what they hold one after the other.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from omniloom.stages.data.media.limits import MediaError

_BLOCK = 1 << 20


def decompressed(blocks: Iterator[bytes], ending: str) -> Iterator[bytes]:
    """The content of a file with this suffix, block by block, of which none is empty."""
    return _zstd(blocks) if ending == ".zst" else _stream(blocks, _DECOMPRESSORS[ending])


class _Gzip:
    """A zlib decompressor that hands out what it has bit by bit, as those of bz2 and lzma do."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self._waiting = b""

    def decompress(self, data: bytes, most: int) -> bytes:
        out = self._zlib.decompress(self._waiting + data, most)
        self._waiting = self._zlib.unconsumed_tail
        return out

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._waiting

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}


def _stream(blocks: Iterator[bytes], make: Callable[[], Any]) -> Iterator[bytes]:
    decompressor, begun = make(), False
    try:
        for block in blocks:
            while True:
                if decompressor.eof:
                    block = (decompressor.unused_data + block).lstrip(b"\0") if begun else block  # padding
                    decompressor, begun = make(), False
                if not block and (not begun or decompressor.needs_input):
                    break
                begun = True
                if out := decompressor.decompress(block, _BLOCK):
                    yield out
                block = b""
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise MediaError("corrupt", f"cannot be decompressed: {error}") from None
    if begun and not decompressor.eof:
        raise MediaError("truncated", "the compressed file ends early")


def _zstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.PythonFile(_File(blocks), mode="r"), "zstd") as stream:
            while data := stream.read(_BLOCK):
                yield data
    except (OSError, pa.ArrowException) as error:
        early = "end" in str(error).lower() or "truncat" in str(error).lower()
        raise MediaError("truncated" if early else "corrupt", f"cannot be decompressed: {error}") from None


class _File(io.RawIOBase):
    """Blocks as a file that is read from its beginning to its end."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._left = blocks, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._left and (block := next(self._blocks, b"")):
            self._left = block
        size = len(self._left) if size < 0 else size
        data, self._left = self._left[:size], self._left[size:]
        return data
