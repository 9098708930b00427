"""Creates the table of the ids of messages that were added with one, so that a repeated call adds none.

Revision: eric_sse_sql_0005
Follows: eric_sse_sql_0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "eric_sse_sql_0005"
down_revision = "eric_sse_sql_0004"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sse_message_ids",
        sa.Column("owner_id", KEY, nullable=False),
        sa.Column("message_id", KEY, nullable=False),
        sa.Column("listener_id", KEY, nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.current_timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "message_id", "listener_id", "recipient", name=op.f("pk_sse_message_ids")),
    )
    op.create_index(op.f("ix_sse_message_ids_created_at"), "sse_message_ids", ["created_at"])


def downgrade() -> None:
    op.drop_table("sse_message_ids")
