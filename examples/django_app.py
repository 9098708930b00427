"""Server-sent events from Django under ASGI: a StreamingHttpResponse. The whole application is in this file.

An example: it has NO authentication. Every client that reaches it can read and write; keep it on 127.0.0.1. In this
folder, on a SQLite file or a Postgres database:

    pip install "eric_sse_sql[postgres]" "psycopg[binary]" django uvicorn
    export ERIC_SSE_SQL_URL=sqlite:////tmp/django.db  # or postgresql://user@host/name
    uvicorn django_app:application --port 8001 --timeout-graceful-shutdown 1

    LISTENER=$(curl -s -X POST 127.0.0.1:8001/listeners | cut -d '"' -f 4)
    curl -N 127.0.0.1:8001/stream/$LISTENER &
    curl 127.0.0.1:8001/messages -d '{"text": "hello"}'

Django tells a stream that its client has gone, and not that the server is about to end: the last option does.
"""

from __future__ import annotations

import json
import os
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from eric_sse.exception import InvalidListenerException
from eric_sse.message import Message

from eric_sse_sql import Database, SqlSSEChannelRepository

CHANNEL = "news"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second one is for nginx

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY=os.urandom(32).hex())
database = Database(os.environ["ERIC_SSE_SQL_URL"], messages="json")
repository = SqlSSEChannelRepository(database)
database.upgrade()
repository.persist(repository.create({"channel_id": CHANNEL, "replay_seconds": 300}))  # one that is there stays


def subscribe(_: HttpRequest) -> HttpResponse:
    connection = repository.connections_factory.create()
    repository.connections_repository.persist(CHANNEL, connection)
    return JsonResponse({"listener_id": connection.listener.id})


def broadcast(request: HttpRequest) -> HttpResponse:
    repository.load_one(CHANNEL).broadcast(Message("message", json.loads(request.body)))
    return HttpResponse(status=204)


async def stream(request: HttpRequest, listener_id: str) -> StreamingHttpResponse:
    channel, listener = await sync_to_async(find)(listener_id)
    listener.start()
    frames = channel.sse_stream(listener, request.headers.get("Last-Event-ID"))
    return StreamingHttpResponse(frames, content_type="text/event-stream", headers=HEADERS)


def find(listener_id: str) -> tuple[Any, Any]:
    """The channel, and a listener of it."""
    channel = repository.load_one(CHANNEL)
    try:
        return channel, channel.get_listener(listener_id)
    except InvalidListenerException as error:
        raise Http404("the channel has no such listener") from error


urlpatterns = [path("listeners", subscribe), path("messages", broadcast), path("stream/<listener_id>", stream)]
application = get_asgi_application()
