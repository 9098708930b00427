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
PAUSES = 0.1, 2.0  # seconds: the first and the longest pause before a failed query is repeated

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
    seconds = PAUSES[0]
    try:
        while is_open():
            item = source.next()
            if item is not None:
                try:
                    message = source.decoded(item)
                except RepositoryError as error:
                    await in_thread(database, source.set_aside, item, error)
                    source.advance()
                    yield adapt(Message(ERROR, UNREADABLE), source.event_id(item))
                    source.note_delivered(item)
                    continue
                source.advance()
                yield _event(message, source, item, listener, adapt)
                source.note_delivered(item)
                await asyncio.sleep(delay())
                continue
            try:
                await source.wait(is_open)
            except RepositoryError as error:
                database.check_open()
                database.background.outage.begin(source, error)
                if seconds == PAUSES[0]:
                    yield adapt(Message(ERROR, UNAVAILABLE), None)
                await pause(seconds, is_open)
                seconds = min(2 * seconds, PAUSES[1])
                continue
            database.background.outage.end(source)
            seconds = PAUSES[0]
    finally:
        database.background.outage.forget(source)
        if source.close():
            await in_thread(database, source.put_back)


def _event(
    message: MessageContract,
    source: MessageSource,
    item: Any,
    listener: MessageQueueListener,
    adapt: Callable[[MessageContract, str | None], Any],
) -> Any:
    try:
        if source.is_for_listener(item):
            listener.on_message(message)
        return adapt(message, source.event_id(item))
    except Exception:
        logger.exception("a message can't be delivered to its listener")
        return adapt(Message(ERROR, UNDELIVERABLE), source.event_id(item))
