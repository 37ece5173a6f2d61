"""A database that was moved together with its files. In: the settings of a store. Out: rows that name the new place.

MLflow keeps absolute places of files in its database. Where those lie beside the database by our own default, they are
made to follow it: new runs write beside the database, and the files of old runs are found.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from omniloom.infra.secrets import logger
from omniloom.infra.tracking.config import TrackingSettings

log = logger(__name__)

# Where MLflow's schema keeps places of files: (table, column).
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(settings: TrackingSettings) -> None:
    """Make the places in the database follow it; nothing is done where it has not moved or is not our layout."""
    database = settings.database
    if not settings.beside or database is None or not database.is_file():
        return
    root = _path(settings.artifact_root)
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=settings.request_seconds)) as connection:
            for old in sorted(_roots(connection, root)):
                _move(connection, old, root)
    except sqlite3.Error as error:  # not a database, locked, read-only: MLflow will say so where it matters
        log.warning("tracking could not look where the files of %s are: %s", database, error)


def _roots(connection: sqlite3.Connection, root: str) -> set[str]:
    """Places of experiments that have our layout (the last two folders of `root`) and lie elsewhere."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return set()
    ours = PurePosixPath(root).parts[-2:] if root.endswith("/mlflow/artifacts") else PurePosixPath(root).parts[-1:]
    found = {place for (place,) in connection.execute("SELECT artifact_location FROM experiments") if place}
    return {
        place
        for place in found
        if _path(place) not in (None, root) and PurePosixPath(_path(place)).parts[-len(ours) :] == ours
    }


def _move(connection: sqlite3.Connection, old: str, root: str) -> None:
    """Change every place below `old`; where a file is still there and not below `root`, its place stays."""
    moved = 0
    with connection:
        for table, column in _PLACES:
            if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                continue  # another version of MLflow
            for prefix, new in ((old, Path(root).as_uri()), (_path(old), root)):
                for (place,) in connection.execute(
                    f"SELECT DISTINCT {column} FROM {table} WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (prefix, len(prefix) + 1, prefix + "/"),
                ).fetchall():
                    target = new + place[len(prefix) :]
                    if table == "experiments" or Path(_path(target)).exists() or not Path(_path(place)).exists():
                        moved += connection.execute(
                            f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (target, place)
                        ).rowcount
    log.info("tracking: files that were below %s are looked for below %s (%d places)", _path(old), root, moved)


def _path(place: str | None) -> str | None:
    """The local path of a place, given as a path or a `file:` URI; None for any other."""
    if place is None or place.startswith("/"):
        return place
    return unquote(urlsplit(place).path) if place.startswith("file:") else None
