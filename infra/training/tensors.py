"""Tensors in safetensors files, of which each holds ranges of some, and an index that says which.

Writing streams from the tensors' own memory; reading takes the ranges that are asked for from whichever files hold
them, on any filesystem.

    index = {"files": [PATH, ...], "tensors": {KEY: {"shape": [...], "dtype": "F32", "parts":
             [[file, start, stop, byte where it begins in the file], ...]}}}
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from omniloom.infra import storage
from omniloom.infra.errors import OmniLoomError
from omniloom.infra.training.shards import Shard

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: kind for kind, name in _NAMES.items()}
_AT_ONCE = 1 << 24  # bytes that are read or written together where they cannot go straight from memory to the file
FILE_BYTES = 1 << 31  # about what a file holds at most, so that several are hashed and sent at a time


def write(folder: Path, prefix: str, shards: Iterable[Shard]) -> dict[str, Any]:
    """Write the ranges into `folder`/`prefix`-NUMBER.safetensors, and give their index. What is read of the tensors is
    read when this returns."""
    index: dict[str, Any] = {"files": [], "tensors": {}}
    for number, some in enumerate(_by_file(shards)):
        path = f"{prefix}-{number:03d}.safetensors"
        begins = _write_file(folder / path, some)
        for shard, begin in zip(some, begins, strict=True):
            about = {"shape": list(shard.shape), "dtype": _NAMES[shard.values.dtype], "parts": []}
            stop = shard.start + len(shard.values)
            index["tensors"].setdefault(shard.key, about)["parts"].append([number, shard.start, stop, begin])
        index["files"].append(path)
    return index


def _by_file(shards: Iterable[Shard]) -> Iterable[list[Shard]]:
    some: list[Shard] = []
    size = 0
    for shard in shards:
        some.append(shard)
        size += shard.values.numel() * shard.values.element_size()
        if size >= FILE_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _write_file(path: Path, shards: list[Shard]) -> list[int]:
    """Gives the byte at which each begins."""
    header: dict[str, Any] = {}
    end = 0
    for shard in shards:
        size = shard.values.numel() * shard.values.element_size()
        kind = _NAMES[shard.values.dtype]
        header[shard.key] = {"dtype": kind, "shape": [len(shard.values)], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
        for shard in shards:
            for piece in shard.values.view(torch.uint8).split(_AT_ONCE):
                _write_all(file, _memory(piece.cpu()))
    return [8 + len(text) + header[shard.key]["data_offsets"][0] for shard in shards]


def write_whole(path: Path | None, about: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor | None]]) -> None:
    """Write whole tensors as they come into one file, where there is a path, as safetensors' own `save_file` would;
    goes through all of them in any case. `about` names them, with shapes and types, in the order of their names, in
    which they come; its tensors may be without memory."""
    header: dict[str, Any] = {}
    end = 0
    for name, like in about.items():
        size = like.numel() * like.element_size()
        header[name] = {"dtype": _NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) if path else contextlib.nullcontext() as file:
        if file:
            _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
        for (name, value), wanted in zip(tensors, about, strict=True):
            if file and value is not None:
                if (name, value.dtype, value.shape) != (wanted, about[wanted].dtype, about[wanted].shape):
                    raise ValueError(f"expected {wanted} of {about[wanted].shape}, got {name} of {value.shape}")
                if value.numel():
                    _write_all(file, _memory(value.contiguous().view(-1)))


def _memory(flat: Tensor) -> memoryview:
    """The bytes of a flat tensor on the CPU, themselves."""
    return memoryview(cast(Any, flat.view(torch.uint8).numpy()))


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def encode(index: dict[str, Any]) -> bytes:
    """An index as a file holds it; it may have many thousand ranges."""
    return json.dumps(index, separators=(",", ":")).encode()


def merge(indices: list[dict[str, Any]]) -> dict[str, Any]:
    """The index of what several ranks wrote; ValueError where together they do not hold every number once."""
    merged: dict[str, Any] = {"files": [], "tensors": {}}
    for index in indices:
        first = len(merged["files"])
        merged["files"] += index["files"]
        for key, about in index["tensors"].items():
            known = merged["tensors"].setdefault(key, {**about, "parts": []})
            known["parts"] += [[first + part[0], *part[1:]] for part in about["parts"]]
    for key, about in merged["tensors"].items():
        about["parts"].sort(key=lambda part: part[1])
        ends = [0, *(part[2] for part in about["parts"])]
        if [part[1] for part in about["parts"]] != ends[:-1] or ends[-1] != _numel(about["shape"]):
            raise ValueError(f"{key}: its ranges leave gaps or overlap")
    return merged


def _numel(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


class Tensors:
    """The tensors of an index, whose files lie below the folder `uri`."""

    def __init__(self, uri: str, index: dict[str, Any]):
        self.uri, self._files, self._tensors = uri, index["files"], index["tensors"]
        self._open: dict[int, BinaryIO] = {}

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._open.values():
            file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def kinds(self, name: str, kinds: Iterable[str]) -> list[str]:
        """Which of `kinds` there are of a parameter."""
        return [kind for kind in kinds if f"{kind}/{name}" in self]

    def all_kinds(self) -> list[str]:
        return sorted({key.partition("/")[0] for key in self._tensors})

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key]["shape"])

    def number(self, key: str) -> Tensor:
        """The one number of a scalar, of its own type: shape (1,)."""
        found = torch.empty(1, dtype=_TYPES[self._tensors[key]["dtype"]])
        self.read(key, 0, found)
        return found

    def read(self, key: str, start: int, into: Tensor) -> None:
        """Fill the flat tensor with the numbers of `key` from the flat index `start` on, converted to its type."""
        about, stop = self._tensors[key], start + len(into)
        for number, first, last, begin in about["parts"]:
            low, high = max(start, first), min(stop, last)
            if low < high:
                at = begin + (low - first) * _TYPES[about["dtype"]].itemsize
                self._fill(number, at, _TYPES[about["dtype"]], into[low - start : high - start])

    def _fill(self, number: int, at: int, kind: torch.dtype, into: Tensor) -> None:
        if kind == into.dtype and into.device.type == "cpu":
            self._read_into(number, at, _memory(into))
            return
        for piece in into.split(_AT_ONCE // kind.itemsize):
            read = torch.empty(len(piece), dtype=kind)
            self._read_into(number, at, _memory(read))
            piece.copy_(read)
            at += read.numel() * kind.itemsize

    def _read_into(self, number: int, at: int, target: memoryview) -> None:
        uri = storage.join(self.uri, self._files[number])
        if number not in self._open:
            fs, path = storage.filesystem(uri)
            self._open[number] = open(path, "rb", buffering=0) if storage.is_local(uri) else fs.open(path, "rb")
        file = self._open[number]
        file.seek(at)
        while target:
            if not (count := _read_some(file, target)):
                raise OmniLoomError(f"{uri}: ends before byte {at + len(target)}")
            target = target[count:]


def _read_some(file: Any, target: memoryview) -> int:
    return file.readinto(target) or 0
