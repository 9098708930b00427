"""The views of payloads on both databases, and the functions of Postgres that send from plain SQL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message, MessageContract
from sqlalchemy import URL, create_engine, text

from eric_sse_sql import Database, PickleCodec, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.wakeups.notifier import NOTIFY_CHANNEL
from eric_sse_sql.wakeups.topics import channel_topic, listener_topic
from support.catalog import conninfo
from support.queues import drain
from support.waiting import DEADLINE

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel, SqlSSEChannelRepository

SIGNING = PickleCodec(signing_keys=[b"0123456789abcdef"])
#: Blobs of which the views show nothing.
WITHOUT_PAYLOAD = (b"", b"damaged", b"{", b"\xff\xfe", b"\x80\x05.", b'{"a":1}\0', b"HMAC-SHA256:", b"[" * 5000)


class OwnPush(SqlQueue):
    """A queue with a push of its own."""

    def push(self, message: MessageContract, message_id: str | None = None) -> None:
        super().push(message, message_id)


# Views


@pytest.mark.parametrize("codec", [PickleCodec(), SIGNING], ids=["unsigned", "signed"])
def test_views_show_the_payloads_of_messages_and_events_that_are_stored_as_json(
    shared_url: URL, codec: PickleCodec
) -> None:
    payload = {"text": "né \N{SNOWMAN}", "numbers": [1, -2.5, None, True]}
    with Database(shared_url, codec=codec, messages="json") as database, Database(shared_url, codec=codec) as pickling:
        queue = SqlQueue(database, "queue")
        queue.push(Message("json", payload))
        SqlQueue(pickling, "queue").push(Message("pickle", payload))
        channel = SqlSSEChannelRepository(database).create({"replay_seconds": 60})
        channel.broadcast(Message("json", payload))
        with database.engine.connect() as connection:
            rows = "SELECT message_type, {} FROM {} ORDER BY 1"
            for view in ("sse_message_payloads", "sse_event_payloads"):
                (shown, *others) = connection.execute(text(rows.format("payload", view)))
                assert (shown[0], loaded(shown[1])) == ("json", payload)
                assert [tuple(row) for row in others] == [("pickle", None)] * (view == "sse_message_payloads")


def loaded(payload: Any) -> Any:
    """A payload as Python has it: psycopg decodes jsonb, and SQLite's is text."""
    return json.loads(payload) if isinstance(payload, str) else payload


def test_a_view_shows_no_payload_of_a_blob_that_is_no_json(shared_url: URL) -> None:
    with Database(shared_url) as database:
        insert = text("INSERT INTO sse_messages (queue_id, message_type, message) VALUES ('q', 'm', :blob)")
        with database.engine.begin() as connection:
            connection.execute(insert, [{"blob": blob} for blob in WITHOUT_PAYLOAD])
            shown = connection.scalars(text("SELECT payload FROM sse_message_payloads")).all()
    assert shown == [None] * len(WITHOUT_PAYLOAD)


def test_on_postgres_a_payload_that_jsonb_can_not_hold_is_not_shown(postgres: URL) -> None:
    with Database(postgres, messages="json") as database:
        queue = SqlQueue(database, "queue")
        queue.push(Message("m", "a\0b"))
        with database.engine.connect() as connection:
            assert connection.scalars(text("SELECT payload FROM sse_message_payloads")).all() == [None]
        assert queue.pop().payload == "a\0b"


# Functions


@pytest.fixture
def sender(postgres: URL) -> Iterator[psycopg.Connection]:
    """A connection of the application, which listens too."""
    with psycopg.connect(conninfo(postgres)) as connection:
        connection.execute(f"LISTEN {NOTIFY_CHANNEL}")
        connection.commit()
        yield connection


def stored(database: Database, listeners: int = 2, **options: Any) -> SqlSSEChannel:
    """A channel with started listeners that is persisted."""
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database), **options)
    for _ in range(listeners):
        channel.add_listener().start()
    SqlSSEChannelRepository(database).persist(channel)
    return channel


def delivered(channel: SqlSSEChannel) -> list[list[tuple[str, Any]]]:
    """Type and payload of all messages that wait for each listener of a channel, sorted."""
    found = []
    for connection in channel.get_connections():
        of_listener = []
        while True:
            try:
                message = channel.deliver_next(connection.listener.id)
            except NoMessagesException:
                break
            of_listener.append((message.type, message.payload))
        found.append(of_listener)
    return sorted(found, key=len)


def heard(sender: psycopg.Connection) -> list[str]:
    """The payload of the notification of a transaction."""
    return [each.payload for each in sender.notifies(timeout=DEADLINE, stop_after=1)]


