"""Finds the tables of this package in a database, and the version table that holds their revision."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any, NamedTuple

from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, Dialect, String, bindparam, column, func, quoted_name, select, table, text
from sqlalchemy.exc import ProgrammingError

from eric_sse_sql.arguments import validate_schema
from eric_sse_sql.models import TABLE_NAMES

VERSION_TABLE = "eric_sse_sql_version"  # not alembic_version: the application may use Alembic too
REVISION_PREFIX = "eric_sse_sql_"  # every revision id of this package begins so, and none of an application's does

# Both list every table with one of our names, and every table with a textual column version_num.
_POSTGRES = text(r"""
    SELECT
        pg_namespace.nspname,
        pg_class.relname,
        version.attnum IS NOT NULL,
        pg_table_is_visible(pg_class.oid),
        has_schema_privilege(pg_namespace.oid, 'USAGE')
            AND has_column_privilege(pg_class.oid, version.attnum, 'SELECT')
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    LEFT JOIN pg_attribute AS version ON version.attrelid = pg_class.oid
        AND version.attname = 'version_num' AND NOT version.attisdropped
        AND version.atttypid IN ('varchar'::regtype, 'text'::regtype, 'bpchar'::regtype)
    WHERE pg_class.relkind IN ('r', 'p')
        AND (pg_class.relname IN :names OR version.attnum IS NOT NULL)
        AND pg_namespace.nspname <> 'information_schema' AND pg_namespace.nspname NOT LIKE 'pg\_%'
""")
# Reading the columns of a virtual table fails where its module is not loaded: sqlite_master has no page of one.
_SQLITE = text("""
    SELECT 'main', name, is_version_table, 1, is_version_table
    FROM (
        SELECT name, EXISTS (
            SELECT * FROM pragma_table_info(tables.name, 'main') AS columns WHERE columns.name = 'version_num'
        ) AS is_version_table
        FROM main.sqlite_master AS tables WHERE type = 'table' AND rootpage > 0
    )
    WHERE name IN :names OR is_version_table
