"""The baseline of channels: the same durable work, written by hand in the fastest way that each driver offers.

Rows have the same columns of the same tables, and ids that begin with the time. The baseline stores only its own
classes, so it needs no codec. It never removes a connection from a channel, so ``persist`` does not look for removed
ones.
"""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import psycopg
from eric_sse.connection import Connection, ConnectionsFactory
from eric_sse.entities import AbstractChannel
from eric_sse.listener import MessageQueueListener
from eric_sse.message import MessageContract
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import Queue
from psycopg.types.array import ListBinaryDumper

from benchmarks.baselines.time_ordered_id import time_ordered_id
from benchmarks.harness.interfaces import ChannelStore


class StoredQueue(Queue):
    """The stored part of a queue: its id."""

    def __init__(self, queue_id: str) -> None:
        self.id = queue_id

    def push(self, msg: MessageContract) -> None:
        raise NotImplementedError("broadcast() pushes to all of them")

    def pop(self) -> Any:
        raise NotImplementedError("nothing is popped here")


class StoredQueuesFactory(ConnectionsFactory):
    """Creates connections whose queues can be stored."""

    def create(self, listener: MessageQueueListener | None = None) -> Connection:
        return Connection(listener or MessageQueueListener(), StoredQueue(time_ordered_id()), time_ordered_id())


class RawChannels(ChannelStore, Protocol):
    """A store of channels over the raw driver."""

    def close(self) -> None: ...


class ChannelRows(NamedTuple):
    """A channel as rows of the three tables, in the order of their keys."""

    entries: list[tuple[str, bytes, str]]
    channel: tuple[str, str, str]
    connections: list[tuple[str, str, str, str, str, str]]

    @staticmethod
    def of(channel: AbstractChannel) -> ChannelRows:
        entry_key, kind = f"sse:channels/{channel.id}", type(channel).__qualname__
        entries = [(entry_key, pickle.dumps({"channel_id": channel.id}, 5), kind)]
        connections = []
        for connection in channel.get_connections():
            listener, queue = connection.listener, cast(StoredQueue, connection.queue)
            # With the id of the connection in its keys, its objects are stored in the order of the connections.
            at, queue_at = f"sse:listeners/{connection.id}", f"sse:queues/{connection.id}"
            entries.append((at, pickle.dumps(listener, 5), type(listener).__qualname__))
            entries.append((queue_at, pickle.dumps(queue, 5), type(queue).__qualname__))
            connections.append((connection.id, channel.id, listener.id, at, queue.id, queue_at))
        return ChannelRows(sorted(entries), (channel.id, entry_key, kind), sorted(connections))


_ENTRIES = "kv_entries (key, value, value_type)"
_CHANNELS = "sse_channels (id, entry_key, channel_type)"
_CONNECTIONS = "sse_connections (id, channel_id, listener_id, listener_key, queue_id, queue_key)"
_MESSAGES = "sse_messages (queue_id, message_type, message)"


def _or_update(table: str) -> str:
    """The ON CONFLICT clause that updates every column but the key."""
    key, *others = table.partition("(")[2].rstrip(")").split(", ")
    changes = ", ".join(f"{column} = excluded.{column}" for column in others)
    return f"ON CONFLICT ({key}) DO UPDATE SET {changes}, updated_at = CURRENT_TIMESTAMP"


def _upsert(table: str, places: str) -> str:
    return f"INSERT INTO {table} VALUES ({places}) {_or_update(table)}"


SELECT_CHANNEL = """SELECT value FROM sse_channels
    JOIN kv_entries ON key = entry_key WHERE id = ?"""
SELECT_CONNECTIONS = """SELECT c.id, l.value, q.value FROM sse_connections c
    JOIN kv_entries l ON l.key = c.listener_key JOIN kv_entries q ON q.key = c.queue_key WHERE c.channel_id = ?"""
DELETE_MESSAGES = """DELETE FROM sse_messages
    WHERE queue_id IN (SELECT queue_id FROM sse_connections WHERE channel_id = ?)"""
# The foreign keys delete the channel and its connections with them.
DELETE_ENTRIES = """DELETE FROM kv_entries WHERE key IN (
    SELECT listener_key FROM sse_connections WHERE channel_id = ?
    UNION ALL SELECT queue_key FROM sse_connections WHERE channel_id = ?
    UNION ALL SELECT entry_key FROM sse_channels WHERE id = ?)"""


