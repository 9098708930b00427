"""Other queues with their default settings: eric-redis-queues, and queues on SQLite and Postgres."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from queue import Empty
from typing import Any

from eric_sse.exception import NoMessagesException
from eric_sse.message import MessageContract

from benchmarks.harness import goals
from benchmarks.harness.backends import Backend
from benchmarks.harness.cpu_affinity import Placement, on_last_core
from benchmarks.harness.interfaces import MessageQueue
from benchmarks.harness.locations import conninfo
from benchmarks.harness.optional_peers import Opener, import_peer
from benchmarks.peers.redis_server import IN_MEMORY, ON_DISK, redis_server


def queue_peers(backend: Backend) -> Mapping[str, Opener[MessageQueue]]:
    """The queues that keep their messages in the same kind of database, or in Redis."""
    if backend.name == goals.POSTGRES:
        return {**_REDIS, goals.KOMBU_POSTGRES: partial(_kombu, backend), goals.PROCRASTINATE: partial(_job, backend)}
    return {
        **_REDIS,
        goals.PERSIST_QUEUE: _persist_queue,
        goals.LITEQUEUE: _litequeue,
        goals.DISKCACHE: _diskcache,
        goals.KOMBU_SQLITE: partial(_kombu, backend),
    }


@dataclass(frozen=True)
class RedisLocation:
    """A queue in Redis that any process can open."""

    port: int
    queue_id: str

    def open(self) -> RedisMessageQueue:
        """Open the queue of eric-redis-queues."""
        module = import_peer("eric_redis_queues")
        queue = module.RedisQueue(module.RedisConnection(port=self.port), self.queue_id)
        client = import_peer("redis").Redis(port=self.port)
        return RedisMessageQueue(queue, client, f"{module.PREFIX_MESSAGES}:{self.queue_id}")


class RedisMessageQueue:
    """The queue of eric-redis-queues."""

    def __init__(self, queue: Any, client: Any, key: str) -> None:
        self.push, self.pop = queue.push, queue.pop
        self._client = client
        self._key = key

    def fill(self, messages: Iterable[MessageContract]) -> None:
        """Insert messages directly into Redis, a thousand in each round trip."""
        blobs = (pickle.dumps(message) for message in messages)
        while batch := list(islice(blobs, 1000)):
            self._client.rpush(self._key, *batch)

    def clear(self) -> None:
        """Delete the messages directly from Redis."""
        self._client.delete(self._key)


def redis_location(
    options: tuple[str, ...], folder: Path, stack: ExitStack, placement: Placement = on_last_core
) -> RedisLocation:
    """Start a server for one queue."""
    import_peer("eric_redis_queues")
    return RedisLocation(stack.enter_context(redis_server(folder, options, placement)), uuid.uuid4().hex)


def _redis(options: tuple[str, ...], folder: Path, stack: ExitStack) -> MessageQueue:
    return redis_location(options, folder, stack).open()


_REDIS: Mapping[str, Opener[MessageQueue]] = {
    goals.REDIS_QUEUE_IN_MEMORY: partial(_redis, IN_MEMORY),
    goals.REDIS_QUEUE_ON_DISK: partial(_redis, ON_DISK),
}


class PersistQueue:
    """The FIFO queue of persist-queue on SQLite. It selects, then deletes, under a lock of the process."""

    def __init__(self, queue: Any) -> None:
        self.push = queue.put
        self._queue = queue
        self._empty = import_peer("persistqueue.exceptions").Empty

    def pop(self) -> Any:
        try:
            return self._queue.get(block=False)
        except self._empty:
            raise NoMessagesException from None


def _persist_queue(folder: Path, stack: ExitStack) -> MessageQueue:
    queue = import_peer("persistqueue").FIFOSQLiteQueue(str(folder), auto_commit=True)
    stack.callback(queue.close)
    return PersistQueue(queue)


class LiteQueue:
    """litequeue. It keeps the row of a message after the message is done."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def push(self, message: MessageContract) -> None:
        self._queue.put(pickle.dumps(message, 5))

    def pop(self) -> Any:
        return pickle.loads(self._row().data)

    @contextmanager
    def receive(self) -> Iterator[Any]:
        row = self._row()
        yield pickle.loads(row.data)
        self._queue.done(row.message_id)

    def _row(self) -> Any:
        row = self._queue.pop()
        if row is None:
            raise NoMessagesException
        return row


def _litequeue(folder: Path, stack: ExitStack) -> MessageQueue:
    queue = import_peer("litequeue").LiteQueue(folder / "peer.db")
    stack.callback(queue.close)
    return LiteQueue(queue)


class DequeQueue:
    """The deque of diskcache."""

    def __init__(self, deque: Any) -> None:
        self.push = deque.append
        self._deque = deque

    def pop(self) -> Any:
        try:
            return self._deque.popleft()
        except IndexError:
            raise NoMessagesException from None


def _diskcache(folder: Path, stack: ExitStack) -> MessageQueue:
    deque = import_peer("diskcache").Deque(directory=str(folder))
    stack.callback(deque.cache.close)
    return DequeQueue(deque)


class KombuQueue:
    """The SQLAlchemy transport of kombu. It marks a popped message invisible and keeps its row.

    :param popping: the queue whose messages need no acknowledgement
    :param receiving: the same queue, with acknowledgements
    """

    def __init__(self, popping: Any, receiving: Any) -> None:
        self.push = popping.put
        self._popping = popping
        self._receiving = receiving

    def pop(self) -> Any:
        return self._get(self._popping).payload

    @contextmanager
    def receive(self) -> Iterator[Any]:
        message = self._get(self._receiving)
        yield message.payload
        message.ack()

    @staticmethod
    def _get(queue: Any) -> Any:
        try:
            return queue.get_nowait()
        except Empty:
            raise NoMessagesException from None


def _kombu(backend: Backend, folder: Path, stack: ExitStack) -> MessageQueue:
    kombu = import_peer("kombu")
    url = backend.create_empty().url.render_as_string(hide_password=False)
    connection = stack.enter_context(kombu.Connection(f"sqlalchemy+{url}"))
    options = {"serializer": "pickle", "accept": ["pickle"]}
    return KombuQueue(*(connection.SimpleQueue("bench", no_ack=no_ack, **options) for no_ack in (True, False)))


class JobQueue:
    """procrastinate. A message is the argument of a job: a push defers the job, a pop fetches it.

    Its workers fetch over asyncio; here the same statement runs on its synchronous connector.
    """

    def __init__(self, app: Any) -> None:
        self._task = app.configure_task("bench", queue="bench")
        self._run = app.connector.execute_query_one
        self._sql = import_peer("procrastinate.sql").queries
        self._worker: int = self._run(self._sql["register_worker"])["worker_id"]

    def push(self, message: MessageContract) -> None:
        self._task.defer(type=message.type, payload=message.payload)

    def pop(self) -> Any:
        return self._fetch()["args"]

    @contextmanager
    def receive(self) -> Iterator[Any]:
        job = self._fetch()
        yield job["args"]
        self._run(self._sql["finish_job"], job_id=job["id"], status="succeeded", delete_job=True)

    def _fetch(self) -> Any:
        job = self._run(self._sql["fetch_job"], queues=["bench"], worker_id=self._worker)
        if job["id"] is None:
            raise NoMessagesException
        return job


def _job(backend: Backend, folder: Path, stack: ExitStack) -> MessageQueue:
    procrastinate = import_peer("procrastinate")
    url = conninfo(backend.create_empty().url)
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    stack.enter_context(app.open())
    app.schema_manager.apply_schema()
    return JobQueue(app)
