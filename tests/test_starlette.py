"""``sse_response`` in applications on Starlette and on FastAPI."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from eric_sse.message import Message
from sqlalchemy import URL

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0, ItemNotFound
from support.asgi import Answer, asked
from support.loops import locked
from support.waiting import DEADLINE
from support.wire import dispatched

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eric_sse_sql import SqlSSEChannel, SqlSSEChannelRepository
from eric_sse_sql.starlette import sse_response

WITHOUT_STARLETTE = """
import sys
sys.modules["sse_starlette"] = None
import eric_sse_sql.starlette
"""


def missing(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": f"there is no channel {error.args[0]}"}, 404)


def on_starlette(repository: SqlSSEChannelRepository) -> Any:
    def stream(request: Request) -> Response:
        channel = repository.load_one(request.path_params["channel_id"])
        return sse_response(channel, request.path_params["listener_id"], request, heartbeat=0.05)

    return Starlette(routes=[Route("/{channel_id}/{listener_id}", stream)], exception_handlers={ItemNotFound: missing})


def on_fastapi(repository: SqlSSEChannelRepository) -> Any:
    application = FastAPI(exception_handlers={ItemNotFound: missing})

    @application.get("/{channel_id}/{listener_id}")
    def stream(channel_id: str, listener_id: str, request: Request, last_event_id: str | None = None) -> Response:
        channel = repository.load_one(channel_id)
        return sse_response(channel, listener_id, request, heartbeat=0.05, last_event_id=last_event_id)

    return application


@pytest.fixture
def database(shared_url: URL) -> Iterator[Database]:
    with Database(shared_url) as made:
        yield made


@pytest.fixture
def repository(database: Database) -> SqlSSEChannelRepository:
    return SqlSSEChannelRepository(database)


@pytest.fixture(params=[on_starlette, on_fastapi])
def application(request: pytest.FixtureRequest, repository: SqlSSEChannelRepository) -> Any:
    return request.param(repository)


@pytest.fixture
def channel(repository: SqlSSEChannelRepository) -> SqlSSEChannel:
    made = repository.create({"channel_id": "news", "replay_seconds": 60})
    made.add_listener()
    repository.persist(made)
    return made


def path(channel: SqlSSEChannel) -> str:
    (connection,) = channel.get_connections()
    return f"/news/{connection.listener.id}"


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        await asyncio.wait_for(main(), DEADLINE)

    asyncio.run(in_time())


def payloads(answer: Answer) -> list[Any]:
    return [json.loads(event.data) for event in dispatched(answer.body.decode())]


def test_a_client_gets_events_comments_and_what_it_has_missed(application: Any, channel: SqlSSEChannel) -> None:
    async def main() -> None:
        async with asked(application, path(channel)) as answer:
            await answer.until(lambda: b"\n:\n" in answer.body)
            assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
            for number in range(3):
                await asyncio.to_thread(channel.broadcast, Message("m", number))
            await answer.until(lambda: payloads(answer) == [0, 1, 2])
        first = dispatched(answer.body.decode())[0].last_event_id
        for headers, expected in (({"Last-Event-ID": first}, [1, 2]), ({"Last-Event-ID": ""}, [3])):
            if expected == [3]:
                await asyncio.to_thread(channel.broadcast, Message("m", 3))
            async with asked(application, path(channel), headers) as answer:
                await answer.until(lambda answer=answer, expected=expected: payloads(answer)[-1:] == expected[-1:])
                assert payloads(answer) == expected

    run(main)


def test_what_is_unknown_is_refused_before_anything_is_sent(
    application: Any, channel: SqlSSEChannel, repository: SqlSSEChannelRepository
) -> None:
    known = path(channel)

    async def main() -> None:
        for unknown in ("/news/unknown", "/news/\0", f"/news/{'x' * 2000}", "/sports/unknown"):
            async with asked(application, unknown) as answer:
                await answer.until(lambda answer=answer: answer.is_complete)
                assert answer.status == 404
        await asyncio.to_thread(repository.delete, "news")
        async with asked(application, known) as answer:
            await answer.until(lambda: answer.is_complete)
            assert answer.status == 404

    run(main)


def test_the_stream_of_a_deleted_listener_ends_and_another_one_is_refused(
    application: Any, channel: SqlSSEChannel, repository: SqlSSEChannelRepository
) -> None:
    known = path(channel)

    async def main() -> None:
        async with asked(application, known) as answer:
            await answer.until(lambda: b"retry" in answer.body)
            await asyncio.to_thread(repository.delete, "news")
            await answer.until(lambda: answer.is_complete)
            assert dispatched(answer.body.decode())[-1].type == "gone"
        async with asked(application, known) as answer:
            await answer.until(lambda: answer.is_complete)
            assert answer.status == 404

    run(main)


def test_a_page_that_is_loaded_again_names_the_last_event_in_the_address(
    repository: SqlSSEChannelRepository, channel: SqlSSEChannel
) -> None:
    application = on_fastapi(repository)

    async def main() -> None:
        for number in range(2):
            await asyncio.to_thread(channel.broadcast, Message("m", number))
        async with asked(application, path(channel)) as answer:
            await answer.until(lambda: payloads(answer) == [0, 1])
        seen = [event.last_event_id for event in dispatched(answer.body.decode())]
        async with asked(application, f"{path(channel)}?last_event_id={seen[0]}") as answer:
            await answer.until(lambda: payloads(answer) == [1])
        await asyncio.to_thread(channel.broadcast, Message("m", 2))
        reconnecting = {"Last-Event-ID": seen[1]}
        async with asked(application, f"{path(channel)}?last_event_id={seen[0]}", reconnecting) as answer:
            await answer.until(lambda: payloads(answer) == [2])

    run(main)


def test_a_listener_is_looked_up_beside_the_event_loop(postgres: URL) -> None:
    with Database(postgres) as database, ExitStack() as locks:
        repository = SqlSSEChannelRepository(database)
        made = repository.create({"channel_id": "news"})
        listener_id = made.add_listener().id
        repository.persist(made)
        loaded = repository.load_one("news")

        async def stream(request: Request) -> Response:
            return sse_response(loaded, listener_id, request)

        async def main() -> None:
            locks.enter_context(locked(postgres, "sse_connections"))
            async with asked(Starlette(routes=[Route("/", stream)]), "/") as answer:
                for _ in range(10):
                    await asyncio.sleep(0.001)
                assert answer.status == 0
                locks.close()
                await answer.until(lambda: b"retry" in answer.body)

        run(main)


def test_the_import_without_the_extra_says_what_to_install() -> None:
    run_without = subprocess.run([sys.executable, "-c", WITHOUT_STARLETTE], capture_output=True, text=True)
    assert run_without.returncode == 1
    assert 'ImportError: sse-starlette is needed: run `pip install "eric_sse_sql[starlette]"`' in run_without.stderr
