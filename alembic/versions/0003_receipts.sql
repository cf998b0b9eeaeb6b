ALTER TABLE message
    ADD COLUMN receipts jsonb,
    ADD COLUMN receipt_status character varying,
    ADD COLUMN receipt_reason character varying,
    ADD COLUMN uses_gateway_id boolean DEFAULT false NOT NULL,
    DROP CONSTRAINT message_status_check,
    ADD CONSTRAINT message_status_check CHECK (status IN ('scheduled', 'sending', 'sent', 'delivered', 'undelivered', 'unknown', 'cancelled')) NOT VALID,
    ADD CONSTRAINT message_receipt_check CHECK (receipt_status IS NULL OR status = 'sending')
        NOT VALID;

ALTER TABLE message VALIDATE CONSTRAINT message_status_check;

ALTER TABLE message VALIDATE CONSTRAINT message_receipt_check;

CREATE INDEX message_awaiting_idx ON message (mailing_id, sent_at)
    WHERE status = 'sent' AND reason IS NULL;

CREATE INDEX message_gateway_message_id_idx ON message (gateway_message_id) WHERE uses_gateway_id;

CREATE TABLE early_receipt (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT early_receipt_pkey PRIMARY KEY,
    gateway character varying NOT NULL,
    gateway_message_id character varying,
    message_id bigint,
    receipt jsonb NOT NULL,
    received_at timestamp with time zone NOT NULL
);

