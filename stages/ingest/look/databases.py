"""Databases: the tables of an SQLite file as rows, as photo managers keep what they know of pictures.

In: the bytes of a file. Out: lists of rows by their columns, a table each; a row has the fields of the rows that its
keys name too, so that a note in one table stands beside the file's name in another. Nothing in the file is executed:
views and triggers are not read, and a query that goes on for long is ended.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from typing import Any

SUFFIXES = (".db", ".db3", ".sqlite", ".sqlite3")
_MAGIC = b"SQLite format 3\0"
_ROWS = 1_000_000  # of a table
_SECONDS = 20.0  # of all queries
_STEPS = 100_000  # of SQLite's machine, between two looks at the clock
_DEEPEST = 2  # tables behind a table: a note's file, and that file's folder

Row = dict[str, Any]


def readings(data: bytes) -> Iterator[list[Row]]:
    """The rows of each table; of what is no database none."""
    if not data.startswith(_MAGIC):
        return
    end = time.monotonic() + _SECONDS
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.row_factory = sqlite3.Row
        database.text_factory = lambda value: value.decode("utf-8", "replace")
        database.set_progress_handler(lambda: int(time.monotonic() > end), _STEPS)
        try:
            database.deserialize(data)
            database.execute("PRAGMA trusted_schema = OFF")
            names = [row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            tables = {name: _Table(database, name) for name in names}
        except sqlite3.Error:
            return
    for table in tables.values():
        yield [table.whole(row, tables) for row in table.rows]


class _Table:
    """`keys`: by column the table whose row a value names; `column`: by which others name a row of this one."""

    def __init__(self, database: sqlite3.Connection, name: str):
        self.name, quoted = name, '"' + name.replace('"', '""') + '"'
        self.rows: list[Row] = [dict(row) for row in database.execute(f"SELECT * FROM {quoted} LIMIT {_ROWS}")]
        columns = database.execute(f"PRAGMA table_info({quoted})").fetchall()
        own = [row["name"] for row in columns if row["pk"]]
        self.column = own[0] if len(own) == 1 else None
        self.keys = {row["from"]: row["table"] for row in database.execute(f"PRAGMA foreign_key_list({quoted})")}
        self._names = [row["name"] for row in columns]
        self._by_key: Mapping[Any, Row] | None = None

    def find(self, key: Any) -> Row | None:
        if self._by_key is None:
            self._by_key = {row[self.column]: row for row in self.rows} if self.column else {}
        return self._by_key.get(key)

    def whole(self, row: Row, tables: Mapping[str, _Table], depth: int = 0) -> Row:
        """With the fields of the rows that it names, by TABLE.FIELD."""
        found = dict(row)
        for column in self._names if depth < _DEEPEST else ():
            other = tables.get(self.keys.get(column) or _named(column, tables))
            if other and other is not self and (behind := other.find(row[column])):
                whole = other.whole(behind, tables, depth + 1)
                found |= {f"{other.name}.{name}": value for name, value in whole.items() if name != other.column}
        return found


def _named(column: str, tables: Mapping[str, Any]) -> str:
    """The table that a column is called after, though nothing declares it: `file_id` or `fileid` of files."""
    stem = column.lower().removesuffix("id").rstrip("_")
    if not stem or stem == column.lower():
        return ""
    return next((name for name in tables if name.lower() in (stem, f"{stem}s")), "")
