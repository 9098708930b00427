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
from eric_sse_sql.streams.idle import pause, wait_for_change
from eric_sse_sql.streams.source import MessageSource, UnreadableMessage

ERROR = "error"  # the type of the event that reports an error
# The data of error events: a browser drops an event without data.
UNREADABLE = "a message can't be read"
UNDELIVERABLE = "a message can't be delivered"
UNAVAILABLE = "the database can't be queried now; the stream goes on when it can be"
PAUSES = 0.1, 2.0  # seconds: the first and the longest pause before a failed query is repeated

logger = logging.getLogger("eric_sse_sql")


async def stream(
    source: MessageSource,
    listener: MessageQueueListener,
    database: Database,
    *,
    adapt: Callable[[MessageContract, str | None], Any],
    delay: Callable[[], float],
) -> AsyncGenerator[Any, None]:
    """The events of a message source, until the listener is stopped.

    An event is delivered when the next one is asked for: a consumer that stops before loses none. While the database
    can't be reached, one error event is delivered, and the stream goes on by itself when it can be again.

    :param adapt: makes an event of a message and the id of the event
    :param delay: seconds between two events
    """
    if not listener.is_running():
        logger.warning("listener %s was not started: its stream ends at once; call listener.start() first", listener.id)
    seconds, version, is_more = PAUSES[0], 0, True
    try:
        while listener.is_running():
            item = source.next()
            if item is not None:
                try:
                    message = source.decoded(item)
                except RepositoryError:
                    await _put_back(source, item)
                    is_more = True
                    yield adapt(Message(ERROR, UNREADABLE), source.event_id(item))
                    await pause(PAUSES[1], listener)
                    continue
                yield _event(message, source, item, listener, adapt)
                await asyncio.sleep(delay())
                continue
            if not is_more:
                database.watcher.start()
                await wait_for_change(source.queue.watch, version, listener, database)
            version = source.arm()
            try:
                is_more = await asyncio.to_thread(source.fetch)
            except RepositoryError as error:
                database.check_open()
                if not isinstance(error, UnreadableMessage):
                    database.watcher.outage.begin(source, error)
                if seconds == PAUSES[0]:
                    yield adapt(Message(ERROR, UNAVAILABLE), None)
                await pause(seconds, listener)
                seconds = min(2 * seconds, PAUSES[1])
                continue
            database.watcher.outage.end(source)
            seconds = PAUSES[0]
    finally:
        database.watcher.outage.forget(source)
        if source.close():
            await _put_back(source)


async def _put_back(source: MessageSource, *items: Any) -> None:
    """Put items back, and all that were fetched after them, even if the stream is cancelled meanwhile."""
    await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, source.put_back, *items))


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