class _Raw:
    """The part that both drivers share."""

    _factory = StoredQueuesFactory()
    _connections = SELECT_CONNECTIONS

    def create(self, channel_id: str) -> AbstractChannel:
        return SSEChannel(channel_id=channel_id, connections_factory=self._factory)

    def load_one(self, channel_id: str) -> AbstractChannel:
        ((blob,),) = self._select(SELECT_CHANNEL, channel_id)
        channel = SSEChannel(**pickle.loads(blob), connections_factory=self._factory)
        for connection in self.load_connections(channel_id):
            channel.register_connection(connection)
        return channel

    def load_connections(self, channel_id: str) -> Iterator[Connection]:
        for connection_id, listener, queue in self._select(self._connections, channel_id):
            yield Connection(pickle.loads(listener), pickle.loads(queue), connection_id)

    def _select(self, statement: str, channel_id: str) -> Sequence[Sequence[Any]]:
        raise NotImplementedError


class RawSqliteChannels(_Raw):
    """``sqlite3``: many rows with ``executemany``, or from one JSON array where all rows share a blob.

    :param connection: in autocommit, with its pragmas set
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def persist(self, channel: AbstractChannel) -> None:
        rows = ChannelRows.of(channel)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_upsert(_ENTRIES, "?, ?, ?"), rows.entries)
        self._connection.execute(_upsert(_CHANNELS, "?, ?, ?"), rows.channel)
        self._connection.executemany(_upsert(_CONNECTIONS, "?, ?, ?, ?, ?, ?"), rows.connections)
        self._connection.execute("COMMIT")

    def broadcast(self, channel: AbstractChannel, message: MessageContract) -> None:
        queues = json.dumps(_queue_ids(channel))
        insert = f"INSERT INTO {_MESSAGES} SELECT value, ?, ? FROM json_each(?)"
        self._connection.execute(insert, (message.type, pickle.dumps(message, 5), queues))

    def delete(self, channel_id: str) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(DELETE_MESSAGES, (channel_id,))
        self._connection.execute(DELETE_ENTRIES, (channel_id,) * 3)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()

    def _select(self, statement: str, channel_id: str) -> Sequence[Sequence[Any]]:
        return self._connection.execute(statement, (channel_id,)).fetchall()


class RawPostgresChannels(_Raw):
    """psycopg: many rows as one binary array for each column, with prepared statements.

    :param connection: in autocommit
    """

    # Subqueries, since for a join Postgres scans all entries unless the channel is a small part of them.
    _connections = """SELECT id, (SELECT value FROM kv_entries WHERE key = listener_key),
        (SELECT value FROM kv_entries WHERE key = queue_key) FROM sse_connections WHERE channel_id = ?"""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        connection.adapters.register_dumper(list, ListBinaryDumper)
        self._connection = connection
        self._cursor = connection.cursor(binary=True)

    def persist(self, channel: AbstractChannel) -> None:
        rows = ChannelRows.of(channel)
        with self._connection.transaction():
            self._run(_upsert_arrays(_ENTRIES, "text", "bytea", "text"), _columns(rows.entries))
            self._run(_upsert(_CHANNELS, "%s, %s, %s"), rows.channel)
            if rows.connections:
                self._run(_upsert_arrays(_CONNECTIONS, *["text"] * 6), _columns(rows.connections))

    def broadcast(self, channel: AbstractChannel, message: MessageContract) -> None:
        insert = f"INSERT INTO {_MESSAGES} SELECT id, %s, %s FROM unnest(%s::text[]) AS id"
        self._run(insert, (message.type, pickle.dumps(message, 5), _queue_ids(channel)))

    def delete(self, channel_id: str) -> None:
        with self._connection.transaction():
            self._run(DELETE_MESSAGES.replace("?", "%s"), (channel_id,))
            self._run(DELETE_ENTRIES.replace("?", "%s"), (channel_id,) * 3)

    def close(self) -> None:
        self._connection.close()

    def _select(self, statement: str, channel_id: str) -> Sequence[Sequence[Any]]:
        return self._run(statement.replace("?", "%s"), (channel_id,)).fetchall()

    def _run(self, statement: str, values: Sequence[Any]) -> psycopg.Cursor[Any]:
        return self._cursor.execute(statement.encode(), values, prepare=True)


def _upsert_arrays(table: str, *types: str) -> str:
    arrays = ", ".join(f"%s::{each}[]" for each in types)
    return f"INSERT INTO {table} SELECT * FROM unnest({arrays}) {_or_update(table)}"


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _queue_ids(channel: AbstractChannel) -> list[str]:
    return [cast(StoredQueue, connection.queue).id for connection in channel.get_connections()]
