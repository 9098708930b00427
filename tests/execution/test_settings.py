"""Settings of the server and of the driver, wherever they are made, change no call, or it fails before it has written.

No message has left its table in a call that fails.
"""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from psycopg.adapt import Dumper, Loader
from psycopg.rows import RowFactory, class_row, dict_row, namedtuple_row, scalar_row, tuple_row
from sqlalchemy import URL, create_engine, event, make_url, text

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from support.catalog import conninfo

Take = Callable[[Database], None]
BLOB = b"\x00\xff'\\"

#: Settings of Postgres that change how values are written and read, or how statements are planned and executed.
SETTINGS: dict[str, dict[str, str]] = {
    "values": {
        "DateStyle": "German",
        "IntervalStyle": "iso_8601",
        "TimeZone": "Asia/Kathmandu",
        "bytea_output": "escape",
        "standard_conforming_strings": "off",
        "escape_string_warning": "off",
        "backslash_quote": "on",
        "array_nulls": "off",
        "extra_float_digits": "-15",
        "quote_all_identifiers": "on",
    },
    "transactions": {
        "DateStyle": "SQL, DMY",
        "TimeZone": "<+05>-05",
        "client_encoding": "LATIN1",
        "client_min_messages": "error",
        "default_transaction_isolation": "serializable",
        "default_transaction_deferrable": "on",
        "synchronous_commit": "off",
        "row_security": "off",
        "statement_timeout": "10min",
        "lock_timeout": "10min",
        "idle_in_transaction_session_timeout": "10min",
    },
    "plans": {
        "DateStyle": "Postgres",
        "plan_cache_mode": "force_generic_plan",
        "enable_indexscan": "off",
        "jit_above_cost": "0",
    },
}


@pytest.fixture(scope="module")
def altered(new_postgres: Callable[[], URL]) -> URL:
    """A database whose own settings the tests change."""
    url = new_postgres()
    with Database(url) as database:
        database.upgrade()
    return url


