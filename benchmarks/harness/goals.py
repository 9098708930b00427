"""The names of the operations and peers, and the goals of the operations."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.harness.figures import Goal

SQLITE_NORMAL, SQLITE_FULL, POSTGRES = "SQLite NORMAL", "SQLite FULL", "Postgres"

# The storage engine

NEW = "upsert, new key"
EXISTING = "upsert, existing key"
FETCH = "fetch_one"
DELETE = "delete"
PAGE = "prefix page"
GROWTH = "growth"
SCAN = "fetch_all"

_SQLITE_STORAGE = {
    NEW: Goal(2.5, 1.5),
    EXISTING: Goal(3, 1.5),
    FETCH: Goal(4, 2),
    DELETE: Goal(2.5, 1.5),
    PAGE: Goal(2.5, 1.3),
    GROWTH: Goal(1.3, 1.3),
    SCAN: Goal(2, 1.3),
}
STORAGE: Mapping[str, Mapping[str, Goal]] = {
    SQLITE_NORMAL: _SQLITE_STORAGE,
    SQLITE_FULL: {**_SQLITE_STORAGE, NEW: Goal(1.5, 1.1)},
    POSTGRES: {
        NEW: Goal(1.4, 1.2),
        EXISTING: Goal(1.4, 1.2),
        FETCH: Goal(1.6, 1.2),
        DELETE: Goal(1.4, 1.2),
        PAGE: Goal(2, 1.3),
        GROWTH: Goal(1.3, 1.3),
        SCAN: Goal(2, 1.3),
    },
}

APPLICATION_STORAGE: Mapping[str, Mapping[str, Goal]] = {
    SQLITE_NORMAL: dict.fromkeys((NEW, EXISTING, FETCH, DELETE), Goal(2.5, 2)),
    SQLITE_FULL: {},
    POSTGRES: {**dict.fromkeys((NEW, EXISTING, DELETE), Goal(1.5, 1.3)), FETCH: Goal(2)},
}

# The queue

PUSH = "push"
POP = "pop"
RECEIVE = "receive and acknowledge"
EMPTY = "pop of an empty queue"
KNOWN_EMPTY = "… that is known to be empty"
DEPTH = "pop at depth"

RECEIVE_TO_POP = Goal(2)
DEPTH_GROWTH = Goal(1.5)

_SQLITE_QUEUE = {PUSH: Goal(2.5, 1.5), POP: Goal(2.5, 1.5)}
QUEUE: Mapping[str, Mapping[str, Goal]] = {
    SQLITE_NORMAL: _SQLITE_QUEUE,
    SQLITE_FULL: _SQLITE_QUEUE,
    POSTGRES: {PUSH: Goal(1.4, 1.2), POP: Goal(1.4, 1.2)},
}

APPLICATION_QUEUE: Mapping[str, Mapping[str, Goal]] = {
    SQLITE_NORMAL: dict.fromkeys((PUSH, POP), Goal(2.5, 2)),
    SQLITE_FULL: {},
    POSTGRES: dict.fromkeys((PUSH, POP), Goal(1.5, 1.3)),
}

# Peers, with the durability of their commits in brackets

REDIS_QUEUE_IN_MEMORY = "RedisQueue (no disk)"
REDIS_QUEUE_ON_DISK = "RedisQueue (fsync)"
PERSIST_QUEUE = "persist-queue (FULL)"
LITEQUEUE = "litequeue (NORMAL)"
DISKCACHE = "diskcache (NORMAL)"
KOMBU_SQLITE = "kombu (FULL)"
KOMBU_POSTGRES = "kombu (fsync)"
PROCRASTINATE = "procrastinate (fsync)"

_FASTER = Goal(1, at_least=True)
_MUCH_FASTER = Goal(1.5, at_least=True)

# Each peer is compared with the database of the same durability: both wait for the disk at each commit, or neither.
QUEUE_PEERS: Mapping[str, Mapping[str, Mapping[str, Goal]]] = {
    SQLITE_NORMAL: {
        PUSH: {REDIS_QUEUE_IN_MEMORY: _MUCH_FASTER},
        POP: {REDIS_QUEUE_IN_MEMORY: _MUCH_FASTER, LITEQUEUE: _FASTER},
    },
    SQLITE_FULL: {
        operation: {REDIS_QUEUE_ON_DISK: _FASTER, PERSIST_QUEUE: _FASTER, KOMBU_SQLITE: _FASTER}
        for operation in (PUSH, POP)
    },
    POSTGRES: {
        operation: {REDIS_QUEUE_ON_DISK: _FASTER, KOMBU_POSTGRES: _FASTER, PROCRASTINATE: _FASTER}
        for operation in (PUSH, POP)
    },
}
THROUGHPUT: Mapping[str, Mapping[str, Goal]] = {
    SQLITE_NORMAL: {REDIS_QUEUE_IN_MEMORY: Goal(0.5, 1, at_least=True)},
    SQLITE_FULL: {REDIS_QUEUE_ON_DISK: Goal(0.5, 1, at_least=True)},
    POSTGRES: {REDIS_QUEUE_ON_DISK: Goal(0.5, 0.7, at_least=True)},
}

# Streams: these goals bound values, not ratios.

REDIS_STREAM = "RedisQueue stream (no disk)"

STATEMENTS_OF_IDLE = Goal(120)  # per minute, whatever the number of streams: one thread polls for all
CPU_OF_IDLE = Goal(5)  # percent of a core
_SQLITE_LATENCY = {50: Goal(15), 99: Goal(60)}  # ms, by percentile
LATENCY: Mapping[str, Mapping[int, Goal]] = {
    SQLITE_NORMAL: _SQLITE_LATENCY,
    SQLITE_FULL: _SQLITE_LATENCY,
    POSTGRES: {50: Goal(10), 99: Goal(50)},
}
NONE = Goal(0)  # messages lost, delivered twice or out of order
FLAT = Goal(5)  # percent of memory growth after the first third of the time
NOTIFYING = Goal(0.7, at_least=True)
RECOVERY = Goal(2)  # seconds

# Channels

PERSIST = "persist"
LOAD_ONE = "load_one"
BROADCAST = "broadcast"
LOAD_ALL = "load_all of 100 connections"
LOAD_ANY = "load_all of a random channel's 100"

REDIS_CHANNELS_IN_MEMORY = "RedisSSEChannelRepository (no disk)"
REDIS_CHANNELS_ON_DISK = "RedisSSEChannelRepository (fsync)"

JUDGED_CONNECTIONS = 1000  # the goals are about a channel with this many connections
OTHERS_GROWTH = Goal(1.3)

_SQLITE_CHANNEL = {PERSIST: Goal(2.5), LOAD_ONE: Goal(2), BROADCAST: Goal(2.5), DELETE: Goal(2.5)}
CHANNEL: Mapping[str, Mapping[str, Goal]] = {
    SQLITE_NORMAL: _SQLITE_CHANNEL,
    SQLITE_FULL: _SQLITE_CHANNEL,
    POSTGRES: {PERSIST: Goal(2), LOAD_ONE: Goal(2), BROADCAST: Goal(2), DELETE: Goal(2)},
}
CHANNEL_PEERS: Mapping[str, Mapping[str, Goal]] = {
    PERSIST: {REDIS_CHANNELS_IN_MEMORY: Goal(30, at_least=True)},
    LOAD_ONE: {REDIS_CHANNELS_IN_MEMORY: Goal(40, at_least=True)},
    BROADCAST: {REDIS_CHANNELS_IN_MEMORY: Goal(20, at_least=True)},
    DELETE: {REDIS_CHANNELS_IN_MEMORY: Goal(100, at_least=True)},
}

# Fan-out: N listeners, streams or clients of one channel

ASYNCIO = "asyncio alone"
REDIS_PUBSUB = "Redis pub/sub, asyncio queues"
IN_MEMORY = "eric-sse in memory"
UVICORN = "eric_sse_sql on uvicorn"
NCHAN = "nginx with nchan"
CONSTANT = "constant bytes on uvicorn"

FANOUT_PEERS = (REDIS_STREAM, REDIS_PUBSUB, IN_MEMORY)
MOST_STREAMS: Mapping[str, int] = {REDIS_STREAM: 1_000}  # with more, a poll of all streams takes seconds

ONE_STATEMENT = Goal(1)
SAME_TIME = Goal(1.2)  # to the time with the fewest listeners
ONE_ROW = Goal(1)
BROADCAST_TO_QUEUES = Goal(1.1)  # to the raw driver, as before channels looked their listeners up
OPENING_GROWTH = Goal(1.3, 1.1)
OPENING = Goal(10)  # seconds
STREAM_MEMORY = Goal(20, 10)  # kB
FANOUT: Mapping[str, Goal] = {"log": Goal(3, 1.5), "queues": Goal(8, 4)}  # to asyncio alone
HTTP_CPU = Goal(1.5, 1.2)  # to constant bytes on uvicorn
AHEAD = _FASTER
CPU_OF_MANY_IDLE = Goal(2)  # percent of a core
STATEMENTS_OF_OTHERS = Goal(2)  # per second
COMEBACK = Goal(15)  # seconds
STATEMENTS_OF_COMEBACK = Goal(2)
LONG_LOG = Goal(2)  # to an empty log
