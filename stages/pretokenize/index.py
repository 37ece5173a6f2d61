"""The index of the tokens (`stages.data.index`) from what the workers noted down of each shard."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from omniloom.infra import storage
from omniloom.stages.data.index import Lengths, lengths_of, write
from omniloom.stages.data.records import SPLITS

_TOGETHER = 64  # files that are read, and held, at a time


def lengths_uri(state: str, split: str, number: int) -> str:
    """Where a worker leaves the lengths of a shard."""
    return storage.join(state, "lengths", split, f"{number:05d}.npz")


def write_indices(output: str, state: str) -> None:
    """`index/SPLIT/` of the artifact, of all shards that lie in `output`."""
    for split in SPLITS:
        names = storage.list_files(storage.join(output, "tokens", split))
        numbers = sorted(int(name.removeprefix("shard-").removesuffix(".arrow")) for name in names)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), _lengths(output, state, split, numbers))
            storage.copy_tree(folder, storage.join(output, "index", split))


def _lengths(output: str, state: str, split: str, numbers: list[int]) -> Iterator[tuple[int, Lengths]]:
    def read(number: int) -> Lengths:
        try:
            return Lengths.from_bytes(storage.read_bytes(lengths_uri(state, split, number)))
        except FileNotFoundError:  # the shard was made before there were any
            data = storage.read_bytes(storage.join(output, "tokens", split, f"shard-{number:05d}.arrow"))
            return lengths_of(pa.ipc.open_file(pa.py_buffer(data)).read_all())

    with ThreadPoolExecutor(_TOGETHER) as pool:
        for at in range(0, len(numbers), _TOGETHER):
            part = numbers[at : at + _TOGETHER]
            yield from zip(part, pool.map(read, part), strict=True)
