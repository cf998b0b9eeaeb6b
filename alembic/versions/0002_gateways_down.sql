DROP VIEW all_message_counts;

DROP VIEW all_outcome_counts;

DELETE FROM message_count WHERE dimension = 'gateway';

DELETE FROM message_count_delta WHERE dimension = 'gateway';

ALTER TABLE message_count DROP COLUMN parts;

ALTER TABLE message_count_delta DROP COLUMN parts, DROP COLUMN gateway;

CREATE TABLE outcome_count_of_all_gateways AS
    SELECT bucket_start, reason, sum(delivered) AS delivered, sum(undelivered) AS undelivered,
        sum("unknown") AS "unknown", sum(cancelled) AS cancelled
    FROM outcome_count GROUP BY bucket_start, reason;

TRUNCATE outcome_count;

ALTER TABLE outcome_count
    DROP CONSTRAINT outcome_count_pkey, DROP COLUMN parts, DROP COLUMN gateway,
    ADD CONSTRAINT outcome_count_pkey PRIMARY KEY (bucket_start, reason);

INSERT INTO outcome_count (bucket_start, reason, delivered, undelivered, "unknown", cancelled)
    SELECT bucket_start, reason, delivered, undelivered, "unknown", cancelled
    FROM outcome_count_of_all_gateways;

DROP TABLE outcome_count_of_all_gateways;

CREATE VIEW all_message_counts AS
    SELECT mailing_id, dimension, key, bucket_start, messages, delivered, undelivered, "unknown",
        cancelled
    FROM message_count
    UNION ALL
    SELECT mailing_id, dimension, key, bucket_start, messages, delivered, undelivered, "unknown",
        cancelled
    FROM message_count_delta WHERE dimension <> 'outcome';

CREATE VIEW all_outcome_counts AS
    SELECT bucket_start, reason, delivered, undelivered, "unknown", cancelled FROM outcome_count
    UNION ALL
    SELECT bucket_start, key, delivered, undelivered, "unknown", cancelled
    FROM message_count_delta WHERE dimension = 'outcome';

CREATE OR REPLACE FUNCTION add_message_deltas_of_insert() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO message_count_delta
    SELECT mailing_id, dimension, key, bucket_start,
        messages, delivered, undelivered, "unknown", cancelled
    FROM (
        SELECT mailing_id,
            CASE grouping(operator_code, time_zone, reason, attempts, second, quarter)
                WHEN 31 THEN 'operator_code' WHEN 47 THEN 'time_zone' WHEN 55 THEN 'reason'
                WHEN 59 THEN 'attempts' WHEN 61 THEN 'second' ELSE 'outcome' END AS dimension,
            coalesce(operator_code, time_zone, reason, attempts::text, outcome_reason, '') AS key,
            coalesce(second, quarter) AS bucket_start,
            coalesce(operator_code, time_zone, reason, attempts::text, second::text,
                quarter::text) IS NOT NULL AS is_counted,
            count(*) AS messages,
            count(*) FILTER (WHERE status = 'delivered') AS delivered,
            count(*) FILTER (WHERE status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason,
                CASE WHEN ended_at IS NOT NULL THEN new_rows.attempts END AS attempts,
                date_trunc('second', ended_at) AS second,
                date_bin('15 minutes', ended_at, '2000-01-01 00:00Z') AS quarter,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(reason, '') END AS outcome_reason
            FROM new_rows CROSS JOIN LATERAL (
                SELECT CASE WHEN status = 'unknown' THEN updated_at
                    WHEN status NOT IN ('scheduled', 'sending') THEN coalesce(sent_at, updated_at)
                    END AS ended_at
            ) AS ending
        ) AS row
        GROUP BY GROUPING SETS ((mailing_id, operator_code), (mailing_id, time_zone),
            (mailing_id, reason), (mailing_id, attempts), (mailing_id, second),
            (mailing_id, quarter, outcome_reason))
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
        messages, delivered, undelivered, "unknown", cancelled
    FROM (
        SELECT mailing_id,
            CASE grouping(operator_code, time_zone, reason, attempts, second, quarter)
                WHEN 31 THEN 'operator_code' WHEN 47 THEN 'time_zone' WHEN 55 THEN 'reason'
                WHEN 59 THEN 'attempts' WHEN 61 THEN 'second' ELSE 'outcome' END AS dimension,
            coalesce(operator_code, time_zone, reason, attempts::text, outcome_reason, '') AS key,
            coalesce(second, quarter) AS bucket_start,
            coalesce(operator_code, time_zone, reason, attempts::text, second::text,
                quarter::text) IS NOT NULL AS is_counted,
            CASE WHEN grouping(operator_code, time_zone) < 3 THEN 0 ELSE sum(n) END AS messages,
            coalesce(sum(n) FILTER (WHERE status = 'delivered'), 0) AS delivered,
            coalesce(sum(n) FILTER (WHERE status = 'undelivered'), 0) AS undelivered,
            coalesce(sum(n) FILTER (WHERE status = 'unknown'), 0) AS "unknown",
            coalesce(sum(n) FILTER (WHERE status = 'cancelled'), 0) AS cancelled
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason, n,
                CASE WHEN ended_at IS NOT NULL THEN changed.attempts END AS attempts,
                date_trunc('second', ended_at) AS second,
                date_bin('15 minutes', ended_at, '2000-01-01 00:00Z') AS quarter,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(reason, '') END AS outcome_reason
            FROM (
                SELECT mailing_id, operator_code, time_zone, status, reason, attempts, sent_at,
                    updated_at, 1 AS n
                FROM new_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
                UNION ALL
                SELECT mailing_id, operator_code, time_zone, status, reason, attempts, sent_at,
                    updated_at, -1
                FROM old_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
            ) AS changed CROSS JOIN LATERAL (
                SELECT CASE WHEN status = 'unknown' THEN updated_at
                    WHEN status NOT IN ('scheduled', 'sending') THEN coalesce(sent_at, updated_at)
                    END AS ended_at
            ) AS ending
        ) AS row
        GROUP BY GROUPING SETS ((mailing_id, operator_code), (mailing_id, time_zone),
            (mailing_id, reason), (mailing_id, attempts), (mailing_id, second),
            (mailing_id, quarter, outcome_reason))
    ) AS delta
    WHERE is_counted AND (messages, delivered, undelivered, "unknown", cancelled)
        <> (0, 0, 0, 0, 0);
    RETURN NULL;
END $$;

DROP INDEX message_due_idx;

ALTER TABLE message
    DROP COLUMN route, DROP COLUMN gateway, DROP COLUMN gateway_message_id, DROP COLUMN parts;

CREATE INDEX message_due_idx ON message (mailing_id, due_at, id) WHERE status = 'scheduled';

DROP INDEX mailing_reroute_idx;

ALTER TABLE mailing
    DROP COLUMN gateway, DROP COLUMN sender, DROP COLUMN route, DROP COLUMN reroute_cursor;

DROP FUNCTION find_route(character varying[]);

DROP TABLE gateway_pause;

DROP TABLE operator_route;

DROP TABLE route;
