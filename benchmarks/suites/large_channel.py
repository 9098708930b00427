"""Measures the time and the memory of each operation on one channel with very many listeners."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.goals import BROADCAST, DELETE, LOAD_ONE, PERSIST
from benchmarks.harness.locations import Location
from benchmarks.harness.process_memory import peak_growth
from benchmarks.harness.sample_data import new_message
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_process
from eric_sse_sql import SqlSSEChannelRepository

CHANNEL_ID = "crowd"


@dataclass(frozen=True)
class Cost:
    """The time and the peak memory growth, in bytes, of one call."""

    seconds: float
    memory: int | None


def large_channel(bench: Bench) -> Iterator[Figure]:
    """Each operation once, in a process of its own, so that it cannot reuse memory that another one has freed."""
    location, count = bench.backend.create(), bench.sizes.listeners
    for name, operation in _OPERATIONS.items():
        cost = run_in_process(operation, location, count)
        memory = {} if cost.memory is None else {OURS: cost.memory}
        yield Figure(bench.backend.name, f"{name}, N = {count:,}", {OURS: cost.seconds}, memory=memory)


def _persist(location: Location, count: int) -> Cost:
    repository = SqlSSEChannelRepository(location.open())
    channel = repository.create({"channel_id": CHANNEL_ID})
    for _ in range(count):
        channel.add_listener()
    return _cost(lambda: repository.persist(channel))


def _broadcast(location: Location, count: int) -> Cost:
    channel = SqlSSEChannelRepository(location.open()).load_one(CHANNEL_ID)
    return _cost(lambda: channel.broadcast(new_message(0)))


def _load_one(location: Location, count: int) -> Cost:
    repository = SqlSSEChannelRepository(location.open())
    loaded: list[object] = []
    cost = _cost(lambda: loaded.extend(repository.load_one(CHANNEL_ID).get_connections()))
    if len(loaded) != count:
        raise AssertionError(f"{len(loaded)} connections of {count}")
    return cost


def _delete(location: Location, count: int) -> Cost:
    repository = SqlSSEChannelRepository(location.open())
    return _cost(lambda: repository.delete(CHANNEL_ID))


_OPERATIONS = {PERSIST: _persist, BROADCAST: _broadcast, LOAD_ONE: _load_one, DELETE: _delete}


def _cost(work: Callable[[], object]) -> Cost:
    times: list[float] = []

    def timed() -> None:
        times.append(time.perf_counter())
        work()
        times.append(time.perf_counter())

    memory = peak_growth(timed)
    return Cost(times[1] - times[0], memory)
