CREATE TABLE route (
    id integer NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT route_pkey PRIMARY KEY,
    gateways character varying[] NOT NULL CONSTRAINT route_gateways_key UNIQUE
);

INSERT INTO route (gateways) VALUES ('{default}');

CREATE TABLE operator_route (
    operator_code character varying NOT NULL CONSTRAINT operator_route_pkey PRIMARY KEY,
    route integer NOT NULL CONSTRAINT operator_route_route_fkey REFERENCES route (id)
);

INSERT INTO operator_route (operator_code, route) SELECT '', id FROM route;

CREATE TABLE gateway_pause (
    gateway character varying NOT NULL CONSTRAINT gateway_pause_pkey PRIMARY KEY,
    paused_at timestamp with time zone NOT NULL DEFAULT now(),
    paused_by character varying NOT NULL
);

CREATE FUNCTION find_route(names character varying[]) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    sorted varchar[] := ARRAY(
        SELECT name FROM unnest(names) AS name GROUP BY name ORDER BY name COLLATE "C");
    found integer := (SELECT id FROM route WHERE gateways = sorted);
BEGIN
    IF found IS NULL THEN
        INSERT INTO route (gateways) VALUES (sorted)
        ON CONFLICT (gateways) DO UPDATE SET gateways = excluded.gateways RETURNING id INTO found;
    END IF;
    RETURN found;
END $$;

ALTER TABLE mailing
    ADD COLUMN gateway character varying,
    ADD COLUMN sender character varying,
    ADD COLUMN route integer,
    ADD COLUMN reroute_cursor bigint,
    ADD CONSTRAINT mailing_sender_check CHECK (char_length(sender) BETWEEN 1 AND 20);

CREATE INDEX mailing_reroute_idx ON mailing (reroute_cursor, id)
    WHERE NOT is_closed AND deleted_at IS NULL AND reroute_cursor IS NOT NULL;

ALTER TABLE message
    ADD COLUMN route integer DEFAULT 1 NOT NULL,
    ADD COLUMN gateway character varying,
    ADD COLUMN gateway_message_id character varying,
    ADD COLUMN parts smallint;

DROP INDEX message_due_idx;

CREATE INDEX message_due_idx ON message (mailing_id, route, due_at, id)
    WHERE status = 'scheduled';

DROP VIEW all_message_counts;

DROP VIEW all_outcome_counts;

ALTER TABLE message_count ADD COLUMN parts bigint DEFAULT 0 NOT NULL;

ALTER TABLE message_count_delta
    ADD COLUMN parts bigint DEFAULT 0 NOT NULL,
    ADD COLUMN gateway character varying DEFAULT '' NOT NULL;

ALTER TABLE outcome_count
    ADD COLUMN parts bigint DEFAULT 0 NOT NULL,
    ADD COLUMN gateway character varying DEFAULT '' NOT NULL,
    DROP CONSTRAINT outcome_count_pkey,
    ADD CONSTRAINT outcome_count_pkey PRIMARY KEY (bucket_start, reason, gateway);

CREATE VIEW all_message_counts AS
    SELECT mailing_id, dimension, key, bucket_start, messages, delivered, undelivered, "unknown",
        cancelled, parts
    FROM message_count
    UNION ALL
    SELECT mailing_id, dimension, key, bucket_start, messages, delivered, undelivered, "unknown",
        cancelled, parts
    FROM message_count_delta WHERE dimension <> 'outcome';

CREATE VIEW all_outcome_counts AS
    SELECT bucket_start, reason, delivered, undelivered, "unknown", cancelled, parts, gateway
    FROM outcome_count
    UNION ALL
    SELECT bucket_start, key, delivered, undelivered, "unknown", cancelled, parts, gateway
    FROM message_count_delta WHERE dimension = 'outcome';

