"""``QueueWatcher``: wakes what waits for the messages of a queue, whichever process has pushed them.

A push of the same process bumps the queue's watch at once. The pushes of other processes are noticed by polls: a query
that asks which of the watched queues have messages, and one that asks how far the watched logs go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar
from weakref import WeakValueDictionary

from eric_sse_sql.execution.executor import Executor
from eric_sse_sql.sql import events, messages
from eric_sse_sql.wakeups.expiry import expire
from eric_sse_sql.wakeups.presence import Presence
from eric_sse_sql.wakeups.queue_watch import ChannelWatch, QueueWatch
from eric_sse_sql.wakeups.topics import ALL, ANY_CHANNEL, Topics, channel_topic, listener_topic, queue_topic

#: How long a queue that was found empty is taken to be empty without another query, in seconds.
FALLBACK_SECONDS = 2.0
WATCHED_PAGE = 5000  # queues or channels that one query asks for

Watch = TypeVar("Watch", bound=QueueWatch)


class QueueWatcher:
    """The watches of a database's queues and logs in this process. Threads may share it.

    :param executor: runs the queries
    """

    trusted_until: float  # on the clock of time.monotonic()

    def __init__(self, executor: Executor) -> None:
        self.presence = Presence(executor)
        self._executor = executor
        self._watches: WeakValueDictionary[str, QueueWatch] = WeakValueDictionary()
        self._unplaced: WeakValueDictionary[str, QueueWatch] = WeakValueDictionary()  # no channel of theirs is known
        self._channels: WeakValueDictionary[str, ChannelWatch] = WeakValueDictionary()
        self._reset()

    @property
    def is_closed(self) -> bool:
        """Whether its database is closed: a poll that runs may fail then."""
        return self._executor.is_closed

    @property
    def is_trusted(self) -> bool:
        """Whether the watch of a queue that gets a message is bumped in time, without a query of the waiter."""
        return time.monotonic() < self.trusted_until

    def has_polled_since(self, began: float) -> bool:
        """Whether a poll for everything that was begun after a time has succeeded.

        :param began: on the clock of time.monotonic()
        """
        return self.trusted_until - FALLBACK_SECONDS > began

    def watch(self, queue_id: str) -> QueueWatch:
        """The watch of a queue: the same object for all callers."""
        watch = self._watches.get(queue_id)
        if watch is None:
            topics = frozenset({queue_topic(self._executor.schema, queue_id), ANY_CHANNEL})
            with self._lock:
                watch = self._watches.setdefault(queue_id, QueueWatch(queue_id, topics))
                self._unplaced[queue_id] = watch
        return watch

    def place(self, watch: QueueWatch, channel_id: str, listener_id: str) -> None:
        """Note which channel's broadcasts, and which dispatches, reach the queue of a watch."""
        channel, schema = self.watch_channel(channel_id), self._executor.schema
        with self._lock:
            if channel not in watch.channels:
                watch.channels = (*watch.channels, channel)
            channel.queues[watch.queue_id] = watch
            self._unplaced.pop(watch.queue_id, None)
            reached = {channel_topic(schema, channel_id), listener_topic(schema, channel_id, listener_id)}
            watch.topics = (watch.topics - {ANY_CHANNEL}) | reached

    def watch_channel(self, channel_id: str) -> ChannelWatch:
        """The watch of a channel: the same object for all callers."""
        watch = self._channels.get(channel_id)
        if watch is None:
            schema = self._executor.schema
            topics = frozenset({channel_topic(schema, channel_id)})
            with self._lock:
                watch = self._channels.setdefault(channel_id, ChannelWatch(channel_id, topics))
        return watch

    def bump(self, queue_ids: Iterable[str]) -> None:
        """Bump the watches of queues that got messages."""
        if self._watches:
            for queue_id in queue_ids:
                watch = self._watches.get(queue_id)
                if watch is not None:
                    watch.bump()

    def bump_channel(self, channel_id: str) -> None:
        """Bump the watch of a channel, and those of all queues that its broadcasts may reach."""
        channel = self._channels.get(channel_id)
        if channel is not None:
            channel.bump()
            for watch in _living(channel.queues):
                watch.bump()
        for watch in _living(self._unplaced):
            watch.bump()

    def poll(self, topics: Topics = ALL) -> float:
        """Ask for the watched queues and logs that a signal is about, and bump the watches of those that have news.

        :returns: how many seconds that took, without what is done once a second for the open streams
        :raises SQLAlchemyError: or the driver's error, when the database can't be queried
        """
        began = time.monotonic()
        if queues := _concerned(self._watches, topics):
            self._bump_with_messages(queues)
        if logs := _concerned(self._channels, topics):
            self._bump_with_events(logs, expires=topics is ALL)
        seconds = time.monotonic() - began
        if topics is ALL:
            self.presence.check()
            self.trusted_until = began + FALLBACK_SECONDS
        return seconds

    def forget_heads(self) -> None:
        """Search from the beginning of all queues again."""
        for watch in _living(self._watches):
            watch.head.forget()

    def close(self) -> None:
        """Bump all watches, so that each waiter finds the database closed."""
        self.trusted_until = 0.0
        for watch in (*_living(self._watches), *_living(self._channels)):
            watch.bump()

    def before_fork(self) -> None:
        """The locks are replaced in the child."""

    def after_fork_in_parent(self) -> None:
        """The parent's waiters go on."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's waiters."""
        self.presence.after_fork_in_child()
        self._reset()
        for watch in (*_living(self._watches), *_living(self._channels)):
            watch.after_fork_in_child()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self.trusted_until = 0.0

    def _bump_with_messages(self, watches: Collection[QueueWatch]) -> None:
        by_id = {watch.queue_id: watch for watch in watches}
        for page in _pages(list(by_id)):
            queue_ids = self._executor.dialect.list_value(page)
            for (queue_id,) in self._executor.run(messages.WITH_MESSAGES, queue_ids=queue_ids):
                by_id[queue_id].bump()

    def _bump_with_events(self, logs: Collection[QueueWatch], *, expires: bool) -> None:
        by_id = {watch.queue_id: watch for watch in logs}
        for page in _pages(list(by_id)):
            channel_ids = self._executor.dialect.list_value(page)
            rows = self._executor.run(events.LAST_POSITIONS, channel_ids=channel_ids)
            for channel_id, last, token, has_expired in rows:
                if (last, token) != by_id[channel_id].mark:
                    by_id[channel_id].bump()
                if has_expired and expires:
                    expire(self._executor, channel_id)


def _concerned(watches: WeakValueDictionary[str, Watch], topics: Topics) -> list[Watch]:
    """The armed watches that a signal is about."""
    armed = (watch for watch in _living(watches) if watch.is_armed)
    return list(armed) if topics >= ALL else [watch for watch in armed if not topics.isdisjoint(watch.topics)]


def _living(watches: WeakValueDictionary[str, Watch]) -> list[Watch]:
    """All watches in use. The references are copied in one step, since threads add watches meanwhile."""
    return [watch for reference in watches.valuerefs() if (watch := reference()) is not None]


def _pages(ids: list[str]) -> Iterator[list[str]]:
    return (ids[at : at + WATCHED_PAGE] for at in range(0, len(ids), WATCHED_PAGE))
