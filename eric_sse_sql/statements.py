"""Statements: built once from the mapped tables, in the words of either database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from eric_sse.exception import RepositoryError
from sqlalchemy import ARRAY, Engine, Float, Text, and_, any_, bindparam, func, literal_column, select, true, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

ADVISORY_CLASS = 0x65726963  # any number, the same in every process
Row = Sequence[Any]  # as a statement returns it
Construct = Any  # one of SQLAlchemy's; its releases 2.0 and 2.1 give them different type parameters


class Dialect(Protocol):
    """What statements are built with where the two databases differ."""

    paramstyle: str

    def insert(self, table: Any) -> Any:
        """An INSERT that takes ``on_conflict_do_update``."""

    def among(self, column: Any, name: str) -> Construct:
        """Whether a column is in the list bound by that name, however long it is."""

    def each(self, name: str) -> Construct:
        """A SELECT of the values of the list bound by that name, in their order."""

    def list_value(self, values: Sequence[str]) -> Any:
        """The value to bind for such a list."""

    def insert_rows(self, model: Any, bound: Mapping[str, str]) -> Any:
        """An INSERT of many rows in their order: of each in turn on SQLite, from an array a column on Postgres.

        :param bound: the name that each column's value is bound by
        """

    def in_order(self, group: Any, number: Any, name: str) -> tuple[Construct, tuple[Any, ...]]:
        """The condition that selects the rows whose group is bound by a name, and what orders them by their numbers, in
        a form that is read from the index over both columns, and from nothing else."""

    def found(self, key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        """What to join, and on what, for the one row of another table that has a value as its key: looked up in the
        index of the key, row after row, however many there are.

        :param columns: those that are read of it
        """

    def none(self, rows: Any) -> Construct:
        """Whether a SELECT, about a row of another one, finds nothing: looked up for each row."""

    def notifying(self, change: Any) -> Construct:
        """The same change, with a notification on the channel bound as ``notify_channel``: on Postgres."""

    def hold(self, name: str) -> Construct:
        """A SELECT that waits until no other transaction holds the text bound by a name, and holds it until the end of
        this one. On SQLite none can: there is one transaction at a time that writes."""

    def now(self, shift: str | None = None) -> Construct:
        """The clock of the database at this statement, and from there by as many seconds as are bound by a name."""

    def seconds_value(self, seconds: float) -> Any:
        """The value to bind for such a shift."""


class _Postgres:
    paramstyle = "format"
    insert = staticmethod(postgresql.insert)

    @staticmethod
    def among(column: Any, name: str) -> Construct:
        return column == any_(bindparam(name, type_=ARRAY(Text)))

    @staticmethod
    def each(name: str) -> Construct:
        return select(func.unnest(bindparam(name, type_=ARRAY(Text))))

    @staticmethod
    def list_value(values: Sequence[str]) -> list[str]:
        return list(values)

    @staticmethod
    def insert_rows(model: Any, bound: Mapping[str, str]) -> Any:
        columns = [getattr(model, column) for column in bound]
        types = [Text() if isinstance(column.type, Text) else column.type for column in columns]
        arrays = [bindparam(name, type_=ARRAY(kind)) for kind, name in zip(types, bound.values(), strict=True)]
        rows = func.unnest(*arrays).table_valued(*bound.values(), with_ordinality="nth").render_derived()
        return postgresql.insert(model).from_select(
            columns, select(*(rows.c[name] for name in bound.values())).order_by(rows.c.nth)
        )

    @staticmethod
    def in_order(group: Any, number: Any, name: str) -> tuple[Construct, tuple[Any, ...]]:
        # With "=", the planner may prefer the index of the numbers, and read the rows of all groups before the first.
        row, value = tuple_(group, number), bindparam(name, type_=group.type)
        first, last = (tuple_(value, literal_column(at)) for at in ("0", str(2**63 - 1)))
        return and_(row >= first, row <= last), (group, number)

    @staticmethod
    def found(key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        # A plain join, the planner may make by reading all rows of the other table. The limit keeps it from that.
        row = aliased(key.class_)
        of_row = [getattr(row, column.key) for column in columns]
        return select(*of_row).where(getattr(row, key.key) == value).limit(literal_column("1")).lateral(), true()

    @staticmethod
    def none(rows: Any) -> Construct:
        return ~rows.offset(literal_column("0")).exists()  # which is no join either

    @staticmethod
    def notifying(change: Any) -> Construct:
        return select(notification()).add_cte(change.cte("change"))

    @staticmethod
    def hold(name: str) -> Construct:
        text = func.hashtext(bindparam(name, type_=Text))
        return select(func.pg_advisory_xact_lock(literal_column(str(ADVISORY_CLASS)), text))

    @staticmethod
    def now(shift: str | None = None) -> Construct:
        now = func.statement_timestamp()
        return now + bindparam(shift, type_=Float) * literal_column("interval '1 second'") if shift else now

    @staticmethod
    def seconds_value(seconds: float) -> float:
        return seconds


class _Sqlite:
    paramstyle = "qmark"
    insert = staticmethod(sqlite.insert)

    @classmethod
    def among(cls, column: Any, name: str) -> Construct:
        return column.in_(cls.each(name))

    @staticmethod
    def each(name: str) -> Construct:
        return select(func.json_each(bindparam(name, type_=Text)).table_valued("value").c.value)

    @staticmethod
    def list_value(values: Sequence[str]) -> str:
        return json.dumps(list(values))

    @staticmethod
    def insert_rows(model: Any, bound: Mapping[str, str]) -> Any:
        return sqlite.insert(model).values({getattr(model, column): bindparam(name) for column, name in bound.items()})

    @staticmethod
    def in_order(group: Any, number: Any, name: str) -> tuple[Construct, tuple[Any, ...]]:
        return group == bindparam(name), (number,)

    @staticmethod
    def found(key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        row = key.class_.__table__.alias()
        return row, row.c[key.key] == value

    @staticmethod
    def none(rows: Any) -> Construct:
        return ~rows.exists()

    @staticmethod
    def notifying(change: Any) -> Construct:
        return change

    @staticmethod
    def hold(name: str) -> Construct:
        return select(bindparam(name, type_=Text))

    @staticmethod
    def now(shift: str | None = None) -> Construct:
        moment: list[Construct] = [literal_column("'%Y-%m-%d %H:%M:%f'"), literal_column("'now'")]
        return func.strftime(*moment, *([bindparam(shift, type_=Text)] if shift else []))

    @staticmethod
    def seconds_value(seconds: float) -> str:
        return f"{seconds:.3f} seconds"


_DIALECTS: dict[tuple[str, str], Dialect] = {
    ("postgresql", "psycopg"): _Postgres(),
    ("sqlite", "pysqlite"): _Sqlite(),
}


def dialect_of(engine: Engine) -> Dialect:
    """The dialect of an engine.

    :raises RepositoryError: for a database or driver that is not supported
    """
    name, driver = engine.dialect.name, engine.dialect.driver
    if (name, driver) not in _DIALECTS:
        raise RepositoryError(
            f"{name}+{driver} is not supported; use postgresql+psycopg://... or sqlite:///..."
        ) from NotImplementedError(driver)
    return _DIALECTS[name, driver]


def insert_row(sql: Dialect, model: Any, bound: Mapping[str, str]) -> Any:
    """An INSERT of one row.

    :param bound: the name that each column's value is bound by
    """
    values: dict[Any, Construct] = {getattr(model, column): bindparam(name) for column, name in bound.items()}
    return sql.insert(model).values(values).inline()  # nobody asks for the number of the row


def notification() -> Construct:
    """What notifies on the Postgres channel bound as ``notify_channel``, without a payload."""
    return func.pg_notify(bindparam("notify_channel", type_=Text), literal_column("''"))


def upsert(sql: Dialect, model: Any, bound: Mapping[str, str]) -> Construct:
    """An INSERT of one row that changes the row instead, where there is one of the same key.

    :param bound: the name that each column's value is bound by; the first column is the key
    """
    return _or_update(insert_row(sql, model, bound), model, bound)


def upsert_rows(sql: Dialect, model: Any, bound: Mapping[str, str], keep: str | None = None) -> Construct:
    """The same of many rows, no two of one key.

    :param keep: a column that NULL does not overwrite
    """
    return _or_update(sql.insert_rows(model, bound), model, bound, keep)


def _or_update(insert: Any, model: Any, bound: Mapping[str, str], keep: str | None = None) -> Construct:
    key, *others = bound
    changed: dict[str, Construct] = {column: insert.excluded[column] for column in others}
    if keep:
        changed[keep] = func.coalesce(changed[keep], getattr(model, keep))
    changed["updated_at"] = func.current_timestamp()
    return insert.on_conflict_do_update(index_elements=[key], set_=changed)


class Compiled:
    """A statement as a driver takes it."""

    __slots__ = ("_constants", "_names", "sql", "writes")

    def __init__(self, sql: str, names: Sequence[str], constants: Mapping[str, Any]) -> None:
        self.sql = sql
        self.writes = not sql.startswith("SELECT")
        self._names = tuple(names)
        self._constants = constants  # values that the statement brings itself

    def values(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """Parameters in the order of their places in the SQL."""
        if self._constants:
            parameters = {**self._constants, **parameters}
        return tuple([parameters[name] for name in self._names])

    def columns(self, rows: Sequence[Mapping[str, Any]], others: Mapping[str, Any]) -> tuple[Any, ...]:
        """The columns of rows, and other parameters, in the order of their places in the SQL."""
        return tuple(others[name] if name in others else [row[name] for row in rows] for name in self._names)


class Publication(NamedTuple):
    """A statement after which somebody may be waiting for what it wrote."""

    plain: Statement
    notifying: Statement

    @classmethod
    def of(cls, build: Callable[[Dialect], Construct]) -> Publication:
        """Both forms of a statement."""
        return cls(Statement(build), Statement(lambda sql: sql.notifying(build(sql))))


class Statement:
    """One SQL statement, built once from the mapped tables and compiled once by each database that runs it.

    :param build: makes it, with bound parameters, for a dialect
    """

    __slots__ = ("_build",)

    def __init__(self, build: Callable[[Dialect], Construct]) -> None:
        self._build = build

    def compile(self, engine: Engine, schema: str | None) -> Compiled:
        """The statement for an engine's driver, with its tables in a schema."""
        dialect = dialect_of(engine)
        translation = {"schema_translate_map": {None: schema}, "render_schema_translate": True} if schema else {}
        positional = cast(Any, type(engine.dialect))(paramstyle=dialect.paramstyle)
        compiled = self._build(dialect).compile(dialect=positional, **translation)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        # psycopg sends an array as text, which takes three times as long, unless it is told not to.
        sql = re.sub(r"%s(?=::\w+\[\])", "%b", compiled.string)
        return Compiled(sql, compiled.positiontup, constants)
