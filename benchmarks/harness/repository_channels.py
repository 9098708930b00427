"""Adapts a channel repository to the interface that is timed."""

from __future__ import annotations

from collections.abc import Iterable

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.interfaces import ChannelRepositoryInterface
from eric_sse.message import MessageContract


class RepositoryChannels:
    """The channels of a repository that implements the interface of eric-sse 2.1."""

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
