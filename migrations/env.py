"""What Alembic runs: on the connection that ``Database.upgrade`` gives, on ``-x url=...``, or on ERIC_SSE_SQL_URL.

Every migration of a command is one transaction, under a lock: many processes may upgrade at once, and a failed upgrade
leaves the database as it was, on SQLite too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from alembic import context
from alembic.util import CommandError
from eric_sse.exception import RepositoryError
from eric_sse_sql.migrations import VERSION_TABLE
from sqlalchemy import URL, Connection, func, inspect, make_url, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.schema import CreateSchema

from eric_sse_sql.database import Database
from eric_sse_sql.models import TABLE_NAMES, Base

LOCK = 0x65726963  # any number, the same in every process
config = context.config
arguments = context.get_x_argument(as_dictionary=True)
schema: str | None = config.attributes.get("schema", arguments.get("schema"))


def url() -> URL:
    found = arguments.get("url") or os.environ.get("ERIC_SSE_SQL_URL") or config.get_main_option("sqlalchemy.url")
    if not found:
        raise CommandError("Which database? Set ERIC_SSE_SQL_URL, or give -x url=... before the command.")
    try:
        return make_url(found)
    except ArgumentError as error:  # whose text may be the whole URL, and its password
        raise CommandError(
            "The URL can't be read; write postgresql://user:password@host/name, or sqlite:///file."
        ) from error


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """The tables of the application, in the same database, are not ours to compare."""
    return type_ != "table" or name in TABLE_NAMES


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: object) -> bool:
    """SQLite knows no identity; Alembic before 1.18 would add ours again and again."""
    return type_ != "column" or item.identity is None or context.get_context().dialect.name == "postgresql"


def configure(**options: Any) -> None:
    context.configure(
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
        include_name=include_name,
        include_object=include_object,
        transactional_ddl=True,
        **options,
    )


def lock() -> None:
    """Wait for others who migrate this database. On SQLite, BEGIN IMMEDIATE has done so."""
    if context.get_context().dialect.name == "postgresql":
        context.execute(select(func.pg_advisory_xact_lock(LOCK)))


def enter_schema() -> None:
    """Until the end of the transaction, names without a schema are names in ours."""
    if schema:
        quoted = '"' + schema.replace('"', '""') + '"'
        context.execute(select(func.set_config("search_path", quoted, True)))


@contextmanager
def connected() -> Iterator[Connection]:
    given: Connection | None = config.attributes.get("connection")
    if given is not None:
        yield given
        return
    with ExitStack() as stack:
        try:
            database = stack.enter_context(Database(url(), schema=schema))
            stack.enter_context(database.transaction())
        except RepositoryError as error:
            raise CommandError(str(error)) from error
        yield database.connection()


def run_online() -> None:
    with connected() as connection:
        configure(connection=connection)
        lock()
        looks_only = context.get_context().opts.get("dont_mutate")
        if schema and not (looks_only or inspect(connection).has_schema(schema)):
            connection.execute(CreateSchema(schema))
        enter_schema()
        context.run_migrations()


def run_offline() -> None:
    configure(url=url(), literal_binds=True)
    with context.begin_transaction():
        lock()
        if schema:
            context.execute(CreateSchema(schema, if_not_exists=True))
        enter_schema()
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
