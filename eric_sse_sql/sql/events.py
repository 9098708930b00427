"""Statements on the logs of channels: ``sse_events`` and ``sse_event_logs``."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import (
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.orm import aliased

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import NotifyingStatement, Statement, bound_limit, insert_row
from eric_sse_sql.models import ConnectionRow, EventLogRow, EventRow, MessageRow

CONTEXT = f"{EventRow.__tablename__}/"  # with the channel and the listener, the context of an event's signature
APPENDED_REPLAY_SECONDS = "86400"  # of a log that an append or a migration has made
_APPENDED = {column: column for column in ("channel_id", "listener_id", "message_type", "message")}


class Appended(NamedTuple):
    """What an append returns."""

    position: int
    has_own_push: bool  # whether a connection of the channel has a queue that pushes by itself


class Event(NamedTuple):
    """An event of a log."""

    position: int
    listener_id: str | None  # of the only listener that gets it; None for all
    message_type: str
    message: bytes
    token: str  # tells events at one position in different lives of a log apart


class LogBounds(NamedTuple):
    """Which positions a log has."""

    epoch: str
    first_position: int
    last_position: int


class LogHead(NamedTuple):
    """A log, as a read of it has found it."""

    epoch: str
    first_position: int
    last_position: int
    last_token: str
    token: str | None  # of the event after which was read; None where it is gone


class LogState(NamedTuple):
    """A log, and where one of its connections stands in it. Parts that don't exist are None."""

    connection_id: str | None
    start_position: int | None
    position: int | None
    has_messages: bool  # whether messages wait in the connection's queue
    epoch: str | None
    last_position: int | None
    first_position: int | None
    last_token: str | None
    seen_token: str | None  # of the event at the position that a client has seen


def _in_channel() -> Construct:
    return ConnectionRow.channel_id == bindparam("channel_id")


def _has_own_push() -> Construct:
    return exists().where(_in_channel(), ConnectionRow.has_own_push)


def _append(sql: Dialect) -> Construct:
    """Append a broadcast, or a dispatch to a listener that only the caller knows."""
    return sql.append(EventRow, EventLogRow, _APPENDED, true(), _has_own_push())


def _append_dispatch(sql: Dialect) -> Construct:
    """Append a dispatch, if its listener has a connection in the channel, whose queue does not push by itself."""
    of_listener = _in_channel(), ConnectionRow.listener_id == bindparam("listener_id"), ~ConnectionRow.has_own_push
    return sql.append(EventRow, EventLogRow, _APPENDED, exists().where(*of_listener), literal_column("0"))


def _new_log(sql: Dialect) -> Any:
    columns = "channel_id", "epoch", "last_position", "first_position", "replay_seconds"
    return insert_row(sql, EventLogRow, {column: column for column in columns}).values(last_event_at=sql.now())


def _open_log(sql: Dialect) -> Construct:
    """Make the log of a channel, or note how long it keeps its events where no persist has written that yet."""
    return _set_replay(sql, EventLogRow.replay_seconds == literal_column(APPENDED_REPLAY_SECONDS))


def _set_replay(sql: Dialect, condition: Construct | None = None) -> Construct:
    """Make the log of a channel, or note how long it keeps its events."""
    insert = _new_log(sql)
    kept = {"replay_seconds": insert.excluded.replay_seconds}
    return insert.on_conflict_do_update(index_elements=["channel_id"], set_=kept, where=condition)


def _start(sql: Dialect) -> Construct:
    """Let connections that are new begin after the last event of their channel's log."""
    last = select(EventLogRow.last_position).where(EventLogRow.channel_id == ConnectionRow.channel_id).scalar_subquery()
    new = sql.in_list(ConnectionRow.id, "connection_ids"), ConnectionRow.start_position.is_(None)
    return update(ConnectionRow).where(*new).values({ConnectionRow.start_position: func.coalesce(last, 0)})


def _state(sql: Dialect) -> Construct:
    one = select(literal_column("1").label("one")).subquery("one")
    of_listener = and_(_in_channel(), ConnectionRow.listener_id == bindparam("listener_id"))
    seen = and_(EventRow.channel_id == bindparam("channel_id"), EventRow.position == bindparam("seen"))
    has_messages = exists().where(MessageRow.queue_id == ConnectionRow.queue_id)
    return (
        select(
            ConnectionRow.id,
            ConnectionRow.start_position,
            ConnectionRow.position,
            has_messages,
            EventLogRow.epoch,
            EventLogRow.last_position,
            EventLogRow.first_position,
            sql.token(EventLogRow.last_event_at),
            sql.token(EventRow.created_at),
        )
        .select_from(one)
        .outerjoin(EventLogRow, EventLogRow.channel_id == bindparam("channel_id"))
        .outerjoin(EventRow, seen)
        .outerjoin(ConnectionRow, of_listener)
    )


