"""``BusyRetry``: waits for the other writers of a SQLite file."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

RETRY_SECONDS = 0.001, 0.004  # the shortest and the longest pause of a retry


class BusyRetry:
    """Repeats a statement while another connection holds the lock that it needs, at short, random intervals.

    SQLite's own handler waits longer from try to try: beside processes that write in a loop, a process waited up to 2.4
    seconds for its turn, and 0.1 with this one (eight processes, two cores, ``synchronous = FULL``). Ten times shorter
    intervals let a third fewer messages through, since the waiting processes keep the cores busy.

    :param seconds: when to give up
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._restore = f"PRAGMA busy_timeout = {round(seconds * 1000)}"

    def replace_handler(self, connection: sqlite3.Connection) -> None:
        """Turn SQLite's own handler on a connection off."""
        connection.execute("PRAGMA busy_timeout = 0")

    def restore_handler(self, connection: sqlite3.Connection) -> None:
        """Turn SQLite's own handler on again."""
        connection.execute(self._restore)

    def execute(self, connection: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a statement in autocommit, or of BEGIN IMMEDIATE, on a connection without a handler.

        :raises sqlite3.OperationalError: when the lock is not free in time
        """
        give_up = None
        while True:
            try:
                return connection.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                now = time.monotonic()
                give_up = give_up or now + self._seconds
                if not _is_busy(error) or now > give_up:
                    raise
                time.sleep(random.uniform(*RETRY_SECONDS))

    def execute_without_handler(self, connection: sqlite3.Connection, sql: str) -> None:
        """Run a statement as :meth:`execute` does, while SQLite's own handler is off."""
        self.replace_handler(connection)
        try:
            self.execute(connection, sql)
        finally:
            self.restore_handler(connection)


def has_code(error: sqlite3.Error, names: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether an error has one of some result codes, extended ones included. Python 3.10 tells only the text."""
    name: str | None = getattr(error, "sqlite_errorname", None)
    return str(error).startswith(tuple(texts)) if name is None else name.startswith(tuple(names))


def _is_busy(error: sqlite3.Error) -> bool:
    return has_code(error, ("SQLITE_BUSY", "SQLITE_LOCKED"), ("database is locked", "database table is locked"))
