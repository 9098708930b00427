"""The events of a queue, delivered on an event loop that never waits for the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract

from eric_sse_sql.database import Database
from eric_sse_sql.streams.idle import pause
from eric_sse_sql.streams.source import ERROR, UNREADABLE, MessageSource, in_thread

# The data of error events: a browser drops an event without data.
UNDELIVERABLE = "a message can't be delivered"
UNAVAILABLE = "the database can't be queried now; the stream goes on when it can be"
PAUSES = 0.1, 2.0  # seconds: the first and the longest pause after a failure, unless the watcher succeeds before

logger = logging.getLogger("eric_sse_sql")


async def stream(
    source: MessageSource,
    listener: MessageQueueListener,
    database: Database,
    *,
    is_open: Callable[[], bool],
    adapt: Callable[[MessageContract, str | None], Any],
    delay: Callable[[], float],
) -> AsyncGenerator[Any, None]:
    """The events of a message source, until the stream is to end.

    An event is delivered when the next one is asked for: a consumer that stops before loses none. While the database
    can't be queried, one error event is delivered, and the stream goes on by itself when it can be again.

    :param is_open: False once the listener is stopped, or removed from its channel
    :param adapt: makes an event of a message and the id of the event
    :param delay: seconds between two events
    """
    if not listener.is_running():
        logger.warning("listener %s was not started: its stream ends at once; call listener.start() first", listener.id)
    seconds, has_failed = PAUSES[0], False
    try:
        while is_open():
            item, event = source.next(), None
            try:
                if item is None:
                    await source.wait(is_open)
                else:
                    event = await _event(source, item, listener, database, adapt)
            except RepositoryError as error:
                database.check_open()
                database.background.outage.begin(source, error)
                if not has_failed:
                    yield adapt(Message(ERROR, UNAVAILABLE), None)
                has_failed = True
                is_reached = await pause(seconds, is_open, database.watcher)
                seconds = PAUSES[0] if is_reached else min(2 * seconds, PAUSES[1])
                continue
            if has_failed:
                database.background.outage.end(source)
                seconds, has_failed = PAUSES[0], False
            if event is not None:
                yield event
                source.note_delivered(item)
                seconds_between = delay()
                if seconds_between or source.next() is not None:  # else the next wait lets other streams run
                    await asyncio.sleep(seconds_between)
    finally:
        database.background.outage.forget(source)
        if source.close():
            await in_thread(database, source.put_back)


async def _event(
    source: MessageSource,
    item: Any,
    listener: MessageQueueListener,
    database: Database,
    adapt: Callable[[MessageContract, str | None], Any],
) -> Any:
    """The event of an item, after which the source goes on; None where the item is another stream's by now.

    :raises RepositoryError: when an item that can't be decoded can't be set aside, either
    """
    try:
        message = source.decoded(item)
    except RepositoryError as error:
        await in_thread(database, source.set_aside, item, error)
        return adapt(Message(ERROR, UNREADABLE), source.event_id(item))
    if not source.advance(item):
        return None
    try:
        if source.is_for_listener(item):
            listener.on_message(message)
        return adapt(message, source.event_id(item))
    except Exception:
        logger.exception("a message can't be delivered to its listener")
        return adapt(Message(ERROR, UNDELIVERABLE), source.event_id(item))
