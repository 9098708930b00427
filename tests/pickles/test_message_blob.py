"""Blobs of eric-sse's own ``Message``: a call of the class around the pickle of type and payload."""

from __future__ import annotations

import pickle
from datetime import datetime, timezone
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from eric_sse_sql import Database, PickleCodec, SqlQueue
from eric_sse_sql.pickles import message_blob
from support import application

CODEC = PickleCodec()
CONTEXT = "sse_messages/q"
KEY = b"k" * 16

# A message pickled as an ordinary object, as earlier versions did.
ORDINARY_PICKLE = bytes.fromhex(
    "80059589000000000000008c10657269635f7373652e6d657373616765948c074d6573736167659493942981948c12657269635f7373655f73"
    "716c2e636f646563948c095f536574537461746594939468037d94288c055f74797065948c0c6e6f74696669636174696f6e948c085f706179"
    "6c6f6164947d94288c016e944b018c0474616773945d948c0161946175758652302e"
)

PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=100) | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


def round_trip(message: Any, codec: PickleCodec = CODEC) -> Any:
    return codec.decode(codec.encode(message, CONTEXT), CONTEXT)


def content(value: object) -> bytes:
    """The blob of a message with anything in place of its type and payload."""
    return message_blob.wrap(pickle.dumps(value, 5))


@given(st.text(max_size=20), PAYLOADS)
def test_a_message_is_decoded_equal_and_can_be_unpickled_without_the_codec(kind: str, payload: Any) -> None:
    blob = CODEC.encode(Message(kind, payload), CONTEXT)
    assert message_blob.unwrap(blob) is not None
    for loaded in (CODEC.decode(blob, CONTEXT), pickle.loads(blob)):
        assert type(loaded) is Message
        assert (loaded.type, loaded.payload) == (kind, payload)


@pytest.mark.parametrize("size", [200, 70_000, 200_000])
def test_a_message_of_several_frames_is_decoded(size: int) -> None:
    payload = ["x" * size, b"y" * size, list(range(size)), "z"]
    blob = CODEC.encode(Message("large", payload), CONTEXT)
    assert CODEC.decode(blob, CONTEXT).payload == payload
    assert pickle.loads(blob).payload == payload


def test_a_payload_of_other_classes_is_decoded() -> None:
    moment, inner = datetime(2024, 1, 1, tzinfo=timezone.utc), application.Order(1)
    loaded = round_trip(Message("n", {"at": moment, "message": inner})).payload
    assert loaded["at"] == moment
    assert type(loaded["message"]) is application.Order
    assert vars(loaded["message"]) == vars(inner)


def test_a_payload_that_could_not_be_decoded_is_refused_and_its_class_named() -> None:
    with pytest.raises(RepositoryError, match=r"application\.Address is not allowed"):
        CODEC.encode(Message("n", [application.Address("Calle Mayor 1")]), CONTEXT)


def test_a_message_keeps_attributes_besides_its_type_and_payload() -> None:
    message = Message("n", 1)
    message.priority = 7  # type: ignore[attr-defined]
    assert round_trip(message).priority == 7


def test_a_payload_that_contains_itself_or_its_message_is_decoded() -> None:
    payload: dict[str, Any] = {}
    message = Message("n", payload)
    payload["itself"], payload["message"] = payload, message
    loaded = round_trip(message).payload
    assert loaded["itself"] is loaded
    assert loaded["message"].payload is loaded


def test_a_message_pickled_as_an_ordinary_object_is_decoded() -> None:
    loaded = CODEC.decode(ORDINARY_PICKLE, CONTEXT)
    assert (type(loaded), loaded.type, loaded.payload) == (Message, "notification", {"n": 1, "tags": ["a"]})


@pytest.mark.parametrize("codec", [PickleCodec(signing_keys=[KEY]), PickleCodec(unrestricted=True)])
def test_signing_and_unrestricted_codecs_decode_messages_too(codec: PickleCodec) -> None:
    assert round_trip(Message("n", [1]), codec).payload == [1]


@pytest.mark.parametrize("forged", [content(None), content(5), content(("n", 1, 2)), content(())])
def test_a_content_other_than_a_pair_is_refused(forged: bytes) -> None:
    with pytest.raises(RepositoryError, match="can't be read: TypeError"):
        CODEC.decode(forged, CONTEXT)


def test_a_class_that_is_not_allowed_is_refused_inside_a_message() -> None:
    with pytest.raises(RepositoryError, match="is not allowed"):
        CODEC.decode(content(("n", application.Address)), CONTEXT)


def test_no_byte_can_be_removed_from_the_end_or_added() -> None:
    blob = CODEC.encode(Message("n", ["text", 1]), CONTEXT)
    for damaged in (*(blob[:end] for end in range(len(blob))), blob + b".", blob + b"R."):
        with pytest.raises(RepositoryError):
            CODEC.decode(damaged, CONTEXT)


def test_a_queue_delivers_messages_of_both_blob_forms(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("first", 1))
    queue.push(Message("second", 2))
    with database.engine.begin() as connection:
        update = text("UPDATE sse_messages SET message = :blob WHERE message_type = 'first'")
        connection.execute(update, {"blob": ORDINARY_PICKLE})
    assert [queue.pop().type for _ in range(2)] == ["notification", "second"]
