"""What to write instead: the specification of the errors for wrong URLs, engines, arguments and databases.

Each table has an id, what is tried, and a part of the error's text.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import pytest
from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from psycopg import ClientCursor
from psycopg.rows import namedtuple_row
from sqlalchemy import (
    URL,
    AssertionPool,
    Engine,
    MetaData,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from eric_sse_sql import (
    BlockingSqlQueue,
    ChannelRepository,
    ConnectionRepository,
    Database,
    ListenerRepository,
    PickleCodec,
    QueueRepository,
    SqlQueue,
    SqlStorageEngine,
)
from eric_sse_sql.contract import ERIC_SSE_2_0
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.inmemory import (
    InMemoryChannelRepository,
    InMemoryConnectionRepository,
    InMemoryQueueRepository,
    InMemoryStorage,
)
from support.catalog import table_counts
from support.statements import Record

if not ERIC_SSE_2_0:
    from eric_sse.prefabs import DataProcessingChannel

    from eric_sse_sql import SqlConnectionsFactory, SqlSSEChannel, SqlSSEChannelRepository

Call = TypeVar("Call")
SECRET = "hunter2"
NOT_A_URL = "the text is no URL of a database; write postgresql+psycopg://user:password@host:5432/database, or sqlite:"
AROUND = "has quotes, blanks or a newline around it"
PSYCOPG_3 = "is not supported; write postgresql+psycopg://"
UNSUPPORTED = "is not supported; write postgresql+psycopg://user:password@host:5432/database, or sqlite:///"
ASYNCHRONOUS = "it is asynchronous; pass its URL, or an engine of create_engine()"
ERROR = RepositoryError("it can't be decoded")
ENGINE_OF_IT = "pass its engine, or a URL; join() takes a session or connection"


def table(*rows: tuple[str, Call, str]) -> pytest.MarkDecorator:
    """Runs a test for each row: its id, what is tried, and a part of the error's text."""
    return pytest.mark.parametrize(("tried", "advice"), [pytest.param(*row, id=name) for name, *row in rows])


@contextmanager
def refused(advice: str) -> Iterator[None]:
    """The block raises an error with the advice and a cause, and neither shows the password."""
    with pytest.raises(RepositoryError) as error:
        yield
    assert advice in str(error.value)
    assert error.value.__cause__ is not None
    assert SECRET not in "".join(traceback.format_exception(error.value))


def use(bind: Any, **options: Any) -> None:
    """Make a database and write to it."""
    with Database(bind, **options) as database:
        SqlStorageEngine(database).upsert("key", SECRET)


# What a Database is made from


@table(
    ("another driver, psycopg2", f"postgresql+psycopg2://me:{SECRET}@host/db", f"postgresql+psycopg2 {PSYCOPG_3}"),
    ("another driver, asyncpg", f"postgresql+asyncpg://me:{SECRET}@host/db", f"postgresql+asyncpg {PSYCOPG_3}"),
    ("another driver, pg8000", f"postgresql+pg8000://me:{SECRET}@host/db", f"postgresql+pg8000 {PSYCOPG_3}"),
    ("another driver, psycopg_async", f"postgresql+psycopg_async://me:{SECRET}@host/db", PSYCOPG_3),
    ("psycopg 3 by its version", f"postgresql+psycopg3://me:{SECRET}@host/db", PSYCOPG_3),
    ("postgres and another driver", f"postgres+asyncpg://me:{SECRET}@host/db", f"postgresql+asyncpg {PSYCOPG_3}"),
    ("aiosqlite", "sqlite+aiosqlite:///file.db", "sqlite+aiosqlite is not supported; write sqlite:///"),
    ("sqlcipher", f"sqlite+pysqlcipher://:{SECRET}@/file.db", "write sqlite:///"),
    *(
        (scheme, f"{scheme}://me:{SECRET}@host/db", f"{scheme} {UNSUPPORTED}")
        for scheme in ("mysql", "mariadb", "redis")
    ),
    *((scheme, f"{scheme}://me:{SECRET}@host/db", f"{scheme} {UNSUPPORTED}") for scheme in ("POSTGRESQL", "http")),
    ("sqlite3", "sqlite3:///file.db", f"sqlite3 {UNSUPPORTED}"),
    ("MySQL's driver", f"mysql+pymysql://me:{SECRET}@host/db", f"mysql+pymysql {UNSUPPORTED}"),
    ("SQLite with one slash", "sqlite:/one.db", NOT_A_URL),
    ("SQLite without a slash", "sqlite:file.db", NOT_A_URL),
    ("SQLite with two slashes", "sqlite://relative.db", "three slashes before a relative path, and four before an abs"),
    ("SQLite with a folder as host", "sqlite://folder/file.db", "three slashes"),
    ("SQLite in memory as host", "sqlite://:memory:", NOT_A_URL),
    ("the path of a file", "folder/file.db", NOT_A_URL),
    ("the empty text", "", NOT_A_URL),
    ("a password alone", SECRET, NOT_A_URL),
    ("a missing colon", f"postgresql//me:{SECRET}@host/db", NOT_A_URL),
    ("one slash", f"postgresql:/me:{SECRET}@host/db", NOT_A_URL),
    ("JDBC", f"jdbc:postgresql://me:{SECRET}@host/db", NOT_A_URL),
    ("key words of libpq", f"host=localhost password={SECRET}", NOT_A_URL),
    ("a line of an env file", f"DATABASE_URL=postgresql://me:{SECRET}@host/db", NOT_A_URL),
    ("a port that is no number", f"postgresql://me:{SECRET}@host:port/db", "and a number as port"),
    ("an empty port", f"postgresql://me:{SECRET}@host:/db", "and a number as port"),
    ("an @ in the password", f"postgresql://me:p@{SECRET}@host/db", "write %40 for it"),
    ("an @ and a : in the password", f"postgresql://me:p@ss:{SECRET}@host/db", "%40 for an @ in the password, %3A for"),
    ("blanks around it", f"  postgresql://me:{SECRET}@host/db ", AROUND),
    ("a newline after it", f"postgresql://me:{SECRET}@host/db\n", AROUND),
    ("a newline in it", f"postgresql://me:{SECRET}\n@host/db", "a control character in it; remove"),
    ("quotes around it", f'"postgresql://me:{SECRET}@host/db"', AROUND),
    ("apostrophes around it", f"'sqlite:///{SECRET}.db'", AROUND),
    ("NUL in it", f"sqlite:///{SECRET}\0.db", "a control character in it; remove"),
    ("a lone surrogate in it", f"sqlite:///{SECRET}\ud800.db", "a control character in it; remove"),
    ("a URL object of another driver", make_url("postgresql+asyncpg://host/db"), PSYCOPG_3),
    ("a URL object of another database", make_url("mysql://host/db"), UNSUPPORTED),
    (
        "a misspelt option",
        f"postgresql://me:{SECRET}@host/db?sslmod=require",
        "must be a keyword of https://www.postgr",
    ),
    (
        "an option of psycopg's",
        f"postgresql://me:{SECRET}@host/db?row_factory=dict_row",
        "must be a keyword of https:/",
    ),
    (
        "an option of another library",
        f"postgresql://me:{SECRET}@host/db?pgbouncer=true",
        "must be a keyword of https:/",
    ),
    ("a plugin", "sqlite:///file.db?plugin=missing", "a plugin that the URL names is not installed"),
    ("a timeout that is no number", "sqlite:///file.db?timeout=abc", "timeout is a number of seconds"),
    ("a timeout that is NaN", "sqlite:///file.db?timeout=nan", "timeout is a number of seconds"),
    ("a negative timeout", "sqlite:///file.db?timeout=-1", "timeout is a number of seconds, at most 86,400"),
    ("two timeouts", "sqlite:///file.db?timeout=1&timeout=2", "timeout is a number of seconds"),
    ("a truth value that is none", "sqlite:///file.db?check_same_thread=abc", "check_same_thread is true or false"),
    ("a misspelt option for SQLite", "sqlite:///file.db?timeuot=5", "not one of cached_statements, check_same_thread"),
    (
        "autocommit for SQLite",
        "sqlite:///file.db?isolation_level=IMMEDIATE",
        "not one of cached_statements, check_same",
    ),
    ("mode without uri", "sqlite:///file:file.db?mode=ro", "needs sqlite:///file:path/to/file.db?mode=ro&uri=true"),
    ("a path", Path("file.db"), 'not from PosixPath: write f"sqlite:///{path}"'),
    ("bytes", b"sqlite://", "not from bytes: decode it to a str"),
    ("None", None, "the setting that should hold the URL is missing"),
    ("an asynchronous engine", create_async_engine("sqlite+aiosqlite://"), f"not from AsyncEngine: {ASYNCHRONOUS}"),
    ("its sync_engine", create_async_engine("sqlite+aiosqlite://").sync_engine, f"an AsyncEngine: {ASYNCHRONOUS}"),
    ("its sync_engine, psycopg", create_async_engine("postgresql+psycopg://").sync_engine, ASYNCHRONOUS),
    ("an asynchronous session", AsyncSession(create_async_engine("sqlite+aiosqlite://")), ASYNCHRONOUS),
    ("a maker of asynchronous sessions", async_sessionmaker(), ASYNCHRONOUS),
    ("a session", Session(), f"not from Session: {ENGINE_OF_IT}"),
    ("a maker of sessions", sessionmaker(), ENGINE_OF_IT),
    ("a scoped session", scoped_session(sessionmaker()), ENGINE_OF_IT),
    ("a class", Session, "not from the class Session: write postgresql+psycopg://"),
    *((type(bind).__name__, bind, "a Database is made from a URL or an Engine") for bind in (5, [], {}, MetaData())),
)
def test_what_no_database_is_made_from_is_refused(tried: Any, advice: str) -> None:
    for make in (Database, SqlStorageEngine):
        with refused(advice):
            make(tried)


