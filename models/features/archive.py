"""What a TorchScript file holds, told without running or unpickling any of it. Standard library only.

In: an open file. Out: the arguments of its module's `forward`.
The file is a zip archive of TorchScript's code (`code/`), its tensors, and two pickles that TorchScript reads itself
(`data.pkl`, `constants.pkl`). Their instructions are walked: every class they name has to be one of TorchScript's own
(`__torch__`, `torch.jit._pickle`) or how a tensor or an ordered dict is put together.
Errors: ValueError saying what is wrong with the file.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import IO

# Beside the classes whose code is in the file.
_ALLOWED = re.compile(
    r"__torch__\S* \w+|torch\.jit\._pickle \w+|torch \w+Storage|torch (device|per_tensor_affine|per_channel_affine)|"
    r"torch\._utils _rebuild_(tensor_v2|parameter|qtensor|sparse_tensor)|collections OrderedDict"
)
_PICKLES = ("data.pkl", "constants.pkl")
_LARGEST = 64 << 20  # bytes of a pickle or of a file of code, whose tensors lie elsewhere


def forward_arguments(file: IO[bytes]) -> tuple[str, ...]:
    """The names of what `forward` takes, without `self`."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "constants.pkl" not in names or not any(name.startswith("code/") for name in names):
                raise ValueError("is no TorchScript file: it holds no code of TorchScript's")
            found = ""
            for name in _PICKLES:
                if name in names:
                    for called in _classes(_read(archive, names[name])):
                        found = found or (called if name == "data.pkl" else "")
                        if not _ALLOWED.fullmatch(called):
                            raise ValueError(f"{name} names {called.replace(' ', '.')}, which is none of TorchScript's")
            return _arguments(archive, names, found)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"is no whole TorchScript file: {error}") from None


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _LARGEST:
        raise ValueError(f"{name} is larger than TorchScript writes it")
    return archive.read(name)


def _classes(pickled: bytes) -> Iterator[str]:
    """ "module name" of every class or function that a pickle names."""
    try:
        called = [(code.name, str(value)) for code, value, _ in pickletools.genops(pickled)]
    except Exception as error:  # it raises several classes for what is no pickle
        raise ValueError(f"a pickle in it cannot be read: {error}") from None
    for name, value in called:
        if name == "GLOBAL":
            yield value
        elif name in ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):  # TorchScript writes none of them
            raise ValueError(f"a pickle in it uses {name}, which TorchScript does not")


def _arguments(archive: zipfile.ZipFile, names: dict[str, str], called: str) -> tuple[str, ...]:
    module, _, cls = called.partition(" ")
    place = names.get(f"code/{module.replace('.', '/')}.py")
    if place is None:
        raise ValueError("holds no code of the module that it is of")
    code = _read(archive, place).decode(errors="replace")
    found = re.search(
        rf"^class {re.escape(cls)}\(Module\):.*?^  def forward\((.*?)\) ->", code, re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise ValueError("its module has no forward")
    return tuple(re.findall(r"(\w+)\s*:", found[1]))[1:]
