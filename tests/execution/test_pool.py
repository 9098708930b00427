"""The pool of an engine that this package makes: threads get its connections in the order in which they asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, event
from sqlalchemy.exc import TimeoutError

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.execution.pool import FairPool
from support.catalog import connections_in_use
from support.waiting import until

THREADS, SECONDS = 40, 2.0
CONNECTIONS = 15  # of an engine made from a URL, at most


def test_no_thread_waits_long_beside_threads_that_never_pause(database: Database) -> None:
    longest, errors = [0.0] * THREADS, []
    SqlStorageEngine(database).upsert("key", 1)
    end = time.monotonic() + SECONDS

    def call(number: int) -> None:
        queue = SqlQueue(database, str(number))
        if number % 4 == 0:
            SqlStorageEngine(database).fetch_one("key")
        elif number % 4 == 1:
            with database.transaction():
                queue.push(Message("m"))
        else:
            queue.push(Message("m"))

    def work(number: int) -> None:
        try:
            while (began := time.monotonic()) < end:
                call(number)
                longest[number] = max(longest[number], time.monotonic() - began)
        except RepositoryError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert max(longest) < SECONDS / 2


@contextmanager
def all_in_use(database: Database, but: int = 0) -> Iterator[None]:
    """All connections of the pool but some are in use."""
    connections = [database.engine.connect() for _ in range(CONNECTIONS - but)]
    yield
    for connection in connections:
        connection.close()


def test_a_thread_that_begins_to_wait_gets_a_pinned_connection(shared_url: URL) -> None:
    with Database(shared_url) as database:
        SqlStorageEngine(database).upsert("key", 1)
        with all_in_use(database, but=1), database.engine.connect() as last:  # the one that the call has pinned
            assert last.exec_driver_sql("SELECT 1").scalar() == 1
        assert connections_in_use(database) == 0


def test_a_call_returns_its_connection_to_a_thread_that_waits(shared_url: URL) -> None:
    with Database(shared_url) as database, ThreadPoolExecutor(1) as thread:
        SqlStorageEngine(database).upsert("key", 1)
        pool = database.engine.pool
        assert isinstance(pool, FairPool)
        with all_in_use(database, but=1):
            with database.transaction():  # the last one
                waiting = thread.submit(SqlStorageEngine(database).fetch_one, "key")
                until(lambda: pool.is_awaited)
            assert waiting.result(10) == 1
        assert connections_in_use(database) == 0


def test_a_wait_in_vain_ends_with_an_error_and_takes_no_connection_away(shared_url: URL) -> None:
    engine = create_engine(shared_url, poolclass=FairPool, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            with engine.connect(), pytest.raises(TimeoutError):
                thread.submit(engine.connect).result()
        with engine.connect():
            pass
    engine.dispose()


def test_a_connection_that_can_not_be_made_takes_no_place_in_the_pool(shared_url: URL) -> None:
    engine = create_engine(shared_url, poolclass=FairPool, pool_size=1, max_overflow=0, pool_timeout=0.1)
    faults = [ValueError()]

    def fail(*arguments: object) -> None:
        if faults:
            raise faults.pop()

    event.listen(engine, "do_connect", fail)
    with pytest.raises(ValueError):
        engine.connect()
    with engine.connect():
        pass
    engine.dispose()
