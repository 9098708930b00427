"""Statements for operators: what the database has, in numbers."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, bindparam, cast, func, literal_column, select

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.models import ChannelRow, ConnectionRow, EventLogRow, KeyText, MessageRow, SetAsideRow

_ZERO: Construct = literal_column("0")
_CHANNELS = Table(  # the view
    "sse_channel_overview",
    MetaData(),
    Column("channel_id", KeyText),
    Column("channel_type", Text),
    Column("connections", BigInteger),
    Column("streaming", BigInteger),
    Column("pending_messages", BigInteger),
)


class Totals(NamedTuple):
    """What a database has."""

    channels: int
    connections: int
    streaming: int  # connections of which a stream was alive within the last minute
    waiting: int  # messages in queues, leased ones too
    oldest_seconds: int | None  # the age of the first of them
    events: int  # that logs keep
    set_aside: int  # messages that could not be decoded


class ChannelStatus(NamedTuple):
    """What a channel has."""

    channel_id: str
    channel_type: str  # class path; empty where only connections of it are stored
    connections: int
    streaming: int
    waiting: int
    events: int | None  # that its log keeps; None where it has no log


def _kept() -> Construct:
    return EventLogRow.last_position - EventLogRow.first_position + literal_column("1")


def _totals(sql: Dialect) -> Construct:
    def count(row: type, *conditions: Construct) -> Construct:
        return select(func.count()).select_from(row).where(*conditions).scalar_subquery()

    oldest = select(sql.seconds_since(MessageRow.created_at)).order_by(MessageRow.id).limit(literal_column("1"))
    events = select(cast(func.coalesce(func.sum(_kept()), _ZERO), BigInteger))
    return select(
        count(ChannelRow),
        count(ConnectionRow),
        count(ConnectionRow, ConnectionRow.seen_at > sql.now("age")),
        count(MessageRow),
        oldest.scalar_subquery(),
        events.scalar_subquery(),
        count(SetAsideRow),
    )


def _channels(sql: Dialect) -> Construct:
    """The channels with most messages waiting: so many, at most. The columns of :class:`ChannelStatus`.

    The view counts for each of its rows, so that those to be shown are found without it."""
    of_queue = ConnectionRow.queue_id == MessageRow.queue_id
    counted = select(ConnectionRow.channel_id, func.count().label("messages")).join_from(
        MessageRow, ConnectionRow, of_queue
    )
    waiting = counted.group_by(ConnectionRow.channel_id).subquery("waiting")
    number = func.coalesce(waiting.c.messages, _ZERO).label("number")
    numbered = select(ChannelRow.id, number).outerjoin(waiting, waiting.c.channel_id == ChannelRow.id)
    first = numbered.order_by(number.desc(), ChannelRow.id).limit(bindparam("count")).subquery("first")
    return (
        select(*_CHANNELS.c, _kept())
        .select_from(first)
        .join(_CHANNELS, _CHANNELS.c.channel_id == first.c.id)
        .outerjoin(EventLogRow, EventLogRow.channel_id == first.c.id)
        .order_by(first.c.number.desc(), first.c.id)
    )


TOTALS = Statement(_totals)
CHANNELS = Statement(_channels)
