"""Statements that delete what no connection owns any more. They read whole tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, exists, func, literal, select

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


def _old_messages(sql: Dialect) -> tuple[Construct, ...]:
    return MessageRow.created_at < sql.now("age"), _is_orphan(MessageRow)


def _old_set_aside(sql: Dialect) -> tuple[Construct, ...]:
    return SetAsideRow.set_aside_at < sql.now("age"), _is_orphan(SetAsideRow)


def _logs(sql: Dialect) -> Construct:
    """The state of logs without events, of channels that are not stored."""
    is_empty = ~exists().where(EventRow.channel_id == EventLogRow.channel_id)
    is_orphan = ~exists().where(ChannelRow.id == EventLogRow.channel_id)
    return _page(EventLogRow.channel_id, EventLogRow.last_event_at < sql.now("age"), is_empty, is_orphan)


def _count(row: Any, *conditions: Construct) -> Construct:
    return select(func.count()).select_from(row).where(*conditions)


MESSAGES = Statement(lambda sql: _page(MessageRow.id, *_old_messages(sql)))
SET_ASIDE = Statement(lambda sql: _page(SetAsideRow.id, *_old_set_aside(sql)))
LOGS = Statement(_logs)
COUNT_MESSAGES = Statement(lambda sql: _count(MessageRow, *_old_messages(sql)))
COUNT_SET_ASIDE = Statement(lambda sql: _count(SetAsideRow, *_old_set_aside(sql)))
