"""Other ways to bring a message to many streams."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eric_sse.prefabs import SSEChannel

from benchmarks.baselines.asyncio_queues import cancel, put_all, read_queue
from benchmarks.fanout.http_servers import HttpServer, NchanServer, UvicornServer, nchan_module
from benchmarks.harness import goals
from benchmarks.harness.backends import Backend
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.interfaces import FanOut, OnArrival, Send
from benchmarks.harness.optional_peers import Opener, import_peer
from benchmarks.harness.remote_calls import remote_function
from benchmarks.harness.sample_data import new_message
from benchmarks.peers.redis_server import IN_MEMORY, redis_server
from benchmarks.peers.stream_peers import RedisStreams
from benchmarks.streams.receiver import streaming

TOPIC = "crowd"


@dataclass(frozen=True)
class RedisStreamFanOut:
    """The streams of eric-sse over eric-redis-queues, each of which polls its queue without a pause."""

    port: int

    @asynccontextmanager
    async def streaming(self, count: int, on_arrival: OnArrival) -> AsyncIterator[Send]:
        locations = RedisStreams(self.port)
        with remote_function(partial(_broadcaster, locations, count)) as broadcast:
            async with streaming(locations.open(count), lambda listener, payload: on_arrival()):
                yield partial(broadcast.request, None)


@dataclass(frozen=True)
class RedisPubSub:
    """A subscription of Redis for the process, and a queue of asyncio for each stream."""

    port: int

    @asynccontextmanager
    async def streaming(self, count: int, on_arrival: OnArrival) -> AsyncIterator[Send]:
        queues: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in range(count)]
        client = import_peer("redis.asyncio").Redis(port=self.port)
        subscription = client.pubsub(ignore_subscribe_messages=True)
        await subscription.subscribe(TOPIC)
        tasks = [asyncio.create_task(read_queue(queue, on_arrival)) for queue in queues]
        tasks.append(asyncio.create_task(_hand_over(subscription, queues)))
        try:
            with remote_function(partial(_publisher, self.port)) as publish:
                yield partial(publish.request, None)
        finally:
            await cancel(tasks)
            await subscription.aclose()
            await client.aclose()


class InMemoryFanOut:
    """The streams and queues of eric-sse in one process. Streams poll without a pause."""

    @asynccontextmanager
    async def streaming(self, count: int, on_arrival: OnArrival) -> AsyncIterator[Send]:
        channel = SSEChannel()
        for _ in range(count):
            channel.add_listener()
        async with streaming(channel, lambda listener, payload: on_arrival()):
            yield lambda: channel.broadcast(new_message(0))


def fanout_peers(backend: Backend) -> Mapping[str, Opener[FanOut | Callable[..., HttpServer]]]:
    """The peers, the same for every backend; and uvicorn, which serves the streams of eric_sse_sql over HTTP."""
    return {
        goals.REDIS_STREAM: _redis_stream,
        goals.REDIS_PUBSUB: _redis_pubsub,
        goals.IN_MEMORY: lambda folder, stack: InMemoryFanOut(),
        goals.UVICORN: _uvicorn,
        goals.NCHAN: _nchan,
    }


def _redis_stream(folder: Path, stack: ExitStack) -> FanOut:
    import_peer("eric_redis_queues")
    return RedisStreamFanOut(stack.enter_context(redis_server(folder, IN_MEMORY, on_any_core)))


def _redis_pubsub(folder: Path, stack: ExitStack) -> FanOut:
    import_peer("redis.asyncio")
    return RedisPubSub(stack.enter_context(redis_server(folder, IN_MEMORY, on_any_core)))


def _uvicorn(folder: Path, stack: ExitStack) -> Callable[..., HttpServer]:
    for module in ("uvicorn", "starlette", "sse_starlette"):
        import_peer(module)
    return UvicornServer


def _nchan(folder: Path, stack: ExitStack) -> Callable[..., HttpServer]:
    return partial(NchanServer, folder, *nchan_module())


def _broadcaster(locations: RedisStreams, count: int) -> Callable[[None], object]:
    channel = locations.open(count)
    return lambda _: channel.broadcast(new_message(0))


def _publisher(port: int) -> Callable[[None], object]:
    client = import_peer("redis").Redis(port=port)
    return lambda _: client.publish(TOPIC, pickle.dumps(new_message(0), 5))


async def _hand_over(subscription: Any, queues: list[asyncio.Queue[bytes]]) -> None:
    async for message in subscription.listen():
        put_all(queues, message["data"])
