"""Energon folders: WebDataset tars with a description of their samples and splits in .nv-meta."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import yaml

from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations import cells
from omniloom.stages.ingest.annotations.manifests import ManifestFile
from omniloom.stages.ingest.files.braces import expand
from omniloom.stages.ingest.formats.tar_samples import TarSamples
from omniloom.stages.ingest.kinds.webdataset import WebDataset, WebDatasetConfig
from omniloom.stages.ingest.look.glimpse import BY_DOCUMENT, Glimpse, Recognition
from omniloom.stages.ingest.rejects import Reject

_META, _DATASET, _SPLIT = ".nv-meta", "dataset.yaml", "split.yaml"
_MEANINGS = {"image": {}, "video": {"video_field": "video"}, "text": {"text_field": "text"}}


class EnergonConfig(WebDatasetConfig):
    """Energon folders. Fields are those of the sample type (image, caption, text), which field_map in dataset.yaml maps
    to files of the sample, and these files themselves. Code that the folder names is never run."""

    kind: Literal["energon"]  # type: ignore[assignment]
    """Energon folders: WebDataset tars with .nv-meta."""
    split: str | None = None
    """The split of split.yaml that is read, such as train. By default all of them; what of them is held out here,
    `splits` says."""


class Energon(WebDataset):
    Config = EnergonConfig

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """A folder of tars with a description, at the root or above the tars."""
        if glimpse.root.is_archive or glimpse.root.is_file:
            return None
        tars = glimpse.having(cls.suffixes)
        above = {folder for path in tars for folder in _folders(path)}
        for folder in sorted(above, key=lambda name: (name.count("/"), name)):
            try:
                facts = _read(glimpse.root.read(posixpath.join(folder, _META, _DATASET)))
            except (MediaError, ValueError):
                continue
            paths = frozenset(path for path in tars if folder in _folders(path))
            fields = facts.get("field_map") or {}
            options = next((options for name, options in _MEANINGS.items() if name in fields), {})
            return Recognition(paths, options, BY_DOCUMENT, below=folder)
        return None

    @cached_property
    def manifest(self) -> ManifestFile:
        return ManifestFile(self.root, f"{_META}/{_DATASET}", f"{self.field}.uri")

    @cached_property
    def field_map(self) -> dict[str, str]:
        """Field of the sample type -> what it is in a sample, as `cells.value_at` takes it: json[a][b] is json.a.b, and
        json[0][a], of which all are taken, json.a."""
        found = self._described(_DATASET).get("field_map")
        names = found.items() if isinstance(found, dict) else ()
        return {str(name): _dotted(value) for name, value in names if isinstance(value, str)}

    @cached_property
    def shards(self) -> set[str] | None:
        """The tars of the split, or of all; None where nothing says which there are."""
        facts = self._described(_SPLIT, needed=self.config.split is not None)
        parts = facts.get("split_parts")
        if not isinstance(parts, dict):
            return None
        if self.config.split is not None and self.config.split not in parts:
            raise InputError(
                f"{self.root.place}/{_META}/{_SPLIT} has no split {self.config.split!r}; it has {', '.join(parts)}",
                field=f"{self.field}.split",
            )
        chosen = [parts[self.config.split]] if self.config.split is not None else parts.values()
        names = {name for part in chosen for pattern in part or () for name in expand(str(pattern))}
        return names - {name for pattern in facts.get("exclude") or () for name in expand(str(pattern))}

    @cached_property
    def formats(self) -> tuple[TarSamples]:
        named = [*self.field_map.values(), *(field for _, field in self.config.named_fields())]
        return (TarSamples([field for field in named if ";" in field]),)

    def is_item(self, path: str) -> bool:
        return super().is_item(path) and (self.shards is None or path in self.shards)

    def named_fields(self) -> Iterator[tuple[str, str]]:
        return (pair for pair in super().named_fields() if pair[1] not in self.field_map)

    def wanted(self, columns: Sequence[str]) -> list[str]:
        chosen = super().wanted([*columns, *self.field_map])
        heads = [self.field_map.get(name, name) for name in chosen]
        return [name for name in columns if name in heads or any(head.startswith(f"{name}.") for head in heads)]

    def record(self, row: dict, path: str) -> tuple[dict, list[Reject]]:
        mapped = {name: cells.value_at(row, inner) for name, inner in self.field_map.items()}
        return super().record({**row, **{name: value for name, value in mapped.items() if value is not None}}, path)

    def _described(self, name: str, needed: bool = True) -> dict[str, Any]:
        place = f"{self.root.place}/{_META}/{name}"
        try:
            return _read(self.root.read(f"{_META}/{name}"))
        except MediaError as error:
            if error.code == "missing_file" and not needed:
                return {}
            raise InputError(f"no Energon folder: {place}: {error.message}", field=self.root.uri_field) from None
        except ValueError as error:
            raise InputError(f"{place}: {error}", field=self.root.uri_field) from None


def _dotted(field: str) -> str:
    return re.sub(r"\[([^\]]+)\]", r".\1", re.sub(r"\[\d+\]", "", field))


def _folders(path: str) -> list[str]:
    """The folders above a path, the root's "" too."""
    found = [""]
    for part in path.split("/")[:-1]:
        found.append(posixpath.join(found[-1], part))
    return found


def _read(data: bytes) -> dict[str, Any]:
    """ValueError where it is no YAML, or no mapping."""
    try:
        value = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {type(value).__name__}")
    return value
