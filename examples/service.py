"""Server-sent events over HTTP, from any number of worker processes on one database.

An example: it has NO authentication. Every client that reaches it can read, write and delete; keep it on 127.0.0.1.

Two workers, in this folder, on a SQLite file or a Postgres database (`--workers 2` gives them one port):

    pip install "eric_sse_sql[postgres,starlette]" "psycopg[binary]" uvicorn
    export ERIC_SSE_SQL_URL=sqlite:////tmp/service.db  # or postgresql://user@host/name
    uvicorn service:app --port 8001 &
    uvicorn service:app --port 8002 &

What one of them is asked, the other one knows:

    curl -X PUT '127.0.0.1:8001/create?channel_id=news'
    LISTENER=$(curl -s -X POST '127.0.0.1:8001/subscribe?channel_id=news' | cut -d '"' -f 4)
    curl -N "127.0.0.1:8002/stream/news/$LISTENER" &
    curl "127.0.0.1:8001/dispatch?channel_id=news&listener_id=$LISTENER" -d '{"type": "letter", "payload": "hello"}'
    curl '127.0.0.1:8002/broadcast?channel_id=news' -d '{"type": "weather", "payload": {"celsius": 21}}'
    curl '127.0.0.1:8002/'  # listeners, streams and waiting messages of each channel
    curl -X DELETE "127.0.0.1:8001/listener/news/$LISTENER"
    curl -X DELETE '127.0.0.1:8002/channel/news'

Messages wait in the database until a stream takes them, whatever happens to the workers. One that is on its way to a
client when the client or the worker goes away is lost: delivery is at most once.

The stream of a listener that is deleted, or whose channel is, ends in any worker, with an event of the type "gone". A
browser's EventSource then comes back once, gets 404, and gives up. A listener without a stream for
``FORGET_SECONDS``, a day by default, is deleted with its messages.

Answers are JSON, errors too: 404 for an unknown channel, and for a stream of an unknown listener; 400 for an unknown
listener otherwise, and for bad input; 503 when the database fails.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from anyio import create_task_group, sleep
from eric_sse.exception import InvalidListenerException, ItemNotFound, RepositoryError
from eric_sse.message import Message
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eric_sse_sql import Database, SqlSSEChannel, SqlSSEChannelRepository
from eric_sse_sql.starlette import sse_response

RETRY_MILLISECONDS = 1_000  # after which a browser that lost its stream comes back
IDENTIFIER = re.compile(r"[A-Za-z0-9._~-]{1,64}")  # what a URL takes as it is
MAX_BODY_BYTES, MAX_TYPE_CHARACTERS = 1 << 20, 64
# Longer than some minutes: the database is told every half minute which streams are open.
FORGET_AFTER = timedelta(seconds=float(os.environ.get("FORGET_SECONDS", 24 * 60 * 60)))
OVERVIEW = text("SELECT channel_id, connections, streaming, pending_messages FROM sse_channel_overview")

logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows
# All that a worker keeps. A channel is loaded for each request: by one statement, without its listeners.
database = Database(os.environ["ERIC_SSE_SQL_URL"], messages="json")
repository = SqlSSEChannelRepository(database)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await run_in_threadpool(database.upgrade)
    async with create_task_group() as tasks:
        tasks.start_soon(forget_gone_listeners)
        yield
        tasks.cancel_scope.cancel()
    database.close()


async def forget_gone_listeners() -> None:
    """Delete the connections that had no stream for a time, with their messages. Several workers may do so at once."""
    while True:
        await sleep(FORGET_AFTER.total_seconds() / 60)  # first: after an outage, clients need time to connect
        try:
            await run_in_threadpool(database.prune, FORGET_AFTER, unseen_for=FORGET_AFTER)
        except RepositoryError as error:
            logger.error("%s", error)


# Input


def identifier(request: Request, name: str) -> str:
    """A parameter of the path or the query."""
    value = request.path_params.get(name) or request.query_params.get(name, "")
    if not IDENTIFIER.fullmatch(value):
        raise HTTPException(400, f"{name} must be 1 to 64 letters and digits of ASCII, or any of . _ ~ -")
    return value


def channel_of(request: Request) -> SqlSSEChannel:
    """The channel that a request names, as it is now."""
    return repository.load_one(identifier(request, "channel_id"))


async def message_of(request: Request) -> Message:
    """The message in the body of a request."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(400, f"the body must be at most {MAX_BODY_BYTES} bytes")
    try:
        content = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body must be JSON") from error
    if not isinstance(content, dict) or not {"type"} <= content.keys() <= {"type", "payload"}:
        raise HTTPException(400, 'the body must be {"type": ..., "payload": ...}; the payload may be left out')
    kind = content["type"]
    if not isinstance(kind, str) or not kind.isprintable() or not 0 < len(kind) <= MAX_TYPE_CHARACTERS:
        raise HTTPException(400, f"the type must be a string of 1 to {MAX_TYPE_CHARACTERS} printable characters")
    return Message(kind, content.get("payload"))


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Endpoints: plain functions, which Starlette runs in threads, since the database blocks; coroutines read a body first.


