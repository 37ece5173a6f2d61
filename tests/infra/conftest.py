"""A tracking database that is made once: creating one takes MLflow seconds of migrations."""

from __future__ import annotations

import shutil

import pytest

from omniloom.infra.tracking import TrackingConfig, resolve_tracking


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory):
    """An empty SQLite database with MLflow's tables."""
    settings = resolve_tracking(TrackingConfig(artifact_root="file:///nowhere"), str(tmp_path_factory.mktemp("empty")))
    from omniloom.infra.tracking.connection import open_client

    open_client(settings)
    return settings.database


@pytest.fixture
def tracked(tmp_path, migrated_database):
    """Settings of a storage of its own, whose database is there already."""
    storage = tmp_path / "st"
    storage.mkdir()
    shutil.copy(migrated_database, storage / "mlflow.db")
    return resolve_tracking(TrackingConfig(system_metrics=False, flush_seconds=20, request_seconds=5), str(storage))
