CREATE TABLE mailing_text (
    mailing_id bigint NOT NULL,
    version integer NOT NULL,
    text character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT mailing_text_pkey PRIMARY KEY (mailing_id, version),
    CONSTRAINT mailing_text_mailing_id_fkey FOREIGN KEY (mailing_id)
        REFERENCES mailing (id) ON DELETE CASCADE
);

ALTER TABLE mailing ADD COLUMN text_version integer DEFAULT 1 NOT NULL;

ALTER TABLE message ADD COLUMN text_version integer;

CREATE FUNCTION number_text() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    new.text_version := old.text_version + 1;
    RETURN new;
END $$;

CREATE FUNCTION keep_text() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO mailing_text (mailing_id, version, text)
    VALUES (new.id, new.text_version, new.text);
    RETURN NULL;
END $$;

CREATE TRIGGER number_text BEFORE UPDATE OF text ON mailing
    FOR EACH ROW WHEN (old.text IS DISTINCT FROM new.text) EXECUTE FUNCTION number_text();

CREATE TRIGGER keep_first_text AFTER INSERT ON mailing
    FOR EACH ROW EXECUTE FUNCTION keep_text();

CREATE TRIGGER keep_new_text AFTER UPDATE OF text ON mailing
    FOR EACH ROW WHEN (old.text IS DISTINCT FROM new.text) EXECUTE FUNCTION keep_text();

INSERT INTO mailing_text (mailing_id, version, text, created_at)
    SELECT id, 1, text, created_at FROM mailing;

