"""The application of docs/tutorial.md, asked as browsers ask it, on both databases."""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.asgi import asked
from support.catalog import address
from support.pages import DOCS, URL_OF_PAGES, snippets
from support.waiting import DEADLINE
from support.wire import Dispatched, dispatched

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="the tutorial is about the channels of eric-sse 2.1")

(APPLICATION,) = [each.code for each in snippets(DOCS / "tutorial.md") if each.file == "app.py"]


def served(url: URL, main: Callable[[Any, httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run the application from its start to its end, with a client."""
    module = types.ModuleType("app")
    exec(compile(APPLICATION.replace(URL_OF_PAGES, address(url)), "app.py", "exec"), vars(module))

    async def serve() -> None:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(module.app), base_url="http://tutorial")
        async with module.app.router.lifespan_context(module.app), client:
            await asyncio.wait_for(main(module.app, client), DEADLINE)

    asyncio.run(serve())


async def events(app: Any, listener_id: str, count: int, **headers: str) -> list[Dispatched]:
    """The first events of a stream."""
    async with asked(app, f"/stream/{listener_id}", headers) as answer:
        await answer.until(lambda: len(dispatched(answer.body.decode())) >= count)
        return dispatched(answer.body.decode())[:count]


def test_a_browser_gets_what_was_sent_while_the_server_was_down(empty_url: URL) -> None:
    seen: list[str] = []

    async def first(app: Any, client: httpx.AsyncClient) -> None:
        assert "EventSource" in (await client.get("/")).text
        seen.append((await client.post("/listeners")).json()["listener_id"])
        await client.post("/messages", params={"text": "hello"})
        (event,) = await events(app, seen[0], 1)
        assert (event.type, json.loads(event.data)) == ("message", {"text": "hello"})
        seen.append(event.last_event_id)
        await client.post("/messages", params={"text": "are you there?"})

    async def after_a_restart(app: Any, client: httpx.AsyncClient) -> None:
        (event,) = await events(app, seen[0], 1, **{"Last-Event-ID": seen[1]})
        assert json.loads(event.data) == {"text": "are you there?"}
        assert (await client.get("/stream/unknown")).status_code == 404

    served(empty_url, first)
    served(empty_url, after_a_restart)
