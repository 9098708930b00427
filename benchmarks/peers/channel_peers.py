"""The channels of eric-redis-queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from eric_sse.entities import AbstractChannel

from benchmarks.harness import goals
from benchmarks.harness.backends import Backend
from benchmarks.harness.optional_peers import Opener, import_peer
from benchmarks.harness.repository_channels import RepositoryChannels
from benchmarks.peers.redis_server import IN_MEMORY, ON_DISK, redis_server


class RedisChannels(RepositoryChannels):
    """The channels of eric-redis-queues.

    :param port: of the server
    :param number: of the Redis database
    """

    def __init__(self, port: int, number: int = 0) -> None:
        module, repository = import_peer("eric_redis_queues"), import_peer("eric_redis_queues.repository")
        super().__init__(repository.RedisSSEChannelRepository(module.RedisConnection(port=port, db=number)))
        self._port = port

    def in_database(self, number: int) -> RedisChannels:
        """Channels in another database of the same server: a scan of one database does not visit the others."""
        return RedisChannels(self._port, number)

    def fill(self, channels: Iterable[AbstractChannel]) -> None:
        """Store connections one by one: ``persist`` of a channel would scan all stored connections."""
        repository = self._repository.connections_repository
        for channel in channels:
            for connection in channel.get_connections():
                repository.persist(channel.id, connection)


def channel_peers(backend: Backend) -> Mapping[str, Opener[RedisChannels]]:
    """The peers of the channel repository, the same for every backend."""
    return {
        goals.REDIS_CHANNELS_IN_MEMORY: partial(_redis, IN_MEMORY),
        goals.REDIS_CHANNELS_ON_DISK: partial(_redis, ON_DISK),
    }


def _redis(options: tuple[str, ...], folder: Path, stack: ExitStack) -> RedisChannels:
    import_peer("eric_redis_queues")
    return RedisChannels(stack.enter_context(redis_server(folder, options)))
