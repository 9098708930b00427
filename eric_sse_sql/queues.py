"""``SqlQueue`` and ``BlockingSqlQueue``: queues whose messages are in ``sse_messages``."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Protocol, TypeVar

from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from eric_sse.queues import Queue

from eric_sse_sql.arguments import YEAR_SECONDS, kind_of, validate_number, validate_type
from eric_sse_sql.contract import ConnectionsFactory, PersistableQueue, make_connection
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution.statement import Row, Statement
from eric_sse_sql.keys import new_id, validate_key
from eric_sse_sql.message_ids import Recipient, add_once, new_ids
from eric_sse_sql.sql import messages
from eric_sse_sql.sql.messages import LeasedMessage, StoredMessage, TakenMessage
from eric_sse_sql.wakeups.queue_watch import QueueWatch
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS

MAX_LEASE_SECONDS = YEAR_SECONDS
MAX_BATCH = 2**31 - 1  # messages
MAX_BYTES = 2**63 - 1  # of a take
_DATABASE = "write Database(url), or Database(engine)"
_TAKEN = "what take() returned"
MAX_TAKEN_BYTES = 8 * 1024 * 1024  # of the messages that are taken at once; a single one may be larger

TAKEN_ID = itemgetter(TakenMessage._fields.index("id"))
LEASED_ID = itemgetter(LeasedMessage._fields.index("id"))

Taken = TypeVar("Taken")

logger = logging.getLogger("eric_sse_sql")


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


class ListenerLog(Protocol):
    """The events of one listener in the log of its channel, as its queue."""

    @property
    def watch(self) -> QueueWatch:
        """What this process knows of the log."""

    def push(self, message: MessageContract) -> None:
        """Append an event for the listener alone."""

    def pop_returnable(self) -> tuple[MessageContract, Callable[[], None]]:
        """Deliver the next event, to one of all callers.

        :returns: its message, and what makes it the next event again
        :raises NoMessagesException: when there is none
        """

    def count(self) -> int:
        """How many events wait."""


class SqlQueue(PersistableQueue):
    """A queue of messages in the database, for any number of producers and consumers in any processes.

    First in, first out for each producer: the database numbers the messages, and of two concurrent pushes either may
    get the lower number. On Postgres no consumer waits for another; on SQLite there is one writer at a time.

    :meth:`pop` delivers at most once: a consumer that dies after it has lost the message. :meth:`receive` delivers at
    least once: a message stays in the queue until its consumer has finished.

    A queue may be used before its connection is persisted, and is persistable itself: its id is stored, and it comes
    back on the database that loads it.

    :param database: where the messages are
    :param queue_id: its id, by which every process finds the same messages; by default a new one
    :raises RepositoryError: by every method, for any fault of the database, which then is as it was
    """

    def __init__(self, database: Database, queue_id: str | None = None) -> None:
        super().__init__()
        self._database = validate_type("database", database, Database, _DATABASE)
        self._queue_id = new_id() if queue_id is None else validate_key("a queue id", queue_id)
        self._watch: QueueWatch | None = None
        self._listener: tuple[str, str] | None = None  # the ids of its channel and its listener, where they are known
        #: The log of its channel, if that has one: its messages are there.
        self.log: ListenerLog | None = None
        self._empty_version: int | None = None  # the version of the watch at which the queue was found empty

    @property
    def id(self) -> str:
        """The queue's own id."""
        return self._queue_id

    @property
    def database(self) -> Database:
        """Where the messages are."""
        return self._database

    @property
    def watch(self) -> QueueWatch:
        """What this process knows of the queue, or of the log that has its messages."""
        if self.log is not None:
            return self.log.watch
        if self._watch is None:
            watcher = self._database.watcher
            self._watch = watcher.watch(self._queue_id)
            if self._listener is not None:
                watcher.place(self._watch, *self._listener)
        return self._watch

    def note_listener(self, channel_id: str, listener_id: str) -> None:
        """Note for which listener of which channel the queue is, so that it is watched for their messages alone."""
        self._listener = channel_id, listener_id
        if self._watch is not None:
            self._database.watcher.place(self._watch, channel_id, listener_id)

    @property
    def is_known_empty(self) -> bool:
        """Whether the next :meth:`pop` would raise ``NoMessagesException`` without a statement.

        False while the watcher does not run, and inside a transaction.
        """
        return (
            self._empty_version == self.watch.version
            and self._database.watcher.is_trusted
            and not self._database.in_transaction()
        )

    def push(self, message: MessageContract, message_id: str | None = None) -> None:
        """Add a message at the end. One statement; with an id, a transaction of two.

        :param message_id: with one, the call may be repeated: nothing is added where the queue got a message of the
            same id before, and ``Database.prune`` has not forgotten it since
        :raises OutcomeUnknown: when the message may have been added, and may not
        :raises RepositoryError: when the message can't be stored, or could not be read back
        """
        if message_id is not None:
            add_once(self._database, self._recipient, message_id, lambda: SqlQueue.push(self, message))
            return
        if self.log is not None:
            self.log.push(message)
            return
        row = self._row(message)
        with repository_errors("the message can't be pushed"):
            self._database.publisher.publish(messages.PUSH, [self._queue_id], **row)

    def push_many(self, many: Iterable[MessageContract], message_ids: Iterable[str] | None = None) -> None:
        """Add messages at the end, in their order: all or none. One statement; with ids, two.

        :param message_ids: one for each message, as for :meth:`push`: those that the queue got before are left out
        :raises OutcomeUnknown: when they may have been added, and may not
        :raises RepositoryError: when one of them can't be stored, or could not be read back
        """
        if not isinstance(many, Iterable):
            raise RepositoryError(
                f"push_many() takes a list of messages, not {kind_of(many)}; push() takes one"
            ) from TypeError(kind_of(many))
        if message_ids is not None:
            self._push_new(list(many), list(validate_type("message_ids", message_ids, Iterable)))
            return
        if self.log is not None:
            with self._database.transaction():
                for message in many:
                    self.log.push(message)
            return
        rows = [self._row(message) for message in many]
        with repository_errors("the messages can't be pushed"), self._database.transaction():
            self._database.publisher.publish_many(messages.PUSH_MANY, [self._queue_id], rows)

    def _push_new(self, many: Sequence[MessageContract], message_ids: Sequence[str]) -> None:
        """Push those messages whose ids the queue has not got before."""
        if len(many) != len(message_ids):
            raise RepositoryError(
                f"push_many() takes one message id for each message, not {len(message_ids)} for {len(many)}"
            ) from ValueError("message_ids")
        with repository_errors("the messages can't be pushed"), self._database.transaction():
            new = new_ids(self._database, self._recipient, message_ids)
            pushed = []
            for message_id, message in zip(message_ids, many, strict=True):
                if message_id in new:
                    new.remove(message_id)  # of several messages with one id, the first is pushed
                    pushed.append(message)
            SqlQueue.push_many(self, pushed)

    @property
    def _recipient(self) -> Recipient:
        return Recipient("queue", self._queue_id)

    def pop(self) -> MessageContract:
        """Remove the first message and return it. One statement; none where the queue is known to be empty.

        A message that can't be decoded is set aside, and the next one is returned.

        :raises NoMessagesException: when there is none that another consumer is not taking
        """
        return self._pop()[0] if self.log is None else self.log.pop_returnable()[0]

    def pop_returnable(self) -> tuple[MessageContract, Callable[[], None]]:
        """As :meth:`pop` of this class, for a caller that may be cancelled before it has the message.

        :returns: the message, and what puts it back to its place
        :raises NoMessagesException: when there is none that another consumer is not taking
        """
        if self.log is not None:
            return self.log.pop_returnable()
        message, row = self._pop()
        return message, lambda: self.put_back([row])

    def _pop(self) -> tuple[MessageContract, TakenMessage]:
        with repository_errors("the message can't be popped"):
            while True:
                row = TakenMessage._make(self._first(messages.POP, TAKEN_ID))
                try:
                    return self.decoded(row.message_type, row.message), row
                except RepositoryError as error:
                    self.set_aside(row, error)
                except BaseException:
                    self.put_back([row])
                    raise

    def take(self, most: int, max_bytes: int = MAX_TAKEN_BYTES) -> list[TakenMessage]:
        """Remove the first messages and return their rows, in order, without decoding them. One statement.

        They leave the table once the client has them: whatever fails before, they stay.

        :param max_bytes: of all messages together; the first one may be larger
        :raises RepositoryError: for any fault of the database
        """
        validate_number("most", most, 0, MAX_BATCH, whole=True)
        validate_number("max_bytes", max_bytes, 0, MAX_BYTES, whole=True)
        with repository_errors("the messages can't be taken"), self._database.transaction():
            rows = self._search(messages.TAKE, TAKEN_ID, count=most, bytes=max_bytes)
            return sorted(map(TakenMessage._make, rows), key=attrgetter("id"))

    def put_back(self, rows: Iterable[TakenMessage], since: float | None = None) -> None:
        """Put messages that were taken, and not delivered, back to their places. Two statements.

        It may be repeated: a message that is back already stays once. Where another message has the number of one,
        since the database has begun to number from the beginning again, it goes to the end of the queue.

        :param since: when they were taken from the queue of a stored connection, on the clock of time.monotonic():
            nothing is put back where the connection was deleted, or the queue was cleared, since then
        """
        taken = [
            validate_type("each row", row, TakenMessage, f"put back {_TAKEN}")
            for row in validate_type("rows", rows, Iterable)
        ]
        if not taken:
            return
        executor = self._database.executor
        ids = executor.dialect.list_value([str(row.id) for row in taken])

        def put_back() -> None:
            if since is not None:
                age = executor.dialect.seconds_value(since - time.monotonic())
                if not executor.run(messages.IS_STILL_THERE, queue_id=self._queue_id, age=age):
                    return
            self._database.publisher.publish_many(messages.PUT_BACK, [self._queue_id], [row._asdict() for row in taken])
            stored = {row.id: row for row in map(StoredMessage._make, executor.run(messages.OF_IDS, ids=ids))}
            displaced = [row for row in taken if stored.get(row.id, row.identity) != row.identity]
            executor.run_many(messages.PUT_AT_END, [row._asdict() for row in displaced])
            self._note_back(min(row.id for row in taken))

        with repository_errors("the messages can't be put back"):
            self._database.run_in_transaction(put_back)

    def set_aside(self, row: TakenMessage, error: RepositoryError) -> None:
        """Keep a message that was taken and can't be decoded apart, with the reason. One statement, and one log line;
        three, where another one that was set aside has its number, since the database has begun to number from the
        beginning again.

        ``Database.retry_set_aside`` puts it back.
        """
        validate_type("the row", row, TakenMessage, f"set aside {_TAKEN}")
        logger.warning(
            "message %s of queue %s can't be decoded, and was set aside in sse_set_aside_messages: %s",
            row.id,
            self._queue_id,
            error,
        )
        executor, values = self._database.executor, {**row._asdict(), "reason": str(error)}

        def keep() -> None:
            if executor.run(messages.SET_ASIDE, **values):
                return
            stored = map(StoredMessage._make, executor.run(messages.SET_ASIDE_OF_ID, id=row.id))
            if row.identity not in stored:  # otherwise, the reply to an earlier try was lost
                executor.run(messages.SET_ASIDE_RENUMBERED, **{name: values[name] for name in values if name != "id"})

        with repository_errors("the message can't be set aside"):
            self._database.run_in_transaction(keep)

    @contextmanager
    def receive(self, lease: float = 30.0) -> Iterator[Delivery]:
        """A context manager: takes the first message on a lease, and acknowledges it when the block ends.

        Until then no other consumer gets it. When the block raises, it is back in the queue at its old place; when the
        process dies, as soon as the lease has expired, on the clock of the database. A statement each for the lease
        and the acknowledgement. A message that can't be decoded is set aside, and the next one is taken.

        :param lease: how long the block may take, in seconds: more than 0, at most a year
        :raises NoMessagesException: when the queue is empty, or every message is leased or being taken
        :raises RepositoryError: when the lease had expired before the block ended: then the message is not
            acknowledged, and another consumer may have it
        """
        with self._delivered(self._lease(lease), lease) as delivery:
            yield delivery

    def clear(self) -> None:
        """Delete all messages, leased ones too, and those that a stream has fetched. Two statements."""
        statements = messages.NOTE_CLEARED, messages.CLEAR
        run = partial(self._database.executor.run_all, statements, queue_id=self._queue_id)
        with repository_errors("the queue can't be cleared"):
            self._database.run_in_transaction(run)

    def __len__(self) -> int:
        """How many messages wait, without those that are leased. One statement, which counts them."""
        if self.log is not None:
            return self.log.count()
        with repository_errors("the messages can't be counted"):
            ((count,),) = self._database.executor.run(messages.DEPTH, queue_id=self._queue_id)
        return int(count)

    def __bool__(self) -> bool:
        """True: an empty queue is a queue, and the answer costs no statement."""
        return True

    def decoded(self, message_type: str, blob: bytes) -> MessageContract:
        """The message of the two columns in a row of the queue.

        :raises RepositoryError: when it can't be read
        """
        return self._database.message_codec.decode(message_type, blob, self.context, self._database)

    @property
    def context(self) -> str:
        """The context of the signatures of the queue's messages."""
        return messages.CONTEXT + self._queue_id

    def _lease(self, seconds: float) -> tuple[LeasedMessage, MessageContract]:
        """Lease the first message that can be decoded."""
        _check_lease(seconds)
        if self.log is not None:
            raise RepositoryError(
                "messages of a channel with replay_seconds are in its log, which has no leases; take them with pop(), "
                "or make the channel without replay_seconds"
            )
        executor = self._database.executor
        with repository_errors("the message can't be received"):
            lease = executor.dialect.seconds_value(seconds)
            while True:
                leased = LeasedMessage._make(self._first(messages.LEASE, LEASED_ID, lease=lease))
                try:
                    return leased, self.decoded(leased.message_type, leased.message)
                except RepositoryError as error:
                    with self._database.transaction():
                        held = {"id": leased.id, "delivery_count": leased.delivery_count}
                        for row in executor.run(messages.DISCARD, **held):
                            self.set_aside(TakenMessage._make(row), error)

    def _first(self, statement: Statement, id_of: Callable[[Row], int], **parameters: Any) -> Row:
        """The row of the first message, unless the queue is known to be empty."""
        database, watch, known = self._database, self._watch or self.watch, self._empty_version
        # The fastest path of a consumer that asks again and again: is_known_empty, without its calls.
        if known == watch.version and database.watcher.is_trusted and not database.executor.transactions.is_open():
            raise NoMessagesException
        version = watch.arm()
        rows = self._search(statement, id_of, **parameters)
        if rows:
            self._empty_version = None
            return rows[0]
        if not database.in_transaction():
            if known is not None:  # empty twice: the caller asks again and again
                database.background.poller.start()
            self._empty_version = version
        raise NoMessagesException

    def _search(self, statement: Statement, id_of: Callable[[Row], int], **parameters: Any) -> Sequence[Row]:
        """The rows of a statement that takes the first messages."""
        executor = self._database.executor
        if not executor.driver.keeps_deleted_rows:
            return executor.run(statement, queue_id=self._queue_id, **parameters)
        run = partial(executor.run, statement, queue_id=self._queue_id, **parameters)

        def open_writers() -> frozenset[str]:
            return frozenset(name for (name,) in executor.run(messages.OPEN_WRITERS))

        return self.watch.head.search(lambda after: run(after=after), id_of, open_writers)

    def _note_back(self, message_id: int) -> None:
        """Note that a message gets its old place back."""
        self._database.executor.transactions.after_commit(lambda: self.watch.head.forget(message_id))

    @contextmanager
    def _delivered(self, taken: tuple[LeasedMessage, MessageContract], lease: float) -> Iterator[Delivery]:
        leased, message = taken
        held = {"id": leased.id, "delivery_count": leased.delivery_count}
        try:
            yield Delivery(message, leased.delivery_count)
        except BaseException:
            with suppress(RepositoryError), repository_errors("the message can't be released"):
                self._database.publisher.publish(messages.RELEASE, [self._queue_id], **held)  # or the lease expires
                self._note_back(leased.id)
            raise
        with repository_errors("the message can't be acknowledged"):
            if not self._database.executor.run(messages.ACKNOWLEDGE, **held):
                raise RepositoryError(
                    f"the lease of {lease:g} seconds had expired before the message was acknowledged, so that it is "
                    "delivered once more, or it was rolled back with its transaction, or the queue was cleared; if it "
                    "has expired, ask for a longer lease"
                )

    def _row(self, message: MessageContract) -> dict[str, Any]:
        message_type, blob = self._database.message_codec.encode(message, self.context, self._database)
        return {"queue_id": self._queue_id, "message_type": message_type, "message": blob}

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
        """The constructor has done all."""


