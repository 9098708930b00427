"""Streams that run in a process of their own, and what arrives there."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel

from benchmarks.processes import await_others
from benchmarks.stream_peers import Streams, listener_id
from benchmarks.values import new_message

START_SECONDS = 60
SETTLE_SECONDS = 2.0  # until all streams have looked, and wait
END_SECONDS = 10  # which streams have to end
TYPE = "notification"

Take = Callable[[str, Mapping[str, Any]], None]  # is given the id of a listener, and a payload that it was sent


@dataclass(frozen=True)
class Arrivals:
    """What a process has received.

    :param latencies: seconds from each dispatch to its delivery
    :param cpu: the share of a core that it took
    """

    latencies: Sequence[float]
    cpu: float


def receive(streams: Streams, count: int, expected: int, seconds: float) -> Arrivals:
    """Run streams until so many messages have arrived.

    :raises AssertionError: when they have not in that time
    """
    return asyncio.run(_receive(streams, count, expected, seconds))


def dispatch_at_random(streams: Streams, count: int, samples: int, intervals: tuple[float, float]) -> None:
    """Dispatch messages to any of the streams, at moments that no tick has to do with."""
    channel = streams.open(count)
    await_others(START_SECONDS)
    for number in range(samples):
        time.sleep(random.uniform(*intervals))
        channel.dispatch(listener_id(random.randrange(count)), stamped(number))


def stamped(number: int, **others: int) -> Message:
    """A message that tells when it was dispatched: now, on the clock that all processes of a machine share."""
    return Message(TYPE, {**new_message(number).payload, **others, "dispatched": time.time()})


def percentile(latencies: Sequence[float], percent: int) -> float:
    """The latency that so many percent of all do not exceed."""
    return sorted(latencies)[math.ceil(len(latencies) * percent / 100) - 1]


@asynccontextmanager
async def streaming(channel: SSEChannel, take: Take) -> AsyncIterator[None]:
    """All streams of a channel run while the block does, and have looked when it begins.

    :raises AssertionError: in the end, when one has delivered an error
    """
    listeners = [connection.listener for connection in channel.get_connections()]
    for listener in listeners:
        listener.start()
    tasks = [asyncio.create_task(_take_all(channel, listener, take)) for listener in listeners]
    await asyncio.sleep(SETTLE_SECONDS)
    try:
        yield
    finally:
        for listener in listeners:
            listener.stop()
        ended, running = await asyncio.wait(tasks, timeout=END_SECONDS)
        for task in running:
            task.cancel()
    for task in ended:
        task.result()
    if running:
        raise AssertionError(f"{len(running)} streams do not end")


async def _receive(streams: Streams, count: int, expected: int, seconds: float) -> Arrivals:
    latencies: list[float] = []
    are_here = asyncio.Event()

    def take(listener_id: str, payload: Mapping[str, Any]) -> None:
        latencies.append(time.time() - payload["dispatched"])
        if len(latencies) == expected:
            are_here.set()

    async with streaming(streams.open(count), take):
        await asyncio.to_thread(await_others, START_SECONDS)
        began, cpu = time.monotonic(), time.process_time()
        try:
            await asyncio.wait_for(are_here.wait(), seconds)
        except asyncio.TimeoutError as error:
            raise AssertionError(f"{len(latencies)} messages of {expected} have arrived") from error
        share = (time.process_time() - cpu) / (time.monotonic() - began)
    return Arrivals(latencies, share)


async def _take_all(channel: SSEChannel, listener: MessageQueueListener, take: Take) -> None:
    async with aclosing(channel.message_stream(listener)) as events:
        async for event in events:
            if event["event"] != TYPE:
                raise AssertionError(f"a stream has delivered {event}")
            take(listener.id, event["data"])
