"""``Outage``: one log line when the database can't be reached, and one when it can be again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import pytest
from sqlalchemy import text

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from support.forking import forking
from support.queues import pop_until_known_empty
from support.waiting import DEADLINE, until


class PausingHandler(logging.Handler):
    """Counts log lines, and keeps the thread that logs the first one inside of the logging call."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.is_logging, self.may_go_on = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        if self.count == 1:
            self.is_logging.set()
            self.may_go_on.wait(DEADLINE)


@forking
def test_a_forked_child_is_not_in_the_outage_of_its_parent(worker: Database) -> None:
    outage, handler = worker.background.outage, PausingHandler()
    logger = logging.getLogger("eric_sse_sql")
    logger.addHandler(handler)
    # The thread holds the lock of the outage while it logs, so that the child inherits it locked.
    thread = threading.Thread(target=outage.begin, args=("a stream of the parent", ValueError()))
    thread.start()
    assert handler.is_logging.wait(DEADLINE)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a child that waits for a thread that it does not have
        outage.end("a stream of the parent")  # which the child does not know
        lines_of_end = handler.count - 1
        outage.begin("a stream of the child", ValueError())
        os._exit(42 if (lines_of_end, handler.count - 1) == (0, 1) else 1)
    handler.may_go_on.set()
    thread.join(DEADLINE)
    logger.removeHandler(handler)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    worker: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    pop_until_known_empty(SqlQueue(worker))
    queues = [BlockingSqlQueue(worker) for _ in range(5)]
    for queue in queues:
        queue.watch.arm()
    with worker.engine.begin() as connection:
        connection.execute(text("ALTER TABLE sse_messages RENAME TO elsewhere"))
    until(lambda: len(caplog.records) == 1)
    time.sleep(1)
    with worker.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO sse_messages"))
    until(lambda: len(caplog.records) == 2)
    assert "can't be queried" in caplog.messages[0] and "again" in caplog.messages[1]


def test_a_caller_that_gives_up_is_not_logged_as_the_end_of_an_outage(
    worker: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "eric_sse_sql")
    outage = worker.background.outage
    outage.begin("a stream", ConnectionError())
    outage.forget("a stream")
    assert [record.getMessage() for record in caplog.records] == [
        "the database can't be queried, and is tried again: ConnectionError"
    ]
