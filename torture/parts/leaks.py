"""Many mixed calls leave no connection, file descriptor, thread or memory behind, and the table of messages small."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message

from benchmarks.harness.process_memory import resident_bytes
from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue, SqlSSEChannelRepository, SqlStorageEngine
from torture.cluster import wait_for
from torture.databases import POSTGRES, Bench, Target
from torture.outcome import Outcome

MAX_TABLE_BYTES = 10_000_000
WAIT_SECONDS = 900
POOLED = 5  # connections, each with a file or two, that a pool may open later
CLOSE_SECONDS = 10
BLOCK = 500  # calls between two collections of garbage


class _Held(NamedTuple):
    """What a process holds."""

    files: int
    threads: int
    memory: int


def run(bench: Bench) -> Iterator[Outcome]:
    """Mixed calls of one process: good ones, failing ones, abandoned iterators and streams; then pushes and pops."""
    for target in bench.targets():
        outcome = Outcome(target.name)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(target.url, bench.sizes.leak_calls, there), daemon=True)
        process.start()
        there.close()
        found = here.recv() if here.poll(WAIT_SECONDS) else None
        left = _connections_left(target)
        here.send("end")
        process.join(10)
        process.kill()
        if found is None:
            outcome.findings.append("the process did not end.")
            yield outcome
            continue
        start, third, end, closed, bad = found
        outcome.calls = outcome.acknowledged = bench.sizes.leak_calls
        outcome.bad_inputs = bad
        outcome.load = "one process"
        outcome.connections = left
        outcome.files = max(0, closed.files - start.files)
        outcome.threads = max(0, closed.threads - start.threads)
        outcome.growth = max(0, end.memory - third.memory) if bench.sizes.judges_times else None
        outcome.figures["files while open"] = f"{third.files} after a third, {end.files} at the end"
        if end.files > third.files + POOLED or end.threads > third.threads + POOLED:
            outcome.findings.append(f"files and threads grow: {third} after a third, and {end} at the end.")
        if target.name == POSTGRES:
            _check_table(target, bench.sizes.cycles, outcome)
        yield outcome


def _connections_left(target: Target) -> int:
    with suppress(TimeoutError):  # the server takes a moment to see that a connection was closed
        wait_for(lambda: target.connections() == 0, CLOSE_SECONDS)
    return target.connections()


def _check_table(target: Target, cycles: int, outcome: Outcome) -> None:
    with Database(target.url) as database:
        queue = SqlQueue(database, "cycles")
        for number in range(cycles):
            queue.push(Message("cycle", {"number": number, "text": "x" * 100}))
            queue.pop()
    ((size,),) = target.rows("SELECT pg_total_relation_size('sse_messages')")
    outcome.figures["the table of messages"] = f"{size / 1e6:.1f} MB after {cycles:,} pushes and pops"
    if size > MAX_TABLE_BYTES:
        outcome.findings.append(f"the table of messages has {size / 1e6:.1f} MB after {cycles:,} pushes and pops.")


def _work(url: str, calls: int, pipe: Any) -> None:
    """What the process does: a first few calls, which import and connect, and then the measured ones."""
    start = _held()  # the modules of the drivers open nothing
    with Database(url) as database:
        mixed = _Mixed(database)
        mixed.call(len(mixed.acts) * 2)
        mixed.call(calls // 3)
        third = _held()
        mixed.call(calls - calls // 3)
        end = _held()
    mixed.loop.close()
    with suppress(TimeoutError):  # a thread that was told to end may be at its last statement
        wait_for(lambda: threading.active_count() == start.threads, CLOSE_SECONDS)
    pipe.send((start, third, end, _held(), mixed.bad))
    pipe.recv()  # this process ends once the connections of the server were counted


def _held() -> _Held:
    folder = Path("/proc/self/fd")
    files = len(os.listdir(folder)) if folder.exists() else 0
    return _Held(files, threading.active_count(), resident_bytes() or 0)


class _Mixed:
    """Calls of every kind, in turn."""

    def __init__(self, database: Database) -> None:
        self.bad = 0
        self._database = database
        self.loop = asyncio.new_event_loop()
        self._number = 0
        self._queue = SqlQueue(database, "mixed")
        self._blocking = BlockingSqlQueue(database, "blocking")
        self._storage = SqlStorageEngine(database, "mixed")
        self._repository = SqlSSEChannelRepository(database)
        self._channels = []
        for channel_id, replay_seconds in {"queues": 0, "log": 1}.items():
            channel = self._repository.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
            listener = channel.add_listener()
            listener.start()
            self._repository.persist(channel)
            self._channels.append((channel, listener))
        for number in range(150):
            self._storage.upsert(f"page/{number:03}", number)
        self.acts: list[Callable[[], object]] = [
            self._push_and_pop,
            self._push_many_and_take,
            self._receive,
            self._store,
            self._transaction,
            self._rolled_back,
            self._abandoned_iterator,
            self._bad_key,
            self._bad_message,
            self._wait_in_vain,
            self._push_and_pop,
            self._stream_of_queues,
            self._store,
            self._receive,
            self._stream_of_log,
            self._new_channel,
            self._prune,
        ]

    def call(self, count: int) -> None:
        """Make this many calls."""
        for n in range(count):
            self._number += 1
            # Those at the end of the list take a hundred times as long as the others, and are made less often.
            rare = self._number % 40 == 0
            acts = self.acts[-6:] if rare else self.acts[:11]
            acts[(self._number // 40 if rare else self._number) % len(acts)]()
            if n % BLOCK == 0:
                gc.collect()
        self._drain()

    def _push_and_pop(self) -> None:
        self._queue.push(Message("mixed", {"number": self._number}))
        self._queue.pop()

    def _push_many_and_take(self) -> None:
        self._queue.push_many(Message("mixed", n) for n in range(5))
        rows = self._queue.take(5)
        self._queue.put_back(rows[:1])
        self._queue.clear()

    def _receive(self) -> None:
        self._queue.push(Message("mixed", self._number))
        with suppress(ValueError), self._queue.receive():
            if self._number % 2:
                raise ValueError("the consumer has failed")
        self._queue.clear()

    def _store(self) -> None:
        key = f"key/{self._number % 10}"
        self._storage.upsert(key, {"number": self._number})
        self._storage.fetch_one(key)
        self._storage.delete(key)

    def _transaction(self) -> None:
        with self._database.transaction():
            self._storage.upsert("key", self._number)
            self._queue.push(Message("mixed", self._number))
            self._queue.pop()

    def _rolled_back(self) -> None:
        with suppress(ValueError), self._database.transaction():
            self._queue.push(Message("mixed", self._number))
            raise ValueError("rolls back")

    def _abandoned_iterator(self) -> None:
        next(iter(self._storage.fetch_by_prefix("page/")))

    def _bad_key(self) -> None:
        self.bad += 1
        with suppress(RepositoryError):
            self._storage.upsert("a\0b", 1)

    def _bad_message(self) -> None:
        self.bad += 1
        with suppress(RepositoryError):
            self._queue.push(Message("mixed", threading.Lock()))  # type: ignore[arg-type]

    def _wait_in_vain(self) -> None:
        with suppress(NoMessagesException):
            self._blocking.pop(timeout=0)

    def _stream_of_queues(self) -> None:
        self._stream(*self._channels[0])

    def _stream_of_log(self) -> None:
        self._stream(*self._channels[1])

    def _stream(self, channel: Any, listener: Any) -> None:
        async def read() -> None:
            async with aclosing(channel.message_stream(listener)) as stream:
                channel.dispatch(listener.id, Message("mixed", self._number))
                await asyncio.wait_for(anext(stream), 30)

        self.loop.run_until_complete(read())

    def _new_channel(self) -> None:
        channel = self._repository.create({"channel_id": f"new/{self._number}", "replay_seconds": 0})
        for _ in range(3):
            channel.add_listener()
        self._repository.persist(channel)
        self._repository.load_one(channel.id).broadcast(Message("mixed", self._number))
        self._repository.delete(channel.id)

    def _prune(self) -> None:
        self._database.prune(timedelta(days=1))

    def _drain(self) -> None:
        while self._queue.take(1_000):
            pass
