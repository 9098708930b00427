"""Statements on ``sse_messages``. Those on one message find it by the index, at any depth of the queue."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Integer, bindparam, delete, exists, func, insert, literal_column, null, or_, select, update

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import NotifyingStatement, Statement, insert_row, notification
from eric_sse_sql.models import MessageRow

CONTEXT = f"{MessageRow.__tablename__}/"  # with the queue's id, the context of a message's signature
PUSHED = {"queue_id": "queue_id", "message_type": "message_type", "message": "message"}  # the parameter of each column


class TakenMessage(NamedTuple):
    """A whole row, which can be put back."""

    queue_id: str
    message_type: str
    message: bytes
    id: int
    created_at: datetime | str  # as the driver returns it: text on SQLite
    delivery_count: int


class LeasedMessage(NamedTuple):
    """A message on a lease."""

    id: int
    message: bytes
    delivery_count: int


WHOLE_ROW = {column: column for column in TakenMessage._fields}


def _push(sql: Dialect) -> Construct:
    return insert_row(sql, MessageRow, PUSHED)


def _push_many(sql: Dialect) -> Construct:
    return sql.insert_rows(MessageRow, PUSHED)


def _push_to_all(sql: Dialect) -> Construct:
    queues = sql.unnest("queue_ids").add_columns(
        bindparam("message_type", type_=MessageRow.message_type.type),
        bindparam("message", type_=MessageRow.message.type),
    )
    return insert(MessageRow).from_select([getattr(MessageRow, column) for column in PUSHED], queues)


def _available(sql: Dialect, limit: Construct) -> Construct:
    """The first messages of a queue that no consumer has leased or is taking, locked."""
    of_queue, order = sql.ordered_range(MessageRow.queue_id, MessageRow.id, "queue_id")
    available = select(MessageRow.id).where(of_queue, _is_unleased(sql)).order_by(*order).limit(limit)
    return available.with_for_update(skip_locked=True)


def _is_unleased(sql: Dialect) -> Construct:
    return or_(MessageRow.leased_until.is_(None), MessageRow.leased_until <= sql.now())


def _is_first(sql: Dialect) -> Construct:
    # "=" and not IN, with which Postgres may run the subquery, which locks, several times. LIMIT is a literal, since
    # with a bound LIMIT Postgres plans for a tenth of all rows.
    return MessageRow.id == _available(sql, literal_column("1")).scalar_subquery()


def _whole_row() -> list[Construct]:
    return [getattr(MessageRow, column) for column in WHOLE_ROW]


def _pop(sql: Dialect) -> Construct:
    return delete(MessageRow).where(_is_first(sql)).returning(*_whole_row())


def _take(sql: Dialect) -> Construct:
    """Delete the first messages of a queue. RETURNING gives them in any order."""
    # With a LIMIT from a subquery, Postgres plans for a tenth of the rows. With a number that is larger than its
    # estimate of the queue, it would read and sort all rows of the queue.
    count = select(bindparam("count", type_=Integer)).scalar_subquery()
    # MATERIALIZED, since Postgres may otherwise run the subquery, which locks, several times.
    taken = _available(sql, count).cte("taken").prefix_with("MATERIALIZED", dialect="postgresql")
    return delete(MessageRow).where(sql.looked_up_rows(MessageRow.id, taken)).returning(*_whole_row())


def _with_messages(sql: Dialect) -> Construct:
    """The ids of the bound queues that have a message which is not leased."""
    queue = sql.unnest("queue_ids").subquery("queue").c[0]
    has_one = exists().where(MessageRow.queue_id == queue, _is_unleased(sql))
    return select(queue).where(has_one)


def _notify(sql: Dialect) -> Construct:
    return select(notification())


def _put_back(sql: Dialect) -> Construct:
    """Insert rows that were taken. A row that is back already stays: the reply to an earlier try may be lost."""
    return sql.insert_rows(MessageRow, WHOLE_ROW).on_conflict_do_nothing(index_elements=[MessageRow.id])


def _lease(sql: Dialect) -> Construct:
    leased = {
        MessageRow.leased_until: sql.now("lease"),
        MessageRow.delivery_count: MessageRow.delivery_count + 1,
    }
    received = [getattr(MessageRow, column) for column in LeasedMessage._fields]
    return update(MessageRow).where(_is_first(sql)).values(leased).returning(*received)


def _of_lease(sql: Dialect) -> Construct:
    """The message of a lease. No later lease of the message has the same count."""
    return (MessageRow.id == bindparam("id")) & (MessageRow.delivery_count == bindparam("delivery_count"))


def _acknowledge(sql: Dialect) -> Construct:
    return delete(MessageRow).where(_of_lease(sql), MessageRow.leased_until > sql.now()).returning(MessageRow.id)


def _release(sql: Dialect) -> Construct:
    return update(MessageRow).where(_of_lease(sql)).values({MessageRow.leased_until: null()})


def _depth(sql: Dialect) -> Construct:
    available = MessageRow.queue_id == bindparam("queue_id"), _is_unleased(sql)
    return select(func.count()).select_from(MessageRow).where(*available)


def _clear(sql: Dialect) -> Construct:
    return delete(MessageRow).where(MessageRow.queue_id == bindparam("queue_id"))


PUSH = NotifyingStatement.of(_push)
PUSH_MANY = NotifyingStatement.of(_push_many)
PUSH_TO_ALL = NotifyingStatement.of(_push_to_all)
POP = Statement(_pop)
TAKE = Statement(_take)
PUT_BACK = NotifyingStatement.of(_put_back)
WITH_MESSAGES = Statement(_with_messages)
NOTIFY = Statement(_notify)
LEASE = Statement(_lease)
ACKNOWLEDGE = Statement(_acknowledge)
RELEASE = NotifyingStatement.of(_release)
DEPTH = Statement(_depth)
CLEAR = Statement(_clear)
