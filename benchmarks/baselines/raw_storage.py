"""The baseline of the storage engine: the same durable work, written by hand over the raw driver.

Values are pickled as the storage engine pickles them, and rows have the same columns of the same tables.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import psycopg

from benchmarks.harness.bulk_load import load_postgres, load_sqlite
from benchmarks.harness.interfaces import Store

ROOT = "kv/"  # the storage engine prepends it to the keys of its default namespace

INSERT = "INSERT INTO kv_entries (key, value, value_type) VALUES (?, ?, ?)"
UPSERT = f"""{INSERT} ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, value_type = excluded.value_type, updated_at = CURRENT_TIMESTAMP"""
FETCH = "SELECT value FROM kv_entries WHERE key = ?"
DELETE = "DELETE FROM kv_entries WHERE key = ?"
RANGE = "SELECT value FROM kv_entries WHERE key >= ? AND key < ? ORDER BY key"


class RawStore(Store, Protocol):
    """A store over the raw driver, which also fills tables for the other contenders."""

    def fill(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Insert many entries at once, and bring the table into its steady state."""

    def close(self) -> None: ...


class RawSqlite:
    """``sqlite3`` in autocommit, which caches prepared statements.

    :param connection: in autocommit, with its pragmas set
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def upsert(self, key: str, value: Any) -> None:
        self._connection.execute(UPSERT, _row(key, value))

    def fetch_one(self, key: str) -> Any:
        return pickle.loads(self._connection.execute(FETCH, (ROOT + key,)).fetchone()[0])

    def delete(self, key: str) -> None:
        self._connection.execute(DELETE, (ROOT + key,))

    def fetch_by_prefix(self, prefix: str) -> Iterator[Any]:
        for (blob,) in self._connection.execute(RANGE, _bounds(ROOT + prefix)):
            yield pickle.loads(blob)

    def fetch_all(self) -> Iterator[Any]:
        return self.fetch_by_prefix("")

    def fill(self, entries: Iterable[tuple[str, Any]]) -> None:
        load_sqlite(self._connection, INSERT, (_row(key, value) for key, value in entries))

    def close(self) -> None:
        self._connection.close()


class RawPostgres:
    """psycopg at its fastest: autocommit, prepared statements, binary format, one cursor, and streamed scans.

    :param connection: in autocommit
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._cursor = connection.cursor(binary=True)

    def upsert(self, key: str, value: Any) -> None:
        self._cursor.execute(_PG_UPSERT, _row(key, value), prepare=True)

    def fetch_one(self, key: str) -> Any:
        return pickle.loads(self._cursor.execute(_PG_FETCH, (ROOT + key,), prepare=True).fetchall()[0][0])

    def delete(self, key: str) -> None:
        self._cursor.execute(_PG_DELETE, (ROOT + key,), prepare=True)

    def fetch_by_prefix(self, prefix: str) -> Iterator[Any]:
        for (blob,) in self._cursor.execute(_PG_RANGE, _bounds(ROOT + prefix), prepare=True).fetchall():
            yield pickle.loads(blob)

    def fetch_all(self) -> Iterator[Any]:
        for (blob,) in self._cursor.stream(_PG_RANGE, _bounds(ROOT), size=1000):
            yield pickle.loads(blob)

    def fill(self, entries: Iterable[tuple[str, Any]]) -> None:
        columns = {"key": "text", "value": "bytea", "value_type": "text"}
        load_postgres(self._connection, "kv_entries", columns, (_row(key, value) for key, value in entries))

    def close(self) -> None:
        self._connection.close()


_PG_UPSERT, _PG_FETCH, _PG_DELETE, _PG_RANGE = (
    statement.replace("?", "%s").encode() for statement in (UPSERT, FETCH, DELETE, RANGE)
)


def _row(key: str, value: Any) -> tuple[str, bytes, str]:
    return ROOT + key, pickle.dumps(value, 5), type(value).__qualname__


def _bounds(prefix: str) -> tuple[str, str]:
    """The range of the keys with a prefix: its first key, and the first key after it."""
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)
