"""What is Postgres' alone: READ COMMITTED, prepared statements, keep-alives and time-outs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import psycopg
import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, text

from eric_sse_sql import Database, OutcomeUnknown, SqlQueue, SqlStorageEngine
from support.catalog import conninfo
from support.freezing_proxy import FreezingProxy
from support.waiting import DEADLINE, until


def test_pop_is_read_committed_on_a_server_with_another_default(postgres_server: URL, migrated_postgres: URL) -> None:
    strict = migrated_postgres.update_query_dict({"options": "-c default_transaction_isolation=serializable"})
    with Database(strict) as database:
        queue = SqlQueue(database)
        with database.transaction():
            queue.push(Message("m"))
            (level,) = database.connection().exec_driver_sql("SHOW transaction_isolation").one()
            assert level == "read committed"
        assert queue.pop().type == "m"


def test_behind_a_proxy_no_statement_is_prepared(migrated_postgres: URL) -> None:
    """Another client of the proxy would find it in its session: PgBouncer 1.18 failed with "already exists"."""

    def prepared(notify: bool) -> Any:
        with Database(migrated_postgres, notify=notify) as database:
            for _ in range(20):
                SqlStorageEngine(database).delete("a")
            with database.transaction():  # on the same connection
                return database.connection().scalar(text("SELECT count(*) FROM pg_prepared_statements"))

    assert prepared(notify=True) > 0
    assert prepared(notify=False) == 0


def test_keep_alives_are_on_unless_the_url_sets_them(migrated_postgres: URL) -> None:
    for url, idle in (
        (migrated_postgres, "30"),
        (migrated_postgres.update_query_dict({"keepalives_idle": "7"}), "7"),
    ):
        with Database(url) as database, database.engine.connect() as connection:
            driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
            parameters = driver.info.get_parameters()
            assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == (idle, "60000")
            assert parameters["connect_timeout"] == "60"


#: What a call of a server that does not answer raises, and what it says.
CALLS: dict[str, tuple[Callable[[Database], object], type[RepositoryError], str]] = {
    "push": (lambda database: SqlQueue(database, "q").push(Message("m")), OutcomeUnknown, "outcome is unknown"),
    "fetch_one": (lambda database: SqlStorageEngine(database).fetch_one("a"), RepositoryError, "not answered in time"),
}


@pytest.mark.parametrize(("call", "kind", "advice"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("level", ["read committed", "serializable"])
def test_a_server_that_does_not_answer_is_given_up_after_the_timeout_of_the_url(
    postgres: URL, call: Callable[[Database], object], kind: type[RepositoryError], advice: str, level: str
) -> None:
    default = f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    with FreezingProxy(postgres) as proxy:
        url = proxy.url.update_query_dict({"timeout": "0.3", "options": default})
        with Database(url) as database:
            SqlStorageEngine(database).upsert("a", 1)
            proxy.freeze_all()
            with closing_in_the_end(proxy), pytest.raises(kind, match=advice) as error:
                call(database)
            assert "no answer within 0.3 seconds" in str(error.value.__cause__)


@contextmanager
def closing_in_the_end(proxy: FreezingProxy) -> Iterator[None]:
    """Close the connections that a call would otherwise wait for without end."""
    timer = threading.Timer(DEADLINE, proxy.close)
    timer.start()
    yield
    timer.cancel()


BLOCKED = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
    AND clock_timestamp() - state_change > interval '0.6 seconds'
"""


def test_an_upgrade_has_no_timeout(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    with Database(url) as database:
        database.upgrade("eric_sse_sql_0003")
    limited = url.update_query_dict({"timeout": "0.3"})
    with Database(limited) as database, ThreadPoolExecutor(1) as thread, psycopg.connect(conninfo(url)) as lock:
        lock.execute("LOCK TABLE sse_messages")
        upgrade = thread.submit(database.upgrade)
        with psycopg.connect(conninfo(url), autocommit=True) as other:  # a transaction sees one moment of the activity
            until(lambda: upgrade.done() or other.execute(BLOCKED).fetchone() != (0,))
        lock.commit()
        upgrade.result()
        database.check()
        lock.execute("LOCK TABLE sse_messages")
        with pytest.raises(OutcomeUnknown):
            SqlQueue(database).push(Message("m"))


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", "86401"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(migrated_postgres: URL, seconds: str) -> None:
    with pytest.raises(RepositoryError, match="timeout in the URL"):
        Database(migrated_postgres.update_query_dict({"timeout": seconds}))
