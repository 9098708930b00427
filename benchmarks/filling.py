"""Many rows at once, and the state that their table would be in some time later."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import sql


def sqlite_fill(connection: sqlite3.Connection, insert: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows in one transaction.

    :param connection: in autocommit
    """
    connection.execute("BEGIN")
    connection.executemany(insert, rows)
    connection.execute("COMMIT")
    sqlite_settle(connection)


def sqlite_settle(connection: sqlite3.Connection) -> None:
    """Bring the write-ahead log into the database."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def postgres_fill(
    connection: psycopg.Connection[Any], table: str, columns: Mapping[str, str], rows: Iterable[tuple[Any, ...]]
) -> None:
    """Copy rows into a table.

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
    postgres_settle(connection)


def postgres_settle(connection: psycopg.Connection[Any]) -> None:
    """Count the rows, as autovacuum would, and write them to their tables."""
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")
