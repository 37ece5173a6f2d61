"""The manifests in a folder of checkpoints, as saving writes them and a training that goes on reads them."""

from __future__ import annotations

from omniloom.infra import storage

FORMAT = 2  # by parameter; what names none was written by rank, as DeepSpeed does


def manifests(folder: str) -> list[str]:
    """Names of the manifests of checkpoints, newest first."""
    return sorted((n for n in storage.list_files(folder) if n.endswith(".json") and "/" not in n), reverse=True)
