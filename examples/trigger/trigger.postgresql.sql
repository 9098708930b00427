-- One worker at a time; the lock is released when the transaction ends.
SELECT pg_advisory_xact_lock(hashtext('prices'));

CREATE TABLE IF NOT EXISTS prices (item text PRIMARY KEY, cents integer NOT NULL);

INSERT INTO prices VALUES ('salt', 90), ('tea', 240) ON CONFLICT DO NOTHING;

CREATE OR REPLACE FUNCTION tell_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM eric_sse_broadcast('prices', 'removed', to_jsonb(OLD));
    ELSE
        PERFORM eric_sse_broadcast('prices', 'price', to_jsonb(NEW));
    END IF;
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS tell_price ON prices;

CREATE TRIGGER tell_price AFTER INSERT OR UPDATE OR DELETE ON prices FOR EACH ROW EXECUTE FUNCTION tell_price();
