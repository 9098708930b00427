"""Random schedules of a channel's event log against a model, on both databases.

Two workers, each a ``Database`` of its own, append to the log of one channel and read it, while its events expire, the
channel is deleted and made again, and the database is restored from a backup. The model knows which events each reader
must get, in which order, and where a ``reset`` must stand. At the end, each open stream is read up to one last
broadcast: it has neither waited in vain nor skipped an event.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import URL, Connection, Engine, create_engine, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.models import TABLE_NAMES
from eric_sse_sql.streams import event_log
from eric_sse_sql.wakeups.expiry import expire
from support.channels import queue_of

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannel, SqlSSEChannelRepository

SCHEDULES, STEPS = 150, 25  # on each database
SILENCE_SECONDS = 10.0  # after which a stream that must deliver an event is taken to be silent
MOST_READERS, MOST_LISTENERS = 4, 3
# So that a schedule reaches each of them.
LIMITS = {"TAIL_EVENTS": 6, "TAIL_BYTES": 900, "FIRST_EVENTS": 2, "PAGE": 3, "PAGE_BYTES": 400}

WORKERS = st.integers(0, 1)
PICKS = st.integers(0, 99)  # of some of what there is then
WAYS = st.sampled_from(["own", "joined"])  # of the package, or of the application
SIZES = st.sampled_from([0, 0, 0, 150, 500, 1000])
ODD_IDS = st.sampled_from(["x", "-1", "-", "1", "0-1-", "a-b-c", "0-0-0", "9" * 5_000, "²-1-2", "epoch--1-token"])


class Entry(NamedTuple):
    """An event of the log."""

    number: int  # its payload, which no other event has
    listener_id: str | None  # None for all


class Life:
    """What was ever appended to a log, expired events too. A restored backup begins another life."""

    def __init__(self, entries: Sequence[Entry] = (), first: int = 1) -> None:
        self.entries = list(entries)
        self.first = first  # position of the first event that is kept

    @property
    def last(self) -> int:
        return len(self.entries)

    def of(self, listener_id: str, after: int, up_to: int | None = None) -> list[int]:
        """The positions of the events of a listener."""
        positions = range(after + 1, (self.last if up_to is None else up_to) + 1)
        return [position for position in positions if self.entries[position - 1].listener_id in (None, listener_id)]

    def agrees_with(self, other: Life, up_to: int) -> bool:
        return self.entries[:up_to] == other.entries[:up_to] and up_to <= min(self.last, other.last)


class Listener:
    """A listener of the channel, and its connection."""

    def __init__(self, worker: int, start: int | None) -> None:
        self.worker: int | None = worker  # the only one that knows it; None once it is stored
        self.start = start  # the last position when it was made; None until the log is asked for that
        self.position: int | None = None  # up to which its streams have delivered the log
        self.pushed: list[int] = []  # numbers that wait in its queue
        self.is_certain = True  # whether the position is known here

    def begin(self) -> int:
        assert self.start is not None
        return self.start if self.position is None else self.position


class Reader:
    """An open stream."""

    def __init__(self, worker: int, channel: Any, listener: Any, model: Listener, life: Life) -> None:
        self.worker, self.model, self.life = worker, model, life
        self.channel, self.listener = channel, listener
        self.listener_id: str = listener.id
        self.position = 0  # up to which everything was delivered
        self.examined = 0  # up to which the stream has examined the log, at least
        self.has_crossed = False  # whether the database was restored while it was open
        self.former: tuple[Life, int] | None = None  # where it is instead, if its last reset is of the life before
        self.must_reset = False
        self.may_skip = False  # events that have expired: after a reset
        self.unconfirmed: int | None = None  # the last position, until the next event is asked for
        self.task: asyncio.Task[Any] | None = None
        self.events: Any = None
        self.last_id: str | None = None


class Schedule(RuleBasedStateMachine):
    """A schedule, and the model of it."""

    databases: list[Database]  # of the two workers
    engine: Engine  # without any part of the package
    schedules = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.channel_id = f"feed-{next(self.schedules)}"
        self.other_id = f"other-{self.channel_id}"
        self.channels: list[SqlSSEChannel] = []
        self.readers: list[Reader] = []
        self.kept: list[object] = []  # keeps logs of earlier lives in memory
        self.ids: list[tuple[str, Life, int]] = []  # that streams have given out
        self.numbers = iter(range(10**9))
        self.make_channel()

    # What happens

    @rule(worker=WORKERS, size=SIZES)
    def broadcast(self, worker: int, size: int) -> None:
        number = next(self.numbers)
        self.channels[worker].broadcast(message(number, size))
        self.appended(worker, Entry(number, None))

    @rule(worker=WORKERS, pick=PICKS, size=SIZES)
    def dispatch(self, worker: int, pick: int, size: int) -> None:
        if listener_id := self.picked(pick, worker):
            number = next(self.numbers)
            self.channels[worker].dispatch(listener_id, message(number, size))
            self.appended(worker, Entry(number, listener_id))

    @rule(worker=WORKERS, count=st.integers(1, 5), size=SIZES, way=WAYS, fails=st.booleans())
    def append_in_a_transaction(self, worker: int, count: int, size: int, way: str, fails: bool) -> None:
        numbers = [next(self.numbers) for _ in range(count)]
        with suppress(ZeroDivisionError), self.transaction(worker, way):
            for number in numbers:
                self.channels[worker].broadcast(message(number, size))
            if fails:
                raise ZeroDivisionError
        self.note_starts(worker, self.life.last)
        self.life.entries.extend(Entry(number, None) for number in ([] if fails else numbers))

    @rule(count=st.integers(1, 3), fails=st.booleans())
    def append_at_once(self, count: int, fails: bool) -> None:
        """Both workers append in two threads each, one of them in transactions that are rolled back or committed."""
        for worker in range(2):
            self.broadcast(worker, 0)  # before which connections that are not stored begin
        sent: dict[int, list[int]] = {thread: [] for thread in range(4)}

        def append(thread: int) -> None:
            channel = self.channels[thread % 2]
            for _ in range(count):
                number = next(self.numbers)
                if thread == 0:
                    with suppress(ZeroDivisionError), self.transaction(0, "own"):
                        channel.broadcast(message(number, 0))
                        if fails:
                            raise ZeroDivisionError
                else:
                    channel.broadcast(message(number, 0))
                if thread or not fails:
                    sent[thread].append(number)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(append, range(4)))
        before = self.life.last
        with self.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT position, message FROM sse_events WHERE channel_id = :c AND position > :p ORDER BY 1"),
                {"c": self.channel_id, "p": before},
            ).all()
        decode = self.databases[0].codec.decode
        context = event_log.context_of(self.channel_id, None)
        found = [decode(bytes(blob), context, self.databases[0]).payload[0] for _, blob in rows]
        assert [position for position, _ in rows] == list(range(before + 1, before + 1 + len(rows)))
        for numbers in sent.values():
            assert [number for number in found if number in numbers] == numbers
        assert sorted(found) == sorted(number for numbers in sent.values() for number in numbers)
        self.life.entries.extend(Entry(number, None) for number in found)

    @rule(worker=WORKERS, is_stored=st.booleans(), which=PICKS)
    def add_listener(self, worker: int, is_stored: bool, which: int) -> None:
        if len(self.listeners) < MOST_LISTENERS:
            listener = self.channels[worker].add_listener()
            self.listeners[listener.id] = Listener(worker, None)
            if is_stored:
                self.persist(worker)
            self.open_with_an_id(worker, -1, which, 1)  # that a client of another listener has got before

    @rule(worker=WORKERS)
    def persist(self, worker: int) -> None:
        self.repositories[worker].persist(self.channels[worker])
        for listener in self.listeners.values():
            if listener.worker == worker:
                listener.worker = None
                listener.start = self.life.last if listener.start is None else listener.start
                # A stream that was opened before writes no position.
                listener.position = None
        self.close_all([reader for reader in self.readers if reader.worker == worker])

    @rule(pick=PICKS, worker=WORKERS)
    def remove_listener(self, pick: int, worker: int) -> None:
        listener_id = self.picked(pick, worker)
        if listener_id and len(self.listeners) > 1:
            theirs = [reader for reader in self.readers if reader.listener_id == listener_id]
            channel = self.channels[worker]
            channel.remove_listener(listener_id)
            for reader in theirs:
                if reader.worker == worker and reader.channel is channel:  # ends by itself
                    with suppress(asyncio.TimeoutError, StopAsyncIteration):
                        while True:
                            self.loop.run_until_complete(asyncio.wait_for(self.next_event(reader), SILENCE_SECONDS))
                            reader.task = None  # an event that had come before
                    assert reader.task is None or isinstance(reader.task.exception(), StopAsyncIteration)
            self.close_all(theirs)
            del self.listeners[listener_id]
            self.persist(worker)
            if worker == 0:  # the other one finds it deleted
                self.forget(1)
            else:
                self.forget(0)

    @rule(pick=PICKS)
    def push(self, pick: int) -> None:
        """Push into the queue of a connection, which knows the log of its channel."""
        if listener_id := self.picked(pick, pick % 2):
            number = next(self.numbers)
            queue_of(self.channels[pick % 2], listener_id).push(message(number, 0))
            listener = self.listeners[listener_id]
            if listener.start is None:  # other connections that are not stored do not begin before it
                listener.start = self.life.last
            self.life.entries.append(Entry(number, listener_id))

    @rule(pick=PICKS)
    def push_by_another_object(self, pick: int) -> None:
        """Push into a queue that knows its own id alone: the message waits until a stream or consumer looks."""
        # A stream that has crossed a restore looks at a moment that is not known here.
        crossed = {reader.listener_id for reader in self.readers if reader.has_crossed}
        stored = [key for key, listener in self.listeners.items() if listener.worker is None and key not in crossed]
        if stored:
            listener_id, number = stored[pick % len(stored)], next(self.numbers)
            queue = queue_of(self.channels[0], listener_id)
            SqlQueue(self.databases[0], queue.id).push(message(number, 0))
            self.listeners[listener_id].pushed.append(number)
            for channel in self.channels:  # a stream trusts what was looked up before it, and would not look
                held = channel.identity_map.get(listener_id)
                if held is not None and held.cursor is not None:
                    held.cursor.take_place()

    @rule(worker=WORKERS, pick=PICKS, way=st.sampled_from(["deliver_next", "pop"]), count=st.integers(1, 3))
    def pop(self, worker: int, pick: int, way: str, count: int) -> None:
        listener_id = self.picked(pick, worker)
        listener = self.listeners.get(listener_id or "")
        if listener_id is None or listener is None or not self.settle_position(listener):
            return
        channel = self.channels[worker]
        channel.get_listener(listener_id).start()
        self.move(listener_id, listener)
        for _ in range(count):
            waiting = self.life.of(listener_id, max(listener.begin(), self.life.first - 1))
            take: Callable[[], Any] = (
                queue_of(channel, listener_id).pop if way == "pop" else lambda: channel.deliver_next(listener_id)
            )
            if waiting:
                assert take().payload[0] == self.life.entries[waiting[0] - 1].number
                listener.position = waiting[0]
            else:
                with pytest.raises(NoMessagesException):
                    take()

    @rule(pick=PICKS)
    def pop_at_once(self, pick: int) -> None:
        """Four consumers in both workers: each event goes to one of them."""
        stored = [key for key, listener in self.listeners.items() if listener.worker is None and not listener.pushed]
        if not stored:
            return
        listener_id = stored[pick % len(stored)]
        listener = self.listeners[listener_id]
        if not self.settle_position(listener):
            return
        queues = [queue_of(channel, listener_id) for channel in self.channels for _ in range(2)]
        popped: list[list[int]] = [[] for _ in queues]

        def pop(consumer: int) -> None:
            with suppress(NoMessagesException):
                while True:
                    popped[consumer].append(queues[consumer].pop().payload[0])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(pop, range(4)))
        waiting = self.life.of(listener_id, max(listener.begin(), self.life.first - 1))
        numbers = [self.life.entries[position - 1].number for position in waiting]
        assert sorted(number for each in popped for number in each) == sorted(numbers)
        assert all(each == sorted(each, key=numbers.index) for each in popped)
        if waiting:
            listener.position = waiting[-1]

    @rule(pick=PICKS, is_pruned=st.booleans())
    def expire(self, pick: int, is_pruned: bool) -> None:
        kept = self.life.last - self.life.first + 1
        if kept <= 0:
            return
        last = self.life.first + pick % kept
        old = text("UPDATE sse_events SET created_at = :at WHERE channel_id = :c AND position <= :p")
        values = {"at": "2001-01-01 00:00:00.000", "c": self.channel_id, "p": last}
        database = self.databases[pick % 2]
        if is_pruned and not self.readers:
            with self.engine.begin() as connection:
                connection.execute(old, values)
            database.prune(timedelta(days=30))  # beside the pollers, which expire events too
            with self.engine.connect() as connection:
                left = text("SELECT min(position) FROM sse_events WHERE channel_id = :c")
                assert connection.scalar(left, {"c": self.channel_id}) == (last + 1 if last < self.life.last else None)
        else:  # in one transaction: no stream sees an event whose moment was changed
            with database.transaction():
                database.connection().execute(old, values)
                while expire(database.executor, self.channel_id):
                    pass
        self.life.first = last + 1

    @rule()
    def delete_and_make_again(self) -> None:
        """Delete the channel, and make another one of its id. Streams of connections that were not stored go on."""
        stored = [reader for reader in self.readers if reader.model.worker is None]
        self.close_all(stored)
        self.kept.append([*self.channels])
        self.repositories[0].delete(self.channel_id)
        self.make_channel()

    @rule(worker=WORKERS, lost=st.integers(0, 3), later=st.integers(0, 4), closes=st.booleans(), pick=PICKS)
    def restore(self, worker: int, lost: int, later: int, closes: bool, pick: int) -> None:
        """Copy the rows, append events, and restore the rows while both workers run. Before these see what is restored,
        others are appended in the place of those that are lost."""
        if any(listener.worker is not None for listener in self.listeners.values()):
            return
        if any(reader.listener_id not in self.listeners for reader in self.readers):  # of a life before
            return
        self.settle_positions()
        copy, last, first = self.copied(), self.life.last, self.life.first
        state = {key: (listener.position, [*listener.pushed]) for key, listener in self.listeners.items()}
        for _ in range(lost):
            self.broadcast(worker, 0)
        self.read(pick, lost)
        self.close_all([reader for reader in self.readers if closes or state[reader.listener_id][1]])
        self.settle_positions()
        numbers = [next(self.numbers) for _ in range(later)]
        with self.engine.connect() as connection, connection.begin(), self.databases[worker].join(connection):
            self.put_back(copy, connection)
            for number in numbers:
                self.channels[worker].broadcast(message(number, 0))
        self.life = Life([*self.life.entries[:last], *(Entry(number, None) for number in numbers)], first)
        self.lives.append(self.life)
        for key, (position, pushed) in state.items():
            self.listeners[key].position, self.listeners[key].pushed = position, pushed
        for reader in self.readers:
            reader.has_crossed = True
            reader.model.is_certain = False  # it may write where it was
        self.open_with_an_id(worker, pick, 0, 2)

    @rule(worker=WORKERS)
    def forget(self, worker: int) -> None:
        """A worker ends, and another one begins."""
        if any(listener.worker == worker for listener in self.listeners.values()):
            return
        self.close_all([reader for reader in self.readers if reader.worker == worker])
        self.databases[worker].close()
        self.databases[worker] = Database(self.engine.url)
        self.channels[worker] = self.repositories[worker].load_one(self.channel_id)

    # Streams

    @rule(worker=WORKERS, pick=PICKS, count=st.integers(0, 4))
    def open_without_an_id(self, worker: int, pick: int, count: int) -> None:
        listener_id = self.picked(pick, worker)
        if listener_id is None or not self.settle_position(self.listeners[listener_id]):
            return
        reader = self.opened(worker, listener_id)
        if reader is not None:
            begin = reader.model.begin()
            self.begin_reader(reader, None, begin, begin < min(self.life.first - 1, self.life.last), count)

    @rule(worker=WORKERS, pick=PICKS, which=PICKS, count=st.integers(0, 4))
    def open_with_an_id(self, worker: int, pick: int, which: int, count: int) -> None:
        """With an id that a stream has given out: of this life, or of another one."""
        if not self.ids:
            return
        event_id, life, position = self.ids[-1 - which % min(len(self.ids), 20)]
        listener_id = self.picked(pick, worker)
        reader = self.opened(worker, listener_id) if listener_id else None
        if reader is None:
            return
        is_same = life.agrees_with(self.life, position) and (life is self.life or self.is_restored(life))
        is_known = is_same and (position >= self.life.first or position == self.life.last)
        start = reader.model.start or 0
        if is_known:
            begin = max(position, start)
            self.begin_reader(reader, event_id, begin, begin < self.life.first - 1, count)
        else:
            self.begin_reader(reader, event_id, start, True, count)

    @rule(worker=WORKERS, pick=PICKS, odd=ODD_IDS, count=st.integers(0, 4))
    def open_with_an_odd_id(self, worker: int, pick: int, odd: str, count: int) -> None:
        self.open_anew(worker, pick, odd, count)

    @rule(worker=WORKERS, pick=PICKS, which=PICKS, ahead=st.integers(1, 10**6), count=st.integers(0, 4))
    def open_with_an_id_of_the_future(self, worker: int, pick: int, which: int, ahead: int, count: int) -> None:
        if not self.ids:
            return
        event_id, _, _ = self.ids[-1 - which % min(len(self.ids), 20)]
        epoch, _, token = event_id.split("-")
        self.open_anew(worker, pick, f"{epoch}-{self.life.last + ahead}-{token}", count)

    @rule(worker=WORKERS, pick=PICKS, which=PICKS, count=st.integers(0, 4))
    def open_with_an_id_of_another_epoch(self, worker: int, pick: int, which: int, count: int) -> None:
        if not self.ids:
            return
        event_id, _, _ = self.ids[-1 - which % min(len(self.ids), 20)]
        self.open_anew(worker, pick, f"0{event_id}", count)

    @rule(worker=WORKERS, pick=PICKS, count=st.integers(0, 4))
    def open_with_an_id_of_another_channel(self, worker: int, pick: int, count: int) -> None:
        if not self.other_ids:
            channel = self.repositories[worker].create({"channel_id": self.other_id, "replay_seconds": 3600})
            listener = channel.add_listener()
            listener.start()
            self.repositories[worker].persist(channel)
            for number in range(3):
                channel.broadcast(Message("n", number))
            events = channel.message_stream(listener)
            for _ in range(3):
                self.other_ids.append(self.loop.run_until_complete(anext(events))["id"])
            self.loop.run_until_complete(events.aclose())
        self.open_anew(worker, pick, self.other_ids[pick % 3], count)

    def open_anew(self, worker: int, pick: int, event_id: str, count: int) -> None:
        listener_id = self.picked(pick, worker)
        reader = self.opened(worker, listener_id) if listener_id else None
        if reader is not None:
            self.begin_reader(reader, event_id, reader.model.start or 0, True, count)

    @rule(pick=PICKS, count=st.integers(1, 6))
    def read(self, pick: int, count: int) -> None:
        """Read some of the events that a stream has, and then wait for more."""
        if not self.readers:
            return
        reader = self.readers[pick % len(self.readers)]
        for _ in range(count):
            if not self.has_more(reader):
                break
            self.read_one(reader)
        if not self.has_more(reader):
            self.wait(reader)

    @rule(pick=PICKS, worker=WORKERS, count=st.integers(1, 4), kept=st.integers(0, 1))
    def read_after_expiry(self, pick: int, worker: int, count: int, kept: int) -> None:
        """A stream asks for the next event after others have come and gone."""
        for _ in range(count):
            self.broadcast(worker, 0)
        self.expire(self.life.last - self.life.first - kept, False)
        self.read(pick, count)

    @rule(pick=PICKS, count=st.integers(1, 10), worker=WORKERS)
    def wait_while_events_of_another_come_and_go(self, pick: int, count: int, worker: int) -> None:
        """A stream that waits has examined the events of others: that they expire, it need not report."""
        if not self.readers:
            return
        reader = self.readers[pick % len(self.readers)]
        others = [key for key, listener in self.listeners.items() if listener.worker is None]
        others = [key for key in others if key != reader.listener_id]
        if not others or reader.life is not self.life or reader.listener_id not in self.listeners:
            return
        while self.has_more(reader):
            self.read_one(reader)
        for _ in range(count):
            number = next(self.numbers)
            self.channels[worker].dispatch(others[0], message(number, 0))
            self.appended(worker, Entry(number, others[0]))
            self.wait(reader)
        self.expire(self.life.last - self.life.first, False)
        self.broadcast(worker, 0)
        self.read_one(reader)

    @rule(pick=PICKS)
    def close(self, pick: int) -> None:
        if self.readers:
            self.close_all([self.readers[pick % len(self.readers)]])

    @rule(pick=PICKS)
    def come_back(self, pick: int) -> None:
        """Close a stream, and open another one with its last id, in the other worker if that knows the listener."""
        if not self.readers:
            return
        reader = self.readers[pick % len(self.readers)]
        event_id, life, position = reader.last_id, reader.life, reader.position
        self.close_all([reader])
        worker = reader.worker if reader.model.worker is not None else 1 - reader.worker
        if event_id is None or life is not self.life or self.listeners.get(reader.listener_id) is not reader.model:
            return
        again = self.opened(worker, reader.listener_id)
        if again is not None:
            position = next(at for known, of, at in reversed(self.ids) if known == event_id and of is life)
            if position >= self.life.first or position == self.life.last:
                self.begin_reader(again, event_id, max(position, again.model.start or 0), False, 2)
            else:
                self.begin_reader(again, event_id, again.model.start or 0, True, 2)

    def teardown(self) -> None:
        try:
            if self.readers:
                self.broadcast(len(self.ids) % 2, 0)
                last = self.life.last
                for reader in self.readers:
                    while reader.life is not self.life or reader.position < last:
                        self.read_one(reader)
        finally:
            self.close_all(list(self.readers), is_checked=False)
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            for channel_id in (self.channel_id, self.other_id):
                self.repositories[0].delete(channel_id)

    # The model

    @property
    def repositories(self) -> list[SqlSSEChannelRepository]:
        return [SqlSSEChannelRepository(database) for database in self.databases]

    def make_channel(self) -> None:
        channel = self.repositories[0].create({"channel_id": self.channel_id, "replay_seconds": 3600})
        listener = channel.add_listener()
        self.repositories[0].persist(channel)
        self.channels = [channel, self.repositories[1].load_one(self.channel_id)]
        kept = {reader.listener_id: reader.model for reader in self.readers}
        self.life = Life()
        self.lives: list[Life] = [self.life]
        self.listeners = {listener.id: Listener(0, 0)}
        self.listeners[listener.id].worker = None
        self.other_ids: list[str] = []
        for model in kept.values():  # of connections that only their channel object knows
            model.start, model.position = 0, None

    def is_restored(self, life: Life) -> bool:
        """Whether a life and this one have the same epoch: one of them is restored from the other."""
        return life in self.lives

    def picked(self, pick: int, worker: int) -> str | None:
        """The id of a listener that a worker knows."""
        known = [key for key, listener in self.listeners.items() if listener.worker in (None, worker)]
        return known[pick % len(known)] if known else None

    def appended(self, worker: int, entry: Entry) -> None:
        self.note_starts(worker, self.life.last)
        self.life.entries.append(entry)

    def note_starts(self, worker: int, position: int) -> None:
        """A connection that is not stored begins before the first event that its channel object appends."""
        for listener in self.listeners.values():
            if listener.worker == worker and listener.start is None:
                listener.start = position

    def move(self, listener_id: str, listener: Listener) -> None:
        """What was pushed into the queue of a connection is in the log once its stream or its consumer has looked."""
        self.life.entries.extend(Entry(number, listener_id) for number in listener.pushed)
        listener.pushed = []

    def settle_position(self, listener: Listener) -> bool:
        """Write the positions of all streams. Whether the listener's is known."""
        self.settle_positions()
        if listener.start is None:
            listener.start = self.life.last
        return listener.is_certain

    def settle_positions(self) -> None:
        for database in self.databases:
            database.watcher.presence.write_positions()

    def opened(self, worker: int, listener_id: str) -> Reader | None:
        if len(self.readers) >= MOST_READERS:
            return None
        model = self.listeners[listener_id]
        self.settle_position(model)
        channel = self.channels[worker]
        listener = channel.get_listener(listener_id)
        listener.start()
        return Reader(worker, channel, listener, model, self.life)

    def begin_reader(self, reader: Reader, event_id: str | None, begin: int, is_gap: bool, count: int) -> None:
        """Let a stream find its position, and read some events."""
        reader.events = reader.channel.message_stream(reader.listener, event_id)
        reader.position = reader.examined = begin if is_gap else max(begin, self.life.first - 1)
        reader.must_reset = is_gap
        self.readers.append(reader)
        self.move(reader.listener_id, reader.model)
        if self.has_more(reader):
            self.read_one(reader)
        else:
            self.wait(reader)
        for _ in range(count):
            if self.has_more(reader):
                self.read_one(reader)

    def has_more(self, reader: Reader) -> bool:
        """Whether a stream must deliver something. Events that have expired come from memory, or cause a reset."""
        if reader.must_reset or (reader.task is not None and reader.task.done()):
            return True
        if reader.life is not self.life:
            return False  # it may have events of the life before, or not
        gone = self.life.first - 1 if reader.may_skip else 0
        return bool(self.life.of(reader.listener_id, max(reader.position, gone)))

    def confirm(self, reader: Reader) -> None:
        """The last event counts as delivered once the next one is asked for."""
        if reader.unconfirmed is not None:
            listener = reader.model
            listener.position = max(listener.position or 0, reader.unconfirmed)
            reader.unconfirmed = None

    def next_event(self, reader: Reader) -> asyncio.Task[Any]:
        if reader.task is None:
            self.confirm(reader)
            reader.task = self.loop.create_task(anext(reader.events))
        return reader.task

    def wait(self, reader: Reader) -> None:
        """Let a stream that has nothing more wait for the next event."""
        if reader.life is not self.life:
            return
        task = self.next_event(reader)
        log = event_log.log_of(self.databases[reader.worker], self.channel_id)

        def is_settled() -> bool:
            theirs = [each.task for each in self.readers if each.worker == reader.worker]
            is_read = log.tail is not None and log.tail.last == self.life.last
            waiting = sum(each is not None and not each.done() for each in theirs)
            return task.done() or (is_read and log.waiting == waiting)

        async def settle() -> None:
            while not is_settled():
                await asyncio.sleep(0.0005)

        self.loop.run_until_complete(asyncio.wait_for(settle(), SILENCE_SECONDS))
        if not task.done():
            reader.examined = max(reader.examined, self.life.last)

    def read_one(self, reader: Reader) -> None:
        """Read an event that must come, and check that it is the one that the model says."""
        task = self.next_event(reader)
        event = self.loop.run_until_complete(asyncio.wait_for(asyncio.shield(task), SILENCE_SECONDS))
        reader.task = None
        if event["event"] == "reset":
            assert event["data"]
            self.note_reset(reader)
        else:
            assert event["event"] == "n"
            self.note_event(reader, event["data"][0], event["id"])

    def note_reset(self, reader: Reader) -> None:
        is_behind = reader.examined < self.life.first - 1
        is_of_another = reader.life is not self.life or reader.former is not None
        assert reader.must_reset or is_of_another or is_behind, "a reset without a gap"
        if is_of_another:
            reader.former = (reader.life, reader.position) if reader.life is not self.life else None
            reader.life, reader.position = self.life, reader.model.start or 0
        reader.must_reset, reader.may_skip = False, True
        reader.examined = reader.position

    def note_event(self, reader: Reader, number: int, event_id: str) -> None:
        assert not reader.must_reset, "no reset where events are gone"
        following = self.following(reader.listener_id, reader.life, reader.position)
        if reader.former is not None:
            life, position = reader.former
            formerly = self.following(reader.listener_id, life, position)
            if number not in following:
                reader.life, reader.position, following = life, position, formerly
            reader.former = (life, formerly[number]) if number in formerly and life is not reader.life else None
        if number not in following and reader.life is not self.life:
            assert reader.life.agrees_with(self.life, reader.position), "no reset where the log is another one"
            reader.life = self.life
            following = self.following(reader.listener_id, reader.life, reader.position)
        skipped = list(itertools.takewhile(lambda each: each != number, following))
        assert number in following, "an event from nowhere, or for the second time"
        assert all(reader.may_skip and following[each] < reader.life.first for each in skipped), "an event was skipped"
        reader.position, reader.may_skip = following[number], False
        reader.examined = max(reader.examined, reader.position)
        reader.unconfirmed = reader.position if reader.life is self.life else None
        reader.last_id = event_id
        self.ids.append((event_id, reader.life, reader.position))

    @staticmethod
    def following(listener_id: str, life: Life, after: int) -> dict[int, int]:
        """The numbers of the events of a listener after a position, and their positions."""
        return {life.entries[at - 1].number: at for at in life.of(listener_id, after)}

    def close_all(self, readers: Sequence[Reader], is_checked: bool = True) -> None:
        for reader in readers:
            if reader.task is not None:
                reader.task.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    self.loop.run_until_complete(reader.task)
            self.loop.run_until_complete(reader.events.aclose())
            self.readers.remove(reader)

    # The database

    @contextmanager
    def transaction(self, worker: int, way: str) -> Iterator[None]:
        database = self.databases[worker]
        if way == "own":
            with database.transaction():
                yield
            return
        with self.engine.connect() as connection, connection.begin(), database.join(connection):
            yield

    def copied(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        with self.engine.connect() as connection:
            return {
                table: [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]
                for table in tables()
            }

    @staticmethod
    def put_back(copy: Mapping[str, Sequence[Mapping[str, Any]]], connection: Connection) -> None:
        for table in reversed(tables()):
            connection.execute(text(f"DELETE FROM {table}"))
        for table in tables():
            if table == "sse_event_logs":  # on SQLite, the events have made some
                connection.execute(text("DELETE FROM sse_event_logs"))
            for row in copy[table]:
                names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
                connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


def tables() -> list[str]:
    """The tables, those that others refer to first."""
    first = ["kv_entries", "sse_channels", "sse_connections", "sse_events"]
    return [*first, *sorted(TABLE_NAMES.difference(first))]


def message(number: int, size: int) -> Message:
    return Message("n", (number, "x" * size))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIMITS.items():
        monkeypatch.setattr(event_log, name, value)


@pytest.mark.usefixtures("small_limits")
def test_every_reader_of_a_log_gets_what_the_model_says(shared_url: URL) -> None:
    engine, databases = create_engine(shared_url), [Database(shared_url) for _ in range(2)]
    run_state_machine_as_test(
        type("Machine", (Schedule,), {"databases": databases, "engine": engine}),
        settings=settings(
            max_examples=SCHEDULES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    for database in databases:
        database.close()
    engine.dispose()
