"""Shows the payloads of messages that are stored as JSON, in a view each of messages and events; on Postgres, makes
functions that send from plain SQL. Shows each connection in a view, and in that of queues what is stuck.

A downgrade leaves JSON as it is: releases that know only pickles set such messages aside, and can't load such channels.

Revision: eric_sse_sql_0006
Follows: eric_sse_sql_0005
"""

from __future__ import annotations

from alembic import op

revision = "eric_sse_sql_0006"
down_revision = "eric_sse_sql_0005"
branch_labels = None
depends_on = None

VIEWS = (
    """
CREATE VIEW sse_message_payloads AS
SELECT id, queue_id, message_type, {payload} AS payload, created_at, leased_until, delivery_count FROM sse_messages
""",
    """
CREATE VIEW sse_event_payloads AS
SELECT channel_id, position, listener_id, message_type, {payload} AS payload, created_at FROM sse_events
""",
)

# One row a connection: whether it has a stream, and what waits for it, in its queue or in the log of its channel.
CONNECTION_OVERVIEW = """
CREATE VIEW sse_connection_overview AS
SELECT
    sse_connections.id AS connection_id,
    sse_connections.channel_id,
    sse_connections.listener_id,
    sse_connections.queue_id,
    coalesce(sse_connections.seen_at > {minute_ago}, false) AS is_streaming,
    sse_connections.seen_at,
    CAST({unseen} AS BIGINT) AS unseen_seconds,
    (SELECT count(*) FROM sse_messages WHERE sse_messages.queue_id = sse_connections.queue_id) AS pending_messages,
    sse_event_logs.last_position
        - coalesce(sse_connections.position, sse_connections.start_position, 0) AS pending_events,
    sse_connections.created_at
FROM sse_connections LEFT JOIN sse_event_logs ON sse_event_logs.channel_id = sse_connections.channel_id
"""
# One row a queue. On Postgres, columns are added at the end: the view is replaced, and keeps the rights on it.
QUEUE_OVERVIEW = """
CREATE {or_replace}VIEW sse_queue_overview AS
SELECT
    queues.queue_id,
    count(sse_messages.id) AS depth,
    count(CASE WHEN sse_messages.leased_until > {now} THEN 1 END) AS leased,
    min(sse_messages.created_at) AS oldest_message_at,
    CAST({age} AS BIGINT) AS oldest_message_age_seconds{stuck}
FROM (SELECT queue_id FROM sse_connections UNION SELECT queue_id FROM sse_messages{set_aside}) AS queues
LEFT JOIN sse_messages ON sse_messages.queue_id = queues.queue_id
GROUP BY queues.queue_id
"""
STUCK = """,
    coalesce(max(sse_messages.delivery_count), 0) AS most_deliveries,
    (
        SELECT count(*) FROM sse_set_aside_messages WHERE sse_set_aside_messages.queue_id = queues.queue_id
    ) AS set_aside"""
SET_ASIDE = " UNION SELECT queue_id FROM sse_set_aside_messages"
NOW = {"postgresql": "clock_timestamp()", "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')"}
MINUTE_AGO = {
    "postgresql": "clock_timestamp() - interval '1 minute'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-60 seconds')",
}
AGE = {
    "postgresql": "extract(epoch FROM clock_timestamp() - {time})",
    "sqlite": "strftime('%s', 'now') - strftime('%s', {time})",
}

# A signature has 44 bytes. What is no JSON has no payload, and so has a text that jsonb can't hold.
POSTGRES_PAYLOAD = """
CREATE FUNCTION eric_sse_payload(message bytea) RETURNS jsonb LANGUAGE plpgsql STABLE STRICT AS $$
BEGIN
    IF substring(message FROM 1 FOR 12) = convert_to('HMAC-SHA256:', 'UTF8') THEN
        message := substring(message FROM 45);
    END IF;
    RETURN convert_from(message, 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$
"""
SQLITE_PAYLOAD = """
CASE
    WHEN typeof(message) <> 'blob' OR instr(message, X'00') > 0 THEN NULL
    WHEN substr(message, 1, 12) = CAST('HMAC-SHA256:' AS BLOB) THEN
        CASE WHEN json_valid(CAST(substr(message, 45) AS TEXT)) THEN CAST(substr(message, 45) AS TEXT) END
    WHEN json_valid(CAST(message AS TEXT)) THEN CAST(message AS TEXT)
END
"""

