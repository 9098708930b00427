"""Interrupts the connection that listens for notifications, and measures the time until another one listens."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from eric_sse.exception import RepositoryError
from eric_sse.prefabs import SSEChannel

from benchmarks.harness.locations import Location
from benchmarks.harness.worker_processes import wait_until_all_ready
from benchmarks.streams.receiver import START_SECONDS, stamped
from benchmarks.streams.stream_locations import SqlStreams, listener_id

LISTEN_SECONDS = 15  # within which another connection must listen
POLL_SECONDS = 0.002

# The last statement of a listening connection is LISTEN, or the check that the connection is alive.
_LISTENERS = """\
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND (query LIKE 'LISTEN %' OR query = 'SELECT 1')"""

Interruption = Callable[[Location, int], Any]  # a context manager; gets the pid of the listener's server process


@contextmanager
def killed(location: Location, pid: int) -> Iterator[None]:
    """The server closes the connection."""
    with location.connect_postgres() as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [pid])
    yield


@contextmanager
def frozen(location: Location, pid: int) -> Iterator[None]:
    """The connection stays open, but the server process does not answer."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def crashed(location: Location, pid: int) -> Iterator[None]:
    """The server ends all connections, recovers from its log, and accepts connections again."""
    with location.connect_postgres() as admin:
        os.kill(pid, signal.SIGKILL)
        with suppress(psycopg.OperationalError):
            while True:
                admin.execute("SELECT pg_sleep(0.001)")
    yield


def interrupt(
    location: Location, streams: int, samples: int, intervals: tuple[float, float], by: Interruption
) -> list[float]:
    """Interrupt the listening connection and dispatch a message without a notification, several times.

    A last message is dispatched at the end: the receivers wait for it until they listen again.

    :returns: seconds from when the server accepts the message until another connection listens, for each interruption
    """
    channel = SqlStreams(location, notifies=False).open(streams)
    times = []
    wait_until_all_ready(START_SECONDS)
    for number in range(samples):
        time.sleep(random.uniform(*intervals))
        (before,) = _listeners(location)
        with by(location, before):
            _dispatch(channel, streams, number)
            began = time.monotonic()
            while not _listeners(location) - {before}:
                if time.monotonic() > began + LISTEN_SECONDS:
                    raise AssertionError("no connection listens again")
                time.sleep(POLL_SECONDS)
            times.append(time.monotonic() - began)
    _dispatch(channel, streams, samples)
    return times


def _dispatch(channel: SSEChannel, streams: int, number: int) -> None:
    """Dispatch a message; repeat until the server accepts it."""
    while True:
        with suppress(RepositoryError):
            channel.dispatch(listener_id(random.randrange(streams)), stamped(number))
            return
        time.sleep(POLL_SECONDS)


def _listeners(location: Location) -> set[int]:
    with location.connect_postgres() as admin:
        return {pid for (pid,) in admin.execute(_LISTENERS)}
