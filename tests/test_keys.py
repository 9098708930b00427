"""Ids of what is made here: UUIDs in the order in which they are made."""

from __future__ import annotations

import time
import uuid

from eric_sse_sql import Database, SqlConnectionsFactory
from eric_sse_sql.keys import new_id


def test_an_id_is_a_uuid_of_its_time() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id()
    after = time.time_ns() // 1_000_000
    parsed = uuid.UUID(made)
    assert (str(parsed), parsed.version, parsed.variant) == (made, 7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= after


def test_ids_are_all_different_and_have_the_order_of_their_time() -> None:
    made = []
    for _ in range(2_000):
        made.append(new_id())
        time.sleep(1e-6)  # longer than the quarter of a microsecond that an id tells apart
    assert len(set(made)) == len(made)
    assert made == sorted(made)


def test_the_end_of_an_id_is_random() -> None:
    ends = {uuid.UUID(new_id()).int & (2**62 - 1) for _ in range(1_000)}
    assert len(ends) == 1_000
    for bit in range(62):
        assert 300 < sum(end >> bit & 1 for end in ends) < 700


def test_queues_and_connections_made_together_stand_together(database: Database) -> None:
    factory = SqlConnectionsFactory(database)
    first, second = ([factory.create() for _ in range(20)] for _ in range(2))
    for of_each in (lambda connection: connection.queue.id, lambda connection: connection.id):
        assert max(map(of_each, first)) < min(map(of_each, second))
