CREATE TABLE webhook (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT webhook_pkey PRIMARY KEY,
    name character varying NOT NULL,
    url character varying NOT NULL,
    events character varying[] NOT NULL,
    secret bytea NOT NULL,
    previous_secret bytea,
    previous_secret_until timestamp with time zone,
    is_enabled boolean NOT NULL DEFAULT true,
    disabled_at timestamp with time zone,
    disabled_reason character varying,
    failures integer NOT NULL DEFAULT 0,
    failing_since timestamp with time zone,
    last_success_at timestamp with time zone,
    dropped bigint NOT NULL DEFAULT 0,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT webhook_name_check CHECK (char_length(name) BETWEEN 1 AND 64),
    CONSTRAINT webhook_url_check CHECK (char_length(url) BETWEEN 1 AND 2000),
    CONSTRAINT webhook_secret_check CHECK (octet_length(secret) BETWEEN 24 AND 64),
    CONSTRAINT webhook_previous_secret_check
        CHECK (num_nulls(previous_secret, previous_secret_until) IN (0, 2)),
    CONSTRAINT webhook_disabled_check
        CHECK (num_nulls(disabled_at, disabled_reason) = CASE WHEN is_enabled THEN 2 ELSE 0 END),
    CONSTRAINT webhook_failures_check CHECK ((failures > 0) = (failing_since IS NOT NULL))
);

CREATE TABLE webhook_event (
    id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT webhook_event_pkey PRIMARY KEY,
    type character varying NOT NULL,
    data json NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now()
);

CREATE INDEX webhook_event_created_at_idx ON webhook_event (created_at);

CREATE TABLE webhook_delivery (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT webhook_delivery_pkey PRIMARY KEY,
    webhook_id bigint NOT NULL,
    event_id uuid NOT NULL,
    status character varying NOT NULL DEFAULT 'waiting',
    attempts integer NOT NULL DEFAULT 0,
    attempt_at timestamp with time zone NOT NULL DEFAULT now(),
    attempted_at timestamp with time zone,
    response_status smallint,
    error character varying,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT webhook_delivery_status_check
        CHECK (status IN ('waiting', 'delivered', 'failed')),
    CONSTRAINT webhook_delivery_attempts_check CHECK (attempts >= 0)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE INDEX webhook_delivery_due_idx ON webhook_delivery (webhook_id, attempt_at, id)
    WHERE status = 'waiting';

CREATE INDEX webhook_delivery_webhook_id_id_idx ON webhook_delivery (webhook_id, id);

CREATE TABLE gateway_outage (
    gateway character varying NOT NULL CONSTRAINT gateway_outage_pkey PRIMARY KEY,
    reason character varying NOT NULL,
    since timestamp with time zone NOT NULL,
    seen_at timestamp with time zone NOT NULL DEFAULT now()
);

CREATE TABLE mailing_hold (
    mailing_id bigint NOT NULL CONSTRAINT mailing_hold_pkey PRIMARY KEY
);

CREATE FUNCTION add_webhook_event(event_type character varying, event_data json) RETURNS void
    LANGUAGE sql
    AS $$
    WITH subscribed AS MATERIALIZED (
        SELECT id FROM webhook WHERE is_enabled AND event_type = ANY (events)
    ), event AS (
        INSERT INTO webhook_event (type, data)
        SELECT event_type, event_data WHERE EXISTS (SELECT FROM subscribed)
        RETURNING id
    )
    INSERT INTO webhook_delivery (webhook_id, event_id)
    SELECT subscribed.id, event.id FROM subscribed CROSS JOIN event ORDER BY subscribed.id
$$;

CREATE FUNCTION is_final(status character varying, reason character varying) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT status IN ('delivered', 'undelivered', 'unknown', 'cancelled')
        OR status = 'sent' AND reason IS NOT DISTINCT FROM 'no_receipt'
$$;

CREATE FUNCTION add_events_of_inserted_messages() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhook WHERE is_enabled AND 'messages.finished' = ANY (events)) THEN
        RETURN NULL;
    END IF;
    PERFORM add_webhook_event('messages.finished', json_build_object('messages', messages))
    FROM (
        SELECT json_agg(row_to_json(message)) AS messages
        FROM (
            SELECT id, mailing_id, client_id, status, reason, gateway, gateway_message_id, parts,
                to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                    AS updated_at,
                (row_number() OVER (ORDER BY id) - 1) / 500 AS batch
            FROM new_rows WHERE is_final(status, reason)
        ) AS finished CROSS JOIN LATERAL (
            SELECT finished.id, mailing_id, client_id, status, reason, gateway, gateway_message_id,
                parts, updated_at
        ) AS message
        GROUP BY batch
    ) AS event;
    RETURN NULL;