CREATE TABLE receipt_poll (
    gateway character varying NOT NULL CONSTRAINT receipt_poll_pkey PRIMARY KEY,
    mailing_id bigint DEFAULT 0 NOT NULL,
    sent_at timestamp with time zone DEFAULT '-infinity' NOT NULL,
    message_id bigint DEFAULT 0 NOT NULL,
    round_started_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE INDEX early_receipt_received_at_idx ON early_receipt (received_at);

ALTER TABLE mailing_counts
    ADD COLUMN sent bigint DEFAULT 0 NOT NULL
        CONSTRAINT mailing_counts_sent_check CHECK (sent >= 0);

ALTER TABLE settled_totals ADD COLUMN sent bigint DEFAULT 0 NOT NULL;

ALTER TABLE message_count ADD COLUMN sent bigint DEFAULT 0 NOT NULL;

ALTER TABLE message_count_delta ADD COLUMN sent bigint DEFAULT 0 NOT NULL;

ALTER TABLE outcome_count ADD COLUMN sent bigint DEFAULT 0 NOT NULL;

DROP VIEW all_message_counts;

DROP VIEW all_outcome_counts;

CREATE VIEW all_message_counts AS
    SELECT mailing_id, dimension, key, bucket_start, messages, sent, delivered, undelivered, "unknown",
        cancelled, parts
    FROM message_count
    UNION ALL
    SELECT mailing_id, dimension, key, bucket_start, messages, sent, delivered, undelivered, "unknown",
        cancelled, parts
    FROM message_count_delta WHERE dimension <> 'outcome';

CREATE VIEW all_outcome_counts AS
    SELECT bucket_start, reason, sent, delivered, undelivered, "unknown", cancelled, parts, gateway
    FROM outcome_count
    UNION ALL
    SELECT bucket_start, key, sent, delivered, undelivered, "unknown", cancelled, parts, gateway
    FROM message_count_delta WHERE dimension = 'outcome';

CREATE OR REPLACE FUNCTION add_message_deltas_of_insert() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO message_count_delta (mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway)
    SELECT mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway
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
            count(*) FILTER (WHERE status = 'sent') AS sent,
            count(*) FILTER (WHERE status = 'delivered') AS delivered,
            count(*) FILTER (WHERE status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
            coalesce(sum(parts) FILTER (WHERE ended_at IS NOT NULL), 0) AS parts,
            coalesce(outcome_gateway, '') AS gateway
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason, ended_at,
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
    INSERT INTO message_count_delta (mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway)
    SELECT mailing_id, dimension, key, bucket_start,
        messages, sent, delivered, undelivered, "unknown", cancelled, parts, gateway
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
            coalesce(sum(n) FILTER (WHERE status = 'sent'), 0) AS sent,
            coalesce(sum(n) FILTER (WHERE status = 'delivered'), 0) AS delivered,
            coalesce(sum(n) FILTER (WHERE status = 'undelivered'), 0) AS undelivered,
            coalesce(sum(n) FILTER (WHERE status = 'unknown'), 0) AS "unknown",
            coalesce(sum(n) FILTER (WHERE status = 'cancelled'), 0) AS cancelled,
            coalesce(sum(n * parts) FILTER (WHERE ended_at IS NOT NULL), 0) AS parts,
            coalesce(outcome_gateway, '') AS gateway
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason, ended_at, n,
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
    WHERE is_counted AND (messages, sent, delivered, undelivered, "unknown", cancelled, parts)
        <> (0, 0, 0, 0, 0, 0, 0);
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION count_inserted_messages() RETURNS trigger
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    places tid[] := ARRAY(
        SELECT newest.ctid
        FROM (SELECT DISTINCT mailing_id FROM new_rows ORDER BY mailing_id) AS changed
        CROSS JOIN LATERAL (
            SELECT ctid FROM mailing_counts
            WHERE mailing_counts.mailing_id BETWEEN changed.mailing_id AND changed.mailing_id
            ORDER BY mailing_counts.mailing_id DESC LIMIT 1 FOR NO KEY UPDATE
        ) AS newest);
BEGIN
    UPDATE mailing_counts SET
        scheduled = mailing_counts.scheduled + delta.scheduled,
        sending = mailing_counts.sending + delta.sending,
        sent = mailing_counts.sent + delta.sent,
        delivered = mailing_counts.delivered + delta.delivered,
        undelivered = mailing_counts.undelivered + delta.undelivered,
        "unknown" = mailing_counts."unknown" + delta."unknown",
        cancelled = mailing_counts.cancelled + delta.cancelled,
        first_sent_at = least(mailing_counts.first_sent_at, delta.first_sent_at),
        last_sent_at = greatest(mailing_counts.last_sent_at, delta.last_sent_at)
    FROM (
        SELECT mailing_id,
            count(*) FILTER (WHERE status = 'scheduled') AS scheduled,
            count(*) FILTER (WHERE status = 'sending') AS sending,
            count(*) FILTER (WHERE status = 'sent') AS sent,
            count(*) FILTER (WHERE status = 'delivered') AS delivered,
            count(*) FILTER (WHERE status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
            min(sent_at) AS first_sent_at, max(sent_at) AS last_sent_at
        FROM new_rows GROUP BY mailing_id
    ) AS delta
    WHERE mailing_counts.ctid = ANY (places)
        AND mailing_counts.mailing_id + 0 = delta.mailing_id;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION count_updated_messages() RETURNS trigger
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    places tid[] := ARRAY(
        SELECT newest.ctid
        FROM (SELECT DISTINCT mailing_id FROM new_rows ORDER BY mailing_id) AS changed
        CROSS JOIN LATERAL (
            SELECT ctid FROM mailing_counts
            WHERE mailing_counts.mailing_id BETWEEN changed.mailing_id AND changed.mailing_id
            ORDER BY mailing_counts.mailing_id DESC LIMIT 1 FOR NO KEY UPDATE
        ) AS newest);
BEGIN
    UPDATE mailing_counts SET
        scheduled = mailing_counts.scheduled + delta.scheduled,
        sending = mailing_counts.sending + delta.sending,
        sent = mailing_counts.sent + delta.sent,
        delivered = mailing_counts.delivered + delta.delivered,
        undelivered = mailing_counts.undelivered + delta.undelivered,
        "unknown" = mailing_counts."unknown" + delta."unknown",
        cancelled = mailing_counts.cancelled + delta.cancelled,
        first_sent_at = least(mailing_counts.first_sent_at, delta.first_sent_at),
        last_sent_at = greatest(mailing_counts.last_sent_at, delta.last_sent_at)
    FROM (
        SELECT mailing_id,
            coalesce(sum(n) FILTER (WHERE status = 'scheduled'), 0) AS scheduled,
            coalesce(sum(n) FILTER (WHERE status = 'sending'), 0) AS sending,
            coalesce(sum(n) FILTER (WHERE status = 'sent'), 0) AS sent,
            coalesce(sum(n) FILTER (WHERE status = 'delivered'), 0) AS delivered,
            coalesce(sum(n) FILTER (WHERE status = 'undelivered'), 0) AS undelivered,
            coalesce(sum(n) FILTER (WHERE status = 'unknown'), 0) AS "unknown",
            coalesce(sum(n) FILTER (WHERE status = 'cancelled'), 0) AS cancelled,
            min(sent_at) AS first_sent_at, max(sent_at) AS last_sent_at
        FROM (
            SELECT mailing_id, status, sent_at, 1 AS n FROM new_rows
            UNION ALL
            SELECT mailing_id, status, NULL, -1 FROM old_rows
        ) AS row
        GROUP BY mailing_id
    ) AS delta
    WHERE mailing_counts.ctid = ANY (places)
        AND mailing_counts.mailing_id + 0 = delta.mailing_id;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION update_settled_totals() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    was_listed int := (old.is_settled AND old.deleted_at IS NULL)::int;
    listed int := coalesce((new.is_settled AND new.deleted_at IS NULL)::int, 0) - was_listed;
    counted int := coalesce(new.is_settled::int, 1) - old.is_settled::int;
    ended_as text := CASE WHEN listed > 0 THEN new.status ELSE old.status END;
    unsent bigint := CASE WHEN new.is_settled AND new.audience_until IS NULL
        THEN new.clients_count ELSE 0 END;
BEGIN
    UPDATE settled_totals SET
        finished = settled_totals.finished + CASE ended_as WHEN 'finished' THEN listed ELSE 0 END,
        cancelled_mailings = settled_totals.cancelled_mailings
            + CASE ended_as WHEN 'cancelled' THEN listed ELSE 0 END,
        sent = settled_totals.sent + counted * counts.sent,
        delivered = settled_totals.delivered + counted * counts.delivered,
        undelivered = settled_totals.undelivered + counted * counts.undelivered,
        "unknown" = settled_totals."unknown" + counted * counts."unknown",
        cancelled = settled_totals.cancelled + counted * (counts.cancelled + unsent)
    FROM mailing_counts AS counts WHERE counts.mailing_id = old.id;
    IF counted * unsent <> 0 THEN
        INSERT INTO message_count_delta (mailing_id, dimension, key, bucket_start, cancelled)
        VALUES (old.id, 'outcome', 'mailing_cancelled',
            date_bin('15 minutes', new.updated_at, '2000-01-01 00:00Z'), counted * unsent);
    END IF;
    RETURN coalesce(new, old);
END $$;
