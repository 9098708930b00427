"""What is Postgres' alone: READ COMMITTED, prepared statements and keep-alives."""

from __future__ import annotations

from typing import Any, cast

import psycopg
from eric_sse.message import Message
from sqlalchemy import URL, text

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine


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
