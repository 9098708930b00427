"""What a process knows of its queues, so that it does not query queues which it knows to be empty."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from eric_sse_sql.wakeups.queue_head import QueueHead
from eric_sse_sql.wakeups.topics import Topics

logger = logging.getLogger("eric_sse_sql")


class QueueWatch:
    """An eventcount for one queue: a version number with waiters. Threads may share it.

    The version changes whenever the queue may have got a message: a caller that saw version N and then found the queue
    empty can skip the query until the version changes.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_lock",
        "channels",
        "head",
        "is_armed",
        "mark",
        "queue_id",
        "topics",
        "version",
    )

    def __init__(self, queue_id: str, topics: Topics) -> None:
        self.queue_id = queue_id
        self.topics = topics  # of the notifications that are about it
        self.channels: tuple[ChannelWatch, ...] = ()  # whose broadcasts reach the queue, as far as that is known
        self.head = QueueHead()
        self.version = 0
        self.is_armed = False  # whether the next message of another process changes the version
        self.mark: object = None  # how far a log was read
        self._lock = threading.Lock()
        self._callbacks: set[Callable[[], object]] = set()

    def bump(self) -> None:
        """Change the version, and call the waiters. A callback that raises is unsubscribed."""
        with self._lock:
            self.version += 1
            self.is_armed = False
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            try:
                callback()
            except Exception:
                self.unsubscribe(callback)
                logger.warning("a callback for new messages of a queue has raised; it is called no more", exc_info=True)

    def arm(self, mark: object = None) -> int:
        """Let the next message change the version. To be called before the query, so that none is missed.

        :param mark: how far a log was read: a poll that finds another mark changes the version
        :returns: the version before that change
        """
        with self._lock:
            self.is_armed = True
            if mark is not None:
                self.mark = mark
            return self.version

    def subscribe(self, callback: Callable[[], object]) -> None:
        """Call a function, in any thread, at each change of the version."""
        with self._lock:
            self._callbacks.add(callback)

    def unsubscribe(self, callback: Callable[[], object]) -> None:
        """Call the function no more."""
        with self._lock:
            self._callbacks.discard(callback)

    def wait_for_change(self, version: int, seconds: float) -> None:
        """Wait until the version differs from the given one, for a time at most."""
        changed = threading.Event()
        self.subscribe(changed.set)
        try:
            if self.version == version:
                changed.wait(seconds)
        finally:
            self.unsubscribe(changed.set)

    def after_fork_in_child(self) -> None:
        """Replace the lock, which a thread of the parent may hold, and forget the parent's waiters."""
        self._lock = threading.Lock()
        self._callbacks = set()
        self.is_armed = False
        self.version += 1


class ChannelWatch(QueueWatch):
    """The watch of a channel: of its log, and of the queues that its broadcasts reach."""

    __slots__ = ("queues",)

    def __init__(self, channel_id: str, topics: Topics) -> None:
        super().__init__(channel_id, topics)
        self.queues: WeakValueDictionary[str, QueueWatch] = WeakValueDictionary()
