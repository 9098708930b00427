"""``ThreadPool``: threads of the package's own, in which statements run for event loops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

FINISH_SECONDS = 5.0  # for which the calls that run are waited for when a database is closed

Result = TypeVar("Result")


class ThreadPool:
    """A pool of threads, apart from asyncio's default executor, which an application may fill.

    :param name: of the threads
    :param most: how many there are at most, each with a connection of its own while it runs a statement
    """

    _pool: ThreadPoolExecutor | None
    _running: set[Future[Any]]

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self.after_fork_in_child()

    def submit(self, call: Callable[..., Result], /, *arguments: object) -> Future[Result]:
        """Call a function in a thread."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._most, thread_name_prefix=self._name)
            future = self._pool.submit(call, *arguments)
            self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def is_running(self, future: Future[Any]) -> bool:
        """Whether a call waits or runs: never one of the parent of a forked child."""
        return future in self._running

    def finish(self) -> None:
        """Wait until the calls are done, and those that they make: for a time at most. Not in one of the threads."""
        give_up = time.monotonic() + FINISH_SECONDS
        while not threading.current_thread().name.startswith(self._name):
            with self._lock:
                running = list(self._running)
            if not running or time.monotonic() > give_up:
                return
            wait(running, give_up - time.monotonic())

    def close(self) -> None:
        """End the threads when their calls are done; later calls use new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    def before_fork(self) -> None:
        """Nothing is prepared: the child replaces the pool."""

    def after_fork_in_parent(self) -> None:
        """The parent's threads go on."""

    def after_fork_in_child(self) -> None:
        """Replace the pool: its threads are the parent's."""
        self._lock = threading.Lock()
        self._pool = None
        self._running = set()
