"""Objects that are as new are written and read without pickle, and what comes out is the same."""

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
LISTENERS = BlobTemplate(
    make_listener, lambda listener: CODEC.encode(listener, ""), lambda listener: {**vars(listener), "id": None}
)
ID = "0f3c5a52-7e0a-4e0c-9d0b-0a3b8f1e6c11"


class Named(MessageQueueListener):
    """A listener of an application."""


@given(st.text(max_size=300))
def test_a_new_listener_of_any_id_is_read_as_itself_or_not_at_all(listener_id: str) -> None:
    listener = make_listener(listener_id)
    try:
        blob = CODEC.encode(listener, "")
        found = LISTENERS.read(blob, listener_id)
    except UnicodeEncodeError:
        return  # no id holds a lone surrogate
    if found is not None:
        assert type(found) is MessageQueueListener and vars(found) == vars(CODEC.decode(blob, ""))


def test_a_listener_as_new_is_read_and_one_that_has_changed_is_not() -> None:
    listener = make_listener(ID)
    found = LISTENERS.read(CODEC.encode(listener, ""), ID)
    assert found is not None and vars(found) == vars(listener)
    assert LISTENERS.write(listener, ID) == CODEC.encode(listener, "")
    listener.start()
    assert LISTENERS.read(CODEC.encode(listener, ""), ID) is None
    assert LISTENERS.write(listener, ID) is None
    listener.stop()
    listener.nickname = "Ada"  # type: ignore[attr-defined]
    assert LISTENERS.read(CODEC.encode(listener, ""), ID) is None
    assert LISTENERS.write(listener, ID) is None


@given(st.text(max_size=300))
def test_a_new_listener_of_any_id_is_written_as_pickle_does_it_or_not_at_all(listener_id: str) -> None:
    listener = make_listener(listener_id)
    try:
        written = LISTENERS.write(listener, listener_id)
    except UnicodeEncodeError:
        return  # no id holds a lone surrogate
    assert written in (None, CODEC.encode(listener, ""))


@pytest.mark.parametrize("other", [ID[:-1] + "2", ID + "x", ID[:-1], "", ID.upper()])
def test_a_blob_of_another_id_is_not_read(other: str) -> None:
    assert LISTENERS.read(CODEC.encode(make_listener(ID), ""), other) is None


def test_objects_of_other_classes_are_not_read() -> None:
    named = Named()
    named.id = ID
    assert LISTENERS.read(CODEC.encode(named, ""), ID) is None
    assert LISTENERS.write(named, ID) is None


def test_damage_is_not_read() -> None:
    blob = CODEC.encode(make_listener(ID), "")
    for at in range(len(blob)):
        damaged = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        assert LISTENERS.read(damaged, ID) is None


def test_a_queue_comes_back_on_the_database_that_loads_it(database: Database, tmp_path: Path) -> None:
    def encode(queue: SqlQueue) -> bytes:
        return database.codec.encode(queue, "", database)

    queues = BlobTemplate(lambda queue_id: SqlQueue(database, queue_id), encode, lambda queue: queue.database)
    queue = SqlQueue(database, ID)
    assert queues.write(queue, ID) == encode(queue)
    assert queues.write(BlockingSqlQueue(database, ID), ID) is None
    found = queues.read(encode(queue), ID)
    assert found is not None and (found.id, found.database) == (ID, database)
    with Database(f"sqlite:///{tmp_path / 'other.db'}") as other:
        assert queues.write(SqlQueue(other, ID), ID) is None
