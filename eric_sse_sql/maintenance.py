"""The statements of housekeeping."""

from __future__ import annotations

from sqlalchemy import delete, exists, literal

from eric_sse_sql.models import QUEUES, ConnectionRow, KvEntry, MessageRow
from eric_sse_sql.statements import Construct, Dialect, Statement


def _prune(sql: Dialect) -> Construct:
    return delete(MessageRow).where(
        MessageRow.created_at < sql.now("age"),
        ~exists().where(ConnectionRow.queue_id == MessageRow.queue_id),
        ~exists().where(KvEntry.key == literal(f"{QUEUES}/") + MessageRow.queue_id),
    )


PRUNE = Statement(_prune)
