CREATE TABLE IF NOT EXISTS prices (item TEXT PRIMARY KEY, cents INTEGER NOT NULL);

INSERT INTO prices VALUES ('salt', 90), ('tea', 240) ON CONFLICT DO NOTHING;

-- A channel that is persisted with replay_seconds has a row in sse_event_logs; each event takes the next position.
CREATE TRIGGER IF NOT EXISTS tell_new_price AFTER INSERT ON prices BEGIN
    INSERT INTO sse_events (channel_id, position, message_type, message, created_at)
    SELECT channel_id, last_position + 1, 'price', CAST(json_object('item', NEW.item, 'cents', NEW.cents) AS BLOB),
           strftime('%Y-%m-%d %H:%M:%f', 'now')
    FROM sse_event_logs WHERE channel_id = 'prices';
END;

CREATE TRIGGER IF NOT EXISTS tell_price AFTER UPDATE ON prices BEGIN
    INSERT INTO sse_events (channel_id, position, message_type, message, created_at)
    SELECT channel_id, last_position + 1, 'price', CAST(json_object('item', NEW.item, 'cents', NEW.cents) AS BLOB),
           strftime('%Y-%m-%d %H:%M:%f', 'now')
    FROM sse_event_logs WHERE channel_id = 'prices';
END;

CREATE TRIGGER IF NOT EXISTS tell_removed AFTER DELETE ON prices BEGIN
    INSERT INTO sse_events (channel_id, position, message_type, message, created_at)
    SELECT channel_id, last_position + 1, 'removed', CAST(json_object('item', OLD.item) AS BLOB),
           strftime('%Y-%m-%d %H:%M:%f', 'now')
    FROM sse_event_logs WHERE channel_id = 'prices';
END;
