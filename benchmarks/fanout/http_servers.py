"""Servers of event streams over HTTP: eric_sse_sql on uvicorn, and nginx with nchan."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.fanout.crowd import Crowd
from benchmarks.harness.optional_peers import PeerMissing, import_peer
from benchmarks.harness.sample_data import new_message
from benchmarks.streams.stream_locations import listener_id
from eric_sse_sql import SqlSSEChannelRepository

HOST = "127.0.0.1"
START_SECONDS = 30
# As large as an event of eric_sse_sql with an id.
CONSTANT_BYTES = (
    b"id: 0123456789abcdef0123456789abcdef-1-1764166453123456\nevent: chat\ndata: "
    + json.dumps(new_message(0).payload, separators=(",", ":")).encode()
    + b"\n\n"
)
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")  # of Debian's package libnginx-mod-nchan
NCHAN_CONFIGURATION = """\
load_module {module};
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port};
        location = /publish {{ nchan_publisher; nchan_channel_id crowd; }}
        location /stream/ {{
            nchan_subscriber eventsource;
            nchan_channel_id crowd;
            nchan_subscriber_first_message oldest;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Running:
    """A server that runs.

    :param pids: of its processes
    """

    port: int
    pids: Sequence[int]


class HttpServer(Protocol):
    """A server whose clients get a first event when they connect, and then what is broadcast. It can be pickled."""

    def running(self) -> AbstractContextManager[Running]:
        """Run the server while the block runs."""

    def sender(self, port: int) -> Callable[[None], object]:
        """A function that broadcasts a message, in another process."""


@dataclass(frozen=True)
class UvicornServer:
    """An application on Starlette with one worker of uvicorn."""

    crowd: Crowd

    def running(self) -> AbstractContextManager[Running]:
        return _worker(_serve, self.crowd)

    def sender(self, port: int) -> Callable[[None], object]:
        return self.crowd.sender()


@dataclass(frozen=True)
class ConstantServer:
    """An application on ASGI alone that writes constant bytes, with one worker of uvicorn."""

    def running(self) -> AbstractContextManager[Running]:
        return _worker(_serve_constant)

    def sender(self, port: int) -> Callable[[None], object]:
        return partial(_publish, http.client.HTTPConnection(HOST, port))


@contextmanager
def _worker(serve: Callable[..., None], *arguments: object) -> Iterator[Running]:
    """Run a function that serves on a port in a process."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(*arguments, port), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        await_port(port)
        yield Running(port, [process.pid])
    finally:
        process.kill()  # uvicorn would wait for the streams to end
        process.join()


@dataclass(frozen=True)
class NchanServer:
    """nginx with nchan, with one worker process.

    :param folder: for its files
    """

    folder: Path
    program: str
    module: Path

    @contextmanager
    def running(self) -> Iterator[Running]:
        port, user = free_port(), "user root;" if os.geteuid() == 0 else ""
        configuration = self.folder / "nginx.conf"
        configuration.write_text(
            NCHAN_CONFIGURATION.format(module=self.module, user=user, folder=self.folder, host=HOST, port=port)
        )
        server = subprocess.Popen([self.program, "-c", configuration, "-p", self.folder], stderr=subprocess.DEVNULL)
        try:
            await_port(port)
            self.sender(port)(None)
            yield Running(port, [server.pid, *_children(server.pid)])
        finally:
            server.terminate()
            server.wait()

    def sender(self, port: int) -> Callable[[None], object]:
        return partial(_publish, http.client.HTTPConnection(HOST, port))


def nchan_module() -> tuple[str, Path]:
    """The program of nginx and the file of the module.

    :raises PeerMissing: when one of them is not installed
    """
    program = shutil.which("nginx")
    if program is None:
        raise PeerMissing("there is no nginx on the PATH")
    if not NCHAN_MODULE.exists():
        raise PeerMissing(f"there is no {NCHAN_MODULE}: Debian has it in libnginx-mod-nchan")
    return program, NCHAN_MODULE


def free_port() -> int:
    """A port that no server uses."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def await_port(port: int) -> None:
    """Wait until a server accepts connections.

    :raises PeerMissing: when none does
    """
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((HOST, port)).close()
            return
        except OSError as error:
            if time.monotonic() > give_up:
                raise PeerMissing("the server does not start") from error
            time.sleep(0.02)


def _serve(crowd: Crowd, port: int) -> None:
    """Run uvicorn. Each request loads the channel and its listener in a thread, as one of an application does."""
    routing = import_peer("starlette.routing")
    sse_response = import_peer("eric_sse_sql.starlette").sse_response
    repository = SqlSSEChannelRepository(crowd.location.open(crowd.messages))

    def stream(request: Any) -> Any:
        channel = repository.load_one(crowd.channel_id)
        return sse_response(channel, listener_id(int(request.path_params["number"])), request)

    application = import_peer("starlette.applications").Starlette(routes=[routing.Route("/stream/{number}", stream)])
    import_peer("uvicorn").run(application, host=HOST, port=port, log_level="error", backlog=4096)


class _ConstantBytes:
    """An ASGI application that writes the same bytes to all open responses: when they begin, and for each POST."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            self._asked.set()
            self._asked = asyncio.Event()
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            asked = self._asked
            await send({"type": "http.response.body", "body": CONSTANT_BYTES, "more_body": True})
            await asked.wait()


def _serve_constant(port: int) -> None:
    import_peer("uvicorn").run(_ConstantBytes(), host=HOST, port=port, log_level="error", backlog=4096, lifespan="off")


def _publish(connection: http.client.HTTPConnection, _: None) -> None:
    connection.request("POST", "/publish", json.dumps(new_message(0).payload))
    response = connection.getresponse()
    response.read()
    if response.status >= 300:
        raise AssertionError(f"nchan has answered {response.status}")


def _children(pid: int) -> list[int]:
    """The processes that a process has started, on Linux."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []
