"""Statements on ``sse_messages``. Those on one message find it by the index, at any depth of the queue."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import NotifyingStatement, Statement, bound_limit, insert_row, notification
from eric_sse_sql.models import ConnectionRow, EventLogRow, MessageRow, SetAsideRow

HEAD_BYTES = 1024  # of the blob of a message that is listed
CONTEXT = f"{MessageRow.__tablename__}/"  # with the queue's id, the context of a message's signature
PUSHED = {"queue_id": "queue_id", "message_type": "message_type", "message": "message"}  # the parameter of each column


class TakenMessage(NamedTuple):
    """A whole row, which can be put back."""

    queue_id: str
    message_type: str
    message: bytes
    id: int
    created_at: str
    delivery_count: int

    @property
    def identity(self) -> StoredMessage:
        """What tells it from every other message."""
        return StoredMessage(self.id, self.queue_id, self.created_at)


class LeasedMessage(NamedTuple):
    """A message on a lease."""

    id: int
    message_type: str
    message: bytes
    delivery_count: int


class StoredMessage(NamedTuple):
    """What tells a message from every other one, also where the database numbers messages from the beginning again."""

    id: int
    queue_id: str
    created_at: str


class SetAsideMessage(NamedTuple):
    """A message that could not be decoded."""

    id: int
    queue_id: str
    message_type: str
    head: bytes  # the first bytes of its blob
    reason: str
    age_seconds: int  # since it was set aside


WHOLE_ROW = {column: column for column in TakenMessage._fields}
WITHOUT_ID = {column: column for column in TakenMessage._fields if column != "id"}
SET_ASIDE_ROW = {**WHOLE_ROW, "reason": "reason"}


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


def _message_values() -> tuple[Construct, Construct]:
    message_type, message = MessageRow.message_type, MessageRow.message
    return bindparam("message_type", type_=message_type.type), bindparam("message", type_=message.type)


def _push_to_listener(sql: Dialect) -> Construct:
    """Push to the queue of a listener of a channel, unless the queue's class has a push() of its own."""
    expected = bindparam("queue_id", type_=Text)
    of_listener = and_(
        ConnectionRow.channel_id == bindparam("channel_id"),
        ConnectionRow.listener_id == bindparam("listener_id"),
        ~ConnectionRow.has_own_push,
        or_(expected.is_(None), ConnectionRow.queue_id == expected),  # a signed message is for one queue
    )
    queue = select(ConnectionRow.queue_id, *_message_values()).where(of_listener).order_by(ConnectionRow.id)
    one = queue.limit(literal_column("1"))
    return (
        insert(MessageRow)
        .from_select([getattr(MessageRow, column) for column in PUSHED], one)
        .returning(MessageRow.queue_id)
    )


def _push_to_channel(sql: Dialect) -> Construct:
    """Push to the queues of all connections of a channel but some, and to some others.

    A queue whose class has a push() of its own makes the whole statement fail, for its id is given as NULL.
    """
    of_channel = ConnectionRow.channel_id == bindparam("channel_id")
    queue_id = case((ConnectionRow.has_own_push, null()), else_=ConnectionRow.queue_id)
    stored = select(queue_id.label("queue_id"), *_message_values()).where(
        of_channel, ~sql.in_list(ConnectionRow.listener_id, "apart")
    )
    unstored = sql.unnest("unstored").add_columns(*_message_values())
    return insert(MessageRow).from_select(
        [getattr(MessageRow, column) for column in PUSHED], union_all(stored, unstored)
    )


def _available(
    sql: Dialect, queue_id: Construct, limit: Construct, *further: Construct, after: str | None = None
) -> Construct:
    """The first messages of a queue that no consumer has leased or is taking, locked.

    :param after: the bound id after which the search begins, where deleted rows make it slow
    """
    of_queue, order = sql.ordered_range(MessageRow.queue_id, MessageRow.id, queue_id, after)
    available = select(MessageRow.id, *further).where(of_queue, _is_unleased(sql)).order_by(*order).limit(limit)
    return available.with_for_update(skip_locked=True)


