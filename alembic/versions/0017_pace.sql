ALTER TABLE mailing
    ADD COLUMN priority character varying NOT NULL DEFAULT 'normal',
    ADD COLUMN rate double precision,
    ADD CONSTRAINT mailing_priority_check CHECK (priority IN ('low', 'normal', 'high')),
    ADD CONSTRAINT mailing_rate_check CHECK (rate BETWEEN 0.01 AND 10000);

CREATE TABLE mailing_pace (
    mailing_id bigint NOT NULL,
    next_slot_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT mailing_pace_pkey PRIMARY KEY (mailing_id),
    CONSTRAINT mailing_pace_mailing_id_fkey FOREIGN KEY (mailing_id)
        REFERENCES mailing (id) ON DELETE CASCADE
) WITH (fillfactor = 20);

CREATE FUNCTION add_mailing_pace() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO mailing_pace (mailing_id) VALUES (new.id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER add_mailing_pace AFTER INSERT OR UPDATE OF rate ON mailing
    FOR EACH ROW WHEN (new.rate IS NOT NULL) EXECUTE FUNCTION add_mailing_pace();
