"""Statements on ``sse_message_ids``."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, func, select, true, tuple_

from eric_sse_sql.execution.dialect import Construct, Dialect
from eric_sse_sql.execution.statement import Statement
from eric_sse_sql.models import MessageIdRow

_KEY = MessageIdRow.owner_id, MessageIdRow.listener_id, MessageIdRow.recipient, MessageIdRow.message_id


def _remember(sql: Dialect) -> Construct:
    """Insert the bound ids of messages to one recipient, and return those that were not there.

    It waits for a transaction that has inserted one of them, and inserts it where that one is rolled back.
    """
    recipient = [bindparam(column.key, type_=column.type) for column in _KEY[:-1]]
    message_id = sql.unnest("message_ids").subquery("message").c[0]
    ids = select(*recipient, message_id).where(true())  # without WHERE, SQLite reads ON CONFLICT as part of a join
    insert = sql.insert(MessageIdRow).from_select([column.key for column in _KEY], ids)
    return insert.on_conflict_do_nothing().returning(MessageIdRow.message_id)


def _forget(sql: Dialect) -> Construct:
    """Delete the oldest ids, so many at most, that were inserted long enough ago."""
    page = select(*_KEY).where(_is_old(sql)).order_by(MessageIdRow.created_at).limit(bindparam("count"))
    return delete(MessageIdRow).where(tuple_(*_KEY).in_(page)).returning(MessageIdRow.owner_id)


def _is_old(sql: Dialect) -> Construct:
    return MessageIdRow.created_at < sql.now("age")


def _count_old(sql: Dialect) -> Construct:
    """How many ids would be forgotten."""
    return select(func.count()).select_from(MessageIdRow).where(_is_old(sql))


REMEMBER = Statement(_remember)
FORGET = Statement(_forget)
COUNT_OLD = Statement(_count_old)
