"""Frames: server-sent events as the bytes that a browser reads, with data in JSON.

The format is that of the HTML standard, "Server-sent events", section "Parsing an event stream".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from eric_sse.message import MessageContract

from eric_sse_sql.plain_json import unchecked

HEARTBEAT = b":\n\n"  # a comment, which keeps proxies from closing a connection without events
HEARTBEAT_SECONDS = 15.0
LEAST_HEARTBEAT_SECONDS = 0.01
ERROR = "error"  # the type of the event that reports an error
UNDELIVERABLE = "a message can't be delivered"  # its data: a browser drops an event without data
GONE = "gone"  # the type of the event after which there is nothing more, since the listener is deleted
DELETED = "the listener is deleted"

_LINE_BREAKS = re.compile(r"[\r\n]+")

logger = logging.getLogger("eric_sse_sql")


def retry_frame(milliseconds: int) -> bytes:
    """Tells a browser how long to wait before it reconnects."""
    return b"retry: %d\n\n" % milliseconds


def frame(event_type: str, data: bytes, event_id: str | None = None) -> bytes:
    """An event.

    :param event_type: line breaks in it are removed, as in the id
    :param data: a JSON text without line breaks
    """
    head = f"event: {_LINE_BREAKS.sub('', event_type)}\n"
    if event_id:
        head = f"id: {_LINE_BREAKS.sub('', str(event_id))}\n{head}"
    return b"%bdata: %b\n\n" % (head.encode(errors="replace"), data)


def frame_of(event: Mapping[str, Any]) -> bytes:
    """The frame of an event as channels adapt it: "event" is its type, "data" what becomes JSON; "id" may be missing.

    Where JSON has no form for the data, it is an error event, and the reason is logged.
    """
    event_id = event.get("id")
    try:
        data = unchecked(event.get("data")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        logger.error(
            "an event of the type %r can't be sent: its data has no form in JSON: %s", event.get("event"), error
        )
        return frame(ERROR, unchecked(UNDELIVERABLE).encode(), event_id)
    return frame(str(event.get("event", "message")), data, event_id)


def message_frame(message: MessageContract, event_id: str | None = None) -> bytes:
    """The frame of a message that is not adapted."""
    return frame_of({"event": message.type, "data": message.payload, "id": event_id})


#: The last event of a stream whose listener is deleted.
GONE_FRAME = frame(GONE, unchecked(DELETED).encode())
