"""What the database has, as pages in a browser: channels, connections, queues, messages and events with their payloads.

An example: it has NO authentication, and shows every payload; keep it on 127.0.0.1. It changes nothing. In this folder:

    pip install "eric_sse_sql[postgres]" "psycopg[binary]" sqladmin uvicorn
    export ERIC_SSE_SQL_URL=sqlite:////tmp/live.db  # or postgresql://user@host/name
    uvicorn admin:app --port 8003

A payload is readable where the message is stored as JSON: ``Database(url, messages="json")``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from sqladmin import Admin, ModelView
from sqlalchemy import BigInteger, Boolean, Column, ColumnElement, DateTime, Integer, Table, Text, TypeDecorator, cast
from sqlalchemy.orm import DeclarativeBase
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from eric_sse_sql import Database
from eric_sse_sql.models import EventLogRow, KvEntry, SetAsideRow

SHOWN_CHARACTERS = 200  # of a payload in a list; the page of a message shows all

database = Database(os.environ["ERIC_SSE_SQL_URL"])


# The views of the database. SQLAlchemy maps them as tables, with the key that identifies a row.


class View(DeclarativeBase):
    pass


class JsonText(TypeDecorator[str]):
    """JSON as text, also where it is jsonb."""

    impl, cache_ok = Text, True

    def column_expression(self, column: ColumnElement[str]) -> ColumnElement[str]:
        return cast(column, Text)


class Channel(View):
    __table__ = Table(
        "sse_channel_overview",
        View.metadata,
        Column("channel_id", Text, primary_key=True),
        Column("channel_type", Text),
        Column("connections", BigInteger),
        Column("streaming", BigInteger),
        Column("pending_messages", BigInteger),
        Column("created_at", DateTime(timezone=True)),
        Column("updated_at", DateTime(timezone=True)),
    )


class Connection(View):
    __table__ = Table(
        "sse_connection_overview",
        View.metadata,
        Column("connection_id", Text, primary_key=True),
        Column("channel_id", Text),
        Column("listener_id", Text),
        Column("queue_id", Text),
        Column("is_streaming", Boolean),
        Column("seen_at", DateTime(timezone=True)),
        Column("unseen_seconds", BigInteger),
        Column("pending_messages", BigInteger),
        Column("pending_events", BigInteger),
        Column("created_at", DateTime(timezone=True)),
    )


class Queue(View):
    __table__ = Table(
        "sse_queue_overview",
        View.metadata,
        Column("queue_id", Text, primary_key=True),
        Column("depth", BigInteger),
        Column("leased", BigInteger),
        Column("oldest_message_at", DateTime(timezone=True)),
        Column("oldest_message_age_seconds", BigInteger),
        Column("most_deliveries", Integer),
        Column("set_aside", BigInteger),
    )


class StoredMessage(View):
    __table__ = Table(
        "sse_message_payloads",
        View.metadata,
        Column("id", BigInteger, primary_key=True),
        Column("queue_id", Text),
        Column("message_type", Text),
        Column("payload", JsonText),
        Column("created_at", DateTime(timezone=True)),
        Column("leased_until", DateTime(timezone=True)),
        Column("delivery_count", Integer),
    )


class StoredEvent(View):
    __table__ = Table(
        "sse_event_payloads",
        View.metadata,
        Column("channel_id", Text, primary_key=True),
        Column("position", BigInteger, primary_key=True),
        Column("listener_id", Text),
        Column("message_type", Text),
        Column("payload", JsonText),
        Column("created_at", DateTime(timezone=True)),
    )


# The pages


class Page(ModelView):
    can_create = can_edit = can_delete = False
    page_size, page_size_options = 50, (50, 100, 500)


def shortened(row: Any, _: Any) -> str:
    """A payload in a list."""
    if row.payload is None:
        return "(not JSON)"
    return str(row.payload) if len(row.payload) <= SHOWN_CHARACTERS else f"{row.payload[:SHOWN_CHARACTERS]}…"


class ChannelPage(Page, model=Channel):
    icon = "fa-solid fa-tower-broadcast"
    column_list = ("channel_id", "connections", "streaming", "pending_messages", "channel_type", "updated_at")
    column_searchable_list = ("channel_id",)
    column_sortable_list = ("channel_id", "connections", "streaming", "pending_messages", "updated_at")
    column_default_sort = ("pending_messages", True)


class ConnectionPage(Page, model=Connection):
    icon = "fa-solid fa-plug"
    column_list = ("channel_id", "listener_id", "is_streaming", "unseen_seconds", "pending_messages", "pending_events")
    column_searchable_list = ("channel_id", "listener_id", "queue_id")
    column_sortable_list = ("channel_id", "is_streaming", "unseen_seconds", "pending_messages", "pending_events")
    column_default_sort = ("unseen_seconds", False)


class QueuePage(Page, model=Queue):
    icon = "fa-solid fa-layer-group"
    column_list = ("queue_id", "depth", "leased", "oldest_message_age_seconds", "most_deliveries", "set_aside")
    column_searchable_list = ("queue_id",)
    column_sortable_list = ("depth", "leased", "oldest_message_age_seconds", "most_deliveries", "set_aside")
    column_default_sort = ("depth", True)


class MessagePage(Page, model=StoredMessage):
    name = "Message"
    icon = "fa-solid fa-envelope"
    column_list = ("id", "queue_id", "created_at", "leased_until", "delivery_count", "message_type", "payload")
    column_formatters: ClassVar = {"payload": shortened}
    column_searchable_list = ("queue_id", "message_type")
    column_sortable_list = ("id", "queue_id", "message_type", "created_at", "delivery_count")
    column_default_sort = ("id", True)


class EventPage(Page, model=StoredEvent):
    name = "Event"
    icon = "fa-solid fa-bolt"
    column_list = ("channel_id", "position", "listener_id", "created_at", "message_type", "payload")
    column_formatters: ClassVar = {"payload": shortened}
    column_searchable_list = ("channel_id", "listener_id", "message_type")
    column_sortable_list = ("channel_id", "position", "message_type", "created_at")
    column_default_sort = ("created_at", True)


class EventLogPage(Page, model=EventLogRow):
    name, name_plural = "Event log", "Event logs"
    icon = "fa-solid fa-clock-rotate-left"
    column_list = ("channel_id", "first_position", "last_position", "last_event_at", "replay_seconds")


class SetAsidePage(Page, model=SetAsideRow):
    name, name_plural = "Set aside", "Set aside"
    icon = "fa-solid fa-triangle-exclamation"
    column_list = ("id", "queue_id", "message_type", "reason", "delivery_count", "created_at", "set_aside_at")
    column_details_exclude_list = ("message",)
    column_searchable_list = ("queue_id", "message_type", "reason")
    column_default_sort = ("set_aside_at", True)


class ObjectPage(Page, model=KvEntry):
    name = "Stored object"
    icon = "fa-solid fa-database"
    column_list = ("key", "value_type", "created_at", "updated_at")
    column_details_exclude_list = ("value",)
    column_export_exclude_list = ("value",)
    column_searchable_list = ("key", "value_type")
    column_sortable_list = ("key", "value_type", "updated_at")


class Pages(Admin):
    async def index(self, request: Request) -> Response:
        return RedirectResponse(request.url_for("admin:list", identity=ChannelPage.identity))


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await run_in_threadpool(database.check)
    yield
    database.close()


app = Starlette(lifespan=lifespan)
pages = Pages(app, database.engine, base_url="/", title="eric_sse_sql")
for page in (
    ChannelPage,
    ConnectionPage,
    QueuePage,
    MessagePage,
    EventPage,
    EventLogPage,
    SetAsidePage,
    ObjectPage,
):
    pages.add_view(page)
