"""Applications on Postgres with transactions of their own, one for each driver whose transactions can be joined."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

Execute = Callable[[str], None]  # runs a statement of the application


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


APPLICATIONS: dict[str, Callable[..., None]] = {
    "asyncpg": in_async_session("asyncpg"),
    "psycopg2": in_session("psycopg2"),
    "pg8000": in_session("pg8000"),
}


def application(name: str) -> Callable[..., None]:
    """Runs work in a transaction of an application. The test is skipped where its driver is not installed."""
    pytest.importorskip(name.split()[0])
    return APPLICATIONS[name]


#: What the tests of a contract call that need threads or an event loop of their own, or thousands of examples.
_OF_THEIR_OWN = {"Thread", "streamed", "random", "run_state_machine_as_test"}


def contract(module: str) -> list[Callable[..., None]]:
    """The tests of a contract suite that need nothing but objects of one database."""
    suite = importlib.import_module(f"contract.{module}")
    tests = [value for name, value in vars(suite).items() if name.startswith("test_")]
    return [
        test for test in tests if not hasattr(test, "pytestmark") and _OF_THEIR_OWN.isdisjoint(test.__code__.co_names)
    ]
