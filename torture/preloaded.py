"""What gunicorn loads before it forks its workers: an application whose Database is in use already.

Environment: TORTURE_URL is the database; TORTURE_REPORT a file to which the hooks of the configuration write.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from eric_sse.exception import NoMessagesException
from eric_sse.message import Message

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue

database = Database(os.environ["TORTURE_URL"])
queue = SqlQueue(database, "preloaded")
queue.push(Message("parent", "before the fork"))
queue.pop()
_idle = BlockingSqlQueue(database, "idle")
with suppress(NoMessagesException):
    _idle.pop(timeout=0.2)  # starts the thread that waits for pushes

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Push a message and pop one. The answer has the process."""
    queue.push(Message("worker", os.getpid()))
    message = queue.pop()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "payload": message.payload}).encode()]


def child_exit(server: object, worker: object) -> None:
    """A hook of gunicorn's: a worker has ended. Use the database in the process that has forked it."""
    try:
        queue.push(Message("parent", "after a worker"))
        line = f"ok {queue.pop().payload} {threading.active_count()}"
    except Exception as error:
        line = f"failed {type(error).__name__}: {error}"
    with Path(os.environ["TORTURE_REPORT"]).open("a") as file:
        file.write(line + "\n")