def test_a_connection_is_refused_in_place_of_its_engine(shared_url: URL) -> None:
    engine = create_engine(shared_url)
    with engine.connect() as connection:
        for tried in (connection, connection.connection.driver_connection):
            with refused(f"not from Connection: {ENGINE_OF_IT}"):
                Database(tried)  # type: ignore[arg-type]
    engine.dispose()


def test_a_database_is_refused_in_place_of_its_engine(database: Database) -> None:
    with refused("not from Database: pass it where a Database is asked for"):
        Database(database)  # type: ignore[arg-type]


def test_the_spelling_of_hosting_platforms_is_taken(migrated_postgres: URL) -> None:
    for url in (migrated_postgres.set(drivername="postgres"), migrated_postgres.set(drivername="postgres+psycopg")):
        with Database(url) as database, Database(url.render_as_string(hide_password=False)) as other:
            database.check()
            other.check()
            assert database.engine.url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize("option", ["timeout=5", "check_same_thread=false", "cached_statements=10", "detect_types=3"])
def test_the_options_of_a_sqlite_url_are_taken(tmp_path: Path, option: str) -> None:
    with Database(f"sqlite:///{tmp_path / 'file.db'}?{option}") as database:
        database.upgrade()
        database.check()


def test_options_of_sqlite_itself_are_taken_with_uri(tmp_path: Path) -> None:
    use_upgraded(f"sqlite:///file:{tmp_path / 'file.db'}?mode=rwc&uri=true")


def use_upgraded(bind: Any) -> None:
    with Database(bind) as database:
        database.upgrade()
        SqlStorageEngine(database).upsert("key", "value")
        assert SqlStorageEngine(database).fetch_one("key") == "value"


# Other arguments of a Database


@table(
    ("notify as text", {"notify": "no"}, "notify= must be a bool, not str"),
    ("notify as number", {"notify": 0}, "notify= must be a bool, not int"),
    ("the class of a codec", {"codec": PickleCodec}, "codec= must be a PickleCodec, not the class PickleCodec"),
    ("a module as codec", {"codec": pickle}, "codec= must be a PickleCodec, not module"),
    ("no codec", {"codec": False}, "codec= must be a PickleCodec, not bool"),
)
def test_an_option_of_another_type_is_refused(shared_url: URL, tried: Any, advice: str) -> None:
    with refused(advice):
        Database(shared_url, **tried)


@table(
    ("the empty text", "", "schema= must be 1 to 63 bytes of UTF-8; leave it out to use the search path"),
    ("64 bytes", "s" * 64, "schema= must be 1 to 63 bytes"),
    ("64 bytes in 32 characters", "ü" * 32, "schema= must be 1 to 63 bytes"),
    ("NUL", "a\0", "schema= must not hold a NUL character"),
    ("a lone surrogate", "\ud800", "schema= must not hold a lone surrogate"),
    ("quotes", '"tenant"', "schema= must be the name without quotes"),
    ("apostrophes", "'tenant'", "schema= must be the name without quotes"),
    ("bytes", b"tenant", "schema= must be a str, not bytes"),
    ("a number", 5, "schema= must be a str, not int"),
    ("a schema that is missing", "missing", "its tables are missing; make them with Database.upgrade()"),
)
def test_what_can_be_no_schema_is_refused(migrated_postgres: URL, tmp_path: Path, tried: Any, advice: str) -> None:
    with refused(advice):
        use(migrated_postgres, schema=tried)
    with refused("schema= is for Postgres; a SQLite file has one"):
        use(f"sqlite:///{tmp_path / 'file.db'}", schema=tried)


