"""Checks of arguments. They come before the database is asked, and give the same error on both databases."""

from __future__ import annotations

from typing import Any, TypeVar

from eric_sse.connection import Connection
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.queues import Queue

from eric_sse_sql.keys import validate_key

MAX_SCHEMA_BYTES = 63  # Postgres cuts longer names off
YEAR_SECONDS = 365 * 24 * 60 * 60

Argument = TypeVar("Argument")


def kind_of(value: object) -> str:
    """What a value is, for an error message, which never quotes the value."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def validate_type(what: str, value: Argument, kind: type[Any], instead: str = "") -> Argument:
    """Return a value unchanged if it is of a class.

    :param what: the subject of the error message, such as "codec="
    :param instead: what to write instead
    :raises RepositoryError: when it is not
    """
    if isinstance(value, kind):
        return value
    advice = f"; {instead}" if instead else ""
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise RepositoryError(f"{what} must be {article} {kind.__name__}, not {kind_of(value)}{advice}") from TypeError(
        kind_of(value)
    )


def validate_connection(connection: Connection) -> Connection:
    """Return a connection unchanged if it is one, of a listener and a queue.

    :raises RepositoryError: when it is not
    """
    validate_type("a connection", connection, Connection)
    validate_type("the listener of a connection", connection.listener, MessageQueueListener)
    validate_type("the queue of a connection", connection.queue, Queue)
    return connection


def validate_number(
    what: str, value: float, least: float, most: float, *, whole: bool = False, allowed: str = ""
) -> None:
    """Do nothing for a number in a range.

    :param whole: whether it must be an ``int``
    :param allowed: what the error calls the range
    :raises RepositoryError: for anything else, NaN included
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = "a whole number" if whole else "a number"
        advice = "; write its total_seconds()" if hasattr(value, "total_seconds") else ""
        raise RepositoryError(f"{what} must be {kind}, not {kind_of(value)}{advice}") from TypeError(kind_of(value))
    if not least <= value <= most:
        allowed = allowed or f"from {least:,} to {most:,}"
        raise RepositoryError(f"{what} must be {allowed}") from ValueError("out of range")


def validate_schema(schema: str | None, *, has_schemas: bool) -> None:
    """Do nothing for the name of a schema, and for None, which is the search path.

    :param has_schemas: whether the database has schemas
    :raises RepositoryError: for a name that no schema of the database can have
    """
    if schema is None:
        return
    if not has_schemas:
        raise RepositoryError("schema= is for Postgres; a SQLite file has one") from ValueError(kind_of(schema))
    size = len(validate_key("schema=", schema).encode())
    if not 0 < size <= MAX_SCHEMA_BYTES:
        raise RepositoryError(
            f"schema= must be 1 to {MAX_SCHEMA_BYTES} bytes of UTF-8; leave it out to use the search path"
        ) from ValueError(size)
    if schema[0] == schema[-1] and schema[0] in "\"'":
        raise RepositoryError("schema= must be the name without quotes, which are added where they are needed") from (
            ValueError("quoted")
        )
