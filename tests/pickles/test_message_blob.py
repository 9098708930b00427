"""Messages of eric-sse's own class are written around their content, and what comes out is the same."""

from __future__ import annotations

import pickle
from datetime import datetime, timezone
from typing import Any

import application
import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from hypothesis import given
from hypothesis import strategies as st

from eric_sse_sql import Database, PickleCodec, SqlQueue
from eric_sse_sql.pickles import message_blob

CODEC = PickleCodec()
PLACE = "sse_messages/q"
KEY = b"k" * 16

# As any object is written; so were messages once.
OF_ANY_OBJECT = bytes.fromhex(
    "80059589000000000000008c10657269635f7373652e6d657373616765948c074d6573736167659493942981948c12657269635f7373655f73"
    "716c2e636f646563948c095f536574537461746594939468037d94288c055f74797065948c0c6e6f74696669636174696f6e948c085f706179"
    "6c6f6164947d94288c016e944b018c0474616773945d948c0161946175758652302e"
)

PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=100) | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


def again(message: Any, codec: PickleCodec = CODEC) -> Any:
    return codec.decode(codec.encode(message, PLACE), PLACE)


def content(value: object) -> bytes:
    """The blob of a message whose content is not what it should be."""
    return message_blob.wrap(pickle.dumps(value, 5))


@given(st.text(max_size=20), PAYLOADS)
def test_a_message_comes_back_equal_and_plain_pickle_reads_it_too(kind: str, payload: Any) -> None:
    blob = CODEC.encode(Message(kind, payload), PLACE)
    assert message_blob.unwrap(blob) is not None
    for loaded in (CODEC.decode(blob, PLACE), pickle.loads(blob)):
        assert type(loaded) is Message
        assert (loaded.type, loaded.payload) == (kind, payload)


@pytest.mark.parametrize("size", [200, 70_000, 200_000])
def test_a_message_of_several_frames_comes_back(size: int) -> None:
    payload = ["x" * size, b"y" * size, list(range(size)), "z"]
    blob = CODEC.encode(Message("large", payload), PLACE)
    assert CODEC.decode(blob, PLACE).payload == payload
    assert pickle.loads(blob).payload == payload


def test_a_payload_of_other_classes_comes_back() -> None:
    moment, inner = datetime(2024, 1, 1, tzinfo=timezone.utc), application.Order(1)
    loaded = again(Message("n", {"at": moment, "message": inner})).payload
    assert loaded["at"] == moment
    assert type(loaded["message"]) is application.Order
    assert vars(loaded["message"]) == vars(inner)


def test_a_payload_that_cannot_be_read_back_is_refused_with_its_class() -> None:
    with pytest.raises(RepositoryError, match=r"application\.Address is not allowed"):
        CODEC.encode(Message("n", [application.Address("Calle Mayor 1")]), PLACE)


def test_a_message_with_more_than_its_type_and_payload_keeps_it() -> None:
    message = Message("n", 1)
    message.priority = 7  # type: ignore[attr-defined]
    assert again(message).priority == 7


def test_a_payload_that_holds_itself_or_its_message_comes_back() -> None:
    payload: dict[str, Any] = {}
    message = Message("n", payload)
    payload["itself"], payload["message"] = payload, message
    loaded = again(message).payload
    assert loaded["itself"] is loaded
    assert loaded["message"].payload is loaded


def test_a_message_that_was_written_as_any_object_is_read() -> None:
    loaded = CODEC.decode(OF_ANY_OBJECT, PLACE)
    assert (type(loaded), loaded.type, loaded.payload) == (Message, "notification", {"n": 1, "tags": ["a"]})


@pytest.mark.parametrize("codec", [PickleCodec(signing_keys=[KEY]), PickleCodec(unrestricted=True)])
def test_signed_or_without_the_guard_it_is_the_same(codec: PickleCodec) -> None:
    assert again(Message("n", [1]), codec).payload == [1]


@pytest.mark.parametrize("forged", [content(None), content(5), content(("n", 1, 2)), content(())])
def test_a_content_that_is_none_is_refused(forged: bytes) -> None:
    with pytest.raises(RepositoryError, match="can't be read: TypeError"):
        CODEC.decode(forged, PLACE)


def test_a_class_that_is_not_allowed_is_refused_in_a_content() -> None:
    with pytest.raises(RepositoryError, match="is not allowed"):
        CODEC.decode(content(("n", application.Address)), PLACE)


def test_no_byte_can_be_cut_off_or_added() -> None:
    blob = CODEC.encode(Message("n", ["text", 1]), PLACE)
    for damaged in (*(blob[:end] for end in range(len(blob))), blob + b".", blob + b"R."):
        with pytest.raises(RepositoryError):
            CODEC.decode(damaged, PLACE)


def test_a_queue_delivers_what_is_in_its_table_in_either_form(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("first", 1))
    queue.push(Message("second", 2))
    row = queue.take(1)[0]
    queue.give_back([(*row[:2], OF_ANY_OBJECT, *row[3:])])
    assert [queue.pop().type for _ in range(2)] == ["notification", "second"]
