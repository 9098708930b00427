"""asyncio: what an endpoint calls, without holding the event loop up.

The statements run in threads of the package's own, as part of the transaction that the calling task is in. A call that
is cancelled before it has a thread is not made, but for the end of a transaction or lease; one that runs goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract

from eric_sse_sql.arguments import kind_of, validate_type
from eric_sse_sql.codec import class_path
from eric_sse_sql.database import Database
from eric_sse_sql.queues import BlockingSqlQueue, Delivery, SqlQueue, give_up_time
from eric_sse_sql.streams.calls import TaskCall, call_in_thread, done, leave_cancelled, left_in_thread
from eric_sse_sql.streams.idle import Waiter, end
from eric_sse_sql.streams.source import retried

if TYPE_CHECKING:
    from concurrent.futures import Future

    from eric_sse_sql.channels import SqlChannel  # which needs eric-sse 2.1

_DATABASE = "write Database(url), or Database(engine)"
_QUEUE = "write SqlQueue(database), or SqlQueue(database, queue_id)"

Result = TypeVar("Result")
Channel = TypeVar("Channel")

logger = logging.getLogger("eric_sse_sql")


class AsyncDatabase:
    """Transactions of asyncio tasks.

    :param database: the database
    """

    def __init__(self, database: Database) -> None:
        self._database = validate_type("database", database, Database, _DATABASE)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """As ``Database.transaction()``, which begins and commits off the event loop: all that this task does with the
        database inside is one transaction. Calls that are not awaited are part of it, too, and block the event loop.

        A task that is started inside is not in it; ``asyncio.wait_for`` starts one before Python 3.12.

        :raises OutcomeUnknown: when the connection breaks before the reply to COMMIT: all of it was written, or none
        :raises RepositoryError: when it can't begin, or can't commit: then nothing was written
        """
        database = self._database

        def begin() -> AbstractContextManager[None]:
            transaction = database.transaction()
            transaction.__enter__()
            return transaction

        call = TaskCall(database, begin, leave_cancelled)
        transaction = await call.result()
        with call.delegation.adopted():
            async with left_in_thread(database, transaction, call.delegation):
                yield


class AsyncChannel:
    """The calls of a channel that run statements. What runs none is called on the channel itself.

    :param channel: a ``SqlChannel``, of eric-sse 2.1
    :raises RepositoryError: by every method, where the channel is in no database yet
    """

    def __init__(self, channel: SqlChannel) -> None:
        if not hasattr(channel, "find_database"):
            raise RepositoryError(
                f"AsyncChannel takes a SqlChannel, which needs eric-sse 2.1, not {kind_of(channel)}"
            ) from TypeError(kind_of(channel))
        self._channel = channel

    async def broadcast(self, msg: MessageContract, message_id: str | None = None) -> None:
        """As ``SqlChannel.broadcast``."""
        await self._call(self._channel.broadcast, msg, **_given(message_id))

    async def dispatch(self, listener_id: str, msg: MessageContract, message_id: str | None = None) -> None:
        """As ``SqlChannel.dispatch``."""
        await self._call(self._channel.dispatch, listener_id, msg, **_given(message_id))

    async def get_listener(self, listener_id: str) -> MessageQueueListener:
        """As ``SqlChannel.get_listener``."""
        return await self._call(self._channel.get_listener, listener_id)

    async def get_connections(self) -> list[Connection]:
        """As ``SqlChannel.get_connections``."""
        return list(await self._call(self._channel.get_connections))

    async def remove_listener(self, listener_id: str) -> None:
        """As ``SqlChannel.remove_listener``."""
        await self._call(self._channel.remove_listener, listener_id)

    async def _call(self, call: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        database = self._channel.find_database()
        if database is None:
            raise RepositoryError(
                "the channel is in no database, whose threads AsyncChannel uses: persist it first, or make it with a "
                "SqlConnectionsFactory"
            )
        return await call_in_thread(database, partial(call, *arguments, **options))


class _ChannelRepository(Protocol[Channel]):
    """What is called of a repository, of either eric-sse."""

    database: Database

    def load_one(self, channel_id: str) -> Channel: ...
    def persist(self, channel: Channel) -> None: ...
    def delete(self, channel_id: str) -> None: ...


class AsyncChannelRepository(Generic[Channel]):
    """The calls of a repository of channels. Its ``create`` runs no statement, and is called on the repository itself.

    :param repository: a ``SqlSSEChannelRepository``, an application's own repository, or a ``ChannelRepository``
    """

    def __init__(self, repository: _ChannelRepository[Channel]) -> None:
        self._repository = repository
        if not hasattr(repository, "database"):
            raise RepositoryError(
                f"AsyncChannelRepository takes a repository of this package, not {kind_of(repository)}"
            ) from TypeError(kind_of(repository))
        self._database = repository.database

    async def load_one(self, channel_id: str) -> Channel:
        """The channel of an id.

        :raises ItemNotFound: when there is none
        """
        return await call_in_thread(self._database, self._repository.load_one, channel_id)

    async def persist(self, channel: Channel) -> None:
        """Store a channel, and what has changed of its connections.

        :raises RepositoryError: when something can't be stored; nothing is then
        """
        await call_in_thread(self._database, self._repository.persist, channel)

    async def delete(self, channel_id: str) -> None:
        """Delete a channel, if it is there."""
        await call_in_thread(self._database, self._repository.delete, channel_id)


class AsyncQueue:
    """The calls of a queue. ``async for message in AsyncQueue(queue)`` pops messages until the database is closed.

    Waiting for a message holds no thread. A wait that is cancelled takes no message: one that was taken from the queue
    meanwhile returns to its place, before a later call of this process takes another one. Closing the database ends
    all waits with a ``RepositoryError``.

    :param queue: a :class:`SqlQueue`, whose ``pop`` and ``receive`` its class has not replaced
    :raises RepositoryError: by every method, for any fault of the database, which then is as it was
    """

    def __init__(self, queue: SqlQueue) -> None:
        self._queue = validate_type("queue", queue, SqlQueue, _QUEUE)
        for name in ("pop", "receive"):
            if getattr(type(queue), name) not in (getattr(SqlQueue, name), getattr(BlockingSqlQueue, name)):
                raise RepositoryError(
                    f"AsyncQueue takes messages as SqlQueue does, and {class_path(type(queue))} has a {name} of its "
                    "own; give it a SqlQueue of the same id"
                )
        self._database = queue.database

    async def push(self, message: MessageContract, message_id: str | None = None) -> None:
        """As ``SqlQueue.push``."""
        await call_in_thread(self._database, partial(self._queue.push, message, **_given(message_id)))

    async def push_many(self, many: Iterable[MessageContract], message_ids: Iterable[str] | None = None) -> None:
        """As ``SqlQueue.push_many``."""
        await call_in_thread(self._database, self._queue.push_many, many, message_ids)

    async def pop(self, timeout: float | None = None) -> MessageContract:
        """Remove the first message and return it, as soon as there is one.

        :param timeout: how long to wait for a message, in seconds; by default without end, and 0 for not at all
        :raises NoMessagesException: when there was none in all that time
        :raises RepositoryError: when the database is closed, and where it would wait inside a transaction
        """
        message, _ = await self._awaited(self._queue.pop_returnable, self._put_back, timeout)
        return message

    def receive(self, lease: float = 30.0, timeout: float | None = None) -> AbstractAsyncContextManager[Delivery]:
        """As ``SqlQueue.receive``, as soon as there is a message.

        :param lease: how long the block may take, in seconds: more than 0, at most a year
        :param timeout: how long to wait for a message, in seconds; by default without end, and 0 for not at all
        """
        return self._received(lease, timeout)

    async def count(self) -> int:
        """How many messages wait, without those that are leased."""
        return await call_in_thread(self._database, self._queue.__len__)

    def __aiter__(self) -> AsyncIterator[MessageContract]:
        return self

    async def __anext__(self) -> MessageContract:
        return await self.pop()

    @asynccontextmanager
    async def _received(self, lease: float, timeout: float | None) -> AsyncIterator[Delivery]:
        def begin() -> tuple[Delivery, AbstractContextManager[Delivery]]:
            delivered = SqlQueue.receive(self._queue, lease)
            return delivered.__enter__(), delivered

        delivery, delivered = await self._awaited(begin, lambda taken: leave_cancelled(taken[1]), timeout)
        async with left_in_thread(self._database, delivered):
            yield delivery

    async def _awaited(
        self, take: Callable[[], Result], undo: Callable[[Result], object], timeout: float | None
    ) -> Result:
        """What a call takes from the queue, as soon as there is a message."""
        give_up = give_up_time(timeout)
        database, watch = self._database, self._queue.watch
        waiter = Waiter(database, lambda: not database.watcher.is_closed)
        while True:
            database.check_open()
            version = watch.arm()
            try:
                if self._queue.is_known_empty:
                    raise NoMessagesException
                return await self._take(take, undo)
            except NoMessagesException as error:
                if give_up is not None and time.monotonic() >= give_up:
                    raise
                if database.in_transaction():
                    raise RepositoryError(
                        "the queue is empty, and waiting inside a transaction keeps others from pushing; take messages "
                        "outside of it, or with timeout=0"
                    ) from error
            database.background.poller.start()
            await self._wait_for_change(waiter, version, give_up)

    async def _take(self, take: Callable[[], Result], undo: Callable[[Result], object]) -> Result:
        """What a call takes, once all is back that cancelled calls have taken before."""
        cancelled = self._cancelled()
        for future in list(cancelled):
            if self._database.background.call_threads.is_running(future):
                await done(future)
        call = TaskCall(self._database, take, undo)
        try:
            return await call.result()
        except asyncio.CancelledError:
            cancelled.add(call.future)
            call.future.add_done_callback(cancelled.discard)
            raise

    def _cancelled(self) -> set[Future[Any]]:
        """The calls for the queue whose tasks were cancelled, and that have not ended."""
        by_watch = self._database.loop_state.setdefault(AsyncQueue, WeakKeyDictionary())
        futures: set[Future[Any]] = by_watch.setdefault(self._queue.watch, set())
        return futures

    async def _wait_for_change(self, waiter: Waiter, version: int, give_up: float | None) -> None:
        """Wait until the queue may have got a message, for a time at most."""
        loop, watch = asyncio.get_running_loop(), self._queue.watch
        waiter.begin()

        def wake() -> None:
            end([waiter])

        timer = None if give_up is None else loop.call_later(give_up - time.monotonic(), wake)
        watch.subscribe(wake)
        try:
            if watch.version == version:
                await waiter.wait()
        finally:
            watch.unsubscribe(wake)
            if timer is not None:
                timer.cancel()

    def _put_back(self, popped: tuple[MessageContract, Callable[[], None]]) -> None:
        try:
            retried(popped[1], self._database)
        except RepositoryError:
            logger.error("a message whose pop was cancelled can't be put back into queue %s", self._queue.id)
            raise


def _given(message_id: str | None) -> dict[str, str]:
    """The id of a message as an argument, where there is one: a class may take none."""
    return {} if message_id is None else {"message_id": message_id}
