"""What Postgres reads: to take a message, the first one in the index; to load a channel, what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0

DEEP, POPS = 5_000, 100

# autovacuum must not run between the parts of a test: it would mend a plan after a minute, too late for whoever waits.
WITHOUT_AUTOVACUUM = text("ALTER TABLE sse_messages SET (autovacuum_enabled = off)")


@pytest.fixture
def database(new_postgres: Callable[[], URL]) -> Iterator[Database]:
    """A Postgres database as it is after the migration: nothing was ever analysed."""
    with Database(new_postgres()) as made:
        made.upgrade()
        with made.engine.begin() as connection:
            connection.execute(WITHOUT_AUTOVACUUM)
        yield made


def pop_from_empty(queue: SqlQueue) -> None:
    """So often that Postgres keeps the plan."""
    for _ in range(20):
        with pytest.raises(NoMessagesException), queue.database.transaction():  # in which the database is asked
            queue.pop()


def rows_read(database: Database, table: str = "sse_messages") -> int:
    """How many rows of a table were read so far, by whatever plan."""
    with database.engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with database.engine.connect() as connection:
        one_by_one = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = :table"
        by_index = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = :table"
        return int(connection.execute(text(f"SELECT ({one_by_one}) + ({by_index})"), {"table": table}).scalar_one())


def test_a_pop_reads_few_rows_of_a_queue_that_was_empty_when_its_plan_was_made(database: Database) -> None:
    queue = SqlQueue(database, "queue")
    pop_from_empty(queue)
    queue.push_many(Message("m", n) for n in range(DEEP))
    before = rows_read(database)
    for n in range(POPS):
        assert queue.pop().payload == n
    assert rows_read(database) - before < POPS * POPS


def test_a_pop_reads_few_rows_of_a_queue_that_was_empty_when_the_table_was_analysed(database: Database) -> None:
    queue = SqlQueue(database, "queue")
    with database.engine.connect() as connection:
        connection.execute(text("ANALYZE sse_messages"))
    pop_from_empty(queue)
    queue.push_many(Message("m", n) for n in range(DEEP))
    before = rows_read(database)
    for n in range(POPS):
        assert queue.pop().payload == n
    assert rows_read(database) - before < POPS * POPS


@pytest.mark.parametrize("analysed", [False, True])
def test_a_pop_from_an_empty_queue_reads_few_rows_of_a_deep_one(database: Database, analysed: bool) -> None:
    SqlQueue(database, "deep").push_many(Message("m") for _ in range(DEEP))
    if analysed:
        with database.engine.connect() as connection:
            connection.execute(text("ANALYZE sse_messages"))
    deep, empty = SqlQueue(database, "deep"), SqlQueue(database, "empty")
    for _ in range(20):
        deep.pop()
    before = rows_read(database)
    pop_from_empty(empty)
    assert rows_read(database) - before < POPS * POPS


@pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such repository")
@pytest.mark.parametrize("own_engine", [False, True])
def test_a_channel_is_loaded_without_the_objects_of_others(database: Database, own_engine: bool) -> None:
    from eric_sse_sql import SqlSSEChannelRepository

    channels, connections = 20, 1000
    with ExitStack() as stack:
        used = database
        if own_engine:
            engine = create_engine(database.engine.url)
            stack.callback(engine.dispose)
            used = Database(engine)
        repository = SqlSSEChannelRepository(used)
        for number in range(channels):
            channel = repository.create({"channel_id": f"channel {number}"})
            for _ in range(connections):
                channel.add_listener()
            repository.persist(channel)
        with database.engine.connect() as connection:
            connection.execute(text("ANALYZE"))
        before = rows_read(database, "kv_entries")
        for number in range(channels):
            assert len(list(repository.load_one(f"channel {number}").get_connections())) == connections
        assert rows_read(database, "kv_entries") - before < 2 * channels * (2 * connections + 1)
