"""``Feeder``: takes messages for all queues whose streams wait, by one statement."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Protocol

from eric_sse.exception import RepositoryError

from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution import fork
from eric_sse_sql.execution.statement import Row
from eric_sse_sql.queues import MAX_TAKEN_BYTES
from eric_sse_sql.sql import messages
from eric_sse_sql.sql.messages import StoredMessage, TakenMessage
from eric_sse_sql.streams.idle import Waiter, end

BATCH = 100  # messages of a queue that are taken at once, at most
QUEUES = 1000  # queues of one statement, at most
SETTLE_SECONDS = 10.0  # for which a take in doubt is looked up while no stream asks for messages
SETTLE_PAUSE = 0.1  # seconds between two look-ups

logger = logging.getLogger("eric_sse_sql")


class Receiver(Protocol):
    """A stream that waits for messages of its queue."""

    def prepare(self) -> None:
        """Called before the statement, in a thread: a message that comes later asks for another one."""

    @property
    def queue_id(self) -> str:
        """The id of the queue."""

    def receive(self, rows: list[TakenMessage], *, is_more: bool) -> bool:
        """Take over messages that were removed from the queue, in order. False, where the stream has ended. Called in a
        thread.

        :param is_more: whether the queue may have more of them
        """

    def refuse(self, rows: list[TakenMessage], taken_at: float) -> None:
        """Return messages that were not taken over to the queue.

        :param taken_at: when they were taken, on the clock of time.monotonic()
        """

    def close(self) -> bool:
        """Receive nothing more. Whether :meth:`put_back` is to be called."""

    def put_back(self) -> None:
        """Return what was received and not delivered to the queue."""


class _Take(NamedTuple):
    """Messages that were taken by one statement, for their streams."""

    of_receivers: list[tuple[Receiver, list[TakenMessage]]]
    taken_at: float  # on the clock of time.monotonic()
    transaction_id: int | None  # None on SQLite

    @property
    def rows(self) -> list[TakenMessage]:
        """All messages."""
        return [row for _, rows in self.of_receivers for row in rows]


class Feeder:
    """Takes messages for the streams of a database in this process. Threads and event loops may share it.

    A statement takes at most a hundred messages of each queue, of 8 MiB together, and the first of each queue first.
    It is committed once this process has the rows: whatever fails before, the messages stay in their queues. Where the
    reply to COMMIT is lost, the take is in doubt: its messages are kept, and delivered as soon as they are found to
    have left the table. Until then, their queues are not asked for later ones. Where the take was rolled back and other
    consumers have emptied its queues before it is looked up, its messages are theirs alone. That can't be told on
    SQLite, nor after a failover: there, such messages are delivered twice.

    :param database: where the queues are
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.after_fork_in_child()
        fork.register(self)
        database.on_close.append(self.close)

    _lock: threading.Lock
    _waiting: dict[Receiver, Waiter]
    _receivers: set[Receiver]  # those that have asked for messages, until they end
    _returning: set[Receiver]  # those that have ended, and return messages to their queues
    _in_doubt: list[_Take]  # the thread that runs has it alone
    _is_running: bool

    def request(self, receiver: Receiver, waiter: Waiter) -> None:
        """Give a stream the messages that wait in its queue, and end its wait then: with an error, where they can't be
        taken. From any thread.

        :param waiter: of the stream
        """
        with self._lock:
            self._receivers.add(receiver)
            self._waiting[receiver] = waiter
        self._start()

    def forget(self, receiver: Receiver, *, is_returning: bool) -> None:
        """A stream has ended.

        :param is_returning: whether it returns messages: nothing is taken from its queue until :meth:`note_returned`
        """
        with self._lock:
            self._receivers.discard(receiver)
            if is_returning:
                self._returning.add(receiver)

    def note_returned(self, receiver: Receiver) -> None:
        """The messages of a stream that has ended are back in their places, or lost."""
        with self._lock:
            self._returning.discard(receiver)
        self._start()

    def close(self) -> None:
        """Return what was fetched for streams that are open to its queues."""
        with self._lock:
            receivers = list(self._receivers)
        for receiver in receivers:
            if receiver.close():
                with suppress(RepositoryError):  # which was logged
                    receiver.put_back()

    def before_fork(self) -> None:
        """The lock is replaced in the child."""

    def after_fork_in_parent(self) -> None:
        """The parent's streams go on."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's streams, which have what was fetched for them."""
        self._lock = threading.Lock()
        self._waiting = {}
        self._receivers = set()
        self._returning = set()
        self._in_doubt = []
        self._is_running = False

    def _start(self) -> None:
        """Take messages in a thread, if streams wait and no thread does yet."""
        with self._lock:
            if not self._waiting or self._is_running:
                return
            self._is_running = True
        self._database.background.stream_threads.submit(self._run)

    def _next_batch(self) -> dict[Receiver, Waiter]:
        """The streams to take messages for. Those of a queue that gets messages back wait, or they would get later
        messages first."""
        returning = {receiver.queue_id for receiver in self._returning}
        ready = (each for each in self._waiting.items() if each[0].queue_id not in returning)
        batch = dict(islice(ready, QUEUES))
        for receiver in batch:
            del self._waiting[receiver]
        return batch

    def _run(self) -> None:
        give_up = time.monotonic() + SETTLE_SECONDS
        while True:
            with self._lock:
                batch = self._next_batch()
                if not batch and (not self._in_doubt or time.monotonic() > give_up):
                    self._is_running = False
                    lost = sum(len(take.rows) for take in self._in_doubt)
                    break
            error = self._settle()
            if batch:
                self._serve(batch, error)
                give_up = time.monotonic() + SETTLE_SECONDS
            elif error is not None:
                time.sleep(SETTLE_PAUSE)
        if lost:
            logger.error("%d messages were fetched for streams that have ended, and can't be looked up", lost)

    def _serve(self, batch: dict[Receiver, Waiter], error: RepositoryError | None) -> None:
        """Take messages for some streams, and end their waits.

        :param error: why it is not known which takes in doubt were committed
        """
        in_doubt = {row.queue_id for take in self._in_doubt for row in take.rows}
        _fail({receiver: waiter for receiver, waiter in batch.items() if receiver.queue_id in in_doubt}, error)
        served = {receiver: waiter for receiver, waiter in batch.items() if receiver.queue_id not in in_doubt}
        if not served:
            return
        for receiver in served:
            receiver.prepare()
        taken_at, found = time.monotonic(), list[Row]()
        failure: BaseException | None = None
        is_more = True
        try:
            is_more = self._take({receiver.queue_id for receiver in served}, found)
        except BaseException as raised:
            failure = raised
        by_queue, transaction_id = _by_queue(found)
        # Of several streams of a queue, one gets its messages.
        take = _Take([(receiver, by_queue.pop(receiver.queue_id, [])) for receiver in served], taken_at, transaction_id)
        if failure is None:
            ended = _hand_over(take, is_more)
            end(served.values())
            _refuse(ended, taken_at)
            return
        if take.rows:
            self._in_doubt.append(take)
            self._settle()
        _fail(served, failure)

    def _settle(self) -> RepositoryError | None:
        """Deliver the messages of takes in doubt that were committed, and forget those of the others, which are in
        their queues still. The error where that can't be told yet."""
        while self._in_doubt:
            take = self._in_doubt[0]
            try:
                is_committed = self._is_committed(take)
            except RepositoryError as error:
                return error
            del self._in_doubt[0]
            if is_committed:
                _refuse(_hand_over(take, is_more=True), take.taken_at)
        return None

    def _is_committed(self, take: _Take) -> bool:
        """Whether a take was committed: none of its messages is in the table any more, and its transaction was not
        rolled back.

        :raises RepositoryError: while its transaction has not ended, and for any fault of the database
        """
        executor = self._database.executor
        ids = executor.dialect.list_value([str(row.id) for row in take.rows])
        with repository_errors("the messages that were taken can't be looked up"):
            stored = set(map(StoredMessage._make, executor.run(messages.LOCKED_OF_IDS, ids=ids)))
            if not stored.isdisjoint(row.identity for row in take.rows):
                return False
            ((was_rolled_back,),) = executor.run(messages.WAS_ROLLED_BACK, transaction_id=take.transaction_id)
        return not was_rolled_back

    def _take(self, queue_ids: set[str], found: list[Row]) -> bool:
        """Take messages. Whether queues may have more than fit into a batch.

        :param found: gets the rows of ``TAKE_OF_EACH`` before they are committed
        """
        executor = self._database.executor
        with repository_errors("the messages can't be taken"), executor.transactions.transaction():
            found.extend(
                executor.run(
                    messages.TAKE_OF_EACH,
                    queue_ids=executor.dialect.list_value(sorted(queue_ids)),
                    count=BATCH,
                    bytes=MAX_TAKEN_BYTES,
                )
            )
        return sum(len(row.message) for row in map(_message, found)) >= MAX_TAKEN_BYTES