CREATE OR REPLACE FUNCTION add_message_deltas_of_insert() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO message_count_delta (mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway,
        accepted_quarter, no_receipt)
    SELECT mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway,
        accepted_quarter, no_receipt
    FROM (
        SELECT mailing_id,
            CASE grouping(operator_code, time_zone, reason, attempts, sent_by, sent_version,
                second, quarter)
                WHEN 127 THEN 'operator_code' WHEN 191 THEN 'time_zone' WHEN 223 THEN 'reason'
                WHEN 239 THEN 'attempts' WHEN 247 THEN 'gateway' WHEN 251 THEN 'text_version'
                WHEN 253 THEN 'second' ELSE 'outcome' END AS dimension,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, sent_version::text,
                outcome_reason, '') AS key,
            coalesce(second, quarter) AS bucket_start,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, sent_version::text,
                second::text, quarter::text) IS NOT NULL AS is_counted,
            count(*) AS messages,
            count(*) FILTER (WHERE status = 'sent') AS sent,
            count(*) FILTER (WHERE status = 'delivered') AS delivered,
            count(*) FILTER (WHERE status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
            coalesce(sum(parts) FILTER (WHERE ended_at IS NOT NULL), 0) AS parts,
            coalesce(outcome_gateway, accepted_by, '') AS gateway,
            accepted_quarter,
            CASE grouping(operator_code) WHEN 0 THEN
                count(*) FILTER (WHERE status = 'sent' AND reason IS NOT NULL)
                ELSE 0 END AS no_receipt
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason, ended_at,
                CASE WHEN ended_at IS NOT NULL THEN new_rows.attempts END AS attempts,
                CASE WHEN ended_at IS NOT NULL THEN gateway END AS sent_by, parts,
                CASE WHEN ended_at IS NOT NULL THEN text_version END AS sent_version,
                date_trunc('second', ended_at) AS second,
                date_bin('15 minutes', ended_at, '2000-01-01 00:00Z') AS quarter,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(reason, '') END AS outcome_reason,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(gateway, '') END AS outcome_gateway,
                CASE WHEN is_accepted THEN coalesce(gateway, '') END AS accepted_by,
                CASE WHEN is_accepted THEN date_bin('15 minutes', sent_at, '2000-01-01 00:00Z')
                    END AS accepted_quarter
            FROM new_rows CROSS JOIN LATERAL (
                SELECT CASE WHEN status = 'unknown' THEN updated_at
                    WHEN status NOT IN ('scheduled', 'sending') THEN coalesce(sent_at, updated_at)
                    END AS ended_at,
                    sent_at IS NOT NULL AND status IN ('sent', 'delivered', 'undelivered')
                        AS is_accepted
            ) AS ending
        ) AS row
        GROUP BY GROUPING SETS ((mailing_id, operator_code, accepted_quarter, accepted_by),
            (mailing_id, time_zone), (mailing_id, reason), (mailing_id, attempts),
            (mailing_id, sent_by), (mailing_id, sent_version), (mailing_id, second),
            (mailing_id, quarter, outcome_reason, outcome_gateway))
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
    INSERT INTO message_count_delta (mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway,
        accepted_quarter, no_receipt)
    SELECT mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway,
        accepted_quarter, no_receipt
    FROM (
        SELECT mailing_id,
            CASE grouping(operator_code, time_zone, reason, attempts, sent_by, sent_version,
                second, quarter)
                WHEN 127 THEN 'operator_code' WHEN 191 THEN 'time_zone' WHEN 223 THEN 'reason'
                WHEN 239 THEN 'attempts' WHEN 247 THEN 'gateway' WHEN 251 THEN 'text_version'
                WHEN 253 THEN 'second' ELSE 'outcome' END AS dimension,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, sent_version::text,
                outcome_reason, '') AS key,
            coalesce(second, quarter) AS bucket_start,
            coalesce(operator_code, time_zone, reason, attempts::text, sent_by, sent_version::text,
                second::text, quarter::text) IS NOT NULL AS is_counted,
            CASE WHEN grouping(operator_code, time_zone) < 3 THEN 0 ELSE sum(n) END AS messages,
            coalesce(sum(n) FILTER (WHERE status = 'sent'), 0) AS sent,
            coalesce(sum(n) FILTER (WHERE status = 'delivered'), 0) AS delivered,
            coalesce(sum(n) FILTER (WHERE status = 'undelivered'), 0) AS undelivered,
            coalesce(sum(n) FILTER (WHERE status = 'unknown'), 0) AS "unknown",
            coalesce(sum(n) FILTER (WHERE status = 'cancelled'), 0) AS cancelled,
            coalesce(sum(n * parts) FILTER (WHERE ended_at IS NOT NULL), 0) AS parts,
            coalesce(outcome_gateway, accepted_by, '') AS gateway,
            accepted_quarter,
            CASE grouping(operator_code) WHEN 0 THEN
                coalesce(sum(n) FILTER (WHERE status = 'sent' AND reason IS NOT NULL), 0)
                ELSE 0 END AS no_receipt
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason, ended_at, n,
                CASE WHEN ended_at IS NOT NULL THEN changed.attempts END AS attempts,
                CASE WHEN ended_at IS NOT NULL THEN gateway END AS sent_by, parts,
                CASE WHEN ended_at IS NOT NULL THEN text_version END AS sent_version,
                date_trunc('second', ended_at) AS second,
                date_bin('15 minutes', ended_at, '2000-01-01 00:00Z') AS quarter,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(reason, '') END AS outcome_reason,
                CASE WHEN ended_at IS NOT NULL THEN coalesce(gateway, '') END AS outcome_gateway,
                CASE WHEN is_accepted THEN coalesce(gateway, '') END AS accepted_by,
                CASE WHEN is_accepted THEN date_bin('15 minutes', sent_at, '2000-01-01 00:00Z')
                    END AS accepted_quarter
            FROM (
                SELECT mailing_id, operator_code, time_zone, status, reason, attempts, gateway,
                    text_version, parts, sent_at, updated_at, 1 AS n
                FROM new_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
                UNION ALL
                SELECT mailing_id, operator_code, time_zone, status, reason, attempts, gateway,
                    text_version, parts, sent_at, updated_at, -1
                FROM old_rows WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')
            ) AS changed CROSS JOIN LATERAL (
                SELECT CASE WHEN status = 'unknown' THEN updated_at
                    WHEN status NOT IN ('scheduled', 'sending') THEN coalesce(sent_at, updated_at)
                    END AS ended_at,
                    sent_at IS NOT NULL AND status IN ('sent', 'delivered', 'undelivered')
                        AS is_accepted
            ) AS ending
        ) AS row
        GROUP BY GROUPING SETS ((mailing_id, operator_code, accepted_quarter, accepted_by),
            (mailing_id, time_zone), (mailing_id, reason), (mailing_id, attempts),
            (mailing_id, sent_by), (mailing_id, sent_version), (mailing_id, second),
            (mailing_id, quarter, outcome_reason, outcome_gateway))
    ) AS delta
    WHERE is_counted AND (messages, sent, delivered, undelivered, "unknown", cancelled, parts,
        no_receipt) <> (0, 0, 0, 0, 0, 0, 0, 0);
    RETURN NULL;
END $$;
