"""A log for each channel in place of delivered messages; presence of connections; messages that could not be decoded.

Revision: eric_sse_sql_0004
Follows: eric_sse_sql_0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "eric_sse_sql_0004"
down_revision = "eric_sse_sql_0003"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
MESSAGE_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PLAIN_QUEUES = "'eric_sse_sql.queues.SqlQueue', 'eric_sse_sql.queues.BlockingSqlQueue'"
EPOCH = {"postgresql": "md5(random()::text || clock_timestamp()::text)", "sqlite": "lower(hex(randomblob(16)))"}
MINUTE_AGO = {
    "postgresql": "clock_timestamp() - interval '1 minute'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-60 seconds')",
}

# One row a channel. Messages of a queue that two of its connections share count once.
CHANNEL_OVERVIEW = """
CREATE VIEW sse_channel_overview AS
SELECT
    sse_channels.id AS channel_id,
    sse_channels.channel_type,
    (SELECT count(*) FROM sse_connections WHERE sse_connections.channel_id = sse_channels.id) AS connections,{streaming}
    (
        SELECT count(*) FROM sse_messages WHERE sse_messages.queue_id IN (
            SELECT sse_connections.queue_id FROM sse_connections WHERE sse_connections.channel_id = sse_channels.id
        )
    ) AS pending_messages,
    sse_channels.created_at,
    sse_channels.updated_at
FROM sse_channels
"""
STREAMING = """
    (
        SELECT count(*) FROM sse_connections
        WHERE sse_connections.channel_id = sse_channels.id AND sse_connections.seen_at > {minute_ago}
    ) AS streaming,"""

# Delivered messages become dispatches to the listener of their queue, in the order of their delivery.
MOVE_DELIVERED = """
INSERT INTO sse_events (channel_id, position, listener_id, message_type, message, created_at)
SELECT
    sse_connections.channel_id,
    row_number() OVER (
        PARTITION BY sse_connections.channel_id
        ORDER BY delivered.delivered_at, delivered.queue_id, delivered.position
    ),
    sse_connections.listener_id,
    delivered.message_type,
    delivered.message,
    delivered.delivered_at
FROM sse_delivered_messages AS delivered
JOIN sse_connections ON sse_connections.queue_id = delivered.queue_id
WHERE sse_connections.channel_id IS NOT NULL
"""
# How long a channel keeps its events is in its pickle; persisting the channel writes it here, too.
MAKE_LOGS = """
INSERT INTO sse_event_logs (channel_id, epoch, last_position, first_position, last_event_at, replay_seconds)
SELECT channel_id, {epoch}, max(position), 1, max(created_at), 86400 FROM sse_events GROUP BY channel_id
"""
# On Postgres, one statement numbers an event and writes the log's row; SQLite has no such statement.
SQLITE_TRIGGER = """
CREATE TRIGGER sse_events_appended AFTER INSERT ON sse_events
BEGIN
    INSERT INTO sse_event_logs (channel_id, epoch, last_position, first_position, last_event_at, replay_seconds)
    VALUES (NEW.channel_id, lower(hex(randomblob(8))), NEW.position, NEW.position, NEW.created_at, 86400)
    ON CONFLICT (channel_id) DO UPDATE
    SET last_position = NEW.position, last_event_at = NEW.created_at;
END
"""
SET_POSITIONS = """
UPDATE sse_connections SET position = (
    SELECT last_position FROM sse_event_logs WHERE sse_event_logs.channel_id = sse_connections.channel_id
)
WHERE channel_id IN (SELECT channel_id FROM sse_event_logs)
"""
# Messages that wait in the queues of these channels follow them in the log: a dispatch after the upgrade comes later.
WAITING = """
    FROM sse_messages JOIN sse_connections ON sse_connections.queue_id = sse_messages.queue_id
    JOIN sse_event_logs ON sse_event_logs.channel_id = sse_connections.channel_id
    WHERE sse_messages.leased_until IS NULL AND NOT sse_connections.has_own_push
"""
MOVE_WAITING = f"""
INSERT INTO sse_events (channel_id, position, listener_id, message_type, message, created_at)
SELECT
    sse_connections.channel_id,
    sse_event_logs.last_position + row_number() OVER (
        PARTITION BY sse_connections.channel_id ORDER BY sse_messages.id, sse_connections.id
    ),
    sse_connections.listener_id,
    sse_messages.message_type,
    sse_messages.message,
    CURRENT_TIMESTAMP  -- kept as long as an event that is dispatched now
{WAITING}
"""
DELETE_MOVED = f"DELETE FROM sse_messages WHERE id IN (SELECT sse_messages.id {WAITING})"
NOTE_MOVED = """
UPDATE sse_event_logs SET (last_position, last_event_at) = (
    SELECT position, created_at FROM sse_events WHERE sse_events.channel_id = sse_event_logs.channel_id
    ORDER BY position DESC LIMIT 1
)
"""

# Back: what a connection has got of the log becomes the delivered messages of its queue; the rest waits there.
RESTORE_DELIVERED = """
INSERT INTO sse_delivered_messages (queue_id, position, message_type, message, delivered_at)
SELECT
    sse_connections.queue_id,
    row_number() OVER (PARTITION BY sse_connections.queue_id ORDER BY sse_events.position, sse_connections.id),
    sse_events.message_type,
    sse_events.message,
    sse_events.created_at
