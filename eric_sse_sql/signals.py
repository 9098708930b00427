"""What gives a sign that another process may have pushed something. Each is used by one thread alone."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy import Engine

from eric_sse_sql.engines import has_hung_up

POLL_SECONDS = 0.2  # between two signs where nothing gives any
TICK_SECONDS = 0.007  # between two looks at the version of a SQLite file
ANSWER_SECONDS = 5.0  # which a connection that listens has to tell that it is alive


class Bell:
    """Ends every waiting of a thread, now and ever after, when another one rings it.

    Except where it waits, the thread holds :attr:`work`. Who holds that knows that the thread is inside of no driver,
    some of whose locks a forked child would find closed for ever.
    """

    def __init__(self) -> None:
        self.work = threading.Lock()
        self._rope, self._clapper = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._clapper, selectors.EVENT_READ)
        self.has_rung = False

    def ring(self) -> None:
        self.has_rung = True
        with suppress(OSError):
            self._rope.send(b"!")

    def wait(self, seconds: float, beside: int | None = None) -> bool:
        """Wait for a time, unless it rings, or something can be read from a file beside it. Whether that is so."""
        self.work.release()
        try:
            if beside is None:
                self._selector.select(seconds)
                return False
            with selectors.DefaultSelector() as both:
                both.register(self._clapper, selectors.EVENT_READ)
                both.register(beside, selectors.EVENT_READ)
                return any(key.fd == beside for key, _ in both.select(seconds))
        finally:
            self.work.acquire()

    def close(self) -> None:
        self._selector.close()
        self._rope.close()
        self._clapper.close()


class Signals(Protocol):
    """Signs that something may have been pushed."""

    #: Its connection, which a forked child inherits and must leave alone.
    driver: Any

    def wait(self, seconds: float) -> bool:
        """Wait for a sign, for a time, or for the bell. Whether there was a sign."""

    def close(self) -> None: ...


class Polling:
    """Gives a sign every now and then: behind a proxy that passes no notification, or in memory."""

    driver = None

    def __init__(self, bell: Bell) -> None:
        self._bell = bell

    def wait(self, seconds: float) -> bool:
        self._bell.wait(min(seconds, POLL_SECONDS))
        return True

    def close(self) -> None:
        """There is nothing to close."""


class FileVersion:
    """Asks SQLite for its count of the commits of other connections, which it keeps in the memory that they share.

    https://www.sqlite.org/pragma.html#pragma_data_version
    """

    def __init__(self, engine: Engine, bell: Bell) -> None:
        self.driver = _detached(engine)
        self._bell = bell
        self._version = self._read()

    def wait(self, seconds: float) -> bool:
        give_up = time.monotonic() + seconds
        while not self._bell.has_rung and time.monotonic() < give_up:
            self._bell.wait(TICK_SECONDS)
            version = self._read()
            if version != self._version:
                self._version = version
                return True
        return False

    def close(self) -> None:
        self.driver.close()

    def _read(self) -> int:
        version: int = self.driver.execute("PRAGMA data_version").fetchone()[0]
        return version


class Notifications:
    """Listens to a Postgres channel, on a connection that is asked now and then whether it is alive."""

    def __init__(self, engine: Engine, bell: Bell, channel: str) -> None:
        self.driver = _detached(engine)
        self._bell = bell
        try:
            self.driver.rollback()
            self.driver.autocommit = True
            self.driver.execute(f'LISTEN "{channel}"')
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> bool:
        if self._received():  # with the answer to an earlier question
            return True
        if self._bell.wait(seconds, beside=self.driver.fileno()):
            self.driver.pgconn.consume_input()
        elif not self._bell.has_rung:
            self._ask()
        return self._received()

    def close(self) -> None:
        self.driver.close()

    def _ask(self) -> None:
        connection = self.driver.pgconn
        connection.send_query(b"SELECT 1")
        connection.flush()
        give_up = time.monotonic() + ANSWER_SECONDS
        while connection.is_busy() and not self._bell.has_rung:
            if time.monotonic() > give_up:
                raise TimeoutError("the connection that listens does not answer")
            if self._bell.wait(0.1, beside=self.driver.fileno()):
                connection.consume_input()
        if not self._bell.has_rung:
            while connection.get_result() is not None:
                pass

    def _received(self) -> bool:
        found = False
        while self.driver.pgconn.notifies() is not None:
            found = True
        return found


def _detached(engine: Engine) -> Any:
    """A connection made as the engine makes them, which belongs to its pool no more. Those that the server has closed
    while they waited in the pool are passed over: a try for each would take a pause for each."""
    while True:
        pooled = engine.raw_connection()
        driver = pooled.driver_connection
        if engine.dialect.name == "postgresql" and has_hung_up(driver):
            pooled.invalidate()
            pooled.close()
            continue
        pooled.detach()
        return driver
