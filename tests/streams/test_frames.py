"""``sse_stream``: the events of a listener as bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from eric_sse.exception import InvalidListenerException, RepositoryError
from eric_sse.message import Message, MessageContract
from sqlalchemy import URL, text

from eric_sse_sql import Database, PickleCodec
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.message_codec import MessageCodec
from support.catalog import rename_table
from support.waiting import DEADLINE
from support.wire import Dispatched, dispatched

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse.listener import MessageQueueListener
from eric_sse.queues import InMemoryQueue

from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel, SqlSSEChannelRepository
from eric_sse_sql.channels import Connection
from support.streams import RecordingListener


class Shouting(SqlSSEChannel):
    """Adapts what it sends."""

    def adapt(self, msg: MessageContract) -> dict[str, Any]:
        if msg.payload == "fail":
            raise ValueError("the payload says so")
        return {"event": msg.type, "data": {"shouted": str(msg.payload).upper()}}


@pytest.fixture
def database(shared_url: URL) -> Iterator[Database]:
    with Database(shared_url) as made:
        yield made


@pytest.fixture(params=[0, 60], ids=["queue", "log"])
def channel(request: pytest.FixtureRequest, database: Database) -> SqlSSEChannel:
    """A persisted channel with one listener, which is started."""
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": "news", "replay_seconds": request.param})
    made.add_listener().start()
    repository.persist(made)
    return made


def listener_of(channel: SqlSSEChannel) -> MessageQueueListener:
    (connection,) = channel.get_connections()
    return connection.listener


def read(
    channel: SqlSSEChannel, count: int, last_event_id: str | None = None, *, listener: Any = None, **options: Any
) -> tuple[str, list[Dispatched]]:
    """What a stream has sent, and the events in it: the first ones, or all where the stream ends before."""

    async def main() -> str:
        sent = ""
        async with aclosing(channel.sse_stream(listener or listener_of(channel), last_event_id, **options)) as frames:
            async for frame in frames:
                sent += frame.decode()
                if len(dispatched(sent)) == count:
                    break
        return sent

    async def in_time() -> str:
        return await asyncio.wait_for(main(), DEADLINE)

    sent = asyncio.run(in_time())
    return sent, dispatched(sent)


def contents(found: list[Dispatched]) -> list[tuple[str, Any]]:
    return [(event.type, json.loads(event.data)) for event in found]


def test_the_retry_stands_once_before_events_in_json(channel: SqlSSEChannel) -> None:
    payloads = [{"a": [1, None, "é\u2028\r\n"]}, "text", None, (True, 1.5)]
    for payload in payloads:
        channel.broadcast(Message("m", payload))
    sent, found = read(channel, 4)
    assert contents(found) == [("m", json.loads(json.dumps(payload))) for payload in payloads]
    assert sent.startswith("retry: 3000\n\n") and sent.count("retry") == 1
    assert [bool(event.last_event_id) for event in found] == [bool(channel.replay_seconds)] * 4
    if channel.replay_seconds:
        assert read(channel, 1, found[2].last_event_id)[1] == found[3:]


@pytest.mark.parametrize(
    ("event_type", "received"),
    [("a\nevent: admin\ndata: forged\n\n", "aevent: admindata: forged"), ("é", "é"), ("", "message"), ("\ud800", "?")],
)
def test_a_type_injects_no_event(channel: SqlSSEChannel, event_type: str, received: str) -> None:
    channel.broadcast(Message(event_type, "one\r\ntwo\n\ndata: three"))
    assert contents(read(channel, 1)[1]) == [(received, "one\r\ntwo\n\ndata: three")]


@pytest.mark.parametrize("payload", [{1, 2}, float("nan"), "\ud800"], ids=["set", "NaN", "lone surrogate"])
def test_a_payload_that_json_does_not_have_is_an_error_event_and_logged(
    channel: SqlSSEChannel, payload: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channel.broadcast(Message("secrets", payload))
    channel.broadcast(Message("m", "after"))
    assert contents(read(channel, 2)[1]) == [("error", "a message can't be delivered"), ("m", "after")]
    assert "an event of the type 'secrets' can't be sent" in caplog.text


@pytest.mark.parametrize("messages", ["pickle", "json"])
def test_an_event_of_a_log_is_made_once_for_all_streams(
    shared_url: URL, messages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def json_of(codec: MessageCodec, message_type: str, *others: Any) -> bytes | None:
        made.append(message_type)
        return original(codec, message_type, *others)

    original = MessageCodec.json_of
    monkeypatch.setattr(MessageCodec, "json_of", json_of)
    with Database(shared_url, messages=messages) as database:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": "news", "replay_seconds": 60})
        listeners = [channel.add_listener() for _ in range(3)]
        repository.persist(channel)
        channel.broadcast(Message("to all", 1))
        channel.dispatch(listeners[0].id, Message("to one", 1))
        for listener, count in zip(listeners, (2, 1, 1), strict=True):
            listener.start()
            assert len(read(channel, count, listener=listener)[1]) == count
    assert made == ["to all", "to one"]


@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_stored_json_is_sent_as_it_is(shared_url: URL, replay_seconds: float) -> None:
    signing = PickleCodec(signing_keys=[b"a key of sixteen bytes or more"])
    for codec in (None, signing):
        with Database(shared_url, messages="json", codec=codec) as database:
            repository = SqlSSEChannelRepository(database)
            channel = repository.create({"replay_seconds": replay_seconds})
            channel.add_listener().start()
            repository.persist(channel)
            channel.broadcast(Message("m", {"é": 1}))
            if codec is None:
                table = "sse_events" if replay_seconds else "sse_messages"
                with database.engine.begin() as connection:
                    connection.execute(text(f"UPDATE {table} SET message = :data"), {"data": '{"é":  1}'.encode()})
            (event,) = read(channel, 1)[1]
            assert (event.type, event.data) == ("m", '{"é":1}' if codec else '{"é":  1}')


@pytest.mark.parametrize("replay_seconds", [0, 60])
@pytest.mark.parametrize(("kind", "data"), [(Shouting, {"shouted": "A"}), (SqlSSEChannel, "a")])
def test_what_the_application_overrides_is_called(
    database: Database, replay_seconds: float, kind: type[SqlSSEChannel], data: Any
) -> None:
    channel = kind(connections_factory=SqlConnectionsFactory(database), replay_seconds=replay_seconds)
    listener = RecordingListener()
    channel.register_listener(listener)
    listener.start()
    for payload in ("fail", "a"):
        channel.broadcast(Message("m", payload))
    failed, adapted = contents(read(channel, 2, listener=listener)[1])
    assert (failed[0], adapted) == ("error", ("m", data))
    assert listener.heard == ["a"]


def test_a_comment_is_sent_while_there_is_no_event(channel: SqlSSEChannel) -> None:
    async def main() -> None:
        listener = listener_of(channel)
        async with aclosing(channel.sse_stream(listener, heartbeat=0.01)) as frames:
            assert [await anext(frames) for _ in range(3)] == [b"retry: 3000\n\n", b":\n\n", b":\n\n"]
            await asyncio.to_thread(channel.broadcast, Message("m", 1))
            while (frame := await anext(frames)) == b":\n\n":
                pass
            assert dispatched(frame.decode())[0].data == "1"

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def test_a_queue_of_another_class_has_comments_and_events() -> None:
    channel, listener = SqlSSEChannel(), MessageQueueListener()
    channel.register_connection(Connection(listener, InMemoryQueue()))
    listener.start()

    async def main() -> list[bytes]:
        async with aclosing(channel.sse_stream(listener, heartbeat=0.01)) as frames:
            found = [await anext(frames) for _ in range(2)]
            channel.broadcast(Message("m", 1))
            while found[-1] == b":\n\n":
                found.append(await anext(frames))
            return found

    found = asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert (found[0], found[1], found[-1]) == (b"retry: 3000\n\n", b":\n\n", b"event: m\ndata: 1\n\n")


def test_the_stream_of_a_listener_that_another_process_deletes_ends_with_a_gone_event(
    channel: SqlSSEChannel, database: Database
) -> None:
    listener = listener_of(channel)
    channel.broadcast(Message("m", "the last one"))
    repository = SqlSSEChannelRepository(database)

    async def main() -> str:
        sent = ""
        async for frame in channel.sse_stream(listener):
            sent += frame.decode()
            if "the last one" in sent:
                await asyncio.to_thread(repository.delete, channel.id)
        return sent

    found = dispatched(asyncio.run(asyncio.wait_for(main(), DEADLINE)))
    assert contents(found) == [("m", "the last one"), ("gone", "the listener is deleted")]
    with pytest.raises(InvalidListenerException):
        read(channel, 1, listener=listener)


def test_a_stopped_listener_ends_its_stream_without_an_event(channel: SqlSSEChannel) -> None:
    listener = listener_of(channel)
    channel.broadcast(Message("m", 1))

    async def main() -> str:
        sent = ""
        async for frame in channel.sse_stream(listener):
            sent += frame.decode()
            if dispatched(sent):
                listener.stop()
        return sent

    assert len(dispatched(asyncio.run(asyncio.wait_for(main(), DEADLINE)))) == 1


def test_errors_of_the_database_and_gaps_are_events_with_data(channel: SqlSSEChannel, database: Database) -> None:
    tables = ("sse_messages", "sse_events")
    for table in tables:
        rename_table(database, table, f"{table}_elsewhere")
    try:
        found = read(channel, 1)[1]
    finally:
        for table in tables:
            rename_table(database, f"{table}_elsewhere", table)
    assert found[0].type == "error" and isinstance(json.loads(found[0].data), str)
    if channel.replay_seconds:
        channel.broadcast(Message("m", 1))
        found = read(channel, 2, "99999999")[1]
        assert contents(found) == [("reset", "events before this one are gone"), ("m", 1)]


@pytest.mark.parametrize("heartbeat", [0, -1, float("nan"), "15", True])
def test_a_heartbeat_must_be_a_number_of_seconds(channel: SqlSSEChannel, heartbeat: Any) -> None:
    with pytest.raises(RepositoryError, match="heartbeat must be"):
        read(channel, 1, heartbeat=heartbeat)
