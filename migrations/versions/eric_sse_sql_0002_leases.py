"""Adds leases to messages, and the number of leased messages to the view of queues.

Revision: eric_sse_sql_0002
Follows: eric_sse_sql_0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "eric_sse_sql_0002"
down_revision = "eric_sse_sql_0001"
branch_labels = None
depends_on = None

QUEUE_OVERVIEW = """
CREATE VIEW sse_queue_overview AS
SELECT
    queues.queue_id,
    count(sse_messages.id) AS depth,{leased}
    min(sse_messages.created_at) AS oldest_message_at,
    CAST({age} AS BIGINT) AS oldest_message_age_seconds
FROM (SELECT queue_id FROM sse_connections UNION SELECT queue_id FROM sse_messages) AS queues
LEFT JOIN sse_messages ON sse_messages.queue_id = queues.queue_id
GROUP BY queues.queue_id
"""
LEASED = "\n    count(CASE WHEN sse_messages.leased_until > {now} THEN 1 END) AS leased,"


def replace_overview(leased: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        age, now = "extract(epoch FROM clock_timestamp() - min(sse_messages.created_at))", "clock_timestamp()"
    else:
        age = "strftime('%s', 'now') - strftime('%s', min(sse_messages.created_at))"
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    op.execute(QUEUE_OVERVIEW.format(age=age, leased=leased.format(now=now)))


def upgrade() -> None:
    op.add_column("sse_messages", sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "sse_messages", sa.Column("delivery_count", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.execute("DROP VIEW sse_queue_overview")
    replace_overview(LEASED)


def downgrade() -> None:
    op.execute("DROP VIEW sse_queue_overview")
    for column in ("delivery_count", "leased_until"):
        op.drop_column("sse_messages", column)
    replace_overview("")
