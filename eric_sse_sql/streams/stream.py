"""The events of a queue, delivered on an event loop that never waits for the database."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract

from eric_sse_sql.database import Database
from eric_sse_sql.streams.frames import ERROR, HEARTBEAT, UNDELIVERABLE
from eric_sse_sql.streams.idle import pause
from eric_sse_sql.streams.source import UNREADABLE, MessageSource, in_thread

UNAVAILABLE = "the database can't be queried now; the stream goes on when it can be"  # the data of an error event
PAUSES = 0.1, 2.0  # seconds: the first and the longest pause after a failure, unless the watcher succeeds before

logger = logging.getLogger("eric_sse_sql")


async def stream(
    source: MessageSource,
    listener: MessageQueueListener,
    database: Database,
    *,
    is_open: Callable[[], bool],
    close: Callable[[], None],
    adapt: Callable[[MessageContract, str | None], Any],
    delay: Callable[[], float],
    is_framed: bool = False,
    heartbeat: float = math.inf,
) -> AsyncGenerator[Any, None]:
    """The events of a message source, until the stream is to end.

    An event is delivered when the next one is asked for: a consumer that stops before loses none. While the database
    can't be queried, one error event is delivered, and the stream goes on by itself when it can be again.

    :param is_open: False once the listener is stopped, or removed from its channel
    :param close: called when the stream has ended
    :param adapt: makes an event of a message and the id of the event; what it can't make is a ``RepositoryError``
    :param delay: seconds between two events
    :param is_framed: whether messages are delivered as the frames that the source makes, neither adapted nor given to
        the listener
    :param heartbeat: seconds without an event after which a comment is delivered
    :raises RepositoryError: when ``adapt`` can't make the event of an error, and when the database is closed
    """
    if not listener.is_running():
        logger.warning("listener %s was not started: its stream ends at once; call listener.start() first", listener.id)
    database.background.poller.start()
    message: MessageContract | bytes | None
    seconds, has_failed = PAUSES[0], False
    silent_until = time.monotonic() + heartbeat

    def is_silent() -> bool:
        return is_open() and time.monotonic() < silent_until

    try:
        while is_open():
            item, message = source.next(), None
            if item is None and time.monotonic() >= silent_until:
                yield HEARTBEAT
                silent_until = time.monotonic() + heartbeat
            try:
                if item is None:
                    await source.wait(is_silent)
                elif not is_framed or (message := source.take_frame()) is None:
                    event_id = source.event_id(item)
                    message = await _message(source, item, listener, database, is_framed)
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
            if message is not None:
                yield message if isinstance(message, bytes) else event_of(message, event_id, adapt)
                silent_until = time.monotonic() + heartbeat
                source.note_delivered(item)
                seconds_between = delay()
                if seconds_between or source.next() is not None:  # else the next wait lets other streams run
                    await asyncio.sleep(seconds_between)
    finally:
        database.background.outage.forget(source)
        try:
            if source.close():
                await in_thread(database, source.put_back)
        finally:
            close()


async def _message(
    source: MessageSource, item: Any, listener: MessageQueueListener, database: Database, is_framed: bool
) -> MessageContract | bytes | None:
    """The message of an item or its frame, after which the source goes on; a message that reports an error, where the
    item can't be delivered; None where the item is another stream's by now.

    :raises RepositoryError: when an item that can't be decoded can't be set aside, either
    """
    try:
        message = source.frame(item) if is_framed else source.decoded(item)
    except RepositoryError as error:
        await in_thread(database, source.set_aside, item, error)
        return Message(ERROR, UNREADABLE)
    if not source.advance(item):
        return None
    if isinstance(message, bytes):
        return message
    try:
        if source.is_for_listener(item):
            listener.on_message(message)
    except Exception:
        logger.exception("a message can't be delivered to its listener")
        return Message(ERROR, UNDELIVERABLE)
    return message


def event_of(
    message: MessageContract, event_id: str | None, adapt: Callable[[MessageContract, str | None], Any]
) -> Any:
    """The event of a message; one that reports an error, where ``adapt`` can't make it.

    :raises RepositoryError: when ``adapt`` can't make that, either
    """
    try:
        return adapt(message, event_id)
    except Exception:
        logger.exception("a message can't be delivered to its listener")
        return adapt(Message(ERROR, UNDELIVERABLE), event_id)
