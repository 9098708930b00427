"""Where news of other processes' commits comes from. Each source is used by one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from eric_sse_sql.execution.driver import CommitSignal, Driver
from eric_sse_sql.wakeups.interrupt import Interrupt
from eric_sse_sql.wakeups.notifier import NOTIFY_CHANNEL
from eric_sse_sql.wakeups.topics import ALL, NONE, Topics, topics_in

POLL_SECONDS = 0.2  # between two polls where no signal exists
DATA_VERSION_SECONDS = 0.007  # between two reads of a SQLite file's change counter
ANSWER_SECONDS = 5.0  # in which a listening connection must answer
# The connection is this package's own until it is closed. Before Postgres 14, sessions have no such limit.
STAY_CONNECTED = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"


class ChangeSource(Protocol):
    """Signals that another process may have added messages."""

    #: The driver's connection, which a forked child must abandon.
    connection: Any

    def wait(self, seconds: float) -> Topics:
        """Wait for a signal, for a time or until the interrupt is set. What it is about; nothing without a signal."""

    def close(self) -> None:
        """Close the connection."""


def source_maker(driver: Driver, *, notifies: bool) -> Callable[[Interrupt], ChangeSource] | None:
    """What makes the source that fits a driver; None where no other thread could read the tables.

    :param notifies: whether processes notify each other, where the database can
    """
    if notifies and driver.commit_signal is CommitSignal.NOTIFICATION:
        return lambda interrupt: _listen(driver.detached_connection(), interrupt)
    if driver.commit_signal is CommitSignal.DATA_VERSION:
        return lambda interrupt: DataVersionPoller(driver, interrupt)
    return None if driver.commit_signal is CommitSignal.UNREACHABLE else IntervalPoller


def _listen(connection: Any, interrupt: Interrupt) -> ChangeSource:
    return IntervalPoller(interrupt) if connection is None else ListenConnection(connection, interrupt)


class IntervalPoller:
    """Signals at an interval: behind a proxy that passes no notifications, and for a database in memory."""

    connection = None

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def wait(self, seconds: float) -> Topics:
        self._interrupt.wait(min(seconds, POLL_SECONDS))
        return ALL

    def close(self) -> None:
        """An ``IntervalPoller`` holds no connection, so closing does nothing."""


class DataVersionPoller:
    """Reads SQLite's counter of the commits of other connections, which is in the memory that they share, and notices
    that the file was deleted or replaced.

    https://www.sqlite.org/pragma.html#pragma_data_version
    """

    def __init__(self, driver: Driver, interrupt: Interrupt) -> None:
        self.connection = driver.detached_connection()
        self._driver = driver
        self._info: dict[Any, Any] = {}
        self._interrupt = interrupt
        self._version = self._read()

    def wait(self, seconds: float) -> Topics:
        give_up = time.monotonic() + seconds
        while not self._interrupt.is_set and time.monotonic() < give_up:
            self._interrupt.wait(DATA_VERSION_SECONDS)
            version = self._read()
            if version != self._version:
                self._version = version
                return ALL
        return NONE

    def close(self) -> None:
        self.connection.close()

    def _read(self) -> int:
        self._driver.check_files(self.connection, self._info)
        version: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        return version


class ListenConnection:
    """Listens to a Postgres channel, on a connection that is asked for an answer when it was silent.

    :param connection: a driver's connection with a session of its own
    """

    def __init__(self, connection: Any, interrupt: Interrupt) -> None:
        self.connection = connection
        self._interrupt = interrupt
        try:
            self.connection.rollback()
            self.connection.autocommit = True
            self.connection.execute(STAY_CONNECTED)
            self.connection.execute(f"LISTEN {NOTIFY_CHANNEL}")
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> Topics:
        if topics := self._received():  # with the answer to an earlier question
            return topics
        if self._interrupt.wait(seconds, beside=self.connection.fileno()):
            self.connection.pgconn.consume_input()
        elif not self._interrupt.is_set:
            self._check_alive()
        return self._received()

    def close(self) -> None:
        self.connection.close()

    def _check_alive(self) -> None:
        connection = self.connection.pgconn
        connection.send_query(b"SELECT 1")
        connection.flush()
        give_up = time.monotonic() + ANSWER_SECONDS
        while connection.is_busy() and not self._interrupt.is_set:
            if time.monotonic() > give_up:
                raise TimeoutError("the listening connection does not answer")
            if self._interrupt.wait(0.1, beside=self.connection.fileno()):
                connection.consume_input()
        if not self._interrupt.is_set:
            while connection.get_result() is not None:
                pass

    def _received(self) -> Topics:
        topics = NONE
        while (notification := self.connection.pgconn.notifies()) is not None:
            topics |= topics_in(notification.extra.decode(errors="replace"))
        return ALL if topics >= ALL else topics
