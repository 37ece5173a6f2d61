"""A sweep's folder, STORAGE/sweeps/PIPELINE/ID: `sweep.json` (its trials, and what came out so far), and at its end
`trials.csv` and `report.html`. The id follows from the sweep and from the config that it changes, so that the same
sweep finds what it did before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.infra.secrets import redact
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.fingerprint import canonical
from omniloom.pipelines.sweeps.results import Results

RECORD, TABLE, PAGE = "sweep.json", "trials.csv", "report.html"


class Folder:
    def __init__(self, config: PipelineConfig):
        assert config.sweep is not None
        self.id = identity(config)
        self.uri = storage.join(config.storage, "sweeps", config.name, self.id)

    def file(self, name: str) -> str:
        return storage.join(self.uri, name)

    def known(self) -> list[dict[str, Any]]:
        """The rows of what the sweep did before, as `Result.to_dict` gives them."""
        return list((storage.read_json(self.file(RECORD)) or {}).get("trials", ()))

    def write(self, results: Results) -> None:
        storage.write_json(self.file(RECORD), redact(finite(results.to_dict())))

    def write_all(self, results: Results, page: str) -> None:
        self.write(results)
        storage.write_bytes(self.file(TABLE), redact(results.to_csv()).encode())
        storage.write_bytes(self.file(PAGE), page.encode())


def identity(config: PipelineConfig) -> str:
    assert config.sweep is not None
    stages = {name: canonical(getattr(config.stages, name), name) for name in config.stages.configured()}
    sweep = config.sweep.model_dump(mode="json", exclude={"concurrent"})
    told = {"sweep": sweep, "stages": stages, "pins": config.pins, "data": config.data, "seed": config.seed}
    return hashlib.sha256(json.dumps(redact(told), sort_keys=True).encode()).hexdigest()[:12]


def used(root: str) -> Iterator[tuple[tuple[str, str], str]]:
    """(stage, fingerprint) of the artifacts that sweeps in a storage compare, each with the sweep's folder."""
    below = storage.join(root, "sweeps")
    for name in sorted(storage.list_files(below)):
        if name.endswith(f"/{RECORD}"):
            record = storage.read_json(storage.join(below, name)) or {}
            for row in record.get("trials", ()):
                for made in row["artifacts"].items():
                    yield made, storage.join(below, name.removesuffix(f"/{RECORD}"))
