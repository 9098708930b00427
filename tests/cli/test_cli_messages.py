"""``send`` and ``tail``: the messages of a channel of any class."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eric_sse.message import Message, MessageContract
from sqlalchemy import URL, text

from eric_sse_sql import Database, PickleCodec
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import address, table_counts
from support.command import Command, running
from support.queues import drain
from support.waiting import PATIENCE, until

if not ERIC_SSE_2_0:
    from eric_sse_sql import AbstractSqlChannelRepository, SqlChannel, SqlSSEChannelRepository

    class Room(SqlChannel):
        """A channel of the application's own, which the command does not know."""

        def adapt(self, msg: MessageContract) -> Any:
            return msg.payload

    class Rooms(AbstractSqlChannelRepository):
        """Rooms, each stored as a dictionary that tells nothing of a log."""

        def create(self, channel_data: dict[str, Any]) -> Room:
            return Room(channel_id=channel_data["room"], connections_factory=self.connections_factory)

        @staticmethod
        def _channel_to_dict(channel: Any) -> dict[str, Any]:
            return {"room": channel.id}


pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channels")


def test_a_message_is_sent_as_json_to_all_listeners_or_to_one(command: Command, application: Database) -> None:
    rooms = Rooms(application)
    room = rooms.create({"room": "room"})
    first, second = room.add_listener(), room.add_listener()
    rooms.persist(room)
    queues = {each.listener.id: each.queue for each in room.get_connections()}
    assert command("send", "room", "greeting", '{"text": "h\u00e9"}') == (0, "", "")
    assert command("send", "room", "greeting", "[1, null]", "--listener", second.id) == (0, "", "")
    with application.engine.connect() as connection:
        blobs = [bytes(blob) for (blob,) in connection.execute(text("SELECT message FROM sse_messages ORDER BY id"))]
    assert blobs == 2 * ['{"text":"h\u00e9"}'.encode()] + [b"[1,null]"]
    assert drain(queues[first.id]) == [{"text": "h\u00e9"}]
    assert drain(queues[second.id]) == [{"text": "h\u00e9"}, [1, None]]
    unknown = command("send", "room", "greeting", "1", "--listener", "nobody")
    assert (unknown.code, unknown.out, unknown.err.count("\n")) == (1, "", 1)


def test_a_message_for_a_channel_with_a_log_is_an_event(command: Command, application: Database) -> None:
    channels = SqlSSEChannelRepository(application)
    channel = channels.create({"channel_id": "log", "replay_seconds": 60})
    listener = channel.add_listener()
    channels.persist(channel)
    assert command("send", "log", "greeting", "1").code == 0
    assert command("send", "log", "greeting", "2", "--listener", listener.id).code == 0
    with application.engine.connect() as connection:
        events = connection.execute(text("SELECT position, listener_id FROM sse_events ORDER BY position")).all()
    assert [tuple(event) for event in events] == [(1, None), (2, listener.id)]


def test_a_message_is_signed_with_the_key_of_the_application(
    command: Command, shared_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = "an-old-secret-of-16-bytes", "a-new-secret-of-16-bytes"
    rotated = PickleCodec(signing_keys=[new.encode(), old.encode()])
    with (
        Database(shared_url, codec=PickleCodec(signing_keys=[old.encode()])) as application,
        Database(shared_url, codec=rotated) as reader,
    ):
        channels = SqlSSEChannelRepository(application)
        channel = channels.create({"channel_id": "signed"})
        listener = channel.add_listener()
        channels.persist(channel)
        unsigned = command("send", "signed", "m", "1")
        assert unsigned.code == 1
        assert "ERIC_SSE_SQL_SIGNING_KEY" in unsigned.err
        monkeypatch.setenv("ERIC_SSE_SQL_SIGNING_KEY", f"{new} {old}")
        assert command("send", "signed", "m", "2", "--listener", listener.id) == (0, "", "")
        (connection,) = SqlSSEChannelRepository(reader).load_one("signed").get_connections()
        assert drain(connection.queue) == [2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_shows_the_broadcasts_of_a_channel_and_deletes_its_listener_at_a_signal(
    shared_url: URL, application: Database, tmp_path: Path, number: int
) -> None:
    rooms = Rooms(application)
    room = rooms.create({"room": "room"})
    room.add_listener()
    rooms.persist(room)
    room.broadcast(Message("before", 0))
    before = table_counts(application)
    with running(tmp_path, "tail", "room", "--url", address(shared_url)) as tail:
        until(lambda: "waiting" in tail.err.read_text())
        room.broadcast(Message("plain", {"a": [1, "\x1b"]}))
        room.broadcast(Message("object", b"bytes"))
        until(lambda: "object" in tail.out.read_text())
        done = tail.end(number)
    assert (done.code, done.out) == (128 + number, 'plain  {"a":[1,"\\u001b"]}\nobject  (pickled)\n')
    assert table_counts(application) == {**before, "sse_messages": before["sse_messages"] + 2}


def test_a_pipe_that_is_closed_ends_tail_quietly_and_without_its_listener(
    shared_url: URL, application: Database, tmp_path: Path
) -> None:
    rooms = Rooms(application)
    room = rooms.create({"room": "room"})
    rooms.persist(room)
    command = [sys.executable, "-m", "eric_sse_sql", "--url", address(shared_url), "tail", "room"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.readline().startswith(b"waiting")
        process.stdout.close()
        room.broadcast(Message("m"))
        assert (process.wait(PATIENCE), process.stderr.read()) == (141, b"")
    assert table_counts(application)["sse_connections"] == 0


def test_tail_ends_when_its_channel_is_deleted(shared_url: URL, application: Database, tmp_path: Path) -> None:
    rooms = Rooms(application)
    room = rooms.create({"room": "room"})
    rooms.persist(room)
    with running(tmp_path, "tail", "room", "--url", address(shared_url)) as tail:
        until(lambda: "waiting" in tail.err.read_text())
        rooms.delete("room")
        tail.process.join(PATIENCE)
        assert tail.process.exitcode == 1
    assert "channel room was deleted" in tail.err.read_text()
    assert set(table_counts(application).values()) == {0}


def test_tail_shows_the_last_events_of_a_log_and_those_for_one_listener(
    shared_url: URL, application: Database, tmp_path: Path
) -> None:
    channels = SqlSSEChannelRepository(application)
    channel = channels.create({"channel_id": "log", "replay_seconds": 60})
    listener = channel.add_listener()
    channels.persist(channel)
    for number in range(3):
        channel.broadcast(Message("m", number))
    before = table_counts(application)
    with running(tmp_path, "tail", "log", "-n", "1", "--json", "--url", address(shared_url)) as tail:
        until(lambda: "waiting" in tail.err.read_text())
        channel.dispatch(listener.id, Message("m", {"a": 1}))
        until(lambda: tail.out.read_text().count("\n") == 2)
        done = tail.end(signal.SIGINT)
    assert done.code == 130
    assert [json.loads(line) for line in done.out.splitlines()] == [
        {"position": 3, "listener_id": None, "type": "m", "payload": 2, "is_shown": True},
        {"position": 4, "listener_id": listener.id, "type": "m", "payload": {"a": 1}, "is_shown": True},
    ]
    assert table_counts(application) == {**before, "sse_events": 4}
