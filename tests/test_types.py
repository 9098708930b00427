"""What a type checker says about an application's use of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import eric_sse_sql
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import REPOSITORY

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="the package is checked with the types of eric-sse 2.1")

APPLICATION = """
from collections.abc import Iterator, Sequence
from typing import Any

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from typing_extensions import assert_type

from eric_sse_sql import (
    AbstractSqlChannelRepository,
    BlockingSqlQueue,
    Database,
    SqlChannel,
    SqlQueue,
    SqlSSEChannel,
    SqlSSEChannelRepository,
    SqlStorageEngine,
)
from eric_sse_sql.aio import AsyncChannelRepository, AsyncQueue
from eric_sse_sql.queues import Delivery

database = Database("sqlite:///app.db")
channels = SqlSSEChannelRepository(database)
assert_type(channels.create({}), SqlSSEChannel)
assert_type(channels.load_all(), Iterator[SqlSSEChannel])
channel = channels.load_one("news")
assert_type(channel, SqlSSEChannel)
assert_type(channel.get_listener("reader"), MessageQueueListener)
assert_type(channel.add_listener(), MessageQueueListener)
assert_type(channel.get_connections(), Sequence[Connection])
assert_type(channel.deliver_next("reader"), MessageContract)
assert_type(channels.connections_repository.load_all("news"), Iterator[Connection])

assert_type(SqlQueue(database).pop(), MessageContract)
queue = BlockingSqlQueue(database)
assert_type(queue.pop(timeout=1.0), MessageContract)
with queue.receive() as delivery:
    assert_type(delivery, Delivery)
    assert_type(delivery.type, str)
assert_type(SqlStorageEngine(database).fetch_one("key"), Any)


class Room(SqlChannel):
    def adapt(self, msg: MessageContract) -> dict[str, Any]:
        return {"event": msg.type, "data": msg.payload}


class Rooms(AbstractSqlChannelRepository[Room]):
    def create(self, channel_data: dict[str, Any]) -> Room:
        return Room(**channel_data, connections_factory=self.connections_factory)

    @staticmethod
    def _channel_to_dict(channel: AbstractChannel) -> dict[str, Any]:
        return {"channel_id": channel.id}


assert_type(Rooms(database).load_one("lobby"), Room)


class AnyRooms(AbstractSqlChannelRepository):
    def create(self, channel_data: dict[str, Any]) -> Room:
        return Room(**channel_data)

    @staticmethod
    def _channel_to_dict(channel: AbstractChannel) -> dict[str, Any]:
        return {"channel_id": channel.id}


assert_type(AnyRooms(database).load_one("lobby"), AbstractChannel)


async def main() -> None:
    assert_type(await AsyncChannelRepository(channels).load_one("news"), SqlSSEChannel)
    assert_type(await AsyncChannelRepository(Rooms(database)).load_one("lobby"), Room)
    assert_type(await AsyncQueue(queue).pop(timeout=1.0), MessageContract)
    async with AsyncQueue(queue).receive() as delivery:
        assert_type(delivery, Delivery)
    async for message in AsyncQueue(queue):
        assert_type(message, MessageContract)
"""


def test_a_type_checker_knows_what_calls_return(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    # The folder of the package itself: mypy does not follow the hook of an editable installation. The cache is that of
    # `make lint`, which has read SQLAlchemy.
    cache = f"--cache-dir={REPOSITORY / '.mypy_cache'}"
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-untyped-imports", cache]
    folder = Path(eric_sse_sql.__file__).parent.parent
    done = subprocess.run([*command, tmp_path / "application.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
