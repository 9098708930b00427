"""What a database has, in numbers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from eric_sse.message import Message

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.models import ConnectionRow, MessageRow
from eric_sse_sql.overview import busiest_channels, totals
from eric_sse_sql.sql.overview import Totals
from support.ages import backdate
from support.statements import Record

if not ERIC_SSE_2_0:
    from eric_sse_sql import SqlSSEChannelRepository


def test_an_empty_database_has_nothing(database: Database) -> None:
    assert totals(database) == Totals(0, 0, 0, 0, None, 0, 0)
    assert busiest_channels(database, 10) == []


@pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channels")
def test_the_channels_with_most_messages_come_first_and_everything_is_counted(
    database: Database, statements: Record
) -> None:
    channels = SqlSSEChannelRepository(database)
    for channel_id, listeners, replay_seconds, messages in (("a", 1, 0, 0), ("b", 1, 0, 2), ("c", 2, 60, 3)):
        channel = channels.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
        for _ in range(listeners):
            channel.add_listener()
        channels.persist(channel)
        for number in range(messages):
            channel.broadcast(Message("m", number))
    SqlQueue(database, "without a channel").push(Message("m"))
    backdate(database, MessageRow.created_at, timedelta(hours=1))
    backdate(database, ConnectionRow.seen_at, timedelta(seconds=20))
    seen = statements(database)
    found = totals(database)
    assert found.oldest_seconds is not None
    assert 3600 <= found.oldest_seconds < 3700
    assert found == Totals(3, 4, 4, 3, found.oldest_seconds, 3, 0)
    of_channels = [(each.channel_id, *each[2:]) for each in busiest_channels(database, 10)]
    assert of_channels == [("b", 1, 1, 2, None), ("a", 1, 1, 0, None), ("c", 2, 2, 0, 3)]
    assert [each.channel_id for each in busiest_channels(database, 1)] == ["b"]
    assert len(seen) == 3
    backdate(database, ConnectionRow.seen_at, timedelta(seconds=90))
    assert totals(database).streaming == 0
