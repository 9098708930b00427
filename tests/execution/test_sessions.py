"""Sessions of Postgres: those that clients of a pooler share are not relied on, and those of no use are replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, Engine, NullPool, create_engine, event, func, select, text

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.execution.statement import Statement
from support.catalog import connections_in_use, conninfo
from support.databases import application_engine
from support.pgbouncer import pgbouncer, with_pgbouncer
from support.queues import pop_soon, pop_until_known_empty
from support.waiting import until

MESSAGES = 50
LEVEL = Statement(lambda sql: select(func.current_setting("transaction_isolation")))


@pytest.fixture(params=["transaction", "session"])
def pooled(request: pytest.FixtureRequest, postgres: URL) -> Iterator[URL]:
    """A database behind a pooler, with two sessions for all clients in transaction mode."""
    with pgbouncer(postgres, request.param, 2 if request.param == "transaction" else 50) as url:
        yield url


def in_threads(*calls: Callable[[], object], seconds: float = 2.0) -> list[BaseException]:
    """Repeat each call in a thread of its own for a time. What they raised."""
    errors: list[BaseException] = []
    is_over = threading.Event()

    def repeat(call: Callable[[], object]) -> None:
        try:
            while not is_over.is_set():
                call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    is_over.wait(seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    return errors


@with_pgbouncer
def test_no_call_executes_the_statement_of_another_client_of_the_pooler(postgres: URL, pooled: URL) -> None:
    with Database(postgres) as direct, Database(pooled) as one, Database(pooled) as other:
        kept, storage = SqlQueue(direct, "kept"), SqlStorageEngine(direct)
        kept.push_many(Message("m") for _ in range(MESSAGES))
        for n in range(MESSAGES):
            storage.upsert(f"kept/{n}", n)

        def count() -> None:
            assert len(SqlQueue(one, "kept")) == MESSAGES
            assert SqlStorageEngine(one).fetch_one("kept/7") == 7

        def clear() -> None:
            SqlQueue(other, "busy").clear()
            SqlStorageEngine(other).delete("busy")

        assert in_threads(count, clear, count, clear) == []
        assert len(kept) == MESSAGES
        assert len(list(storage.fetch_by_prefix("kept/"))) == MESSAGES


@with_pgbouncer
def test_nothing_of_a_session_is_left_behind_a_pooler(postgres: URL, pooled: URL) -> None:
    with pgbouncer(postgres, pool_size=1) as url, Database(url) as database:
        queue = SqlQueue(database)
        for _ in range(20):
            queue.push(Message("m"))
        queue.push_many(Message("m") for _ in range(20))
        queue.clear()
        pop_until_known_empty(queue)
        with psycopg.connect(conninfo(url), prepare_threshold=None) as other:
            for left in (
                "SELECT name FROM pg_prepared_statements",
                "SELECT pg_listening_channels()",
                "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
                "SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN ('application_name')",
            ):
                assert other.execute(left).fetchall() == []


@with_pgbouncer
def test_a_pooler_is_warned_of_once_and_says_what_to_write(pooled: URL, caplog: pytest.LogCaptureFixture) -> None:
    with Database(pooled) as database:
        queue = SqlQueue(database)
        assert in_threads(*[lambda: queue.push(Message("m"))] * 3, seconds=0.2) == []
        queue.clear()
        pop_until_known_empty(queue)
    (warning,) = caplog.messages
    assert "notify=False" in warning


@with_pgbouncer
def test_a_pooler_that_the_application_knows_of_is_not_warned_of(pooled: URL, caplog: pytest.LogCaptureFixture) -> None:
    with Database(pooled, notify=False) as database:
        queue = SqlQueue(database)
        queue.push(Message("m"))
        assert pop_soon(queue) is None
        pop_until_known_empty(queue)
    assert caplog.messages == []


def test_without_a_pooler_statements_are_prepared(postgres: URL, caplog: pytest.LogCaptureFixture) -> None:
    with Database(postgres) as database:
        for _ in range(10):
            SqlStorageEngine(database).delete("a")
        with database.transaction():
            assert database.connection().scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    assert caplog.messages == []


@with_pgbouncer
def test_a_push_through_a_pooler_wakes_and_is_noticed(postgres: URL, pooled: URL) -> None:
    with Database(postgres) as direct, Database(pooled) as worker:
        queue = SqlQueue(worker, "q")
        pop_until_known_empty(queue)
        SqlQueue(direct, "q").push(Message("m", 7))
        assert pop_soon(queue) == 7
        queue = SqlQueue(direct, "other")
        pop_until_known_empty(queue)
        SqlQueue(worker, "other").push(Message("m", 8))
        assert pop_soon(queue) == 8


@with_pgbouncer
@pytest.mark.parametrize("default", ["serializable", "repeatable read"])
def test_a_default_that_another_client_has_left_in_the_session_is_not_relied_on(postgres: URL, default: str) -> None:
    with pgbouncer(postgres, pool_size=1) as url, Database(url) as database:
        SqlQueue(database).push(Message("m"))  # in a session with the usual default
        with psycopg.connect(conninfo(url), prepare_threshold=None, autocommit=True) as other:
            other.execute(f"SET default_transaction_isolation = '{default}'")
        assert database.executor.run(LEVEL)[0][0] == "read committed"
        with database.transaction():
            assert database.executor.run(LEVEL)[0][0] == "read committed"


CALLS: dict[str, Callable[[Database], object]] = {
    "push": lambda database: SqlQueue(database, "q").push(Message("m")),
    "push_many": lambda database: SqlQueue(database, "q").push_many([Message("m")]),
    "fetch_one": lambda database: SqlStorageEngine(database).fetch_one("a"),
    "transaction": lambda database: database.transaction().__enter__(),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def joined(engine: Engine, database: Database) -> None:
    with engine.connect() as connection, database.join(connection):
        SqlQueue(database, "q").push(Message("m"))
        connection.commit()


@with_pgbouncer
@pytest.mark.parametrize("call", [*CALLS.values(), "join"], ids=[*CALLS, "join"])
@pytest.mark.parametrize("is_observed", [False, True])
@pytest.mark.parametrize("notify", [False, True])
def test_an_engine_that_prepares_through_a_pooler_is_refused(
    pooled: URL, call: Callable[[Database], object] | str, is_observed: bool, notify: bool
) -> None:
    with application_engine(pooled) as engine, Database(engine, notify=notify) as database:
        if is_observed:
            event.listen(engine, "before_cursor_execute", lambda *_: None)
        for _ in range(3):
            with pytest.raises(RepositoryError, match=r"connect_args=\{'prepare_threshold': None\}"):
                joined(engine, database) if isinstance(call, str) else call(database)
    with Database(pooled, notify=False) as database:
        assert len(SqlQueue(database, "q")) == 0


@with_pgbouncer
@pytest.mark.parametrize("options", [{}, {"poolclass": NullPool}, {"isolation_level": "AUTOCOMMIT"}], ids=str)
def test_an_engine_that_does_not_prepare_is_used_through_a_pooler(pooled: URL, options: dict[str, Any]) -> None:
    engine = create_engine(pooled, connect_args={"prepare_threshold": None}, **options)
    with Database(engine) as database:
        queue = SqlQueue(database, "q")
        assert in_threads(lambda: queue.push(Message("m")), lambda: queue.push_many([Message("m")]), seconds=0.5) == []
        count = len(queue)
        if "isolation_level" not in options:
            joined(engine, database)
            count += 1
        assert len(queue) == count > 2
        queue.clear()
        pop_until_known_empty(queue)
    engine.dispose()


# Sessions of no use


def settings_of_sessions(statement: str) -> Callable[[Database], None]:
    """What changes the sessions that a database has, and those that it makes later not."""

    def change(database: Database) -> None:
        database.executor.release()
        with suppress(RepositoryError), _all_connections(database.engine) as drivers:
            for driver in drivers:
                driver.pgconn.exec_(statement.encode())

    return change


@contextmanager
def _all_connections(engine: Engine) -> Iterator[list[Any]]:
    pooled = [engine.raw_connection() for _ in range(SESSIONS)]
    yield [each.driver_connection for each in pooled]
    for each in pooled:
        each.close()


SESSIONS = 3
#: What makes the sessions that exist useless: those of a server that is in recovery refuse in the same way as read-only
#: ones.
FAULTS: dict[str, Callable[[Database], None]] = {
    "read-only": settings_of_sessions("SET default_transaction_read_only = on"),
    "without prepared statements": settings_of_sessions("DEALLOCATE ALL"),
    "after a migration": lambda database: _change_types(database.engine.url),
}


def _change_types(url: URL) -> None:
    """Change the types of columns that the statements of the tests return."""
    other = {"text": "varchar(300)", "character varying(300)": "text", "integer": "bigint", "bigint": "integer"}
    with psycopg.connect(conninfo(url)) as migration:
        migration.execute("DROP VIEW IF EXISTS sse_message_payloads, sse_queue_overview")  # which have the columns
        for column in ("message_type", "delivery_count"):
            found = migration.execute(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = 'sse_messages'::regclass AND attname = %s",
                [column],
            ).fetchall()
            ((kind,),) = found
            migration.execute(f"ALTER TABLE sse_messages ALTER COLUMN {column} TYPE {other[kind]}")


def no_observer(engine: Engine) -> None:
    """Leave the engine as it is."""


def observer(engine: Engine) -> None:
    """Let every statement go through SQLAlchemy."""
    event.listen(engine, "before_cursor_execute", lambda *_: None)


def receive(database: Database) -> None:
    with SqlQueue(database, "q").receive():
        pass


def in_a_transaction(database: Database) -> None:
    with database.transaction():
        SqlQueue(database, "q").pop()
        SqlQueue(database, "q").push(Message("m"))


USES: dict[str, Callable[[Database], object]] = {
    "push": lambda database: SqlQueue(database, "q").push(Message("m")),
    "push_many": lambda database: SqlQueue(database, "q").push_many([Message("m")] * 3),
    "pop": lambda database: SqlQueue(database, "q").pop(),
    "take": lambda database: SqlQueue(database, "q").take(1),
    "receive": receive,
    "upsert": lambda database: SqlStorageEngine(database).upsert("a", 1),
    "fetch_one": lambda database: SqlStorageEngine(database).fetch_one("a"),
    "transaction": in_a_transaction,
}


@pytest.fixture(scope="module")
def separate(new_postgres: Callable[[], URL]) -> URL:
    """A database whose tables the tests change."""
    url = new_postgres()
    with Database(url) as database:
        database.upgrade()
    return url


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("observe", [no_observer, observer])
@pytest.mark.parametrize("own_engine", [True, False])
@pytest.mark.usefixtures("without_notifier")
def test_a_call_that_sessions_refuse_is_executed_on_a_new_connection(
    fault: Callable[[Database], None],
    use: Callable[[Database], object],
    observe: Callable[[Engine], None],
    own_engine: bool,
    separate: URL,
) -> None:
    engine = create_engine(separate, pool_size=SESSIONS)
    with Database(engine if own_engine else separate) as database:
        observe(database.engine)
        SqlQueue(database, "q").push_many([Message("m")] * 60)
        SqlStorageEngine(database).upsert("a", 1)
        for _ in range(7):  # until its statements are prepared on a connection
            use(database)
        before = len(SqlQueue(database, "q"))
        fault(database)
        for _ in range(SESSIONS):
            use(database)
        change = {"push": 1, "push_many": 3, "pop": -1, "take": -1, "receive": -1}
        name = next(name for name, each in USES.items() if each is use)
        assert len(SqlQueue(database, "q")) == before + SESSIONS * change.get(name, 0)
        assert connections_in_use(database) == 0
        SqlQueue(database, "q").clear()
    engine.dispose()


@pytest.mark.parametrize("own_engine", [True, False])
def test_a_connection_whose_session_is_of_no_use_after_the_first_statement_is_replaced(
    separate: URL, own_engine: bool
) -> None:
    engine = create_engine(separate, pool_size=SESSIONS)
    with Database(engine if own_engine else separate) as database:
        storage = SqlStorageEngine(database)
        storage.upsert("a", 1)
        FAULTS["read-only"](database)

        def read_and_write() -> None:
            with database.transaction():
                storage.fetch_one("a")
                storage.upsert("a", 2)

        failed = 0
        for _ in range(SESSIONS + 1):
            with suppress(RepositoryError):
                read_and_write()
                break
            failed += 1
        assert 0 < failed <= SESSIONS
        assert storage.fetch_one("a") == 2
    engine.dispose()


def test_a_role_that_may_only_read_is_asked_on_two_connections_at_most(separate: URL) -> None:
    url = separate.update_query_dict({"options": "-c default_transaction_read_only=on"})
    made: list[object] = []
    with Database(url) as database:
        event.listen(database.engine, "connect", lambda driver, _: made.append(driver))
        with pytest.raises(RepositoryError, match="read-only"):
            SqlStorageEngine(database).upsert("a", 1)
        assert len(made) <= 2
        with pytest.raises(RepositoryError, match="read-only"):
            SqlQueue(database).push_many([Message("m")])


def test_a_transaction_of_the_application_is_not_repeated(separate: URL) -> None:
    with application_engine(separate) as engine, Database(engine) as database:
        SqlQueue(database, "q").push(Message("m"))
        with engine.connect() as connection, database.join(connection):
            connection.execute(text("SET LOCAL transaction_read_only = on"))
            with pytest.raises(RepositoryError, match="read-only"):
                SqlQueue(database, "q").push(Message("m"))
            connection.execute(text("SELECT 1"))  # still usable
            connection.rollback()
        SqlQueue(database, "q").clear()


def test_a_connection_that_is_idle_for_too_long_is_replaced(separate: URL) -> None:
    with Database(_briefly_idle(separate)) as database:
        queue = SqlQueue(database, "q")
        for call in (lambda: queue.push(Message("m")), lambda: queue.push_many([Message("m")]), queue.clear):
            call()
            until(lambda: not _sessions_of_others(separate))
            call()


@pytest.mark.parametrize("is_observed", [False, True])
def test_a_statement_that_meets_the_end_of_an_idle_session_is_repeated(
    separate: URL, is_observed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database(_briefly_idle(separate)) as database:
        if is_observed:
            event.listen(database.engine, "before_cursor_execute", lambda *arguments: None)
        queue = SqlQueue(database, f"idle {is_observed}")
        queue.push(Message("m"))
        execute, ended = psycopg.Cursor.execute, list[str]()

        def execute_late(self: psycopg.Cursor, query: Any, *arguments: Any, **options: Any) -> psycopg.Cursor:
            if not ended and "INSERT" in str(query):
                ended.append(str(query))
                until(lambda: not _sessions_of_others(separate))
            return execute(self, query, *arguments, **options)

        monkeypatch.setattr(psycopg.Cursor, "execute", execute_late)
        queue.push(Message("m"))
        assert ended
        assert len(queue) == 2


def _briefly_idle(url: URL) -> URL:
    """The URL of sessions that the server ends soon, but not while a slow machine is between two steps of a call."""
    return url.update_query_dict({"options": "-c idle_session_timeout=1000"})


def _sessions_of_others(url: URL) -> list[Any]:
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(conninfo(url), autocommit=True) as other:
        return other.execute(query).fetchall()