def _columns(sql: Dialect) -> tuple[Construct, ...]:
    token = sql.token(EventRow.created_at).label("token")
    return EventRow.position, EventRow.listener_id, EventRow.message_type, EventRow.message, token


def _of_channel(*conditions: Construct) -> tuple[Construct, ...]:
    return EventRow.channel_id == bindparam("channel_id"), *conditions


def _last_within_bytes(sizes: Construct) -> Construct:
    """The last position of a page, given as positions and sizes, whose messages have the bound number of bytes
    together: the first one at least. Messages themselves are read afterwards, so that they need no memory here."""
    page = sizes.subquery("page")
    before = func.sum(page.c.size).over(order_by=page.c.position) - page.c.size
    sized = select(page.c.position, before.label("before")).subquery("sized")
    return select(func.max(sized.c.position)).where(sized.c.before < bindparam("bytes")).scalar_subquery()


def _sizes(*conditions: Construct) -> Construct:
    """Positions and sizes of the first events that fulfil the conditions."""
    sizes = select(EventRow.position, func.length(EventRow.message).label("size")).where(*_of_channel(*conditions))
    return sizes.order_by(EventRow.position).limit(bound_limit())


def _after(sql: Dialect) -> Construct:
    """A log, in each row, and its events after a position, for all listeners: one row at least, where the log exists.
    The columns of :class:`LogHead` and :class:`Event`."""
    after = EventRow.position > bindparam("after")
    last = EventRow.position <= _last_within_bytes(_sizes(after))
    found = select(*_columns(sql)).where(*_of_channel(after, last)).subquery("found")
    before = aliased(EventRow)
    is_before = and_(before.channel_id == bindparam("channel_id"), before.position == bindparam("after"))
    return (
        select(
            EventLogRow.epoch,
            EventLogRow.first_position,
            EventLogRow.last_position,
            sql.token(EventLogRow.last_event_at),
            sql.token(before.created_at),
            *(found.c[name] for name in Event._fields),
        )
        .select_from(EventLogRow)
        .outerjoin(before, is_before)
        .outerjoin(found, true())
        .where(EventLogRow.channel_id == bindparam("channel_id"))
        .order_by(found.c.position)
    )


def _of_listener(sql: Dialect) -> Construct:
    """A log, in each row, and its events of one listener after a position and up to another one, found without those of
    other listeners: one row at least, where the log exists. The columns of :class:`LogBounds` and :class:`Event`."""
    between = EventRow.position > bindparam("after"), EventRow.position <= bindparam("last")
    of_all, of_one = EventRow.listener_id.is_(None), EventRow.listener_id == bindparam("listener_id")
    pages = (select(_sizes(of_listener, *between).subquery()) for of_listener in (of_all, of_one))
    both = union_all(*pages).subquery("both")
    first = select(both).order_by(both.c.position).limit(bindparam("count"))
    last = select(_last_within_bytes(first).label("last")).cte("until")
    until = EventRow.position <= select(last.c.last).scalar_subquery()
    rows = (
        select(*_columns(sql)).where(*_of_channel(of_listener, *between, until)) for of_listener in (of_all, of_one)
    )
    found = union_all(*rows).subquery("found")
    log = (getattr(EventLogRow, name) for name in LogBounds._fields)
    page = select(*log, *(found.c[name] for name in Event._fields)).select_from(EventLogRow).outerjoin(found, true())
    return page.where(EventLogRow.channel_id == bindparam("channel_id")).order_by(found.c.position)


def _count(sql: Dialect) -> Construct:
    """How many events a listener gets after a position, with the messages that wait in its queue."""
    of_listener = or_(EventRow.listener_id.is_(None), EventRow.listener_id == bindparam("listener_id"))
    after = _of_channel(EventRow.position > bindparam("after"), of_listener)
    in_log = select(func.count()).select_from(EventRow).where(*after).scalar_subquery()
    in_queue = select(func.count()).select_from(MessageRow).where(MessageRow.queue_id == bindparam("queue_id"))
    return select(in_log + in_queue.scalar_subquery())


def _tail_start(sql: Dialect) -> Construct:
    """The position before the last events of a log: so many of them, and so many bytes, at most."""
    last = select(EventRow.position, EventRow.message).where(EventRow.channel_id == bindparam("channel_id"))
    page = last.order_by(EventRow.position.desc()).limit(bound_limit()).subquery("page")
    total = func.sum(func.length(page.c.message)).over(order_by=page.c.position.desc())
    sized = select(page.c.position, total.label("total")).subquery("sized")
    start = select(func.min(sized.c.position) - literal_column("1")).where(sized.c.total < bindparam("bytes"))
    log = select(EventLogRow.last_position).where(EventLogRow.channel_id == bindparam("channel_id"))
    return select(func.coalesce(start.scalar_subquery(), log.scalar_subquery(), literal_column("0")))


