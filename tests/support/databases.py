"""Databases and engines that are closed after a test, which fails if it leaves a connection in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from sqlalchemy import URL, Engine, QueuePool, create_engine, event

from eric_sse_sql import Database
from support.catalog import connections_in_use
from support.waiting import until

FETCH_SECONDS = 5  # in which a fetch that was running when a test ended is done


@contextmanager
def opened(bind: URL | Engine) -> Iterator[Database]:
    """A database. None of its connections may be in use when the block ends."""
    with Database(bind) as database:
        yield database
        database.publisher.close()  # its thread may be notifying
        database.background.leave(database.watcher)  # its thread may be polling
        with suppress(TimeoutError):  # a fetch for a stream that was cancelled may be running
            until(lambda: connections_in_use(database) == 0, FETCH_SECONDS)
        assert connections_in_use(database) == 0, "a connection leaked"


@contextmanager
def application_engine(url: URL, begins: bool = False, **options: Any) -> Iterator[Engine]:
    """An engine as an application makes it. None of its connections may be in use when the block ends.

    :param begins: whether SQLAlchemy, and not the driver, begins its transactions on SQLite
    :param options: of ``create_engine``
    """
    engine = create_engine(url, **options)
    if begins and engine.dialect.name == "sqlite":
        # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#sqlite-transactions
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    yield engine
    assert cast(QueuePool, engine.pool).checkedout() == 0, "a connection leaked"
    engine.dispose()
