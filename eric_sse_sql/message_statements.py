"""The statements over messages. Those of one message find it in the index, however deep the queue is."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, exists, func, insert, literal_column, null, or_, select, update

from eric_sse_sql.models import MessageRow, PositionRow
from eric_sse_sql.statements import Construct, Dialect, Publication, Statement, insert_row, notification

ROW = {"queue_id": "queue", "message_type": "kind", "message": "blob"}  # what a push binds, by column

# What is given back when a message could not be read.
WHOLE_ROW = {**ROW, "id": "id", "created_at": "created_at", "delivery_count": "deliveries"}


def _push(sql: Dialect) -> Construct:
    return insert_row(sql, MessageRow, ROW)


def _push_rows(sql: Dialect) -> Construct:
    return sql.insert_rows(MessageRow, ROW)


def _push_to_all(sql: Dialect) -> Construct:
    queues = sql.each("queues").add_columns(
        bindparam("kind", type_=MessageRow.message_type.type), bindparam("blob", type_=MessageRow.message.type)
    )
    return insert(MessageRow).from_select([getattr(MessageRow, column) for column in ROW], queues)


def _waiting(sql: Dialect, limit: Construct) -> Construct:
    """The first ones of a queue that are nobody's yet."""
    of_queue, order = sql.in_order(MessageRow.queue_id, MessageRow.id, "queue")
    waiting = select(MessageRow.id).where(of_queue, _is_free(sql)).order_by(*order).limit(limit)
    return waiting.with_for_update(skip_locked=True)


def _is_free(sql: Dialect) -> Construct:
    return or_(MessageRow.leased_until.is_(None), MessageRow.leased_until <= sql.now())


def _oldest(sql: Dialect) -> Construct:
    # "=", not IN: with IN, Postgres may lock and delete more than one row. A limit that is bound, it would not believe.
    return MessageRow.id == _waiting(sql, literal_column("1")).scalar_subquery()


def _whole_row() -> list[Construct]:
    return [getattr(MessageRow, column) for column in WHOLE_ROW]


def _pop(sql: Dialect) -> Construct:
    return delete(MessageRow).where(_oldest(sql)).returning(*_whole_row())


def _take(sql: Dialect) -> Construct:
    """The first messages, in any order. What is taken is named first, and once: Postgres may ask a subquery again."""
    first = _waiting(sql, bindparam("count"))
    taken = first.cte("taken").prefix_with("MATERIALIZED", dialect="postgresql")
    return delete(MessageRow).where(MessageRow.id.in_(select(taken.c.id))).returning(*_whole_row())


def _look(sql: Dialect) -> Construct:
    """Those of some queues that have a message which is nobody's yet."""
    queue = sql.each("queues").subquery("queue").c[0]
    has_one = exists().where(MessageRow.queue_id == queue, _is_free(sql))
    return select(queue).where(has_one)


def _positions(sql: Dialect) -> Construct:
    """How far some queues were delivered, of those where that is kept."""
    return select(PositionRow.queue_id, PositionRow.last_position).where(sql.among(PositionRow.queue_id, "queues"))


def _notify(sql: Dialect) -> Construct:
    return select(notification())


def _restore(sql: Dialect) -> Construct:
    """Nothing, where a message is back: whoever has not heard that it was committed tries again."""
    return sql.insert_rows(MessageRow, WHOLE_ROW).on_conflict_do_nothing(index_elements=[MessageRow.id])


def _lease(sql: Dialect) -> Construct:
    taken = {
        MessageRow.leased_until: sql.now("lease"),
        MessageRow.delivery_count: MessageRow.delivery_count + 1,
    }
    received = MessageRow.id, MessageRow.message, MessageRow.delivery_count
    return update(MessageRow).where(_oldest(sql)).values(taken).returning(*received)


def _leased(sql: Dialect) -> Construct:
    """The message of a lease, whose number no later lease has."""
    return (MessageRow.id == bindparam("id")) & (MessageRow.delivery_count == bindparam("deliveries"))


def _acknowledge(sql: Dialect) -> Construct:
    return delete(MessageRow).where(_leased(sql), MessageRow.leased_until > sql.now()).returning(MessageRow.id)


def _release(sql: Dialect) -> Construct:
    return update(MessageRow).where(_leased(sql)).values({MessageRow.leased_until: null()})


def _depth(sql: Dialect) -> Construct:
    waiting = MessageRow.queue_id == bindparam("queue"), _is_free(sql)
    return select(func.count()).select_from(MessageRow).where(*waiting)


def _clear(sql: Dialect) -> Construct:
    return delete(MessageRow).where(MessageRow.queue_id == bindparam("queue"))


PUSH = Publication.of(_push)
PUSH_ROWS = Publication.of(_push_rows)
PUSH_TO_ALL = Publication.of(_push_to_all)
POP = Statement(_pop)
TAKE = Statement(_take)
RESTORE = Publication.of(_restore)
LOOK = Statement(_look)
POSITIONS = Statement(_positions)
NOTIFY = Statement(_notify)
LEASE = Statement(_lease)
ACKNOWLEDGE = Statement(_acknowledge)
RELEASE = Publication.of(_release)
DEPTH = Statement(_depth)
CLEAR = Statement(_clear)
