"""Statements that delete what no connection owns any more. They read whole tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, exists, literal, select

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.keys import QUEUES
from eric_sse_sql.models import ChannelRow, ConnectionRow, EventLogRow, EventRow, KvEntry, MessageRow, SetAsideRow


def _is_orphan(row: Any) -> Construct:
    """The condition that no connection has the queue of a row, and no entry stores that queue by itself."""
    is_connected = exists().where(ConnectionRow.queue_id == row.queue_id)
    return ~is_connected & ~exists().where(KvEntry.key == literal(f"{QUEUES}/") + row.queue_id)


def _page(key: Any, *conditions: Construct) -> Construct:
    """Delete the first rows, so many at most, that fulfil the conditions and whose key is after another one. Returns
    their keys, so that the next page does not read again what this one has passed over."""
    page = select(key).where(key > bindparam("after"), *conditions).order_by(key).limit(bindparam("count"))
    return delete(key.class_).where(key.in_(page)).returning(key)


def _messages(sql: Dialect) -> Construct:
    return _page(MessageRow.id, MessageRow.created_at < sql.now("age"), _is_orphan(MessageRow))


def _set_aside(sql: Dialect) -> Construct:
    return _page(SetAsideRow.id, SetAsideRow.set_aside_at < sql.now("age"), _is_orphan(SetAsideRow))


def _logs(sql: Dialect) -> Construct:
    """The state of logs without events, of channels that are not stored."""
    is_empty = ~exists().where(EventRow.channel_id == EventLogRow.channel_id)
    is_orphan = ~exists().where(ChannelRow.id == EventLogRow.channel_id)
    return _page(EventLogRow.channel_id, EventLogRow.last_event_at < sql.now("age"), is_empty, is_orphan)


MESSAGES = Statement(_messages)
SET_ASIDE = Statement(_set_aside)
LOGS = Statement(_logs)