def _queue_id() -> Construct:
    return bindparam("queue_id", type_=MessageRow.queue_id.type)


def _is_unleased(sql: Dialect) -> Construct:
    return or_(MessageRow.leased_until.is_(None), MessageRow.leased_until <= sql.now())


def _is_first(sql: Dialect) -> Construct:
    # "=" and not IN, with which Postgres may run the subquery, which locks, several times. LIMIT is a literal, since
    # with a bound LIMIT Postgres plans for a tenth of all rows.
    return MessageRow.id == _available(sql, _queue_id(), literal_column("1"), after="after").scalar_subquery()


def _columns(sql: Dialect, row: type[TakenMessage] | type[StoredMessage], model: Any = MessageRow) -> list[Construct]:
    """The columns of a row to return. The moment is text, which is read alike whatever the settings of the session."""
    moment = {"created_at": sql.timestamp_text(model.created_at)}
    return [moment.get(column, getattr(model, column)) for column in row._fields]


def _pop(sql: Dialect) -> Construct:
    return delete(MessageRow).where(_is_first(sql)).returning(*_columns(sql, TakenMessage))


def _take(sql: Dialect) -> Construct:
    """Delete the first messages of a queue, of so many bytes together, and one at least. They come in any order."""
    size = func.length(MessageRow.message).label("size")
    # MATERIALIZED, since Postgres may otherwise run the subquery, which locks, several times.
    available = _available(sql, _queue_id(), bound_limit(), size, after="after")
    first = available.cte("first").prefix_with("MATERIALIZED", dialect="postgresql")
    return _delete_within_bytes(sql, first, [first.c.id])


def _take_of_each(sql: Dialect) -> Construct:
    """The same of many queues: the first message of each queue comes first. With the id of the transaction."""
    queue = sql.unnest("queue_ids").subquery("queue")
    size = func.length(MessageRow.message).label("size")
    rows = _available(sql, queue.c[0], bound_limit(), MessageRow.queue_id, size)
    first, on = sql.first_of_each(rows, MessageRow.id)
    size_of_first = first.c.size if "size" in first.c else func.length(first.c.message)
    joined = select(first.c.id, size_of_first.label("size")).select_from(queue).join(first, on)
    locked = joined.add_columns(first.c.queue_id).cte("locked").prefix_with("MATERIALIZED", dialect="postgresql")
    place = func.row_number().over(partition_by=locked.c.queue_id, order_by=locked.c.id).label("place")
    placed = select(locked.c.id, locked.c.size, place).cte("placed")
    return _delete_within_bytes(sql, placed, [placed.c.place, placed.c.id], sql.transaction_id())


def _delete_within_bytes(sql: Dialect, messages: Any, order: list[Construct], *returned: Construct) -> Construct:
    """Delete messages that are given by id and size, in an order: of so many bytes together, and one at least."""
    before = func.sum(messages.c.size).over(order_by=order) - messages.c.size
    sized = select(messages.c.id, before.label("before")).subquery("sized")
    taken = select(sized.c.id).where(sized.c.before < bindparam("bytes")).cte("taken")
    rows = delete(MessageRow).where(sql.looked_up_rows(MessageRow.id, taken))
    return rows.returning(*_columns(sql, TakenMessage), *returned)


def _with_messages(sql: Dialect) -> Construct:
    """The ids of the bound queues that have a message which is not leased."""
    queue = sql.unnest("queue_ids").subquery("queue").c[0]
    has_one = exists().where(MessageRow.queue_id == queue, _is_unleased(sql))
    return select(queue).where(has_one)


def _open_writers(sql: Dialect) -> Construct:
    return sql.open_writers(MessageRow)


def _notify(sql: Dialect) -> Construct:
    return select(notification())


