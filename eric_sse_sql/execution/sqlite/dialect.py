"""``SqliteDialect``: how statements are written for SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Text, bindparam, func, literal_column, null, select, type_coerce
from sqlalchemy.dialects import sqlite

from eric_sse_sql.execution.dialect import Construct


class SqliteDialect:
    """How statements are written for SQLite."""

    paramstyle = "qmark"
    locks_rows = False
    insert = staticmethod(sqlite.insert)

    @staticmethod
    def rendered(sql: str) -> str:
        return sql

    @staticmethod
    def insert_rows(model: Any, bound: Mapping[str, str]) -> Any:
        return sqlite.insert(model).values({getattr(model, column): bindparam(name) for column, name in bound.items()})

    @classmethod
    def in_list(cls, column: Any, name: str) -> Construct:
        return column.in_(cls.unnest(name))

    @staticmethod
    def unnest(name: str) -> Construct:
        return select(func.json_each(bindparam(name, type_=Text)).table_valued("value").c.value)

    @staticmethod
    def pairs(name: str) -> Any:
        pair = func.json_each(bindparam(name, type_=Text)).table_valued("key", "value")
        return select(pair.c.key.label("id"), pair.c.value.label("number")).subquery("pairs")

    @staticmethod
    def list_value(values: Sequence[str]) -> str:
        return json.dumps(list(values))

    @staticmethod
    def first_of_each(rows: Any, key: Any) -> tuple[Any, Construct]:
        row = key.class_.__table__.alias("first")
        return row, row.c[key.key].in_(rows.with_only_columns(key))

    @staticmethod
    def ordered_range(
        group: Any, number: Any, value: Any, after: str | None = None
    ) -> tuple[Construct, tuple[Any, ...]]:
        return group == value, (number,)

    @staticmethod
    def open_writers(model: Any) -> Construct:
        return select(literal_column("''")).where(literal_column("0"))

    @staticmethod
    def lookup_join(key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        row = key.class_.__table__.alias()
        return row, row.c[key.key] == value

    @staticmethod
    def not_exists(rows: Any) -> Construct:
        return ~rows.exists()

    @staticmethod
    def looked_up_rows(key: Any, keys: Any) -> Any:
        return key.in_(select(keys.c[key.key]))

    @staticmethod
    def looked_up_pairs(key: Any, pairs: Any) -> Any:
        return key == pairs.c[key.key]  # with IN besides, SQLite would scan all pairs for each row

    @staticmethod
    def with_notification(change: Any) -> Construct:
        return change

    @staticmethod
    def with_notification_for_each(change: Any) -> Construct:
        return change

    @staticmethod
    def advisory_lock(name: str) -> Construct:
        return select(bindparam(name, type_=Text))

    @staticmethod
    def transaction_id() -> Construct:
        return null()

    @staticmethod
    def was_rolled_back(name: str) -> Construct:
        return bindparam(name, type_=BigInteger).is_not(None) & literal_column("0")

    @staticmethod
    def now(shift: str | None = None) -> Construct:
        moment: list[Construct] = [literal_column("'%Y-%m-%d %H:%M:%f'"), literal_column("'now'")]
        return func.strftime(*moment, *([bindparam(shift, type_=Text)] if shift else []))

    @staticmethod
    def seconds_ago(seconds: Any) -> Construct:
        moment: list[Construct] = [literal_column("'%Y-%m-%d %H:%M:%f'"), literal_column("'now'")]
        return func.strftime(*moment, func.printf(literal_column("'-%f seconds'"), seconds))

    @staticmethod
    def seconds_since(moment: Any) -> Construct:
        epoch: Construct = literal_column("'%s'")
        now = type_coerce(func.strftime(epoch, literal_column("'now'")), BigInteger)
        return now - type_coerce(func.strftime(epoch, moment), BigInteger)

    @staticmethod
    def timestamp_text(moment: Any) -> Construct:
        # SQLite stores moments as text; an expression has no declared type, for which a converter may be registered.
        text: Construct = moment.op("||")(literal_column("''"))
        return text

    @staticmethod
    def token(moment: Any) -> Construct:
        return type_coerce(func.strftime(literal_column("'%Y%m%d%H%M%f'"), moment), Text)

    @classmethod
    def append(cls, row: Any, counter: Any, bound: Mapping[str, str], condition: Construct, returned: Construct) -> Any:
        # A trigger, which the migration makes, writes the number into the counter's row.
        group, *_ = bound
        values = [bindparam(name, type_=getattr(row, column).type) for column, name in bound.items()]
        last = select(counter.last_position).where(getattr(counter, group) == values[0]).scalar_subquery()
        number: Construct = func.coalesce(last, literal_column("0")) + literal_column("1")
        appended = select(*values, number, cls.now()).where(condition)
        insert = sqlite.insert(row).from_select([*bound, "position", "created_at"], appended)
        return insert.returning(row.position, returned)

    @staticmethod
    def greatest(*values: Construct) -> Construct:
        return func.max(*values)

    @staticmethod
    def seconds_value(seconds: float) -> str:
        return f"{seconds:.3f} seconds"
