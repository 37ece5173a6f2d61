"""Lance datasets: each row is a record, by columns that are named. Needs `omniloom[lance]`."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from typing import Literal

from omniloom.infra.errors import InputError
from omniloom.infra.packed import Packed
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.files.listing import Files, SourceFile
from omniloom.stages.ingest.formats import lance
from omniloom.stages.ingest.kinds.base import Contents
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.look import row_recognition
from omniloom.stages.ingest.look.glimpse import BY_REFERENCE, Glimpse, Recognition


class LanceConfig(RowsConfig):
    """Lance datasets, each row a record: `uri` is one of them, or a folder that holds some. Needs `omniloom[lance]`."""

    kind: Literal["lance"]
    """Lance datasets, each row a record."""


class Lance(RowFiles):
    Config = LanceConfig
    suffixes = lance.Lance.suffixes
    known = (lance.Lance(),)

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Folders with versions and data as Lance writes them."""
        folders = {folder_of(path) for path in glimpse.having(cls.suffixes)}
        folders = {f for f in folders if any(path.startswith(f"{f}/_versions/".lstrip("/")) for path in glimpse.paths)}
        if not folders:
            return None
        paths = [path for path in glimpse.paths if any(path.startswith(f"{f}/".lstrip("/")) for f in folders)]
        try:
            found = row_recognition.recognize(glimpse, sorted(folders), cls.known, cls.usual_options)
        except InputError:  # without the library
            found = None
        return Recognition(frozenset(paths), found.options if found else cls.usual_options, BY_REFERENCE)

    # ---- planning ----

    def matters(self, path: str) -> bool:
        return super().matters(path) or "_versions" in path.split("/") or "_deletions" in path.split("/")

    def check(self, contents: Contents) -> None:
        datasets = self._datasets(contents)
        if datasets:
            try:
                lance.opened(self.files, datasets[0].path)
            except InputError as error:
                raise InputError(error.message, field=f"{self.field}.kind") from None
            except MediaError:
                pass  # whoever reads it says so
        super().check(Contents(contents.files, datasets))

    def items(self, contents: Contents, notes: Counter) -> list[dict]:
        """One per dataset."""
        return [self.item(dataset) for dataset in self._datasets(contents)]

    def _datasets(self, contents: Contents) -> Files:
        """The folders of datasets, each with the size of its data; all its files tell whether it has changed."""
        sizes: dict[str, int] = {}
        for file in contents.of_kind:
            folder = folder_of(file.path)
            sizes[folder] = sizes.get(folder, 0) + file.size
        identities = {folder: hashlib.sha256() for folder in sizes}
        for file in contents.files:
            for folder in folders_above(file.path):
                if folder in identities:
                    identities[folder].update(f"{file.path} {file.identity}\n".encode())
        name = posixpath.basename(self.root.path)
        return Files(
            Packed(
                tuple(SourceFile(folder or name, size, identities[folder].hexdigest()))
                for folder, size in sorted(sizes.items())
            )
        )


def folders_above(path: str) -> list[str]:
    """The folders that a path lies in, the root as an empty one."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]


def folder_of(path: str) -> str:
    """The folder of the dataset that a data file belongs to; empty for the root itself."""
    return posixpath.dirname(posixpath.dirname(path))
