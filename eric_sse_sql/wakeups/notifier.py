"""Notifications to other processes on Postgres: few, however much is pushed.

Commits that notify queue behind one lock of the server: eight clients that each notify get 40 % of the throughput, and
the more processes listen, the longer each commit holds the lock. So a process coalesces its notifications: one with the
first push of a window, and one at its end for all later pushes. The window widens with the time that they take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from eric_sse.exception import RepositoryError

from eric_sse_sql.wakeups.topics import ALL, MAX_TOPICS, NONE, Topics

NOTIFY_CHANNEL = "eric_sse_sql"  # the Postgres channel of all databases and schemas of a server's database
WINDOW_SECONDS = 0.02  # while notifications are fast
MAX_WINDOW_SECONDS = 0.5  # waiters ask once a second even without a notification
MAX_DUTY_CYCLE = 0.1  # the share of the time that a process spends in notifications, which a window's length sets

Notify = Callable[[Collection[str]], None]


class NotifyThrottle:
    """Decides which pushes notify by themselves: a throttle with a leading and a trailing edge. Threads may share it,
    and so may the databases on one engine."""

    _thread: threading.Thread | None
    _window: float  # seconds
    _window_ends: float  # on the clock of time.monotonic()
    _due: Topics  # of the pushes that were committed and that no notification has followed yet
    _notify: Notify | None  # sends the notification of the trailing edge

    def __init__(self) -> None:
        self.after_fork_in_child()

    def take_leading_edge(self) -> bool:
        """Whether the push that is about to begin notifies by itself; a new window begins then."""
        if self._due or time.monotonic() < self._window_ends:  # the common case, without the lock
            return False
        with self._changed:
            now = time.monotonic()
            if self._due or now < self._window_ends:
                return False
            self._window_ends = now + self._window
            return True

    def notify_at_trailing_edge(self, topics: Collection[str], notify: Notify) -> None:
        """Notify when the window ends, for a push that was committed without a notification.

        :param notify: sends a notification about topics; the last one given sends those of all
        """
        with self._changed:
            self._due = ALL if len(self._due) + len(topics) > MAX_TOPICS else self._due.union(topics)
            self._notify = notify
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="eric_sse_sql notifier", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, notify: Notify) -> None:
        """Send the notification that is due now."""
        with self._changed:
            due, self._due = self._due, NONE
        if due:
            with suppress(RepositoryError):  # other processes then poll, a little later
                notify(due)

    def stop(self) -> None:
        """End the thread, after the notification that is due. A later push starts another one."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
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
        self._window = WINDOW_SECONDS
        self._window_ends = 0.0
        self._due = NONE
        self._notify = None

    def _is_stopped(self) -> bool:
        return self._thread is not threading.current_thread()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._is_stopped())
                if not self._due:
                    if self._is_stopped():
                        return
                    continue
                self._changed.wait_for(self._is_stopped, self._window_ends - time.monotonic())
                due, self._due = self._due, NONE
                notify, began = self._notify, time.monotonic()
                self._window_ends = began + self._window
            if due and notify is not None:
                with suppress(RepositoryError):  # other processes then poll, a little later
                    notify(due)
            ended = time.monotonic()
            self._window = min(max(WINDOW_SECONDS, (ended - began) / MAX_DUTY_CYCLE), MAX_WINDOW_SECONDS)
            self._window_ends = ended + self._window