# Arguments of calls


def entered(manager: Any) -> None:
    with manager:
        pass


def channel_in(database: Database, replay_seconds: Any = 0) -> Any:
    """A channel that is not stored, whose messages are in a database."""
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database), replay_seconds=60)
    channel.add_listener()
    channel.replay_seconds = replay_seconds
    return channel


def first_event(stream: Any) -> None:
    asyncio.run(stream.__anext__())


class Typeless(MessageContract):
    """A message that has no type."""

    payload = None

    @property
    def type(self) -> str:
        raise AttributeError("no type")


class Connectionless:
    """What only looks like a connection."""

    id = "id"


CALLS: list[tuple[str, Callable[[Database], object], str]] = [
    ("prune by a number", lambda db: db.prune(7), "older_than must be a timedelta, not int; write timedelta(days=7)"),
    ("prune by the longest age", lambda db: db.prune(timedelta.max), "older_than must be from 0 to 365,000 days"),
    ("prune by the lowest age", lambda db: db.prune(timedelta.min), "older_than must be from 0 to 365,000 days"),
    (
        "prune by a negative age",
        lambda db: db.prune(timedelta(microseconds=-1)),
        "older_than must be from 0 to 365,000",
    ),
    (
        "prune unseen by a number",
        lambda db: db.prune(timedelta(0), unseen_for=7),
        "unseen_for must be a timedelta, not int; write timedelta(days=7)",
    ),
    (
        "prune unseen by the longest age",
        lambda db: db.prune(timedelta(0), unseen_for=timedelta.max),
        "unseen_for must be from 0 to 365,000 days",
    ),
    ("upgrade to a number", lambda db: db.upgrade(3), "revision must be a str, not int; leave it out for the newest"),
    ("upgrade to nothing", lambda db: db.upgrade(""), "revision must not be empty; leave it out for the newest one"),
    (
        "join a class",
        lambda db: db.join(Session),
        "not the class Session. Write `with Session(engine) as session, data",
    ),
    (
        "join a maker",
        lambda db: db.join(sessionmaker()),
        "a Session or a Connection; in asyncio, the one that run_sync()",
    ),
    ("join an engine", lambda db: db.join(db.engine), "not Engine. Write `with Session(engine) as session"),
    ("join None", lambda db: db.join(None), "not NoneType. Write `with Session(engine) as session"),
    ("join an asynchronous session", lambda db: db.join(AsyncSession()), "in asyncio, the one that run_sync() gives"),
    (
        "join a session without engine",
        lambda db: entered(db.join(Session())),
        "the session has no engine; make it with",
    ),
    ("a queue on a URL", lambda db: SqlQueue("sqlite://"), "database must be a Database, not str; write Database(url)"),
    (
        "a queue on an engine",
        lambda db: SqlQueue(db.engine),
        "database must be a Database, not Engine; write Database(u",
    ),
    ("a queue id that is a number", lambda db: SqlQueue(db, 5), "a queue id must be a str, not int"),
    ("take a negative number", lambda db: SqlQueue(db).take(-1), "most must be from 0 to 2,147,483,647"),
    ("take too many", lambda db: SqlQueue(db).take(2**63), "most must be from 0 to 2,147,483,647"),
    ("take a fraction", lambda db: SqlQueue(db).take(1.5), "most must be a whole number, not float"),
    ("take True", lambda db: SqlQueue(db).take(True), "most must be a whole number, not bool"),
    ("take None", lambda db: SqlQueue(db).take(None), "most must be a whole number, not NoneType"),
    (
        "push_many of one",
        lambda db: SqlQueue(db).push_many(Message("m")),
        "push_many() takes a list of messages, not Messag",
    ),
    (
        "push_many of None",
        lambda db: SqlQueue(db).push_many(None),
        "push_many() takes a list of messages, not NoneType",
    ),
    ("put back messages", lambda db: SqlQueue(db).put_back([Message("m")]), "put back what take() returned"),
    ("put back None", lambda db: SqlQueue(db).put_back(None), "rows must be an Iterable, not NoneType"),
    ("set aside a message", lambda db: SqlQueue(db).set_aside(Message("m"), ERROR), "set aside what take() returned"),
    ("take bytes by a text", lambda db: SqlQueue(db).take(1, "9"), "max_bytes must be a whole number, not str"),
    *(
        (f"push {value!r}"[:40], lambda db, value=value: SqlQueue(db).push(value), advice)
        for value, advice in (
            (None, "a message must be a MessageContract, not NoneType; write Message(type, payload)"),
            ("text", "a message must be a MessageContract, not str; write Message(type, payload)"),
            (b"bytes", "a message must be a MessageContract, not bytes"),
            ({"type": "m"}, "a message must be a MessageContract, not dict"),
            (Message, "a message must be a MessageContract, not the class Message"),
            (Typeless(), "the type of the message can't be read: AttributeError; the attached cause says why"),
        )
    ),
    ("push_many of bytes", lambda db: SqlQueue(db).push_many(b"m"), "a message must be a MessageContract, not int"),
    ("push_many of texts", lambda db: SqlQueue(db).push_many(["m"]), "a message must be a MessageContract, not str"),
    (
        "one message id for many",
        lambda db: SqlQueue(db).push_many([Message("m")], 5),
        "message_ids must be an Iterable, not int",
    ),
    ("run no function", lambda db: db.run_in_transaction(None), "work must be a function, not NoneType"),
    *(
        (f"a lease of {lease!r}"[:40], lambda db, lease=lease: entered(SqlQueue(db).receive(lease=lease)), advice)
        for lease, advice in (
            *(
                (each, "a lease must be longer than 0 seconds and at most a year (31,536,000")
                for each in (0, -1, 1e300)
            ),
            *((each, "a lease must be longer than 0 seconds") for each in (float("inf"), float("nan"), 10**400)),
            ("30", "a lease must be a number, not str"),
            (True, "a lease must be a number, not bool"),
            (timedelta(seconds=30), "a lease must be a number, not timedelta; write its total_seconds()"),
        )
    ),
    *(
        (f"a timeout of {timeout!r}", lambda db, timeout=timeout: BlockingSqlQueue(db).pop(timeout=timeout), advice)
        for timeout, advice in (
            ("1", "a timeout must be a number, not str"),
            (float("nan"), "a timeout must be a number of seconds, not NaN"),
            (timedelta(seconds=1), "a timeout must be a number, not timedelta; write its total_seconds()"),
        )
    ),
    (
        "a class as codec's allow",
        lambda db: PickleCodec(allow=Message),
        "allow= takes a list, not the class Message; write",
    ),
    (
        "None as codec's allow",
        lambda db: PickleCodec(allow=None),
        "allow= takes a list, not NoneType; write allow=[...]",
    ),
    ("names as codec's allow", lambda db: PickleCodec(allow=["Message"]), "allow= takes classes"),
    ("one signing key", lambda db: PickleCodec(signing_keys=b"k" * 16), "signing_keys= takes a list, not bytes; write"),
    (
        "a text as signing key",
        lambda db: PickleCodec(signing_keys=["k" * 16]),
        "secrets of at least 16 bytes, as bytes",
    ),
    ("unrestricted by a text", lambda db: PickleCodec(unrestricted="no"), "unrestricted= must be a bool, not str"),
    ("listeners on a Database", lambda db: ListenerRepository(db), "not Database; write SqlStorageEngine(database)"),
    (
        "queues on the class",
        lambda db: QueueRepository(SqlStorageEngine),
        "not the class SqlStorageEngine; write SqlSto",
    ),
    (
        "connections on a URL",
        lambda db: ConnectionRepository("sqlite://"),
        "write ConnectionRepository(SqlStorageEngine",
    ),
    ("channels on a Database", lambda db: ChannelRepository(db), "write ChannelRepository(SqlStorageEngine(database))"),
    (
        "no listener",
        lambda db: ListenerRepository(SqlStorageEngine(db)).persist("id"),
        "a listener must be a MessageQueu",
    ),
    (
        "no queue",
        lambda db: QueueRepository(SqlStorageEngine(db)).persist(None),
        "a queue must be a Queue, not NoneType",
    ),
    (
        "no channel",
        lambda db: ChannelRepository(SqlStorageEngine(db)).persist(5),
        "a channel must be an AbstractChannel",
    ),
    (
        "no connection",
        lambda db: ConnectionRepository(SqlStorageEngine(db)).persist(Connectionless()),
        "a connection must be a Connection, not Connectionless",
    ),
    (
        "a connection without a listener",
        lambda db: ConnectionRepository(SqlStorageEngine(db)).persist(Connection(None, SqlQueue(db))),
        "the listener of a connection must be a MessageQueueListener, not NoneType",
    ),
    (
        "a connection without a queue",
        lambda db: ConnectionRepository(SqlStorageEngine(db)).persist(Connection(MessageQueueListener(), "q")),
        "the queue of a connection must be a Queue, not str",
    ),
    ("a storage of a list", lambda db: InMemoryStorage([1]), "objects must be a dict, not list; write {id: object}"),
    (
        "no connection in memory",
        lambda db: InMemoryConnectionRepository({"id": None}),
        "a connection must be a Connection, not NoneType",
    ),
    ("no channel in memory", lambda db: InMemoryChannelRepository({"id": 5}), "a channel must be an AbstractChannel"),
    ("no queue in memory", lambda db: InMemoryQueueRepository({"id": 5}), "a queue must be a Queue, not int"),
]
CHANNEL_CALLS: list[tuple[str, Callable[[Database], object], str]] = (
    []
    if ERIC_SSE_2_0
    else [
        ("channels on a URL", lambda db: SqlSSEChannelRepository("sqlite://"), "database must be a Database, not str"),
        (
            "a factory on an engine",
            lambda db: SqlConnectionsFactory(db.engine),
            "database must be a Database, not Engine",
        ),
        (
            "a queue as class",
            lambda db: SqlConnectionsFactory(db, SqlQueue(db)),
            "queue_class must be SqlQueue, Blocking",
        ),
        ("another class", lambda db: SqlConnectionsFactory(db, Message), "or a subclass, not the class Message"),
        *(
            (f"{name}={value!r}", lambda db, name=name, value=value: SqlSSEChannel(**{name: value}), advice)
            for name, value, advice in (
                ("stream_delay_seconds", "1", "stream_delay_seconds must be a number, not str"),
                ("stream_delay_seconds", -1, "stream_delay_seconds must be from 0 to 31,536,000"),
                ("stream_delay_seconds", float("nan"), "stream_delay_seconds must be from 0 to"),
                ("stream_delay_seconds", None, "stream_delay_seconds must be a number, not NoneType"),
                ("retry_timeout_milliseconds", 2.5, "retry_timeout_milliseconds must be a whole number, not float"),
                ("retry_timeout_milliseconds", -1, "retry_timeout_milliseconds must be from 0 to 2,147,483,647"),
                (
                    "retry_timeout_milliseconds",
                    timedelta(1),
                    "must be a whole number, not timedelta; write its total_se",
                ),
                ("replay_seconds", float("inf"), "replay_seconds must be from 0 to 31,536,000,000"),
                ("replay_seconds", -1, "replay_seconds must be from 0 to"),
                ("replay_seconds", timedelta(1), "replay_seconds must be a number, not timedelta; write its total_sec"),
                ("replay_seconds", True, "replay_seconds must be a number, not bool"),
                ("channel_id", 5, "a channel id must be a str, not int"),
                ("channel_id", "a\0", "a channel id must not hold a NUL character"),
                (
                    "connections_factory",
                    SqlConnectionsFactory,
                    "not the class SqlConnectionsFactory; write SqlConnectio",
                ),
                ("connections_factory", "sqlite://", "connections_factory must be a ConnectionsFactory, not str"),
            )
        ),
        *(
            (
                f"last_event_id={value!r}",
                lambda db, value=value: first_event(SqlSSEChannel().message_stream(MessageQueueListener(), value)),
                f"last_event_id must be a str, not {type(value).__name__}; pass the header Last-Event-ID as it is",
            )
            for value in (5, b"5", 1.5, ["5"], True)
        ),
        *(
            (
                f"a stream of {value!r}"[:40],
                lambda db, value=value: first_event(SqlSSEChannel().message_stream(value)),
                "a listener must be a MessageQueueListener, not "
                f"{type(value).__name__}; write channel.get_listener(its id)",
            )
            for value in (None, "id")
        ),
        *(
            (
                f"broadcast {value!r} with replay_seconds={seconds}",
                lambda db, value=value, seconds=seconds: channel_in(db, seconds).broadcast(value),
                f"a message must be a MessageContract, not {type(value).__name__}",
            )
            for value in (None, "text")
            for seconds in (0, 60)
        ),
        ("register no listener", lambda db: SqlSSEChannel().register_listener(None), "a listener must be a MessageQ"),
        (
            "connect no listener",
            lambda db: SqlConnectionsFactory(db).create("id"),
            "a listener must be a MessageQueueListener, not str",
        ),
        (
            "register no connection",
            lambda db: SqlSSEChannel().register_connection(None),
            "must be a Connection, not No",
        ),
        (
            "register a connection without a listener",
            lambda db: SqlSSEChannel().register_connection(Connection("id", SqlQueue(db))),
            "the listener of a connection must be a MessageQueueListener, not str",
        ),
        (
            "register a connection without a queue",
            lambda db: SqlSSEChannel().register_connection(Connection(MessageQueueListener(), None)),
            "the queue of a connection must be a Queue, not NoneType",
        ),
        (
            "create from None",
            lambda db: SqlSSEChannelRepository(db).create(None),
            "channel_data must be a Mapping, not",
        ),
        (
            "create from another class's parameters",
            lambda db: SqlSSEChannelRepository(db).create({"city": "Rome"}),
            "channel_data must be parameters of SqlSSEChannel, without connections_factory",
        ),
        (
            "2.1: a channel of another class",
            lambda db: SqlSSEChannelRepository(db).persist(DataProcessingChannel(1)),
            "_channel_to_dict() raised AttributeError: the attached cause says why; persist a channel with the rep",
        ),
        (
            "2.1: a channel that could not be loaded",
            lambda db: SqlSSEChannelRepository(db).persist(channel_in(db, "60")),
            "replay_seconds must be a number, not str",
        ),
        (
            "2.1: no listener",
            lambda db: SqlSSEChannelRepository(db).connections_repository.listeners_repository.persist("id", "id"),
            "a listener must be a MessageQueueListener, not str",
        ),
        (
            "2.1: no queue",
            lambda db: SqlSSEChannelRepository(db).connections_repository.queues_repository.persist("id", None),
            "a queue must be a Queue, not NoneType",
        ),
        (
            "2.1: no channel",
            lambda db: SqlSSEChannelRepository(db).persist("id"),
            "a channel must be an AbstractChannel, not str",
        ),
        (
            "2.1: no connection",
            lambda db: SqlSSEChannelRepository(db).connections_repository.persist("id", "connection"),
            "a connection must be a Connection, not str",
        ),
    ]
)


