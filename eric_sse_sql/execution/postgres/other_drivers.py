"""Statements on an application's connection through another driver than psycopg, for which they are written."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import DBAPIError

from eric_sse_sql.execution.postgres.session import DISCARD_PLANS, PLAN_SECONDS, SAMPLE, SAMPLES
from eric_sse_sql.execution.statement import Row
from eric_sse_sql.execution.values import check_values

CHECKED = "eric_sse_sql.checked"  # the key in what the pool keeps with a connection: whether its values were checked
PLANS_EXPIRE = "eric_sse_sql.plans_expire"  # likewise: when its cached plans are discarded
PREPARES = "asyncpg"  # the driver that prepares every statement
_PLACEHOLDER = re.compile("%([bs%])")
# Without a declared type, Postgres may take a parameter for text, where psycopg tells the type of the value.
_CASTS = {str: "::text", bytes: "::bytea", float: "::float8", bool: "::boolean", int: "::bigint"}


def prepare(connection: Connection) -> None:
    """Called before each statement in a transaction of the application.

    :raises RepositoryError: where values do not come back as they were given
    """
    info = connection.info
    if CHECKED not in info:
        with connection.begin_nested():  # a savepoint: a refused query leaves the rest usable
            cursor = connection.connection.cursor()
            check_values(lambda _: run(connection, SAMPLE, SAMPLES)[0][0], cursor, SAMPLES, DBAPIError)
        info[CHECKED] = True
    if connection.dialect.driver == PREPARES and time.monotonic() > info.get(PLANS_EXPIRE, 0.0):
        info[PLANS_EXPIRE] = time.monotonic() + PLAN_SECONDS
        connection.exec_driver_sql(DISCARD_PLANS)


def run(connection: Connection, sql: str, values: Sequence[Any]) -> tuple[Sequence[Row], int]:
    """Run a statement. All its rows, and how many it has changed."""
    result: CursorResult[Any] = connection.exec_driver_sql(_translated(connection, sql, values), tuple(values))
    rows = result.fetchall() if result.returns_rows else ()
    return [tuple(map(_bytes, row)) for row in rows], result.rowcount


def is_in_autocommit(connection: Connection) -> bool:
    """Whether each statement on the connection is committed at once."""
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    if not adapted.autocommit:
        return False
    if connection.dialect.driver == "psycopg2":
        return bool(driver.info.transaction_status == 0)
    return not (connection.dialect.driver == "asyncpg" and driver.is_in_transaction())


def _translated(connection: Connection, sql: str, values: Sequence[Any]) -> str:
    """A statement with the placeholders of the connection's driver."""
    is_numbered = connection.dialect.driver == "asyncpg"
    number = 0

    def placeholder(match: re.Match[str]) -> str:
        nonlocal number
        if match[1] == "%":
            return "%" if is_numbered else "%%"
        number += 1
        return (f"${number}" if is_numbered else "%s") + _CASTS.get(type(values[number - 1]), "")

    return _PLACEHOLDER.sub(placeholder, sql)


def _bytes(value: Any) -> Any:
    """A value as psycopg returns it: psycopg2 returns a view of bytes."""
    return bytes(value) if isinstance(value, memoryview) else value