def create(request: Request) -> Response:
    """Make a channel. One that is there stays as it is, with its listeners."""
    data: dict[str, Any] = {"retry_timeout_milliseconds": RETRY_MILLISECONDS}
    if "channel_id" in request.query_params:
        data["channel_id"] = identifier(request, "channel_id")
    channel = repository.create(data)
    repository.persist(channel)
    return JSONResponse({"channel_id": channel.id})


def subscribe(request: Request) -> Response:
    channel = channel_of(request)
    connection = repository.connections_factory.create()
    # The connection alone: persisting the channel would bring it back if another worker is deleting it.
    repository.connections_repository.persist(channel.id, connection)
    return JSONResponse({"listener_id": connection.listener.id})


async def broadcast(request: Request) -> Response:
    message = await message_of(request)
    await run_in_threadpool(lambda: channel_of(request).broadcast(message))
    return Response(status_code=204)


async def dispatch(request: Request) -> Response:
    message, listener_id = await message_of(request), identifier(request, "listener_id")
    await run_in_threadpool(lambda: channel_of(request).dispatch(listener_id, message))
    return Response(status_code=204)


def stream(request: Request) -> Response:
    listener_id = identifier(request, "listener_id")
    response = sse_response(channel_of(request), listener_id, request)
    response.background = BackgroundTask(logger.info, "The stream of listener %s has ended", listener_id)
    return response


def delete_listener(request: Request) -> Response:
    channel = channel_of(request)
    channel.remove_listener(identifier(request, "listener_id"))
    repository.persist(channel)
    return Response(status_code=204)


def delete_channel(request: Request) -> Response:
    repository.delete(channel_of(request).id)
    return Response(status_code=204)


def channels(_: Request) -> Response:
    return JSONResponse([channel.id for channel in repository.load_all()])


def overview(_: Request) -> Response:
    """The listeners of each channel, those that had a stream in the last minute, and the messages that wait."""
    with database.engine.connect() as connection:
        rows = connection.execute(OVERVIEW).all()
    return JSONResponse(
        {
            row.channel_id: {"listeners": row.connections, "streams": row.streaming, "waiting": row.pending_messages}
            for row in rows
        }
    )


# Errors


def refused(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)


def unknown_channel(_: Request, error: ItemNotFound) -> Response:
    return JSONResponse({"message": f"there is no channel {error.key}"}, 404)


def unknown_listener(_: Request, error: InvalidListenerException) -> Response:
    return JSONResponse({"message": "the channel has no such listener"}, 400)


def database_failed(_: Request, error: Exception) -> Response:
    if isinstance(error.__cause__, (RecursionError, ValueError)):
        return JSONResponse({"message": "the payload is nested too deeply, or has a lone surrogate"}, 400)
    logger.error("%s", error, exc_info=error)  # for the operator: it may name tables and servers
    return JSONResponse({"message": "the database failed; try again later"}, 503)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/create", create, methods=["PUT"]),
        Route("/subscribe", subscribe, methods=["POST"]),
        Route("/broadcast", broadcast, methods=["POST"]),
        Route("/dispatch", dispatch, methods=["POST"]),
        Route("/stream/{channel_id}/{listener_id}", stream),
        Route("/listener/{channel_id}/{listener_id}", delete_listener, methods=["DELETE"]),
        Route("/channel/{channel_id}", delete_channel, methods=["DELETE"]),
        Route("/channels", channels),
        Route("/", overview),
    ],
    exception_handlers={
        HTTPException: refused,
        ItemNotFound: unknown_channel,
        InvalidListenerException: unknown_listener,
        RepositoryError: database_failed,
        SQLAlchemyError: database_failed,
    },
)