def _last_positions(sql: Dialect) -> Construct:
    """How far the bound logs go, the tokens of their last events, and whether their first events have expired."""
    of_channels = sql.in_list(EventLogRow.channel_id, "channel_ids")
    token = sql.token(EventLogRow.last_event_at)
    return select(EventLogRow.channel_id, EventLogRow.last_position, token, _has_expired(sql)).where(of_channels)


def _has_expired(sql: Dialect) -> Construct:
    """Whether the first event of a log was kept long enough."""
    return exists().where(
        EventRow.channel_id == EventLogRow.channel_id,
        EventRow.position == EventLogRow.first_position,
        EventRow.created_at < sql.seconds_ago(EventLogRow.replay_seconds),
    )


def _advance(sql: Dialect) -> Construct:
    """Move the position of a connection, unless another consumer has moved it meanwhile."""
    now = func.coalesce(ConnectionRow.position, ConnectionRow.start_position, literal_column("0"))
    unmoved = ConnectionRow.id == bindparam("connection_id"), now == bindparam("before")
    moved = update(ConnectionRow).where(*unmoved).values({ConnectionRow.position: bindparam("after")})
    return moved.returning(ConnectionRow.id)


def _note_positions(sql: Dialect) -> Construct:
    """Note how far the streams of connections have delivered the logs of their channels: not beyond their ends, where
    they were restored."""
    delivered = sql.pairs("positions")
    last = select(EventLogRow.last_position).where(EventLogRow.channel_id == ConnectionRow.channel_id).scalar_subquery()
    position = sql.greatest(func.coalesce(ConnectionRow.position, literal_column("0")), delivered.c.number)
    of_connection = sql.looked_up_pairs(ConnectionRow.id, delivered)
    moved = update(ConnectionRow).where(of_connection, delivered.c.number <= last)
    return moved.values({ConnectionRow.position: position})


def _expire(sql: Dialect) -> Construct:
    """Delete events that were kept long enough: so many of the oldest ones, at most."""
    of_channel = EventRow.channel_id == bindparam("channel_id")
    kept = select(EventLogRow.replay_seconds).where(EventLogRow.channel_id == bindparam("channel_id"))
    oldest = select(EventRow.position, EventRow.created_at).where(of_channel).order_by(EventRow.position)
    page = oldest.limit(bound_limit()).subquery("page")
    last = select(func.max(page.c.position)).where(page.c.created_at < sql.seconds_ago(kept.scalar_subquery()))
    return delete(EventRow).where(of_channel, EventRow.position <= last.scalar_subquery())


def _lock_log(sql: Dialect) -> Construct:
    """Keep others from appending until the end of the transaction, and wait for those that have begun to."""
    return select(EventLogRow.epoch).where(EventLogRow.channel_id == bindparam("channel_id")).with_for_update()


def _trim(sql: Dialect) -> Construct:
    """Note the first position that a log has kept. The log is locked, so that this sees its last event."""
    first = select(func.min(EventRow.position)).where(EventRow.channel_id == bindparam("channel_id")).scalar_subquery()
    kept = func.coalesce(first, EventLogRow.last_position + literal_column("1"))
    log = EventLogRow.channel_id == bindparam("channel_id")
    return update(EventLogRow).where(log).values({EventLogRow.first_position: kept})


def _with_expired(sql: Dialect) -> Construct:
    """Channels that have events which were kept long enough: a page of them, by id."""
    rows = select(EventLogRow.channel_id).where(EventLogRow.channel_id > bindparam("after"), _has_expired(sql))
    return rows.order_by(EventLogRow.channel_id).limit(bindparam("count"))


def _count_expired(sql: Dialect) -> Construct:
    """How many events of all logs were kept long enough."""
    is_expired = EventRow.created_at < sql.seconds_ago(EventLogRow.replay_seconds)
    log = EventLogRow.channel_id == EventRow.channel_id
    return select(func.count()).select_from(EventRow).join(EventLogRow, log).where(is_expired)


APPEND = NotifyingStatement.returning(_append)
APPEND_DISPATCH = NotifyingStatement.returning(_append_dispatch)
OPEN_LOG = Statement(_open_log)
SET_REPLAY = Statement(_set_replay)
START = Statement(_start)
STATE = Statement(_state)
AFTER = Statement(_after)
OF_LISTENER = Statement(_of_listener)
COUNT = Statement(_count)
TAIL_START = Statement(_tail_start)
LAST_POSITIONS = Statement(_last_positions)
ADVANCE = Statement(_advance)
NOTE_POSITIONS = Statement(_note_positions)
EXPIRE = Statement(_expire)
LOCK_LOG = Statement(_lock_log)
TRIM = Statement(_trim)
WITH_EXPIRED = Statement(_with_expired)
COUNT_EXPIRED = Statement(_count_expired)
