"""Event loops of tests, and what happens beside them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, text

from eric_sse_sql import Database
from support.waiting import DEADLINE


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function on an event loop of its own, for the deadline at most."""

    async def in_time() -> Any:
        return await asyncio.wait_for(main(), DEADLINE)

    return asyncio.run(in_time())


async def eventually(condition: Callable[[], object]) -> None:
    """Let the event loop run until a condition holds."""

    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), DEADLINE)


@contextmanager
def locked(url: URL, table: str = "sse_messages") -> Iterator[None]:
    """Another connection holds a table locked: for ten seconds at most, so that a blocked event loop goes on."""
    is_locked, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with Database(url) as other, other.transaction():
            if other.engine.dialect.name == "postgresql":
                other.connection().execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            is_locked.set()
            may_end.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert is_locked.wait(DEADLINE)
        yield
    finally:
        may_end.set()
        thread.join(DEADLINE)


class LoopTicks:
    """Counts the turns of the running event loop, 100 a second at most."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.count += 1

    def stop(self) -> int:
        """Stop counting. How many there were."""
        self._task.cancel()
        return self.count
