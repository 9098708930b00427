"""Starts a Redis server for eric-redis-queues."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.cpu_affinity import Placement, on_last_core
from benchmarks.harness.optional_peers import PeerMissing

IN_MEMORY = ("--appendonly", "no")
ON_DISK = ("--appendonly", "yes", "--appendfsync", "always")

START_SECONDS = 10


@contextmanager
def redis_server(folder: Path, options: tuple[str, ...], placement: Placement = on_last_core) -> Iterator[int]:
    """Start a server and return its port. The server stops when the block ends.

    :param options: its durability options
    :raises PeerMissing: when there is no redis-server on the PATH, or it does not start
    """
    program = shutil.which("redis-server")
    if program is None:
        raise PeerMissing("there is no redis-server on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
    with placement():
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield port
    finally:
        server.terminate()
        server.wait()


def _await_port(port: int) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError as error:
            if time.monotonic() > give_up:
                raise PeerMissing("redis-server does not start") from error
            time.sleep(0.02)
