"""Mosaic Data Shards (MDS), as MosaicML's streaming library writes them: samples of named columns, one file a shard.

A shard is self-contained: its head names the columns and their encodings, so that index.json is not needed.

    uint32 n; uint32 offsets of n + 1 samples; JSON {column_names, column_encodings, column_sizes}; the samples
    a sample: a uint32 size for each column whose encoding has no fixed size; the columns' bytes

Numbers are little-endian. Source: the format as documented at docs.mosaicml.com/projects/streaming, "Dataset Format".
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import tars
from omniloom.stages.ingest.files.suffixes import compression
from omniloom.stages.ingest.formats.base import Files, Format, Peek, Row, SourceBytes, Wanted
from omniloom.stages.ingest.rejects import Reject

_HEAD_BYTES = 64 << 20  # of offsets and names, at most


@dataclass(frozen=True)
class _Shard:
    offsets: tuple[int, ...]  # of the samples and of the end
    columns: tuple[tuple[str, str, int | None], ...]  # name, encoding, fixed size in bytes


class Mds(Format):
    suffixes = (".mds",)

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """The samples, or those from number "from" to "to", both counted from 0 and the last not included."""
        with _opened(files, item["path"]) as file:
            shard = _head(file)
            chosen = set(wanted([name for name, _, _ in shard.columns]))
            for number in range(item.get("from", 0), item.get("to", len(shard.offsets) - 1)):
                start, stop = shard.offsets[number : number + 2]
                try:
                    if stop - start > files.max_bytes:
                        raise MediaError("too_large", f"{stop - start} bytes, at most {files.max_bytes}")
                    yield number + 1, _sample(_exactly(file, start, stop - start), shard.columns, chosen)
                except MediaError as error:
                    yield number + 1, Reject(error.code, error.message)
                    if error.code == "truncated":
                        return

    def peek(self, files: Files, path: str) -> Peek:
        with _opened(files, path) as file:
            return Peek([name for name, _, _ in _head(file).columns], True)

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """By samples. A compressed shard is one."""
        if item["size"] <= size or compression(item["path"]):
            yield item
            return
        with _opened(files, item["path"]) as file:
            offsets = _head(file).offsets
        start = 0
        for number in range(1, len(offsets)):
            if offsets[number] - offsets[start] >= size or number - start >= count or number == len(offsets) - 1:
                held = {"size": offsets[number] - offsets[start], "rows": number - start}
                yield {**item, "from": start, "to": number, "part": start + 1, **held}
                start = number


def _opened(files: Files, path: str) -> Any:
    return tars.Forward(files.root.blocks(path)) if compression(path) else SourceBytes(files, path)


def _exactly(file: Any, at: int, size: int) -> bytes:
    file.seek(at)
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    if len(data) < size:
        raise MediaError("truncated", f"the shard ends at byte {at + len(data)}")
    return data


def _head(file: Any) -> _Shard:
    (count,) = struct.unpack("<I", _exactly(file, 0, 4))
    if 4 * (count + 2) > _HEAD_BYTES:
        raise MediaError("invalid_table", f"no MDS shard: it would hold {count} samples")
    offsets = struct.unpack(f"<{count + 1}I", _exactly(file, 4, 4 * (count + 1)))
    begin = 4 * (count + 2)
    if sorted(offsets) != list(offsets) or not begin <= offsets[0] <= _HEAD_BYTES:
        raise MediaError("invalid_table", "no MDS shard: its offsets do not rise")
    try:
        facts = json.loads(_exactly(file, begin, offsets[0] - begin))
        columns = zip(facts["column_names"], facts["column_encodings"], facts["column_sizes"], strict=True)
        return _Shard(offsets, tuple((str(name), str(encoding), size) for name, encoding, size in columns))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MediaError("invalid_table", f"no MDS shard: its head has no columns: {error!r}") from None


def _sample(data: bytes, columns: Sequence[tuple[str, str, int | None]], chosen: set[str]) -> dict:
    variable = sum(size is None for _, _, size in columns)
    if len(data) < 4 * variable:
        raise MediaError("corrupt", "the sample is shorter than the sizes of its columns")
    sizes = iter(struct.unpack(f"<{variable}I", data[: 4 * variable]))
    at, row = 4 * variable, {}
    for name, encoding, fixed in columns:
        size = next(sizes) if fixed is None else fixed
        if at + size > len(data):
            raise MediaError("corrupt", f"{name}: ends behind the sample")
        if name in chosen:
            row[name] = _value(name, encoding, data[at : at + size])
        at += size
    return row


def _value(name: str, encoding: str, data: bytes) -> Any:
    decode = _DECODERS.get(encoding)
    if decode is None:
        raise MediaError("unsupported", f"{name}: the encoding {encoding!r} is not read")
    try:
        return decode(data)
    except (ValueError, struct.error, RecursionError) as error:
        raise MediaError("corrupt", f"{name}: no {encoding}: {error}") from None


def _number(format: str) -> Callable[[bytes], Any]:
    return lambda data: struct.unpack(f"<{format}", data)[0]


def _pil(data: bytes) -> bytes:
    """A picture without an encoding of its own, as a PNG: uint32 width, height and the mode's length, mode, pixels."""
    from PIL import Image

    width, height, length = struct.unpack("<3I", data[:12])
    image = Image.frombytes(data[12 : 12 + length].decode("ascii"), (width, height), data[12 + length :])
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


_TEXTS = ("str", "str_int", "str_float", "str_decimal")
_NUMBERS = {
    **{"int": "q", "int8": "b", "int16": "h", "int32": "i", "int64": "q"},
    **{"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "float16": "e", "float32": "f", "float64": "d"},
}
_DECODERS: dict[str, Callable[[bytes], Any]] = {
    **{encoding: lambda data: data for encoding in ("bytes", "jpeg", "png")},
    **{encoding: lambda data: data.decode("utf-8") for encoding in _TEXTS},
    **{encoding: _number(format) for encoding, format in _NUMBERS.items()},
    "json": json.loads,
    "pil": _pil,
}