@table(*CALLS, *CHANNEL_CALLS)
def test_an_argument_is_refused_before_the_database_is_asked(
    database: Database, statements: Record, tried: Callable[[Database], object], advice: str
) -> None:
    before = table_counts(database)
    seen = statements(database)
    with refused(advice):
        tried(database)
    assert seen == []
    assert table_counts(database) == before


@pytest.mark.parametrize("timeout", [0, -1, -(10**400), 0.01], ids=lambda timeout: str(timeout)[:9])
def test_a_short_timeout_asks_once(database: Database, timeout: float) -> None:
    with pytest.raises(NoMessagesException):
        BlockingSqlQueue(database).pop(timeout=timeout)


@pytest.mark.parametrize("timeout", [None, float("inf"), 10**400, 1e300], ids=lambda timeout: str(timeout)[:9])
def test_a_timeout_of_any_length_waits_for_a_message(database: Database, timeout: float) -> None:
    queue = BlockingSqlQueue(database, "queue")
    pushing = threading.Timer(0.1, lambda: SqlQueue(database, "queue").push(Message("m")))
    pushing.start()
    assert queue.pop(timeout=timeout).type == "m"
    pushing.join()


def test_nothing_is_taken_when_no_message_is_asked_for(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("m"))
    assert queue.take(0) == []
    assert len(queue) == 1


