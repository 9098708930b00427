"""What the commands print, word for word."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from eric_sse.message import Message
from eric_sse_sql.migrations import newest_revision
from sqlalchemy import insert, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.models import ChannelRow, ConnectionRow, MessageIdRow, MessageRow, SetAsideRow
from support.ages import backdate
from support.command import Command

if not ERIC_SSE_2_0:
    from eric_sse_sql import SqlSSEChannelRepository

needs_channels = pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channels")
STATUS = """\
Tables       REVISION
Channels     3
Connections  3
Streaming    3
Waiting      1,203 messages, the first one for 2 hours
Events       2
Set aside    0

CHANNEL                               CONNECTIONS  STREAMING   WAITING    EVENTS
a channel with an id that is long...            2          2     1,200         -
escape\\x1b[2J                                   0          0         0         2
2 of 3 channels; --limit shows more
"""
PRUNED = """\
  messages of queues without a connection  2
  connections without a live stream        0
  messages set aside                       0
  expired events                           0
  message ids                              1
"""
SET_ASIDE = """\
1  3 days ago  queue orders  type order
    {"order": 1}
    it is broken, for a reason that is long enough to fill more than one line of
    the screen
2  3 days ago  queue orders  type order\\x1b[2J
    (pickled)
    why not
2 of 3 messages; --limit shows more
"""
INSERT_SET_ASIDE = text(
    "INSERT INTO sse_set_aside_messages (id, queue_id, message_type, message, created_at, delivery_count, reason) "
    "VALUES (:id, 'orders', :type, :blob, CURRENT_TIMESTAMP, 0, :reason)"
)
INSERT_ENTRY = text("INSERT INTO kv_entries (key, value, value_type) VALUES (:key, :value, 't')")
REASON = "it is broken, for a reason that is long enough to fill more than one line of the screen"


@needs_channels
def test_status_shows_the_totals_and_the_busiest_channels(command: Command, application: Database) -> None:
    channels = SqlSSEChannelRepository(application)
    for channel_id, replay_seconds, listeners in (
        ("a channel with an id that is longer than its column", 0, 2),
        ("escape\x1b[2J", 60, 0),
        ("quiet", 0, 1),
    ):
        channel = channels.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
        for _ in range(listeners):
            channel.add_listener()
        channels.persist(channel)
        if replay_seconds:
            channel.broadcast(Message("m"))
            channel.broadcast(Message("m"))
        if listeners == 2:
            SqlQueue(application, channel.get_connections()[0].queue.id).push_many([Message("m")] * 1200)
    SqlQueue(application).push_many([Message("m")] * 3)
    backdate(application, MessageRow.created_at, timedelta(hours=2.5))
    backdate(application, ConnectionRow.seen_at, timedelta(0))
    shown = command("status", "--limit", "2")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == STATUS.replace("REVISION", newest_revision())
    assert max(map(len, shown.out.splitlines())) <= 80
    described = json.loads(command("status", "--json", "--limit", "1").out)
    (busiest,) = described.pop("busiest_channels")
    assert 9000 <= described.pop("oldest_seconds") < 9100
    assert described == {
        "revision": newest_revision(),
        "channels": 3,
        "connections": 3,
        "streaming": 3,
        "waiting": 1203,
        "events": 2,
        "set_aside": 0,
    }
    assert busiest == {
        "channel_id": "a channel with an id that is longer than its column",
        "channel_type": "eric_sse_sql.channels.SqlSSEChannel",
        "connections": 2,
        "streaming": 2,
        "waiting": 1200,
        "events": None,
    }


def test_prune_counts_first_and_then_deletes(command: Command, application: Database) -> None:
    queue = SqlQueue(application)
    queue.push(Message("m"), message_id="1")
    queue.push(Message("m"))
    backdate(application, MessageRow.created_at, timedelta(hours=2))
    backdate(application, MessageIdRow.created_at, timedelta(hours=2))
    ages = "prune", "--older-than", "90m", "--unseen-for", "4w"
    assert command(*ages, "--dry-run") == (0, f"would delete:\n{PRUNED}", "")
    assert command(*ages) == (0, f"deleted:\n{PRUNED}", "")
    assert len(queue) == 0


def test_messages_that_were_set_aside_are_listed_retried_and_deleted(
    command: Command, application: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("set-aside", "list") == (0, "no message is set aside\n", "")
    rows = (1, "order", b'{"order": 1}', REASON), (2, "order\x1b[2J", b"\x80damaged", "why not"), (3, "m", b"2", "-")
    with application.engine.begin() as connection:
        for row in rows:
            connection.execute(INSERT_SET_ASIDE, dict(zip(("id", "type", "blob", "reason"), row, strict=True)))
    backdate(application, SetAsideRow.set_aside_at, timedelta(days=3.5))
    assert command("set-aside", "list", "--limit", "2") == (0, SET_ASIDE, "")
    assert command("set-aside", "delete", "2", "--yes") == (0, "deleted 1 message\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    question, refused = "delete 2 messages for good? [y/N] ", "nothing is deleted; --yes confirms it\n"
    assert command("set-aside", "delete") == (1, "", question + refused)
    assert command("set-aside", "retry") == (0, "put back 2 messages\n", "")
    assert SqlQueue(application, "orders").pop().payload == {"order": 1}
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with application.engine.begin() as connection:
        connection.execute(INSERT_SET_ASIDE, dict(zip(("id", "type", "blob", "reason"), rows[1], strict=True)))
    assert command("set-aside", "delete").out == "deleted 1 message\n"
    assert command("set-aside", "delete") == (0, "deleted 0 messages\n", "")


def test_the_largest_limit_is_not_said_to_show_more(command: Command, application: Database) -> None:
    ids = [str(number) for number in range(1001)]
    rows = [{"id": int(each), "type": "m", "blob": b"1", "reason": "-"} for each in ids]
    with application.engine.begin() as connection:
        connection.execute(INSERT_ENTRY, [{"key": each, "value": b"v"} for each in ids])
        connection.execute(insert(ChannelRow), [{"id": each, "entry_key": each, "channel_type": "t"} for each in ids])
        connection.execute(INSERT_SET_ASIDE, rows)
    assert command("status", "--limit", "1000").out.splitlines()[-1] == "1,000 of 1,001 channels"
    assert command("set-aside", "list", "--limit", "1000").out.splitlines()[-1] == "1,000 of 1,001 messages"


class Terminal(io.StringIO):
    """A terminal that keeps what it is to show."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_progress_of_prune(
    command: Command, application: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqlQueue(application).push_many([Message("m")] * 1001)
    backdate(application, MessageRow.created_at, timedelta(hours=2))
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert command("prune", "--older-than", "1h").code == 0
    shown = [line.rstrip() for line in terminal.getvalue().split("\r")]
    assert shown[1:3] == ["deleted 1,000 rows", "deleted 1,001 rows"]
    assert shown[-2:] == ["", ""]
