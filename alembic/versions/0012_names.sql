ALTER TABLE mailing
    ADD COLUMN name character varying,
    ADD COLUMN labels character varying[] NOT NULL DEFAULT '{}'::character varying[],
    ADD COLUMN label_keys character varying[] NOT NULL DEFAULT '{}'::character varying[],
    ADD CONSTRAINT mailing_name_check CHECK (char_length(name) BETWEEN 1 AND 100),
    ADD CONSTRAINT mailing_labels_check
        CHECK (cardinality(labels) <= 10 AND cardinality(label_keys) = cardinality(labels));

DROP INDEX mailing_words_idx;

DROP FUNCTION mailing_words(bigint, text, text);

-- The words of a mailing (of its text, its name and its labels), its status and its labels, each behind the
-- thousand that its id belongs to: a search by thousands reads little. `=` and `#` are in no word.

CREATE FUNCTION mailing_words(
    id bigint, value text, status text, name text, label_keys text[]) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 100000
    RETURN array_to_tsvector(ARRAY(
        SELECT id / 1000 || ' ' || word FROM unnest(
            words_of(value) || coalesce(words_of(name), '{}') || ('=' || status)) AS word
        UNION ALL
        SELECT id / 1000 || ' ' || word
        FROM unnest(label_keys) AS label, unnest(words_of(label) || ('#' || label)) AS word));

CREATE INDEX mailing_words_idx ON mailing
    USING gin (mailing_words(id, text::text, status::text, name::text, label_keys::text[]))
    WITH (fastupdate = off);

CREATE INDEX mailing_status_datetime_start_id_idx ON mailing (status, datetime_start, id)
    WHERE deleted_at IS NULL;

CREATE INDEX mailing_status_datetime_end_id_idx ON mailing (status, datetime_end, id)
    WHERE deleted_at IS NULL;

CREATE INDEX mailing_status_clients_count_id_idx ON mailing (status, clients_count, id)
    WHERE deleted_at IS NULL;

CREATE INDEX mailing_period_idx ON mailing USING gist (tstzrange(datetime_start, datetime_end))
    WHERE deleted_at IS NULL;

CREATE OR REPLACE FUNCTION add_event_of_mailing() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    event_type varchar := 'mailing.' || TG_ARGV[0];
BEGIN
    IF EXISTS (SELECT FROM webhook WHERE is_enabled AND event_type = ANY (events)) THEN
        PERFORM add_webhook_event(event_type, json_build_object(
            'id', new.id, 'name', new.name, 'status', new.status,
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
