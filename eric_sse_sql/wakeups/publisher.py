"""``Publisher``: runs the statements that add messages, and wakes what waits for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution.executor import Executor
from eric_sse_sql.execution.statement import NotifyingStatement, Row, Statement
from eric_sse_sql.sql import messages
from eric_sse_sql.wakeups.notifier import NOTIFY_CHANNEL, NotifyThrottle
from eric_sse_sql.wakeups.topics import ALL, MAX_TOPICS, channel_topic, listener_topic, payload_of, queue_topic
from eric_sse_sql.wakeups.watcher import QueueWatcher

Result = TypeVar("Result")


class Publisher:
    """Adds messages, and tells the waiters of this process and, on Postgres, the other processes. Threads may share it.

    :param executor: runs the statements
    :param watcher: has the waiters of this process
    :param throttle: decides which pushes notify other processes by themselves; None where none does
    """

    def __init__(self, executor: Executor, watcher: QueueWatcher, throttle: NotifyThrottle | None) -> None:
        self._executor = executor
        self._watcher = watcher
        self._throttle = throttle
        if throttle is not None:
            executor.compile(messages.NOTIFY)  # so that the last notification needs no compiler at interpreter exit

    def publish(self, statement: NotifyingStatement, queue_ids: Collection[str], /, **parameters: Any) -> Sequence[Row]:
        """Run a statement that adds messages: in the open transaction, or in one of its own. All its rows.

        :param queue_ids: of the queues that get messages
        """
        rows = self._run(statement, lambda: self._topics_of(queue_ids), parameters)
        if self._executor.transactions.is_open():
            self._bump_after_commit(queue_ids)
        else:
            self._watcher.bump(queue_ids)
        return rows

    def publish_to_channel(self, statement: NotifyingStatement, channel_id: str, /, **parameters: Any) -> Sequence[Row]:
        """Run a statement that adds messages to queues of a channel, whose ids are not known here. All its rows."""
        rows = self._run(statement, lambda: (channel_topic(self._executor.schema, channel_id),), parameters)
        self._executor.transactions.after_commit(lambda: self._watcher.bump_channel(channel_id))
        return rows

    def publish_to_listener(
        self, statement: NotifyingStatement, channel_id: str, listener_id: str, /, **parameters: Any
    ) -> Sequence[Row]:
        """Run a statement that adds a message to the queue of a listener of a channel: a row with the queue's id, or
        none."""

        def topics() -> Collection[str]:
            return (listener_topic(self._executor.schema, channel_id, listener_id),)

        rows = self._run(statement, topics, {"channel_id": channel_id, "listener_id": listener_id, **parameters})
        self._bump_after_commit([queue_id for queue_id, *_ in rows])
        return rows

    def publish_many(
        self, statement: NotifyingStatement, queue_ids: Collection[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Run a statement that inserts messages, in the open transaction: one call of the driver.

        :param queue_ids: of the queues that get messages
        """

        def run(chosen: Statement, notification: Mapping[str, str]) -> None:
            self._executor.run_many(chosen, rows, **notification)

        self._notifying(statement, lambda: self._topics_of(queue_ids), run)
        self._bump_after_commit(queue_ids)

    def close(self) -> None:
        """Send the notification that is due, and no more."""
        throttle, self._throttle = self._throttle, None
        if throttle is not None:
            throttle.flush(self._notify)

    def _run(
        self, statement: NotifyingStatement, topics: Callable[[], Collection[str]], parameters: Mapping[str, Any]
    ) -> Sequence[Row]:
        executor = self._executor
        if self._throttle is None:
            return executor.run(statement.plain, **parameters)
        return self._notifying(
            statement, topics, lambda chosen, notification: executor.run(chosen, **parameters, **notification)
        )

    def _notifying(
        self,
        statement: NotifyingStatement,
        topics: Callable[[], Collection[str]],
        run: Callable[[Statement, Mapping[str, str]], Result],
    ) -> Result:
        """Run a statement, with a notification at once or at the end of the window."""
        throttle, transactions = self._throttle, self._executor.transactions
        if throttle is None:
            return run(statement.plain, {})
        is_joined = transactions.is_joined()
        # Postgres does not prepare a transaction that has notified: those that wait ask once a second.
        if is_joined and transactions.is_two_phase():
            return run(statement.plain, {})
        # The end of a transaction of the application is not seen here, so that each statement in it notifies.
        if is_joined or throttle.take_leading_edge():
            return run(statement.notifying, {"notify_channel": NOTIFY_CHANNEL, "notify_topics": payload_of(topics())})
        result = run(statement.plain, {})
        transactions.after_commit(lambda: throttle.notify_at_trailing_edge(topics(), self._notify))
        return result

    def _topics_of(self, queue_ids: Collection[str]) -> Collection[str]:
        if len(queue_ids) > MAX_TOPICS:
            return ALL
        return {queue_topic(self._executor.schema, queue_id) for queue_id in queue_ids}

    def _bump_after_commit(self, queue_ids: Iterable[str]) -> None:
        self._executor.transactions.after_commit(lambda: self._watcher.bump(queue_ids))

    def _notify(self, topics: Collection[str]) -> None:
        with repository_errors("no notification can be sent"):
            self._executor.run(messages.NOTIFY, notify_channel=NOTIFY_CHANNEL, notify_topics=payload_of(topics))