@contextmanager
def defaults(url: URL, settings: dict[str, str]) -> Iterator[None]:
    """Settings that new sessions of a database have meanwhile."""
    alter = f'ALTER DATABASE "{url.database}"'
    with psycopg.connect(conninfo(url), autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(f"{alter} SET \"{name}\" = '{value}'")
        try:
            yield
        finally:
            connection.execute(f"{alter} RESET ALL")


class Way(NamedTuple):
    """How statements reach the driver."""

    own_engine: bool  # of the application, or one that a URL makes
    is_observed: bool  # so that every statement goes through SQLAlchemy


WAYS = [Way(own, observed) for own in (True, False) for observed in (True, False)]


@contextmanager
def database_on(url: URL, way: Way, set_up: Callable[[Any], None] | None = None) -> Iterator[Database]:
    """A database.

    :param set_up: what the application's engine does to its new connections
    """
    engine = create_engine(url) if way.own_engine else None
    if engine and set_up:
        event.listen(engine, "connect", lambda driver, _: set_up(driver))
    with Database(engine or url) as database:
        if way.is_observed:
            event.listen(database.engine, "before_cursor_execute", lambda *_: None)
        yield database
    if engine is not None:
        engine.dispose()


def use_everything(database: Database) -> None:
    """Write and read values of every type that the tables have, by every kind of call."""
    storage, queue = SqlStorageEngine(database), SqlQueue(database, "queue")
    for _ in range(7):  # the last ones are prepared
        storage.upsert("key", {"blob": BLOB, "text": "\\'"})
        assert storage.fetch_one("key") == {"blob": BLOB, "text": "\\'"}
    assert list(storage.fetch_by_prefix("ke")) == [{"blob": BLOB, "text": "\\'"}]
    queue.push(Message("\\m'", BLOB))
    queue.push_many([Message("m", n) for n in range(3)])
    assert len(queue) == 4
    assert queue.pop().payload == BLOB
    with queue.receive() as delivery:
        assert delivery.payload == 0
    taken = queue.take(2)
    queue.put_back(taken)
    assert queue.take(2) == taken
    queue.put_back(taken)
    with database.transaction():
        assert queue.pop().payload == 1
        storage.delete("key")
    with database.engine.connect() as connection:
        (old,) = connection.execute(text("SELECT count(*) FROM sse_messages WHERE queue_id = 'queue'")).one()
        assert old == 1
    assert queue.pop().payload == 2
    database.check()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_the_database_change_no_call(altered: URL, settings: dict[str, str], way: Way) -> None:
    with defaults(altered, settings), database_on(altered, way) as database:
        use_everything(database)


def test_put_back_messages_keep_the_moment_of_their_push_to_the_microsecond(altered: URL) -> None:
    moment = text("SELECT extract(epoch FROM created_at) FROM sse_messages")
    with defaults(altered, SETTINGS["values"]), database_on(altered, Way(True, True)) as database:
        queue = SqlQueue(database, "queue")
        queue.push(Message("m"))
        with database.engine.connect() as connection:
            before = connection.scalar(moment)
        queue.put_back(queue.take(1))
        with database.engine.connect() as connection:
            assert connection.scalar(moment) == before
        queue.clear()


def pop(database: Database) -> None:
    SqlQueue(database, "queue").pop()


def pop_in_a_transaction(database: Database) -> None:
    with database.transaction():
        pop(database)


def join_and_pop(database: Database) -> None:
    with database.engine.connect() as connection:
        try:
            with database.join(connection):
                pop(database)
        finally:
            connection.commit()  # whatever has happened


def is_delivered(clean: URL, opened: Callable[[], AbstractContextManager[Database]], take: Take) -> bool:
    """Whether a message is taken from a database. Where the call fails, the message is still there.

    :param clean: leads to the same database
    :param opened: opens it, with something set up
    """
    with Database(clean) as database:
        queue = SqlQueue(database, "queue")
        queue.push(Message("m", BLOB))
        with opened() as other:
            try:
                take(other)
                is_taken = True
            except RepositoryError as error:
                assert error.__cause__ is not None
                is_taken = False
        assert len(queue) == (0 if is_taken else 1)
        queue.clear()
    return is_taken


class OtherBytes(Loader):
    def load(self, data: Any) -> Any:
        return memoryview(bytes(data))


class NoBytes(Loader):
    def load(self, data: Any) -> Any:
        raise ValueError("no bytes")


class AsText(Loader):
    def load(self, data: Any) -> Any:
        return bytes(data).decode() + " of the application"


class Moments(Loader):
    def load(self, data: Any) -> Any:
        raise ValueError("no moment")


class LoudStrings(Dumper):
    oid = 25

    def dump(self, obj: Any) -> Any:
        return obj.upper().encode()


class NoNumbers(Dumper):
    oid = 20

    def dump(self, obj: Any) -> Any:
        return b"no number"


@contextmanager
def registered(*adapters: tuple[Any, type[Loader] | type[Dumper]]) -> Iterator[None]:
    """Adapters of an application, for all connections of psycopg that are made meanwhile."""
    for kind, adapter in adapters:
        if issubclass(adapter, Dumper):
            psycopg.adapters.register_dumper(kind, adapter)
        else:
            psycopg.adapters.register_loader(kind, adapter)
    try:
        yield
    finally:
        psycopg.postgres.register_default_adapters(psycopg)


#: Adapters of an application, and whether its own engine works with them. That of a URL always does.
ADAPTERS: dict[str, tuple[tuple[Any, Any], bool]] = {
    "bytea as memoryview": (("bytea", OtherBytes), False),
    "bytea that is refused": (("bytea", NoBytes), False),
    "bigint as text": (("int8", AsText), False),
    "text as another text": (("text", AsText), False),
    "another str": ((str, LoudStrings), False),
    "moments that are refused": (("timestamptz", Moments), True),
}


@pytest.mark.parametrize(("adapter", "works"), ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_of_psycopg_loses_no_message(altered: URL, adapter: tuple[Any, Any], works: bool) -> None:
    @contextmanager
    def opened() -> Iterator[Database]:
        with registered(adapter), database_on(altered, way) as database:
            yield database

    for way in WAYS:
        for take in (pop, pop_in_a_transaction):
            assert is_delivered(altered, opened, take) == (works or not way.own_engine), (way, take)
    way = Way(own_engine=True, is_observed=False)
    assert is_delivered(altered, opened, join_and_pop) == works


def test_a_refused_join_leaves_the_transaction_of_the_application_usable(altered: URL) -> None:
    with (
        registered((int, NoNumbers)),
        database_on(altered, Way(True, False)) as database,
        database.engine.begin() as connection,
    ):
        with pytest.raises(RepositoryError), database.join(connection):
            SqlQueue(database, "queue").pop()
        assert connection.scalar(text("SELECT 'usable'")) == "usable"


ROW_FACTORIES: dict[str, tuple[RowFactory[Any], bool]] = {
    "tuples": (tuple_row, True),
    "named tuples": (namedtuple_row, True),
    "dictionaries": (dict_row, False),
    "objects": (class_row(dict), False),
    "the first value": (scalar_row, False),
}


@pytest.mark.parametrize(("factory", "works"), ROW_FACTORIES.values(), ids=ROW_FACTORIES)
def test_a_row_factory_of_psycopg_loses_no_message(altered: URL, factory: RowFactory[Any], works: bool) -> None:
    def opened() -> AbstractContextManager[Database]:
        return database_on(altered, Way(True, is_observed), lambda driver: setattr(driver, "row_factory", factory))

    for is_observed in (True, False):
        for take in (pop, pop_in_a_transaction, join_and_pop):
            assert is_delivered(altered, opened, take) == works, (is_observed, take)


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # SQLAlchemy's, after its fault
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_the_encoding_of_the_client_loses_no_message(altered: URL, encoding: str) -> None:
    url = altered.update_query_dict({"client_encoding": encoding})
    for way in WAYS:
        for take in (pop, pop_in_a_transaction):
            is_taken = is_delivered(altered, lambda way=way: database_on(url, way), take)  # type: ignore[misc]
            assert is_taken == (encoding == "LATIN1"), (way, take)
    gc.collect()  # while the warning is ignored


@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
def test_a_time_limit_of_the_server_loses_no_message(altered: URL, name: str) -> None:
    clean = altered.update_query_dict({"options": f"-c {name}=0"})
    with defaults(altered, {name: "1ms"}):
        for way in WAYS:
            for take in (pop, pop_in_a_transaction):
                is_delivered(clean, lambda way=way: database_on(altered, way), take)  # type: ignore[misc]


# SQLite


@pytest.fixture
def file(tmp_path: Path) -> URL:
    """A SQLite file with tables."""
    url = make_url(f"sqlite:///{tmp_path / 'a.db'}")
    with Database(url) as database:
        database.upgrade()
    return url


@contextmanager
def converted(kind: str, converter: Callable[[bytes], Any]) -> Iterator[None]:
    """A converter of an application, for columns that declare a type."""
    converters: dict[str, Any] = vars(sqlite3)["converters"]
    sqlite3.register_converter(kind, converter)
    try:
        yield
    finally:
        del converters[kind]


def refuse(value: bytes) -> Any:
    raise ValueError("not converted")


CONVERTERS: dict[str, tuple[str, Callable[[bytes], Any], bool]] = {
    "BLOB to memoryview": ("BLOB", memoryview, False),
    "BLOB that is refused": ("BLOB", refuse, False),
    "TEXT to bytes": ("TEXT", bytes, False),
    "DATETIME that is refused": ("DATETIME", refuse, True),
    "BOOLEAN to bool": ("BOOLEAN", lambda value: bool(int(value)), True),
}


@pytest.mark.parametrize(("kind", "converter", "works"), CONVERTERS.values(), ids=CONVERTERS)
@pytest.mark.parametrize("detect_types", [0, sqlite3.PARSE_DECLTYPES])
def test_a_converter_of_sqlite_loses_no_message(
    file: URL, kind: str, converter: Callable[[bytes], Any], works: bool, detect_types: int
) -> None:
    url = file.update_query_dict({"detect_types": str(detect_types)})

    @contextmanager
    def opened() -> Iterator[Database]:
        with converted(kind, converter), database_on(url, way) as database:
            yield database

    for way in WAYS:
        for take in (pop, pop_in_a_transaction):
            assert is_delivered(file, opened, take) == (works or not detect_types), (way, take)
    way = Way(own_engine=True, is_observed=False)
    assert is_delivered(file, opened, join_and_pop) == (works or not detect_types)
    with sqlite3.connect(str(file.database)) as plain:
        assert plain.execute("SELECT name FROM sqlite_master WHERE name LIKE '%samples%'").fetchall() == []
