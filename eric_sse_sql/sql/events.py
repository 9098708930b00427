"""Statements on delivered messages, which are kept for a while, and on the positions of their queues."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, delete, select

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import NotifyingStatement, Statement, insert_row
from eric_sse_sql.models import DeliveredRow, PositionRow


class DeliveredMessage(NamedTuple):
    """A delivered message at its position in the queue."""

    position: int
    message: bytes


class LastPosition(NamedTuple):
    """The position of the message of a queue that was delivered last."""

    queue_id: str
    last_position: int


def _lock(sql: Dialect) -> Construct:
    """The lock under which the messages of a queue are given their positions."""
    return sql.advisory_lock("queue_id")


def _last_positions(sql: Dialect) -> Construct:
    return select(PositionRow.queue_id, PositionRow.last_position).where(sql.in_list(PositionRow.queue_id, "queue_ids"))


def _reserve(sql: Dialect) -> Construct:
    """Reserve the next positions of a queue."""
    insert = insert_row(sql, PositionRow, {"queue_id": "queue_id", "last_position": "count"})
    last = PositionRow.last_position + insert.excluded.last_position
    reserved = insert.on_conflict_do_update(index_elements=["queue_id"], set_={"last_position": last})
    return reserved.returning(PositionRow.last_position)


def _keep(sql: Dialect) -> Construct:
    columns = "queue_id", "position", "message_type", "message"
    return sql.insert_rows(DeliveredRow, {column: column for column in columns})


def _after(sql: Dialect) -> Construct:
    """The messages after a position."""
    after = DeliveredRow.queue_id == bindparam("queue_id"), DeliveredRow.position > bindparam("after")
    page = select(DeliveredRow.position, DeliveredRow.message).where(*after)
    return page.order_by(DeliveredRow.position).limit(bindparam("count"))


def _expire(sql: Dialect) -> Construct:
    return delete(DeliveredRow).where(
        DeliveredRow.queue_id == bindparam("queue_id"), DeliveredRow.delivered_at < sql.now("age")
    )


LOCK = Statement(_lock)
LAST_POSITIONS = Statement(_last_positions)
RESERVE = Statement(_reserve)
KEEP = NotifyingStatement.of(_keep)
AFTER = Statement(_after)
EXPIRE = Statement(_expire)
