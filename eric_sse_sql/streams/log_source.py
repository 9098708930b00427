"""``LogSource``: what a stream delivers of the log of its channel, and the same without an event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from eric_sse.exception import InvalidListenerException, NoMessagesException, RepositoryError
from eric_sse.message import Message, MessageContract

from eric_sse_sql.errors import repository_errors
from eric_sse_sql.message_codec import Serialized
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.sql import events
from eric_sse_sql.sql.connections import LogPlace
from eric_sse_sql.sql.events import Event, LogState
from eric_sse_sql.streams.event_log import (
    GAP,
    MAX_POSITION,
    RESET,
    EventLog,
    LogWaiter,
    SeenEvent,
    context_of,
    starting_position,
)
from eric_sse_sql.streams.feeder import BATCH
from eric_sse_sql.streams.frames import frame, message_frame
from eric_sse_sql.streams.source import in_thread
from eric_sse_sql.wakeups.presence import OpenStream
from eric_sse_sql.wakeups.queue_watch import QueueWatch

PLACE_SECONDS = 10.0  # for which a stream trusts what was looked up of its connection

logger = logging.getLogger("eric_sse_sql")


class Reset(NamedTuple):
    """A gap that is to be reported, as an item of a stream."""

    event_id: str | None  # of all that the client has now; None where events follow that have ids


class LogCursor:
    """Where a connection stands in the log of its channel.

    :param log: of the channel
    :param listener_id: of the connection
    :param queue: of the connection; messages that were pushed into it directly are moved into the log
    :param connection_id: where the connection is stored; None for one that only its channel object knows
    """

    def __init__(self, log: EventLog, listener_id: str, queue: SqlQueue, connection_id: str | None) -> None:
        self.log = log
        self.listener_id = listener_id
        self.queue = queue
        self.connection_id = connection_id
        self.start: int | None = None  # of a connection that is not stored: the last position when it was made
        self.position: int | None = None  # of such a connection
        self.epoch: str | None = None  # of the log, for such a connection
        self._place: tuple[float, LogPlace] | None = None  # when it was looked up, on the clock of time.monotonic()
        self._lock = threading.Lock()

    def note_place(self, place: LogPlace) -> None:
        """Note what was looked up of a stored connection."""
        self._place = time.monotonic(), place

    def take_place(self) -> LogPlace | None:
        """What was looked up a moment ago; None for every stream but the first one."""
        noted, self._place = self._place, None
        return noted[1] if noted is not None and time.monotonic() < noted[0] + PLACE_SECONDS else None

    def begin_before(self, position: int) -> None:
        """Let a connection that is not stored begin before an event that its channel object has appended."""
        with self._lock:  # of two events, the later one may come first
            self.start = position - 1 if self.start is None else min(self.start, position - 1)

    @property
    def watch(self) -> QueueWatch:
        """What this process knows of the log."""
        return self.log.watch

    def push(self, message: MessageContract) -> None:
        """Append an event for the listener alone. One statement."""
        with repository_errors("the event can't be appended"):
            appended = append(self.log, self.listener_id, message, is_known=True)
        if appended is not None and self.connection_id is None:
            self.begin_before(appended.position)

    def count(self) -> int:
        """How many events wait. Two statements."""
        state = self._state()
        with repository_errors("the messages can't be counted"):
            ((count,),) = self.log.database.executor.run(
                events.COUNT,
                channel_id=self.log.channel_id,
                listener_id=self.listener_id,
                after=self._position(state),
                queue_id=self.queue.id,
            )
        return int(count)

    def decoded(self, event: Event) -> MessageContract:
        """The message of an event.

        :raises RepositoryError: when it can't be decoded
        """
        database = self.log.database
        codec, context = database.message_codec, self.log.context(event)
        try:
            return codec.decode(event.message_type, event.message, context, database)
        except RepositoryError:
            if event.listener_id is None or not codec.signs:
                raise
            return self.queue.decoded(event.message_type, event.message)  # signed for the queue, before there was a log

    def frame(self, event: Event) -> bytes:
        """The server-sent event of an event, as bytes. What is stored as JSON stays as it is.

        :raises RepositoryError: when it can't be decoded
        """
        codec, event_id = self.log.database.message_codec, self.log.event_id(event)
        with suppress(RepositoryError):  # which decoding raises, too, unless it finds another signature
            data = codec.json_of(event.message_type, event.message, self.log.context(event))
            if data is not None:
                return frame(event.message_type, data, event_id)
        return message_frame(self.decoded(event), event_id)

    def pop_returnable(self) -> tuple[MessageContract, Callable[[], None]]:
        """Deliver the next event, to one of all callers. An event that can't be decoded is passed over.

        :returns: its message, and what makes it the next event again: those that were delivered after it, too
        :raises NoMessagesException: when there is none
        """
        executor, log, presence = self.log.database.executor, self.log, self.log.database.watcher.presence
        if self.connection_id is not None and presence.ended_at(self.connection_id):
            presence.write_positions()
        while True:
            state = self._state()
            if self.connection_id is not None and state.connection_id is None:
                raise NoMessagesException  # the connection was deleted
            if state.has_messages:
                move_messages(self)
            before = self._position(state)
            event = log.next_event(min(before, state.last_position or 0), self.listener_id)
            if event is None:
                raise NoMessagesException
            if self.connection_id is None:
                self.position = event.position
            else:
                with repository_errors("the event can't be delivered"):
                    if not executor.run(
                        events.ADVANCE, connection_id=self.connection_id, before=before, after=event.position
                    ):
                        continue  # another consumer was first
            try:
                return self.decoded(event), partial(self._rewind, before)
            except RepositoryError as error:
                _log_unreadable(log, event, error)

    def _rewind(self, position: int) -> None:
        """Move back to a position."""
        if self.connection_id is None:
            self.position = min(self.position or 0, position)
            return
        executor = self.log.database.executor
        with repository_errors("the event can't be put back"):
            while (now := self._position(self._state())) > position and not executor.run(
                events.ADVANCE, connection_id=self.connection_id, before=now, after=position
            ):
                continue  # another consumer has moved it meanwhile
        self.log.watch.bump()

    def _state(self) -> LogState:
        state = self.log.state(self.listener_id, None)
        return self.located(state) if self.connection_id is None else state

    @staticmethod
    def _position(state: LogState) -> int:
        """The position up to which the events are delivered."""
        return (state.start_position or 0) if state.position is None else state.position

    def located(self, state: LogState) -> LogState:
        """The state of the log with what is known here of a connection that is not stored."""
        last = state.last_position or 0
        with self._lock:
            if self.epoch not in (None, state.epoch):  # another log: all of it is newer than the connection
                self.start, self.position = 0, None
            self.epoch = state.epoch
            self.start = last if self.start is None else min(self.start, last)
        return state._replace(start_position=self.start, position=self.position)


class LogSource:
    """What a stream delivers: the events of its listener, from the position of its client on.

    :param cursor: of the stream's connection
    :param opened: where it is noted how far the stream has delivered; None for a connection that is not stored
    :param last_event_id: of the last event that the client has seen; None where it has not sent one
    """

    def __init__(self, cursor: LogCursor, opened: OpenStream | None, last_event_id: str | None) -> None:
        self._cursor = cursor
        self._log = cursor.log
        self._opened = opened
        self._last_event_id = last_event_id
        self._position: int | None = None  # up to which everything is in the items
        self._is_gap = False  # whether a gap is to be reported before the next event
        self._life = 0  # of the log, in which the position is
        self._has_failed = False
        self._waiter: LogWaiter | None = None  # from the first wait on
        self._items: deque[Event | Reset] = deque()

    async def wait(self, is_open: Callable[[], bool]) -> None:
        database, log = self._log.database, self._log
        try:
            if self._position is None or self._life != log.life:
                await in_thread(database, self._begin)
            elif self._has_failed and not log.has_failed:
                self._has_failed = False
            elif self._is_gap or not log.begin_wait(waiter := self._waiter_of(is_open), self._life, self._position):
                await self._fetch(self._position)
            else:
                try:
                    if log.has_failed or log.watch.version != log.version:  # a read that succeeds then wakes all
                        log.request_read()
                    await waiter.wait()
                finally:
                    log.end_wait(waiter)
                    self._position = waiter.cursor
                    if self._life == log.life:
                        self._items.extend(waiter.events)
                if not self._items:
                    log.check()
                    if is_open() and log.take_fallback_read():
                        await in_thread(database, log.read)
        except RepositoryError:
            self._has_failed = True
            raise

    def _waiter_of(self, is_open: Callable[[], bool]) -> LogWaiter:
        if self._waiter is None:
            self._waiter = LogWaiter(self._log.database, is_open, self._cursor.listener_id)
        return self._waiter

    async def _fetch(self, position: int) -> None:
        """Fetch the events after a position."""
        log, listener_id = self._log, self._cursor.listener_id
        found = log.from_memory(self._life, position, listener_id)
        is_at_end = found is not None
        if found is None:
            found = await in_thread(log.database, log.from_database, self._life, position, listener_id)
        if found is None:
            return
        self._position = found.position
        self._is_gap = self._is_gap or found.is_gap
        if self._is_gap and (found.events or is_at_end):
            self._items.append(Reset(None if found.events else found.event_id))
            self._is_gap = False
        self._items.extend(found.events)

    def next(self) -> Event | Reset | None:
        return self._items[0] if self._items else None

    def advance(self, item: Event | Reset) -> bool:
        self._items.popleft()
        return True

    def decoded(self, item: Event | Reset) -> MessageContract:
        return Message(RESET, GAP) if isinstance(item, Reset) else self._cursor.decoded(item)

    def take_frame(self) -> bytes | None:
        item = self._items[0]
        kept = self._log.frame_of(item) if isinstance(item, Event) else None
        if kept is not None:
            self._items.popleft()
        return kept

    def frame(self, item: Event | Reset) -> bytes:
        if isinstance(item, Reset):
            return message_frame(Message(RESET, GAP), item.event_id)
        return self._log.keep_frame(item, self._cursor.frame(item))

    def set_aside(self, item: Event | Reset, error: RepositoryError) -> None:
        """An event stays in the log, where other programs may be able to decode it."""
        if isinstance(item, Event):
            _log_unreadable(self._log, item, error)
        self._items.popleft()

    def note_delivered(self, item: Event | Reset) -> None:
        if isinstance(item, Event):
            if self._opened is not None:
                self._opened.position = item.position
            else:
                self._cursor.position = item.position

    def is_for_listener(self, item: Event | Reset) -> bool:
        return isinstance(item, Event)

    def event_id(self, item: Event | Reset) -> str | None:
        return item.event_id if isinstance(item, Reset) else self._log.event_id(item)

    def put_back(self) -> None:
        """Events stay in the log."""

    def close(self) -> bool:
        return False

    def _begin(self) -> None:
        """Find the position of the client. In a thread."""
        is_new = self._position is None
        seen = SeenEvent.parse(self._last_event_id) if is_new else None
        place = self._cursor.take_place()
        if seen is None or place is None or not self._begin_in_tail(seen, place):
            self._begin_in_log(seen, is_new=is_new)

    def _begin_in_tail(self, seen: SeenEvent, place: LogPlace) -> bool:
        """Go on after an event that the log keeps and the tail has: no statement is needed. False for any other one."""
        if place.has_messages or seen.position < (place.first_position or MAX_POSITION):
            return False
        self._log.read()
        life = self._log.life_of(seen)
        if life is None:
            return False
        self._life, self._position = life, max(seen.position, place.start_position or 0)
        return True

    def _begin_in_log(self, seen: SeenEvent | None, *, is_new: bool) -> None:
        log, cursor, opened = self._log, self._cursor, self._opened
        presence = log.database.watcher.presence
        while True:
            # Before the statement, since a position is forgotten here as soon as it is written.
            ended_at = 0 if opened is None else presence.ended_at(opened.connection_id)
            state = log.state(cursor.listener_id, seen)
            if not log.is_up_to(state):
                log.read(is_stale=True)
            life = log.life
            if log.epoch == state.epoch:
                break
        if opened is None:
            state = cursor.located(state)
        elif state.connection_id is None and is_new:
            raise InvalidListenerException(f"Invalid listener {cursor.listener_id}")
        elif state.connection_id is None:
            opened.is_deleted = True  # the stream ends
        elif not is_new:
            opened.position = opened.noted = 0
        elif ended_at > (state.position or 0):
            state = state._replace(position=ended_at)
        is_given = self._last_event_id is not None or not is_new  # a stream begins again in another life of the log
        position, self._is_gap = starting_position(state, seen, is_given)
        if state.has_messages or opened is None:
            move_messages(cursor)
        self._life, self._position = life, position


def move_messages(cursor: LogCursor) -> None:
    """Move messages that were pushed into a connection's queue directly to the log, as they are. In a thread."""
    database, queue = cursor.log.database, cursor.queue
    codec = database.message_codec
    while True:
        with repository_errors("the messages can't be moved"), database.transaction():
            rows = queue.take(BATCH)
            for row in rows:
                try:
                    serialized = codec.verify(row.message_type, row.message, queue.context)
                    codec.deserialize(serialized, database)
                except RepositoryError as error:
                    queue.set_aside(row, error)
                    continue
                append(cursor.log, cursor.listener_id, serialized, is_known=True)
        if not rows:
            return
        cursor.log.read()


def append(
    log: EventLog, listener_id: str | None, message: MessageContract | Serialized, *, is_known: bool
) -> events.Appended | None:
    """Append a message to a log, for all listeners or for one. None where that one has no connection. One statement.

    :param is_known: whether no stored connection is needed
    """
    database, channel_id = log.database, log.channel_id
    codec = database.message_codec
    serialized = message if isinstance(message, Serialized) else codec.serialize(message, database)
    blob = codec.sign(serialized, context_of(channel_id, listener_id))
    rows = database.publisher.publish_to_channel(
        events.APPEND if is_known else events.APPEND_DISPATCH,
        channel_id,
        channel_id=channel_id,
        listener_id=listener_id,
        message_type=serialized.message_type,
        message=blob,
    )
    if not rows:
        return None
    position, has_own_push, *_ = rows[0]
    return events.Appended(position, bool(has_own_push))


def _log_unreadable(log: EventLog, event: Event, error: RepositoryError) -> None:
    if event.position in log.unreadable:
        return
    log.unreadable.append(event.position)
    logger.warning("event %s of channel %s can't be decoded: %s", event.position, log.channel_id, error)
