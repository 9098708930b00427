"""The statements of housekeeping."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, exists, literal

from eric_sse_sql.keys import QUEUES
from eric_sse_sql.models import ConnectionRow, DeliveredRow, KvEntry, MessageRow, PositionRow
from eric_sse_sql.statements import Construct, Dialect, Statement


def _is_nobodys(row: Any) -> Construct:
    """Of a queue that no connection has, and that is not stored by itself."""
    is_connected = exists().where(ConnectionRow.queue_id == row.queue_id)
    return ~is_connected & ~exists().where(KvEntry.key == literal(f"{QUEUES}/") + row.queue_id)


def _prune(sql: Dialect) -> Construct:
    return delete(MessageRow).where(MessageRow.created_at < sql.now("age"), _is_nobodys(MessageRow))


def _prune_delivered(sql: Dialect) -> Construct:
    return delete(DeliveredRow).where(DeliveredRow.delivered_at < sql.now("age"), _is_nobodys(DeliveredRow))


def _prune_positions(sql: Dialect) -> Construct:
    """Those of queues of which nothing else is left."""
    is_empty = (~exists().where(row.queue_id == PositionRow.queue_id) for row in (MessageRow, DeliveredRow))
    return delete(PositionRow).where(_is_nobodys(PositionRow), *is_empty)


PRUNE = Statement(_prune)
PRUNE_DELIVERED = Statement(_prune_delivered)
PRUNE_POSITIONS = Statement(_prune_positions)
