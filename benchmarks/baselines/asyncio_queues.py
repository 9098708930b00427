"""The baseline of a broadcast to many streams: asyncio alone, which hands a message over within one process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.harness.interfaces import OnArrival, Send
from benchmarks.harness.sample_data import new_message


class AsyncioQueues:
    """A queue of asyncio for each stream. The message is pickled once, and each stream unpickles it."""

    @asynccontextmanager
    async def streaming(self, count: int, on_arrival: OnArrival) -> AsyncIterator[Send]:
        queues: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in range(count)]
        tasks = [asyncio.create_task(read_queue(queue, on_arrival)) for queue in queues]

        def send() -> None:
            put_all(queues, pickle.dumps(new_message(0), 5))

        try:
            yield send
        finally:
            await cancel(tasks)


def put_all(queues: list[asyncio.Queue[bytes]], message: bytes) -> None:
    """Hand a message over to all queues."""
    for queue in queues:
        queue.put_nowait(message)


async def read_queue(queue: asyncio.Queue[bytes], on_arrival: OnArrival) -> None:
    """Take and decode messages for ever."""
    while True:
        pickle.loads(await queue.get())
        on_arrival()


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    """End tasks, and raise what one of them has raised."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
