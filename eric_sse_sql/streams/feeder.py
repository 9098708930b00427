"""``Feeder``: takes messages for all queues whose streams wait, by one statement."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from typing import Protocol

from eric_sse.exception import RepositoryError

from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution import fork
from eric_sse_sql.queues import MAX_TAKEN_BYTES
from eric_sse_sql.sql import messages
from eric_sse_sql.sql.messages import TakenMessage
from eric_sse_sql.streams.idle import Waiter, end

BATCH = 100  # messages of a queue that are taken at once, at most
QUEUES = 1000  # queues of one statement, at most


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


class Feeder:
    """Takes messages for the streams of a database in this process. Threads and event loops may share it.

    A statement takes at most a hundred messages of each queue, of 8 MiB together, and the first of each queue first.
    It is committed once this process has the rows: whatever fails before, the messages stay in their queues.

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
    _is_running: bool

    def request(self, receiver: Receiver, waiter: Waiter) -> None:
        """Give a stream the messages that wait in its queue, and end its wait then: with an error, where they can't be
        taken. From any thread.

        :param waiter: of the stream
        """
        with self._lock:
            self._receivers.add(receiver)
            self._waiting[receiver] = waiter
            is_first, self._is_running = not self._is_running, True
        if is_first:
            self._database.background.stream_threads.submit(self._run)

    def forget(self, receiver: Receiver) -> None:
        """A stream has ended."""
        with self._lock:
            self._receivers.discard(receiver)

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
        self._is_running = False

    def _run(self) -> None:
        while True:
            with self._lock:
                batch = dict(islice(self._waiting.items(), QUEUES))
                for receiver in batch:
                    del self._waiting[receiver]
                if not batch:
                    self._is_running = False
                    return
            for receiver in batch:
                receiver.prepare()
            taken_at = time.monotonic()
            by_queue: dict[str, list[TakenMessage]] = {}
            refused: list[tuple[Receiver, list[TakenMessage]]] = []
            try:
                is_more = self._take({receiver.queue_id for receiver in batch}, by_queue)
            except BaseException as error:
                # The transaction may be committed, and only the reply lost. What is in its queue still stays once.
                refused.extend((receiver, by_queue.pop(receiver.queue_id, [])) for receiver in batch)
                for receiver in batch:
                    receiver.receive([], is_more=True)
                end(batch.values(), error)
            else:
                for receiver in batch:
                    rows = by_queue.pop(receiver.queue_id, [])  # of several streams of a queue, one gets them
                    if not receiver.receive(rows, is_more=is_more or len(rows) == BATCH):
                        refused.append((receiver, rows))
                end(batch.values())
            for receiver, rows in refused:  # before the next batch, which would get later messages of the same queues
                with suppress(RepositoryError):  # which was logged
                    receiver.refuse(rows, taken_at)

    def _take(self, queue_ids: set[str], by_queue: dict[str, list[TakenMessage]]) -> bool:
        """Take messages, by their queue. Whether queues may have more than fit into a batch."""
        executor = self._database.executor
        with repository_errors("the messages can't be taken"), executor.transactions.transaction():
            found = executor.run(
                messages.TAKE_OF_EACH,
                queue_ids=executor.dialect.list_value(sorted(queue_ids)),
                count=BATCH,
                bytes=MAX_TAKEN_BYTES,
            )
            rows = sorted(map(TakenMessage._make, found), key=attrgetter("id"))
            for row in rows:
                by_queue.setdefault(row.queue_id, []).append(row)
        return sum(len(row.message) for row in rows) >= MAX_TAKEN_BYTES


def feeder_of(database: Database) -> Feeder:
    """The feeder of a database."""
    feeder: Feeder | None = database.loop_state.get(Feeder)
    return database.loop_state.setdefault(Feeder, Feeder(database)) if feeder is None else feeder
