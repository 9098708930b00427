"""The baseline of the queue: the same durable work, written by hand over the raw driver.

Messages are pickled as the queue pickles them, and rows have the same columns of the same table.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import psycopg
from eric_sse.exception import NoMessagesException
from eric_sse.message import MessageContract

from benchmarks.harness.bulk_load import load_postgres, load_sqlite
from benchmarks.harness.interfaces import LeasingQueue

INSERT = "INSERT INTO sse_messages (queue_id, message_type, message) VALUES (?, ?, ?)"
_HEAD = "SELECT id FROM sse_messages WHERE queue_id = ? ORDER BY id LIMIT 1"
_POP = "DELETE FROM sse_messages WHERE id = ({}) RETURNING message"
_LEASE = """UPDATE sse_messages SET leased_until = {}, delivery_count = delivery_count + 1
    WHERE id = ({}) RETURNING id, message"""
ACKNOWLEDGE = "DELETE FROM sse_messages WHERE id = ?"

POP = _POP.format(_HEAD)
LEASE = _LEASE.format("datetime('now', '+30 seconds')", _HEAD)


class RawQueue(LeasingQueue, Protocol):
    """A queue over the raw driver, which can insert many messages at once."""

    def fill(self, messages: Iterable[MessageContract]) -> None:
        """Insert many messages at once, and bring the table into its steady state."""

    def close(self) -> None: ...


class RawSqliteQueue:
    """``sqlite3`` in autocommit, which caches prepared statements.

    :param connection: in autocommit, with its pragmas set
    """

    def __init__(self, connection: sqlite3.Connection, queue_id: str) -> None:
        self._connection = connection
        self._queue_id = queue_id

    def push(self, message: MessageContract) -> None:
        self._connection.execute(INSERT, self._row(message))

    def pop(self) -> Any:
        rows = self._connection.execute(POP, (self._queue_id,)).fetchall()
        if not rows:
            raise NoMessagesException
        return pickle.loads(rows[0][0])

    @contextmanager
    def receive(self) -> Iterator[Any]:
        ((number, blob),) = self._connection.execute(LEASE, (self._queue_id,)).fetchall()
        yield pickle.loads(blob)
        self._connection.execute(ACKNOWLEDGE, (number,))

    def fill(self, messages: Iterable[MessageContract]) -> None:
        load_sqlite(self._connection, INSERT, map(self._row, messages))

    def close(self) -> None:
        self._connection.close()

    def _row(self, message: MessageContract) -> tuple[str, str, bytes]:
        return self._queue_id, message.type, pickle.dumps(message, 5)


class RawPostgresQueue:
    """psycopg at its fastest: autocommit, prepared statements, binary format, one cursor.

    :param connection: in autocommit
    """

    def __init__(self, connection: psycopg.Connection[Any], queue_id: str) -> None:
        self._connection = connection
        self._cursor = connection.cursor(binary=True)
        self._queue_id = queue_id

    def push(self, message: MessageContract) -> None:
        self._cursor.execute(_PG_INSERT, self._row(message), prepare=True)

    def pop(self) -> Any:
        rows = self._cursor.execute(_PG_POP, (self._queue_id,), prepare=True).fetchall()
        if not rows:
            raise NoMessagesException
        return pickle.loads(rows[0][0])

    @contextmanager
    def receive(self) -> Iterator[Any]:
        ((number, blob),) = self._cursor.execute(_PG_LEASE, (self._queue_id,), prepare=True).fetchall()
        yield pickle.loads(blob)
        self._cursor.execute(_PG_ACKNOWLEDGE, (number,), prepare=True)

    def fill(self, messages: Iterable[MessageContract]) -> None:
        columns = {"queue_id": "text", "message_type": "text", "message": "bytea"}
        load_postgres(self._connection, "sse_messages", columns, map(self._row, messages))

    def close(self) -> None:
        self._connection.close()

    def _row(self, message: MessageContract) -> tuple[str, str, bytes]:
        return self._queue_id, message.type, pickle.dumps(message, 5)


_PG_HEAD = f"{_HEAD} FOR UPDATE SKIP LOCKED"
_PG_INSERT, _PG_POP, _PG_LEASE, _PG_ACKNOWLEDGE = (
    statement.replace("?", "%s").encode()
    for statement in (
        INSERT,
        _POP.format(_PG_HEAD),
        _LEASE.format("CURRENT_TIMESTAMP + INTERVAL '30 seconds'", _PG_HEAD),
        ACKNOWLEDGE,
    )
)
