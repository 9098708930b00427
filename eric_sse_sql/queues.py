"""``SqlQueue`` and ``BlockingSqlQueue``: queues whose messages live in ``sse_messages``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import Any, TypeVar

from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from eric_sse.queues import Queue

from eric_sse_sql import message_statements as sql
from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import ConnectionsFactory, PersistableQueue, make_connection
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.gates import Gate
from eric_sse_sql.keys import new_id, validate_key
from eric_sse_sql.models import MessageRow
from eric_sse_sql.statements import Row, Statement
from eric_sse_sql.wakeups import FALLBACK_SECONDS

MAX_TYPE_CHARACTERS = 255
PLACE = f"{MessageRow.__tablename__}/"

Taken = TypeVar("Taken")


class Delivery(MessageContract):
    """A message that is leased to one consumer.

    :param message: the message itself
    :param delivery_count: how often it was received, this time included: 1, unless an earlier consumer has failed
    """

    def __init__(self, message: MessageContract, delivery_count: int) -> None:
        self.message = message
        self.delivery_count = delivery_count

    @property
    def type(self) -> str:
        """The type of the message."""
        return self.message.type

    @property
    def payload(self) -> Any:
        """The payload of the message."""
        return self.message.payload


class SqlQueue(PersistableQueue):
    """A queue of messages in the database, for any number of producers and consumers in any processes.

    First in, first out for each producer: the order is that of the numbers which the database gives out, and of two
    producers at once either may get the lower one. No consumer waits for another on Postgres; on SQLite there is one
    writer at a time.

    :meth:`pop` delivers at most once: who takes a message and then dies has lost it. :meth:`receive` delivers at least
    once: a message stays until its consumer has done with it.

    A queue may be used before its connection is persisted, and is persistable itself: what is stored is its id, and it
    comes back on the database that loads it.

    :param database: where the messages are
    :param queue_id: its id, by which every process finds the same messages; by default a new one
    :raises RepositoryError: by every method, for any fault of the database, which then is as it was
    """

    def __init__(self, database: Database, queue_id: str | None = None) -> None:
        super().__init__()
        self._database = database
        self._queue_id = new_id() if queue_id is None else validate_key("a queue id", queue_id)
        self._gate: Gate | None = None
        self._empty_at: int | None = None  # the version of the gate at which it was found empty

    @property
    def id(self) -> str:
        """The queue's own id."""
        return self._queue_id

    def push(self, message: MessageContract) -> None:
        """Add a message at the end. One statement.

        :raises RepositoryError: when the message can't be stored, or could not be read back
        """
        row = self._row(message)
        with repository_errors("the message can't be pushed"):
            self._database.publish(sql.PUSH, [self._queue_id], **row)

    def push_many(self, messages: Iterable[MessageContract]) -> None:
        """Add messages at the end, in their order: all or none. One statement.

        :raises RepositoryError: when one of them can't be stored, or could not be read back
        """
        rows = [self._row(message) for message in messages]
        with repository_errors("the messages can't be pushed"), self._database.transaction():
            self._database.publish_many(sql.PUSH_ROWS, [self._queue_id], rows)

    def pop(self) -> MessageContract:
        """Take the first message for good. One statement; none where the queue is known to be empty.

        :raises NoMessagesException: when there is none that another consumer is not taking
        :raises RepositoryError: when it can't be read; then it goes back to its place
        """
        with repository_errors("the message can't be popped"):
            row = self._first(sql.POP)
            try:
                return self.decoded(row)
            except BaseException:
                self.give_back([row])
                raise

    def take(self, most: int) -> list[Row]:
        """Take the first messages for good, as rows that are not read yet. One statement.

        :raises RepositoryError: for any fault of the database
        """
        with repository_errors("the messages can't be taken"):
            rows = self._database.run(sql.TAKE, queue=self._queue_id, count=most)
        return sorted(rows, key=itemgetter(3))  # by their numbers

    def give_back(self, rows: Iterable[Row]) -> None:
        """Put messages that were taken, and not delivered, back to their places; those that are back already, for an
        answer that was lost, stay. One statement."""
        given = [dict(zip(sql.WHOLE_ROW.values(), row, strict=True)) for row in rows]
        if given:
            with repository_errors("the messages can't be given back"), self._database.transaction():
                self._database.publish_many(sql.RESTORE, [self._queue_id], given)

    def decoded(self, row: Row) -> MessageContract:
        """The message in a row that was taken.

        :raises RepositoryError: when it can't be read
        """
        return self.decoded_blob(row[2])

    @property
    def database(self) -> Database:
        """Where the messages are."""
        return self._database

    @property
    def gate(self) -> Gate:
        """What this process knows of the queue."""
        if self._gate is None:
            self._gate = self._database.wakeups.gate(self._queue_id)
        return self._gate

    @contextmanager
    def receive(self, lease: float = 30.0) -> Iterator[Delivery]:
        """A context manager: takes the first message on a lease, and acknowledges it when the block ends.

        Until then nobody else gets it. When the block raises, it is back in the queue at its old place; when the
        process dies, as soon as the lease has expired, on the clock of the database. A statement each for the lease
        and the acknowledgement.

        :param lease: how long the block may take, in seconds
        :raises NoMessagesException: when there is none that another consumer has not taken
        :raises RepositoryError: when it can't be read, and is back in the queue; or when the lease had expired before
            the block ended: then the message is not acknowledged, and another consumer may have it
        """
        with self._delivered(self._lease(lease), lease) as delivery:
            yield delivery

    def clear(self) -> None:
        """Delete all messages, those that are leased too. One statement."""
        with repository_errors("the queue can't be cleared"):
            self._database.run(sql.CLEAR, queue=self._queue_id)

    def __len__(self) -> int:
        """How many messages wait, without those that are leased. One statement, which counts them."""
        with repository_errors("the messages can't be counted"):
            count: int = self._database.run(sql.DEPTH, queue=self._queue_id)[0][0]
            return count

    def __bool__(self) -> bool:
        """True: an empty queue is a queue, and asking for it costs no statement."""
        return True

    def _lease(self, seconds: float) -> Row:
        if not seconds > 0:
            raise RepositoryError("a lease must be longer than 0 seconds") from ValueError(seconds)
        with repository_errors("the message can't be received"):
            return self._first(sql.LEASE, lease=self._database.dialect.seconds_value(seconds))

    def _first(self, statement: Statement, **parameters: Any) -> Row:
        """The row of the first message, unless the queue is known to be empty.

        That is known only where others' messages would be noticed, and what is written in a transaction is not counted.
        """
        database, gate, known = self._database, self.gate, self._empty_at
        if known == gate.version and database.wakeups.are_on and not database.in_transaction():
            raise NoMessagesException
        version = gate.watch()
        rows = database.run(statement, queue=self._queue_id, **parameters)
        if rows:
            self._empty_at = None
            return rows[0]
        if not database.in_transaction():
            if known is not None:  # twice: somebody will ask again and again
                database.wakeups.start()
            self._empty_at = version
        raise NoMessagesException

    @contextmanager
    def _delivered(self, leased: Row, lease: float) -> Iterator[Delivery]:
        message_id, blob, count = leased
        held = {"id": message_id, "deliveries": count}
        try:
            yield Delivery(self.decoded_blob(blob), count)
        except BaseException:
            with suppress(RepositoryError), repository_errors("the message can't be given back"):
                self._database.publish(sql.RELEASE, [self._queue_id], **held)  # or else the lease expires
            raise
        with repository_errors("the message can't be acknowledged"):
            if not self._database.run(sql.ACKNOWLEDGE, **held):
                raise RepositoryError(
                    f"the lease of {lease:g} seconds had expired before the message was acknowledged, so that it is "
                    "delivered once more; ask for a longer lease"
                )

    def _row(self, message: MessageContract) -> dict[str, Any]:
        blob = self._database.codec.encode(message, self._place, self._database)
        return {"queue": self._queue_id, "kind": _type_of(message), "blob": blob}

    def decoded_blob(self, blob: bytes) -> MessageContract:
        """The message in a blob of the queue.

        :raises RepositoryError: when it can't be read
        """
        message: MessageContract = self._database.codec.decode(blob, self._place, self._database)
        return message

    @property
    def _place(self) -> str:
        return PLACE + self._queue_id

    @property
    def kv_key(self) -> str:
        """The queue's own id."""
        return self._queue_id

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        """The reference to the database, and the id."""
        return {"database": self._database, "queue_id": self._queue_id}

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        """Nothing: the messages are in rows of their own."""
        return {}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        """Nothing is left to do."""


