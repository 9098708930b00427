"""Several processes on one database: nothing is lost, doubled or refused."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from eric_sse.message import Message
from sqlalchemy import URL

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine

PROCESSES, EACH = 4, 1_000


def work(url: str, who: int) -> list[int]:
    """Store as many values, and take as many messages, as a process is to."""
    taken = []
    with Database(url) as database:
        storage, queue = SqlStorageEngine(database), SqlQueue(database, "queue")
        for n in range(EACH):
            storage.upsert(f"{who}/{n}", (who, n))
            taken.append(queue.pop().payload)
    return taken  # type: ignore[return-value]


def test_four_processes_write_and_take_and_nothing_is_lost_or_doubled(shared_url: URL) -> None:
    url = shared_url.render_as_string(hide_password=False)
    with Database(shared_url) as database:
        queue = SqlQueue(database, "queue")
        with database.transaction():
            for n in range(PROCESSES * EACH):
                queue.push(Message("n", n))
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            taken = list(pool.map(work, [url] * PROCESSES, range(PROCESSES)))
        assert sorted(n for each in taken for n in each) == list(range(PROCESSES * EACH))
        assert all(each == sorted(each) for each in taken)
        stored = sorted(SqlStorageEngine(database).fetch_all())
    assert stored == [(who, n) for who in range(PROCESSES) for n in range(EACH)]
