"""``Poller``: the thread that notices what other processes have pushed, for all databases on one engine.

After a signal of its :class:`ChangeSource`, it lets each database ask for the watched queues and channels that the
signal is about. Once a second it lets them ask for all, without a signal: a lost signal delays a message, and loses
none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from eric_sse_sql.execution import fork
from eric_sse_sql.wakeups.interrupt import Interrupt
from eric_sse_sql.wakeups.outage import Outage
from eric_sse_sql.wakeups.sources import ANSWER_SECONDS, ChangeSource
from eric_sse_sql.wakeups.topics import ALL, Topics
from eric_sse_sql.wakeups.watcher import QueueWatcher

POLL_SECONDS = 1.0  # the longest time between two polls for everything
MAX_DUTY_CYCLE = 0.2  # the share of the thread's time that polls may take, however much is pushed
PAUSES = 0.1, 0.3  # seconds: the first and the longest pause after a failure
FORK_SECONDS = 1.0  # for which a fork waits until the thread is inside no driver


class Poller:
    """Polls for the ``QueueWatcher`` objects of one engine, in one thread. Threads may share it.

    :param make_source: makes the source of signals, in the thread that uses it; None where no other thread can poll
    :param outage: learns when the database can't be reached, and when it can be again
    """

    _watchers: tuple[QueueWatcher, ...]
    _thread: threading.Thread | None
    _interrupt: Interrupt | None
    _held: threading.Lock | None  # the lock that a fork holds

    def __init__(self, make_source: Callable[[Interrupt], ChangeSource] | None, outage: Outage) -> None:
        self._outage = outage
        self._make_source = make_source
        self._source: ChangeSource | None = None
        self._watchers = ()
        self._reset()

    @property
    def is_running(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    @property
    def is_needed(self) -> bool:
        """Whether there is a watcher to poll for."""
        return bool(self._watchers)

    def add(self, watcher: QueueWatcher) -> None:
        """Poll for a watcher, too."""
        with self._lock:
            self._watchers = (*self._watchers, watcher)

    def remove(self, watcher: QueueWatcher) -> None:
        """Poll no more for a watcher, and end the thread with the last one. No poll of it runs afterwards."""
        with self._lock:
            self._watchers = tuple(each for each in self._watchers if each is not watcher)
            is_over = not self._watchers
            thread, interrupt = self._thread, self._interrupt
            if is_over:
                self._thread = self._interrupt = None
        if thread is None or thread is threading.current_thread():
            if is_over and interrupt is not None:
                interrupt.set()
        elif is_over and interrupt is not None:
            interrupt.set()
            thread.join(2 * ANSWER_SECONDS)
        elif self._polling.acquire(timeout=2 * ANSWER_SECONDS):
            self._polling.release()

    def start(self) -> None:
        """Start the thread, if it does not run yet."""
        if self._thread is not None or self._make_source is None:
            return
        with self._lock:
            if self._thread is None and self._watchers:
                self._interrupt = Interrupt()
                self._thread = threading.Thread(
                    target=self._run, args=(self._interrupt,), name="eric_sse_sql watcher", daemon=True
                )
                self._thread.start()

    def before_fork(self) -> None:
        """Wait, for a second at most, until the thread is inside no driver, and keep it from entering one."""
        interrupt = self._interrupt
        if interrupt is not None and interrupt.working.acquire(timeout=FORK_SECONDS):
            self._held = interrupt.working

    def after_fork_in_parent(self) -> None:
        """Let the thread go on."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def after_fork_in_child(self) -> None:
        """Abandon the thread and its connection: they are the parent's."""
        if self._source is not None:
            fork.abandon(self._source.connection)
            self._source = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._held = None
        self._thread = None
        self._interrupt = None

    def _run(self, interrupt: Interrupt) -> None:
        with interrupt.working:
            self._poll_until(interrupt)
        interrupt.close()

    def _poll_until(self, interrupt: Interrupt) -> None:
        pause = PAUSES[0]
        while not interrupt.is_set:
            try:
                assert self._make_source is not None
                self._source = self._make_source(interrupt)
                self._outage.end(self)
                pause = PAUSES[0]
                self._poll_at_signals(self._source, interrupt)
            except Exception as error:
                if interrupt.is_set:
                    break
                self._outage.begin(self, error)
                interrupt.wait(pause)
                pause = min(2 * pause, PAUSES[1])
            finally:
                if self._source is not None:
                    with suppress(Exception):
                        self._source.close()
                    self._source = None

    def _poll_at_signals(self, source: ChangeSource, interrupt: Interrupt) -> None:
        pause, next_poll = PAUSES[0], time.monotonic()
        while not interrupt.is_set:
            left = next_poll - time.monotonic()
            topics = source.wait(left) if left > 0 else ALL
            if not topics:
                continue
            began = time.monotonic()
            is_done, seconds = self._poll(topics, interrupt)
            if not is_done:
                next_poll, pause = began + pause, min(2 * pause, PAUSES[1])
            elif topics is ALL:
                next_poll, pause = began + POLL_SECONDS, PAUSES[0]
            interrupt.wait(seconds * (1 / MAX_DUTY_CYCLE - 1))

    def _poll(self, topics: Topics, interrupt: Interrupt) -> tuple[bool, float]:
        """Let the watchers ask. Whether all could, and how many seconds their queries took."""
        is_done, seconds = True, 0.0
        for watcher in self._watchers:
            with self._polling:
                if interrupt.is_set or watcher not in self._watchers:
                    continue
                try:
                    seconds += watcher.poll(topics)
                except Exception as error:
                    if not watcher.is_closed:
                        self._outage.begin(watcher, error)
                        is_done = False
                else:
                    if topics is ALL:
                        self._outage.end(watcher)
        return is_done, seconds
