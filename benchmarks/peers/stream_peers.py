"""The streams of eric-sse over eric-redis-queues."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from eric_sse.prefabs import SSEChannel

from benchmarks.harness import goals
from benchmarks.harness.backends import Backend
from benchmarks.harness.cpu_affinity import on_any_core
from benchmarks.harness.optional_peers import Opener, import_peer
from benchmarks.peers.redis_server import IN_MEMORY, redis_server
from benchmarks.streams.stream_locations import StreamsLocation, with_listeners


@dataclass(frozen=True)
class RedisStreams:
    """A channel of eric-sse whose queues are in Redis."""

    port: int

    def open(self, count: int) -> SSEChannel:
        module = import_peer("eric_redis_queues")
        connection = module.RedisConnection(port=self.port)
        return with_listeners(SSEChannel(), count, lambda queue_id: module.RedisQueue(connection, queue_id))


def stream_peers(backend: Backend) -> Mapping[str, Opener[StreamsLocation]]:
    """The peers of the streams, the same for every backend."""
    return {goals.REDIS_STREAM: _redis}


def _redis(folder: Path, stack: ExitStack) -> StreamsLocation:
    import_peer("eric_redis_queues")
    return RedisStreams(stack.enter_context(redis_server(folder, IN_MEMORY, on_any_core)))
