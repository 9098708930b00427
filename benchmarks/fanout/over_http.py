"""Measures a broadcast until the last of many clients has it over HTTP, as ``EventSource`` would."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

from benchmarks.fanout.arrivals import Arrivals, Clocks
from benchmarks.fanout.crowd import LOG, REPLAY_SECONDS, Crowd
from benchmarks.fanout.http_servers import HOST, ConstantServer, HttpServer, Running
from benchmarks.harness import goals
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.remote_calls import RemoteFunction, remote_function
from benchmarks.harness.suite import Bench
from benchmarks.harness.worker_processes import run_in_process

WARM_UP = 2
PAUSES = (
    0.02,
    0.05,
)  # seconds between two broadcasts, as short as a server is busy: idle streams have figures of their own
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
    """The servers of a table are measured in turns, and share the machine with the clients alone."""
    sizes, database = bench.sizes, bench.backend.name
    uvicorn, nchan = bench.peers.get(goals.UVICORN), bench.peers.get(goals.NCHAN)
    if uvicorn is None:
        return
    with ExitStack() as stack:
        backend = stack.enter_context(bench.backend.for_many_processes())
        stack.enter_context(on_any_core())
        for way in REPLAY_SECONDS:
            crowd = Crowd(backend.create(), "crowd", sizes.http_clients, way, "json")
            crowd.persist()
            servers: dict[str, HttpServer] = {OURS: uvicorn(crowd), goals.CONSTANT: ConstantServer()}
            if nchan and way == LOG:
                servers[goals.NCHAN] = nchan()
            costs = run_in_process(_measure, servers, sizes.http_clients, sizes.http_broadcasts)
            what = f"broadcast over HTTP to {sizes.http_clients:,} clients, {way}"
            yield Figure(database, f"{what}: last delivery", {name: each.wall for name, each in costs.items()})
            cpu = {name: each.cpu for name, each in costs.items()}
            ratios = {OURS: cpu[OURS] / cpu[goals.CONSTANT]}
            goal = goals.HTTP_CPU if way == LOG else None
            yield Figure(database, f"{what}: CPU of the server, to {goals.CONSTANT}", cpu, ratios, goal)


def _measure(servers: Mapping[str, HttpServer], clients: int, samples: int) -> dict[str, HttpCost]:
    return asyncio.run(_in_turns(servers, clients, samples))


async def _in_turns(servers: Mapping[str, HttpServer], count: int, samples: int) -> dict[str, HttpCost]:
    """Broadcast on one server after the other, again and again."""
    async with AsyncExitStack() as stack:
        crowds = {name: await stack.enter_async_context(_connected(each, count)) for name, each in servers.items()}
        for number in range(WARM_UP + samples):
            await asyncio.sleep(random.uniform(*PAUSES))
            for clients in crowds.values():
                if number == WARM_UP:
                    clients.begin()
                await clients.broadcast()
        return {name: clients.cost() for name, clients in crowds.items()}


class _Clients:
    """The clients of a server, and what the broadcasts to them have taken."""

    def __init__(self, count: int, running: Running, broadcast: RemoteFunction) -> None:
        self.arrivals = Arrivals()
        self._count = count
        self._running = running
        self._broadcast = broadcast
        self.begin()

    def begin(self) -> None:
        """Measure from now on."""
        self._walls: list[float] = []
        self._cpu = cpu_seconds(self._running.pids)

    async def broadcast(self) -> None:
        self.arrivals.expect(self._count)
        sent = Clocks.now()
        self._broadcast.request(None)
        self._walls.append((await self.arrivals.wait(ARRIVAL_SECONDS)).since(sent).wall)

    def cost(self) -> HttpCost:
        cpu = cpu_seconds(self._running.pids) - self._cpu
        return HttpCost(statistics.median(self._walls), cpu / len(self._walls))


@asynccontextmanager
async def _connected(server: HttpServer, count: int) -> AsyncIterator[_Clients]:
    """Clients of a server that runs while the block runs. Each has its first event."""
    loop = asyncio.get_running_loop()
    with server.running() as running, remote_function(partial(server.sender, running.port)) as broadcast:
        clients = _Clients(count, running, broadcast)
        clients.arrivals.expect(count)
        connections = [
            (await loop.create_connection(partial(EventSource, number, clients.arrivals.note), HOST, running.port))[0]
            for number in range(count)
        ]
        await clients.arrivals.wait(ARRIVAL_SECONDS)
        yield clients
        for connection in connections:
            connection.abort()


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