END $$;

CREATE FUNCTION add_events_of_updated_messages() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhook WHERE is_enabled AND 'messages.finished' = ANY (events))
        OR NOT EXISTS (SELECT FROM new_rows WHERE is_final(status, reason)) THEN
        RETURN NULL;
    END IF;
    PERFORM add_webhook_event('messages.finished', json_build_object('messages', messages))
    FROM (
        SELECT json_agg(row_to_json(message)) AS messages
        FROM (
            SELECT new_rows.id, new_rows.mailing_id, new_rows.client_id, new_rows.status,
                new_rows.reason, new_rows.gateway, new_rows.gateway_message_id, new_rows.parts,
                to_char(new_rows.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                    AS updated_at,
                (row_number() OVER (ORDER BY new_rows.id) - 1) / 500 AS batch
            FROM new_rows JOIN old_rows ON old_rows.id = new_rows.id
            WHERE is_final(new_rows.status, new_rows.reason)
                AND (old_rows.status <> new_rows.status
                    OR NOT is_final(old_rows.status, old_rows.reason))
        ) AS finished CROSS JOIN LATERAL (
            SELECT finished.id, mailing_id, client_id, status, reason, gateway, gateway_message_id,
                parts, updated_at
        ) AS message
        GROUP BY batch
    ) AS event;
    RETURN NULL;
END $$;

CREATE FUNCTION add_event_of_mailing() RETURNS trigger
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

CREATE FUNCTION add_event_of_opt_out() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (SELECT FROM webhook WHERE is_enabled AND 'client.opted_out' = ANY (events)) THEN
        PERFORM add_webhook_event('client.opted_out', (
            SELECT json_build_object('client_id', new.id, 'opted_out_at',
                to_char(new.opted_out_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                'source', source, 'gateway', gateway)
            FROM (SELECT new.id) AS client LEFT JOIN opt_out ON opt_out.client_id = client.id));
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION add_event_of_reply() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (SELECT FROM webhook WHERE is_enabled AND 'reply.received' = ANY (events)) THEN
        PERFORM add_webhook_event('reply.received', json_build_object('id', new.id,
            'gateway', new.gateway, 'client_id', new.client_id, 'mailing_id', new.mailing_id,
            'message_id', new.message_id, 'received_at',
            to_char(new.received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')));
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER add_event_of_opt_out AFTER UPDATE OF opted_out_at ON client
    FOR EACH ROW WHEN (old.opted_out_at IS NULL AND new.opted_out_at IS NOT NULL)
    EXECUTE FUNCTION add_event_of_opt_out();

CREATE TRIGGER add_event_of_reply AFTER INSERT ON reply
    FOR EACH ROW EXECUTE FUNCTION add_event_of_reply();

CREATE TRIGGER add_events_of_inserted_messages AFTER INSERT ON message
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_events_of_inserted_messages();

CREATE TRIGGER add_events_of_updated_messages AFTER UPDATE ON message
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_events_of_updated_messages();

CREATE TRIGGER add_event_of_started_mailing AFTER UPDATE ON mailing
    FOR EACH ROW WHEN (old.audience_until IS NULL AND new.audience_until IS NOT NULL)
    EXECUTE FUNCTION add_event_of_mailing('started');

CREATE TRIGGER add_event_of_finished_mailing AFTER UPDATE ON mailing
    FOR EACH ROW WHEN (new.is_closed AND NOT old.is_closed AND new.deleted_at IS NULL)
    EXECUTE FUNCTION add_event_of_mailing('finished');