class BlockingSqlQueue(SqlQueue):
    """A :class:`SqlQueue` that waits for a message, whichever process pushes it.

    A push in any process ends the wait, and so do an interrupt and closing the database. It can't wait inside a
    transaction, which would keep others from pushing.
    """

    def pop(self, timeout: float | None = None) -> MessageContract:
        """Take the first message for good, as soon as there is one.

        :param timeout: how long to wait, in seconds; by default without end
        :raises NoMessagesException: when there was none in all that time
        :raises RepositoryError: when the database is closed, or inside a transaction, where there is no message
        """
        return self._awaited(super().pop, timeout)

    @contextmanager
    def receive(self, lease: float = 30.0, timeout: float | None = None) -> Iterator[Delivery]:
        """As :meth:`SqlQueue.receive`, as soon as there is a message.

        :param lease: how long the block may take, in seconds
        :param timeout: how long to wait for a message, in seconds; by default without end
        """
        with self._delivered(self._awaited(lambda: self._lease(lease), timeout), lease) as delivery:
            yield delivery

    def _awaited(self, take: Callable[[], Taken], timeout: float | None) -> Taken:
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            self._database.check_open()
            version = self.gate.watch()
            try:
                return take()
            except NoMessagesException:
                if self._database.in_transaction():
                    raise RepositoryError(
                        "the queue is empty, and a blocking queue can't wait inside a transaction; take messages "
                        "outside of it, or use SqlQueue"
                    ) from None
                left = FALLBACK_SECONDS if give_up is None else give_up - time.monotonic()
                if left <= 0:
                    raise
            self._database.wakeups.start()
            self.gate.wait(version, min(left, FALLBACK_SECONDS))


