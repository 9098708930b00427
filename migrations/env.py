"""The Alembic environment, for ``Database.upgrade``, for ``config()`` and for the ``alembic`` command of a checkout.

It runs on the connection that ``Database.upgrade`` passes, or else on the database of ``config(url)``, ``-x url=...``
or ERIC_SSE_SQL_URL. All migrations of a command are one transaction under a lock: many processes may upgrade at once,
and a failed upgrade leaves the database as it was, on SQLite too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from alembic import context
from alembic.util import CommandError
from eric_sse.exception import RepositoryError
from eric_sse_sql.migrations import VERSION_TABLE
from eric_sse_sql.migrations.installation import Installation, check_schema, find_installation, listing, quote
from sqlalchemy import URL, ColumnElement, Connection, func, inspect, literal, literal_column, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, ProgrammingError
from sqlalchemy.schema import CreateSchema

from eric_sse_sql.database import Database
from eric_sse_sql.errors import without_values
from eric_sse_sql.models import TABLE_NAMES, Base

config = context.config
arguments = context.get_x_argument(as_dictionary=True)
schema: str | None = config.attributes.get("schema", arguments.get("schema"))

ADVISORY_LOCK = select(func.pg_advisory_xact_lock(0x65726963))  # any number, the same in every process
# The schema of the tables, or else the one for new tables, as SQL: a script is made without asking the database.
SCHEMA_OF_TABLES: ColumnElement[str] = literal_column(
    """coalesce(
        (SELECT nspname FROM pg_namespace WHERE oid = (
            SELECT relnamespace FROM pg_class WHERE oid = to_regclass('kv_entries')
        )),
        current_schema()
    )"""
)


def url() -> URL:
    found = (
        config.attributes.get("url")
        or arguments.get("url")
        or os.environ.get("ERIC_SSE_SQL_URL")
        or config.get_main_option("sqlalchemy.url")
    )
    if not found:
        raise CommandError("Which database? Set ERIC_SSE_SQL_URL, or give -x url=... before the command.")
    with suppress(ArgumentError):  # whose text may be the whole URL, and its password
        return make_url(found)
    raise CommandError("The URL can't be read; write postgresql+psycopg://user:password@host/name, or sqlite:///file.")


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """Autogenerate compares the tables of this package only, not those of the application."""
    return type_ != "table" or name in TABLE_NAMES


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: object) -> bool:
    """Autogenerate skips identity columns on SQLite, which has none: Alembic before 1.18 reports ours as missing."""
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


def enter_schema(name: ColumnElement[str]) -> None:
    """Make names without a schema mean one schema, until the transaction ends."""
    context.execute(select(func.set_config("search_path", func.quote_ident(name), True)))


@contextmanager
def connect() -> Iterator[Connection]:
    """The connection that was passed, or a new one in a transaction, whose faults the command prints."""
    passed: Connection | None = config.attributes.get("connection")
    if passed is not None:
        yield passed
        return
    try:
        with Database(url(), schema=schema) as database, database.transaction():
            yield database.connection()
    except RepositoryError as error:
        raise CommandError(str(error)) from error
    except DBAPIError as error:
        raise CommandError(
            f"The database refused the migration, which changed nothing: {error.orig and without_values(error.orig)}"
        ) from error


def check_not_in_host_history(found: Installation) -> None:
    """
    :raises RepositoryError: where an application's version table names our revision
    """
    if found.is_in_host_history:
        raise RepositoryError(
            f"{found.version_table}, the version table of an application, names revision {listing(found.revisions)} of "
            "eric_sse_sql; run `alembic` where that application configures it, as in `alembic upgrade heads`"
        )


@contextmanager
def permission_advice(advice: str) -> Iterator[None]:
    """
    :raises RepositoryError: with the advice and its cause, where Postgres refuses a statement for lack of a right
    """
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise
        raise RepositoryError(advice) from error.orig


def create_schema(connection: Connection) -> None:
    is_read_only = context.get_context().opts.get("dont_mutate")
    if schema is None or is_read_only or inspect(connection).has_schema(schema):
        return
    with permission_advice(
        "the schema is missing, and this role may not create it; let the owner of the database run "
        f"CREATE SCHEMA {quote(connection, schema)} AUTHORIZATION with the name of the role"
    ):
        connection.execute(CreateSchema(schema))


def run_online() -> None:
    with connect() as connection:
        configure(connection=connection)
        is_postgres = connection.dialect.name == "postgresql"
        if is_postgres:  # on SQLite, BEGIN IMMEDIATE has taken the lock
            context.execute(ADVISORY_LOCK)
        found = find_installation(connection, schema)
        check_not_in_host_history(found)
        create_schema(connection)
        if is_postgres:
            enter_schema(literal(found.schema))
        with permission_advice(
            f"this role may not make tables in schema {found.schema!r}, or change those that are there; upgrade with "
            "the role that owns them"
        ):
            context.run_migrations()


def run_offline() -> None:
    configure(url=url(), literal_binds=True)
    dialect = context.get_context().dialect
    try:
        check_schema(dialect, schema)
    except RepositoryError as error:
        raise CommandError(str(error)) from error
    is_postgres = dialect.name == "postgresql"
    with context.begin_transaction():
        if is_postgres:
            context.execute(ADVISORY_LOCK)
            if schema is not None:
                context.execute(CreateSchema(schema, if_not_exists=True))
            enter_schema(SCHEMA_OF_TABLES if schema is None else literal(schema))
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
