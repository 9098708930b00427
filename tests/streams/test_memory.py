"""A backlog of large messages: a stream holds a bounded part of it, and loses none where memory does not suffice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eric_sse.message import Message
from sqlalchemy import URL

from eric_sse_sql import Database, SqlQueue
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import address
from support.queues import drain
from support.waiting import PATIENCE, until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from eric_sse_sql import SqlSSEChannelRepository

MIB = 1024 * 1024
SIZE, COUNT = 4 * MIB, 30
MOST = 64  # MiB, by which the peak of a process may grow for the first event
SPARE = 100  # MiB, which a process gets beside what it has

READER = """if True:
    import asyncio, json, os, pathlib, resource, sys, threading

    from eric_sse_sql import Database, SqlQueue, SqlSSEChannelRepository
    from eric_sse.message import Message

    MIB = 1024 * 1024
    url, spare, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

    def peak():
        return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    threading.stack_size(MIB)
    database = Database(url)
    channel = SqlSSEChannelRepository(database).load_one("news")
    (connection,) = channel.get_connections()
    listener = connection.listener
    listener.start()
    warm = SqlQueue(database, "warm")
    warm.push(Message("m"))
    warm.pop()
    if spare:
        size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + spare * MIB,) * 2)
    got = []

    async def main():
        stream = channel.message_stream(listener)
        try:
            while True:
                event = await asyncio.wait_for(anext(stream), seconds)
                if event["event"] == "m":
                    got.append(event["data"][0])
                if not spare:
                    return
        except (asyncio.TimeoutError, StopAsyncIteration):
            pass
        finally:
            await stream.aclose()

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before = peak()
    try:
        asyncio.run(asyncio.wait_for(main(), 20))
    except BaseException as error:
        print(type(error).__name__, file=sys.stderr)
    print(json.dumps({"got": got, "grown": peak() - before}), flush=True)
    database.close()
    os._exit(0)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this machine tells no peak")


def reader(url: URL, spare: int = 0, seconds: float = 10) -> dict[str, Any]:
    """What another process gets of the stream of "news", and by how many MiB its peak grows.

    :param spare: MiB that it may use; by default, without a limit, it reads one event
    """
    done = subprocess.run(
        [sys.executable, "-c", READER, address(url), str(spare), str(seconds)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # no 64 MiB of addresses for each thread
    )
    assert done.stdout.startswith("{"), done.stderr[-500:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("replay_seconds", [0, 600], ids=["queue", "log"])
def test_a_stream_holds_a_bounded_part_of_a_large_backlog(shared_url: URL, replay_seconds: float) -> None:
    with Database(shared_url) as database:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": "news", "replay_seconds": replay_seconds})
        listener = channel.add_listener()
        repository.persist(channel)
        queue_id = channel.get_connections()[0].queue.id  # type: ignore[attr-defined]
        for number in range(COUNT):
            channel.dispatch(listener.id, Message("m", (number, bytes(SIZE))))
        one = reader(shared_url)
        assert one["got"] == [0]
        assert one["grown"] < MOST
        # Where memory does not suffice, what is not delivered stays.
        some = reader(shared_url, SPARE, 1)
        if not replay_seconds:
            delivered = one["got"] + some["got"]
            queue = SqlQueue(database, queue_id)
            until(lambda: len(delivered) + len(queue) == COUNT)
            assert sorted(delivered + [payload[0] for payload in drain(queue)]) == list(range(COUNT))
        else:
            (connection,) = repository.load_one("news").get_connections()
            left = [payload[0] for payload in drain(connection.queue)]
            assert {*one["got"], *some["got"], *left} == set(range(COUNT))
            assert left == list(range(COUNT - len(left), COUNT))