class SqlConnectionsFactory(ConnectionsFactory):
    """Connects listeners to queues in a database, as the channels of eric-sse 2.1 ask for it.

    :param database: where the messages are
    :param queue_class: of the queues: :class:`SqlQueue`, :class:`BlockingSqlQueue` or a subclass
    """

    def __init__(self, database: Database, queue_class: type[SqlQueue] = SqlQueue) -> None:
        self._database = database
        self._queue_class = queue_class

    def create(self, listener: MessageQueueListener | None = None) -> Connection:
        """A new connection, with an empty queue.

        :param listener: by default a new one
        """
        return make_connection(listener or MessageQueueListener(), self._queue_class(self._database), new_id())


def broadcast(message: MessageContract, queues: Iterable[Queue]) -> None:
    """Add a message at the end of many queues: one statement for all that are in one database.

    The database gets the message once, unless blobs are signed, each for its queue.

    :raises RepositoryError: when the message can't be stored; no queue of that database has it then
    """
    together: dict[Database, list[SqlQueue]] = {}
    for queue in queues:
        if isinstance(queue, SqlQueue) and type(queue).push is SqlQueue.push:
            together.setdefault(queue._database, []).append(queue)
        else:
            queue.push(message)
    for database, group in together.items():
        _push_to_all(database, group, message)


def _push_to_all(database: Database, queues: Sequence[SqlQueue], message: MessageContract) -> None:
    codec, kind, ids = database.codec, _type_of(message), [queue.id for queue in queues]
    pickled = codec.pickled(message, database)
    with repository_errors("the message can't be broadcast"):
        if codec.signs:
            rows = [{"queue": queue.id, "kind": kind, "blob": codec.sign(pickled, queue._place)} for queue in queues]
            with database.transaction():
                database.publish_many(sql.PUSH_ROWS, ids, rows)
        else:
            blob = codec.sign(pickled, queues[0]._place)
            database.publish(sql.PUSH_TO_ALL, ids, queues=database.dialect.list_value(ids), kind=kind, blob=blob)


def _type_of(message: MessageContract) -> str:
    """The message's type as the table shows it to people."""
    kind = str(message.type if hasattr(message, "type") else class_path(type(message)))[:MAX_TYPE_CHARACTERS]
    if kind.isascii() and "\0" not in kind:
        return kind
    return kind.encode(errors="replace").decode().replace("\0", "\ufffd")
