"""A client of an ASGI application, without a network: a response that streams is read as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from support.waiting import DEADLINE


class Answer:
    """A response of an application, as far as it was sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False
        self._changed = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            self.is_complete = not message.get("more_body", False)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition on what was sent holds."""

        async def hold() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(hold(), DEADLINE)


@asynccontextmanager
async def asked(application: Any, path: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Answer]:
    """The answer to a GET. At the end the client is disconnected, and the application has noticed that."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    answer, disconnected = Answer(), asyncio.Event()
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        for message in messages:
            return message
        await disconnected.wait()
        return {"type": "http.disconnect"}

    running = asyncio.create_task(application(scope, receive, answer.send))
    try:
        yield answer
    finally:
        disconnected.set()
        await asyncio.wait_for(running, DEADLINE)