CREATE OR REPLACE FUNCTION add_message_deltas_of_insert() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO message_count_delta
    SELECT mailing_id, dimension, key, bucket_start,
        messages, delivered, undelivered, "unknown", cancelled, parts, gateway
    FROM (
        SELECT mailing_id,
            CASE grouping(operator_code, time_zone, reason, attempts, sent_by, second, quarter)
                WHEN 63 THEN 'operator_code' WHEN 95 THEN 'time_zone' WHEN 111 THEN 'reason'
                WHEN 119 THEN 'attempts' WHEN 123 THEN 'gateway' WHEN 125 THEN 'second'
                ELSE 'outcome' END AS dimension,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, outcome_reason, '')
                AS key,
            coalesce(second, quarter) AS bucket_start,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, second::text,
                quarter::text) IS NOT NULL AS is_counted,
            count(*) AS messages,
            count(*) FILTER (WHERE status = 'delivered') AS delivered,
            count(*) FILTER (WHERE status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
            coalesce(sum(parts) FILTER (WHERE status = 'delivered'), 0) AS parts,
            coalesce(outcome_gateway, '') AS gateway
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason,
                CASE WHEN ended_at IS NOT NULL THEN new_rows.attempts END AS attempts,
                CASE WHEN ended_at IS NOT NULL THEN gateway END AS sent_by, parts,
                date_trunc('second', ended_at) AS second,
                date_bin('15 minutes', ended_at, '2000-01-01 00:00Z') AS quarter,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(reason, '') END AS outcome_reason,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(gateway, '') END AS outcome_gateway
            FROM new_rows CROSS JOIN LATERAL (
                SELECT CASE WHEN status = 'unknown' THEN updated_at
                    WHEN status NOT IN ('scheduled', 'sending') THEN coalesce(sent_at, updated_at)
                    END AS ended_at
            ) AS ending
        ) AS row
        GROUP BY GROUPING SETS ((mailing_id, operator_code), (mailing_id, time_zone),
            (mailing_id, reason), (mailing_id, attempts), (mailing_id, sent_by),
            (mailing_id, second), (mailing_id, quarter, outcome_reason, outcome_gateway))
    ) AS delta
    WHERE is_counted;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION add_message_deltas_of_update() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM new_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
        UNION ALL
        SELECT FROM old_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
    ) THEN
        RETURN NULL;  -- as at a first claim
    END IF;
    INSERT INTO message_count_delta
    SELECT mailing_id, dimension, key, bucket_start,
        messages, delivered, undelivered, "unknown", cancelled, parts, gateway
    FROM (
        SELECT mailing_id,
            CASE grouping(operator_code, time_zone, reason, attempts, sent_by, second, quarter)
                WHEN 63 THEN 'operator_code' WHEN 95 THEN 'time_zone' WHEN 111 THEN 'reason'
                WHEN 119 THEN 'attempts' WHEN 123 THEN 'gateway' WHEN 125 THEN 'second'
                ELSE 'outcome' END AS dimension,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, outcome_reason, '')
                AS key,
            coalesce(second, quarter) AS bucket_start,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, second::text,
                quarter::text) IS NOT NULL AS is_counted,
            CASE WHEN grouping(operator_code, time_zone) < 3 THEN 0 ELSE sum(n) END AS messages,
            coalesce(sum(n) FILTER (WHERE status = 'delivered'), 0) AS delivered,
            coalesce(sum(n) FILTER (WHERE status = 'undelivered'), 0) AS undelivered,
            coalesce(sum(n) FILTER (WHERE status = 'unknown'), 0) AS "unknown",
            coalesce(sum(n) FILTER (WHERE status = 'cancelled'), 0) AS cancelled,
            coalesce(sum(n * parts) FILTER (WHERE status = 'delivered'), 0) AS parts,
            coalesce(outcome_gateway, '') AS gateway
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason, n,
                CASE WHEN ended_at IS NOT NULL THEN changed.attempts END AS attempts,
                CASE WHEN ended_at IS NOT NULL THEN gateway END AS sent_by, parts,
                date_trunc('second', ended_at) AS second,
                date_bin('15 minutes', ended_at, '2000-01-01 00:00Z') AS quarter,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(reason, '') END AS outcome_reason,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(gateway, '') END AS outcome_gateway
            FROM (
                SELECT mailing_id, operator_code, time_zone, status, reason, attempts, gateway,
                    parts, sent_at, updated_at, 1 AS n
                FROM new_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
                UNION ALL
                SELECT mailing_id, operator_code, time_zone, status, reason, attempts, gateway,
                    parts, sent_at, updated_at, -1
                FROM old_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
            ) AS changed CROSS JOIN LATERAL (
                SELECT CASE WHEN status = 'unknown' THEN updated_at
                    WHEN status NOT IN ('scheduled', 'sending') THEN coalesce(sent_at, updated_at)
                    END AS ended_at
            ) AS ending
        ) AS row
        GROUP BY GROUPING SETS ((mailing_id, operator_code), (mailing_id, time_zone),
            (mailing_id, reason), (mailing_id, attempts), (mailing_id, sent_by),
            (mailing_id, second), (mailing_id, quarter, outcome_reason, outcome_gateway))
    ) AS delta
    WHERE is_counted AND (messages, delivered, undelivered, "unknown", cancelled, parts)
        <> (0, 0, 0, 0, 0, 0);
    RETURN NULL;
END $$;
