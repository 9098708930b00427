"""A check of the values that a connection writes and reads, before any message leaves its table."""

from __future__ import annotations

import sqlite3
from typing import Any

from eric_sse_sql.execution.values import check_values

# A value for each declared type of a column that is read.
SAMPLES = {
    "TEXT": "text",
    "VARCHAR": "text",
    "BLOB": b"\0\xff",
    "BIGINT": 2**40,
    "INTEGER": 7,
    "FLOAT": 0.5,
    "BOOLEAN": 1,
}
VALUES = tuple(SAMPLES.values())


def check_samples(cursor: Any) -> None:
    """Do nothing where adapters and converters of the application leave the values of this package as they are.

    :param cursor: a new one, which is closed
    :raises RepositoryError: where they change values
    """
    check_values(_read_samples, cursor, VALUES, sqlite3.Error)


def _read_samples(cursor: Any) -> Any:
    places = ", ".join("?" * len(VALUES))
    if SAMPLES.keys().isdisjoint(getattr(sqlite3, "converters", ())):
        cursor.execute(f"SELECT {places}", VALUES)
        return cursor.fetchone()
    # A converter is for columns that declare its type: those of a table that only this connection sees.
    columns = ", ".join(f"column_{number} {kind}" for number, kind in enumerate(SAMPLES))
    cursor.execute("SAVEPOINT eric_sse_sql")
    try:
        cursor.execute(f"CREATE TEMPORARY TABLE eric_sse_sql_samples ({columns})")
        cursor.execute(f"INSERT INTO temp.eric_sse_sql_samples VALUES ({places})", VALUES)  # noqa: S608
        cursor.execute("SELECT * FROM temp.eric_sse_sql_samples")
        return cursor.fetchall()[0]
    finally:
        cursor.execute("ROLLBACK TO eric_sse_sql")
        cursor.execute("RELEASE eric_sse_sql")
