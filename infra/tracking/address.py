"""Addresses of tracking stores. In: a URI as a user wrote it. Out: whether it can be one, and a SQLite URI's path."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from omniloom.infra.secrets import redact

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
_DATABASES = ("postgresql", "mysql", "mssql")
_SQLITE = re.compile(r"sqlite(\+pysqlite)?:///")
_ESCAPED = re.compile(r"[%?#]")


def check_uri(uri: str) -> str:
    """The URI, where it can be a store's; ValueError says what was expected. Imports and opens nothing."""
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    expected = f"expected one of {', '.join(known + ':' for known in SCHEMES)}"
    if scheme not in SCHEMES or ":" not in uri and uri != "databricks":
        folder = (
            (
                "; MLflow no longer keeps runs in a folder: give sqlite:////PATH/mlflow.db, or nothing for a "
                "database beside the artifacts"
            )
            if scheme == "file" or "://" not in uri
            else ""
        )
        raise ValueError(f"{expected}, got {redact(uri)!r}{folder}")
    if scheme == "sqlite" and sqlite_path(uri) is None:
        raise ValueError(f"expected a file, as in sqlite:////PATH/mlflow.db, got {redact(uri)!r}")
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(uri)
            known = parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"expected the address of a server, as in http://host:5000, got {redact(uri)!r}")
    return uri


def check_driver(uri: str) -> None:
    """ValueError where the database behind the URI needs a Python package that is not installed here."""
    if uri.split(":", 1)[0].split("+", 1)[0] not in _DATABASES:
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except (SQLAlchemyError, ValueError) as error:
        raise ValueError(f"{redact(uri)!r} cannot be opened: {redact(str(error))}") from None
    except ImportError as error:
        raise ValueError(
            f"{redact(uri)!r} needs a database driver that is not installed: {error}; install it with "
            "pip (omniloom[postgres] has PostgreSQL's), or name another as in postgresql+psycopg2:, mysql+pymysql:"
        ) from None


def sqlite_uri(path: Path, query: str = "") -> str:
    """The URI of a SQLite file. Its path is escaped as the installed SQLAlchemy reads it (`?`, `%`, `#`); the driver
    is named then, since MLflow makes the folder of a plain `sqlite:///` URI by itself, from the path as it is written.
    """
    if not _ESCAPED.search(str(path)):
        return f"sqlite:///{path}{query}"
    from sqlalchemy.engine import URL

    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string(hide_password=False) + query


def sqlite_path(uri: str) -> Path | None:
    """The file that a SQLite URI names, absolute; None for another URI and for a database in memory."""
    match = _SQLITE.match(uri)
    name = uri[match.end() :].partition("?")[0] if match else ""
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    if "%" in name:
        from sqlalchemy.engine import make_url

        name = make_url(uri).database or name
    return Path(name).expanduser().absolute()


def absolute_store(uri: str) -> str:
    """A store's address that means the same from any folder: the file of a SQLite URI made absolute."""
    path = sqlite_path(uri)
    return sqlite_uri(path, "".join(uri.partition("?")[1:])) if path else uri
