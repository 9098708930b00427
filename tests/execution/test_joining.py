"""What ``Database.join`` refuses, before anything is written and without harm to the transaction of the application."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from eric_sse_sql import Database, SqlQueue

ORDER = text("INSERT INTO orders VALUES (:number)")


@pytest.fixture
def database(shared_url: URL) -> Iterator[Database]:
    with Database(shared_url) as made:
        with made.transaction():
            made.connection().execute(text("CREATE TABLE orders (number INTEGER PRIMARY KEY)"))
        yield made
        with made.transaction():
            made.connection().execute(text("DROP TABLE orders"))


def stored(database: Database) -> tuple[list[int], int]:
    """The numbers of the orders, and how many messages there are."""
    with database.transaction():
        numbers = list(database.connection().scalars(text("SELECT number FROM orders ORDER BY number")))
    return numbers, len(SqlQueue(database, "q"))


# Connections in autocommit

IN_AUTOCOMMIT: dict[str, dict[str, Any]] = {
    "sqlalchemy's option": {"isolation_level": "AUTOCOMMIT"},
    "the driver's option": {},  # as below
    "the standard library's option": {"connect_args": {"autocommit": True}},  # Python 3.12
}
DRIVER_OPTION = {"sqlite": {"isolation_level": None}, "postgresql": {"autocommit": True}}


@contextmanager
def engine_in_autocommit(database: Database, kind: str) -> Iterator[Engine]:
    if kind == "the package's engine":
        yield database.engine
        return
    name = database.engine.dialect.name
    options = IN_AUTOCOMMIT[kind] or {"connect_args": DRIVER_OPTION[name]}
    engine = create_engine(database.engine.url, **options)
    yield engine
    engine.dispose()


def kinds(name: str) -> list[str]:
    """The ways to an engine in autocommit that a database has on this Python."""
    found = ["the package's engine", "sqlalchemy's option", "the driver's option"]
    if name == "sqlite" and hasattr(sqlite3.Connection, "autocommit"):
        found.append("the standard library's option")
    return found


@contextmanager
def as_connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@contextmanager
def as_session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@contextmanager
def as_scoped_session(engine: Engine) -> Iterator[scoped_session[Session]]:
    session = scoped_session(sessionmaker(engine))
    yield session
    session.remove()


Bind = Callable[[Engine], Any]
each_bind = pytest.mark.parametrize("bind", [as_connection, as_session, as_scoped_session])


@each_bind
def test_a_connection_in_autocommit_is_refused_before_anything_is_written(database: Database, bind: Bind) -> None:
    for kind in kinds(database.engine.dialect.name):
        with (
            engine_in_autocommit(database, kind) as engine,
            bind(engine) as joined,
            pytest.raises(RepositoryError, match="is in autocommit"),
            database.join(joined),
        ):
            joined.execute(ORDER, {"number": 1})
            SqlQueue(database, "q").push(Message("order", 1))
        assert stored(database) == ([], 0), kind


@each_bind
def test_a_connection_in_autocommit_can_be_joined_once_it_has_begun_a_transaction(
    database: Database, bind: Bind
) -> None:
    for is_committed in (False, True):
        with engine_in_autocommit(database, "the driver's option") as engine:
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
            event.listen(engine, "commit", lambda connection: connection.exec_driver_sql("COMMIT"))
            event.listen(engine, "rollback", lambda connection: connection.exec_driver_sql("ROLLBACK"))
            with bind(engine) as joined:
                joined.execute(ORDER, {"number": 1})
                with database.join(joined):
                    SqlQueue(database, "q").push(Message("order", 1))
                (joined.commit if is_committed else joined.rollback)()
        assert stored(database) == (([1], 1) if is_committed else ([], 0))


# Roles without the rights that a hardened server takes away

FUNCTIONS = "pg_control_system()", "pg_postmaster_start_time()", "pg_postmaster_start_time(), pg_control_system()"


def alias(url: URL, folder: Path) -> URL:
    """Another address of the same server, so that the addresses do not tell that it is the same."""
    host = str(url.query.get("host", url.host))
    if not host.startswith("/"):
        return url.update_query_dict({"host": "another.name", "hostaddr": "127.0.0.1"})
    (folder / "link").symlink_to(host)
    return url.update_query_dict({"host": str(folder / "link")})


@pytest.fixture(params=["", *FUNCTIONS], ids=lambda name: f"without {name}" if name else "with all rights")
def hardened(
    request: pytest.FixtureRequest, new_postgres: Callable[[], URL], postgres_server: URL
) -> Iterator[tuple[URL, str]]:
    """A database, and the name of a role that may not execute some functions in it."""
    url = new_postgres()
    role = f"{url.database}_role"
    admin = create_engine(url)
    with Database(url) as database, admin.begin() as connection:
        database.upgrade()
        connection.execute(text("CREATE TABLE orders (number INTEGER PRIMARY KEY)"))
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
        for function in filter(None, request.param.split(", ")):
            connection.execute(text(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"))
    yield url, role
    with admin.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    admin.dispose()


@pytest.mark.parametrize("is_alias", [False, True])
def test_a_role_without_rights_joins_or_is_refused_and_its_transaction_stays_usable(
    hardened: tuple[URL, str], is_alias: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, role = hardened
    as_role = {"options": f"-c role={role}"}
    theirs = create_engine(alias(url, tmp_path) if is_alias else url, connect_args=as_role)
    own = create_engine(url, connect_args=as_role)
    with Database(own) as database:
        with theirs.begin() as connection:
            assert connection.scalar(text("SELECT current_user")) == role
            connection.execute(ORDER, {"number": 1})
            is_joined = True
            try:
                with database.join(connection):
                    SqlQueue(database, "q").push(Message("order", 1))
            except RepositoryError as error:
                is_joined = False
                assert "with the same host, port and name" in str(error)
            connection.execute(ORDER, {"number": 2})
        with theirs.connect() as connection:
            assert list(connection.scalars(text("SELECT number FROM orders ORDER BY number"))) == [1, 2]
        assert len(SqlQueue(database, "q")) == is_joined
        # The start of the server tells that it is the same; where the addresses do, nothing is asked.
        needs = "pg_postmaster_start_time()" if is_alias else None
        assert is_joined == (needs is None or needs not in request.node.callspec.params["hardened"])
    theirs.dispose()
    own.dispose()


# Options of an engine that statements would not follow


@pytest.mark.parametrize("translation", [{None: "b"}, {None: "b", "a": "c"}])
def test_an_engine_that_translates_the_schema_is_refused(migrated_postgres: URL, translation: dict[Any, str]) -> None:
    engine = create_engine(migrated_postgres)
    with pytest.raises(RepositoryError, match=r"schema_translate_map.*Database\(engine, schema=\.\.\.\)"):
        Database(engine.execution_options(schema_translate_map=translation))
    with pytest.raises(RepositoryError, match="schema_translate_map"):
        Database(engine.execution_options(schema_translate_map={"a": "b"}), schema="a")
    with Database(engine.execution_options(schema_translate_map={"of the application": "b"})) as database:
        assert len(SqlQueue(database, "q")) == 0  # the tables of the package are where they were
    engine.dispose()


def test_tenants_have_a_schema_each(new_postgres: Callable[[], URL]) -> None:
    engine = create_engine(new_postgres())
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA a"))
        connection.execute(text("CREATE SCHEMA b"))
    with Database(engine, schema="a") as a, Database(engine, schema="b") as b:
        for database in (a, b):
            database.upgrade()
            SqlQueue(database, "q").push(Message("m", database.schema))
        assert [SqlQueue(database, "q").pop().payload for database in (b, a)] == ["b", "a"]
    engine.dispose()
