"""Pages that show a table as it is, whatever program changes it: a trigger on it sends each change to every open page.

An example: it has NO authentication. Every client that reaches it can read; keep it on 127.0.0.1. In this folder, on a
SQLite file or a Postgres database, with any number of workers:

    pip install "eric_sse_sql[postgres,starlette]" "psycopg[binary]" uvicorn
    export ERIC_SSE_SQL_URL=sqlite:////tmp/prices.db  # or postgresql://user@host/name
    uvicorn app:app --port 8001

    sqlite3 /tmp/prices.db "UPDATE prices SET cents = 260 WHERE item = 'tea'"  # or psql, or any program

The page shows the change as soon as it is committed, and nothing of a transaction that is rolled back. Python sends
nothing here: ``trigger.postgresql.sql`` calls a function of the package, ``trigger.sqlite.sql`` inserts into the log
of the channel.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import text
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from eric_sse_sql import Database, SqlSSEChannelRepository
from eric_sse_sql.starlette import sse_response

CHANNEL = "prices"  # as the triggers name it
REPLAY_SECONDS = 300
HERE = Path(__file__).parent

database = Database(os.environ["ERIC_SSE_SQL_URL"], messages="json")
repository = SqlSSEChannelRepository(database)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await run_in_threadpool(prepare)
    yield
    database.close()


def prepare() -> None:
    """Make the channel, the application's table and its triggers, unless they are there."""
    database.upgrade()
    repository.persist(repository.create({"channel_id": CHANNEL, "replay_seconds": REPLAY_SECONDS}))
    script = HERE / f"trigger.{database.engine.dialect.name}.sql"
    with database.transaction():
        for statement in script.read_text(encoding="utf-8").split("\n\n"):
            database.connection().exec_driver_sql(statement)


async def page(_: Request) -> Response:
    return HTMLResponse((HERE / "page.html").read_text(encoding="utf-8"))


def prices(_: Request) -> Response:
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT item, cents FROM prices ORDER BY item")).mappings()
        return JSONResponse([dict(row) for row in rows])


def subscribe(_: Request) -> Response:
    connection = repository.connections_factory.create()
    repository.connections_repository.persist(CHANNEL, connection)
    return JSONResponse({"listener_id": connection.listener.id})


def stream(request: Request) -> Response:
    return sse_response(repository.load_one(CHANNEL), request.path_params["listener_id"], request)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/prices", prices),
        Route("/listeners", subscribe, methods=["POST"]),
        Route("/stream/{listener_id}", stream),
    ],
)
