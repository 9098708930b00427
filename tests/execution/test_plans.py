"""How many rows Postgres reads for a statement: in proportion to what the statement takes or loads.

The planner chooses by the statistics of a table, and a prepared statement keeps its plan. So each statement is measured
with every kind of statistics, with a plan that was made while the tables were empty and with a new one, beside few and
many rows of others, and on each way to the driver.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from eric_sse.prefabs import SSEChannel
from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, event, func, select, text

from eric_sse_sql import ChannelRepository, ConnectionRepository, Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ItemNotFound, make_connection, make_listener, register
from eric_sse_sql.execution.postgres import session
from eric_sse_sql.execution.statement import NotifyingStatement, Statement
from eric_sse_sql.keys import LISTENERS
from eric_sse_sql.models import TABLE_NAMES, MessageRow
from eric_sse_sql.queues import broadcast
from eric_sse_sql.sql import connections, events, messages
from eric_sse_sql.sql.connections import DELETE_CONNECTIONS_OF_LISTENER
from eric_sse_sql.sql.entries import DELETE

DEPTH, SHORT = 10_000, 200  # the messages of a deep queue, and those of a queue beside a deep one
CHANNELS, OTHERS = 1_000, 3  # the channels of somebody else, and the connections of each
CONNECTIONS = 10  # those of the channel that is measured
POPPED, TAKEN, LOADED = 5, 500, 100  # messages, messages, channels
PAGE = 50  # events of a log that are read or deleted at once
WAITING = 200  # queues whose streams wait
MIB = 1024 * 1024
EXECUTIONS = 20  # psycopg prepares a statement at the sixth one, and Postgres may keep a plan from the eleventh on

# How many rows each call may read: about twice what it reads, with deleted rows that an index still has, and with
# small tables, where a lookup may read a whole page. A scan reads 3,000 connections, 7,000 entries or 10,000 messages,
# and a bad join reads them for each row.
LIMITS = {
    "poll": 1_000,
    "pop": 1_000,
    "pop_from_empty": 1_000,
    "receive": 100,
    "take": 2_000,
    "load_all": 2_000,
    "load_one": 500,
    "fetch_one": 50,
    "broadcast": 10,
    "persist": 600,
    "dispatch": 50,
    "broadcast_to_channel": 100,
    "find_connection": 60,
    "feed": 2_500,
    "append": 50,
    "append_dispatch": 50,
    "state": 50,
    "events_after": 200,
    "events_of_listener": 1_000,
    "tail_start": 200,
    "last_positions": 200,
    "expire": 1_000,
    "mark_seen": 100,
    "find_missing": 100,
    "delete_connection": 2_000,
    "delete_listener": 2_000,
    "delete_channel": 2_500,
}

# What is executed while the tables are empty, and once they are full. autovacuum is off.
STATISTICS = {
    "never made": ("", ""),
    "made while empty": ("ANALYZE", ""),
    "vacuumed while empty": ("VACUUM ANALYZE", ""),
    "made deep": ("", "ANALYZE"),
}
SINGLE, OTHER_WAYS = ("URL", "own engine"), ("observed engine", "transaction", "joined transaction")


pytestmark = pytest.mark.usefixtures("without_notifier")


class State(NamedTuple):
    """What the planner knows, and how a statement gets to it."""

    way: str
    statistics: str
    is_prepared: bool  # whether each statement has a plan from when the tables were empty
    is_beside_others: bool


STATES = [
    *itertools.starmap(State, itertools.product(SINGLE, STATISTICS, (False, True), (False, True))),
    *itertools.starmap(State, itertools.product(OTHER_WAYS, STATISTICS, (True,), (True,))),
]


class Clock:
    """The clock by which plans are discarded. It stands still, so that none is discarded before a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(session, "time", made)
    return made


@contextmanager
def closing_engine(engine: Engine) -> Iterator[None]:
    try:
        yield
    finally:
        engine.dispose()


