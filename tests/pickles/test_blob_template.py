"""``BlobTemplate``: writes the bytes that the codec would write, and reads only blobs of default objects."""

from __future__ import annotations

from pathlib import Path

import pytest
from eric_sse.listener import MessageQueueListener
from hypothesis import given
from hypothesis import strategies as st

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.codec import PickleCodec
from eric_sse_sql.contract import make_listener
from eric_sse_sql.pickles.blob_template import BlobTemplate

CODEC = PickleCodec()
LISTENER = BlobTemplate(
    make_listener, lambda listener: CODEC.encode(listener, ""), lambda listener: {**vars(listener), "id": None}
)
ID = "0f3c5a52-7e0a-4e0c-9d0b-0a3b8f1e6c11"


class Named(MessageQueueListener):
    """A listener of an application."""


@given(st.text(max_size=300))
def test_reading_a_default_listener_gives_an_equal_one_or_none_for_every_id(listener_id: str) -> None:
    listener = make_listener(listener_id)
    try:
        blob = CODEC.encode(listener, "")
        loaded = LISTENER.read(blob, listener_id)
    except UnicodeEncodeError:
        return  # an id with a lone surrogate is refused elsewhere
    if loaded is not None:
        assert type(loaded) is MessageQueueListener and vars(loaded) == vars(CODEC.decode(blob, ""))


def test_a_default_listener_is_read_and_written_and_a_changed_one_is_not() -> None:
    listener = make_listener(ID)
    loaded = LISTENER.read(CODEC.encode(listener, ""), ID)
    assert loaded is not None and vars(loaded) == vars(listener)
    assert LISTENER.write(listener, ID) == CODEC.encode(listener, "")
    listener.start()
    assert LISTENER.read(CODEC.encode(listener, ""), ID) is None
    assert LISTENER.write(listener, ID) is None
    listener.stop()
    listener.nickname = "Ada"  # type: ignore[attr-defined]
    assert LISTENER.read(CODEC.encode(listener, ""), ID) is None
    assert LISTENER.write(listener, ID) is None


@given(st.text(max_size=300))
def test_writing_a_default_listener_gives_the_codecs_blob_or_none_for_every_id(listener_id: str) -> None:
    listener = make_listener(listener_id)
    try:
        written = LISTENER.write(listener, listener_id)
    except UnicodeEncodeError:
        return  # an id with a lone surrogate is refused elsewhere
    assert written in (None, CODEC.encode(listener, ""))


@pytest.mark.parametrize("other", [ID[:-1] + "2", ID + "x", ID[:-1], "", ID.upper()])
def test_a_blob_of_another_id_is_not_read(other: str) -> None:
    assert LISTENER.read(CODEC.encode(make_listener(ID), ""), other) is None


def test_objects_of_other_classes_are_neither_read_nor_written() -> None:
    named = Named()
    named.id = ID
    assert LISTENER.read(CODEC.encode(named, ""), ID) is None
    assert LISTENER.write(named, ID) is None


def test_a_damaged_blob_is_not_read() -> None:
    blob = CODEC.encode(make_listener(ID), "")
    for at in range(len(blob)):
        damaged = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        assert LISTENER.read(damaged, ID) is None


def test_a_queue_is_read_with_the_database_that_loads_it(database: Database, tmp_path: Path) -> None:
    def encode(queue: SqlQueue) -> bytes:
        return database.codec.encode(queue, "", database)

    queues = BlobTemplate(lambda queue_id: SqlQueue(database, queue_id), encode, lambda queue: queue.database)
    queue = SqlQueue(database, ID)
    assert queues.write(queue, ID) == encode(queue)
    assert queues.write(BlockingSqlQueue(database, ID), ID) is None
    loaded = queues.read(encode(queue), ID)
    assert loaded is not None and (loaded.id, loaded.database) == (ID, database)
    with Database(f"sqlite:///{tmp_path / 'other.db'}") as other:
        assert queues.write(SqlQueue(other, ID), ID) is None
