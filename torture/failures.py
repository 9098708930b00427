"""Ways in which the Nth statement of a call fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from sqlalchemy import create_engine, event

from eric_sse_sql import Database
from torture.databases import POSTGRES, SQLITE, Target
from torture.proxy import Proxy


class Failure(Protocol):
    """Lets one statement of a database fail."""

    def arm(self, number: int) -> None:
        """Let the statement of this number fail, counted from now and from 1."""

    def disarm(self) -> bool:
        """Let no statement fail. Whether one has failed."""


class _Countdown:
    """Counts statements."""

    def __init__(self) -> None:
        self._left = 0
        self._has_failed = False

    def arm(self, number: int) -> None:
        """Let the statement of this number fail."""
        self._left, self._has_failed = number, False

    def disarm(self) -> bool:
        """Let no statement fail. Whether one has failed."""
        self._left = 0
        return self._has_failed

    def fails(self) -> bool:
        """Whether the statement that comes now is the one."""
        if not self._left:
            return False
        self._left -= 1
        self._has_failed = self._has_failed or not self._left
        return not self._left


@contextmanager
def disk_error(target: Target) -> Iterator[tuple[Database, Failure]]:
    """SQLite: the driver raises before it runs the statement, or before it commits. An application's engine."""
    countdown = _Countdown()

    def check() -> None:
        if countdown.fails():
            raise sqlite3.OperationalError("disk I/O error")

    class FailingCursor(sqlite3.Cursor):
        def execute(self, *arguments: Any) -> Any:
            check()
            return super().execute(*arguments)

        def executemany(self, *arguments: Any) -> Any:
            check()
            return super().executemany(*arguments)

    class FailingConnection(sqlite3.Connection):
        def cursor(self, *arguments: Any) -> Any:
            return super().cursor(FailingCursor)

        def commit(self) -> None:
            check()
            super().commit()

    engine = create_engine(target.url, connect_args={"factory": FailingConnection})
    try:
        with Database(engine) as database:
            yield database, countdown
    finally:
        engine.dispose()


@contextmanager
def interrupted(target: Target) -> Iterator[tuple[Database, Failure]]:
    """SQLite: the statement is interrupted while it runs. The package's own engine, with its pinned connections."""
    countdown = _Countdown()
    with Database(target.url) as database:
        event.listen(
            database.engine, "connect", lambda driver, _: driver.set_progress_handler(countdown.fails, INSTRUCTIONS)
        )
        yield database, countdown


INSTRUCTIONS = 40  # of SQLite's virtual machine, from one chance of an interrupt to the next


class _Network:
    def __init__(self, proxy: Proxy, *, loses_reply: bool) -> None:
        self._proxy, self._loses_reply = proxy, loses_reply

    def arm(self, number: int) -> None:
        """Cut the connection of the request of this number."""
        self._proxy.fail_request(number, loses_reply=self._loses_reply)

    def disarm(self) -> bool:
        """Cut no connection. Whether one was cut."""
        return self._proxy.has_failed()


def request_lost(target: Target) -> AbstractContextManager[tuple[Database, Failure]]:
    """Postgres: the connection breaks before the server has the statement."""
    return _through_proxy(target, loses_reply=False)


def reply_lost(target: Target) -> AbstractContextManager[tuple[Database, Failure]]:
    """Postgres: the connection breaks after the server has run the statement."""
    return _through_proxy(target, loses_reply=True)


@contextmanager
def _through_proxy(target: Target, *, loses_reply: bool) -> Iterator[tuple[Database, Failure]]:
    assert target.cluster is not None
    proxy = Proxy(target.cluster.port)
    try:
        with Database(target.cluster.url(target.database, port=proxy.port)) as database:
            yield database, _Network(proxy, loses_reply=loses_reply)
    finally:
        proxy.close()


Opener = Callable[[Target], AbstractContextManager[tuple[Database, Failure]]]
FAILURES: dict[str, dict[str, Opener]] = {
    SQLITE: {"a disk error": disk_error, "an interrupt": interrupted},
    POSTGRES: {"a lost request": request_lost, "a lost reply": reply_lost},
}
