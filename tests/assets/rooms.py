"""The repository of an application's own channels, which eric-sse 2.1 asks for and 2.0 does not have."""

from __future__ import annotations

from typing import Any

from assets.shop import Room
from eric_sse_sql import AbstractSqlChannelRepository


class RoomRepository(AbstractSqlChannelRepository):
    """Rooms, each stored as a dictionary."""

    def create(self, channel_data: dict[str, Any]) -> Room:
        return Room(**channel_data, connections_factory=self.connections_factory)

    @staticmethod
    def _channel_to_dict(channel: Any) -> dict[str, Any]:
        return {"channel_id": channel.id, "topic": channel.topic}
