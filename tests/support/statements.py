"""A recorder of the statements that reach a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import event

from eric_sse_sql import Database


class Statements(list[str]):
    """The statements that an engine was given, in order."""


Record = Callable[[Database], Statements]


def record_statements(database: Database) -> Statements:
    """Begin to record the statements of a database.

    Transaction control is not recorded, nor is the notification that a background thread sends for many pushes.
    """
    recorded = Statements()

    @event.listens_for(database.engine, "before_cursor_execute")
    def record(connection: object, cursor: object, statement: str, *others: object) -> None:
        if not statement.startswith("SELECT pg_notify"):
            recorded.append(statement)

    return recorded


def without_polls(statements: Sequence[str]) -> list[str]:
    """The statements that are no SELECT: all but the polls of the background thread."""
    return [statement for statement in statements if not statement.startswith("SELECT")]


def release_savepoint(database: Database) -> None:
    """Release the first savepoint of the open transaction unseen by SQLAlchemy, which then can't end it."""
    database.connection().exec_driver_sql("RELEASE SAVEPOINT sa_savepoint_1")  # SQLAlchemy's name for it
