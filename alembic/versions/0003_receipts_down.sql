UPDATE message SET status = 'delivered', reason = NULL WHERE status = 'sent';

UPDATE message SET receipt_status = NULL WHERE receipt_status IS NOT NULL;

UPDATE message SET parts = NULL WHERE parts IS NOT NULL AND status <> 'delivered';

UPDATE message_count SET delivered = delivered + sent WHERE sent <> 0;

UPDATE message_count_delta SET delivered = delivered + sent WHERE sent <> 0;

UPDATE outcome_count SET delivered = delivered + sent WHERE sent <> 0;

UPDATE settled_totals SET delivered = delivered + sent WHERE sent <> 0;

UPDATE mailing_counts SET delivered = delivered + sent WHERE sent <> 0;

DROP VIEW all_message_counts;

DROP VIEW all_outcome_counts;

ALTER TABLE outcome_count DROP COLUMN sent;

ALTER TABLE message_count_delta DROP COLUMN sent;

ALTER TABLE message_count DROP COLUMN sent;

ALTER TABLE settled_totals DROP COLUMN sent;

ALTER TABLE mailing_counts DROP COLUMN sent;

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

DROP TABLE receipt_poll;

DROP TABLE early_receipt;

DROP INDEX message_awaiting_idx;

DROP INDEX message_gateway_message_id_idx;

ALTER TABLE message
    DROP CONSTRAINT message_receipt_check,
    DROP CONSTRAINT message_status_check,
    ADD CONSTRAINT message_status_check CHECK (status IN ('scheduled', 'sending', 'delivered', 'undelivered', 'unknown', 'cancelled')),
    DROP COLUMN receipts,
    DROP COLUMN receipt_status,
    DROP COLUMN receipt_reason,
    DROP COLUMN uses_gateway_id;
