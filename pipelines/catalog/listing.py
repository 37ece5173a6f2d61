"""Listing: what a storage holds, and one thing of it in full. In: a place, an artifact or a run. Out: dictionaries, as
JSON has them."""

from __future__ import annotations

from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.secrets import redact
from omniloom.pipelines.catalog.lineage import lineage, registered
from omniloom.pipelines.catalog.places import Place, store_of
from omniloom.pipelines.graph import KNOWN, KNOWN_NAMES


def artifacts(where: Place) -> list[dict[str, Any]]:
    """By stage in the order of pipelines, the newest first. `used_by`: the pipelines whose last run used it."""
    used = used_by(where.root)
    rows = [
        {
            "stage": found.stage,
            "fingerprint": found.fingerprint,
            "artifact": found.uri,
            "pipeline": found.manifest.get("pipeline"),
            "ended": found.manifest["times"]["ended"],
            "seconds": found.manifest["times"]["seconds"],
            "bytes": size(found),
            "used_by": used.get((found.stage, found.fingerprint), []),
            "metrics": found.metrics,
        }
        for found in sorted(where.store.all(), key=_order)
    ]
    return redact(rows)


def _order(found: Artifact) -> tuple[int, float]:
    known = KNOWN_NAMES.index(found.stage) if found.stage in KNOWN_NAMES else len(KNOWN_NAMES)
    return known, -found.manifest["times"]["ended_unix"]


def size(found: Artifact) -> int:
    return sum(entry["bytes"] for entry in found.manifest["files"])


def used_by(root: str) -> dict[tuple[str, str], list[str]]:
    """By (stage, fingerprint), the pipelines whose last run used the artifact."""
    folder = storage.join(root, "pipelines")
    found: dict[tuple[str, str], list[str]] = {}
    for name in storage.list_files(folder):
        pipeline, _, file = name.rpartition("/")
        if record := storage.read_json(storage.join(folder, name)) if file.endswith(".json") else None:
            found.setdefault((file.removesuffix(".json"), record["fingerprint"]), []).append(pipeline)
    return found


def runs(where: Place) -> list[dict[str, Any]]:
    """The newest first."""
    folder = storage.join(where.root, "runs")
    names = [name for name in storage.list_files(folder) if name.endswith(".json") and "/" not in name]
    records = (storage.read_json(storage.join(folder, name)) for name in sorted(names, reverse=True))
    return redact([record for record in records if record])


def models(where: Place) -> list[dict[str, Any]]:
    """Versions in the registry of what was trained in this storage, the newest of each name first."""
    makers = [stage.name for stage in KNOWN if stage.makes == "model"]
    trained = {found.fingerprint: found for maker in makers for found in where.store.all(maker)}
    rows = [
        {
            **version,
            "artifact": trained[version["fingerprint"]].uri,
            "uri": f"models:/{version['name']}/{version['version']}",
        }
        for version in registered(where.settings, list(trained))
    ]
    return redact(sorted(rows, key=lambda row: (row["name"], -int(row["version"]))))


def show(found: Artifact) -> dict[str, Any]:
    """The manifest, with where the artifact lies, how large it is, who used it last and what was made from it."""
    store = store_of(found)
    graph = lineage(found)
    root = graph["root"]
    return redact(
        {
            "artifact": found.uri,
            "bytes": size(found),
            "damaged": store.damage(found),
            "used_by": used_by(store.root).get((found.stage, found.fingerprint), []),
            "made_from_it": [edge["to"] for edge in graph["edges"] if edge["from"] == root],
            **found.manifest,
        }
    )
