"""``QueueWatcher``: what waits for a message is woken, whichever process pushes it."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from eric_sse.message import Message
from sqlalchemy import URL, event, text

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.wakeups import poller
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS
from support.forking import forking
from support.queues import drain, pop_soon, pop_until_known_empty
from support.threads import WATCHER, background_threads, in_watcher
from support.waiting import DEADLINE, until


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


def test_a_message_released_by_another_process_is_noticed(worker: Database, producer: Database) -> None:
    queue = SqlQueue(worker)
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), SqlQueue(producer, queue.id).receive():
        pop_until_known_empty(queue)
        raise KeyError
    assert pop_soon(queue) == 7


def test_a_message_released_by_its_consumer_is_popped_at_once(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("n", 7))
    with pytest.raises(KeyError), SqlQueue(database, queue.id).receive():
        pop_until_known_empty(queue)
        raise KeyError
    assert queue.pop().payload == 7


def test_a_blocking_queue_is_woken_by_the_push_of_another_process(worker: Database, producer: Database) -> None:
    queue = BlockingSqlQueue(worker)
    timers = [threading.Timer(n / 10, lambda n=n: SqlQueue(producer, queue.id).push(Message("n", n))) for n in range(5)]
    for timer in timers:
        timer.start()
    assert [queue.pop(DEADLINE).payload for _ in timers] == list(range(5))
    for timer in timers:
        timer.join()


def test_a_push_is_noticed_soon_after_a_slow_write_of_the_positions_of_streams(
    worker: Database, producer: Database
) -> None:
    queue, slow, written = SqlQueue(worker), 0.5, threading.Event()

    def wait_before_positions(*arguments: Any) -> None:
        if arguments[2].startswith("UPDATE") and "sse_connections" in arguments[2]:
            time.sleep(slow)
            written.set()

    event.listen(worker.engine, "before_cursor_execute", wait_before_positions)
    worker.watcher.presence.open("of a stream").position = 1
    pop_until_known_empty(queue)
    assert written.wait(DEADLINE)
    began = time.monotonic()
    SqlQueue(producer, queue.id).push(Message("n", 7))
    assert pop_soon(queue) == 7
    assert time.monotonic() - began < slow


def test_closing_during_a_poll_reports_no_outage(worker: Database, caplog: pytest.LogCaptureFixture) -> None:
    is_polling = threading.Event()

    def slow_down_polls(*arguments: Any) -> None:
        if threading.current_thread().name == WATCHER:
            is_polling.set()
            time.sleep(0.1)

    event.listen(worker.engine, "before_cursor_execute", slow_down_polls)
    worker.watcher.presence.open("of a stream")
    SqlQueue(worker).watch.arm()
    worker.background.poller.start()
    assert is_polling.wait(DEADLINE)
    worker.close()
    assert caplog.messages == []


def test_watches_are_added_and_collected_during_polls(worker: Database) -> None:
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


def test_closing_ends_the_background_threads(worker: Database) -> None:
    queue = SqlQueue(worker)
    queue.push_many([Message("n", 1), Message("n", 2)])
    assert drain(queue) == [1, 2]
    pop_until_known_empty(queue)
    assert WATCHER in {thread.name for thread in background_threads()}
    worker.close()
    assert background_threads() == []


def test_a_database_that_is_garbage_collected_leaves_no_thread(shared_url: URL) -> None:
    database = Database(shared_url)
    queue = SqlQueue(database)
    for n in range(3):
        queue.push(Message("n", n))
    while pop_soon(queue) < 2:
        pass
    pop_until_known_empty(queue)
    assert len(background_threads()) == (2 if database.engine.dialect.name == "postgresql" else 1)
    del database, queue
    gc.collect()
    until(lambda: background_threads() == [])


@forking
def test_a_forked_child_has_a_watcher_of_its_own(worker: Database, producer: Database) -> None:
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
def test_no_fork_happens_while_the_watcher_is_inside_the_driver(tmp_path: Path) -> None:
    """A child would inherit, locked for ever, the locks that SQLite holds at that moment."""
    inside = threading.Event()

    def read_slowly() -> None:
        inside.set()
        time.sleep(0.05)
        inside.clear()

    with Database(f"sqlite:///{tmp_path / 'a.db'}") as database:
        database.upgrade()
        trace = in_watcher(read_slowly)  # SQLite calls it at the start of each statement
        event.listen(database.engine, "connect", lambda connection, _: connection.set_trace_callback(trace))
        database.engine.dispose()
        pop_until_known_empty(SqlQueue(database))
        for _ in range(5):
            assert inside.wait(DEADLINE)
            child = os.fork()
            if child == 0:
                os._exit(1 if inside.is_set() else 42)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        until(inside.is_set)  # the thread goes on


@forking
def test_a_fork_waits_only_for_a_time_for_a_watcher_that_hangs_in_the_driver(
    worker: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "FORK_SECONDS", 0.1)
    hangs, may_go_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        may_go_on.wait(DEADLINE)

    queue = SqlQueue(worker)
    pop_until_known_empty(queue)
    event.listen(worker.engine, "before_cursor_execute", in_watcher(hang))
    queue.watch.arm()  # so that the next poll is a statement
    assert hangs.wait(DEADLINE)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        SqlQueue(worker, "to the parent").push(Message("ready"))
        os._exit(42)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert time.monotonic() - began < DEADLINE / 2
    may_go_on.set()
    assert pop_soon(SqlQueue(worker, "to the parent")) is None
