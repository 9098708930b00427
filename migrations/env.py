"""What Alembic runs: on the connection that ``Database.upgrade`` gives, on ``-x url=...``, or on ERIC_SSE_SQL_URL.

Every migration of a command is one transaction, under a lock: many processes may upgrade at once, and a failed upgrade
leaves the database as it was, on SQLite too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from eric_sse_sql.migrations import VERSION_TABLE
from sqlalchemy import Connection, inspect
from sqlalchemy.schema import CreateSchema

from eric_sse_sql.database import Database
from eric_sse_sql.models import TABLE_NAMES, Base

LOCK = 0x65726963  # any number, the same in every process
config = context.config
arguments = context.get_x_argument(as_dictionary=True)
schema: str | None = config.attributes.get("schema", arguments.get("schema"))


def url() -> str:
    found = arguments.get("url") or os.environ.get("ERIC_SSE_SQL_URL") or config.get_main_option("sqlalchemy.url")
    if not found:
        raise SystemExit("Which database? Set ERIC_SSE_SQL_URL, or give -x url=... before the command.")
    return found


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """The tables of the application, in the same database, are not ours to compare."""
    return type_ != "table" or name in TABLE_NAMES


def configure(**options: object) -> None:
    context.configure(
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
        include_name=include_name,
        transactional_ddl=True,
        **options,
    )


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def lock(dialect: str) -> None:
    """Wait for others who migrate this database. On SQLite, BEGIN IMMEDIATE has done so."""
    if dialect == "postgresql":
        context.execute(f"SELECT pg_advisory_xact_lock({LOCK})")


def enter_schema() -> None:
    """Until the end of the transaction, names without a schema are names in ours."""
    if schema:
        context.execute(f"SET LOCAL search_path TO {quoted(schema)}")


@contextmanager
def connected() -> Iterator[Connection]:
    given: Connection | None = config.attributes.get("connection")
    if given is not None:
        yield given
        return
    with Database(url(), schema=schema) as database, database._connected() as connection:
        yield connection
        connection.commit()


def run_online() -> None:
    with connected() as connection:
        configure(connection=connection)
        lock(connection.dialect.name)
        if schema and not inspect(connection).has_schema(schema):
            connection.execute(CreateSchema(schema))
        enter_schema()
        context.run_migrations()


def run_offline() -> None:
    configure(url=url(), literal_binds=True)
    with context.begin_transaction():
        lock(context.get_context().dialect.name)
        enter_schema()
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
