"""A live page: what is typed on one is shown on all, whatever happens to the processes that serve them.

An example: it has NO authentication. Every client that reaches it can read and write; keep it on 127.0.0.1. `make live`
runs it, or, in this folder, any number of workers on a SQLite file or a Postgres database:

    pip install "eric_sse_sql[postgres,starlette]" "psycopg[binary]" uvicorn
    export ERIC_SSE_SQL_URL=sqlite:////tmp/live.db  # or postgresql://user@host/name
    uvicorn app:app --port 8001 &
    uvicorn app:app --port 8002 &

Each browser has a listener of its own, which its tabs share, and names the last event that it has seen when it connects
again, to whichever worker: it then gets what it has missed. A browser that is away for longer than ``REPLAY_SECONDS``
may be told that something is missing; one that is away for longer than ``FORGET_SECONDS``, a day by default, is
forgotten, and gets a new listener. A deleted listener ends its stream, whichever worker has it: "Leave" on the page.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from anyio import create_task_group, sleep
from eric_sse.exception import InvalidListenerException, RepositoryError
from eric_sse.message import Message
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from eric_sse_sql import Database, SqlSSEChannelRepository
from eric_sse_sql.starlette import sse_response

CHANNEL = "live"
REPLAY_SECONDS = 300
RETRY_MILLISECONDS = 1_000  # after which a browser that lost its stream comes back
MAX_BODY_BYTES, MAX_TEXT_CHARACTERS = 1 << 16, 1_000
# Longer than some minutes: the database is told every half minute which streams are open.
FORGET_AFTER = timedelta(seconds=float(os.environ.get("FORGET_SECONDS", 24 * 60 * 60)))
# Browsers that had a stream in the last minute, and the position of the last event.
STATUS = text(
    "SELECT streaming, coalesce(last_position, 0) AS position FROM sse_channel_overview LEFT JOIN sse_event_logs "
    "ON sse_event_logs.channel_id = sse_channel_overview.channel_id WHERE sse_channel_overview.channel_id = :channel_id"
)
# The page needs nothing from elsewhere, and nothing else may slip in.
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")

logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows
# All that a worker keeps. The channel is loaded for each request: by one statement, without its listeners.
database = Database(os.environ["ERIC_SSE_SQL_URL"], messages="json")
repository = SqlSSEChannelRepository(database)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await run_in_threadpool(prepare)
    async with create_task_group() as tasks:
        tasks.start_soon(forget_gone_browsers)
        yield
        tasks.cancel_scope.cancel()
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


async def forget_gone_browsers() -> None:
    """Delete the connections that had no stream for a time, with their messages. Several workers may do so at once."""
    while True:
        await sleep(FORGET_AFTER.total_seconds() / 60)  # first: after an outage, browsers need time to connect
        try:
            await run_in_threadpool(database.prune, FORGET_AFTER, unseen_for=FORGET_AFTER)
        except RepositoryError as error:
            logger.error("%s", error)


# Endpoints: plain functions, which Starlette runs in threads, since the database blocks; coroutines read a body first.


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE, headers=HEADERS)


def subscribe(request: Request) -> Response:
    """The listener that a browser names, as long as it is there; otherwise a new one."""
    try:
        listener = repository.load_one(CHANNEL).get_listener(request.query_params.get("listener_id", ""))
    except InvalidListenerException:
        connection = repository.connections_factory.create()
        repository.connections_repository.persist(CHANNEL, connection)
        listener = connection.listener
    return JSONResponse({"listener_id": listener.id, **counts()})


def status(_: Request) -> Response:
    return JSONResponse(counts())


def counts() -> dict[str, int]:
    with database.engine.connect() as connection:
        row = connection.execute(STATUS, {"channel_id": CHANNEL}).one()
    return {"streaming": row.streaming, "position": row.position}


def leave(request: Request) -> Response:
    """Delete a listener."""
    channel = repository.load_one(CHANNEL)
    with suppress(InvalidListenerException):  # deleted already
        channel.remove_listener(request.path_params["listener_id"])
        repository.persist(channel)
    return Response(status_code=204)


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
    # A page that was loaded again can't send the header Last-Event-ID.
    last_event_id = request.query_params.get("last_event_id")
    listener_id = request.path_params["listener_id"]
    return sse_response(repository.load_one(CHANNEL), listener_id, request, last_event_id=last_event_id)


# Errors


def refused(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)


def database_failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"message": "the database failed; try again later"}, 503)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/listeners", subscribe, methods=["POST"]),
        Route("/listeners/{listener_id}", leave, methods=["DELETE"]),
        Route("/messages", post, methods=["POST"]),
        Route("/status", status),
        Route("/stream/{listener_id}", stream),
    ],
    exception_handlers={
        HTTPException: refused,
        RepositoryError: database_failed,
        SQLAlchemyError: database_failed,
    },
)
