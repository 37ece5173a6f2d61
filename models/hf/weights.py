"""The weights of a folder as `transformers` saves it. In: a local folder with model.safetensors, or shards and
model.safetensors.index.json. Out: tensors by key, read through a memory map one at a time.

Errors: ValueError naming the file and the key: a tensor that is missing, unknown, of a wrong shape or dtype, a file
that cannot be read. `safetensors` is imported when a folder is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniloom.models.hf.config_json import INDEX, OF_AUTHORS, WEIGHTS, read_json

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """The tensors of a folder by key. `where` is the file that says which there are."""

    def __init__(self, where: Path, files: dict[str, Path], handles: dict[Path, Any]):
        self.where, self._files, self._handles = where, files, handles

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def refuse_unknown(self, known: Collection[str], ignored: Callable[[str], bool]) -> None:
        """ValueError for a tensor that is neither `known` nor `ignored`: it would have changed the result."""
        for key in self._files:
            if key not in known and not ignored(key):
                raise ValueError(f"{self.where}: {key}: config.json has no place for this tensor")

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._files:
            raise ValueError(f"{self.where}: {key}: missing")
        file = self._files[key]
        handle = self._handles[file]
        if key not in handle.keys():
            raise ValueError(f"{file}: {key}: missing")
        return tuple(handle.get_slice(key).get_shape())

    def read(self, key: str, shape: tuple[int, ...]) -> Tensor:
        found, file = self.shape(key), self._files[key]
        if found != shape:
            raise ValueError(f"{file}: {key}: expected shape {shape}, got {found}")
        tensor = self.tensor(key)
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{file}: {key}: expected float32, bfloat16 or float16, got {tensor.dtype}")
        return tensor

    def tensor(self, key: str) -> Tensor:
        """A tensor as it is, of a key that `shards` gave."""
        return self._handles[self._files[key]].get_tensor(key)

    def shards(self) -> dict[Path, list[str]]:
        """By file the keys of the tensors that it holds."""
        return {file: list(handle.keys()) for file, handle in self._handles.items()}


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """The folder's safetensors, memory-mapped while the block runs."""
    from safetensors import SafetensorError, safe_open

    single, index = folder / WEIGHTS, folder / INDEX
    if not single.is_file() and not index.is_file():
        single = next((folder / name for name in OF_AUTHORS if (folder / name).is_file()), single)
    weight_map = None
    if not single.is_file():
        if not index.is_file():
            raise ValueError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; other formats are not read")
        document = read_json(index)
        weight_map = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in weight_map.values()
        ):
            raise ValueError(f"{index}: weight_map: expected an object of tensors' names and files of this folder")
    handles: dict[Path, Any] = {}
    with ExitStack() as stack:
        for path in [single] if weight_map is None else sorted({folder / name for name in weight_map.values()}):
            try:
                handles[path] = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path}: cannot be read: {error}") from error
        if weight_map is None:
            yield Checkpoint(single, dict.fromkeys(handles[single].keys(), single), handles)
        else:
            yield Checkpoint(index, {key: folder / name for key, name in weight_map.items()}, handles)
