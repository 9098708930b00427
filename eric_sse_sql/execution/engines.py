"""Engines: those that this package makes from a URL, and those of the application, which stay as they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Engine

from eric_sse_sql.arguments import kind_of
from eric_sse_sql.execution.driver import Driver
from eric_sse_sql.execution.sqlite import engine as sqlite
from eric_sse_sql.execution.sqlite.driver import SqliteDriver
from eric_sse_sql.execution.url import FORMS, check_driver, parse_url

_ASYNCHRONOUS = (
    "it is asynchronous; pass its URL, or an engine of create_engine(). The event loop is not blocked by it, and "
    "join() takes the session that AsyncSession.run_sync() gives"
)
_ENGINE_OF_IT = "pass its engine, or a URL; join() takes a session or connection of SQLAlchemy"
_ALREADY = "pass it where a Database is asked for"
# By the name of a class among those that a value derives from: what to pass instead of the value.
_INSTEAD: Mapping[str, str] = {
    "AsyncEngine": _ASYNCHRONOUS,
    "AsyncConnection": _ASYNCHRONOUS,
    "AsyncSession": _ASYNCHRONOUS,
    "async_sessionmaker": _ASYNCHRONOUS,
    "async_scoped_session": _ASYNCHRONOUS,
    "Session": _ENGINE_OF_IT,
    "scoped_session": _ENGINE_OF_IT,
    "sessionmaker": _ENGINE_OF_IT,
    "Connection": _ENGINE_OF_IT,
    "Database": _ALREADY,
    "PurePath": 'write f"sqlite:///{path}"',
    "bytes": "decode it to a str",
    "NoneType": "the setting that should hold the URL is missing",
}


_IN_RUN_SYNC = (
    "Its calls are coroutines; join the session that AsyncSession.run_sync() gives, of an engine of SQLAlchemy on this "
    "driver"
)
_THROUGH_SQLALCHEMY = "Join a session or connection of SQLAlchemy on this driver, or a psycopg.Connection"
_OF_DJANGO = "Call its ensure_connection(), and join its attribute `connection`, inside transaction.atomic()"
# By the package and name of a class among those that an object derives from: what to join instead.
_JOIN_INSTEAD: Mapping[str, str] = {
    "sqlalchemy.AsyncSession": _IN_RUN_SYNC,
    "sqlalchemy.AsyncConnection": _IN_RUN_SYNC,
    "sqlalchemy.async_scoped_session": _IN_RUN_SYNC,
    "psycopg.AsyncConnection": _IN_RUN_SYNC,
    "psycopg.Connection": "This Database is not on Postgres",
    "asyncpg.Connection": _IN_RUN_SYNC,
    "asyncpg.PoolConnectionProxy": _IN_RUN_SYNC,
    "aiosqlite.Connection": _IN_RUN_SYNC,
    "sqlite3.Connection": "This Database is not on SQLite",
    "psycopg2.connection": _THROUGH_SQLALCHEMY,
    "pg8000.Connection": _THROUGH_SQLALCHEMY,
    "django.BaseDatabaseWrapper": _OF_DJANGO,
    "django.ConnectionProxy": _OF_DJANGO,
}


def open_engine(bind: str | URL | Engine) -> Engine:
    """The engine of the application, or a new one for a URL.

    :raises RepositoryError: for anything else, with what to pass instead
    """
    if isinstance(bind, Engine):
        return bind
    if isinstance(bind, (str, URL)):
        return make_engine(bind)
    kinds = (kind.__name__ for kind in type(bind).__mro__)
    advice = next((_INSTEAD[kind] for kind in kinds if kind in _INSTEAD), f"write {FORMS}")
    raise RepositoryError(f"a Database is made from a URL or an Engine, not from {kind_of(bind)}: {advice}") from (
        TypeError(kind_of(bind))
    )


def instead_of_joining(bind: object) -> str:
    """What to join instead of an object that can't be joined."""
    kinds = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(bind).__mro__]
    return next(
        (_JOIN_INSTEAD[kind] for kind in kinds if kind in _JOIN_INSTEAD),
        "Write `with Session(engine) as session, database.join(session):`",
    )


#: Database and driver of the connections of an application that can be joined.
JOINABLE = {
    *(("postgresql", driver) for driver in ("psycopg", "asyncpg", "psycopg2", "pg8000")),
    *(("sqlite", driver) for driver in ("pysqlite", "aiosqlite")),
}


def make_engine(bind: str | URL) -> Engine:
    """An engine in autocommit, whose connections need no reset and whose errors quote no parameter.

    :raises RepositoryError: for a URL of another database or driver, or with an option that it does not have
    """
    url = parse_url(bind)
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None, "hide_parameters": True}
    if url.get_backend_name() == "postgresql":
        from eric_sse_sql.execution.postgres import engine as postgres

        return postgres.make_engine(url, options)
    return sqlite.make_engine(url, options)


def driver_of(engine: Engine, *, owns_engine: bool, through_proxy: bool = False) -> Driver:
    """What runs statements on an engine.

    :param through_proxy: whether each transaction may run in another session of the server
    :raises RepositoryError: for a database or driver that is not supported
    """
    if engine.dialect.is_async:
        raise RepositoryError(f"the engine is that of an AsyncEngine: {_ASYNCHRONOUS}") from NotImplementedError(
            "async"
        )
    check_driver(engine.dialect.name, engine.dialect.driver)
    if engine.dialect.name == "postgresql":
        from eric_sse_sql.execution.postgres.driver import PostgresDriver

        return PostgresDriver(engine, owns_engine=owns_engine, through_proxy=through_proxy)
    return SqliteDriver(engine, owns_engine=owns_engine)


def is_observed(engine: Engine) -> bool:
    """Whether an event listener or a log would show a statement that goes through the engine."""
    return (
        # SQLAlchemy's own flags, which are private; where they are missing, statements go through the engine.
        getattr(engine, "_has_events", True)
        or getattr(engine.dialect, "_has_events", True)
        or engine.logger.isEnabledFor(logging.INFO)
    )


def are_same_database(one: Engine, other: Engine) -> bool:
    """Whether two engines lead to one database, as far as their URLs tell; a host may have several names."""
    if one.pool is other.pool:
        return True
    if one.dialect.name != other.dialect.name:
        return False
    if one.dialect.name == "sqlite":
        in_memory = sqlite.is_in_memory(one.url) or sqlite.is_in_memory(other.url)
        return not in_memory and os.path.realpath(str(one.url.database)) == os.path.realpath(str(other.url.database))
    return one.url.database == other.url.database
