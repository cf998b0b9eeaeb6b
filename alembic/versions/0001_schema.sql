-- The whole schema. `0001_schema.py` runs the statements one by one: each ends with a semicolon and
-- an empty line, and has no empty line inside.
--
-- In triggers `new_rows` and `old_rows` are the rows that the statement has inserted or updated, and
-- has updated or deleted.

-- ---- the directory of clients -----------------------------------------------------------------

CREATE TABLE client (
    id bigint GENERATED ALWAYS AS IDENTITY,
    phone varchar,
    operator_code varchar NOT NULL,
    tag varchar,
    tag_written varchar,
    time_zone varchar DEFAULT 'UTC' NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    created_by bigint DEFAULT pg_current_xact_id()::text::bigint NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    deleted_at timestamptz,
    CONSTRAINT client_pkey PRIMARY KEY (id),
    CONSTRAINT client_phone_key UNIQUE (phone),
    CONSTRAINT client_phone_check CHECK (phone ~ '^7[0-9]{10}$'),
    CONSTRAINT client_operator_code_check CHECK (operator_code ~ '^[0-9]{3}$'),
    CONSTRAINT client_tag_check CHECK (char_length(tag) BETWEEN 1 AND 192),
    CONSTRAINT client_tag_written_check CHECK (
        tag_written IS NULL OR (tag IS NOT NULL AND char_length(tag_written) BETWEEN 1 AND 64)),
    CONSTRAINT client_time_zone_check CHECK (
        (timestamptz '2000-01-01 00:00Z' AT TIME ZONE time_zone) IS NOT NULL),
    CONSTRAINT client_erased_check CHECK (
        CASE WHEN deleted_at IS NULL THEN phone IS NOT NULL ELSE phone IS NULL AND tag IS NULL END)
);

CREATE INDEX client_operator_code_id_idx ON client (operator_code, id)
    INCLUDE (tag, time_zone) WHERE deleted_at IS NULL;

CREATE INDEX client_tag_id_idx ON client (tag, id)
    INCLUDE (operator_code, time_zone) WHERE tag IS NOT NULL AND deleted_at IS NULL;

CREATE INDEX client_time_zone_id_idx ON client (time_zone, id)
    INCLUDE (operator_code, tag) WHERE deleted_at IS NULL;

CREATE INDEX client_segment_idx ON client (operator_code, time_zone, tag) WHERE deleted_at IS NULL;