# Engines of an application


STREAMS = "for which Postgres declares a cursor, and it declares none for a statement that writes"


@table(
    (
        "schema_translate_map",
        {"schema_translate_map": {None: "other"}},
        "has a schema_translate_map, which this package",
    ),
    ("stream_results", {"stream_results": True}, f"has stream_results, {STREAMS}"),
    ("yield_per", {"yield_per": 100}, f"has yield_per, {STREAMS}"),
)
def test_an_execution_option_that_is_not_honoured_is_refused(shared_url: URL, tried: Any, advice: str) -> None:
    engine = create_engine(shared_url)
    (option,) = tried
    with refused(f"the engine {advice}"):
        Database(engine.execution_options(**tried))
    with Database(engine.execution_options(**tried).execution_options(**{option: None})) as database:
        before = table_counts(database)
        for connect in (
            lambda: engine.connect().execution_options(**tried),
            lambda: Session(engine.execution_options(**tried)),
        ):
            with closing(connect()) as joined, refused(f"the connection {advice}"), database.join(joined):
                SqlQueue(database).push(Message("m"))
        with Session(engine) as session:
            session.connection(execution_options=tried)
            with refused(f"the connection {advice}"), database.join(session):
                SqlQueue(database).push(Message("m"))
            session.commit()
        assert table_counts(database) == before
    engine.dispose()


def test_a_map_to_the_schema_of_the_database_is_taken(migrated_postgres: URL) -> None:
    engine = create_engine(migrated_postgres).execution_options(schema_translate_map={None: "public"})
    with Database(engine, schema="public") as database, Session(engine) as session, database.join(session):
        SqlQueue(database, "queue").push(Message("m"))
        assert SqlQueue(database, "queue").pop().type == "m"
    engine.dispose()


def test_an_engine_that_only_reads_is_refused(migrated_postgres: URL) -> None:
    with refused("the engine has postgresql_readonly, which single statements, in autocommit, do not follow"):
        Database(create_engine(migrated_postgres).execution_options(postgresql_readonly=True))


@pytest.mark.parametrize("pool", [StaticPool, SingletonThreadPool, AssertionPool])
def test_a_pool_whose_connections_threads_share_is_refused(shared_url: URL, pool: Any) -> None:
    with refused(f"the engine has {pool.__name__}, which"):
        Database(create_engine(shared_url, poolclass=pool))


@table(
    (
        "paramstyle",
        {"paramstyle": "numeric_dollar"},
        "the engine has a paramstyle, which psycopg's own cursors do not re",
    ),
    (
        "server_side_cursors",
        {"server_side_cursors": True},
        "the engine has server_side_cursors, which work in a transa",
    ),
)
@pytest.mark.filterwarnings("ignore:.*server_side_cursors.*deprecated")
def test_an_option_of_a_postgres_engine_that_is_not_honoured_is_refused(
    migrated_postgres: URL, tried: Any, advice: str
) -> None:
    with refused(advice):
        Database(create_engine(migrated_postgres, **tried))


