"""The tables. The migrations create them; a test checks that models and migrations agree."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    column,
    false,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

KeyText = Text().with_variant(Text(collation="C"), "postgresql")  # byte order, which is the default on SQLite
MessageId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite generates ids for INTEGER only
LATER = 1  # for columns that a later migration has added: after those of the mixin
_OWN_PUSH = column("has_own_push", Boolean())


class Base(DeclarativeBase):
    """Base of the models, with metadata separate from the application's."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )


class Timestamps:
    """When a row was inserted and last written, by the clock of the database."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())


class KvEntry(Timestamps, Base):
    """A stored object. Because keys are in byte order, the primary key serves both equality and prefix searches."""

    __tablename__ = "kv_entries"

    key: Mapped[str] = mapped_column(KeyText, primary_key=True)  # "<namespace>/<key>"
    value: Mapped[bytes] = mapped_column(LargeBinary)  # the pickle or JSON, after a signature if the codec signs
    value_type: Mapped[str] = mapped_column(Text)  # class path of the object, for people reading the table


class ChannelRow(Timestamps, Base):
    """A channel. The channel object is an entry of ``kv_entries``; each connection is a row of ``sse_connections``."""

    __tablename__ = "sse_channels"

    id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # id of the channel
    entry_key: Mapped[str] = mapped_column(  # key in kv_entries of the channel object, without its connections
        KeyText, ForeignKey(KvEntry.key, ondelete="CASCADE"), unique=True
    )
    channel_type: Mapped[str] = mapped_column(Text)  # class path of the channel, for people reading the table


class ConnectionRow(Timestamps, Base):
    """A connection: a listener, the queue it reads, and their channel."""

    __tablename__ = "sse_connections"

    id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # id of the connection
    channel_id: Mapped[str | None] = mapped_column(  # id of its channel; NULL until it is registered with one
        KeyText, ForeignKey(ChannelRow.id, ondelete="CASCADE")
    )
    listener_id: Mapped[str] = mapped_column(KeyText)  # id of the listener, as the channel looks it up
    listener_key: Mapped[str] = mapped_column(  # key in kv_entries of the listener object
        KeyText, ForeignKey(KvEntry.key, ondelete="CASCADE"), index=True
    )
    queue_id: Mapped[str] = mapped_column(KeyText, index=True)  # id of the queue, as in sse_messages
    queue_key: Mapped[str] = mapped_column(  # key in kv_entries of the queue object
        KeyText, ForeignKey(KvEntry.key, ondelete="CASCADE"), index=True
    )
    start_position: Mapped[int | None] = mapped_column(  # last position of the log when it was made
        BigInteger, sort_order=LATER
    )
    position: Mapped[int | None] = mapped_column(  # position up to which its streams have delivered the log
        BigInteger, sort_order=LATER
    )
    has_own_push: Mapped[bool] = mapped_column(  # its queue class overrides push()
        Boolean, server_default=false(), sort_order=LATER
    )
    cleared_at: Mapped[datetime | None] = mapped_column(  # when its queue was last cleared
        DateTime(timezone=True), sort_order=LATER
    )
    seen_at: Mapped[datetime | None] = mapped_column(  # when a stream of it was last alive
        DateTime(timezone=True), sort_order=LATER
    )

    __table_args__ = (
        Index(None, "channel_id", "listener_id"),
        Index(
            "ix_sse_connections_own_push",
            "channel_id",
            postgresql_where=_OWN_PUSH,
            sqlite_where=text("has_own_push = 1"),  # as statements have it: SQLite compares the expressions
        ),
    )


class MessageRow(Base):
    """A message waiting in a queue. No foreign key: applications push before they persist the connection."""

    __tablename__ = "sse_messages"

    id: Mapped[int] = mapped_column(MessageId, Identity(), primary_key=True)  # order within the queue; never reused
    queue_id: Mapped[str] = mapped_column(KeyText)  # id of the queue
    message_type: Mapped[str] = mapped_column(Text)  # type of the message, for people reading the table
    message: Mapped[bytes] = mapped_column(LargeBinary)  # the pickle or JSON, after a signature if the codec signs
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())
    leased_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))  # other consumers skip it until then
    delivery_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))  # number of leases so far

    __table_args__ = (Index(None, "queue_id", "id"), {"sqlite_autoincrement": True})


class SetAsideRow(Base):
    """A message that could not be decoded, and left its queue so that the next ones are delivered."""

    __tablename__ = "sse_set_aside_messages"

    id: Mapped[int] = mapped_column(
        MessageId, primary_key=True, autoincrement=False
    )  # its id in sse_messages, or negative
    queue_id: Mapped[str] = mapped_column(KeyText, index=True)  # id of its queue
    message_type: Mapped[str] = mapped_column(Text)  # type of the message, for people reading the table
    message: Mapped[bytes] = mapped_column(LargeBinary)  # the blob, unchanged from sse_messages
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))  # when it was pushed
    delivery_count: Mapped[int] = mapped_column(Integer)  # number of leases so far
    reason: Mapped[str] = mapped_column(Text)  # why it could not be decoded
    set_aside_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())


class MessageIdRow(Base):
    """The id that an application has given to a message. No foreign key, as for messages."""

    __tablename__ = "sse_message_ids"

    owner_id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # id of the queue or of the channel
    message_id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # the id of the message
    listener_id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # of a dispatch; otherwise empty
    recipient: Mapped[str] = mapped_column(Text, primary_key=True)  # "queue", "channel" or "listener"
    created_at: Mapped[datetime] = mapped_column(  # when the message was added
        DateTime(timezone=True), server_default=func.current_timestamp(), index=True
    )


class EventRow(Base):
    """An event in the log of a channel: a broadcast, or a dispatch to one listener."""

    __tablename__ = "sse_events"

    channel_id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # id of the channel
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # in commit order, from 1
    listener_id: Mapped[str | None] = mapped_column(KeyText)  # id of the only listener that gets it; NULL for all
    message_type: Mapped[str] = mapped_column(Text)  # type of the message, for people reading the table
    message: Mapped[bytes] = mapped_column(LargeBinary)  # the pickle or JSON, after a signature if the codec signs
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())

    __table_args__ = (Index(None, "channel_id", "listener_id", "position"),)


class EventLogRow(Base):
    """The state of a channel's log. No foreign key: applications broadcast before they persist the channel."""

    __tablename__ = "sse_event_logs"

    channel_id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # id of the channel
    epoch: Mapped[str] = mapped_column(Text)  # random; another one for each life of the channel
    last_position: Mapped[int] = mapped_column(BigInteger)  # position of the last event, also when that has expired
    first_position: Mapped[int] = mapped_column(BigInteger)  # position of the first event that is kept
    last_event_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))  # created_at of the last event
    replay_seconds: Mapped[float] = mapped_column(Float)  # how long an event is kept


TABLE_NAMES = frozenset(Base.metadata.tables)
