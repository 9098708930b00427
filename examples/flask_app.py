"""Server-sent events from Flask, as from any application on WSGI: a generator, and one event loop for each process.

An example: it has NO authentication. Every client that reaches it can read and write; keep it on 127.0.0.1. In this
folder, on a SQLite file or a Postgres database:

    pip install "eric_sse_sql[postgres]" "psycopg[binary]" flask
    export ERIC_SSE_SQL_URL=sqlite:////tmp/flask.db  # or postgresql://user@host/name
    flask --app flask_app run --port 8001

    LISTENER=$(curl -s -X POST 127.0.0.1:8001/listeners | cut -d '"' -f 4)
    curl -N 127.0.0.1:8001/stream/$LISTENER &
    curl 127.0.0.1:8001/messages -H 'Content-Type: application/json' -d '{"text": "hello"}'

A response of WSGI holds a thread of its server for as long as it is open: give the server as many threads as there are
browsers, or serve the streams by an application on ASGI beside this one (service.py, django_app.py), on one database.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from functools import cache
from typing import Any

from eric_sse.exception import InvalidListenerException
from eric_sse.message import Message
from flask import Flask, Response, abort, jsonify, request

from eric_sse_sql import Database, SqlSSEChannelRepository

CHANNEL = "news"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second one is for nginx

app = Flask(__name__)
database = Database(os.environ["ERIC_SSE_SQL_URL"], messages="json")
repository = SqlSSEChannelRepository(database)
database.upgrade()
repository.persist(repository.create({"channel_id": CHANNEL, "replay_seconds": 300}))  # one that is there stays


@app.post("/listeners")
def subscribe() -> Response:
    connection = repository.connections_factory.create()
    repository.connections_repository.persist(CHANNEL, connection)
    return jsonify(listener_id=connection.listener.id)


@app.post("/messages")
def broadcast() -> Response:
    repository.load_one(CHANNEL).broadcast(Message("message", request.get_json()))
    return Response(status=204)


@app.get("/stream/<listener_id>")
def stream(listener_id: str) -> Response:
    channel = repository.load_one(CHANNEL)
    try:
        listener = channel.get_listener(listener_id)
    except InvalidListenerException:
        abort(404, "the channel has no such listener")
    listener.start()
    frames = channel.sse_stream(listener, request.headers.get("Last-Event-ID"))
    return Response(in_this_thread(frames), mimetype="text/event-stream", headers=HEADERS)


def in_this_thread(frames: Any) -> Iterator[bytes]:
    """The items of an asynchronous generator. The server closes it when it can't write to the client any more: at the
    next heartbeat at the latest."""

    async def next_frame() -> bytes:
        return await anext(frames, b"")  # which no frame is

    try:
        while frame := result_of(next_frame()):
            yield frame
    finally:
        result_of(frames.aclose())


def result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that runs on the event loop of this process."""
    return asyncio.run_coroutine_threadsafe(coroutine, event_loop()).result()


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """The event loop that all streams of this process share. Made for the first one, after the server has forked."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="event loop").start()
    return loop