CREATE TABLE client_to_replan (
    client_id bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE FUNCTION note_time_zone_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO client_to_replan (client_id)
    SELECT new_rows.id FROM new_rows JOIN old_rows USING (id)
    WHERE new_rows.time_zone <> old_rows.time_zone AND new_rows.deleted_at IS NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER note_time_zone_changes AFTER UPDATE ON client
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION note_time_zone_changes();

-- How many clients each segment has. Triggers write deltas, so that two transactions that change
-- clients of one segment do not wait for each other; a job merges the deltas into the counts.

CREATE TABLE segment_count (
    operator_code varchar NOT NULL,
    tag varchar,
    time_zone varchar NOT NULL,
    clients bigint DEFAULT 0 NOT NULL
);

CREATE UNIQUE INDEX segment_count_operator_code_tag_time_zone_key
    ON segment_count (operator_code, tag, time_zone) NULLS NOT DISTINCT;

CREATE INDEX segment_count_tag_idx ON segment_count (tag);

CREATE INDEX segment_count_time_zone_idx ON segment_count (time_zone);

CREATE TABLE segment_count_delta (
    operator_code varchar NOT NULL,
    tag varchar,
    time_zone varchar NOT NULL,
    clients bigint DEFAULT 0 NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE VIEW all_segment_counts AS
    SELECT * FROM segment_count UNION ALL SELECT * FROM segment_count_delta;

CREATE FUNCTION add_segment_deltas_of_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO segment_count_delta
    SELECT operator_code, tag, time_zone, count(*) FROM new_rows WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone;
    RETURN NULL;
END $$;

CREATE FUNCTION add_segment_deltas_of_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO segment_count_delta
    SELECT operator_code, tag, time_zone, sum(n)
    FROM (SELECT *, 1 AS n FROM new_rows UNION ALL SELECT *, -1 FROM old_rows) AS row
    WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone HAVING sum(n) <> 0;
    RETURN NULL;
END $$;

CREATE FUNCTION add_segment_deltas_of_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO segment_count_delta
    SELECT operator_code, tag, time_zone, -count(*) FROM old_rows WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone;
    RETURN NULL;
END $$;

CREATE TRIGGER add_segment_deltas_of_insert AFTER INSERT ON client
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_segment_deltas_of_insert();

CREATE TRIGGER add_segment_deltas_of_update AFTER UPDATE ON client
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_segment_deltas_of_update();

CREATE TRIGGER add_segment_deltas_of_delete AFTER DELETE ON client
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_segment_deltas_of_delete();

-- ---- mailings ---------------------------------------------------------------------------------

CREATE SEQUENCE stop_number;

CREATE TABLE mailing (
    id bigint GENERATED ALWAYS AS IDENTITY,
    datetime_start timestamptz NOT NULL,
    datetime_end timestamptz NOT NULL,
    send_interval_time_start time,
    send_interval_time_end time,
    text varchar NOT NULL,
    client_filter jsonb,
    on_unknown varchar DEFAULT 'retry' NOT NULL,
    status varchar DEFAULT 'scheduled' NOT NULL,
    clients_count bigint NOT NULL,
    audience_cursor bigint DEFAULT 0 NOT NULL,
    audience_until bigint,
    audience_snapshot varchar,
    is_replanning boolean DEFAULT false NOT NULL,
    replan_cursor bigint DEFAULT 0 NOT NULL,
    filter_changed boolean DEFAULT false NOT NULL,
    replan_stop bigint,
    changed_by bigint DEFAULT 0 NOT NULL,
    retry_before timestamptz,
    retry_cursor bigint DEFAULT 0 NOT NULL,
    is_closed boolean DEFAULT false NOT NULL,
    is_settled boolean DEFAULT false NOT NULL,
    purge_started_at timestamptz,
    is_purged boolean DEFAULT false NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    deleted_at timestamptz,
    CONSTRAINT mailing_pkey PRIMARY KEY (id),
    CONSTRAINT mailing_end_after_start_check CHECK (datetime_end > datetime_start),
    CONSTRAINT mailing_text_check CHECK (char_length(text) BETWEEN 1 AND 1600),
    CONSTRAINT mailing_on_unknown_check CHECK (on_unknown IN ('retry', 'hold')),
    CONSTRAINT mailing_status_check CHECK (
        status IN ('scheduled', 'running', 'paused', 'finished', 'cancelled')),
    CONSTRAINT mailing_window_check CHECK (
        num_nulls(send_interval_time_start, send_interval_time_end) IN (0, 2)
        AND send_interval_time_start <> send_interval_time_end),
    CONSTRAINT mailing_clients_count_check CHECK (clients_count >= 0),
    CONSTRAINT mailing_closed_has_ended_check CHECK (
        NOT is_closed OR status IN ('finished', 'cancelled')),
    CONSTRAINT mailing_settled_is_closed_check CHECK (NOT is_settled OR is_closed),
    CONSTRAINT mailing_audience_check CHECK (audience_cursor <= coalesce(audience_until, 0))
);

CREATE INDEX mailing_open_idx ON mailing (id) WHERE NOT is_closed AND deleted_at IS NULL;

CREATE INDEX mailing_unsettled_idx ON mailing (id) WHERE NOT is_settled AND deleted_at IS NULL;

CREATE INDEX mailing_start_idx ON mailing (datetime_start)
    WHERE NOT is_closed AND deleted_at IS NULL AND audience_until IS NULL;

CREATE INDEX mailing_ended_idx ON mailing (
    (least(datetime_end, CASE WHEN status = 'cancelled' THEN timestamptz '-infinity' END)))
    WHERE NOT is_closed AND deleted_at IS NULL AND audience_until IS NOT NULL;

CREATE INDEX mailing_enqueue_idx ON mailing (audience_cursor, id)
    WHERE NOT is_closed AND deleted_at IS NULL AND audience_cursor < audience_until
        AND NOT is_replanning;

CREATE INDEX mailing_retry_idx ON mailing (retry_cursor, retry_before)
    WHERE NOT is_closed AND deleted_at IS NULL AND retry_before IS NOT NULL;

CREATE INDEX mailing_replan_idx ON mailing (replan_cursor, id)
    WHERE NOT is_closed AND deleted_at IS NULL AND is_replanning;

CREATE INDEX mailing_changed_idx ON mailing (changed_by);

CREATE INDEX mailing_retention_idx ON mailing (
    (greatest(updated_at, CASE WHEN status = 'finished' THEN datetime_end END)))
    WHERE is_settled AND NOT is_purged AND deleted_at IS NULL;

CREATE INDEX mailing_finished_idx ON mailing (datetime_end)
    WHERE status = 'finished' AND deleted_at IS NULL AND send_interval_time_start IS NOT NULL;

CREATE INDEX mailing_deleted_idx ON mailing (id) WHERE deleted_at IS NOT NULL;

CREATE INDEX mailing_status_id_idx ON mailing (status, id) WHERE deleted_at IS NULL;

-- Whatever is neither a letter nor a digit separates words, in a text and in a search alike.

CREATE FUNCTION words_of(value text) RETURNS text[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ARRAY(
        SELECT DISTINCT left(word, 400)
        FROM regexp_split_to_table(lower(value), '[^[:alnum:]]+') AS word WHERE word <> '');

-- The words of a mailing and its status, each behind the thousand that its id belongs to: a search by
-- prefix reads the index thousand by thousand, newest first, and never more than a thousand mailings
-- at once. The cost keeps plans from computing it for each row, even while statistics are missing.

CREATE FUNCTION mailing_words(id bigint, value text, status text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 100000
    RETURN array_to_tsvector(ARRAY(
        SELECT id / 1000 || ' ' || word FROM unnest(words_of(value) || ('=' || status)) AS word));

-- Without `fastupdate`: each search would read a list of pending entries from end to end.

CREATE INDEX mailing_words_idx ON mailing
    USING gin (mailing_words(id, text::text, status::text)) WITH (fastupdate = off);

-- Workers read the mailings that changed since a snapshot: the row says which transaction wrote it.

CREATE FUNCTION note_mailing_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new.changed_by := pg_current_xact_id()::text::bigint;
    RETURN new;
END $$;

CREATE TRIGGER note_mailing_change BEFORE INSERT OR UPDATE ON mailing
    FOR EACH ROW EXECUTE FUNCTION note_mailing_change();

-- ---- messages ---------------------------------------------------------------------------------

CREATE TABLE message (
    id bigint GENERATED ALWAYS AS IDENTITY (MAXVALUE 9007199254740991),
    mailing_id bigint NOT NULL,
    client_id bigint NOT NULL,
    operator_code varchar NOT NULL,
    time_zone varchar NOT NULL,
    due_at timestamptz NOT NULL,
    sent_at timestamptz,
    lease_expires_at timestamptz,
    lease_owner uuid,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    status varchar DEFAULT 'scheduled' NOT NULL,
    reason varchar,
    last_failure varchar,
    unknown_reason varchar,
    retry_at timestamptz,
    claimed_at timestamptz,
    failures jsonb,
    CONSTRAINT message_pkey PRIMARY KEY (id),
    CONSTRAINT message_status_check CHECK (
        status IN ('scheduled', 'sending', 'delivered', 'undelivered', 'unknown', 'cancelled')),
    CONSTRAINT message_lease_check CHECK (
        (status = 'sending') = (lease_owner IS NOT NULL)
        AND (status = 'sending') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT message_attempts_check CHECK (attempts >= 0),
    CONSTRAINT message_unknown_check CHECK (
        unknown_reason IS NULL OR status IN ('scheduled', 'sending', 'unknown'))
);

CREATE UNIQUE INDEX message_mailing_id_client_id_key ON message (mailing_id, client_id);

CREATE INDEX message_due_idx ON message (mailing_id, due_at, id) WHERE status = 'scheduled';

CREATE INDEX message_lease_idx ON message (lease_expires_at) WHERE status = 'sending';

CREATE INDEX message_retry_idx ON message (retry_at)
    WHERE status = 'scheduled' AND retry_at IS NOT NULL;

CREATE INDEX message_mailing_id_status_id_idx ON message (mailing_id, status, id);

CREATE INDEX message_mailing_id_reason_status_id_idx ON message (mailing_id, reason, status, id)
    WHERE reason IS NOT NULL;

-- ---- counts of a mailing by status ------------------------------------------------------------

-- One row a mailing. Every statement on `message` updates the rows of its mailings in its own
-- transaction, so that no way of changing a message can forget it. The low fill factor leaves room
-- for updates in place: each batch of messages rewrites the row.

CREATE TABLE mailing_counts (
    mailing_id bigint NOT NULL,
    scheduled bigint DEFAULT 0 NOT NULL,
    sending bigint DEFAULT 0 NOT NULL,
    delivered bigint DEFAULT 0 NOT NULL,
    undelivered bigint DEFAULT 0 NOT NULL,
    "unknown" bigint DEFAULT 0 NOT NULL,
    cancelled bigint DEFAULT 0 NOT NULL,
    first_sent_at timestamptz,
    last_sent_at timestamptz,
    CONSTRAINT mailing_counts_pkey PRIMARY KEY (mailing_id),
    CONSTRAINT mailing_counts_mailing_id_fkey FOREIGN KEY (mailing_id)
        REFERENCES mailing (id) ON DELETE CASCADE,
    CONSTRAINT mailing_counts_scheduled_check CHECK (scheduled >= 0),
    CONSTRAINT mailing_counts_sending_check CHECK (sending >= 0),
    CONSTRAINT mailing_counts_delivered_check CHECK (delivered >= 0),
    CONSTRAINT mailing_counts_undelivered_check CHECK (undelivered >= 0),
    CONSTRAINT mailing_counts_unknown_check CHECK ("unknown" >= 0),
    CONSTRAINT mailing_counts_cancelled_check CHECK (cancelled >= 0)
) WITH (fillfactor = 20);

-- Both functions below first lock the rows, in the order of their mailings, so that two statements
-- never wait for each other in a circle.
--
-- A snapshot that a backup holds keeps all old versions of these rows. The newest version stands in
-- the last page, so that the index has it last: a backward search finds it at once, and the update
-- goes by its place (`ctid`) alone. `BETWEEN` keeps the search in the order of the index, which an
-- equality would lose, and `+ 0` keeps the update from searching by the mailing. The update is a
-- statement of its own: the row may have moved while the lock was awaited.
--
-- The settings give one plan for any number of mailings, whatever the statistics say; a new plan
-- for each array of places would cost a tenth of a claim.

CREATE FUNCTION count_inserted_messages() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_nestloop TO off SET plan_cache_mode TO force_generic_plan AS $$
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

CREATE FUNCTION count_updated_messages() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_nestloop TO off SET plan_cache_mode TO force_generic_plan AS $$
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

CREATE TRIGGER count_inserted_messages AFTER INSERT ON message
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_inserted_messages();

CREATE TRIGGER count_updated_messages AFTER UPDATE ON message
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_updated_messages();

-- ---- counts of a mailing by everything that statistics show -----------------------------------

-- `dimension` is one of `operator_code`, `time_zone`, `reason`, `attempts` and `second`, the second of
-- an outcome. `key` is the value of a dimension, empty for `second`, which has `bucket_start` instead.
-- Triggers write deltas, which a job merges into the counts.

CREATE TABLE message_count (
    mailing_id bigint NOT NULL,
    dimension varchar NOT NULL,
    key varchar DEFAULT '' NOT NULL,
    bucket_start timestamptz,
    messages bigint DEFAULT 0 NOT NULL,
    delivered bigint DEFAULT 0 NOT NULL,
    undelivered bigint DEFAULT 0 NOT NULL,
    "unknown" bigint DEFAULT 0 NOT NULL,
    cancelled bigint DEFAULT 0 NOT NULL
);

CREATE UNIQUE INDEX message_count_key
    ON message_count (mailing_id, dimension, key, bucket_start) NULLS NOT DISTINCT;

-- Outcomes of all mailings, also of deleted ones, by quarter of an hour and reason (empty: none). Days
-- begin at a quarter of an hour in every time zone.

CREATE TABLE outcome_count (
    bucket_start timestamptz NOT NULL,
    reason varchar NOT NULL,
    delivered bigint DEFAULT 0 NOT NULL,
    undelivered bigint DEFAULT 0 NOT NULL,
    "unknown" bigint DEFAULT 0 NOT NULL,
    cancelled bigint DEFAULT 0 NOT NULL,
    CONSTRAINT outcome_count_pkey PRIMARY KEY (bucket_start, reason)
);

-- Deltas of both tables: those of `outcome_count` have the dimension `outcome`, the reason as their key
-- and the quarter of an hour as their bucket.

CREATE TABLE message_count_delta (
    mailing_id bigint NOT NULL,
    dimension varchar NOT NULL,
    key varchar DEFAULT '' NOT NULL,
    bucket_start timestamptz,
    messages bigint DEFAULT 0 NOT NULL,
    delivered bigint DEFAULT 0 NOT NULL,
    undelivered bigint DEFAULT 0 NOT NULL,
    "unknown" bigint DEFAULT 0 NOT NULL,
    cancelled bigint DEFAULT 0 NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE VIEW all_message_counts AS
    SELECT * FROM message_count
    UNION ALL
    SELECT * FROM message_count_delta WHERE dimension <> 'outcome';

CREATE VIEW all_outcome_counts AS
    SELECT * FROM outcome_count
    UNION ALL
    SELECT bucket_start, key, delivered, undelivered, "unknown", cancelled
    FROM message_count_delta WHERE dimension = 'outcome';

-- An outcome counts at the moment at which it was decided: for a message that was sent that is when
-- it was sent, but for one whose delivery is unknown, which may be decided much later. A message
-- that waits counts only by operator code and time zone, and by its reason if it has one: so a claim
-- adds no delta.

CREATE FUNCTION add_message_deltas_of_insert() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE FUNCTION add_message_deltas_of_update() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE TRIGGER add_message_deltas_of_insert AFTER INSERT ON message
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_message_deltas_of_insert();

CREATE TRIGGER add_message_deltas_of_update AFTER UPDATE ON message
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_message_deltas_of_update();

-- ---- counts of settled mailings ---------------------------------------------------------------

-- One row: how many mailings are settled and not deleted, and the outcomes of all settled or deleted
-- mailings.

CREATE TABLE settled_totals (
    finished bigint DEFAULT 0 NOT NULL,
    cancelled_mailings bigint DEFAULT 0 NOT NULL,
    delivered bigint DEFAULT 0 NOT NULL,
    undelivered bigint DEFAULT 0 NOT NULL,
    "unknown" bigint DEFAULT 0 NOT NULL,
    cancelled bigint DEFAULT 0 NOT NULL
);

INSERT INTO settled_totals DEFAULT VALUES;

-- A mailing that was cancelled before its start has no messages: its clients count as cancelled at
-- that moment.

CREATE FUNCTION update_settled_totals() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE TRIGGER update_settled_totals AFTER UPDATE OF is_settled, deleted_at ON mailing
    FOR EACH ROW
    WHEN (old.is_settled <> new.is_settled
        OR (old.deleted_at IS NULL) <> (new.deleted_at IS NULL))
    EXECUTE FUNCTION update_settled_totals();

-- Before: the counts go with the mailing.

CREATE TRIGGER update_settled_totals_of_deleted BEFORE DELETE ON mailing
    FOR EACH ROW EXECUTE FUNCTION update_settled_totals();

-- ---- origin: where the database is ------------------------------------------------------------

-- A copy of the database gives other message ids, and a restored one sends nothing until a user
-- agrees. The database decides this itself: neither a claim nor a new message can pass by it, not
-- even from a worker that stays connected through a failover.

CREATE TABLE origin (
    server bigint,
    database bigint NOT NULL,
    timeline bigint,
    started_at timestamptz NOT NULL,
    written_by bigint NOT NULL,
    moved_at timestamptz NOT NULL,
    held_since timestamptz,
    data_until timestamptz
);

-- Managed servers may refuse to tell their WAL position or control file: then the value is null. The
-- timeline is the one that is written to; that of the last checkpoint lags after a promotion.

CREATE FUNCTION wal_timeline() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN CASE WHEN NOT pg_is_in_recovery()
        THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
    RETURN NULL;
END $$;

CREATE FUNCTION system_identifier() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT control.system_identifier FROM pg_control_system() AS control);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
    RETURN NULL;
END $$;

-- Every claim calls this, so that it must be cheap: the start time stands for the server. A row that
-- a dump brought was written by another transaction than it says.

CREATE FUNCTION origin_is_current() RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT count(*) = 1 AND bool_and(written_by = origin.xmin::text::bigint
            AND started_at = pg_postmaster_start_time()
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND timeline IS NOT DISTINCT FROM wal_timeline())
        FROM origin);
END $$;

CREATE FUNCTION sending_is_allowed() RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN origin_is_current() AND NOT EXISTS (SELECT FROM origin WHERE held_since IS NOT NULL);
END $$;

-- Message ids jump over a gap that is larger than what another copy can have given since, to a random
-- place: two copies of one database meet only when both draw the same of 2^43 places at first. Each
-- jump takes a part of what is left, so that ids never run out. A new timeline is a restore when
-- recovery was told where to stop, else a promotion.

CREATE FUNCTION update_origin() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    here record;
    known record;
    last_id bigint;
    room bigint;
    is_restored boolean;
BEGIN
    IF pg_is_in_recovery() OR origin_is_current() THEN
        RETURN false;
    END IF;
    LOCK TABLE origin IN SHARE ROW EXCLUSIVE MODE;
    IF origin_is_current() THEN  -- another session has updated it meanwhile
        RETURN false;
    END IF;
    SELECT system_identifier() AS server, wal_timeline() AS timeline, oid AS database INTO here
        FROM pg_database WHERE datname = current_database();
    SELECT count(*) > 0 AS is_known, max(held_since) AS held_since, max(data_until) AS data_until,
        coalesce(count(*) > 1 OR bool_or(origin.server <> here.server)
            OR bool_or(origin.database <> here.database)
            OR bool_or(origin.written_by <> origin.xmin::text::bigint)
            OR bool_or(origin.timeline <> here.timeline) AND EXISTS (
                SELECT FROM pg_settings WHERE setting <> '' AND name IN ('recovery_target',
                    'recovery_target_lsn', 'recovery_target_name', 'recovery_target_time',
                    'recovery_target_xid')), false) AS is_restored
        INTO known FROM origin;
    is_restored := known.is_restored
        AND (EXISTS (SELECT FROM mailing) OR EXISTS (SELECT FROM daily_report));
    SELECT greatest(CASE WHEN is_called THEN last_value END, (SELECT max(id) FROM message))
        INTO last_id FROM message_id_seq;
    IF last_id IS NOT NULL THEN
        room := (9007199254740991 - last_id) / 1024;
        PERFORM setval('message_id_seq',
            last_id + least(4294967296, room) + floor(random() * room)::bigint);
    END IF;
    DELETE FROM origin;
    INSERT INTO origin
        (server, database, timeline, started_at, written_by, moved_at, held_since, data_until)
    VALUES (here.server, here.database, here.timeline, pg_postmaster_start_time(),
        pg_current_xact_id()::xid::text::bigint, clock_timestamp(),
        CASE WHEN is_restored THEN clock_timestamp() ELSE known.held_since END,
        CASE WHEN is_restored THEN (SELECT greatest((SELECT max(updated_at) FROM mailing),
            (SELECT max(last_sent_at) FROM mailing_counts),
            (SELECT max(sent_at) FROM daily_report),
            (SELECT at FROM audit ORDER BY id DESC LIMIT 1))) ELSE known.data_until END);
    IF NOT origin_is_current() THEN
        RAISE EXCEPTION 'update_origin() does not work after a savepoint';
    END IF;
    RETURN known.is_known;
END $$;

-- Before the statement draws its first id.

CREATE FUNCTION update_origin_before_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM update_origin();
    RETURN NULL;
END $$;

CREATE TRIGGER update_origin_before_insert BEFORE INSERT ON message
    FOR EACH STATEMENT EXECUTE FUNCTION update_origin_before_insert();

-- ---- daily report -----------------------------------------------------------------------------

CREATE TABLE daily_report (
    day date NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    leased_until timestamptz NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    sent_at timestamptz,
    settled_recipients bytea[] DEFAULT '{}' NOT NULL,
    CONSTRAINT daily_report_pkey PRIMARY KEY (day)
);

-- ---- access: API keys, users, sessions, audit, idempotency ------------------------------------

CREATE TABLE api_key (
    id bigint GENERATED ALWAYS AS IDENTITY,
    name varchar NOT NULL,
    digest bytea NOT NULL,
    scope varchar NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT api_key_pkey PRIMARY KEY (id),
    CONSTRAINT api_key_digest_key UNIQUE (digest),
    CONSTRAINT api_key_scope_check CHECK (scope IN ('read', 'write', 'admin')),
    CONSTRAINT api_key_name_check CHECK (char_length(name) BETWEEN 1 AND 64)
);

CREATE UNIQUE INDEX api_key_name_key ON api_key (name) WHERE revoked_at IS NULL;

CREATE TABLE app_user (
    id bigint GENERATED ALWAYS AS IDENTITY,
    name varchar NOT NULL,
    role varchar NOT NULL,
    password_hash varchar,
    issuer varchar,
    subject varchar,
    created_at timestamptz DEFAULT now() NOT NULL,
    signed_in_at timestamptz,
    disabled_at timestamptz,
    CONSTRAINT app_user_pkey PRIMARY KEY (id),
    CONSTRAINT app_user_issuer_subject_key UNIQUE (issuer, subject),
    CONSTRAINT app_user_role_check CHECK (role IN ('viewer', 'operator', 'admin')),
    CONSTRAINT app_user_name_check CHECK (char_length(name) BETWEEN 1 AND 255),
    CONSTRAINT app_user_subject_check CHECK (num_nonnulls(issuer, subject) IN (0, 2)),
    CONSTRAINT app_user_password_hash_check CHECK (
        (password_hash IS NULL) = (issuer IS NOT NULL))
);

CREATE UNIQUE INDEX app_user_name_key ON app_user (lower(name)) WHERE issuer IS NULL;

CREATE TABLE session (
    digest bytea NOT NULL,
    user_id bigint NOT NULL,
    address varchar,
    user_agent varchar,
    created_at timestamptz DEFAULT now() NOT NULL,
    seen_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT session_pkey PRIMARY KEY (digest),
    CONSTRAINT session_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app_user (id) ON DELETE CASCADE
);

CREATE INDEX session_user_id_idx ON session (user_id);

CREATE TABLE oidc_sign_in (
    digest bytea NOT NULL,
    nonce varchar NOT NULL,
    verifier varchar NOT NULL,
    return_path varchar NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT oidc_sign_in_pkey PRIMARY KEY (digest)
);

CREATE TABLE login_throttle (
    digest bytea NOT NULL,
    failures integer NOT NULL,
    blocked_until timestamptz NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT login_throttle_pkey PRIMARY KEY (digest)
);

CREATE TABLE known_network (
    digest bytea NOT NULL,
    seen_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT known_network_pkey PRIMARY KEY (digest)
);

CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz DEFAULT now() NOT NULL,
    actor_kind varchar NOT NULL,
    actor_id bigint,
    actor varchar NOT NULL,
    address varchar,
    action varchar NOT NULL,
    target_kind varchar NOT NULL,
    target_id bigint,
    before jsonb,
    after jsonb,
    CONSTRAINT audit_pkey PRIMARY KEY (id)
);

CREATE INDEX audit_target_kind_target_id_id_idx ON audit (target_kind, target_id, id);

CREATE INDEX audit_target_kind_id_idx ON audit (target_kind, id);

CREATE INDEX audit_actor_kind_actor_id_id_idx ON audit (actor_kind, actor_id, id);

CREATE INDEX audit_actor_kind_id_idx ON audit (actor_kind, id);

CREATE INDEX audit_action_id_idx ON audit (action, id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % cannot be changed', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE idempotency (
    owner varchar NOT NULL,
    key varchar NOT NULL,
    attempt uuid NOT NULL,
    leased_until timestamptz NOT NULL,
    digest bytea,
    result jsonb,
    client_id bigint,
    status integer,
    media_type varchar,
    body bytea,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_pkey PRIMARY KEY (owner, key)
);

CREATE INDEX idempotency_created_at_idx ON idempotency (created_at);

CREATE INDEX idempotency_client_id_idx ON idempotency (client_id) WHERE client_id IS NOT NULL;

CREATE INDEX idempotency_refusal_idx ON idempotency (owner) WHERE status >= 400;
