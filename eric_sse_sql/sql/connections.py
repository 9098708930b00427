"""Statements on channels and connections. Their number does not grow with the connections of a channel.

Every transaction of this package locks rows in one order, so that none waits for another one in a circle:

1. ``sse_message_ids``, by message id;
2. ``kv_entries``, by key. The entry of a channel comes before those of listeners and queues, and is the lock of the
   channel: deleting the channel excludes all others, persisting it excludes other persists and the deletion of its
   connections, and persisting a single connection only excludes the deletion of the channel;
3. ``sse_channels``;
4. ``sse_connections``, by id;
5. ``sse_messages`` and ``sse_set_aside_messages``. Consumers skip what is locked;
6. ``sse_event_logs``;
7. ``sse_events``.

A cascade of a foreign key locks what the deleted row owns, so that the owner comes first. What still conflicts, as two
writers of an object that two channels share, is run again by ``Transactions.run``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    LargeBinary,
    Text,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.orm import aliased

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import Statement, insert_row, upsert, upsert_rows
from eric_sse_sql.models import ChannelRow, ConnectionRow, EventLogRow, EventRow, KvEntry, MessageRow, SetAsideRow

_CHANNEL = {
    "id": "channel_id",
    "entry_key": "entry_key",
    "channel_type": "channel_type",
}  # the parameter of each column
_CONNECTION = {
    "id": "connection_id",
    "channel_id": "channel_id",
    "listener_id": "listener_id",
    "listener_key": "listener_key",
    "queue_id": "queue_id",
    "queue_key": "queue_key",
    "has_own_push": "has_own_push",
    "start_position": "start_position",
}


class StoredConnection(NamedTuple):
    """A connection with the entries of its listener and its queue."""

    channel_id: str | None
    id: str
    listener_key: str
    listener: bytes
    queue_key: str
    queue: bytes
    listener_id: str
    queue_id: str


class LogPlace(NamedTuple):
    """What a connection that was looked up has of the log of its channel."""

    start_position: int | None  # its last position when the connection was made
    first_position: int | None  # the first one that is kept; None where there is no log
    has_messages: bool  # whether messages wait in the connection's queue


class StoredChannel(NamedTuple):
    """A channel with its entry."""

    id: str
    entry_key: str
    value: bytes


class KnownConnection(NamedTuple):
    """A connection of some listeners: in their channel, or in none yet."""

    listener_id: str
    queue_id: str
    id: str
    channel_id: str | None


# Reading


def _connections(sql: Dialect) -> Construct:
    """Connections, each with both entries, in one join: the columns of :class:`StoredConnection`."""
    entry = KvEntry.key, KvEntry.value
    listener, on_listener = sql.lookup_join(KvEntry.key, ConnectionRow.listener_key, *entry)
    queue, on_queue = sql.lookup_join(KvEntry.key, ConnectionRow.queue_key, *entry)
    return (
        select(
            ConnectionRow.channel_id,
            ConnectionRow.id,
            listener.c.key,
            listener.c.value,
            queue.c.key,
            queue.c.value,
            ConnectionRow.listener_id,
            ConnectionRow.queue_id,
        )
        .select_from(ConnectionRow)
        .join(listener, on_listener)
        .join(queue, on_queue)
    )


def _of_channel(sql: Dialect) -> Construct:
    return _connections(sql).where(ConnectionRow.channel_id == bindparam("channel_id")).order_by(ConnectionRow.id)


def _of_listener(sql: Dialect) -> Construct:
    """The connection of a listener in a channel: the columns of :class:`StoredConnection` and :class:`LogPlace`."""
    of_listener = (
        ConnectionRow.channel_id == bindparam("channel_id"),
        ConnectionRow.listener_id == bindparam("listener_id"),
    )
    has_messages = exists().where(MessageRow.queue_id == ConnectionRow.queue_id)
    first = select(EventLogRow.first_position).where(EventLogRow.channel_id == bindparam("channel_id"))
    place = ConnectionRow.start_position, first.scalar_subquery(), has_messages
    found = _connections(sql).add_columns(*place)
    return found.where(*of_listener).order_by(ConnectionRow.id).limit(literal_column("1"))


def _queue_ids(sql: Dialect) -> Construct:
    """The queues of all connections of a channel but some."""
    of_channel = ConnectionRow.channel_id == bindparam("channel_id")
    apart = sql.in_list(ConnectionRow.listener_id, "apart")
    return select(ConnectionRow.queue_id, ConnectionRow.has_own_push).where(of_channel, ~apart)


def _mark_seen(sql: Dialect) -> Construct:
    """Mark some connections as seen now, but those that another writer has locked: it waits for none."""
    unlocked = select(ConnectionRow.id).where(sql.in_list(ConnectionRow.id, "connection_ids"))
    some = ConnectionRow.id.in_(unlocked.with_for_update(key_share=True, skip_locked=True))
    return update(ConnectionRow).where(some).values({ConnectionRow.seen_at: sql.now()})


def _missing(sql: Dialect) -> Construct:
    """Those of the bound ids that no connection is stored under: none, mostly, so that nothing is returned."""
    connection_id = sql.unnest("connection_ids").subquery("connection").c[0]
    is_stored = select(ConnectionRow.id).where(ConnectionRow.id == connection_id)
    return select(connection_id).where(sql.not_exists(is_stored))


def _unseen(sql: Dialect) -> Construct:
    """Connections of which no stream was alive for a time: a page of them, by id."""
    page = select(ConnectionRow.id).where(ConnectionRow.id > bindparam("after"), _is_unseen(sql))
    return page.order_by(ConnectionRow.id).limit(bindparam("count"))


def _count_unseen(sql: Dialect) -> Construct:
    return select(func.count()).select_from(ConnectionRow).where(_is_unseen(sql))


def _is_unseen(sql: Dialect) -> Construct:
    return func.coalesce(ConnectionRow.seen_at, ConnectionRow.created_at) < sql.now("age")


def _of_channels(sql: Dialect) -> Construct:
    ids = ConnectionRow.channel_id
    page = _connections(sql).where(ids >= bindparam("first"), ids <= bindparam("last"))
    return page.order_by(ConnectionRow.channel_id, ConnectionRow.id)


def _one_connection(sql: Dialect) -> Construct:
    return _connections(sql).where(ConnectionRow.id == bindparam("connection_id"))


def _channels(sql: Dialect, connection: Sequence[Construct] = (), queue: Sequence[Construct] = ()) -> Construct:
    """Channels with their entries. A channel that is not persisted, but has connections, has a row without a type."""
    entry, on_entry = sql.lookup_join(KvEntry.key, ChannelRow.entry_key, KvEntry.key, KvEntry.value)
    columns = ChannelRow.id, *connection, entry.c.key, entry.c.value, *queue
    # A literal, since Postgres compares it with its statistics. Where all channels have one type, it expects none with
    # another type than a bound value, and would read and sort all channels for each page.
    is_persisted = ChannelRow.channel_type != literal_column("''")
    return select(*columns).select_from(ChannelRow).join(entry, on_entry).where(is_persisted)


def _channel_alone(sql: Dialect) -> Construct:
    """A channel without its connections: the columns of :class:`StoredChannel`."""
    return _channels(sql).where(ChannelRow.id == bindparam("channel_id"))


def _one_channel(sql: Dialect) -> Construct:
    """A channel, as a connection without id, and its connections: one statement reads one state of both."""
    no_text, no_blob = cast(null(), Text), cast(null(), LargeBinary)
    queue = no_text.label("queue_key"), no_blob.label("queue"), no_text.label("listener_id"), no_text.label("queue_id")
    channel = _channels(sql, [no_text.label("connection")], queue).where(ChannelRow.id == bindparam("channel_id"))
    return union_all(channel, _of_channel(sql).order_by(None)).order_by("connection")


def _first_channels(sql: Dialect) -> Construct:
    return _page(sql).where(ChannelRow.id >= bindparam("start"))


def _next_channels(sql: Dialect) -> Construct:
    return _page(sql).where(ChannelRow.id > bindparam("start"))


def _page(sql: Dialect) -> Construct:
    return _channels(sql).order_by(ChannelRow.id).limit(bindparam("count"))


OF_LISTENER = Statement(_of_listener)
QUEUE_IDS = Statement(_queue_ids)
MARK_SEEN = Statement(_mark_seen)
MISSING = Statement(_missing)
UNSEEN = Statement(_unseen)
COUNT_UNSEEN = Statement(_count_unseen)
CHANNEL_ALONE = Statement(_channel_alone)
OF_CHANNEL = Statement(_of_channel)
OF_CHANNELS = Statement(_of_channels)
ONE_CONNECTION = Statement(_one_connection)
ONE_CHANNEL = Statement(_one_channel)
FIRST_CHANNELS = Statement(_first_channels)
NEXT_CHANNELS = Statement(_next_channels)

# Writing


def _upsert_channel(sql: Dialect) -> Construct:
    """Insert or update a channel, and return whether it has a log."""
    has_log = exists().where(EventLogRow.channel_id == bindparam("channel_id"))
    return upsert(sql, ChannelRow, _CHANNEL).returning(has_log)


def _upsert_connections(sql: Dialect) -> Construct:
    return upsert_rows(sql, ConnectionRow, _CONNECTION, keep="channel_id", insert_only="start_position")


def _share_entry(sql: Dialect) -> Construct:
    """The entry of a channel, locked so that nothing deletes it until the end of the transaction."""
    return _entry().with_for_update(read=True, key_share=True)


def _lock_entry(sql: Dialect) -> Construct:
    return _entry().with_for_update()


def _entry() -> Construct:
    return select(KvEntry.key).where(KvEntry.key == bindparam("entry_key"))


def _lock_entries(sql: Dialect) -> Construct:
    """Lock some entries, and the objects of some connections, in the order of their keys."""
    return select(_locked(KvEntry.key, union_all(sql.unnest("keys"), *_objects_of(_by_ids(sql, ConnectionRow)))))


def _objects_of(condition: Construct) -> list[Construct]:
    """The keys of the listeners and the queues of connections."""
    return [select(key).where(condition) for key in (ConnectionRow.listener_key, ConnectionRow.queue_key)]


def _locked(key: Any, keys: Any, *, shared: bool = False) -> Construct:
    """How many rows have one of some keys. They are locked in the order of their keys.

    :param shared: whether other transactions may lock them in the same way, and none may write them
    """
    rows = select(key).where(key.in_(keys)).order_by(key).with_for_update(of=key.class_, read=shared)
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


def _by_ids(sql: Dialect, row: Any) -> Construct:
    return sql.in_list(row.id, "connection_ids")


def _insert_missing_channel(sql: Dialect) -> Construct:
    return insert_row(sql, ChannelRow, _CHANNEL).on_conflict_do_nothing()


def _of_listeners(sql: Dialect) -> Construct:
    """The connections that some listeners have in a channel, after those that they have in none yet."""
    of_listeners = sql.in_list(ConnectionRow.listener_id, "listener_ids")
    in_channel = (ConnectionRow.channel_id == bindparam("channel_id")) & of_listeners
    in_none = ConnectionRow.channel_id.is_(None) & sql.in_list(ConnectionRow.listener_key, "listener_keys")
    return (
        select(*(getattr(ConnectionRow, column) for column in KnownConnection._fields))
        .where(or_(in_channel, in_none))
        .order_by(ConnectionRow.channel_id.is_(None).desc(), ConnectionRow.id)
    )


def _set_own_id(key: Any, own_id: Any) -> Statement:
    """Stores the id of an object in the connections that have it."""
    return Statement(
        lambda sql: update(ConnectionRow).where(key == bindparam("key")).values({own_id: bindparam("own_id")})
    )


UPSERT_CHANNEL = Statement(_upsert_channel)
UPSERT_CONNECTIONS = Statement(_upsert_connections)
INSERT_MISSING_CHANNEL = Statement(_insert_missing_channel)
SHARE_ENTRY = Statement(_share_entry)
LOCK_ENTRY = Statement(_lock_entry)
LOCK_ENTRIES = Statement(_lock_entries)
OF_LISTENERS = Statement(_of_listeners)
SET_LISTENER_ID = _set_own_id(ConnectionRow.listener_key, ConnectionRow.listener_id)
SET_QUEUE_ID = _set_own_id(ConnectionRow.queue_key, ConnectionRow.queue_id)

# Deleting

_OF_QUEUES = (MessageRow, SetAsideRow)  # the tables whose rows belong to a queue
Scope = Callable[[Dialect, Any], Construct]  # the condition that a connection's row is to be deleted


class Deletion(NamedTuple):
    """How connections are deleted: the arguments of ``Executor.run_all``."""

    statements: tuple[Statement, ...]
    lock: Statement  # of the channels, then of the objects, and then of the connections


def _deletion(scope: Scope) -> Deletion:
    """The deletion of connections, with the objects and messages that no other connection needs."""
    other = aliased(ConnectionRow)

    def lock(sql: Dialect) -> Construct:
        channel, on_channel = sql.lookup_join(ChannelRow.id, ConnectionRow.channel_id, ChannelRow.entry_key)
        channels = some(sql, channel.c.entry_key).select_from(ConnectionRow).join(channel, on_channel)
        objects = union_all(*_objects_of(scope(sql, ConnectionRow)))
        return select(
            _locked(KvEntry.key, channels, shared=True),
            _locked(KvEntry.key, objects),
            _locked(ConnectionRow.id, some(sql, ConnectionRow.id)),
        )

    def some(sql: Dialect, column: Any) -> Construct:
        return select(column).where(scope(sql, ConnectionRow))

    def no_other(sql: Dialect, needs_it: Construct) -> Construct:
        return sql.not_exists(select(other.id).where(needs_it, scope(sql, other).is_not(true())))

    def messages(row: Any) -> Statement:
        def of_queues(sql: Dialect) -> Construct:
            is_unshared = no_other(sql, other.queue_id == ConnectionRow.queue_id)
            queues = some(sql, ConnectionRow.queue_id).where(is_unshared).subquery("queues")
            return delete(row).where(sql.looked_up_rows(row.queue_id, queues))

        return Statement(of_queues)

    def objects(sql: Dialect) -> Construct:
        keys = (
            some(sql, of_one).where(no_other(sql, of_other == of_one))
            for of_one, of_other in (
                (ConnectionRow.listener_key, other.listener_key),
                (ConnectionRow.queue_key, other.queue_key),
            )
        )
        return delete(KvEntry).where(KvEntry.key.in_(union_all(*keys)))

    # The foreign keys have deleted most of these rows; not those whose objects are shared, nor any with SQLite's off.
    def connections(sql: Dialect) -> Construct:
        return delete(ConnectionRow).where(scope(sql, ConnectionRow))

    statements = *map(messages, _OF_QUEUES), Statement(objects), Statement(connections)
    return Deletion(statements, Statement(lock))


def _delete_of_channel(row: Any) -> Statement:
    return Statement(lambda sql: delete(row).where(row.channel_id == bindparam("channel_id")))


def _delete_channel_object(sql: Dialect) -> Construct:
    key = select(ChannelRow.entry_key).where(ChannelRow.id == bindparam("channel_id"))
    return delete(KvEntry).where(KvEntry.key.in_(key))


def _delete_channel(sql: Dialect) -> Construct:
    return delete(ChannelRow).where(ChannelRow.id == bindparam("channel_id"))


def _delete_connections_of_object(sql: Dialect) -> Construct:
    needs_it = or_(ConnectionRow.listener_key == bindparam("key"), ConnectionRow.queue_key == bindparam("key"))
    return delete(ConnectionRow).where(needs_it)


def _delete_of_queue(row: Any) -> Statement:
    return Statement(lambda sql: delete(row).where(row.queue_id == bindparam("queue_id")))


DELETE_CONNECTION = _deletion(lambda sql, row: row.id == bindparam("connection_id"))
DELETE_CONNECTION_OF_CHANNEL = _deletion(
    lambda sql, row: (row.id == bindparam("connection_id")) & (row.channel_id == bindparam("channel_id"))
)
DELETE_CONNECTIONS = _deletion(_by_ids)
DELETE_CONNECTIONS_OF_CHANNEL = _deletion(lambda sql, row: row.channel_id == bindparam("channel_id"))
DELETE_CONNECTIONS_OF_LISTENER = _deletion(lambda sql, row: row.listener_key == bindparam("key"))
DELETE_CONNECTIONS_OF_QUEUE = _deletion(lambda sql, row: row.queue_key == bindparam("key"))
DELETE_CONNECTIONS_OF_OBJECT = Statement(_delete_connections_of_object)
DELETE_CHANNEL = Statement(_delete_channel_object), Statement(_delete_channel)
DELETE_LOG = tuple(map(_delete_of_channel, (EventLogRow, EventRow)))
DELETE_OF_QUEUE = tuple(map(_delete_of_queue, _OF_QUEUES))