class BlockingSqlQueue(SqlQueue):
    """A :class:`SqlQueue` that waits for a message, whichever process pushes it.

    A push in any process ends the wait, and so do an interrupt and closing the database. It can't wait inside a
    transaction, which would keep others from pushing.
    """

    def pop(self, timeout: float | None = None) -> MessageContract:
        """Remove the first message and return it, as soon as there is one.

        :param timeout: how long to wait, in seconds; by default without end
        :raises NoMessagesException: when there was none in all that time
        :raises RepositoryError: when the database is closed, or inside a transaction, where there is no message
        """
        return self._awaited(super().pop, timeout)

    @contextmanager
    def receive(self, lease: float = 30.0, timeout: float | None = None) -> Iterator[Delivery]:
        """As :meth:`SqlQueue.receive`, as soon as there is a message.

        :param lease: how long the block may take, in seconds: more than 0, at most a year
        :param timeout: how long to wait for a message, in seconds; by default without end
        """
        with self._delivered(self._awaited(lambda: self._lease(lease), timeout), lease) as delivery:
            yield delivery

    def _awaited(self, take: Callable[[], Taken], timeout: float | None) -> Taken:
        give_up = give_up_time(timeout)
        while True:
            self._database.check_open()
            version = self.watch.arm()
            try:
                return take()
            except NoMessagesException as error:
                if self._database.in_transaction():
                    raise RepositoryError(
                        "the queue is empty, and a blocking queue can't wait inside a transaction; take messages "
                        "outside of it, or use SqlQueue"
                    ) from error
                left = FALLBACK_SECONDS if give_up is None else give_up - time.monotonic()
                if left <= 0:
                    raise
            self._database.background.poller.start()
            self.watch.wait_for_change(version, min(left, FALLBACK_SECONDS))


