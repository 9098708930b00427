"""Generated ids: unique UUIDs, sorted by creation time. Keys: what every database can store."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from eric_sse.exception import RepositoryError

from eric_sse_sql import Database, SqlConnectionsFactory
from eric_sse_sql.keys import MAX_KEY_BYTES, new_id, validate_key


def test_an_id_is_a_version_7_uuid_of_the_current_time() -> None:
    before = time.time_ns() // 1_000_000
    created = new_id()
    after = time.time_ns() // 1_000_000
    parsed = uuid.UUID(created)
    assert (str(parsed), parsed.version, parsed.variant) == (created, 7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= after


def test_ids_are_unique_and_sorted_by_creation_time() -> None:
    ids = []
    for _ in range(2_000):
        ids.append(new_id())
        time.sleep(1e-6)  # longer than the quarter of a microsecond that the time in an id resolves
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)


def test_the_last_62_bits_of_an_id_are_random() -> None:
    ends = {uuid.UUID(new_id()).int & (2**62 - 1) for _ in range(1_000)}
    assert len(ends) == 1_000
    for bit in range(62):
        assert 300 < sum(end >> bit & 1 for end in ends) < 700


def test_queues_and_connections_created_together_have_adjacent_ids(database: Database) -> None:
    factory = SqlConnectionsFactory(database)
    first, second = ([factory.create() for _ in range(20)] for _ in range(2))
    for id_of in (lambda connection: connection.queue.id, lambda connection: connection.id):
        assert max(map(id_of, first)) < min(map(id_of, second))


@pytest.mark.parametrize("key", ["", "a", "x" * MAX_KEY_BYTES, "€" * 341 + "x", "a/b", "%_", "\x01"])
def test_a_valid_key_is_returned_unchanged(key: str) -> None:
    assert validate_key("a key", key) is key


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (b"key", "must be a str, not bytes"),
        (None, "must be a str, not NoneType"),
        ("a\0b", "must not hold a NUL character"),
        ("a\ud800", "must not hold a lone surrogate"),
        ("x" * (MAX_KEY_BYTES + 1), "must be at most 1024 bytes of UTF-8, not 1025"),
        ("€" * 342, "must be at most 1024 bytes of UTF-8, not 1026"),
    ],
    ids=ascii,
)
def test_an_invalid_key_is_refused_and_the_message_says_what_it_was_for(key: Any, reason: str) -> None:
    with pytest.raises(RepositoryError, match=f"^a channel id {reason}") as error:
        validate_key("a channel id", key)
    assert error.value.__cause__ is not None
