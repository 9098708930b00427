"""The roles of SECURITY.md: each can do its work, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from eric_sse.connection import Connection
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import ProgrammingError

from eric_sse_sql import ConnectionRepository, Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.models import TABLE_NAMES

(GRANTS,) = re.findall(r"^```sql\n(.*?)^```", (Path(__file__).parent.parent / "SECURITY.md").read_text(), re.M | re.S)
NAMES = {"eric_sse_runtime": "security_runtime", "eric_sse_reader": "security_reader"}  # roles are of the whole server


@pytest.fixture(scope="module")
def owner_url(new_postgres: Callable[[], URL]) -> Iterator[URL]:
    """A migrated database in which the roles have their rights and may log in."""
    url = new_postgres()
    with Database(url) as database:
        database.upgrade()
    owner = create_engine(url, isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.execute(text(re.sub("|".join(NAMES), lambda found: NAMES[found[0]], GRANTS)))
        for role in NAMES.values():
            connection.execute(text(f"ALTER ROLE {role} LOGIN"))
        yield url
        for role in NAMES.values():
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
    owner.dispose()


@pytest.fixture
def database(owner_url: URL) -> Iterator[Database]:
    with Database(owner_url.set(username=NAMES["eric_sse_runtime"])) as made:
        yield made


def test_the_runtime_role_may_do_all_that_a_process_does(database: Database) -> None:
    database.check()
    storage = SqlStorageEngine(database)
    storage.upsert("k", 1)
    assert list(storage.fetch_by_prefix("k")) == [1]
    storage.delete("k")
    queue = SqlQueue(database, "q")
    queue.push_many([Message("n", number) for number in range(3)])
    queue.push(Message("n", 3), message_id="once")
    assert queue.pop().payload == 0
    with queue.receive(lease=60) as delivery:
        assert delivery.payload == 1
    connection = Connection(MessageQueueListener(), queue)
    connections = ConnectionRepository(storage)
    connections.persist(connection)
    with database.transaction():
        queue.clear()
    database.prune(timedelta(0), unseen_for=timedelta(0))
    assert (database.count_set_aside(), database.retry_set_aside()) == (0, 0)


@pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channel")
@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_the_runtime_role_may_use_channels(database: Database, replay_seconds: float) -> None:
    from eric_sse_sql import SqlSSEChannelRepository

    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"replay_seconds": replay_seconds})
    listener = channel.add_listener()
    listener.start()
    repository.persist(channel)
    channel.broadcast(Message("n", 1))
    channel.dispatch(listener.id, Message("n", 2))
    again = repository.load_one(channel.id)
    again.get_listener(listener.id).start()
    assert [again.deliver_next(listener.id).payload for _ in range(2)] == [1, 2]
    repository.delete(channel.id)


@pytest.mark.skipif(ERIC_SSE_2_0, reason="eric-sse 2.0 has no such channel")
def test_the_runtime_role_may_send_from_sql_and_see_what_was_sent(database: Database) -> None:
    from eric_sse_sql import SqlSSEChannelRepository

    repository = SqlSSEChannelRepository(database)
    for replay_seconds, view in ((0, "sse_message_payloads"), (60, "sse_event_payloads")):
        channel = repository.create({"replay_seconds": replay_seconds})
        listener = channel.add_listener()
        repository.persist(channel)
        with database.transaction():
            run = database.connection().execute
            run(text("SELECT eric_sse_broadcast(:channel, 'm', '1')"), {"channel": channel.id})
            to_one = text("SELECT eric_sse_dispatch(:channel, :listener, 'm', '2')")
            run(to_one, {"channel": channel.id, "listener": listener.id})
            assert run(text(f"SELECT payload FROM {view}")).scalars().all() == [1, 2]
        repository.delete(channel.id)


def test_the_runtime_role_can_not_change_the_tables(database: Database) -> None:
    with database.transaction():
        changes = "DROP TABLE sse_messages", "TRUNCATE sse_messages", "DELETE FROM eric_sse_sql_version"
        for statement in changes:
            with pytest.raises(ProgrammingError), database.connection().begin_nested():
                database.connection().execute(text(statement))


def test_a_process_of_the_runtime_role_may_call_upgrade_where_the_tables_are_up_to_date(database: Database) -> None:
    database.upgrade()
    database.check()


def test_the_reader_sees_the_views_and_no_table(owner_url: URL) -> None:
    engine = create_engine(owner_url.set(username=NAMES["eric_sse_reader"]))
    with engine.connect() as connection:
        for view in ("sse_channel_overview", "sse_connection_overview", "sse_queue_overview"):
            connection.execute(text(f"SELECT * FROM {view}"))
        for table in (*sorted(TABLE_NAMES), "sse_message_payloads", "sse_event_payloads"):
            with pytest.raises(ProgrammingError, match="permission denied"), connection.begin_nested():
                connection.execute(text(f"SELECT * FROM {table}"))
    engine.dispose()
