"""Creates the tables of entries, channels, connections and messages, and a view each of channels and queues.

Revision: eric_sse_sql_0001
Follows:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "eric_sse_sql_0001"
down_revision = None
branch_labels = ("eric_sse_sql",)
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
MESSAGE_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# One row for each channel. Messages of a queue that two of its connections share count once.
CHANNEL_OVERVIEW = """
CREATE VIEW sse_channel_overview AS
SELECT
    sse_channels.id AS channel_id,
    sse_channels.channel_type,
    (SELECT count(*) FROM sse_connections WHERE sse_connections.channel_id = sse_channels.id) AS connections,
    (
        SELECT count(*) FROM sse_messages WHERE sse_messages.queue_id IN (
            SELECT sse_connections.queue_id FROM sse_connections WHERE sse_connections.channel_id = sse_channels.id
        )
    ) AS pending_messages,
    sse_channels.created_at,
    sse_channels.updated_at
FROM sse_channels
"""

# One row for each queue that a connection reads or that holds messages.
QUEUE_OVERVIEW = """
CREATE VIEW sse_queue_overview AS
SELECT
    queues.queue_id,
    count(sse_messages.id) AS depth,
    min(sse_messages.created_at) AS oldest_message_at,
    CAST({age} AS BIGINT) AS oldest_message_age_seconds
FROM (SELECT queue_id FROM sse_connections UNION SELECT queue_id FROM sse_messages) AS queues
LEFT JOIN sse_messages ON sse_messages.queue_id = queues.queue_id
GROUP BY queues.queue_id
"""


def timestamp(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.current_timestamp(), nullable=False)


def upgrade() -> None:
    op.create_table(
        "kv_entries",
        sa.Column("key", KEY, nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("value_type", sa.Text(), nullable=False),
        timestamp("created_at"),
        timestamp("updated_at"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_kv_entries")),
    )
    op.create_table(
        "sse_channels",
        sa.Column("id", KEY, nullable=False),
        sa.Column("entry_key", KEY, nullable=False),
        sa.Column("channel_type", sa.Text(), nullable=False),
        timestamp("created_at"),
        timestamp("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sse_channels")),
        sa.UniqueConstraint("entry_key", name=op.f("uq_sse_channels_entry_key")),
        sa.ForeignKeyConstraint(
            ["entry_key"], ["kv_entries.key"], name=op.f("fk_sse_channels_entry_key"), ondelete="CASCADE"
        ),
    )
    op.create_table(
        "sse_connections",
        sa.Column("id", KEY, nullable=False),
        sa.Column("channel_id", KEY, nullable=True),
        sa.Column("listener_id", KEY, nullable=False),
        sa.Column("listener_key", KEY, nullable=False),
        sa.Column("queue_id", KEY, nullable=False),
        sa.Column("queue_key", KEY, nullable=False),
        timestamp("created_at"),
        timestamp("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sse_connections")),
        sa.ForeignKeyConstraint(
            ["channel_id"], ["sse_channels.id"], name=op.f("fk_sse_connections_channel_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["listener_key"], ["kv_entries.key"], name=op.f("fk_sse_connections_listener_key"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["queue_key"], ["kv_entries.key"], name=op.f("fk_sse_connections_queue_key"), ondelete="CASCADE"
        ),
    )
    for column in ("channel_id", "listener_key", "queue_id", "queue_key"):
        op.create_index(op.f(f"ix_sse_connections_{column}"), "sse_connections", [column])
    op.create_table(
        "sse_messages",
        sa.Column("id", MESSAGE_ID, sa.Identity(), nullable=False),
        sa.Column("queue_id", KEY, nullable=False),
        sa.Column("message_type", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        timestamp("created_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sse_messages")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_sse_messages_queue_id_id"), "sse_messages", ["queue_id", "id"])
    if op.get_context().dialect.name == "postgresql":
        # Dead rows at the head of a queue slow each pop; by default, autovacuum waits for a fifth of the table.
        op.execute(
            "ALTER TABLE sse_messages SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)"
        )
        age = "extract(epoch FROM clock_timestamp() - min(sse_messages.created_at))"
    else:
        age = "strftime('%s', 'now') - strftime('%s', min(sse_messages.created_at))"
    op.execute(CHANNEL_OVERVIEW)
    op.execute(QUEUE_OVERVIEW.format(age=age))


def downgrade() -> None:
    for view in ("sse_queue_overview", "sse_channel_overview"):
        op.execute(f"DROP VIEW {view}")
    for table in ("sse_messages", "sse_connections", "sse_channels", "kv_entries"):
        op.drop_table(table)
