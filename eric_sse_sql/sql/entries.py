"""Statements on ``kv_entries``."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, delete, select

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import Statement, insert_row, upsert, upsert_rows
from eric_sse_sql.models import KvEntry

CONTEXT = f"{KvEntry.__tablename__}/"  # with the key, the context of a value's signature
ENTRY = {"key": "key", "value": "value", "value_type": "value_type"}  # the parameter of each column


class Entry(NamedTuple):
    """A row of a page."""

    key: str
    value: bytes


def _upsert(sql: Dialect) -> Construct:
    return upsert(sql, KvEntry, ENTRY)


def _upsert_many(sql: Dialect) -> Construct:
    return upsert_rows(sql, KvEntry, ENTRY)


def _insert_missing(sql: Dialect) -> Construct:
    return insert_row(sql, KvEntry, ENTRY).on_conflict_do_nothing()


def _fetch(sql: Dialect) -> Construct:
    return select(KvEntry.value).where(KvEntry.key == bindparam("key"))


def _delete(sql: Dialect) -> Construct:
    return delete(KvEntry).where(KvEntry.key == bindparam("key"))


def _first_page(sql: Dialect) -> Construct:
    return _page().where(KvEntry.key >= bindparam("start"))


def _next_page(sql: Dialect) -> Construct:
    return _page().where(KvEntry.key > bindparam("start"))


def _page() -> Construct:
    page = select(KvEntry.key, KvEntry.value).where(KvEntry.key < bindparam("end"))
    return page.order_by(KvEntry.key).limit(bindparam("count"))


UPSERT = Statement(_upsert)
UPSERT_MANY = Statement(_upsert_many)
INSERT_MISSING = Statement(_insert_missing)
FETCH = Statement(_fetch)
DELETE = Statement(_delete)
FIRST_PAGE = Statement(_first_page)
NEXT_PAGE = Statement(_next_page)