# The functions run with the rights of their caller, and see the tables of their own schema, whatever the search path.
FUNCTIONS = (
    """
CREATE FUNCTION eric_sse_notify(kind text, key bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE  -- for processes that find the schema by their search path, and for those that name it
    schemas bytea[] := ARRAY[''::bytea, convert_to(current_schema(), 'UTF8')];
BEGIN
    PERFORM pg_notify('eric_sse_sql', string_agg(kind || translate(encode(hash, 'base64'), '+/', '-_'), ''))
    FROM (
        SELECT substring(sha256(schema || decode('00', 'hex') || key) FROM 1 FOR 3) FROM unnest(schemas) AS schema
    ) AS hashes (hash);
END
$$
""",
    """
CREATE FUNCTION eric_sse_append(channel text, listener text, type text, message bytea) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    log sse_event_logs;
BEGIN  -- false where the channel has no log
    IF type IS NULL OR char_length(type) > 255 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the type of a message must be a text of at most 255 characters';
    END IF;
    IF NOT EXISTS (SELECT FROM sse_channels WHERE id = channel) THEN
        RAISE no_data_found USING MESSAGE = 'there is no channel ' || quote_nullable(channel),
            HINT = 'A channel is known once its repository has persisted it; sse_channels has the ids.';
    END IF;
    IF listener IS NOT NULL AND NOT EXISTS (
        SELECT FROM sse_connections WHERE channel_id = channel AND listener_id = listener
    ) THEN
        RAISE no_data_found USING
            MESSAGE = 'channel ' || quote_literal(channel) || ' has no listener ' || quote_literal(listener),
            HINT = 'A listener is known once its channel was persisted with it; sse_connections has the ids.';
    END IF;
    IF EXISTS (
        SELECT FROM sse_connections
        WHERE channel_id = channel AND has_own_push AND (listener IS NULL OR listener_id = listener)
    ) THEN
        RAISE feature_not_supported USING
            MESSAGE = 'channel ' || quote_literal(channel) || ' has a queue with a push() of its own',
            HINT = 'SQL can''t call it: send from Python, with the channel''s broadcast() or dispatch().';
    END IF;
    UPDATE sse_event_logs SET last_position = last_position + 1, last_event_at = clock_timestamp()
    WHERE channel_id = channel AND replay_seconds > 0 RETURNING * INTO log;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO sse_events (channel_id, position, listener_id, message_type, message, created_at)
    VALUES (channel, log.last_position, listener, type, message, log.last_event_at);
    PERFORM eric_sse_notify('c', convert_to(channel, 'UTF8'));
    RETURN true;
END
$$
""",
    """
CREATE FUNCTION eric_sse_broadcast(channel text, type text, payload jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    json bytea := convert_to(coalesce(payload, 'null')::text, 'UTF8');
BEGIN
    IF NOT eric_sse_append(channel, NULL, type, json) THEN
        INSERT INTO sse_messages (queue_id, message_type, message)
        SELECT queue_id, type, json FROM sse_connections WHERE channel_id = channel;
        PERFORM eric_sse_notify('c', convert_to(channel, 'UTF8'));
    END IF;
END
$$
""",
    """
CREATE FUNCTION eric_sse_dispatch(channel text, listener text, type text, payload jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    json bytea := convert_to(coalesce(payload, 'null')::text, 'UTF8');
BEGIN
    IF listener IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the listener must not be NULL',
            HINT = 'Send to all listeners with eric_sse_broadcast(channel, type, payload).';
    END IF;
    IF NOT eric_sse_append(channel, listener, type, json) THEN
        INSERT INTO sse_messages (queue_id, message_type, message)
        SELECT queue_id, type, json FROM sse_connections
        WHERE channel_id = channel AND listener_id = listener ORDER BY id LIMIT 1;
        PERFORM eric_sse_notify(
            'l', convert_to(channel, 'UTF8') || decode('00', 'hex') || convert_to(listener, 'UTF8')
        );
    END IF;
END
$$
""",
)
SIGNATURES = (
    "eric_sse_notify(text, bytea)",
    "eric_sse_append(text, text, text, bytea)",
    "eric_sse_broadcast(text, text, jsonb)",
    "eric_sse_dispatch(text, text, text, jsonb)",
)
PIN_SEARCH_PATH = """
DO $$ BEGIN
    EXECUTE 'ALTER FUNCTION {signature} SET search_path = ' || quote_ident(current_schema()) || ', pg_temp';
END $$
"""


def replace_queue_overview(database: str, or_replace: str, stuck: str, set_aside: str) -> None:
    if not or_replace:
        op.execute("DROP VIEW sse_queue_overview")
    age = AGE[database].format(time="min(sse_messages.created_at)")
    options = {"or_replace": or_replace, "stuck": stuck, "set_aside": set_aside}
    op.execute(QUEUE_OVERVIEW.format(now=NOW[database], age=age, **options))


def upgrade() -> None:
    is_postgres = op.get_context().dialect.name == "postgresql"
    if is_postgres:
        op.execute(POSTGRES_PAYLOAD)
        for function in FUNCTIONS:
            op.execute(function)
        for signature in SIGNATURES:
            op.execute(PIN_SEARCH_PATH.format(signature=signature))
    for view in VIEWS:
        op.execute(view.format(payload="eric_sse_payload(message)" if is_postgres else SQLITE_PAYLOAD))
    database = op.get_context().dialect.name
    unseen = AGE[database].format(time="coalesce(sse_connections.seen_at, sse_connections.created_at)")
    op.execute(CONNECTION_OVERVIEW.format(minute_ago=MINUTE_AGO[database], unseen=unseen))
    replace_queue_overview(database, "OR REPLACE " if is_postgres else "", STUCK, SET_ASIDE)


def downgrade() -> None:
    for view in ("sse_connection_overview", "sse_message_payloads", "sse_event_payloads"):
        op.execute(f"DROP VIEW {view}")
    replace_queue_overview(op.get_context().dialect.name, "", "", "")
    if op.get_context().dialect.name == "postgresql":
        for signature in (*SIGNATURES, "eric_sse_payload(bytea)"):
            op.execute(f"DROP FUNCTION {signature}")
