"""A lease is longer than 0 seconds and at most a year, on every database alike."""

from __future__ import annotations

from typing import Any

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.queues import MAX_LEASE_SECONDS

OUT_OF_RANGE = [0, 0.0, -1, -1e300, MAX_LEASE_SECONDS + 1, 1e10, 1e12, 2.0**63, 1e300, float("inf"), float("nan")]
each_class = pytest.mark.parametrize("queue_class", [SqlQueue, BlockingSqlQueue])


@each_class
@pytest.mark.parametrize("lease", [*OUT_OF_RANGE, True, "30", None])
def test_a_lease_out_of_range_is_refused_and_the_message_stays(
    database: Database, queue_class: type[SqlQueue], lease: Any
) -> None:
    queue = queue_class(database)
    queue.push(Message("m", 7))
    with pytest.raises(RepositoryError, match="a lease must be"), queue.receive(lease=lease):
        pass
    with queue.receive() as delivery:
        assert (delivery.payload, delivery.delivery_count) == (7, 1)


@each_class
@pytest.mark.parametrize("lease", [1, 30.0, 1e6, MAX_LEASE_SECONDS])
def test_a_lease_in_range_is_held_until_the_block_ends(
    database: Database, queue_class: type[SqlQueue], lease: float
) -> None:
    queue = queue_class(database)
    queue.push(Message("m", 7))
    with queue.receive(lease=lease) as delivery:
        assert delivery.delivery_count == 1
        with pytest.raises(NoMessagesException):
            SqlQueue(database, queue.id).pop()
    assert len(queue) == 0


def test_a_lease_out_of_range_is_refused_before_the_queue_is_asked(database: Database) -> None:
    with pytest.raises(RepositoryError, match="a lease must be"), SqlQueue(database).receive(lease=float("inf")):
        pass
