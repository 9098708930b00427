"""``PostgresDialect``: how statements are written for Postgres."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Float,
    Text,
    and_,
    any_,
    bindparam,
    case,
    column,
    func,
    literal_column,
    or_,
    select,
    table,
    true,
    tuple_,
)
from sqlalchemy import (
    cast as cast_to,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import aliased

from eric_sse_sql.execution.dialect import Construct
from eric_sse_sql.execution.statement import notification

ADVISORY_CLASS = 0x65726963  # the first key of every advisory lock: any number, the same in every process


class PostgresDialect:
    """How statements are written for Postgres."""

    paramstyle = "format"
    locks_rows = True
    insert = staticmethod(postgresql.insert)

    @staticmethod
    def rendered(sql: str) -> str:
        # Arrays in binary: psycopg sends them as text, which takes three times as long, unless the placeholder says so.
        return re.sub(r"%s(?=::\w+\[\])", "%b", sql)

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
    def in_list(column: Any, name: str) -> Construct:
        return column == any_(bindparam(name, type_=ARRAY(Text)))

    @staticmethod
    def unnest(name: str) -> Construct:
        return select(func.unnest(bindparam(name, type_=ARRAY(Text))))

    @staticmethod
    def pairs(name: str) -> Any:
        pair = func.json_each_text(cast_to(bindparam(name, type_=Text), JSON)).table_valued(
            column("key", Text), column("value", Text)
        )
        key = pair.c.key.collate("C").label("id")
        return select(key, cast_to(pair.c.value, BigInteger).label("number")).subquery("pairs")

    @staticmethod
    def list_value(values: Sequence[str]) -> list[str]:
        return list(values)

    @staticmethod
    def first_of_each(rows: Any, key: Any) -> tuple[Any, Construct]:
        return rows.lateral("first"), true()

    @staticmethod
    def ordered_range(
        group: Any, number: Any, value: Any, after: str | None = None
    ) -> tuple[Construct, tuple[Any, ...]]:
        # A row-value range. With "=", the planner may walk the index of the numbers, through the rows of all groups.
        row = tuple_(group, number)
        before: Construct = bindparam(after, type_=BigInteger) if after else literal_column("0")
        return and_(row > tuple_(value, before), row <= tuple_(value, literal_column(str(2**63 - 1)))), (group, number)

    @staticmethod
    def open_writers(model: Any) -> Construct:
        # A transaction takes this lock before it takes the number of the row that it inserts, and until its end.
        lock = table("pg_locks", column("virtualtransaction", Text), column("relation"), column("mode", Text))
        relation = table("pg_class", column("oid"), column("relname", Text))
        tables = select(relation.c.oid).where(relation.c.relname == literal_column(f"'{model.__tablename__}'"))
        return select(lock.c.virtualtransaction).where(
            lock.c.relation.in_(tables), lock.c.mode == literal_column("'RowExclusiveLock'")
        )

    @staticmethod
    def lookup_join(key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        # LIMIT 1 forbids the hash and merge joins, which read all rows of the other table.
        row = aliased(key.class_)
        of_row = [getattr(row, column.key) for column in columns]
        return select(*of_row).where(getattr(row, key.key) == value).limit(literal_column("1")).lateral(), true()

    @staticmethod
    def not_exists(rows: Any) -> Construct:
        return ~rows.offset(literal_column("0")).exists()  # OFFSET 0 forbids that it becomes a hash or merge join

    @classmethod
    def looked_up_rows(cls, key: Any, keys: Any) -> Any:
        found = keys.c[key.key]
        return and_(key == found, cls._few_rows(found), cls._custom_plan())

    looked_up_pairs = looked_up_rows

    @staticmethod
    def _few_rows(column: Any) -> Construct:
        """True for every row. The planner takes each comparison for one row in 200, expects a single row in all, and so
        looks it up in an index; where it expects many rows, it joins by a scan of the whole table."""
        nothing: Construct = literal_column("''" if isinstance(column.type, Text) else "0", column.type)
        return and_(column + nothing == column, nothing + column == column)

    @staticmethod
    def _custom_plan() -> Construct:
        """True. Only a plan that is made for the bound values leaves the costly query out, so that Postgres makes a new
        plan at each execution; a generic plan that was made on an empty table would scan a full one."""
        numbers = func.generate_series(literal_column("1"), literal_column("1000000"))
        counted = select(func.count()).select_from(numbers.alias("numbers")).scalar_subquery()
        return or_(bindparam("custom_plan", True, type_=Boolean), counted < literal_column("0"))

    @staticmethod
    def with_notification(change: Any) -> Construct:
        return select(notification()).add_cte(change.cte("change"))

    @staticmethod
    def with_notification_for_each(change: Any) -> Construct:
        if change.is_select:
            return change.add_columns(notification())
        changed = change.cte("change")
        return select(changed, notification())

    @staticmethod
    def advisory_lock(name: str) -> Construct:
        text = func.hashtext(bindparam(name, type_=Text))
        return select(func.pg_advisory_xact_lock(literal_column(str(ADVISORY_CLASS)), text))

    @staticmethod
    def transaction_id() -> Construct:
        return func.txid_current()

    @staticmethod
    def was_rolled_back(name: str) -> Construct:
        number = bindparam(name, type_=BigInteger)
        # txid_status() fails for an id that a server which has taken over has not given yet.
        is_given = number < func.txid_snapshot_xmax(func.txid_current_snapshot())
        return case((is_given, func.txid_status(number) == literal_column("'aborted'")))

    @staticmethod
    def now(shift: str | None = None) -> Construct:
        now = func.statement_timestamp()
        return now + bindparam(shift, type_=Float) * literal_column("interval '1 second'") if shift else now

    @staticmethod
    def seconds_ago(seconds: Any) -> Construct:
        return func.statement_timestamp() - seconds * literal_column("interval '1 second'")

    @staticmethod
    def seconds_since(moment: Any) -> Construct:
        seconds = func.date_part(literal_column("'epoch'"), func.statement_timestamp() - moment)
        return cast_to(func.floor(seconds), BigInteger)

    @staticmethod
    def timestamp_text(moment: Any) -> Construct:
        written: Construct = literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'""")
        return func.to_char(func.timezone(literal_column("'UTC'"), moment), written)

    @staticmethod
    def token(moment: Any) -> Construct:
        return func.to_char(func.timezone(literal_column("'UTC'"), moment), literal_column("'YYYYMMDDHH24MISSUS'"))

    @staticmethod
    def append(row: Any, counter: Any, bound: Mapping[str, str], condition: Construct, returned: Construct) -> Any:
        group, *_ = bound
        values = {column: bindparam(name, type_=getattr(row, column).type) for column, name in bound.items()}
        moment: Construct = func.clock_timestamp()
        one: Construct = literal_column("1")
        first: dict[str, Construct] = {
            group: values[group],
            "epoch": func.md5(cast_to(func.random(), Text) + cast_to(moment, Text)),
            "last_position": one,
            "first_position": one,
            "last_event_at": moment,
            "replay_seconds": literal_column("86400"),
        }
        insert = postgresql.insert(counter).from_select(
            list(first), select(*(value.label(name) for name, value in first.items())).where(condition)
        )
        counted = insert.on_conflict_do_update(
            index_elements=[group],
            set_={"last_position": counter.last_position + one, "last_event_at": insert.excluded.last_event_at},
        )
        log = counted.returning(counter.last_position, counter.last_event_at).cte("log")
        appended = select(*values.values(), log.c.last_position, log.c.last_event_at)
        insert = postgresql.insert(row).from_select([*bound, "position", "created_at"], appended)
        event = insert.returning(row.position, returned.label("returned")).cte("event")
        return select(event.c.position, event.c.returned).add_cte(log)

    @staticmethod
    def greatest(*values: Construct) -> Construct:
        return func.greatest(*values)

    @staticmethod
    def seconds_value(seconds: float) -> float:
        return seconds
