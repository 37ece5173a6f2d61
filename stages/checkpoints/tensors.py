"""What a safetensors file says that it holds, read from its header alone: nothing heavy is imported, no tensor is read.

In: a URI and the config's field that holds it. Out: the shape of each tensor by its key. Errors: InputError naming
both, and the key: where the file is of another format, is shorter than its header says, or lacks a tensor of the
shape that is expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.stages.checkpoints.outside import OF_TORCH, opened, weight_files

_LONGEST_HEADER = 100_000_000  # bytes; what the format allows
_FLOATS = ("F32", "BF16", "F16", "F64")
_CONVERT = (
    "is a pickle of torch.save, which could run code; expected .safetensors, which it is turned into by python -c "
    "\"import sys, torch; from safetensors.torch import save_file; state = torch.load(sys.argv[1], map_location='cpu', "
    'weights_only=True); save_file({k: v.clone().contiguous() for k, v in state.items()}, sys.argv[2])" IN '
    "OUT.safetensors"
)


def require_tensors(uri: str, field: str, expected: Mapping[str, tuple[tuple[int, ...], ...]]) -> None:
    """A file, or a folder as `transformers` saves one, with these tensors, each in one of its shapes. Others it may
    have too."""
    found: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for file in weight_files(uri, field):
        found |= {key: (dtype, shape, file) for key, (dtype, shape) in header(file, field).items()}
    for key, shapes in expected.items():
        if key not in found:
            raise InputError(f"{key}: is missing", field=field, file=uri)
        dtype, shape, file = found[key]
        if shape not in shapes:
            fits = " or ".join(map(str, shapes))
            raise InputError(f"{key}: expected the shape {fits}, got {shape}", field=field, file=file)
        if dtype not in _FLOATS:
            raise InputError(f"{key}: expected floats, got {dtype}", field=field, file=file)


def header(uri: str, field: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of each tensor by its key."""
    with opened(uri, field) as file:
        head = file.read(9)
        size = int.from_bytes(head[:8], "little")
        if len(head) < 9 or head[8:] != b"{" or size > _LONGEST_HEADER:
            of_torch = head.startswith(OF_TORCH)
            raise InputError(_CONVERT if of_torch else "is no safetensors file", field=field, file=uri)
        text = head[8:] + file.read(size - 1)
        held = file.seek(0, 2)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        found = {key: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for key, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise InputError("is no safetensors file: its header cannot be read", field=field, file=uri) from None
    if held != 8 + size + end:
        raise InputError(f"is {held:,} bytes long, {8 + size + end:,} by its header", field=field, file=uri)
    return found


def read_json(uri: str, field: str) -> Any:
    """The values in a JSON file."""
    with opened(uri, field) as file:
        data = file.read()
    try:
        return json.loads(data)
    except ValueError as error:
        raise InputError(f"is no JSON: {error}", field=field, file=uri) from None
