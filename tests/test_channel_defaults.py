"""What a ``SqlSSEChannel`` does unless it is told otherwise."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from eric_sse.message import Message

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0

if ERIC_SSE_2_0:
    pytest.skip("SqlSSEChannel needs eric-sse 2.1", allow_module_level=True)

from eric_sse_sql import SqlSSEChannel, SqlSSEChannelRepository


def test_browsers_reconnect_after_three_seconds(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    repository.persist(repository.create({"channel_id": "news"}))
    for channel in (SqlSSEChannel(), repository.create({}), repository.load_one("news")):
        assert channel.retry_timeout_milliseconds == 3_000
        assert channel.adapt(Message("m", "text"))["retry"] == 3_000


@pytest.mark.parametrize("replay_seconds", [0, 60])
@pytest.mark.parametrize("is_started", [False, True])
def test_the_stream_of_a_listener_that_was_not_started_ends_with_one_warning(
    database: Database, caplog: pytest.LogCaptureFixture, is_started: bool, replay_seconds: float
) -> None:
    channel = SqlSSEChannelRepository(database).create({"channel_id": "news", "replay_seconds": replay_seconds})
    listener = channel.add_listener()
    channel.dispatch(listener.id, Message("m", "text"))
    if is_started:
        listener.start()

    async def read() -> list[Any]:
        events = []
        async for event in channel.message_stream(listener):
            events.append(event["data"])
            listener.stop()
        return events

    with caplog.at_level(logging.INFO, "eric_sse_sql"):
        assert asyncio.run(asyncio.wait_for(read(), 30)) == (["text"] if is_started else [])
    warnings = [record for record in caplog.records if record.name == "eric_sse_sql"]
    assert [record.levelname for record in warnings] == ([] if is_started else ["WARNING"])
    assert all(listener.id in record.message and "start()" in record.message for record in warnings)
