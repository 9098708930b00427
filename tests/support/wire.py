"""What a browser makes of a stream's bytes, read as the HTML standard says that an EventSource reads it."""

from __future__ import annotations

from typing import NamedTuple


class Dispatched(NamedTuple):
    """An event that an EventSource dispatches to its page."""

    type: str
    data: str
    last_event_id: str


def dispatched(sent: str) -> list[Dispatched]:
    """The events of a stream. One without a data line is dropped, whatever its type."""
    events: list[Dispatched] = []
    data: list[str] = []
    kind = last = ""
    for line in sent.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if data:
                events.append(Dispatched(kind or "message", "\n".join(data), last))
            data, kind = [], ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            kind = value
        elif field == "id" and "\0" not in value:
            last = value
    return events
