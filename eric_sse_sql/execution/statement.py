"""Statements: built once from the mapped tables, and compiled once for each engine that runs them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Engine, Integer, Text, bindparam, func, select

from eric_sse_sql.execution.dialect import Construct, Dialect

_WRITES = re.compile(r"\b(INSERT INTO|DELETE FROM|SET) ")  # in a common table expression, too

Row = Sequence[Any]  # as a driver returns it; the modules of ``sql`` give each result a NamedTuple


class Compiled:
    """A statement as the driver of one engine takes it."""

    __slots__ = ("_constants", "_names", "sql", "writes")

    def __init__(self, sql: str, names: Sequence[str], constants: Mapping[str, Any]) -> None:
        self.sql = sql
        self.writes = _WRITES.search(sql) is not None
        self._names = tuple(names)
        self._constants = constants  # values that the statement brings itself

    def values(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """Parameters in the order of their placeholders in the SQL."""
        if self._constants:
            parameters = {**self._constants, **parameters}
        return tuple([parameters[name] for name in self._names])

    def columns(self, rows: Sequence[Mapping[str, Any]], others: Mapping[str, Any]) -> tuple[Any, ...]:
        """A list of values for each column of some rows, and other parameters, in the order of their placeholders."""
        return tuple(others[name] if name in others else [row[name] for row in rows] for name in self._names)


def fetch_rows(connection: Connection, compiled: Compiled, values: Any) -> Sequence[Row]:
    """Run a compiled statement through SQLAlchemy. All its rows; none of a statement that returns none."""
    return run_compiled(connection, compiled, values)[0]


def run_compiled(connection: Connection, compiled: Compiled, values: Any) -> tuple[Sequence[Row], int]:
    """The same, with the number of rows that it has changed."""
    result = connection.exec_driver_sql(compiled.sql, values)
    return result.fetchall() if result.returns_rows else (), result.rowcount


class Statement:
    """One SQL statement. Instances are constants of the modules in ``sql``.

    :param build: makes the statement, with bound parameters, in a dialect
    """

    __slots__ = ("_build",)

    def __init__(self, build: Callable[[Dialect], Construct]) -> None:
        self._build = build

    def compile(self, engine: Engine, dialect: Dialect, schema: str | None) -> Compiled:
        """The statement for the driver of an engine, with its tables in a schema."""
        translation = {"schema_translate_map": {None: schema}, "render_schema_translate": True} if schema else {}
        positional = cast(Any, type(engine.dialect))(paramstyle=dialect.paramstyle)
        compiled = self._build(dialect).compile(dialect=positional, **translation)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        return Compiled(dialect.rendered(compiled.string), compiled.positiontup, constants)


class NotifyingStatement(NamedTuple):
    """A statement that adds messages, without and with a notification to other processes."""

    plain: Statement
    notifying: Statement

    @classmethod
    def of(cls, build: Callable[[Dialect], Construct]) -> NotifyingStatement:
        """Both forms of a statement."""
        return cls(Statement(build), Statement(lambda sql: sql.with_notification(build(sql))))

    @classmethod
    def returning(cls, build: Callable[[Dialect], Construct]) -> NotifyingStatement:
        """Both forms of a statement that returns rows. It notifies once for each."""
        return cls(Statement(build), Statement(lambda sql: sql.with_notification_for_each(build(sql))))


def notification() -> Construct:
    """The call that notifies the Postgres channel bound as ``notify_channel``, with ``notify_topics`` as payload."""
    return func.pg_notify(bindparam("notify_channel", type_=Text), bindparam("notify_topics", type_=Text))


def bound_limit() -> Construct:
    """The bound number ``count`` as a LIMIT from a subquery, for which Postgres plans for a tenth of the rows. With a
    bound number that is larger than its estimate of the rows, it would read and sort all of them."""
    return select(bindparam("count", type_=Integer)).scalar_subquery()


def insert_row(sql: Dialect, model: Any, bound: Mapping[str, str]) -> Any:
    """An INSERT of one row.

    :param bound: the name of the parameter that holds the value of each column
    """
    values: dict[Any, Construct] = {getattr(model, column): bindparam(name) for column, name in bound.items()}
    return sql.insert(model).values(values).inline()  # without the number that the database gives to the row


def upsert(sql: Dialect, model: Any, bound: Mapping[str, str]) -> Construct:
    """An INSERT of one row that updates the existing row of the same key.

    :param bound: the name of the parameter that holds the value of each column; the first column is the key
    """
    return _or_update(insert_row(sql, model, bound), model, bound)


def upsert_rows(
    sql: Dialect, model: Any, bound: Mapping[str, str], keep: str | None = None, insert_only: str | None = None
) -> Construct:
    """An INSERT of many rows, all of different keys, that updates the existing rows.

    :param bound: as for :func:`upsert`
    :param keep: a column that NULL does not overwrite
    :param insert_only: a column that no update changes
    """
    updated = {column: name for column, name in bound.items() if column != insert_only}
    return _or_update(sql.insert_rows(model, bound), model, updated, keep)


def _or_update(insert: Any, model: Any, bound: Mapping[str, str], keep: str | None = None) -> Construct:
    key, *others = bound
    changed: dict[str, Construct] = {column: insert.excluded[column] for column in others}
    if keep:
        changed[keep] = func.coalesce(changed[keep], getattr(model, keep))
    # The default of the proposed row: Citus allows no stable function, such as CURRENT_TIMESTAMP, in DO UPDATE.
    changed["updated_at"] = insert.excluded["updated_at"]
    return insert.on_conflict_do_update(index_elements=[key], set_=changed)
