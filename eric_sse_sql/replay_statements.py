"""The statements over messages that were delivered, and are kept for a while."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select

from eric_sse_sql.models import DeliveredRow, PositionRow
from eric_sse_sql.statements import Construct, Dialect, Publication, Statement, insert_row


def _hold(sql: Dialect) -> Construct:
    """Nobody else delivers from a queue until the end of this transaction."""
    return sql.hold("queue")


def _position(sql: Dialect) -> Construct:
    return select(PositionRow.last_position).where(PositionRow.queue_id == bindparam("queue"))


def _advance(sql: Dialect) -> Construct:
    """Reserve the next positions of a queue."""
    insert = insert_row(sql, PositionRow, {"queue_id": "queue", "last_position": "count"})
    further = PositionRow.last_position + insert.excluded.last_position
    advanced = insert.on_conflict_do_update(index_elements=["queue_id"], set_={"last_position": further})
    return advanced.returning(PositionRow.last_position)


def _keep(sql: Dialect) -> Construct:
    kept = {"queue_id": "queue", "position": "position", "message_type": "kind", "message": "blob"}
    return sql.insert_rows(DeliveredRow, kept)


def _read(sql: Dialect) -> Construct:
    """What was delivered behind a position."""
    behind = DeliveredRow.queue_id == bindparam("queue"), DeliveredRow.position > bindparam("after")
    page = select(DeliveredRow.position, DeliveredRow.message).where(*behind)
    return page.order_by(DeliveredRow.position).limit(bindparam("count"))


def _expire(sql: Dialect) -> Construct:
    return delete(DeliveredRow).where(
        DeliveredRow.queue_id == bindparam("queue"), DeliveredRow.delivered_at < sql.now("age")
    )


HOLD = Statement(_hold)
POSITION = Statement(_position)
ADVANCE = Statement(_advance)
KEEP = Publication.of(_keep)
READ = Statement(_read)
EXPIRE = Statement(_expire)
