"""``Publisher``: runs the statements that add messages, and wakes what waits for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution.executor import Executor
from eric_sse_sql.execution.statement import NotifyingStatement
from eric_sse_sql.sql import messages
from eric_sse_sql.wakeups.notifier import NotifyThrottle
from eric_sse_sql.wakeups.watcher import QueueWatcher


class Publisher:
    """Adds messages, and tells the waiters of this process and, on Postgres, the other processes. Threads may share it.

    :param executor: runs the statements
    :param watcher: has the waiters of this process
    :param channel: the Postgres channel of the notifications; None for none
    """

    def __init__(self, executor: Executor, watcher: QueueWatcher, channel: str | None) -> None:
        self._executor = executor
        self._watcher = watcher
        self._channel = channel
        if channel is not None:
            executor.compile(messages.NOTIFY)  # so that the last notification needs no compiler at interpreter exit
        self.throttle = NotifyThrottle(self._notify)

    def publish(self, statement: NotifyingStatement, queue_ids: Iterable[str], /, **parameters: Any) -> None:
        """Run a statement that adds messages: in the open transaction, or in one of its own.

        :param queue_ids: of the queues that get messages
        """
        executor = self._executor
        in_transaction = executor.transactions.is_open()
        if self._channel is None:
            executor.run(statement.plain, **parameters)
        elif in_transaction or self.throttle.take_leading_edge():  # Postgres sends one notification a transaction
            executor.run(statement.notifying, notify_channel=self._channel, **parameters)
        else:
            executor.run(statement.plain, **parameters)
            self.throttle.notify_at_trailing_edge()
        if in_transaction:
            self._bump_after_commit(queue_ids)
        else:
            self._watcher.bump(queue_ids)

    def publish_many(
        self, statement: NotifyingStatement, queue_ids: Iterable[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Run a statement that inserts messages, in the open transaction: one call of the driver.

        :param queue_ids: of the queues that get messages
        """
        if self._channel is None:
            self._executor.run_many(statement.plain, rows)
        else:
            self._executor.run_many(statement.notifying, rows, notify_channel=self._channel)
        self._bump_after_commit(queue_ids)

    def close(self) -> None:
        """Send the notification that is due."""
        self.throttle.close()

    def _bump_after_commit(self, queue_ids: Iterable[str]) -> None:
        self._executor.transactions.after_commit(lambda: self._watcher.bump(queue_ids))

    def _notify(self) -> None:
        with repository_errors("no notification can be sent"):
            self._executor.run(messages.NOTIFY, notify_channel=self._channel)
