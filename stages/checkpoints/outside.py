"""Files and folders outside the pipeline that a config names, looked at before anything starts. In: the URI and the
config's field that holds it. Out: nothing; InputError naming both where there is none, it cannot be read, or what lies
there is plainly something else. Contents are read by whoever uses them, `read_copy` for one.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.models.hf.config_json import INDEX, OF_AUTHORS, WEIGHTS

_SAFETENSORS = ".safetensors"
OF_TORCH = (b"PK\x03\x04", b"\x80")  # how a file of torch.save begins: a zip archive, before 1.6 a pickle
_LONGEST_HEADER = 100_000_000  # bytes; what the format allows


def require_weights(uri: str, field: str) -> None:
    """A file of torch.save, or of safetensors by its suffix."""
    head = _head(uri, field, 9)
    if uri.endswith(_SAFETENSORS):
        if not (int.from_bytes(head[:8], "little") <= _LONGEST_HEADER and head[8:] == b"{"):
            raise InputError("is no safetensors file", field=field, file=uri)
    elif not head.startswith(OF_TORCH):
        raise InputError("expected weights of torch.save or safetensors", field=field, file=uri)


def is_folder(uri: str, field: str) -> bool:
    """Whether a folder lies there."""
    try:
        fs, path = storage.filesystem(uri)
        return fs.isdir(path)
    except Exception as error:  # each filesystem has its own for unreachable, unknown, unauthorised
        raise InputError(f"cannot be read: {type(error).__name__}: {error}", field=field, file=uri) from None


def require_folder_of_weights(uri: str, field: str) -> None:
    """A folder as `transformers` saves one: its safetensors, whole or by their index. Its config.json is for others to
    read."""
    for file in files_of_folder(uri, field):
        require_weights(file, field)


def weight_files(uri: str, field: str) -> list[str]:
    """The files of weights at the URI: of a folder as above, or the file itself."""
    return files_of_folder(uri, field) if is_folder(uri, field) else [uri]


def files_of_folder(uri: str, field: str) -> list[str]:
    """URIs of a folder's safetensors."""
    names = (WEIGHTS, INDEX, *OF_AUTHORS)
    try:
        held = next((name for name in names if storage.exists(storage.join(uri, name))), None)
        if held is None:
            told = " nor ".join(names[:2])
            raise InputError(f"holds neither {told}; other formats are not read", field=field, file=uri)
        files = {held} if held != names[1] else set(_weight_map(storage.join(uri, held)).values())
    except InputError:
        raise
    except Exception as error:  # each filesystem has its own for unreachable, unknown, unauthorised
        raise InputError(f"cannot be read: {type(error).__name__}: {error}", field=field, file=uri) from None
    return [storage.join(uri, name) for name in sorted(files)]


def _weight_map(uri: str) -> dict[str, str]:
    document: Any = json.loads(storage.read_bytes(uri))
    found = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"{uri}: weight_map: expected an object of tensors' names and files")
    return found


def _head(uri: str, field: str, size: int) -> bytes:
    with opened(uri, field) as file:
        return file.read(size)


@contextlib.contextmanager
def opened(uri: str, field: str) -> Iterator[BinaryIO]:
    """The file, open for reading."""
    try:
        fs, path = storage.filesystem(uri)
        if fs.isdir(path):
            raise InputError("is a folder, expected a file", field=field, file=uri)
        with fs.open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError("no such file", field=field, file=uri) from None
    except InputError:
        raise
    except Exception as error:  # each filesystem has its own for unreachable, unknown, unauthorised
        raise InputError(f"cannot be read: {type(error).__name__}: {error}", field=field, file=uri) from None


def read_copy(uri: str, reader: Callable[[str], Any], field: str) -> Any:
    """What `reader` makes of a file, by a copy on this machine; InputError naming the file and the config's field."""
    with tempfile.TemporaryDirectory() as folder:
        local = str(Path(folder) / Path(uri).name)
        try:
            storage.copy_file(uri, local)
            return reader(local)
        except (OSError, ValueError) as error:
            raise InputError(str(error).replace(local, uri), field=field, file=uri) from None
