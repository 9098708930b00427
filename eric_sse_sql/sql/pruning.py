"""Statements that delete what no connection owns any more. They read whole tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, exists, literal

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.keys import QUEUES
from eric_sse_sql.models import ConnectionRow, DeliveredRow, KvEntry, MessageRow, PositionRow


def _is_orphan(row: Any) -> Construct:
    """The condition that no connection has the queue of a row, and no entry stores that queue by itself."""
    is_connected = exists().where(ConnectionRow.queue_id == row.queue_id)
    return ~is_connected & ~exists().where(KvEntry.key == literal(f"{QUEUES}/") + row.queue_id)


def _messages(sql: Dialect) -> Construct:
    return delete(MessageRow).where(MessageRow.created_at < sql.now("age"), _is_orphan(MessageRow))


def _delivered(sql: Dialect) -> Construct:
    return delete(DeliveredRow).where(DeliveredRow.delivered_at < sql.now("age"), _is_orphan(DeliveredRow))


def _positions(sql: Dialect) -> Construct:
    """The positions of queues that have no other row."""
    is_empty = (~exists().where(row.queue_id == PositionRow.queue_id) for row in (MessageRow, DeliveredRow))
    return delete(PositionRow).where(_is_orphan(PositionRow), *is_empty)


MESSAGES = Statement(_messages)
DELIVERED = Statement(_delivered)
POSITIONS = Statement(_positions)
