"""Messages that are stored as JSON: by every call, beside pickles, signed and not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message, MessageContract, UniqueMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, text

from eric_sse_sql import Database, PickleCodec, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.plain_json import MAX_DEPTH
from support.application import Order
from support.loops import run
from support.queues import drain

PAYLOAD = {"text": "é \N{SNOWMAN} \0", "list": [1, -2.5, None, True, []], "large": 2**70}
KEY = b"0123456789abcdef"
CODECS = {"unsigned": PickleCodec(), "signed": PickleCodec(signing_keys=[KEY])}
with_codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
on_2_1 = pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channel")

#: JSON values as Python has them: tuples and large floats included, and text that UTF-8 can encode.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: (
        st.lists(values, max_size=5)
        | st.lists(values, max_size=5).map(tuple)
        | st.dictionaries(st.text(), values, max_size=5)
    ),
    max_leaves=20,
)


class CountingCodec(PickleCodec):
    """Counts the pickles that it reads."""

    unpickles = 0

    def unpickled(self, *arguments: Any) -> Any:
        self.unpickles += 1
        return super().unpickled(*arguments)


@pytest.fixture
def json_database(database: Database) -> Iterator[Database]:
    """The same database, which stores messages as JSON."""
    with Database(database.engine, messages="json") as made:
        yield made


def blobs(database: Database, table: str = "sse_messages") -> list[bytes]:
    with database.engine.connect() as connection:
        return [bytes(blob) for (blob,) in connection.execute(text(f"SELECT message FROM {table}"))]


def execute(database: Database, statement: str, **parameters: Any) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement), parameters)


def with_lists(value: Any) -> Any:
    """A value with lists in the place of tuples."""
    if isinstance(value, dict):
        return {key: with_lists(item) for key, item in value.items()}
    return [with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def strict(value: Any) -> Any:
    """A value that equals others only where all types in it are the same, and the signs of zeros."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list) else (type(value), repr(value))


# What is stored


def test_a_queue_stores_the_payload_as_json_and_returns_it_equal(json_database: Database) -> None:
    queue = SqlQueue(json_database, "queue")
    queue.push(Message("first", PAYLOAD))
    (blob,) = blobs(json_database)
    assert (
        blob.decode() == '{"text":"é \N{SNOWMAN} \\u0000","list":[1,-2.5,null,true,[]],"large":1180591620717411303424}'
    )
    popped = queue.pop()
    assert (type(popped), popped.type, popped.payload) == (Message, "first", PAYLOAD)


def test_every_way_into_and_out_of_a_queue_takes_json(json_database: Database) -> None:
    queue = SqlQueue(json_database, "queue")
    queue.push_many(Message("n", number) for number in range(3))
    queue.push(Message("n", 3), message_id="once")
    queue.push(Message("n", 3), message_id="once")
    with suppress(KeyError), queue.receive() as delivery:
        assert (delivery.type, delivery.payload) == ("n", 0)
        raise KeyError
    taken = queue.take(2)
    queue.put_back(taken)
    with queue.receive() as delivery:
        assert (delivery.payload, delivery.delivery_count) == (0, 2)
    assert drain(queue) == [1, 2, 3]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(payloads=st.lists(JSON_VALUES, min_size=1, max_size=5))
def test_any_json_value_comes_back_equal(json_database: Database, payloads: list[Any]) -> None:
    queue = SqlQueue(json_database)
    queue.push_many(Message("m", payload) for payload in payloads)
    assert [strict(payload) for payload in drain(queue)] == [strict(with_lists(payload)) for payload in payloads]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Kind(str):
    """A str of a class of its own."""