class SqlConnectionsFactory(ConnectionsFactory):
    """Connects listeners to queues in a database, as the channels of eric-sse 2.1 ask for it.

    :param database: where the messages are
    :param queue_class: of the queues: :class:`SqlQueue`, :class:`BlockingSqlQueue` or a subclass
    """

    def __init__(self, database: Database, queue_class: type[SqlQueue] = SqlQueue) -> None:
        self._database = validate_type("database", database, Database, _DATABASE)
        if not (isinstance(queue_class, type) and issubclass(queue_class, SqlQueue)):
            raise RepositoryError(
                f"queue_class must be SqlQueue, BlockingSqlQueue or a subclass, not {kind_of(queue_class)}"
            ) from TypeError(kind_of(queue_class))
        self._queue_class = queue_class

    @property
    def database(self) -> Database:
        """Where the messages are."""
        return self._database

    def create(self, listener: MessageQueueListener | None = None) -> Connection:
        """A new connection, with an empty queue.

        :param listener: by default a new one
        """
        if listener is None:
            listener = MessageQueueListener()
        validate_type("a listener", listener, MessageQueueListener)
        return make_connection(listener, self._queue_class(self._database), new_id())


def is_pushed_by_statement(queue: Queue) -> bool:
    """Whether a message may be added to a queue by a statement, without its ``push``."""
    return isinstance(queue, SqlQueue) and type(queue).push is SqlQueue.push