def _put_back(sql: Dialect) -> Construct:
    """Insert rows that were taken. A row that is back already stays: the reply to an earlier try may be lost."""
    return sql.insert_rows(MessageRow, WHOLE_ROW).on_conflict_do_nothing(index_elements=[MessageRow.id])


def _put_at_end(sql: Dialect) -> Construct:
    return sql.insert_rows(MessageRow, WITHOUT_ID)


def _of_ids(sql: Dialect) -> Construct:
    """The messages with the bound ids: the columns of :class:`StoredMessage`."""
    ids = select(cast(sql.unnest("ids").subquery().c[0], BigInteger).label("id")).subquery("ids")
    return select(*_columns(sql, StoredMessage)).where(sql.looked_up_rows(MessageRow.id, ids))


def _locked_of_ids(sql: Dialect) -> Construct:
    """The same, locked. It fails where another transaction, which may delete one of them, has not ended."""
    return _of_ids(sql).with_for_update(nowait=True, of=MessageRow)


def _was_rolled_back(sql: Dialect) -> Construct:
    return select(sql.was_rolled_back("transaction_id"))


def _is_still_there(sql: Dialect) -> Construct:
    """A row, if a stored connection has the queue, which was not cleared since the messages were taken."""
    uncleared = or_(ConnectionRow.cleared_at.is_(None), ConnectionRow.cleared_at < sql.now("age"))
    found = select(ConnectionRow.id).where(ConnectionRow.queue_id == bindparam("queue_id"), uncleared)
    return found.limit(literal_column("1")).with_for_update(read=True, key_share=True)


def _set_aside(sql: Dialect) -> Construct:
    """Insert a row, and return its id, unless the table has a message of this number."""
    insert = insert_row(sql, SetAsideRow, SET_ASIDE_ROW).on_conflict_do_nothing(index_elements=[SetAsideRow.id])
    return insert.returning(SetAsideRow.id)


def _set_aside_of_id(sql: Dialect) -> Construct:
    """A message that was set aside: the columns of :class:`StoredMessage`."""
    return select(*_columns(sql, StoredMessage, SetAsideRow)).where(SetAsideRow.id == bindparam("id"))


def _set_aside_renumbered(sql: Dialect) -> Construct:
    """Insert a row under a negative number, since the table has another message of its own number."""
    values = {column: name for column, name in SET_ASIDE_ROW.items() if column != "id"}
    least = select(func.coalesce(func.min(SetAsideRow.id), literal_column("0")) - literal_column("1"))
    insert = insert_row(sql, SetAsideRow, values)
    return insert.values({SetAsideRow.id: least.where(SetAsideRow.id < literal_column("0")).scalar_subquery()})


def _discard(sql: Dialect) -> Construct:
    """Delete a leased message, whether its lease has expired or not."""
    return delete(MessageRow).where(_of_lease(sql)).returning(*_columns(sql, TakenMessage))


def _lock_set_aside(sql: Dialect) -> Construct:
    """The numbers of all messages that were set aside, which are locked."""
    return select(SetAsideRow.id).order_by(SetAsideRow.id).with_for_update()


def _retried(sql: Dialect) -> Construct:
    """The condition that a message that was set aside is one of the bound ones."""
    ids = select(cast(sql.unnest("ids").subquery().c[0], BigInteger).label("id")).subquery("ids")
    return sql.looked_up_rows(SetAsideRow.id, ids)


def _retry_set_aside(sql: Dialect) -> Construct:
    """Put messages that were set aside back to their places, but those whose numbers other messages have now."""
    rows = select(*(getattr(SetAsideRow, column) for column in WHOLE_ROW)).where(_retried(sql))
    in_place = rows.where(SetAsideRow.id > literal_column("0")).order_by(SetAsideRow.id)
    insert = sql.insert(MessageRow).from_select(list(WHOLE_ROW), in_place)
    return insert.on_conflict_do_nothing(index_elements=[MessageRow.id])