""")


class Table(NamedTuple):
    """A table that has one of our names, or that may be a version table."""

    schema: str  # "main" on SQLite
    name: str
    is_version_table: bool = False  # whether it has a textual column version_num
    is_visible: bool = False  # whether a statement that names no schema reaches it
    is_readable: bool = False  # whether it is a version table, and this role may read it


_Claim = tuple[Table, frozenset[str]]  # a version table, and the revisions of ours that it names


class Installation(NamedTuple):
    """The tables of this package as the statements of a ``Database`` reach them."""

    schema: str  # where the tables are, or else where new ones go; "main" on SQLite
    tables: frozenset[str]  # names of the tables that exist
    other_schemas: tuple[str, ...]  # further schemas that hold tables of these names
    revisions: frozenset[str]  # what the version table says; empty where none names a revision of ours
    version_table: str  # its name as SQL writes it: the package's own, unless a host's names our revision
    is_in_host_history: bool  # whether the version table belongs to an application
    unreadable: tuple[str, ...]  # version tables that could be that of the tables, but this role may not read them


def check_schema(dialect: Dialect, schema: str | None) -> None:
    """
    :raises RepositoryError: for what can't be the name of a schema on this database
    """
    validate_schema(schema, has_schemas=dialect.name == "postgresql")


def find_installation(connection: Connection, schema: str | None) -> Installation:
    """Find the tables, and the version table that holds their revision.

    Our own version table comes first, then ``alembic_version``, then any other, all in the schema of the tables. Where
    none there names a revision of this package, a host's version table in another schema is taken, unless that schema
    has tables of this package that it belongs to.

    A fault of a version table leaves an open transaction usable.

    :param schema: where the tables are; by default where the search path leads
    :raises RepositoryError: where the tables are in several schemas of the search path, where the search path leads to
        no schema, and where several version tables of equal rank disagree; it says what to do
    """
    check_schema(connection.dialect, schema)
    tables = _list_tables(connection)
    home = _find_schema(connection, tables, schema)
    version_table, revisions = _find_version_table(connection, tables, home)
    if _list_tables(connection) != tables:  # an upgrade was committed meanwhile: the revision is not that of the tables
        return find_installation(connection, schema)
    hidden = [each for each in tables if each.is_version_table and not each.is_readable]
    unreadable = [each for each in hidden if each.schema == home or each.name != VERSION_TABLE]
    return Installation(
        schema=home,
        tables=_names_in(tables, home),
        other_schemas=tuple(other for other in _schemas_with_tables(tables) if other != home),
        revisions=revisions,
        version_table=_sql(connection, version_table),
        is_in_host_history=version_table.name != VERSION_TABLE,
        unreadable=tuple(_sql(connection, each) for each in unreadable),
    )


def _list_tables(connection: Connection) -> list[Table]:
    query = _POSTGRES if connection.dialect.name == "postgresql" else _SQLITE
    names = sorted(TABLE_NAMES | {VERSION_TABLE})
    rows = connection.execute(query.bindparams(bindparam("names", names, expanding=True)))
    return sorted(Table(schema, name, *map(bool, flags)) for schema, name, *flags in rows)


def _names_in(tables: list[Table], schema: str) -> frozenset[str]:
    return frozenset(each.name for each in tables if each.schema == schema and each.name in TABLE_NAMES)


def _schemas_with_tables(tables: list[Table]) -> list[str]:
    return sorted({each.schema for each in tables if each.name in TABLE_NAMES})


def _find_schema(connection: Connection, tables: list[Table], schema: str | None) -> str:
    """The schema that statements reach, or else the one that Postgres makes new tables in."""
    if schema is not None:
        return schema
    visible = [each for each in tables if each.is_visible]
    reached = _schemas_with_tables(visible) or [each.schema for each in visible if each.name == VERSION_TABLE]
    if len(reached) > 1:
        listed = "; ".join(f"{each} has {', '.join(sorted(_names_in(visible, each)))}" for each in reached)
        raise RepositoryError(
            f"the search path leads to tables of eric_sse_sql in several schemas: {listed}. Pass schema= with the one "
            "that is meant; if all are of one installation, first move them there with ALTER TABLE ... SET SCHEMA"
        )
    if reached:
        return reached[0]
    if connection.dialect.name != "postgresql":
        return "main"
    current = connection.scalar(select(func.current_schema()))
    if current is None:
        raise RepositoryError(
            "the search path leads to no schema that exists and that this role may use; pass schema=, or set the "
            "search path, as with ALTER ROLE ... SET search_path = public"
        )
    return str(current)


def _find_version_table(connection: Connection, tables: list[Table], home: str) -> _Claim:
    """The version table of the tables in a schema, and their revisions; our own without any, where none names one."""
    nothing = Table(home, VERSION_TABLE), frozenset[str]()
    inside = [each for each in tables if each.schema == home and each.is_version_table]
    if any(each.name == VERSION_TABLE and not each.is_readable for each in inside):
        return nothing
    readable = sorted((each for each in tables if each.is_readable), key=_rank)
    for _, equals in groupby((each for each in readable if each.schema == home), key=_rank):
        claims = _read_claims(connection, equals)
        if claims:
            return _agreed(connection, claims, home)
    if not _names_in(tables, home):
        return nothing
    claims = _read_claims(connection, (each for each in readable if each.schema != home))
    for other in _schemas_with_tables(tables):  # its tables use the first version table in their own schema
        used = next((each for each in claims if each.schema == other), None)
        if used is not None:
            del claims[used]
    claims = {each: revisions for each, revisions in claims.items() if each.name != VERSION_TABLE}
    return _agreed(connection, claims, home) if claims else nothing


def _rank(version_table: Table) -> int:
    """Our own version table first, then the one that Alembic makes by default."""
    return {VERSION_TABLE: 0, "alembic_version": 1}.get(version_table.name, 2)


def _read_claims(connection: Connection, version_tables: Iterable[Table]) -> dict[Table, frozenset[str]]:
    """The version tables that name revisions of ours, with these."""
    read = {each: _read_revisions(connection, each) for each in version_tables}
    return {each: revisions for each, revisions in read.items() if revisions}


def _read_revisions(connection: Connection, version_table: Table) -> frozenset[str]:
    """The revisions of ours that a version table names; none where it can't be read after all."""
    version = column("version_num", String)
    source = table(quoted_name(version_table.name, True), schema=quoted_name(version_table.schema, True))
    ours = select(version).select_from(source).where(version.startswith(REVISION_PREFIX, autoescape=True))
    try:
        with _savepoint(connection):
            return frozenset(connection.scalars(ours))
    except ProgrammingError:  # dropped meanwhile, or under row-level security
        return frozenset()


def _savepoint(connection: Connection) -> AbstractContextManager[object]:
    """A savepoint, as a failed statement aborts a transaction of Postgres; nothing in autocommit and on SQLite."""
    driver: Any = connection.connection.dbapi_connection
    needs_none = connection.dialect.name != "postgresql" or driver.autocommit
    return nullcontext() if needs_none else connection.begin_nested()


def _agreed(connection: Connection, claims: dict[Table, frozenset[str]], home: str) -> _Claim:
    """The first of version tables that name the same revisions.

    :raises RepositoryError: when they name different ones
    """
    if len(set(claims.values())) > 1:
        listed = ", ".join(f"{_sql(connection, each)} ({listing(claims[each])})" for each in claims)
        raise RepositoryError(
            f"several version tables may be that of the tables of eric_sse_sql in schema {home}, and they disagree: "
            f"{listed}. Keep the right one in that schema, under the name alembic_version: ALTER TABLE ... SET SCHEMA "
            "and RENAME TO, with version_table_schema= and version_table= in the env.py of the application"
        )
    return next(iter(claims.items()))


def listing(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _sql(connection: Connection, of: Table) -> str:
    """The name of a table as SQL writes it."""
    names = [of.name] if connection.dialect.name == "sqlite" else [of.schema, of.name]
    return ".".join(quote(connection, name) for name in names)


def quote(connection: Connection, name: str) -> str:
    """A name as SQL writes it, for an error message."""
    quoted = connection.dialect.identifier_preparer.quote(name)
    return quoted.replace("%%", "%") if connection.dialect.name == "postgresql" else quoted  # doubled for psycopg