@table(
    (
        "rows as dictionaries",
        {"row_factory": lambda cursor, row: {"message": row}},
        "have a row_factory or text_factory",
    ),
    ("text as bytes", {"text_factory": bytes}, "leave both as they are, or set row_factory to sqlite3.Row"),
)
def test_a_sqlite_connection_that_returns_something_else_is_refused(tmp_path: Path, tried: Any, advice: str) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'file.db'}")
    use_upgraded(engine)
    engine.dispose()

    @event.listens_for(engine, "connect")
    def set_factories(connection: sqlite3.Connection, record: object) -> None:
        for name, factory in tried.items():
            setattr(connection, name, factory)

    with Database(engine) as database:
        for call in (lambda: SqlQueue(database).pop(), lambda: entered(database.transaction())):
            with refused(advice):
                call()
    assert engine.pool.checkedout() == 0
    engine.dispose()


def return_rows(connection: sqlite3.Connection, record: object) -> None:
    connection.row_factory = sqlite3.Row


# What create_engine() and execution_options() are given, and honoured or without effect on this package.
ANY_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "NullPool": {"poolclass": NullPool},
    "QueuePool": {"poolclass": QueuePool},
    "a pool of one": {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5},
    "future": {"future": True},
    "pool_reset_on_return none": {"pool_reset_on_return": None},
    "pool_reset_on_return commit": {"pool_reset_on_return": "commit"},
    "pool_pre_ping": {"pool_pre_ping": True},
    "pool_recycle": {"pool_recycle": 0},
    "query_cache_size": {"query_cache_size": 0},
    "hide_parameters": {"hide_parameters": True},
    "plugins": {"plugins": []},
    "serializable": {"isolation_level": "SERIALIZABLE"},
    "autocommit": {"isolation_level": "AUTOCOMMIT"},
    **{
        f"{option}={value}": {"execution_options": {option: value}}
        for option, value in {
            "no_parameters": True,
            "max_row_buffer": 1,
            "compiled_cache": None,
            "preserve_rowcount": True,
            "logging_token": "token",
            "insertmanyvalues_page_size": 1,
            "isolation_level": "SERIALIZABLE",
        }.items()
    },
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "postgres": ANY_OPTIONS
    | {
        "repeatable read": {"isolation_level": "REPEATABLE READ"},
        "autocommit of the driver": {"connect_args": {"autocommit": True}},
        "cursors that bind": {"connect_args": {"cursor_factory": ClientCursor}},
        "rows as named tuples": {"connect_args": {"row_factory": namedtuple_row}},
        "statements prepared at once": {"connect_args": {"prepare_threshold": 0}},
        "statements never prepared": {"connect_args": {"prepare_threshold": None}},
        "a serializable session": {"connect_args": {"options": "-c default_transaction_isolation=serializable"}},
        "autocommit of the driver, serializable": {
            "connect_args": {"autocommit": True, "options": "-c default_transaction_isolation=serializable"}
        },
        "deferrable": {"execution_options": {"postgresql_deferrable": True}},
        "client_encoding": {"client_encoding": "latin1"},
        "paramstyle": {"paramstyle": "format"},
    },
    "sqlite-file": ANY_OPTIONS
    | {
        "read uncommitted": {"isolation_level": "READ UNCOMMITTED"},
        "autocommit of the driver": {"connect_args": {"isolation_level": None}},
        "immediate": {"connect_args": {"isolation_level": "IMMEDIATE"}},
        "detect_types": {"connect_args": {"detect_types": sqlite3.PARSE_DECLTYPES}},
        "native_datetime": {"native_datetime": True},
        "cached_statements": {"connect_args": {"cached_statements": 0}},
        "rows as sqlite3.Row": {"connect": return_rows},
        **{f"paramstyle {style}": {"paramstyle": style} for style in ("named", "numeric", "pyformat", "format")},
    },
}


class Settings(NamedTuple):
    """What an application finds set on a connection."""

    autocommit: Any
    isolation_level: Any


def driver_settings(engine: Engine) -> Settings:
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        is_sqlite = engine.dialect.name == "sqlite"
        level = driver.isolation_level if is_sqlite else connection.get_isolation_level()
        return Settings(getattr(driver, "autocommit", None), level)


def work_through(database: Database) -> None:
    """Use each way to the database. It is empty before and after."""
    storage, queue = SqlStorageEngine(database), SqlQueue(database, "queue")
    storage.upsert("key", "value")
    assert (storage.fetch_one("key"), list(storage.fetch_all())) == ("value", ["value"])
    with suppress(KeyError), database.transaction():
        storage.upsert("key", "other")
        raise KeyError
    assert storage.fetch_one("key") == "value"
    storage.delete("key")
    queue.push(Message("m", 1))
    queue.push_many([Message("m", 2), Message("m", 3)])
    assert (len(queue), queue.pop().payload) == (3, 1)
    with queue.receive() as delivery:
        assert delivery.payload == 2
    queue.put_back(queue.take(5))
    with database.transaction():
        assert queue.pop().payload == 3
    connection = Connection(MessageQueueListener(), queue)
    connections = ConnectionRepository(storage)
    connections.persist(connection)
    (stored,) = ids_of_connections(database)
    assert connections.load_one(stored).queue.id == "queue"
    connections.delete(stored)


def ids_of_connections(database: Database) -> Iterable[str]:
    with database.transaction():
        return list(database.connection().scalars(text("SELECT id FROM sse_connections")))


@pytest.mark.parametrize(
    ("shared_url", "options"),
    [pytest.param(kind, given, id=f"{kind}-{name}") for kind in OPTIONS for name, given in OPTIONS[kind].items()],
    indirect=["shared_url"],
)
@pytest.mark.parametrize("observed", [False, True], ids=["quiet", "observed"])
def test_an_option_of_an_engine_changes_nothing(shared_url: URL, options: dict[str, Any], observed: bool) -> None:
    given = dict(options)
    connect = given.pop("connect", None)
    engine = create_engine(shared_url, **given)
    if connect is not None:
        event.listen(engine, "connect", connect)
    if observed:
        event.listen(engine, "before_cursor_execute", lambda *arguments: None)
    before = driver_settings(engine)
    in_autocommit = before.isolation_level is None if engine.dialect.name == "sqlite" else before.autocommit
    with Database(engine) as database:
        work_through(database)
        database.prune(timedelta(0))
        with Session(engine) as session:
            if in_autocommit:
                with pytest.raises(RepositoryError, match="the connection is in autocommit"), database.join(session):
                    SqlQueue(database).push(Message("m"))
            else:
                with database.join(session):
                    work_through(database)
                session.rollback()
        assert set(table_counts(database).values()) == {0}
    assert driver_settings(engine) == before
    if isinstance(engine.pool, QueuePool):
        assert engine.pool.checkedout() == 0
    engine.dispose()


# Sessions and connections that can't be joined