FROM sse_events
JOIN sse_connections ON sse_connections.channel_id = sse_events.channel_id
    AND (sse_events.listener_id IS NULL OR sse_events.listener_id = sse_connections.listener_id)
WHERE sse_events.position > coalesce(sse_connections.start_position, 0)
    AND sse_events.position <= coalesce(sse_connections.position, 0)
"""
RESTORE_POSITIONS = """
INSERT INTO sse_delivery_positions (queue_id, last_position)
SELECT queue_id, max(position) FROM sse_delivered_messages GROUP BY queue_id
"""
RESTORE_WAITING = """
INSERT INTO sse_messages (queue_id, message_type, message, created_at)
SELECT sse_connections.queue_id, sse_events.message_type, sse_events.message, sse_events.created_at
FROM sse_events
JOIN sse_connections ON sse_connections.channel_id = sse_events.channel_id
    AND (sse_events.listener_id IS NULL OR sse_events.listener_id = sse_connections.listener_id)
WHERE sse_events.position > coalesce(sse_connections.start_position, 0)
    AND sse_events.position > coalesce(sse_connections.position, 0)
ORDER BY sse_events.channel_id, sse_events.position
"""


def timestamp(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.current_timestamp(), nullable=False)


def upgrade() -> None:
    database = op.get_context().dialect.name
    op.execute("DROP VIEW sse_channel_overview")
    for column in (
        sa.Column("start_position", sa.BigInteger(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("has_own_push", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("cleared_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
    ):
        op.add_column("sse_connections", column)
    op.create_index(op.f("ix_sse_connections_channel_id_listener_id"), "sse_connections", ["channel_id", "listener_id"])
    op.drop_index(op.f("ix_sse_connections_channel_id"), "sse_connections")
    op.create_index(
        op.f("ix_sse_connections_own_push"),
        "sse_connections",
        ["channel_id"],
        postgresql_where=sa.column("has_own_push", sa.Boolean()),
        sqlite_where=sa.text("has_own_push = 1"),  # as statements have it: SQLite compares the expressions
    )
    op.create_table(
        "sse_set_aside_messages",
        sa.Column("id", MESSAGE_ID, nullable=False, autoincrement=False),
        sa.Column("queue_id", KEY, nullable=False),
        sa.Column("message_type", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivery_count", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        timestamp("set_aside_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sse_set_aside_messages")),
    )
    op.create_index(op.f("ix_sse_set_aside_messages_queue_id"), "sse_set_aside_messages", ["queue_id"])
    op.create_table(
        "sse_event_logs",
        sa.Column("channel_id", KEY, nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.Column("first_position", sa.BigInteger(), nullable=False),
        sa.Column("last_event_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replay_seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("channel_id", name=op.f("pk_sse_event_logs")),
    )
    op.create_table(
        "sse_events",
        sa.Column("channel_id", KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("listener_id", KEY, nullable=True),
        sa.Column("message_type", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        timestamp("created_at"),
        sa.PrimaryKeyConstraint("channel_id", "position", name=op.f("pk_sse_events")),
    )
    op.create_index(
        op.f("ix_sse_events_channel_id_listener_id_position"), "sse_events", ["channel_id", "listener_id", "position"]
    )
    op.execute(
        "UPDATE sse_connections SET has_own_push = true WHERE queue_key IN "
        f"(SELECT key FROM kv_entries WHERE value_type NOT IN ({PLAIN_QUEUES}))"
    )
    op.execute(MOVE_DELIVERED)
    op.execute(MAKE_LOGS.format(epoch=EPOCH[database]))
    op.execute(SET_POSITIONS)
    op.execute(MOVE_WAITING)
    op.execute(DELETE_MOVED)
    op.execute(NOTE_MOVED)
    op.drop_table("sse_delivery_positions")
    op.drop_table("sse_delivered_messages")
    if database == "sqlite":
        op.execute(SQLITE_TRIGGER)
    streaming = STREAMING.format(minute_ago=MINUTE_AGO[database])
    op.execute(CHANNEL_OVERVIEW.format(streaming=streaming))


def downgrade() -> None:
    op.execute("DROP VIEW sse_channel_overview")
    op.create_table(
        "sse_delivered_messages",
        sa.Column("queue_id", KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("message_type", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        timestamp("delivered_at"),
        sa.PrimaryKeyConstraint("queue_id", "position", name=op.f("pk_sse_delivered_messages")),
    )
    op.create_table(
        "sse_delivery_positions",
        sa.Column("queue_id", KEY, nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("queue_id", name=op.f("pk_sse_delivery_positions")),
    )
    op.execute(RESTORE_DELIVERED)
    op.execute(RESTORE_POSITIONS)
    op.execute(RESTORE_WAITING)
    op.execute(
        "INSERT INTO sse_messages (queue_id, message_type, message, created_at) "
        "SELECT queue_id, message_type, message, created_at FROM sse_set_aside_messages ORDER BY id"
    )
    for table in ("sse_events", "sse_event_logs", "sse_set_aside_messages"):
        op.drop_table(table)
    op.create_index(op.f("ix_sse_connections_channel_id"), "sse_connections", ["channel_id"])
    op.drop_index(op.f("ix_sse_connections_channel_id_listener_id"), "sse_connections")
    op.drop_index(op.f("ix_sse_connections_own_push"), "sse_connections")
    for column in ("seen_at", "cleared_at", "has_own_push", "position", "start_position"):
        op.drop_column("sse_connections", column)
    op.execute(CHANNEL_OVERVIEW.format(streaming=""))
