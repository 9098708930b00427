"""Engines: those that this package makes from a URL, and those of the application, which stay as they are."""

from __future__ import annotations

import logging
import os
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Engine, create_engine, make_url

from eric_sse_sql.execution import postgres, sqlite
from eric_sse_sql.execution.driver import Driver

#: Database and driver of the connections of an application that can be joined.
JOINABLE = {("postgresql", "psycopg"), ("sqlite", "pysqlite"), ("sqlite", "aiosqlite")}


def make_engine(bind: str | URL, *, through_proxy: bool = False) -> Engine:
    """An engine in autocommit, whose connections need no reset and whose errors quote no parameter.

    :param through_proxy: whether each transaction may run in another session of the server
    """
    url = make_url(bind)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None, "hide_parameters": True}
    backend = url.get_backend_name()
    if backend == "postgresql":
        return postgres.make_engine(url, options, through_proxy=through_proxy)
    if backend == "sqlite":
        return sqlite.make_engine(url, options)
    return create_engine(url, **options)


def driver_of(engine: Engine, *, owns_engine: bool, prepares: bool = True) -> Driver:
    """What runs statements on an engine.

    :param prepares: whether its connections prepare statements on Postgres
    :raises RepositoryError: for a database or driver that is not supported
    """
    name, driver = engine.dialect.name, engine.dialect.driver
    if (name, driver) == ("postgresql", "psycopg"):
        return postgres.PostgresDriver(engine, owns_engine=owns_engine, prepares=prepares)
    if (name, driver) == ("sqlite", "pysqlite"):
        return sqlite.SqliteDriver(engine, owns_engine=owns_engine)
    raise RepositoryError(
        f"{name}+{driver} is not supported; use postgresql+psycopg://... or sqlite:///..."
    ) from NotImplementedError(driver)


def refuse_options(driver: Driver, schema: str | None) -> None:
    """Do nothing, unless an engine has an option that would be ignored, or has no schemas.

    :param schema: of the tables; None for the search path
    :raises RepositoryError: for the first such option
    """
    if schema is not None and not driver.has_schemas:
        raise RepositoryError("schema= is for Postgres; a SQLite file has one") from ValueError(schema)
    options = driver.engine.get_execution_options()
    translation = options.get("schema_translate_map") or {}
    if translation.get(None, schema) != schema or translation.get(schema, schema) != schema:
        raise RepositoryError(
            "the engine has a schema_translate_map, which this package's statements do not follow; "
            "name the schema of the tables with Database(engine, schema=...)"
        )
    if options.get("postgresql_readonly"):
        raise RepositoryError(
            "the engine has postgresql_readonly, which single statements, in autocommit, do not follow; give an engine "
            "without it, and a role that may only read where nothing is to be written"
        )


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
