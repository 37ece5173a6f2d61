"""Mosaic Data Shards: each sample is a record, by columns that are named."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Literal

from omniloom.stages.ingest.annotations.row_mapping import RowsConfig
from omniloom.stages.ingest.formats.mds import Mds
from omniloom.stages.ingest.kinds.row_files import RowFiles
from omniloom.stages.ingest.look.glimpse import BY_DOCUMENT, Glimpse, Recognition


class MdsConfig(RowsConfig):
    """Mosaic Data Shards (.mds), as MosaicML's streaming library writes them, each sample a record."""

    kind: Literal["mds"]
    """Mosaic Data Shards, each sample a record."""


class MdsShards(RowFiles):
    Config = MdsConfig
    suffixes = Mds.suffixes
    known = (Mds(),)
    usual_options = {"text_field": "text"}

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Shards by what their first samples hold, with the index beside them."""
        found = super().recognize(glimpse)
        if found is None:
            return None
        folders = {posixpath.dirname(path) for path in found.paths}
        indices = {path for path in glimpse.named(["index.json"]) if posixpath.dirname(path) in folders}
        return replace(found, paths=found.paths | indices, strength=BY_DOCUMENT)