def _message(row: Row) -> TakenMessage:
    return TakenMessage._make(row[: len(TakenMessage._fields)])


def _by_queue(found: Sequence[Row]) -> tuple[dict[str, list[TakenMessage]], int | None]:
    """The messages of each queue, in order, and the id of the transaction that has taken them."""
    by_queue: dict[str, list[TakenMessage]] = {}
    for row in sorted(map(_message, found), key=attrgetter("id")):
        by_queue.setdefault(row.queue_id, []).append(row)
    return by_queue, found[0][len(TakenMessage._fields)] if found else None


def _hand_over(take: _Take, is_more: bool) -> list[tuple[Receiver, list[TakenMessage]]]:
    """Give the messages of a take to its streams. Those of streams that have ended.

    :param is_more: whether all queues may have more of them
    """
    return [
        (receiver, rows)
        for receiver, rows in take.of_receivers
        if not receiver.receive(rows, is_more=is_more or len(rows) == BATCH)
    ]


def _fail(waiting: Mapping[Receiver, Waiter], error: BaseException | None) -> None:
    """End the waits of streams, which may ask again."""
    for receiver in waiting:
        receiver.receive([], is_more=True)
    end(waiting.values(), error)


def _refuse(ended: list[tuple[Receiver, list[TakenMessage]]], taken_at: float) -> None:
    """Return the messages of streams that have ended, before later messages of the same queues are taken."""
    for receiver, rows in ended:
        with suppress(RepositoryError):  # which was logged
            receiver.refuse(rows, taken_at)


def feeder_of(database: Database) -> Feeder:
    """The feeder of a database."""
    feeder: Feeder | None = database.loop_state.get(Feeder)
    return database.loop_state.setdefault(Feeder, Feeder(database)) if feeder is None else feeder
