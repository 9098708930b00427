"""Queues of every kind for the contract suite, and pops until a queue has what a test waits for or has nothing left."""

from __future__ import annotations

import time
from typing import Any, Protocol, cast

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import MessageContract
from eric_sse.queues import InMemoryQueue, Queue

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from support.waiting import DEADLINE


class Queues(Protocol):
    """Makes queues of one kind."""

    def new(self) -> Queue:
        """A new, empty queue."""

    def shared(self, queue: Queue) -> Queue:
        """The object by which another thread uses a queue."""


class UpstreamQueues:
    """eric-sse's queues in memory."""

    def new(self) -> Queue:
        return InMemoryQueue()

    def shared(self, queue: Queue) -> Queue:
        return queue


class SqlQueues:
    """The queues of a database."""

    def __init__(self, database: Database, queue_class: type[SqlQueue]) -> None:
        self._database, self._queue_class = database, queue_class

    def new(self) -> Queue:
        return self._queue_class(self._database)

    def shared(self, queue: Queue) -> Queue:
        return self._queue_class(self._database, cast(SqlQueue, queue).id)


class BlockingQueueWithoutWait(BlockingSqlQueue):
    """A blocking queue that is popped with a timeout of zero, so that it reports an empty queue as others do."""

    def pop(self, timeout: float | None = 0) -> MessageContract:
        return super().pop(timeout)


def drain(queue: Queue) -> list[Any]:
    """Pop all messages of a queue. Their payloads, in order."""
    payloads: list[Any] = []
    while True:
        try:
            payloads.append(queue.pop().payload)
        except NoMessagesException:
            return payloads


def pop_soon(queue: Queue, seconds: float = DEADLINE) -> Any:
    """Pop until there is a message. Its payload."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            return queue.pop().payload
        except NoMessagesException:
            time.sleep(0.005)
    raise AssertionError(f"no message in {seconds} seconds")


def pop_until_known_empty(queue: SqlQueue) -> None:
    """Pop from an empty queue until a pop needs no query any more."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        with pytest.raises(NoMessagesException):
            queue.pop()
        if queue.is_known_empty:
            return
        time.sleep(0.01)
    raise AssertionError("the queue never became known to be empty")