@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_functions_send_and_notify_when_their_transaction_is_committed(
    postgres: URL, sender: psycopg.Connection, replay_seconds: float
) -> None:
    with Database(postgres) as database:
        channel = stored(database, replay_seconds=replay_seconds)
        one = channel.get_connections()[0].listener.id
        sender.execute("SELECT eric_sse_broadcast(%s, 'rolled back', '1')", [channel.id])
        sender.rollback()
        sender.execute("SELECT eric_sse_broadcast(%s, 'all', %s)", [channel.id, '{"a": [1, "é"]}'])
        assert delivered(channel) == [[], []]
        sender.commit()
        assert heard(sender) == [channel_topic(None, channel.id) + channel_topic("public", channel.id)]
        sender.execute("SELECT eric_sse_dispatch(%s, %s, 'one', NULL)", [channel.id, one])
        sender.commit()
        if replay_seconds:
            assert heard(sender) == [channel_topic(None, channel.id) + channel_topic("public", channel.id)]
        else:
            topics = [listener_topic(schema, channel.id, one) for schema in (None, "public")]
            assert heard(sender) == ["".join(topics)]
        to_all = ("all", {"a": [1, "é"]})
        assert delivered(channel) == [[to_all], [to_all, ("one", None)]]


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ("eric_sse_broadcast('unknown', 't', '1')", "no channel 'unknown'", "persisted"),
        ("eric_sse_broadcast(NULL, 't', '1')", "no channel NULL", "persisted"),
        ("eric_sse_dispatch('stored', 'unknown', 't', '1')", "'stored' has no listener 'unknown'", "persisted"),
        ("eric_sse_dispatch('stored', NULL, 't', '1')", "must not be NULL", "eric_sse_broadcast"),
        ("eric_sse_broadcast('stored', repeat('t', 256), '1')", "at most 255 characters", ""),
        ("eric_sse_broadcast('stored', NULL, '1')", "at most 255 characters", ""),
        ("eric_sse_broadcast('own', 't', '1')", "a push() of its own", "broadcast()"),
    ],
)
def test_what_a_function_can_not_send_is_an_error_that_says_what_to_do(
    postgres: URL, sender: psycopg.Connection, call: str, message: str, hint: str
) -> None:
    with Database(postgres) as database:
        stored(database, channel_id="stored")
        own = SqlSSEChannel(channel_id="own", connections_factory=SqlConnectionsFactory(database, OwnPush))
        own.add_listener()
        SqlSSEChannelRepository(database).persist(own)
        with pytest.raises(psycopg.Error) as error:
            sender.execute(f"SELECT {call}")
        assert message in str(error.value.diag.message_primary)
        assert hint in str(error.value.diag.message_hint)


def test_functions_see_the_tables_of_their_schema_whatever_the_search_path_is(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    with Database(url, schema="odd Name") as database:
        database.upgrade()
        channel = stored(database, listeners=1)
        with psycopg.connect(conninfo(url), autocommit=True) as sender:
            sender.execute("CREATE TEMP TABLE sse_connections AS SELECT 'another' AS queue_id")
            sender.execute(f"LISTEN {NOTIFY_CHANNEL}")
            sender.execute("""SELECT "odd Name".eric_sse_broadcast(%s, 'm', '1')""", [channel.id])
            assert heard(sender) == [channel_topic(None, channel.id) + channel_topic("odd Name", channel.id)]
        assert delivered(channel) == [[("m", 1)]]


def test_what_a_function_sends_is_not_signed_and_set_aside_by_readers_that_ask_for_signatures(
    postgres: URL, sender: psycopg.Connection
) -> None:
    with Database(postgres, codec=SIGNING) as database:
        channel = stored(database, listeners=1)
        sender.execute("SELECT eric_sse_broadcast(%s, 'm', '1')", [channel.id])
        sender.commit()
        assert delivered(channel) == [[]]
        assert database.count_set_aside() == 1


# Plain INSERT


INSERTS = {
    "postgresql": """
        INSERT INTO sse_messages (queue_id, message_type, message)
        VALUES ('queue', 'm', convert_to('{"a": 1}', 'UTF8'))
    """,
    "sqlite": """
        INSERT INTO sse_messages (queue_id, message_type, message)
        VALUES ('queue', 'm', CAST(json_object('a', 1) AS BLOB))
    """,
}


def test_a_message_of_a_plain_insert_is_popped(database: Database) -> None:
    engine = database.engine
    with engine.begin() as connection:
        connection.exec_driver_sql(INSERTS[engine.dialect.name])
    assert drain(SqlQueue(database, "queue")) == [{"a": 1}]


def test_on_sqlite_an_event_of_a_plain_insert_is_delivered(tmp_path: Path, migrated_sqlite: Path) -> None:
    shutil.copyfile(migrated_sqlite, tmp_path / "test.db")
    insert = text("""
        INSERT INTO sse_events (channel_id, position, message_type, message, created_at)
        SELECT channel_id, last_position + 1, 'm', CAST(:payload AS BLOB), strftime('%Y-%m-%d %H:%M:%f', 'now')
        FROM sse_event_logs WHERE channel_id = :channel
    """)
    with Database(f"sqlite:///{tmp_path / 'test.db'}") as database:
        channel = stored(database, listeners=1, replay_seconds=60)
        application = create_engine(database.engine.url)
        for payload in ("1", '"two"'):
            with application.begin() as connection:
                connection.execute(insert, {"payload": payload, "channel": channel.id})
        application.dispose()
        channel.broadcast(Message("m", 3))
        assert delivered(channel) == [[("m", 1), ("m", "two"), ("m", 3)]]
