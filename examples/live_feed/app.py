"""A live page: what is typed on one is shown on all, whatever happens to the processes that serve them.

An example: it has NO authentication. Every client that reaches it can read and write; keep it on 127.0.0.1. `make live`
runs it, or, in this folder, any number of workers on a SQLite file or a Postgres database:

    pip install "eric_sse_sql[postgres]" starlette sse-starlette uvicorn
    export ERIC_SSE_SQL_URL=sqlite:////tmp/live.db  # or postgresql://user@host/name
    uvicorn app:app --port 8001 &
    uvicorn app:app --port 8002 &

Each page has a listener of its own, which it keeps through reloads, and names the last event that it has seen when it
connects again, to whichever worker: it then gets what it has missed. A page that is gone for longer than
``REPLAY_SECONDS`` may be told that something is missing.

A page that is closed leaves its listener, and broadcasts wait for it. An application deletes connections that are no
longer used: ``repository.connections_repository.delete(...)``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from eric_sse.exception import InvalidListenerException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from eric_sse_sql import Database, SqlSSEChannel, SqlSSEChannelRepository

CHANNEL = "live"
REPLAY_SECONDS = 300
RETRY_MILLISECONDS = 1_000  # after which a browser that lost its stream comes back
MAX_BODY_BYTES, MAX_TEXT_CHARACTERS = 1 << 16, 1_000
BEFORE_ALL = "0"  # the id of an event before the first one of a listener
# The page needs nothing from elsewhere, and nothing else may slip in.
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")

# All that a worker keeps. It loads the channel for each request, since another worker may have added a listener.
database = Database(os.environ["ERIC_SSE_SQL_URL"])
repository = SqlSSEChannelRepository(database)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await run_in_threadpool(prepare)
    yield
    database.close()


def prepare() -> None:
    """Make the tables and the channel. What is there stays, with its listeners."""
    database.upgrade()
    repository.persist(
        repository.create(
            {
                "channel_id": CHANNEL,
                "replay_seconds": REPLAY_SECONDS,
                "retry_timeout_milliseconds": RETRY_MILLISECONDS,
            }
        )
    )


# Endpoints: plain functions, which Starlette runs in threads, since the database blocks; coroutines read a body first.


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE, headers=HEADERS)


def subscribe(request: Request) -> Response:
    """The listener that a page names, as long as it is there; otherwise a new one."""
    try:
        listener = repository.load_one(CHANNEL).get_listener(request.query_params.get("listener_id", ""))
    except InvalidListenerException:
        connection = repository.connections_factory.create()
        repository.connections_repository.persist(CHANNEL, connection)
        listener = connection.listener
    return JSONResponse({"listener_id": listener.id})


async def post(request: Request) -> Response:
    """Broadcast a text to all pages."""
    message = Message("message", {"text": await text_of(request), "sent": time.time()})
    await run_in_threadpool(lambda: repository.load_one(CHANNEL).broadcast(message))
    return Response(status_code=204)


async def text_of(request: Request) -> str:
    if request.headers.get("Content-Type") != "application/json":  # a page of another site can't send that unasked
        raise HTTPException(415, "the body must be application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body must be at most {MAX_BODY_BYTES} bytes")
    try:
        text = json.loads(body)["text"].strip()
        text.encode()  # no lone surrogates
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HTTPException(400, 'the body must be {"text": "..."}') from error
    if not 0 < len(text) <= MAX_TEXT_CHARACTERS:
        raise HTTPException(400, f"the text must have 1 to {MAX_TEXT_CHARACTERS} characters")
    return str(text)


def stream(request: Request) -> Response:
    channel = repository.load_one(CHANNEL)
    listener = channel.get_listener(request.path_params["listener_id"])
    # A browser that comes back by itself sends the header, and a page that was loaded again the parameter.
    last_event_id = request.headers.get("Last-Event-ID") or request.query_params.get("last_event_id") or BEFORE_ALL
    listener.start()
    return EventSourceResponse(events(channel, listener, last_event_id))


async def events(
    channel: SqlSSEChannel, listener: MessageQueueListener, last_event_id: str
) -> AsyncIterator[dict[str, Any]]:
    """The events behind the last one that a page has seen. Those sent before now are replayed."""
    opened = time.time()
    yield {"comment": "open", "retry": channel.retry_timeout_milliseconds}
    try:
        async with aclosing(channel.message_stream(listener, last_event_id)) as messages:
            async for event in messages:
                if event["event"] == "error":
                    return  # the database fails: the page shows it, comes back, and goes on where it was
                if event["event"] == "message":
                    event["data"]["replayed"] = event["data"]["sent"] < opened
                yield {**event, "data": json.dumps(event["data"])}
    finally:
        listener.stop()


# Errors


def refused(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)


def unknown_listener(_: Request, error: InvalidListenerException) -> Response:
    return JSONResponse({"message": "there is no such listener; subscribe again"}, 404)


def database_failed(_: Request, error: RepositoryError) -> Response:
    return JSONResponse({"message": "the database failed; try again later"}, 503)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/subscribe", subscribe, methods=["POST"]),
        Route("/messages", post, methods=["POST"]),
        Route("/stream/{listener_id}", stream),
    ],
    exception_handlers={
        HTTPException: refused,
        InvalidListenerException: unknown_listener,
        RepositoryError: database_failed,
    },
)
