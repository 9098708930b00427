"""The log of a channel in this process: read once for all streams, through a bounded tail in memory."""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple
from weakref import WeakValueDictionary, ref

from eric_sse.exception import RepositoryError

from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution import fork
from eric_sse_sql.execution.statement import Row
from eric_sse_sql.sql import events
from eric_sse_sql.sql.events import Event, LogBounds, LogHead, LogState
from eric_sse_sql.streams.idle import SWEEP_SECONDS, Waiter, end
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS

TAIL_EVENTS = 1000  # kept in memory of each log, at most
TAIL_BYTES = 8 * 1024 * 1024  # of their messages together, at most
ALL_TAILS_BYTES = 64 * 1024 * 1024  # by which the tails of many logs are shorter: each has an equal share at most
FIRST_EVENTS = 100  # of the last events of a log that a process reads first
PAGE = 200  # events that one statement reads
PAGE_BYTES = 4 * 1024 * 1024  # of their messages together; a single one may be larger
MAX_DIGITS = 18  # of a position
MAX_POSITION = 10**MAX_DIGITS - 1
FAILURE_SECONDS = 0.5  # for which a failed read is not repeated
RESET = "reset"  # the type of the event that reports a gap
GAP = "events before this one are gone"  # its data: without data, a browser drops an event

_POSITION = attrgetter("position")
_EVENT_ID = re.compile(rf"([0-9a-f]{{1,64}})-([0-9]{{1,{MAX_DIGITS}}})-([0-9.]{{0,32}})", re.ASCII)


class SeenEvent(NamedTuple):
    """What the id of an event tells of it."""

    epoch: str
    position: int
    token: str

    @classmethod
    def parse(cls, event_id: object) -> SeenEvent | None:
        """The parts of an id; None for a text that no log has given out."""
        found = _EVENT_ID.fullmatch(event_id) if isinstance(event_id, str) else None
        return cls(found[1], int(found[2]), found[3]) if found else None


