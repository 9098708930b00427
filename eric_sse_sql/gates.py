"""What a process knows of its queues, so that nobody need ask the database for what is not there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("eric_sse_sql")


class Gate:
    """What this process knows of one queue. Threads may share it.

    Its version changes whenever there may be something new in the queue: who has looked at a version, and found
    nothing, need not look at it again.
    """

    __slots__ = ("__weakref__", "_callbacks", "_lock", "is_watched", "position", "queue_id", "version")

    def __init__(self, queue_id: str) -> None:
        self.queue_id = queue_id
        self.version = 0
        self.is_watched = False  # whether somebody would know of the next change
        self.position: int | None = None  # up to which its delivered messages are known, where those are kept
        self._lock = threading.Lock()
        self._callbacks: set[Callable[[], object]] = set()

    def open(self) -> None:
        """There may be something new: call whoever waits. A callback that raises is called no more."""
        with self._lock:
            self.version += 1
            self.is_watched = False
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            try:
                callback()
            except Exception:
                self.unsubscribe(callback)
                logger.warning("what was to be called when a queue has messages has raised", exc_info=True)

    def watch(self, position: int | None = None) -> int:
        """Ask for the next change, before one looks: whatever comes after the look then changes the version.

        :param position: up to which delivered messages are known, where they are kept: one behind it is a change, too
        :returns: the version until then
        """
        with self._lock:
            self.is_watched = True
            if position is not None:
                self.position = position
            return self.version

    def subscribe(self, callback: Callable[[], object]) -> None:
        """Call something, from any thread, whenever the version changes."""
        with self._lock:
            self._callbacks.add(callback)

    def unsubscribe(self, callback: Callable[[], object]) -> None:
        """Call it no more."""
        with self._lock:
            self._callbacks.discard(callback)

    def wait(self, version: int, seconds: float) -> None:
        """Wait until the version is another one, or a time is over."""
        changed = threading.Event()
        self.subscribe(changed.set)
        try:
            if self.version == version:
                changed.wait(seconds)
        finally:
            self.unsubscribe(changed.set)

    def renew(self) -> None:
        """Begin anew, in a forked child, whose parent's threads may have held the lock."""
        self._lock = threading.Lock()
        self._callbacks = set()
        self.is_watched = False
        self.version += 1
