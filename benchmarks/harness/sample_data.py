"""Values and messages of the size of a small notification. Each is distinct."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from eric_sse.message import Message

DISTINCT = 1000


def new_value(number: int) -> object:
    """A value that is not stored yet: SQLite skips the write when the stored value is the same."""
    return {"id": uuid.uuid4().hex, "number": number, "type": "notification", "payload": _payload(number)}


def new_message(number: int) -> Message:
    """A message with such a payload."""
    return Message("notification", {"id": uuid.uuid4().hex, "number": number, **_payload(number)})


def many_messages(count: int) -> Iterator[Message]:
    """Messages to fill a queue with; they repeat after ``DISTINCT``, which saves the time to create them."""
    distinct = [new_message(number) for number in range(min(count, DISTINCT))]
    return (distinct[number % DISTINCT] for number in range(count))


def _payload(number: int) -> dict[str, object]:
    return {"title": f"Order {number} has shipped", "tags": ["order", "shipping"], "read": False}
