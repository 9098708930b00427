"""Inserts many rows at once, and brings a database into its steady state."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import sql


def load_sqlite(connection: sqlite3.Connection, insert: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows in one transaction.

    :param connection: in autocommit
    """
    connection.execute("BEGIN")
    connection.executemany(insert, rows)
    connection.execute("COMMIT")
    settle_sqlite(connection)


def settle_sqlite(connection: sqlite3.Connection) -> None:
    """Move the write-ahead log into the database file."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def load_postgres(
    connection: psycopg.Connection[Any], table: str, columns: Mapping[str, str], rows: Iterable[tuple[Any, ...]]
) -> None:
    """Insert rows with COPY.

    :param connection: in autocommit
    :param columns: their types, by name
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(list(columns.values()))
        for row in rows:
            copy.write_row(row)
    settle_postgres(connection)


def settle_postgres(connection: psycopg.Connection[Any]) -> None:
    """Vacuum and analyze, as autovacuum would, and write dirty pages to disk."""
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")
