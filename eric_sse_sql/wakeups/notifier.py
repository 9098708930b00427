"""Notifications to other processes on Postgres: few, however much is pushed.

Commits that notify queue behind one lock of the server: eight clients that each notify get 40 % of the throughput. So a
process coalesces its notifications: one with the first push of a window, and one at its end for all later pushes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from eric_sse.exception import RepositoryError

WINDOW_SECONDS = 0.02


def channel_name(schema: str | None) -> str:
    """The Postgres channel for the tables of a schema: at most 63 bytes, whatever the schema is called."""
    return "eric_sse_sql" if schema is None else f"eric_sse_sql_{hashlib.sha256(schema.encode()).hexdigest()[:32]}"


class NotifyThrottle:
    """Decides which pushes notify by themselves: a throttle with a leading and a trailing edge. Threads may share it.

    :param notify: sends the notification of the trailing edge
    """

    _thread: threading.Thread | None
    _window_ends: float  # on the clock of time.monotonic()
    _is_due: bool  # whether a push was committed that no notification has followed yet

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self.after_fork_in_child()

    def take_leading_edge(self) -> bool:
        """Whether the push that is about to begin notifies by itself; a new window begins then."""
        if self._is_due or time.monotonic() < self._window_ends:  # the common case, without the lock
            return False
        with self._changed:
            now = time.monotonic()
            if self._is_due or now < self._window_ends:
                return False
            self._window_ends = now + WINDOW_SECONDS
            return True

    def notify_at_trailing_edge(self) -> None:
        """Notify when the window ends, for a push that was committed without a notification."""
        if self._is_due:  # the flag is cleared before the notification is sent
            return
        with self._changed:
            if self._is_due or self._is_closed:
                return
            self._is_due = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="eric_sse_sql notifier", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Send the notification that is due, and end the thread."""
        with self._changed:
            self._is_closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def before_fork(self) -> None:
        """The lock is replaced in the child."""

    def after_fork_in_parent(self) -> None:
        """The parent's thread goes on."""

    def after_fork_in_child(self) -> None:
        """Replace the lock and the thread: they are the parent's."""
        self._changed = threading.Condition()
        self._thread = None
        self._window_ends = 0.0
        self._is_due = False
        self._is_closed = False

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_due or self._is_closed)
                if not self._is_due:
                    return
                is_closed, left = self._is_closed, self._window_ends - time.monotonic()
            if left > 0 and not is_closed:
                time.sleep(left)
            with self._changed:
                self._is_due = False
                self._window_ends = time.monotonic() + WINDOW_SECONDS
            with suppress(RepositoryError):  # other processes then poll, a little later
                self._notify()
