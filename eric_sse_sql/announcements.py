"""Notifications to other processes on Postgres, few however much is pushed.

Commits that notify queue behind one lock of the server: with eight clients, a notification each lets 40 % of them
through. So a process sends one in a window: with the first push, and, where more pushes follow, one when it ends.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from eric_sse.exception import RepositoryError

WINDOW_SECONDS = 0.02


def channel_of(schema: str | None) -> str:
    """The Postgres channel for the tables in a schema: at most 63 bytes, whatever the name of the schema is."""
    return "eric_sse_sql" if schema is None else f"eric_sse_sql_{hashlib.sha256(schema.encode()).hexdigest()[:32]}"


class Announcer:
    """Decides which pushes notify, and notifies for the others in time. Threads may share it.

    :param notify: sends a notification
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a forked child: the thread is the parent's."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._window_ends = 0.0
        self._is_owed = False
        self._is_closed = False

    def leads(self) -> bool:
        """Whether a push that is about to begin is to notify by itself."""
        if self._is_owed or time.monotonic() < self._window_ends:  # as most find it, without the lock
            return False
        with self._changed:
            now = time.monotonic()
            if self._is_owed or now < self._window_ends:
                return False
            self._window_ends = now + WINDOW_SECONDS
            return True

    def follow(self) -> None:
        """A push was committed that has not notified: do so when the window ends."""
        if self._is_owed:  # what is owed is sent after it is no more
            return
        with self._changed:
            if self._is_owed or self._is_closed:
                return
            self._is_owed = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="eric_sse_sql announcements", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Send what is owed, and end the thread."""
        with self._changed:
            self._is_closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_owed or self._is_closed)
                if not self._is_owed:
                    return
                is_closed, left = self._is_closed, self._window_ends - time.monotonic()
            if left > 0 and not is_closed:
                time.sleep(left)
            with self._changed:
                self._is_owed = False
                self._window_ends = time.monotonic() + WINDOW_SECONDS
            with suppress(RepositoryError):  # or else the others look by themselves, a little later
                self._notify()