class Tail:
    """The last events of a log in memory, without a gap: those after ``start``, up to ``last``."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.last = start
        self.token: str | None = None  # of the event at ``last``, where it is known
        self.events: deque[Event] = deque()
        self.frames: dict[int, tuple[Event, bytes]] = {}  # of events that are for all, by their position
        self._bytes = 0  # of messages and frames

    def extend(self, more: Iterable[Event], max_bytes: int = TAIL_BYTES) -> None:
        """Add the events that follow, and drop the oldest ones beyond the bounds."""
        for event in more:
            self.events.append(event)
            self._bytes += len(event.message)
            self.last, self.token = event.position, event.token
        while self.events and (len(self.events) > TAIL_EVENTS or self._bytes > max_bytes):
            dropped = self.events.popleft()
            self._bytes -= len(dropped.message)
            if dropped.position in self.frames:
                self._bytes -= len(self.frames.pop(dropped.position)[1])
            self.start = dropped.position

    def keep_frame(self, event: Event, frame: bytes) -> None:
        """Keep the frame of an event for as long as the event."""
        if self.start < event.position <= self.last and event.position not in self.frames:
            self.frames[event.position] = event, frame
            self._bytes += len(frame)

    def token_at(self, position: int) -> str | None:
        """The token of the event at a position; None where it is not known."""
        if position == self.last:
            return self.token
        index = bisect_left(self.events, position, key=_POSITION)
        is_found = index < len(self.events) and self.events[index].position == position
        return self.events[index].token if is_found else None

    def after(self, position: int, listener_id: str) -> list[Event]:
        """The events after a position that a listener gets. The position is not before ``start``."""
        found = []
        for event in reversed(self.events):
            if event.position <= position:
                break
            if event.listener_id is None or event.listener_id == listener_id:
                found.append(event)
        return found[::-1]


class LogWaiter(Waiter):
    """The waits of a stream that has delivered all that its listener gets of the tail.

    :param database: where the log is
    :param is_open: whether the stream is to go on
    :param listener_id: of the stream's listener
    """

    __slots__ = ("cursor", "events", "listener_id")

    def __init__(self, database: Database, is_open: Callable[[], bool], listener_id: str) -> None:
        super().__init__(database, is_open)
        self.listener_id = listener_id
        self.cursor = 0  # the position up to which the log has nothing more for the listener than the events
        self.events: Sequence[Event] = ()  # that have ended the wait, where all of them are for all listeners


class ListenerPage(NamedTuple):
    """Events of one listener."""

    events: list[Event]
    position: int  # up to which they are all
    is_gap: bool  # whether events before them are gone
    event_id: str | None = None  # of the event at that position, where it is known and there are no events


class EventLog:
    """The log of a channel, as this process has read it. Threads and event loops may share it.

    One statement reads what was appended since the last read, for all streams, which then take it from memory.

    :param database: where the log is
    :param channel_id: of its channel
    """

    _lock: threading.Lock  # of the tail and the waiters
    _reading: threading.Lock
    _waiters: set[LogWaiter]
    _is_requested: bool

    def __init__(self, database: Database, channel_id: str) -> None:
        self.database = database
        self.channel_id = channel_id
        self.watch = database.watcher.watch_channel(channel_id)
        self.life = 0  # changes when the log is found to be another one: of a new channel, or restored from a backup
        self.epoch: str | None = None
        self.tail: Tail | None = None
        self.version = -1  # of the watch, at which the log was read last
        self.unreadable: deque[int] = deque(maxlen=TAIL_EVENTS)  # positions of events that were logged as such
        self._next_fallback = 0.0  # on the clock of time.monotonic()
        self._failure: tuple[float, RepositoryError] | None = None  # when, on the clock of time.monotonic()
        self._reset()
        fork.register(self)

    @property
    def waiting(self) -> int:
        """How many streams wait for an event."""
        return len(self._waiters)

    def request_read(self) -> None:
        """Read in a thread, if a stream waits."""
        with self._lock:
            if self._is_requested or not self._waiters:
                return
            self._is_requested = True
        self.database.background.stream_threads.submit(self._read_requested)

    def take_fallback_read(self) -> bool:
        """Whether a stream is to read by itself, since no signal may come: one of all, and not more often than once in
        ``FALLBACK_SECONDS``."""
        with self._lock:
            now = time.monotonic()
            if self.database.watcher.is_trusted or now < self._next_fallback:
                return False
            self._next_fallback = now + FALLBACK_SECONDS - SWEEP_SECONDS
            return True

    @property
    def has_failed(self) -> bool:
        """Whether the last read has failed."""
        return self._failure is not None

    def check(self) -> None:
        """Do nothing, unless the last read has failed.

        :raises RepositoryError: then
        """
        if self._failure is not None:
            raise self._failure[1]

    def _read_requested(self) -> None:
        with self._lock:
            self._is_requested = False
        try:
            self.read()
        except Exception as error:
            self._wake_all(error)

    def read(self, *, is_stale: bool = False) -> None:
        """Read what was appended since the last read, and wake the streams that get some of it. In a thread.

        :param is_stale: whether to read even if no change was noticed since the last read
        :raises RepositoryError: for any fault of the database; for half a second also without asking it again, unless
            the watcher has succeeded meanwhile
        """
        with self._reading:
            watcher, failure = self.database.watcher, self._failure
            version = self.watch.arm(self._mark())
            if failure is None:
                if version == self.version and not is_stale and watcher.is_trusted:
                    return
            elif time.monotonic() < failure[0] + FAILURE_SECONDS and not watcher.has_polled_since(failure[0]):
                raise failure[1]
            try:
                with repository_errors("the events can't be read"):
                    while self._read_page():
                        pass
            except RepositoryError as error:
                self._failure = time.monotonic(), error
                raise
            self._failure = None
            self.watch.arm(self._mark())
            self.version = version
        if failure is not None:
            self._wake_all()

    def _mark(self) -> tuple[int, str | None]:
        """How far the log was read, as the watcher compares it."""
        return (self.tail.last, self.tail.token) if self.tail else (0, None)

    def _read_page(self) -> bool:
        """Read a page. Whether there may be more."""
        executor, tail = self.database.executor, self.tail
        if tail is None:
            ((start,),) = executor.run(
                events.TAIL_START, channel_id=self.channel_id, count=FIRST_EVENTS, bytes=PAGE_BYTES
            )
            tail = Tail(start)
        rows = executor.run(events.AFTER, channel_id=self.channel_id, after=tail.last, count=PAGE, bytes=PAGE_BYTES)
        head = LogHead._make(rows[0][: len(LogHead._fields)]) if rows else None
        if self.tail is not None and not self._is_same_life(self.tail, head):
            self._begin_life()
            return True
        if head is not None and head.first_position > tail.last + 1:  # events have expired before they were read here
            tail = Tail(head.first_position - 1)
        page = _events_in(rows, LogHead)
        with self._lock:
            is_gap, before = tail is not self.tail, self.tail.last if self.tail else 0
            tail.token = tail.token or (head and _token_at(tail.last, head))
            tail.extend(page, min(TAIL_BYTES, ALL_TAILS_BYTES // max(len(self.database.event_logs), 1)))
            self.tail, self.epoch = tail, head and head.epoch
            listeners = {event.listener_id for event in page}
            if not is_gap and listeners == {None}:
                woken = self._hand_over(page, before)
            else:
                is_for_all = is_gap or None in listeners
                woken = self._take_waiters(lambda waiter: is_for_all or waiter.listener_id in listeners, before)
        end(woken)
        return _is_full(page)

    def _is_same_life(self, tail: Tail, head: LogHead | None) -> bool:
        """Whether a log goes on after what was read of it before."""
        if self.epoch is None:  # there was no log
            return True
        if head is None or head.epoch != self.epoch or head.last_position < tail.last:
            return False
        token = _token_at(tail.last, head)
        return tail.token == token or None in (tail.token, token)

    def _begin_life(self) -> None:
        """Forget what was read, and wake all streams, which begin again."""
        with self._lock:
            self.life += 1
            self.tail, self.epoch = None, None
        self._wake_all()

    def _wake_all(self, error: Exception | None = None) -> None:
        """Wake all streams, which look at the log again, or report an error."""
        with self._lock:
            woken = self._take_waiters(lambda waiter: True, self.tail.last if self.tail else 0)
        end(woken, error)

    def _hand_over(self, page: list[Event], before: int) -> list[LogWaiter]:
        """Give a page of events that are for all listeners to all waiters, which wait no more. With the lock held.

        :param before: the position up to which the log has nothing for any of them
        """
        woken, last = list(self._waiters), page[-1].position
        self._waiters.clear()
        for waiter in woken:
            if waiter.cursor <= before:
                waiter.events, waiter.cursor = page, last
        return woken

    def _take_waiters(self, is_taken: Callable[[LogWaiter], bool], before: int) -> list[LogWaiter]:
        """Some waiters, which wait no more. With the lock held.

        :param before: the position up to which the log has nothing for any of them
        """
        taken = [waiter for waiter in self._waiters if is_taken(waiter)]
        self._waiters.difference_update(taken)
        for waiter in taken:
            waiter.cursor = max(waiter.cursor, before)
        return taken

    def begin_wait(self, waiter: LogWaiter, life: int, cursor: int) -> bool:
        """Let a stream wait for an event after a position. False where there may be one already."""
        with self._lock:
            if life != self.life or self.tail is None or self.tail.last > cursor:
                return False
            waiter.cursor, waiter.events = cursor, ()
            waiter.begin()
            self._waiters.add(waiter)
            return True

    def end_wait(self, waiter: LogWaiter) -> None:
        """Let it wait no more."""
        if waiter not in self._waiters:
            return
        with self._lock:
            if waiter in self._waiters:  # it was not woken: nothing that was read meanwhile is for its listener
                self._waiters.discard(waiter)
                waiter.cursor = max(waiter.cursor, self.tail.last if self.tail else 0)

    def from_memory(self, life: int, position: int, listener_id: str) -> ListenerPage | None:
        """The events after a position that a listener gets; None where the tail begins later, or is of another life."""
        with self._lock:
            tail = self.tail
            if life != self.life or tail is None or position < tail.start:
                return None
            found = tail.after(position, listener_id)
            event_id = None if found or tail.last < position else self._id(tail.last, tail.token)
            return ListenerPage(found, max(position, tail.last), False, event_id)

    def frame_of(self, event: Event) -> bytes | None:
        """The frame of an event, where another stream has made it."""
        kept = self.tail and self.tail.frames.get(event.position)
        return kept[1] if kept and kept[0] is event else None  # else the event is of another life

    def keep_frame(self, event: Event, frame: bytes) -> bytes:
        """Keep the frame of an event for the other streams that get it, and return it."""
        if event.listener_id is None:
            with self._lock:
                if self.tail is not None:
                    self.tail.keep_frame(event, frame)
        return frame

    def life_of(self, seen: SeenEvent) -> int | None:
        """The life of the log, where the tail has an event that a client has seen, or ends with it; else None."""
        with self._lock:
            tail = self.tail
            if tail is None or seen.epoch != self.epoch or seen.token != tail.token_at(seen.position):
                return None
            return self.life

    def from_database(self, life: int, position: int, listener_id: str) -> ListenerPage | None:
        """A page of the same, up to the begin of the tail, read by a statement. In a thread."""
        self.read()
        with self._lock:
            if life != self.life or self.tail is None:
                return None
            last = self.tail.start
        with repository_errors("the events can't be read"):
            bounds, page = self._page_of_listener(position, listener_id, last, PAGE)
        if bounds is None or bounds.epoch != self.epoch or bounds.last_position < last:  # another life has begun
            self.read(is_stale=True)
            return None
        up_to = page[-1].position if _is_full(page) else max(position, last)
        return ListenerPage(page, up_to, is_gap=position < min(bounds.first_position - 1, up_to))

    def next_event(self, position: int, listener_id: str) -> Event | None:
        """The first event after a position that a listener gets. One statement."""
        with repository_errors("the events can't be read"):
            _, page = self._page_of_listener(position, listener_id, MAX_POSITION, 1)
        return page[0] if page else None

    def _page_of_listener(
        self, position: int, listener_id: str, last: int, count: int
    ) -> tuple[LogBounds | None, list[Event]]:
        rows = self.database.executor.run(
            events.OF_LISTENER,
            channel_id=self.channel_id,
            listener_id=listener_id,
            after=position,
            last=last,
            count=count,
            bytes=PAGE_BYTES,
        )
        bounds = LogBounds._make(rows[0][: len(LogBounds._fields)]) if rows else None
        return bounds, _events_in(rows, LogBounds)

    def is_up_to(self, state: LogState) -> bool:
        """Whether everything was read that a later statement has found."""
        with self._lock:
            tail = self.tail
            if tail is None or self.epoch != state.epoch or tail.last != (state.last_position or 0):
                return False
            return tail.token == state.last_token

    def state(self, listener_id: str, seen: SeenEvent | None) -> LogState:
        """The log, and where a listener stands in it. One statement."""
        with repository_errors("the state of the log can't be read"):
            rows = self.database.executor.run(
                events.STATE,
                channel_id=self.channel_id,
                listener_id=listener_id,
                seen=seen.position if seen else -1,
            )
        return LogState._make(rows[0])

    def before_fork(self) -> None:
        """The locks are replaced in the child."""

    def after_fork_in_parent(self) -> None:
        """The parent's streams go on."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's streams, and what was read."""
        self.life += 1
        self.epoch, self.tail, self.version, self._failure = None, None, -1, None
        self._reset()

    def _reset(self) -> None:
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._waiters = set()
        self._is_requested = False
        itself = ref(self)  # the watch does not keep the log
        self.watch.subscribe(lambda: _request(itself()))

    def event_id(self, event: Event) -> str:
        """The id of an event: of this life of the log."""
        return self._id(event.position, event.token)

    def _id(self, position: int, token: str | None) -> str:
        return f"{self.epoch or '0'}-{position}-{token or ''}"

    def context(self, event: Event) -> str:
        """The context of an event's signature."""
        return context_of(self.channel_id, event.listener_id)