def _retry_at_end(sql: Dialect) -> Construct:
    """Put those that are not at their places to the ends of their queues."""
    rows = select(*(getattr(SetAsideRow, column) for column in WITHOUT_ID)).where(_retried(sql))
    is_back = and_(*(getattr(MessageRow, column) == getattr(SetAsideRow, column) for column in StoredMessage._fields))
    return insert(MessageRow).from_select(
        list(WITHOUT_ID), rows.where(~exists().where(is_back)).order_by(SetAsideRow.id)
    )


def _delete_set_aside(sql: Dialect) -> Construct:
    return delete(SetAsideRow).where(_retried(sql))


def _delete_all_set_aside(sql: Dialect) -> Construct:
    return delete(SetAsideRow)


def _list_set_aside(sql: Dialect) -> Construct:
    """A page, by id: the columns of :class:`SetAsideMessage`."""
    head = func.substr(SetAsideRow.message, literal_column("1"), literal_column(str(HEAD_BYTES)))
    page = select(
        SetAsideRow.id,
        SetAsideRow.queue_id,
        SetAsideRow.message_type,
        head,
        SetAsideRow.reason,
        sql.seconds_since(SetAsideRow.set_aside_at),
    )
    return page.where(SetAsideRow.id > bindparam("after")).order_by(SetAsideRow.id).limit(bindparam("count"))


def _count_set_aside(sql: Dialect) -> Construct:
    return select(func.count()).select_from(SetAsideRow)


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


def _note_cleared(sql: Dialect) -> Construct:
    """Note when a queue was cleared, so that a stream puts nothing back that it has taken before. Where its channel has
    a log, all events in it count as delivered."""
    last = select(EventLogRow.last_position).where(EventLogRow.channel_id == ConnectionRow.channel_id).scalar_subquery()
    cleared = {ConnectionRow.cleared_at: sql.now(), ConnectionRow.position: func.coalesce(last, ConnectionRow.position)}
    return update(ConnectionRow).where(ConnectionRow.queue_id == bindparam("queue_id")).values(cleared)


PUSH = NotifyingStatement.of(_push)
PUSH_MANY = NotifyingStatement.of(_push_many)
PUSH_TO_ALL = NotifyingStatement.of(_push_to_all)
POP = Statement(_pop)
TAKE = Statement(_take)
TAKE_OF_EACH = Statement(_take_of_each)
PUSH_TO_LISTENER = NotifyingStatement.returning(_push_to_listener)
PUSH_TO_CHANNEL = NotifyingStatement.of(_push_to_channel)
IS_STILL_THERE = Statement(_is_still_there)
SET_ASIDE = Statement(_set_aside)
DISCARD = Statement(_discard)
SET_ASIDE_OF_ID = Statement(_set_aside_of_id)
SET_ASIDE_RENUMBERED = Statement(_set_aside_renumbered)
LOCK_SET_ASIDE = Statement(_lock_set_aside)
RETRY_SET_ASIDE = Statement(_retry_set_aside)
RETRY_AT_END = Statement(_retry_at_end)
DELETE_SET_ASIDE = Statement(_delete_set_aside)
DELETE_ALL_SET_ASIDE = Statement(_delete_all_set_aside)
LIST_SET_ASIDE = Statement(_list_set_aside)
COUNT_SET_ASIDE = Statement(_count_set_aside)
NOTE_CLEARED = Statement(_note_cleared)
PUT_BACK = NotifyingStatement.of(_put_back)
PUT_AT_END = Statement(_put_at_end)
OF_IDS = Statement(_of_ids)
LOCKED_OF_IDS = Statement(_locked_of_ids)
WAS_ROLLED_BACK = Statement(_was_rolled_back)
WITH_MESSAGES = Statement(_with_messages)
OPEN_WRITERS = Statement(_open_writers)
NOTIFY = Statement(_notify)
LEASE = Statement(_lease)
ACKNOWLEDGE = Statement(_acknowledge)
RELEASE = NotifyingStatement.of(_release)
DEPTH = Statement(_depth)
CLEAR = Statement(_clear)
