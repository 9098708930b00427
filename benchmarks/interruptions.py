"""What happens to a connection that listens, and how long it takes until something listens again."""

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

from benchmarks.contenders import Location
from benchmarks.databases import conninfo
from benchmarks.processes import await_others
from benchmarks.receiving import START_SECONDS, stamped
from benchmarks.stream_peers import SqlStreams, listener_id

LISTEN_SECONDS = 15  # which a new listener has to appear
ASK_SECONDS = 0.002

# What listens has said so last, or has been asked whether it is alive.
_LISTENERS = """\
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND (query LIKE 'LISTEN %' OR query = 'SELECT 1')"""

Interruption = Callable[[Location, int], Any]  # a context manager; of the process of the server that serves a listener


@contextmanager
def killed(location: Location, process: int) -> Iterator[None]:
    """The server closes the connection."""
    with _connected(location) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [process])
    yield


@contextmanager
def frozen(location: Location, process: int) -> Iterator[None]:
    """The connection stays open, and nothing answers."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextmanager
def crashed(location: Location, process: int) -> Iterator[None]:
    """The server ends all connections, recovers its database from the log, and starts anew."""
    with _connected(location) as admin:
        os.kill(process, signal.SIGKILL)
        with suppress(psycopg.OperationalError):
            while True:
                admin.execute("SELECT pg_sleep(0.001)")
    yield


def interrupt(
    location: Location, streams: int, samples: int, intervals: tuple[float, float], by: Interruption
) -> list[float]:
    """Interrupt what listens, and dispatch a message without a notification, so that it is found by whoever looks; and
    in the end one more, for which receivers wait as long as the last of them takes to listen again.

    :returns: seconds, of each interruption, from when the server answers until something listens
    """
    channel = SqlStreams(location, notifies=False).open(streams)
    times = []
    await_others(START_SECONDS)
    for number in range(samples):
        time.sleep(random.uniform(*intervals))
        (before,) = _listeners(location)
        with by(location, before):
            _dispatch(channel, streams, number)
            began = time.monotonic()
            while not _listeners(location) - {before}:
                if time.monotonic() > began + LISTEN_SECONDS:
                    raise AssertionError("nothing listens again")
                time.sleep(ASK_SECONDS)
            times.append(time.monotonic() - began)
    _dispatch(channel, streams, samples)
    return times


def _dispatch(channel: SSEChannel, streams: int, number: int) -> None:
    """Dispatch a message, as soon as the server takes it."""
    while True:
        with suppress(RepositoryError):
            return channel.dispatch(listener_id(random.randrange(streams)), stamped(number))
        time.sleep(ASK_SECONDS)


def _listeners(location: Location) -> set[int]:
    with _connected(location) as admin:
        return {process for (process,) in admin.execute(_LISTENERS)}


@contextmanager
def _connected(location: Location) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(conninfo(location.url), autocommit=True) as admin:
        yield admin
