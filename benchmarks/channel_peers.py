"""Channels over eric-sse's own repository interface: ours, and those of eric-redis-queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.interfaces import ChannelRepositoryInterface
from eric_sse.message import MessageContract

from benchmarks import goals
from benchmarks.databases import Backend
from benchmarks.peers import Opener, imported
from benchmarks.redis_server import IN_MEMORY, ON_DISK, redis_server


class Channels:
    """A channel repository."""

    def __init__(self, repository: ChannelRepositoryInterface) -> None:
        self.persist, self.load_one, self.delete = repository.persist, repository.load_one, repository.delete
        self._repository = repository

    def create(self, channel_id: str) -> AbstractChannel:
        return self._repository.create({"channel_id": channel_id})

    def broadcast(self, channel: AbstractChannel, message: MessageContract) -> None:
        channel.broadcast(message)

    def load_connections(self, channel_id: str) -> Iterable[Connection]:
        found: Iterable[Connection] = self._repository.connections_repository.load_all(channel_id)
        return found


class RedisChannels(Channels):
    """eric-redis-queues' channels, in the first of the databases that a Redis has.

    :param port: of the server
    """

    def __init__(self, port: int, number: int = 0) -> None:
        module, repository = imported("eric_redis_queues"), imported("eric_redis_queues.repository")
        super().__init__(repository.RedisSSEChannelRepository(module.RedisConnection(port=port, db=number)))
        self._port = port

    def beside(self, number: int) -> RedisChannels:
        """Channels in another database of the same server: a scan of one does not see the others."""
        return RedisChannels(self._port, number)

    def fill(self, channels: Iterable[AbstractChannel]) -> None:
        """Store connections one by one: ``persist`` would scan all that are there for each channel."""
        repository = self._repository.connections_repository
        for channel in channels:
            for connection in channel.get_connections():
                repository.persist(channel.id, connection)


def channel_peers(backend: Backend) -> Mapping[str, Opener[RedisChannels]]:
    """The same beside every database."""
    return {
        goals.REDIS_CHANNELS_IN_MEMORY: partial(_redis, IN_MEMORY),
        goals.REDIS_CHANNELS_ON_DISK: partial(_redis, ON_DISK),
    }


def _redis(options: tuple[str, ...], folder: Path, stack: ExitStack) -> RedisChannels:
    imported("eric_redis_queues")
    return RedisChannels(stack.enter_context(redis_server(folder, options)))