@table(
    (
        "a closed connection",
        lambda engine: closed(engine),
        "the connection or its transaction is closed; join it while i",
    ),
    (
        "a session not begun",
        lambda engine: Session(engine, autobegin=False),
        "the session was not begun; call session.b",
    ),
    ("a session without engine", lambda engine: Session(), "the session has no engine; make it with Session(engine)"),
)
def test_a_session_that_can_not_be_joined_is_refused(
    shared_url: URL, tried: Callable[[Engine], Any], advice: str
) -> None:
    engine = create_engine(shared_url)
    with Database(shared_url) as database, refused(advice), database.join(tried(engine)):
        SqlQueue(database).push(Message("m"))
    engine.dispose()


def closed(engine: Engine) -> Any:
    connection = engine.connect()
    connection.close()
    return connection


@pytest.mark.filterwarnings("ignore:.*never awaited:RuntimeWarning")  # SQLAlchemy's, with psycopg
def test_the_session_of_an_asynchronous_one_is_joined_inside_run_sync_only(shared_url: URL) -> None:
    asynchronous = "sqlite+aiosqlite" if shared_url.get_backend_name() == "sqlite" else "postgresql+psycopg"
    session = AsyncSession(create_async_engine(shared_url.set(drivername=asynchronous)))
    advice = "inside AsyncSession.run_sync(), join the session that it gives"
    with Database(shared_url) as database, refused(advice), database.join(session.sync_session):
        pass
    del session
    gc.collect()  # while the warning is ignored


# Faults of a Postgres server


@pytest.fixture(scope="module")
def roles(new_postgres: Callable[[], URL]) -> Iterator[URL]:
    """A database whose roles each meet a fault."""
    url = new_postgres()
    with Database(url) as database:
        database.upgrade()
    owner = create_engine(url, isolation_level="AUTOCOMMIT")
    settings = {
        "advice_reads": "SET default_transaction_read_only = on",
        "advice_hurries": "SET statement_timeout = '100ms'",
        "advice_gives_up": "SET lock_timeout = '100ms'",
        "advice_crowded": "CONNECTION LIMIT 0",
        "advice_locked_out": "NOLOGIN",
        "advice_without_rights": "LOGIN",
    }
    with owner.connect() as connection:
        for role, setting in settings.items():
            connection.execute(text(f"CREATE ROLE {role} LOGIN"))
            connection.execute(text(f"ALTER ROLE {role} {setting}"))
            if role != "advice_without_rights":
                connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
    yield url
    with owner.connect() as connection:
        for role in settings:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
    owner.dispose()


@table(
    ("no such database", {"database": "missing"}, "the server has no database of this name; check the name at the end"),
    ("no such role", {"username": "missing"}, "the server refuses this user or password; check both in the URL"),
    ("a role that may not log in", {"username": "advice_locked_out"}, "the server refuses this user or password"),
    ("too many connections", {"username": "advice_crowded"}, "the server allows no more connections; close some"),
    (
        "no rights",
        {"username": "advice_without_rights"},
        "this role lacks a right; let the owner of the tables run GRANT",
    ),
    ("a read-only role", {"username": "advice_reads"}, "the database is read-only; connect to the primary server"),
    ("a misspelt value", {"query": {"sslmode": "requre"}}, "libpq does not know an option of the URL, or its value"),
    (
        "a value that is no number",
        {"query": {"connect_timeout": "abc"}},
        "libpq does not know an option of the URL, or",
    ),
    (
        "a port beyond all",
        {"query": {"host": "localhost", "port": "99999"}},
        "check what stands after the ? and the port",
    ),
    (
        "an unknown setting",
        {"query": {"options": "-c missing=1"}},
        "libpq does not know an option of the URL, or its v",
    ),
    ("a closed port", {"query": {"host": "localhost", "port": "1"}}, "the server can't be reached"),
    ("a host that is none", {"query": {"host": "missing.invalid"}}, "the server can't be reached"),
)
@pytest.mark.parametrize("engine", ["own engine", "application's engine"])
def test_a_fault_of_a_connection_says_what_to_do(roles: URL, tried: dict[str, Any], advice: str, engine: str) -> None:
    changes = dict(tried)
    url = roles.update_query_dict(changes.pop("query", {})).set(**changes)
    made = create_engine(url)
    with refused(advice):
        use(url if engine == "own engine" else made)
    made.dispose()


@table(
    ("statement_timeout", "advice_hurries", "the statement was cancelled, as by statement_timeout; raise that"),
    ("lock_timeout", "advice_gives_up", "another transaction holds a lock for longer than lock_timeout; end that one"),
)
def test_a_statement_that_took_too_long_says_what_to_do(roles: URL, tried: str, advice: str) -> None:
    engine = create_engine(roles)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE kv_entries"))
        with refused(advice):
            use(roles.set(username=tried))
    engine.dispose()


def test_a_server_that_is_no_postgres_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with refused("the server does not answer as Postgres does; check host and port of the URL"):
            use(f"postgresql://me:{SECRET}@127.0.0.1:{server.getsockname()[1]}/db?sslmode=prefer")
        thread.join()


@table(
    ("08006", "08006", "the server can't be reached"),
    ("25006", "25006", "is read-only"),
    (
        "26000",
        "26000",
        "write Database(url, notify=False), or give the engine connect_args={'prepare_threshold': None}",
    ),
    ("28P01", "28P01", "the server refuses this user or password"),
    ("3D000", "3D000", "the server has no database of this name"),
    ("40001", "40001", "the transaction conflicts with another one; roll it back and run it again"),
    ("40P01", "40P01", "run it again"),
    ("42501", "42501", "this role lacks a right"),
    ("42P05", "42P05", "a prepared statement is not there"),
    ("53100", "53100", "the disk is full"),
    ("53200", "53200", "the server has no memory or another resource left"),
    ("53300", "53300", "the server allows no more connections"),
    ("55P03", "55P03", "another transaction holds a lock for longer than lock_timeout"),
    ("57014", "57014", "the statement was cancelled, as by statement_timeout"),
    ("57P01", "57P01", "the server can't be reached"),
    ("22P05", "22P05", "use one made with ENCODING 'UTF8'"),
    ("22012, which has no advice", "22012", "the database refused it with DivisionByZero; the attached cause says why"),
)
def test_a_sqlstate_says_what_to_do(migrated_postgres: URL, tried: str, advice: str) -> None:
    engine = create_engine(migrated_postgres)
    with engine.connect() as connection, refused(advice), repository_errors("could not run"):
        connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{tried}'; END $$")
    engine.dispose()


