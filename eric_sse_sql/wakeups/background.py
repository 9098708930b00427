"""``Background``: the threads that the databases on one engine share."""

from __future__ import annotations

from weakref import WeakValueDictionary

from eric_sse_sql.execution import fork
from eric_sse_sql.execution.driver import Driver
from eric_sse_sql.wakeups.notifier import NotifyThrottle
from eric_sse_sql.wakeups.outage import Outage
from eric_sse_sql.wakeups.poller import Poller
from eric_sse_sql.wakeups.sources import source_maker
from eric_sse_sql.wakeups.thread_pool import ThreadPool
from eric_sse_sql.wakeups.watcher import QueueWatcher

STREAM_THREADS = 4
CALL_THREADS = 8
# A limit above any pool of connections: an open transaction has a connection and runs one statement at a time, so that
# its statements never wait for a thread.
TRANSACTION_THREADS = 1000


class Background:
    """The thread that polls, the one that notifies, and those of event loops, for all databases on one engine.

    An application with a schema for each of its tenants has one listening connection, and not one for each of them.

    :param driver: of the engine
    :param notifies: whether processes notify each other
    """

    def __init__(self, driver: Driver, *, notifies: bool) -> None:
        self.engine = driver.engine
        self.outage = Outage()
        self.poller = Poller(source_maker(driver, notifies=notifies), self.outage)
        self.throttle = NotifyThrottle()
        #: Apart from each other, since a call may wait for the lock of another transaction.
        self.stream_threads = ThreadPool("eric_sse_sql stream", STREAM_THREADS)
        self.call_threads = ThreadPool("eric_sse_sql call", CALL_THREADS)
        self.transaction_threads = ThreadPool("eric_sse_sql transaction", TRANSACTION_THREADS)
        self._pools = self.stream_threads, self.call_threads, self.transaction_threads
        for part in (self.throttle, self.poller, self.outage, *self._pools):
            fork.register(part)

    def enter(self, watcher: QueueWatcher) -> None:
        """Serve the database of a watcher, too."""
        self.poller.add(watcher)

    def leave(self, watcher: QueueWatcher) -> None:
        """Serve it no more; end all threads with the last one."""
        self.poller.remove(watcher)
        if not self.poller.is_needed:
            self.throttle.stop()
            for pool in self._pools:
                pool.close()

    def finish(self) -> None:
        """Wait until the calls in threads are done: for a time at most."""
        for pool in self._pools:
            pool.finish()


_by_engine: WeakValueDictionary[tuple[int, bool], Background] = WeakValueDictionary()


def background_of(driver: Driver, *, notifies: bool) -> Background:
    """What the databases on a driver's engine share."""
    key = id(driver.engine), notifies  # the object keeps the engine, so that no other one gets its id
    found = _by_engine.get(key)
    return _by_engine.setdefault(key, Background(driver, notifies=notifies)) if found is None else found