def context_of(channel_id: str, listener_id: str | None) -> str:
    """The context of the signature of an event of a channel: for one listener, or for all."""
    whose = "broadcast" if listener_id is None else f"dispatch/{listener_id}"
    return f"{events.CONTEXT}{len(channel_id)}/{channel_id}/{whose}"


def log_of(database: Database, channel_id: str) -> EventLog:
    """The log of a channel: one object for all streams of this process, for as long as one uses it."""
    logs: WeakValueDictionary[str, EventLog] = database.event_logs
    found = logs.get(channel_id)
    return logs.setdefault(channel_id, EventLog(database, channel_id)) if found is None else found


def starting_position(state: LogState, seen: SeenEvent | None, is_given: bool) -> tuple[int, bool]:
    """Where a stream begins, and whether a gap is to be reported before.

    :param seen: what the client's id tells; None for an id that no log has given out
    :param is_given: whether the client has sent an id
    """
    start = state.start_position or 0
    first = (state.first_position or 1) - 1  # nothing before it is kept
    last = state.last_position or 0
    if not is_given:
        position = start if state.position is None else min(state.position, last)
        return max(position, first), position < min(first, last)
    if seen is None or not _is_of_this_life(state, seen):
        return max(start, first), True
    return max(seen.position, start, first), max(seen.position, start) < first


def _is_of_this_life(state: LogState, seen: SeenEvent) -> bool:
    if seen.epoch != state.epoch or seen.position > (state.last_position or 0):
        return False
    if seen.position == 0:  # the client has seen nothing of this log, so that it misses nothing
        return True
    if state.seen_token is not None:
        return seen.token == state.seen_token
    return seen.position == state.last_position and seen.token == state.last_token


def _events_in(rows: Sequence[Row], head: type[LogHead] | type[LogBounds]) -> list[Event]:
    """The events in rows that have other columns before; a single row has none where there are no events."""
    events_after = (Event(*row[len(head._fields) :]) for row in rows)
    return [event for event in events_after if event.position is not None]


def _is_full(page: Sequence[Event]) -> bool:
    """Whether there may be more events than fit into a page."""
    return len(page) == PAGE or sum(len(event.message) for event in page) >= PAGE_BYTES


def _token_at(position: int, head: LogHead) -> str | None:
    """The token of the event at a position after which was read; None where it is gone."""
    return head.last_token if position == head.last_position else head.token


def _request(log: EventLog | None) -> None:
    if log is not None:
        log.request_read()