@pytest.fixture(scope="module")
def other_encodings(postgres_server: URL) -> Iterator[dict[str, URL]]:
    names = {"SQL_ASCII": "advice_sql_ascii", "LATIN1": "advice_latin1"}
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for encoding, name in names.items():
            connection.execute(
                text(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
            )
    yield {encoding: postgres_server.set(database=name) for encoding, name in names.items()}
    with admin.connect() as connection:
        for name in names.values():
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # SQLAlchemy's, after its fault
@pytest.mark.parametrize("engine", ["own engine", "application's engine"])
def test_an_sql_ascii_database_is_an_error_that_says_what_to_do(other_encodings: dict[str, URL], engine: str) -> None:
    url = other_encodings["SQL_ASCII"]
    made = create_engine(url)
    with Database(url if engine == "own engine" else made) as database:
        for call in (database.upgrade, database.check, lambda: SqlQueue(database).push(Message("m"))):
            with refused("the encoding of the database is SQL_ASCII, which returns bytes, not text"):
                call()
    made.dispose()
    gc.collect()  # while the warning is ignored


def test_an_sql_ascii_database_works_with_a_client_encoding(other_encodings: dict[str, URL]) -> None:
    use_upgraded(other_encodings["SQL_ASCII"].update_query_dict({"client_encoding": "utf8"}))


def test_a_character_that_the_database_does_not_have_is_an_error_that_says_so(other_encodings: dict[str, URL]) -> None:
    for encoding in ({}, {"client_encoding": "utf8"}):
        with Database(other_encodings["LATIN1"].update_query_dict(encoding)) as database:
            database.upgrade()
            SqlStorageEngine(database).upsert("ü", "€")
            with refused("use one made with ENCODING 'UTF8'"):
                SqlStorageEngine(database).upsert("€", "value")


# Faults of a SQLite file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.db"
    with Database(f"sqlite:///{path}") as database:
        database.upgrade()
    return path


@table(
    ("a folder that is missing", "{folder}/missing/file.db", "that its folder exists, and the rights on both"),
    ("a folder", "{folder}", "the SQLite file can't be opened; check the path of the URL, with four slashes"),
    ("the home folder by its sign", "~/missing/file.db", "the SQLite file can't be opened; check the path of the URL"),
    ("another kind of file", "{folder}/text.db", "it is another kind of file, or encrypted"),
    ("mode=ro", "file:{folder}/file.db?mode=ro&uri=true", "the SQLite database is read-only; check mode= in the URL"),
)
@pytest.mark.parametrize("engine", ["own engine", "application's engine"])
def test_a_fault_of_a_file_says_what_to_do(file: Path, tried: str, advice: str, engine: str) -> None:
    (file.parent / "text.db").write_text("text " * 1000)
    url = f"sqlite:///{tried.format(folder=file.parent)}"
    made = create_engine(url)
    with refused(advice):
        use(url if engine == "own engine" else made)
    made.dispose()


def test_a_sqlite_that_is_too_old_says_which_one_works(file: Path) -> None:
    older = SimpleNamespace(**{**vars(sqlite3), "sqlite_version_info": (3, 34, 1), "sqlite_version": "3.34.1"})
    oldest = SimpleNamespace(**{**vars(sqlite3), "sqlite_version_info": (3, 35, 0), "sqlite_version": "3.35.0"})
    with refused("SQLite 3.34.1 is too old; 3.35 is the oldest release that works"):
        Database(create_engine(f"sqlite:///{file}", module=older))
    use(create_engine(f"sqlite:///{file}", module=oldest, poolclass=NullPool))


def test_a_full_file_says_so(file: Path) -> None:
    engine = create_engine(f"sqlite:///{file}", pool_size=1, max_overflow=0)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with Database(engine) as database, refused("the disk is full, or the file has its maximum size; make room"):
        SqlStorageEngine(database).upsert("key", b"x" * 1_000_000)
    engine.dispose()


def test_a_disk_that_takes_no_more_of_the_file_says_so(file: Path) -> None:
    resource: Any = pytest.importorskip("resource", reason="this system limits the size of no file")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Database(f"sqlite:///{file}") as database:
        storage = SqlStorageEngine(database)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        try:
            with refused("the disk has failed, or can't take the file"):
                storage.upsert("key", b"x" * 2_000_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        storage.upsert("key", b"x" * 2_000_000)


def test_a_damaged_file_says_so(file: Path) -> None:
    with file.open("r+b") as pages:
        pages.seek(4096)
        pages.write(b"x" * (file.stat().st_size - 4096))
    with Database(f"sqlite:///{file}") as database, refused("the SQLite file is damaged"):
        SqlStorageEngine(database).upsert("key", 1)


def test_a_connection_of_another_thread_says_what_to_do(tmp_path: Path) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": True})
    made: list[sqlite3.Connection] = []
    event.listen(engine, "connect", lambda connection, _: made.append(connection))
    with Database(engine) as database:
        database.upgrade()
        errors: list[RepositoryError] = []

        def push() -> None:
            try:
                SqlQueue(database).push(Message("m"))
            except RepositoryError as error:
                errors.append(error)

        thread = threading.Thread(target=push)
        thread.start()
        thread.join()
    assert "connect_args={'check_same_thread': False}" in str(errors[0])
    engine.dispose()
    for connection in made:  # the pool has tried to close it in the other thread
        connection.close()


# psycopg


IMPORTS = {
    "no psycopg": """
        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.partition(".")[0] == "psycopg":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Missing())
    """,
    "no libpq": """
        sys.modules["psycopg_c"] = sys.modules["psycopg_binary"] = None
        ctypes.util.find_library = lambda name: None
    """,
    "another implementation": "os.environ['PSYCOPG_IMPL'] = 'c'; sys.modules['psycopg_c'] = None",
}


@table(
    ("no psycopg", "no psycopg", 'psycopg is not installed; run `pip install "psycopg[binary]"`'),
    ("no libpq", "no libpq", 'psycopg finds no libpq; run `pip install "psycopg[binary]"`, which brings one'),
    ("another implementation", "another implementation", 'psycopg finds no libpq; run `pip install "psycopg[binary]"`'),
)
def test_what_psycopg_needs_is_said(tried: str, advice: str, tmp_path: Path) -> None:
    program = f"""
import ctypes.util, importlib.abc, os, sys, textwrap
exec(textwrap.dedent({IMPORTS[tried]!r}))
from eric_sse_sql import Database
from eric_sse.exception import RepositoryError
Database("sqlite://").upgrade()
for url in ("postgresql://host/db", "postgres://host/db", "postgresql+psycopg2://host/db"):
    try:
        Database(url)
    except RepositoryError as error:
        print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PSYCOPG_IMPL"}
    command = [sys.executable, "-c", program]  # not in the checkout, whose package would hide the installed one
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    first, second, third = run.stdout.splitlines()
    assert advice in first and advice in second
    assert f"postgresql+psycopg2 {PSYCOPG_3}" in third
