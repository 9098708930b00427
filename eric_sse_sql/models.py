"""The tables, and what may be a key in them."""

from __future__ import annotations

from datetime import datetime

from eric_sse.exception import RepositoryError
from sqlalchemy import (
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MAX_KEY_BYTES = 1024

# Where the objects stand that channels and connections refer to: apart from the namespaces of applications, each under
# its own id, as in eric-sse 2.0, or under that of its connection, as in 2.1.
CHANNELS = "sse:channels"
LISTENERS, QUEUES = "sse:listeners", "sse:queues"
CONNECTION_LISTENERS, CONNECTION_QUEUES = "sse:connection-listeners", "sse:connection-queues"

KeyText = Text().with_variant(Text(collation="C"), "postgresql")  # ordered byte by byte, as SQLite does by itself
MessageId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only where it says INTEGER


class Base(DeclarativeBase):
    """The package's own metadata, apart from that of the application."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )


class Timestamps:
    """When a row was made and last written, on the clock of the database."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())


class KvEntry(Timestamps, Base):
    """An object by its key. One index serves equality and prefix, for the key is ordered byte by byte."""

    __tablename__ = "kv_entries"

    key: Mapped[str] = mapped_column(KeyText, primary_key=True)  # "<namespace>/<key>"
    value: Mapped[bytes] = mapped_column(LargeBinary)  # the pickle, after its signature where one is asked for
    value_type: Mapped[str] = mapped_column(Text)  # class path of the object, for people who read the table


class ChannelRow(Timestamps, Base):
    """A channel. Its object is an entry; its connections are rows of their own."""

    __tablename__ = "sse_channels"

    id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # the channel's own id
    entry_key: Mapped[str] = mapped_column(  # the entry that holds the channel object, without its connections
        KeyText, ForeignKey(KvEntry.key, ondelete="CASCADE"), unique=True
    )
    channel_type: Mapped[str] = mapped_column(Text)  # class path of the channel, for people


class ConnectionRow(Timestamps, Base):
    """A connection: which listener reads which queue, in which channel."""

    __tablename__ = "sse_connections"

    id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # the connection's own id
    channel_id: Mapped[str | None] = mapped_column(  # its channel; none until it is given to one
        KeyText, ForeignKey(ChannelRow.id, ondelete="CASCADE"), index=True
    )
    listener_id: Mapped[str] = mapped_column(KeyText)  # the listener's own id, by which the channel knows it
    listener_key: Mapped[str] = mapped_column(  # the entry that holds the listener object
        KeyText, ForeignKey(KvEntry.key, ondelete="CASCADE"), index=True
    )
    queue_id: Mapped[str] = mapped_column(KeyText, index=True)  # whose messages in sse_messages are its own
    queue_key: Mapped[str] = mapped_column(  # the entry that holds the queue object
        KeyText, ForeignKey(KvEntry.key, ondelete="CASCADE"), index=True
    )


class MessageRow(Base):
    """A message that waits in a queue. No foreign key: applications push before they persist the connection."""

    __tablename__ = "sse_messages"

    id: Mapped[int] = mapped_column(MessageId, Identity(), primary_key=True)  # order within the queue; never reused
    queue_id: Mapped[str] = mapped_column(KeyText)  # the queue's own id
    message_type: Mapped[str] = mapped_column(Text)  # the message's own type, for people
    message: Mapped[bytes] = mapped_column(LargeBinary)  # the pickle, after its signature where one is asked for
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())
    leased_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))  # until then, one consumer's alone
    delivery_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))  # how often it was leased

    __table_args__ = (Index(None, "queue_id", "id"), {"sqlite_autoincrement": True})


class DeliveredRow(Base):
    """A message that was delivered, and is kept so that a stream can be taken up again."""

    __tablename__ = "sse_delivered_messages"

    queue_id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # the queue's own id
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # in the queue, from 1
    message_type: Mapped[str] = mapped_column(Text)  # the message's own type, for people
    message: Mapped[bytes] = mapped_column(LargeBinary)  # the blob that it was in sse_messages
    delivered_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())


class PositionRow(Base):
    """How far a queue was delivered, also when what was delivered is gone."""

    __tablename__ = "sse_delivery_positions"

    queue_id: Mapped[str] = mapped_column(KeyText, primary_key=True)  # the queue's own id
    last_position: Mapped[int] = mapped_column(BigInteger)  # of the message that was delivered last


TABLE_NAMES = frozenset(Base.metadata.tables)


def checked(what: str, key: str) -> str:
    """The key itself, if it can be one on every database.

    :param what: what the message calls it: "a key", "a channel id"
    :raises RepositoryError: when it is not a ``str``, holds NUL or a lone surrogate (text of Postgres holds neither),
        or is longer than 1,024 bytes of UTF-8 (Postgres indexes about 2,700)
    """
    if not isinstance(key, str):
        raise RepositoryError(f"{what} must be a str, not {type(key).__name__}") from TypeError(type(key).__name__)
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise RepositoryError(f"{what} must not hold a lone surrogate, which UTF-8 can't write") from error
    if "\0" in key:
        raise RepositoryError(f"{what} must not hold a NUL character") from ValueError("NUL")
    if size > MAX_KEY_BYTES:
        raise RepositoryError(f"{what} must be at most {MAX_KEY_BYTES} bytes of UTF-8, not {size}") from ValueError(
            size
        )
    return key
