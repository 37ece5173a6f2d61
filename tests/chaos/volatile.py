"""A double of a disk that forgets what was not synced, to cut the power of at any moment.

Inside `with Disk(folder) as disk:` the code under test works on the real folder. The double notes what each `os.fsync`
puts on the disk: a file's content, a folder's names. `lose` then writes down elsewhere what a power cut would leave, in
one of two ways, both of which a file system may choose:

    "synced"   names and contents that were synced, and nothing else: a removal that was not synced is undone
    "names"    all names as they are, as a journal of metadata keeps them; contents only where they were synced, else
               the file is empty. That is ext4 after the journal was committed and before the data was written

With `cut` the power goes at that operation, counted from 1: both losses are written below `into`, and `PowerCut` is
raised there, which only ends the process that the test stands for.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

LOSSES = ("synced", "names")


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


class Disk:
    def __init__(self, root: Path, cut: int = 0, into: Path | None = None):
        self.root, self.cut, self.into, self.operations = root, cut, into, 0
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._held: list[int] = []  # open, so that no other file gets the number of one that is removed
        self._lock, self._patch = threading.RLock(), pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        for folder, _, files in os.walk(self.root):  # what is there already has been there for long
            for path in [folder, *(os.path.join(folder, name) for name in files)]:
                self._keep(path)
        for module, name in ((os, "fsync"), (os, "replace"), (os, "link"), (os, "rename"), (shutil, "rmtree")):
            self._patch.setattr(module, name, self._counted(getattr(module, name), name))
        return self

    def __exit__(self, *exception) -> None:
        self._patch.undo()
        for handle in self._held:
            os.close(handle)

    def _counted(self, original, name: str):
        def operation(*arguments, **keywords):
            with self._lock:
                self.operations += 1
                if self.operations == self.cut:
                    for loss in LOSSES:
                        self.lose(self.into / loss, loss)
                if self.cut and self.operations >= self.cut:
                    raise PowerCut
                result = original(*arguments, **keywords)
                if name == "fsync":
                    self._keep(os.readlink(f"/proc/self/fd/{arguments[0]}"))
                return result

        return operation

    def _keep(self, path: str) -> None:
        number = os.stat(path).st_ino
        self._held.append(os.open(path, os.O_RDONLY))
        if os.path.isdir(path):
            self._names[number] = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)}
        else:
            self._contents[number] = Path(path).read_bytes()

    def lose(self, target: Path, loss: str) -> Path:
        """The folder as it is after the power came back, below `target`."""
        self._build(os.stat(self.root).st_ino, target, self.root if loss == "names" else None)
        return target

    def _build(self, number: int, target: Path, alive: Path | None) -> None:
        target.mkdir(parents=True)
        if alive is not None:
            for entry in os.scandir(alive):
                if entry.is_dir():
                    self._build(entry.inode(), target / entry.name, Path(entry.path))
                else:
                    (target / entry.name).write_bytes(self._contents.get(entry.inode(), b""))
            return
        for name, (inner, is_folder) in self._names.get(number, {}).items():
            if is_folder:
                self._build(inner, target / name, None)
            else:
                (target / name).write_bytes(self._contents.get(inner, b""))