def broadcast(message: MessageContract, queues: Iterable[Queue]) -> None:
    """Add a message at the end of many queues: one statement for all that are in one database.

    The database gets the message once, unless blobs are signed, each for its queue.

    :raises RepositoryError: when the message can't be stored; no queue of that database has it then
    """
    by_database: dict[Database, list[SqlQueue]] = {}
    for queue in queues:
        if isinstance(queue, SqlQueue) and is_pushed_by_statement(queue):
            by_database.setdefault(queue.database, []).append(queue)
        else:
            queue.push(message)
    for database, group in by_database.items():
        _push_to_all(database, group, message)


def _push_to_all(database: Database, queues: Sequence[SqlQueue], message: MessageContract) -> None:
    codec, ids = database.message_codec, [queue.id for queue in queues]
    serialized = codec.serialize(message, database)
    kind = serialized.message_type
    with repository_errors("the message can't be broadcast"):
        if codec.signs:
            rows = [
                {"queue_id": queue.id, "message_type": kind, "message": codec.sign(serialized, queue.context)}
                for queue in queues
            ]
            with database.transaction():
                database.publisher.publish_many(messages.PUSH_MANY, ids, rows)
        else:
            blob = codec.sign(serialized, queues[0].context)
            queue_ids = database.executor.dialect.list_value(ids)
            database.publisher.publish(messages.PUSH_TO_ALL, ids, queue_ids=queue_ids, message_type=kind, message=blob)


def _check_lease(seconds: float) -> None:
    allowed = f"longer than 0 seconds and at most a year ({MAX_LEASE_SECONDS:,} seconds)"
    validate_number("a lease", seconds, math.ulp(0.0), MAX_LEASE_SECONDS, allowed=allowed)


def give_up_time(timeout: float | None) -> float | None:
    """When a wait ends, on the clock of time.monotonic(); None for never."""
    if timeout is None:
        return None
    validate_number("a timeout", timeout, -math.inf, math.inf, allowed="a number of seconds, not NaN")
    return time.monotonic() + max(timeout, 0) if timeout <= YEAR_SECONDS else None
