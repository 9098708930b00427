"""Dispatches messages from one process, and receives them from streams in another."""

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

from benchmarks.harness.sample_data import new_message
from benchmarks.harness.worker_processes import wait_until_all_ready
from benchmarks.streams.stream_locations import StreamsLocation, listener_id

START_SECONDS = 60
SETTLE_SECONDS = 0.5, 0.002  # until streams have made their first query: at least, and for each stream
END_SECONDS = 10  # within which streams must end
TYPE = "notification"

OnMessage = Callable[[str, Mapping[str, Any]], None]  # gets the id of the listener and the payload


@dataclass(frozen=True)
class Arrivals:
    """What a process has received.

    :param latencies: seconds from each dispatch to its delivery
    :param cpu: the share of a core that the process used
    """

    latencies: Sequence[float]
    cpu: float


def receive(streams: StreamsLocation, count: int, expected: int, seconds: float, *, may_fail: bool = False) -> Arrivals:
    """Run streams until the expected number of messages has arrived.

    :param may_fail: whether streams may deliver error events, as they do while the server is down

    :raises AssertionError: when fewer have arrived within that time
    """
    return asyncio.run(_receive(streams, count, expected, seconds, may_fail))


def dispatch_at_random(streams: StreamsLocation, count: int, samples: int, intervals: tuple[float, float]) -> None:
    """Dispatch messages to random streams, at random moments: in no fixed phase with the polls of the receiver.

    :param intervals: the shortest and the longest pause between two messages, in seconds
    """
    channel = streams.open(count)
    wait_until_all_ready(START_SECONDS)
    for number in range(samples):
        time.sleep(random.uniform(*intervals))
        channel.dispatch(listener_id(random.randrange(count)), stamped(number))


def stamped(number: int, **others: int) -> Message:
    """A message with the time of its dispatch, on the clock that all processes of a machine share."""
    return Message(TYPE, {**new_message(number).payload, **others, "dispatched": time.time()})  # type: ignore[dict-item]


def percentile(latencies: Sequence[float], percent: int) -> float:
    """The latency that this percentage of all latencies does not exceed."""
    return sorted(latencies)[math.ceil(len(latencies) * percent / 100) - 1]


@asynccontextmanager
async def streaming(channel: SSEChannel, on_message: OnMessage, *, may_fail: bool = False) -> AsyncIterator[None]:
    """Run all streams of a channel while the block runs. It begins when they have made their first query.

    :param may_fail: whether streams may deliver error events

    :raises AssertionError: at the end, when a stream has delivered an error or does not end
    """
    listeners = [connection.listener for connection in channel.get_connections()]
    for listener in listeners:
        listener.start()
    tasks = [asyncio.create_task(_read_stream(channel, listener, on_message, may_fail)) for listener in listeners]
    least, each = SETTLE_SECONDS
    await asyncio.sleep(least + each * len(listeners))
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


async def _receive(streams: StreamsLocation, count: int, expected: int, seconds: float, may_fail: bool) -> Arrivals:
    latencies: list[float] = []
    all_arrived = asyncio.Event()

    def on_message(listener_id: str, payload: Mapping[str, Any]) -> None:
        latencies.append(time.time() - payload["dispatched"])
        if len(latencies) == expected:
            all_arrived.set()

    async with streaming(streams.open(count), on_message, may_fail=may_fail):
        await asyncio.to_thread(wait_until_all_ready, START_SECONDS)
        began, cpu = time.monotonic(), time.process_time()
        try:
            await asyncio.wait_for(all_arrived.wait(), seconds)
        except asyncio.TimeoutError as error:
            raise AssertionError(f"{len(latencies)} messages of {expected} have arrived") from error
        share = (time.process_time() - cpu) / (time.monotonic() - began)
    return Arrivals(latencies, share)


async def _read_stream(
    channel: SSEChannel, listener: MessageQueueListener, on_message: OnMessage, may_fail: bool
) -> None:
    async with aclosing(channel.message_stream(listener)) as events:  # type: ignore[type-var]
        async for event in events:
            if event["event"] == TYPE:
                on_message(listener.id, event["data"])
            elif not may_fail:
                raise AssertionError(f"a stream has delivered {event}")
