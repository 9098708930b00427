"""Statements for operators: what the database has, in numbers."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import BigInteger, Text, bindparam, cast, func, inspect, literal_column, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.models import ChannelRow, ConnectionRow, EventLogRow, KeyText, MessageRow, SetAsideRow

_ZERO: Construct = literal_column("0")


class Views(DeclarativeBase):
    """Base of the views, which the migrations make."""


class ChannelOverview(Views):
    """A channel, with counts that are made for each row that is read."""

    __tablename__ = "sse_channel_overview"

    channel_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    channel_type: Mapped[str] = mapped_column(Text)
    connections: Mapped[int] = mapped_column(BigInteger)
    streaming: Mapped[int] = mapped_column(BigInteger)
    pending_messages: Mapped[int] = mapped_column(BigInteger)


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

    The rows of the view are looked up for those alone."""
    of_queue = ConnectionRow.queue_id == MessageRow.queue_id
    counted = select(ConnectionRow.channel_id, func.count().label("messages")).join_from(
        MessageRow, ConnectionRow, of_queue
    )
    waiting = counted.group_by(ConnectionRow.channel_id).subquery("waiting")
    number = func.coalesce(waiting.c.messages, _ZERO).label("number")
    numbered = select(ChannelRow.id, number).outerjoin(waiting, waiting.c.channel_id == ChannelRow.id)
    first = numbered.order_by(number.desc(), ChannelRow.id).limit(bindparam("count")).subquery("first")
    columns = inspect(ChannelOverview).column_attrs
    row, on_row = sql.lookup_join(
        ChannelOverview.channel_id, first.c.id, *(getattr(ChannelOverview, each.key) for each in columns)
    )
    return (
        select(*(row.c[each.key] for each in columns), _kept())
        .select_from(first)
        .join(row, on_row)
        .outerjoin(EventLogRow, EventLogRow.channel_id == first.c.id)
        .order_by(first.c.number.desc(), first.c.id)
    )


TOTALS = Statement(_totals)
CHANNELS = Statement(_channels)
