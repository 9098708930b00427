"""Creates the tables of delivered messages, which streams replay, and of the last position of each queue.

Revision: eric_sse_sql_0003
Follows: eric_sse_sql_0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "eric_sse_sql_0003"
down_revision = "eric_sse_sql_0002"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sse_delivered_messages",
        sa.Column("queue_id", KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("message_type", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column(
            "delivered_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.current_timestamp(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("queue_id", "position", name=op.f("pk_sse_delivered_messages")),
    )
    op.create_table(
        "sse_delivery_positions",
        sa.Column("queue_id", KEY, nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("queue_id", name=op.f("pk_sse_delivery_positions")),
    )


def downgrade() -> None:
    op.drop_table("sse_delivery_positions")
    op.drop_table("sse_delivered_messages")