UNSTORABLE: dict[str, tuple[MessageContract, str]] = {
    "NaN": (Message("m", float("nan")), "NaN, an infinity"),
    "an infinity": (Message("m", [float("-inf")]), "NaN, an infinity"),
    "an int of too many digits": (Message("m", {"a": 10**5000}), "digits"),
    "bytes": (Message("m", b"hunter2"), "builtins.bytes can't be stored as JSON"),
    "a set": (Message("m", [{1}]), "builtins.set can't be stored as JSON"),
    "a dict with a key that is no str": (Message("m", {"a": {1: "hunter2"}}), "a key that is no str"),
    "a key of a class derived from str": (Message("m", {Kind("a"): 1}), "a key that is no str"),
    "a value of a class derived from str": (Message("m", [Kind("a")]), "Kind can't be stored as JSON"),
    "a lone surrogate": (Message("m", "\ud800"), "a lone surrogate"),
    "a lone surrogate in a key": (Message("m", {"\udfff": 1}), "a lone surrogate"),
    "too many lists in each other": (Message("m", nested(MAX_DEPTH + 1)), "more than 200 lists and dicts"),
    "a message of another class": (
        UniqueMessage(message_id="id", message=Message("m")),
        "UniqueMessage can't be stored as JSON",
    ),
    "a message of an application": (Order(1, []), "Order can't be stored as JSON"),
    "a type that is too long": (Message("t" * 256), "at most 255 characters"),
    "a type with NUL": (Message("a\0b"), "without NUL"),
    "a type with a lone surrogate": (Message("a\ud800"), "lone surrogates"),
    "a type that is no str": (Message(Kind("m")), "must be a str"),
    "no message": ("hunter2", "a message must be a MessageContract"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_what_would_not_come_back_equal_is_refused_when_it_is_pushed(json_database: Database, name: str) -> None:
    message, reason = UNSTORABLE[name]
    queue = SqlQueue(json_database, "queue")
    for push in (lambda: queue.push(message), lambda: queue.push_many([Message("good"), message])):
        with pytest.raises(RepositoryError) as error:
            push()
        assert reason in str(error.value)
        assert "hunter2" not in str(error.value)
    assert blobs(json_database) == []
    queue.push(Message("t" * 255, nested(MAX_DEPTH)))
    assert queue.pop().payload == nested(MAX_DEPTH)


def test_another_format_is_refused(database: Database) -> None:
    with pytest.raises(RepositoryError, match='messages= must be "pickle" or "json"'):
        Database(database.engine, messages="yaml")


# Both formats


@with_codecs
def test_one_queue_holds_both_formats_and_every_reader_takes_both(shared_url: URL, codec: PickleCodec) -> None:
    with Database(shared_url, codec=codec) as pickling, Database(shared_url, codec=codec, messages="json") as json:
        writers = SqlQueue(pickling, "queue"), SqlQueue(json, "queue")
        for reader in writers:
            for number in range(6):
                writers[number % 2].push(Message("n", number))
            assert drain(reader) == list(range(6))


def test_damaged_json_is_set_aside_and_put_back(json_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    queue = SqlQueue(json_database, "queue")
    for damaged in (b'{"a":', b"NaN", b"1e400", b'"\xff"', b"\xef\xbb\xbf1", b"[" * 10_000, b"9" * 5000):
        queue.push_many([Message("m", 1), Message("m", 2)])
        execute(json_database, "UPDATE sse_messages SET message = :blob WHERE message = :good", blob=damaged, good=b"1")
        assert drain(queue) == [2]
        assert "neither a pickle of this package nor JSON" in caplog.messages[-1]
        execute(json_database, "UPDATE sse_set_aside_messages SET message = :blob", blob=b"1")
        assert json_database.retry_set_aside() == 1
        assert drain(queue) == [1]


def test_a_signed_message_is_valid_for_its_type_and_queue_only(database: Database) -> None:
    with Database(database.engine, codec=CODECS["signed"], messages="json") as signing:
        changes = {
            "message_type": "UPDATE sse_messages SET message_type = 'other'",
            "queue_id": "UPDATE sse_messages SET queue_id = 'other'",
            "message": "UPDATE sse_messages SET message = CAST('1' AS BLOB)",
        }
        if database.engine.dialect.name == "postgresql":
            changes["message"] = "UPDATE sse_messages SET message = convert_to('1', 'UTF8')"
        for column, change in changes.items():
            SqlQueue(signing, "queue").push(Message("m", "payload"))
            execute(signing, change)
            with pytest.raises(NoMessagesException):
                SqlQueue(signing, "other" if column == "queue_id" else "queue").pop()
        assert signing.count_set_aside() == len(changes)
        SqlQueue(signing, "queue").push(Message("m", "payload"))
        with pytest.raises(NoMessagesException):
            SqlQueue(database, "queue").pop()  # which has no key


@with_codecs
def test_the_stored_json_of_a_message_is_given_out_as_it_is_on_one_line(codec: PickleCodec) -> None:
    from eric_sse_sql.message_codec import MessageCodec

    json, pickles = MessageCodec(codec, "json"), MessageCodec(codec)
    message_type, blob = json.encode(Message("m", {"a": ["b c"]}), "context")
    assert json.json_of(message_type, blob, "context") == b'{"a":["b c"]}'
    assert json.json_of(*pickles.encode(Message("m"), "context"), "context") is None
    with pytest.raises(RepositoryError, match="neither" if not codec.signs else "signature"):
        json.json_of("m", b"[1", "context")
    if not codec.signs:
        assert json.json_of("m", b'{\r\n "a": 1 }', "context") == b'{"a":1}'
    else:
        with pytest.raises(RepositoryError, match="signature"):
            json.json_of("other", blob, "context")


# Channels


@contextmanager
def channel_of(database: Database, replay_seconds: float) -> Iterator[Any]:
    """A channel with two started listeners, loaded after it was persisted."""
    from eric_sse_sql import SqlSSEChannelRepository

    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "feed", "replay_seconds": replay_seconds})
    for _ in range(2):
        channel.add_listener().start()
    repository.persist(channel)
    yield repository.load_one("feed")
    repository.delete("feed")


def delivered(channel: Any) -> list[list[Any]]:
    """The payloads that wait for each listener of a channel, the longest list last."""
    found: list[list[Any]] = []
    for connection in channel.get_connections():
        connection.listener.start()
        found.append([])
        with suppress(NoMessagesException):
            while True:
                found[-1].append(channel.deliver_next(connection.listener.id).payload)
    return sorted(found, key=len)


@on_2_1
@with_codecs
@pytest.mark.parametrize("replay_seconds", [0, 60], ids=["queues", "log"])
def test_a_channel_sends_json(database: Database, codec: PickleCodec, replay_seconds: float) -> None:
    with (
        Database(database.engine, codec=codec, messages="json") as used,
        channel_of(used, replay_seconds) as channel,
    ):
        one = channel.get_connections()[0].listener.id
        for _ in range(2):
            channel.broadcast(Message("m", {"to": "all"}), message_id="once")
            channel.dispatch(one, Message("m", {"to": "one"}), message_id="once")
        stored = blobs(used, "sse_events" if replay_seconds else "sse_messages")
        assert {blob[44 if codec.signs else 0 :] for blob in stored} == {b'{"to":"all"}', b'{"to":"one"}'}
        with pytest.raises(RepositoryError, match="can't be stored as JSON"):
            channel.broadcast(Order(1, []))
        assert delivered(channel) == [[{"to": "all"}], [{"to": "all"}, {"to": "one"}]]


@on_2_1
@with_codecs
def test_a_log_holds_both_formats_also_of_messages_that_were_in_queues(shared_url: URL, codec: PickleCodec) -> None:
    with (
        Database(shared_url, codec=codec) as pickling,
        Database(shared_url, codec=codec, messages="json") as json,
        channel_of(json, 60) as channel,
    ):
        from eric_sse_sql import SqlSSEChannelRepository

        one = channel.get_connections()[0]
        SqlSSEChannelRepository(pickling).load_one("feed").broadcast(Order(1, ["pickled"]))
        channel.broadcast(Message("m", 2))
        SqlQueue(pickling, one.queue.id).push(Order(3, ["pickled"]))  # moved to the log as it is
        assert delivered(channel) == [[{"number": 1}, 2], [{"number": 1}, 2, {"number": 3}]]


@on_2_1
def test_a_signed_event_is_valid_for_its_type_only(shared_url: URL) -> None:
    with (
        Database(shared_url, codec=CODECS["signed"], messages="json") as signing,
        channel_of(signing, 60) as channel,
    ):
        for _ in range(2):
            channel.broadcast(Message("m", 1))
        execute(signing, "UPDATE sse_events SET message_type = 'other' WHERE position = 1")
        assert delivered(channel) == [[1], [1]]


@on_2_1
@pytest.mark.parametrize("replay_seconds", [0, 60], ids=["queues", "log"])
def test_streams_deliver_json(shared_url: URL, replay_seconds: float) -> None:
    from support.streams import events

    with Database(shared_url, messages="json") as used, channel_of(used, replay_seconds) as channel:
        listener = channel.get_connections()[0].listener
        listener.start()
        channel.broadcast(Message("m", PAYLOAD))
        (event,) = run(lambda: events(channel, listener, 1))
        assert (event["event"], event["data"]) == ("m", PAYLOAD)


@on_2_1
@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["unsigned", "signed"])
@pytest.mark.parametrize("replay_seconds", [0, 60], ids=["queues", "log"])
def test_no_pickle_is_read_but_of_objects_of_an_application(
    shared_url: URL, keys: tuple[bytes, ...], replay_seconds: float
) -> None:
    from eric_sse_sql import SqlSSEChannelRepository

    codec = CountingCodec(signing_keys=keys)
    with Database(shared_url, codec=codec, messages="json") as used, channel_of(used, replay_seconds) as channel:
        channel.broadcast(Message("m", PAYLOAD))
        channel.dispatch(channel.get_connections()[0].listener.id, Message("m", PAYLOAD))
        assert delivered(channel) == [[PAYLOAD], [PAYLOAD, PAYLOAD]]
        assert [each.id for each in SqlSSEChannelRepository(used).load_all()] == ["feed"]
        assert codec.unpickles == 0