@dataclass(frozen=True)
class Tables:
    """The tables of one test, in a schema of their own."""

    url: URL
    schema: str

    def execute(self, *statements: str, **parameters: Any) -> None:
        """On a connection that is not measured."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with closing_engine(engine), engine.connect() as connection:
            connection.execute(text(f"SET search_path TO {self.schema}"))
            for statement in filter(None, statements):
                connection.execute(text(statement), parameters)
            # Without this, what this connection has read would be counted later, as if the measured one had read it.
            connection.execute(text("SELECT pg_stat_force_next_flush()"))

    def analyse(self, command: str) -> None:
        if command:
            self.execute(f"{command} {', '.join(sorted(TABLE_NAMES))}")

    def fill(self, beside_others: bool) -> None:
        """Fill the queue and the channel that are measured and, beside them, those of somebody else."""
        push = "INSERT INTO sse_messages (queue_id, message_type, message) "
        push += "SELECT {}, 'm', (SELECT message FROM stock.sse_messages) FROM {}"
        if beside_others:
            copy = "INSERT INTO {table} SELECT {columns} FROM stock.{table}, "
            copy += f"generate_series(1, {CHANNELS}) AS n WHERE {{where}} LIKE '%theirs%'"
            ids = "id || n, channel_id || n, listener_id || n, listener_key || n, queue_id || n, queue_key || n"
            self.execute(
                copy.format(table="kv_entries", columns="key || n, value, value_type", where="key"),
                copy.format(table="sse_channels", columns="id || n, entry_key || n, channel_type", where="id"),
                copy.format(table="sse_connections", columns=ids, where="channel_id"),
                push.format("queue_id", "sse_connections"),
                push.format("'theirs'", f"generate_series(1, {DEPTH})"),
                *log("theirs", DEPTH),
                *(statement for n in range(20) for statement in log(f"theirs {n}", SHORT)),
            )
        self.execute(
            *(
                f"INSERT INTO {table} SELECT * FROM stock.{table} WHERE {column} LIKE '%ours%'"
                for table, column in (("kv_entries", "key"), ("sse_channels", "id"), ("sse_connections", "channel_id"))
            ),
            push.format("queue_id", "stock.sse_connections WHERE channel_id = 'ours'"),
            push.format("'ours'", f"generate_series(1, {SHORT if beside_others else DEPTH})"),
            *log("ours", SHORT if beside_others else DEPTH),
        )


def log(channel_id: str, length: int) -> tuple[str, str]:
    """Statements that make a log: of ten events, nine are dispatches to ten listeners, and one is a broadcast."""
    return (
        "INSERT INTO sse_event_logs (channel_id, epoch, last_position, first_position, last_event_at, replay_seconds) "
        f"VALUES ('{channel_id}', 'e', {length}, 1, now(), 3600)",
        "INSERT INTO sse_events (channel_id, position, listener_id, message_type, message, created_at) "
        f"SELECT '{channel_id}', n, CASE WHEN n % 10 > 0 THEN '{channel_id} ' || n % {CONNECTIONS} END, 'm', message, "
        f"now() - CASE WHEN n <= {PAGE} THEN interval '1 day' ELSE interval '1 second' END "
        f"FROM stock.sse_messages, generate_series(1, {length}) AS n",
    )


def new_channel(database: Database, channel_id: str, connections: int) -> SSEChannel:
    channel = SSEChannel(channel_id=channel_id)
    for number in range(connections):
        queue = SqlQueue(database, f"{channel_id} {number}")
        register(channel, make_connection(make_listener(queue.id), queue, queue.id))
    return channel


@pytest.fixture(scope="module")
def stocked(new_postgres: Callable[[], URL]) -> URL:
    """A database with a schema from which the tables of each test are filled."""
    url = new_postgres()
    Tables(url, "public").execute("CREATE SCHEMA stock")
    with Database(url, schema="stock") as database:
        database.upgrade()
        with database.transaction():
            repository = ChannelRepository(SqlStorageEngine(database))
            repository.persist(new_channel(database, "ours", CONNECTIONS))
            repository.persist(new_channel(database, "theirs", OTHERS))
            SqlQueue(database, "one").push(Message("m"))
            SqlStorageEngine(database).upsert("ours", 1)
    return url


_numbers = itertools.count()


@pytest.fixture
def tables(stocked: URL) -> Iterator[Tables]:
    """Empty tables that no statistics were ever made of."""
    made = Tables(stocked, f"test_{next(_numbers)}")
    made.execute(f"CREATE SCHEMA {made.schema}")
    with Database(stocked, schema=made.schema) as database:
        database.upgrade()
    made.execute(*(f"ALTER TABLE {table} SET (autovacuum_enabled = off)" for table in TABLE_NAMES))
    yield made
    made.execute(f"DROP SCHEMA {made.schema} CASCADE")


class Measured:
    """A database that runs all its statements on one connection, in one of the ways, and what that connection reads."""

    def __init__(self, database: Database, way: str) -> None:
        self.database = database
        self._way = way

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The transaction in which a call is made, if it is made in one."""
        if self._way == "transaction":
            with self.database.transaction():
                yield
        elif self._way == "joined transaction":
            with self.database.engine.begin() as connection, self.database.join(connection):
                yield
        else:
            yield

    def rows_read(self, call: Callable[[], object]) -> int:
        """How many rows of the package's tables a call reads, by whatever plan."""
        backend, before = self._rows_read()
        with self.scope():
            call()
        same, after = self._rows_read()
        assert same == backend, "another connection was measured than that which ran the call"
        return after - before

    def statements_without_kept_plan(self) -> list[str]:
        """The prepared statements that get a new plan at each execution."""
        query = "SELECT statement FROM pg_prepared_statements WHERE generic_plans = 0 AND statement LIKE :ours"
        with self._connection() as connection:
            return list(connection.scalars(text(query), {"ours": f"%{self.database.schema}.%"}))

    def _rows_read(self) -> tuple[int, int]:
        by_scan = "(SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname = :schema)"
        by_index = "(SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = :schema)"
        with self._connection() as connection:
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
        with self._connection() as connection:
            query = text(f"SELECT pg_backend_pid(), {by_scan} + {by_index}")
            backend, rows = connection.execute(query, {"schema": self.database.schema}).one()
            return backend, int(rows)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """The only connection of the engine. A rollback would make psycopg drop what it has prepared."""
        self.database.executor.release()
        with self.database.engine.begin() as connection:
            yield connection


