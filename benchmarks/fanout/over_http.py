"""Measures a broadcast until the last of many clients has it over HTTP, as ``EventSource`` would."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from benchmarks.fanout.arrivals import Arrivals, Clocks
from benchmarks.fanout.crowd import LOG, REPLAY_SECONDS, Crowd
from benchmarks.fanout.http_servers import HOST, HttpServer
from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.remote_calls import remote_function
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_process

WARM_UP = 2
PAUSES = 0.2, 0.3  # seconds between two broadcasts
ARRIVAL_SECONDS = 60
_CPU_CLOCK = 2  # with the id of a process, its clock of CPU time: clock_getcpuclockid(3)
REQUEST = "GET /stream/{} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n"


class HttpCost(NamedTuple):
    """What a broadcast took, in seconds.

    :param wall: from its request until the last client has it; the clients share a process
    :param cpu: of the server's processes
    """

    wall: float
    cpu: float


def over_http(bench: Bench) -> Iterator[Figure]:
    """The servers after one another; each has the machine for itself."""
    sizes, database = bench.sizes, bench.backend.name
    uvicorn, nchan = bench.peers.get(goals.UVICORN), bench.peers.get(goals.NCHAN)
    if uvicorn is None:
        return
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        stack.enter_context(on_any_core())
        beside = {goals.NCHAN: _cost(nchan(), sizes.http_clients, sizes.http_broadcasts)} if nchan else {}
        for way in REPLAY_SECONDS:
            crowd = Crowd(backend.create(), "crowd", sizes.http_clients, way)
            crowd.persist()
            costs = {OURS: _cost(uvicorn(crowd), sizes.http_clients, sizes.http_broadcasts)}
            costs |= beside if way == LOG else {}
            what = f"broadcast over HTTP to {sizes.http_clients:,} clients, {way}"
            yield Figure(database, f"{what}: last delivery", {name: each.wall for name, each in costs.items()})
            yield Figure(database, f"{what}: CPU of the server", {name: each.cpu for name, each in costs.items()})


def _cost(server: HttpServer, clients: int, samples: int) -> HttpCost:
    return run_in_process(_measure, server, clients, samples)


def _measure(server: HttpServer, clients: int, samples: int) -> HttpCost:
    return asyncio.run(_broadcast(server, clients, samples))


async def _broadcast(server: HttpServer, count: int, samples: int) -> HttpCost:
    arrivals = Arrivals()
    arrivals.expect(count)
    walls: list[float] = []
    cpu = 0.0
    loop = asyncio.get_running_loop()
    with server.running() as running, remote_function(partial(server.sender, running.port)) as broadcast:
        clients = [
            (await loop.create_connection(partial(EventSource, number, arrivals.note), HOST, running.port))[0]
            for number in range(count)
        ]
        await arrivals.wait(ARRIVAL_SECONDS)
        for number in range(WARM_UP + samples):
            await asyncio.sleep(random.uniform(*PAUSES))
            if number == WARM_UP:
                cpu = cpu_seconds(running.pids)
            arrivals.expect(count)
            sent = Clocks.now()
            broadcast.request(None)
            walls.append((await arrivals.wait(ARRIVAL_SECONDS)).since(sent).wall)
        cpu = cpu_seconds(running.pids) - cpu
        for client in clients:
            client.abort()
    return HttpCost(statistics.median(walls[WARM_UP:]), cpu / samples)


class EventSource(asyncio.Protocol):
    """A client that asks for a stream and counts its events.

    :param number: of the stream
    """

    def __init__(self, number: int, on_event: Callable[[], None]) -> None:
        self._number = number
        self._on_event = on_event
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(REQUEST.format(self._number, HOST).encode())

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._on_event()


def cpu_seconds(pids: Sequence[int]) -> float:
    """The CPU time of processes, on Linux."""
    return sum(time.clock_gettime(~pid << 3 | _CPU_CLOCK) for pid in pids)
