"""SQLite finds the rows of a channel, a queue and a log by an index: no statement of theirs scans a table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eric_sse_sql import Database
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.sql import connections, events, messages

ONE = '["x"]'  # a list of one id
OF_CHANNEL: dict[str, Any] = {"channel_id": "c"}
OF_LISTENER: dict[str, Any] = {**OF_CHANNEL, "listener_id": "l"}
MESSAGE: dict[str, Any] = {"message_type": "m", "message": b"m"}
PAGE: dict[str, Any] = {"count": 10, "bytes": 100}

STATEMENTS: dict[str, tuple[Statement, dict[str, Any]]] = {
    "dispatch": (messages.PUSH_TO_LISTENER.plain, {**OF_LISTENER, **MESSAGE, "queue_id": None}),
    "broadcast": (messages.PUSH_TO_CHANNEL.plain, {**OF_CHANNEL, **MESSAGE, "apart": ONE, "unstored": ONE}),
    "feed": (messages.TAKE_OF_EACH, {**PAGE, "queue_ids": ONE}),
    "take": (messages.TAKE, {**PAGE, "queue_id": "q"}),
    "still there": (messages.IS_STILL_THERE, {"queue_id": "q", "age": "-1 seconds"}),
    "clear": (messages.NOTE_CLEARED, {"queue_id": "q"}),
    "find": (connections.OF_LISTENER, OF_LISTENER),
    "load all": (connections.OF_CHANNEL, OF_CHANNEL),
    "mark seen": (connections.MARK_SEEN, {"connection_ids": ONE}),
    "missing": (connections.MISSING, {"connection_ids": ONE}),
    "append": (events.APPEND.plain, {**OF_LISTENER, **MESSAGE}),
    "append a dispatch": (events.APPEND_DISPATCH.plain, {**OF_LISTENER, **MESSAGE}),
    "state": (events.STATE, {**OF_LISTENER, "seen": 1}),
    "after": (events.AFTER, {**OF_CHANNEL, **PAGE, "after": 1}),
    "of a listener": (events.OF_LISTENER, {**OF_LISTENER, **PAGE, "after": 1, "last": 100}),
    "start of the tail": (events.TAIL_START, {**OF_CHANNEL, **PAGE}),
    "last positions": (events.LAST_POSITIONS, {"channel_ids": ONE}),
    "expire": (events.EXPIRE, {**OF_CHANNEL, "count": 10}),
    "trim": (events.TRIM, OF_CHANNEL),
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path_factory.mktemp('plans') / 'test.db'}") as made:
        made.upgrade()
        yield made


def scanned(database: Database, statement: Statement, parameters: dict[str, Any]) -> list[str]:
    """The tables of the package that SQLite would scan."""
    compiled = database.executor.compile(statement)
    connection = sqlite3.connect(Path(str(database.engine.url.database)))
    rows = connection.execute(f"EXPLAIN QUERY PLAN {compiled.sql}", compiled.values(parameters)).fetchall()
    connection.close()
    steps = [str(step).replace("SCAN TABLE", "SCAN") for *_, step in rows]  # as before SQLite 3.36
    return [step for step in steps if step.startswith(("SCAN sse_", "SCAN kv_"))]


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_scans_no_table(database: Database, name: str) -> None:
    statement, parameters = STATEMENTS[name]
    assert scanned(database, statement, parameters) == []


def test_a_scan_is_found(database: Database) -> None:
    assert scanned(database, messages.COUNT_SET_ASIDE, {}) != []