@contextmanager
def measured(tables: Tables, way: str) -> Iterator[Measured]:
    """A database in one of the ways, without the background threads, which would use other connections."""
    own = create_engine(tables.url, pool_size=1, max_overflow=0)
    with closing_engine(own), Database(tables.url if way == "URL" else own, schema=tables.schema) as database:
        if way == "observed engine":
            event.listen(database.engine, "before_cursor_execute", lambda *arguments: None)
        database.background.leave(database.watcher)
        yield Measured(database, way)


class Calls:
    """The calls that are measured. Each can be made while the tables are empty, too."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.storage = SqlStorageEngine(database)
        self.channels = ChannelRepository(self.storage)
        self.connections = ConnectionRepository(self.storage)

    def _queue(self, queue_id: str = "ours") -> SqlQueue:
        """A new object, which does not remember that the queue was empty."""
        return SqlQueue(self.database, queue_id)

    def poll(self) -> None:
        watches = [self._queue(name).watch for name in ("ours", *map(str, range(10)))]
        for watch in watches:
            watch.arm()
        self.database.watcher.poll()

    def pop(self) -> None:
        with suppress(NoMessagesException):
            for _ in range(POPPED):
                self._queue().pop()

    def pop_from_empty(self) -> None:
        with suppress(NoMessagesException):
            self._queue("empty").pop()

    def receive(self) -> None:
        with suppress(NoMessagesException):
            for _ in range(POPPED):
                with self._queue().receive():
                    pass

    def take(self) -> None:
        self._queue().take(TAKEN)

    def load_all(self) -> None:
        list(islice(self.channels.load_all(), LOADED))

    def load_one(self) -> None:
        with suppress(ItemNotFound):
            self.channels.load_one("ours")

    def fetch_one(self) -> None:
        with suppress(ItemNotFound):
            self.storage.fetch_one("ours")

    def broadcast(self) -> None:
        broadcast(Message("m"), [self._queue(f"ours {number}") for number in range(CONNECTIONS)])

    def persist(self) -> None:
        try:
            channel = self.channels.load_one("ours")
        except ItemNotFound:
            channel = new_channel(self.database, "ours", 1)
        self.channels.persist(channel)

    def delete_connection(self) -> None:
        found = [connection.id for connection in self.connections.load_all("ours")]
        self.connections.delete(found[0] if found else "none")

    def delete_listener(self) -> None:
        """As the repository of eric-sse 2.1 does, which stores listeners under other keys."""
        found = [connection.listener.id for connection in self.connections.load_all("ours")]
        key = f"{LISTENERS}/{found[0] if found else 'none'}"
        with self.database.transaction():
            self.database.executor.run_all(*DELETE_CONNECTIONS_OF_LISTENER, key=key)
            self.database.executor.run(DELETE, key=key)

    def delete_channel(self) -> None:
        self.channels.delete("ours")

    # Those of eric-sse 2.1's channels, by their statements, since eric-sse 2.0 has no such channel.

    def _run(self, statement: Statement, **parameters: Any) -> None:
        self.database.executor.run(statement, **parameters)

    def _push(self, statement: NotifyingStatement, **parameters: Any) -> None:
        self._run(statement.plain, channel_id="ours", message_type="m", message=b"m", **parameters)

    def _list(self, values: Iterable[object]) -> Any:
        return self.database.executor.dialect.list_value([str(value) for value in values])

    def dispatch(self) -> None:
        self._push(messages.PUSH_TO_LISTENER, listener_id="ours 3", queue_id=None)

    def broadcast_to_channel(self) -> None:
        self._push(messages.PUSH_TO_CHANNEL, apart=self._list(["ours 1"]), unstored=self._list(["unstored"]))

    def find_connection(self) -> None:
        self._run(connections.OF_LISTENER, channel_id="ours", listener_id="ours 3")

    def feed(self) -> None:
        waiting = self._list(["ours", *(f"empty {n}" for n in range(WAITING))])
        with self.database.transaction():
            self._run(messages.TAKE_OF_EACH, queue_ids=waiting, count=PAGE, bytes=MIB)

    def append(self) -> None:
        self._push(events.APPEND, listener_id=None)

    def append_dispatch(self) -> None:
        self._push(events.APPEND_DISPATCH, listener_id="ours 3")

    def state(self) -> None:
        self._run(events.STATE, channel_id="ours", listener_id="ours 3", seen=7)

    def events_after(self) -> None:
        self._run(events.AFTER, channel_id="ours", after=SHORT // 2, count=PAGE, bytes=MIB)

    def events_of_listener(self) -> None:
        between = {"after": SHORT // 2, "last": DEPTH}
        self._run(events.OF_LISTENER, channel_id="ours", listener_id="ours 3", count=PAGE, bytes=MIB, **between)

    def tail_start(self) -> None:
        self._run(events.TAIL_START, channel_id="ours", count=PAGE, bytes=MIB)

    def last_positions(self) -> None:
        self._run(events.LAST_POSITIONS, channel_ids=self._list(["ours", *(f"empty {n}" for n in range(10))]))

    def expire(self) -> None:
        with self.database.transaction():
            self._run(events.EXPIRE, channel_id="ours", count=PAGE)
            self._run(events.TRIM, channel_id="ours")

    def mark_seen(self) -> None:
        self._run(connections.MARK_SEEN, connection_ids=self._list(f"ours {n}" for n in range(10)))

    def find_missing(self) -> None:
        self._run(connections.MISSING, connection_ids=self._list(f"ours {n}" for n in range(10)))


def prepare(measure: Measured, tables: Tables) -> None:
    """Make each call until Postgres keeps its plans, and leave the tables empty."""
    calls = Calls(measure.database)
    for name in ("persist", *LIMITS):  # first the one after which the tables are not empty
        for _ in range(EXECUTIONS):
            with measure.scope():
                getattr(calls, name)()
            if name == "persist":
                with measure.scope():
                    calls.delete_channel()
    tables.execute(*(f"DELETE FROM {table}" for table in ("sse_messages", "sse_events", "sse_event_logs")))
    # All but those that ask for a new plan at each execution.
    assert [sql for sql in measure.statements_without_kept_plan() if "generate_series" not in sql] == []


@pytest.mark.parametrize("state", STATES, ids=lambda state: "-".join(map(str, state)))
def test_a_call_reads_rows_in_proportion_to_what_it_takes_or_loads(state: State, tables: Tables, clock: Clock) -> None:
    when_empty, when_full = STATISTICS[state.statistics]
    tables.analyse(when_empty)
    with measured(tables, state.way) as measure:
        if state.is_prepared:
            prepare(measure, tables)
        tables.fill(state.is_beside_others)
        tables.analyse(when_full)
        calls = Calls(measure.database)
        # A queue may fill within the second for which plans are kept: this statement is right with all of them.
        assert measure.rows_read(calls.take) <= LIMITS["take"]
        clock.now += 2 * session.PLAN_SECONDS
        rows = {name: measure.rows_read(getattr(calls, name)) for name in LIMITS}
        rows["delete_channel"] -= 0 if state.is_beside_others else DEPTH  # the events, which it deletes
        assert {name: number for name, number in rows.items() if number > LIMITS[name]} == {}


def test_a_pop_reads_no_message_of_other_queues(tables: Tables) -> None:
    # Beside queues that are filled in turns, the index of the ids looks as good to the planner as that of the queue.
    tables.execute(
        "INSERT INTO sse_messages (queue_id, message_type, message) SELECT 'theirs ' || n % 3, 'm', message "
        f"FROM stock.sse_messages, generate_series(1, {DEPTH}) AS n"
    )
    tables.analyse("ANALYZE")
    with measured(tables, "own engine") as measure:
        calls = Calls(measure.database)
        for _ in range(EXECUTIONS):
            calls.pop_from_empty()
        assert measure.rows_read(calls.pop_from_empty) == 0


@pytest.mark.parametrize("way", [*SINGLE, *OTHER_WAYS])
def test_the_measurement_counts_each_row_that_is_read(way: str, tables: Tables) -> None:
    tables.fill(beside_others=False)
    scan = Statement(lambda sql: select(func.max(MessageRow.message_type)))
    one = Statement(lambda sql: select(MessageRow.message).where(MessageRow.id == bindparam("id")))
    with measured(tables, way) as measure:
        run = measure.database.executor.run
        assert measure.rows_read(lambda: run(scan)) == DEPTH + CONNECTIONS
        assert measure.rows_read(lambda: run(one, id=1)) == 1
        assert measure.rows_read(lambda: [run(one, id=1) for _ in range(30)]) == 30
