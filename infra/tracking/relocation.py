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
    if root is None:
        return
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=settings.request_seconds)) as connection:
            for old, path in sorted(_roots(connection, root).items()):
                _move(connection, old, path, root)
    except sqlite3.Error as error:  # not a database, locked, read-only: MLflow will say so where it matters
        log.warning("tracking could not look where the files of %s are: %s", database, error)


def _roots(connection: sqlite3.Connection, root: str) -> dict[str, str]:
    """Places of experiments that have our layout (the last two folders of `root`) and lie elsewhere, and their local
    paths."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return {}
    ours = PurePosixPath(root).parts[-2:] if root.endswith("/mlflow/artifacts") else PurePosixPath(root).parts[-1:]
    places = [place for (place,) in connection.execute("SELECT artifact_location FROM experiments")]
    found = {place: path for place in places if place and (path := _path(place))}
    return {
        place: path for place, path in found.items() if path != root and PurePosixPath(path).parts[-len(ours) :] == ours
    }


def _move(connection: sqlite3.Connection, old: str, path: str, root: str) -> None:
    """Change every place below `old`, whose local path is `path`; where a file is still there and not below `root`, its
    place stays."""
    moved = 0
    with connection:
        for table, column in _PLACES:
            if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                continue  # another version of MLflow
            for prefix, new in ((old, Path(root).as_uri()), (path, root)):
                for (place,) in connection.execute(
                    f"SELECT DISTINCT {column} FROM {table} WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (prefix, len(prefix) + 1, prefix + "/"),
                ).fetchall():
                    target = new + place[len(prefix) :]
                    if table == "experiments" or _is_there(target) or not _is_there(place):
                        moved += connection.execute(
                            f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (target, place)
                        ).rowcount
    log.info("tracking: files that were below %s are looked for below %s (%d places)", path, root, moved)


def _is_there(place: str) -> bool:
    path = _path(place)
    return path is not None and Path(path).exists()


def _path(place: str | None) -> str | None:
    """The local path of a place, given as a path or a `file:` URI; None for any other."""
    if place is None or place.startswith("/"):
        return place
    return unquote(urlsplit(place).path) if place.startswith("file:") else None
