"""Applications on Postgres with transactions of their own, one for each driver whose transactions can be joined."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any, Protocol

from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

Execute = Callable[[str], Any]  # runs a statement of the application


class Work(Protocol):
    """What an application does in a transaction: the argument of ``Database.join``, and how it runs statements."""

    def __call__(self, bind: Any, execute: Execute) -> None: ...


def url_for(url: URL, driver: str) -> URL:
    """The same database through another driver."""
    other = url.set(drivername=f"postgresql+{driver}")
    return other.difference_update_query(["host"]) if driver == "pg8000" else other


def arguments_for(url: URL, driver: str) -> dict[str, str]:
    """What pg8000 is told of a Unix socket, which it takes by a name of its own."""
    host = str(url.query.get("host", ""))
    is_socket = driver == "pg8000" and host.startswith("/")
    return {"unix_sock": f"{host}/.s.PGSQL.{url.port or 5432}"} if is_socket else {}


def in_session(driver: str) -> Callable[..., None]:
    """Runs work in a session of SQLAlchemy."""

    def run(url: URL, work: Work, commits: bool = True, **options: Any) -> None:
        engine = create_engine(url_for(url, driver), connect_args=arguments_for(url, driver), **options)
        try:
            with Session(engine) as session:
                work(session, lambda sql: session.execute(text(sql)))
                (session.commit if commits else session.rollback)()
        finally:
            engine.dispose()

    return run


def in_async_session(driver: str) -> Callable[..., None]:
    """Runs work in a session of SQLAlchemy's asyncio, by ``run_sync``."""

    def run(url: URL, work: Work, commits: bool = True, **options: Any) -> None:
        async def main() -> None:
            engine = create_async_engine(url_for(url, driver), connect_args=arguments_for(url, driver), **options)
            try:
                async with AsyncSession(engine) as session:
                    await session.run_sync(lambda sync: work(sync, lambda sql: sync.execute(text(sql))))
                    await (session.commit() if commits else session.rollback())
            finally:
                await engine.dispose()

        asyncio.run(main())

    return run


class Unreadable:
    """An adapter of an application that reads every value as itself."""

    format = 0

    def __init__(self, oid: int, context: Any = None) -> None: ...

    def load(self, data: Any) -> Any:
        return self


def in_psycopg_connection(url: URL, work: Work, commits: bool = True, isolation_level: str | None = None) -> None:
    """Runs work on a connection of psycopg's own, with factories and adapters of the application."""
    import psycopg
    from psycopg.rows import dict_row

    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(address, row_factory=dict_row, cursor_factory=psycopg.ClientCursor)) as connection:
        for kind in ("bytea", "text", "int8", "varchar"):
            connection.adapters.register_loader(kind, Unreadable)
        connection.autocommit = isolation_level == "AUTOCOMMIT"
        work(connection, connection.execute)
        (connection.commit if commits else connection.rollback)()


def in_psycopg_block(url: URL, work: Work, commits: bool = True, isolation_level: str | None = None) -> None:
    """Runs work in a block of psycopg's ``transaction()``, on a connection in autocommit."""
    import psycopg

    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg.connect(address, autocommit=True)) as connection:
        if isolation_level == "AUTOCOMMIT":
            work(connection, connection.execute)
        with connection.transaction(force_rollback=not commits):
            work(connection, connection.execute)


def in_django(url: URL, work: Work, commits: bool = True, isolation_level: str | None = None) -> None:
    """Runs work in ``transaction.atomic()`` of Django."""
    import django
    from django.conf import settings
    from django.db import connections, transaction

    if not settings.configured:
        settings.configure(DATABASES={})
        django.setup()
    engine = {"postgresql": "postgresql", "sqlite": "sqlite3"}[url.get_backend_name()]
    named = {"USER": url.username, "PASSWORD": url.password, "HOST": url.host or url.query.get("host")}
    named |= {"NAME": url.database, "PORT": url.port, "ENGINE": f"django.db.backends.{engine}"}
    connections.settings["tests"] = {name: str(value or "") for name, value in named.items()}
    connections.configure_settings({"default": {}, **connections.settings})
    connection = connections["tests"]
    connection.ensure_connection()
    try:
        with nullcontext() if isolation_level == "AUTOCOMMIT" else transaction.atomic("tests"):
            work(connection.connection, lambda sql: connection.cursor().execute(sql))
            if not commits:
                transaction.set_rollback(True, "tests")
    finally:
        connection.close()
        del connections["tests"], connections.settings["tests"]


def in_sqlite_connection(url: URL, work: Work, commits: bool = True, isolation_level: str | None = "") -> None:
    """Runs work on a connection of the standard library's, with a row factory of the application."""
    level = None if isolation_level == "AUTOCOMMIT" else isolation_level
    with closing(sqlite3.connect(str(url.database), isolation_level=level)) as connection:
        connection.row_factory = lambda cursor, row: dict(zip("abcdefgh", row, strict=False))
        work(connection, connection.execute)
        (connection.commit if commits else connection.rollback)()


APPLICATIONS: dict[str, Callable[..., None]] = {
    "psycopg connection": in_psycopg_connection,
    "psycopg block": in_psycopg_block,
    "django on postgres": in_django,
    "django on sqlite": in_django,
    "sqlite3": in_sqlite_connection,
    "asyncpg": in_async_session("asyncpg"),
    "psycopg2": in_session("psycopg2"),
    "pg8000": in_session("pg8000"),
}


#: What the tests of a contract call that need threads or an event loop of their own, or thousands of examples.
_OF_THEIR_OWN = re.compile(r"threading|streamed\(|random|run_state_machine_as_test")


def contract(module: str) -> list[Callable[..., None]]:
    """The tests of a contract suite that need nothing but objects of one database."""
    suite = importlib.import_module(f"contract.{module}")
    tests = [value for name, value in vars(suite).items() if name.startswith("test_")]
    return [
        test for test in tests if not (hasattr(test, "pytestmark") or _OF_THEIR_OWN.search(inspect.getsource(test)))
    ]
