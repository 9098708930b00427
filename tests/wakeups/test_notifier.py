"""``NotifyThrottle``: few notifications, and always one after the last push."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import psycopg
from eric_sse.message import Message
from sqlalchemy import URL

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.wakeups.notifier import NOTIFY_CHANNEL
from eric_sse_sql.wakeups.topics import queue_topic
from support.catalog import conninfo
from support.queues import pop_soon, pop_until_known_empty
from support.waiting import DEADLINE


def test_many_pushes_send_few_notifications_and_one_after_the_last_push(postgres: URL) -> None:
    with Database(postgres) as producer, psycopg.connect(conninfo(postgres), autocommit=True) as ear:
        ear.execute(f"LISTEN {NOTIFY_CHANNEL}")
        queue = SqlQueue(producer)
        began = time.monotonic()
        for n in range(200):
            queue.push(Message("n", n))
        took = time.monotonic() - began
        heard = list(ear.notifies(timeout=0.5))
        assert {notification.payload for notification in heard} == {queue_topic(None, queue.id)}
        queue.push(Message("n", "leads"))
        queue.push(Message("n", "follows"))
        assert len(list(ear.notifies(timeout=DEADLINE, stop_after=2))) == 2
        assert 1 <= len(heard) <= 3 + took / 0.01
        assert len(heard) < 200


def test_a_garbage_collected_database_has_sent_its_last_notification(postgres: URL) -> None:
    with psycopg.connect(conninfo(postgres), autocommit=True) as ear:
        ear.execute(f"LISTEN {NOTIFY_CHANNEL}")
        queue = SqlQueue(Database(postgres))
        queue.push(Message("n", "leads"))
        queue.push(Message("n", "follows"))
        del queue
        gc.collect()
        assert len(list(ear.notifies(timeout=DEADLINE, stop_after=2))) == 2


def test_processes_with_tables_in_a_schema_notify_each_other(new_postgres: Callable[[], URL]) -> None:
    url, schema = new_postgres(), "s" * 63
    with Database(url, schema=schema) as worker, Database(url, schema=schema) as producer:
        worker.upgrade()
        queue = SqlQueue(worker)
        pop_until_known_empty(queue)
        SqlQueue(producer, queue.id).push(Message("n", 7))
        assert pop_soon(queue) == 7
