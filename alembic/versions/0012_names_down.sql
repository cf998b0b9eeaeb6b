CREATE OR REPLACE FUNCTION add_event_of_mailing() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    event_type varchar := 'mailing.' || TG_ARGV[0];
BEGIN
    IF EXISTS (SELECT FROM webhook WHERE is_enabled AND event_type = ANY (events)) THEN
        PERFORM add_webhook_event(event_type, json_build_object(
            'id', new.id, 'status', new.status,
            'datetime_start',
            to_char(new.datetime_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'datetime_end',
            to_char(new.datetime_end AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'clients_count', new.clients_count,
            'messages', (
                SELECT to_jsonb(counts) - '{mailing_id, first_sent_at, last_sent_at}'::text[]
                FROM mailing_counts AS counts WHERE counts.mailing_id = new.id)));
    END IF;
    RETURN NULL;
END $$;

DROP INDEX mailing_period_idx;

DROP INDEX mailing_status_clients_count_id_idx;

DROP INDEX mailing_status_datetime_end_id_idx;

DROP INDEX mailing_status_datetime_start_id_idx;

DROP INDEX mailing_words_idx;

DROP FUNCTION mailing_words(bigint, text, text, text, text[]);

CREATE FUNCTION mailing_words(id bigint, value text, status text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 100000
    RETURN array_to_tsvector(ARRAY(
        SELECT id / 1000 || ' ' || word FROM unnest(words_of(value) || ('=' || status)) AS word));

CREATE INDEX mailing_words_idx ON mailing
    USING gin (mailing_words(id, text::text, status::text)) WITH (fastupdate = off);

ALTER TABLE mailing DROP COLUMN name, DROP COLUMN labels, DROP COLUMN label_keys;
