"""``QueueWatcher``: wakes what waits for the messages of a queue, whichever process has pushed them.

A push of the same process bumps the queue's watch at once. A background thread notices the pushes of other processes:
after a signal of its :class:`ChangeSource`, one query asks which of the watched queues have messages. The thread also
asks once a second without a signal: a lost signal delays a message, and loses none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from weakref import WeakValueDictionary

from eric_sse_sql.execution import fork
from eric_sse_sql.execution.executor import Executor
from eric_sse_sql.sql import events, messages
from eric_sse_sql.wakeups.interrupt import Interrupt
from eric_sse_sql.wakeups.outage import Outage
from eric_sse_sql.wakeups.queue_watch import QueueWatch
from eric_sse_sql.wakeups.sources import ANSWER_SECONDS, ChangeSource

POLL_SECONDS = 1.0  # the longest time between two polls
#: How long a queue that was found empty is taken to be empty without another query, in seconds.
FALLBACK_SECONDS = 2.0
MAX_DUTY_CYCLE = 0.2  # the share of the thread's time that polls may take, however much is pushed
PAUSES = 0.1, 1.0  # seconds: the first and the longest pause after a failure
FORK_SECONDS = 1.0  # for which a fork waits until the thread is inside no driver


class QueueWatcher:
    """The watches of a database's queues in this process, and the thread that polls for them. Threads may share it.

    :param executor: runs the query
    :param make_source: makes the source of signals, in the thread that uses it; None where no other thread can poll
    :param outage: learns when the database can't be reached, and when it can be again
    """

    _thread: threading.Thread | None
    _interrupt: Interrupt | None
    _held: threading.Lock | None  # the lock that a fork holds
    trusted_until: float  # on the clock of time.monotonic()

    def __init__(
        self, executor: Executor, make_source: Callable[[Interrupt], ChangeSource] | None, outage: Outage
    ) -> None:
        self.outage = outage
        self._executor = executor
        self._make_source = make_source
        self._source: ChangeSource | None = None
        self._watches: WeakValueDictionary[str, QueueWatch] = WeakValueDictionary()
        self._is_closed = False
        self._reset()

    @property
    def is_running(self) -> bool:
        """Whether the background thread was started."""
        return self._thread is not None

    @property
    def is_trusted(self) -> bool:
        """Whether the watch of a queue that gets a message is bumped in time, without a query of the waiter."""
        return time.monotonic() < self.trusted_until

    def watch(self, queue_id: str) -> QueueWatch:
        """The watch of a queue: the same object for all callers."""
        watch = self._watches.get(queue_id)
        if watch is None:
            with self._lock:
                watch = self._watches.setdefault(queue_id, QueueWatch(queue_id))
        return watch

    def bump(self, queue_ids: Iterable[str]) -> None:
        """Bump the watches of queues that got messages."""
        if self._watches:
            for queue_id in queue_ids:
                watch = self._watches.get(queue_id)
                if watch is not None:
                    watch.bump()

    def start(self) -> None:
        """Start the background thread, if it does not run yet."""
        if self._thread is not None or self._make_source is None:
            return
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._interrupt = Interrupt()
                self._thread = threading.Thread(
                    target=self._run, args=(self._interrupt,), name="eric_sse_sql watcher", daemon=True
                )
                self._thread.start()

    def poll(self) -> float:
        """Ask for all watched queues whether they have messages, and bump those watches. How many seconds it took."""
        began = time.monotonic()
        armed = [watch for watch in self._living() if watch.is_armed]
        if armed:
            self._bump_changed(armed)
        self.trusted_until = began + FALLBACK_SECONDS
        return time.monotonic() - began

    def close(self) -> None:
        """End the thread, and bump all watches, so that each waiter finds the database closed."""
        with self._lock:
            self._is_closed = True
            self.trusted_until = 0.0
            thread = self._thread
            if self._interrupt is not None:
                self._interrupt.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * ANSWER_SECONDS)
        for watch in self._living():
            watch.bump()

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
        self.outage.after_fork_in_child()
        self._reset()
        for watch in self._living():
            watch.after_fork_in_child()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._held = None
        self._thread = None
        self._interrupt = None
        self.trusted_until = 0.0

    def _living(self) -> list[QueueWatch]:
        """All watches in use. The references are copied in one step, since threads add watches meanwhile."""
        return [watch for reference in self._watches.valuerefs() if (watch := reference()) is not None]

    def _bump_changed(self, watches: Collection[QueueWatch]) -> None:
        by_id = {watch.queue_id: watch for watch in watches}
        list_value = self._executor.dialect.list_value
        for (queue_id,) in self._executor.run(messages.WITH_MESSAGES, queue_ids=list_value(list(by_id))):
            by_id[queue_id].bump()
        positions = {watch.queue_id: watch.position for watch in watches if watch.position is not None}
        if positions:
            for row in self._executor.run(events.LAST_POSITIONS, queue_ids=list_value(list(positions))):
                queue_id, last = events.LastPosition._make(row)
                if last > positions[queue_id]:
                    by_id[queue_id].bump()

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
                self.poll()
                self.outage.end(self)
                pause = PAUSES[0]
                self._poll_at_signals(self._source, interrupt)
            except Exception as error:
                if interrupt.is_set:
                    break
                self.outage.begin(self, error)
                interrupt.wait(pause)
                pause = min(2 * pause, PAUSES[1])
            finally:
                if self._source is not None:
                    with suppress(Exception):
                        self._source.close()
                    self._source = None

    def _poll_at_signals(self, source: ChangeSource, interrupt: Interrupt) -> None:
        while not interrupt.is_set:
            next_poll = time.monotonic() + POLL_SECONDS
            while not interrupt.is_set and time.monotonic() < next_poll:
                if source.wait(next_poll - time.monotonic()):
                    break
            interrupt.wait(self.poll() * (1 / MAX_DUTY_CYCLE - 1))
