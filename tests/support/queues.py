"""Popping until a queue has what a test waits for, or has nothing left."""

from __future__ import annotations

import time
from typing import Any

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.queues import Queue

from eric_sse_sql import SqlQueue
from support.waiting import DEADLINE


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
