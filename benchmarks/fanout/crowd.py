"""Channels with many stored listeners, each of which is streamed as by a request of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from eric_sse.listener import MessageQueueListener
from sqlalchemy import event

from benchmarks.fanout.arrivals import Arrivals
from benchmarks.harness.locations import Location, close
from benchmarks.harness.sample_data import new_message
from benchmarks.streams.stream_locations import listener_id
from eric_sse_sql import Database, SqlSSEChannel, SqlSSEChannelRepository

QUEUES, LOG = "queues", "log"
REPLAY_SECONDS: Mapping[str, float] = {QUEUES: 0, LOG: 3600}  # by the way in which a channel keeps its messages

START_SECONDS, END_SECONDS = 120, 30  # within which all streams must have their first event, and must end

OnEvent = Callable[[int, Mapping[str, Any]], None]  # gets the number of the listener and the event


@dataclass(frozen=True)
class Crowd:
    """A channel with many listeners. It can be pickled, to be passed to another process.

    :param listeners: how many there are
    :param way: a key of ``REPLAY_SECONDS``
    :param messages: the format in which they are stored
    """

    location: Location
    channel_id: str
    listeners: int
    way: str
    messages: str = "pickle"

    def persist(self) -> None:
        """Store the channel and its listeners, and broadcast a first message: a stream is open when it has that."""
        with self.opened() as database:
            repository = SqlSSEChannelRepository(database)
            data = {"channel_id": self.channel_id, "replay_seconds": REPLAY_SECONDS[self.way]}
            channel = repository.create(data)
            for number in range(self.listeners):
                channel.register_listener(MessageQueueListener(listener_id(number)))
            repository.persist(channel)
            channel.broadcast(new_message(0))

    @contextmanager
    def opened(self) -> Iterator[Database]:
        """Open the database, and close it when the block ends."""
        database = self.location.open(self.messages)
        try:
            yield database
        finally:
            close(database)

    def sender(self) -> Callable[[str | None], None]:
        """A function that dispatches a message to a listener, or broadcasts one when it gets None."""
        channel = SqlSSEChannelRepository(self.location.open(self.messages)).load_one(self.channel_id)

        def send(listener: str | None) -> None:
            if listener is None:
                channel.broadcast(new_message(0))
            else:
                channel.dispatch(listener, new_message(0))

        return send


@dataclass(frozen=True)
class Browser:
    """What a worker has for a stream: its own channel object, and the listener."""

    number: int
    channel: SqlSSEChannel
    listener: MessageQueueListener

    @classmethod
    def load(cls, repository: SqlSSEChannelRepository, channel_id: str, number: int) -> Browser:
        """Load the channel and the listener with a number, and start the listener. In a thread."""
        channel = cast(SqlSSEChannel, repository.load_one(channel_id))
        listener = channel.get_listener(listener_id(number))
        listener.start()
        return cls(number, channel, listener)

    def events(self, last_event_id: str | None = None) -> AsyncGenerator[Mapping[str, Any], None]:
        """The stream."""
        return cast(AsyncGenerator[Mapping[str, Any], None], self.channel.message_stream(self.listener, last_event_id))

    async def read(self, on_event: OnEvent, last_event_id: str | None = None) -> None:
        """Read the stream to its end."""
        async with aclosing(self.events(last_event_id)) as events:
            async for each in events:
                on_event(self.number, each)


class Browsers:
    """The open streams of a process.

    :param database: the channel is loaded from it once for each of them
    :param on_event: is called with all events
    """

    def __init__(self, database: Database, channel_id: str, on_event: OnEvent) -> None:
        self._repository = SqlSSEChannelRepository(database)
        self._channel_id = channel_id
        self._on_event = on_event
        self._listeners: list[MessageQueueListener] = []
        self._streams: list[asyncio.Task[None]] = []

    async def open(self, number: int, last_event_id: str | None = None) -> None:
        """Do what a request for a stream does. Its statements run in a thread."""
        browser = await asyncio.to_thread(Browser.load, self._repository, self._channel_id, number)
        self._listeners.append(browser.listener)
        self._streams.append(asyncio.create_task(browser.read(self._on_event, last_event_id)))

    async def close(self) -> None:
        """End all streams.

        :raises AssertionError: when one does not end
        """
        for listener in self._listeners:
            listener.stop()
        ended, running = await asyncio.wait(self._streams, timeout=END_SECONDS)
        for each in running:
            each.cancel()
        for each in ended:
            each.result()
        if running:
            raise AssertionError(f"{len(running)} streams do not end")


@asynccontextmanager
async def streaming(
    database: Database, crowd: Crowd, on_event: OnEvent, numbers: Sequence[int] | None = None
) -> AsyncIterator[None]:
    """Open streams, one after another. The block begins when each has its first event, which ``on_event`` does not get.

    :param numbers: of their listeners; by default all
    """
    opened = range(crowd.listeners) if numbers is None else numbers
    unopened = set(opened)
    all_open = Arrivals()
    all_open.expect(len(opened))

    def note(number: int, each: Mapping[str, Any]) -> None:
        if number in unopened:
            unopened.discard(number)
            all_open.note()
        else:
            on_event(number, each)

    browsers = Browsers(database, crowd.channel_id, note)
    try:
        for number in opened:
            await browsers.open(number)
        await all_open.wait(START_SECONDS)
        yield
    finally:
        await browsers.close()


def fail_on_event(number: int, each: Mapping[str, Any]) -> None:
    """What streams that are to stay idle do with an event."""
    raise AssertionError(f"listener {number} was sent {each}")


class StatementCount:
    """Counts the statements that go through the engine of a database, from now on.

    :param is_counted: whether a statement that runs now is counted
    """

    def __init__(self, database: Database, is_counted: Callable[[], bool] = lambda: True) -> None:
        self.statements = 0
        self._is_counted = is_counted
        event.listen(database.engine, "before_cursor_execute", self._count)

    def _count(self, *arguments: Any) -> None:
        self.statements += self._is_counted()
