-- An opt-out outlives its client as a keyed hash of the phone (HMAC-SHA-256, RFC 2104). The two keys
-- are the random secret of this database, padded for the inner and the outer hash. Whoever has them
-- can find the phones by trying all, so they are as secret as the phones of the clients.

CREATE TABLE opt_out_key (
    id integer DEFAULT 1 NOT NULL CONSTRAINT opt_out_key_pkey PRIMARY KEY,
    inner_key bytea NOT NULL,
    outer_key bytea NOT NULL,
    CONSTRAINT opt_out_key_single_check CHECK (id = 1)
);

INSERT INTO opt_out_key (inner_key, outer_key)
    SELECT decode(string_agg(lpad(to_hex(byte # 54), 2, '0'), '' ORDER BY position), 'hex'),
        decode(string_agg(lpad(to_hex(byte # 92), 2, '0'), '' ORDER BY position), 'hex')
    FROM (SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
        || uuid_send(gen_random_uuid()))) AS random (secret)
    CROSS JOIN LATERAL (
        SELECT position, CASE WHEN position < 32 THEN get_byte(secret, position) ELSE 0 END AS byte
        FROM generate_series(0, 63) AS position) AS padded;

CREATE FUNCTION hmac_sha256(inner_key bytea, outer_key bytea, value text) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN sha256(outer_key || sha256(inner_key || convert_to(value, 'UTF8')));

CREATE TABLE opt_out (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT opt_out_pkey PRIMARY KEY,
    phone_digest bytea NOT NULL CONSTRAINT opt_out_phone_digest_key UNIQUE,
    client_id bigint CONSTRAINT opt_out_client_id_key UNIQUE,
    opted_out_at timestamp with time zone DEFAULT now() NOT NULL,
    source character varying NOT NULL,
    gateway character varying,
    CONSTRAINT opt_out_source_check CHECK (
        source IN ('reply', 'gateway', 'page', 'api', 'import'))
);

CREATE TABLE opt_out_to_link (
    phone character varying NOT NULL,
    created_by bigint DEFAULT pg_current_xact_id()::text::bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE TABLE opt_out_count (
    opt_outs bigint DEFAULT 0 NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE FUNCTION count_inserted_opt_outs() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO opt_out_count (opt_outs) SELECT count(*) FROM new_rows HAVING count(*) > 0;
    RETURN NULL;
END $$;

CREATE FUNCTION count_deleted_opt_outs() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO opt_out_count (opt_outs) SELECT -count(*) FROM old_rows HAVING count(*) > 0;
    RETURN NULL;
END $$;

CREATE TRIGGER count_inserted_opt_outs AFTER INSERT ON opt_out
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_inserted_opt_outs();

CREATE TRIGGER count_deleted_opt_outs AFTER DELETE ON opt_out
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_deleted_opt_outs();

ALTER TABLE client ADD COLUMN opted_out_at timestamp with time zone;

CREATE INDEX client_opted_out_idx ON client (id)
    INCLUDE (operator_code, tag, time_zone) WHERE opted_out_at IS NOT NULL AND deleted_at IS NULL;

-- New clients get the opt-outs of their phones. Without an opt-out that has no client, this costs one
-- look into an index for each statement. EXECUTE plans the statement for the number of new rows: the
-- plan of an earlier call, for one row, would take hours for a million.

CREATE FUNCTION link_opt_outs() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (SELECT FROM opt_out WHERE client_id IS NULL) THEN
        EXECUTE '
            WITH linked AS (
                UPDATE opt_out SET client_id = new_rows.id
                FROM new_rows CROSS JOIN opt_out_key
                WHERE opt_out.client_id IS NULL
                    AND opt_out.phone_digest = hmac_sha256(inner_key, outer_key, new_rows.phone)
                RETURNING opt_out.client_id, opt_out.opted_out_at)
            UPDATE client SET opted_out_at = linked.opted_out_at
            FROM linked WHERE client.id = linked.client_id';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER link_opt_outs AFTER INSERT ON client
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION link_opt_outs();

-- A client who has opted out stays so with a new phone, and so does the old phone. A client who has
-- not gets the opt-out of the new phone. Only statements that set the phone fire this trigger.

CREATE FUNCTION move_opt_out() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    old_opt_out opt_out;
    new_digest bytea := (
        SELECT hmac_sha256(inner_key, outer_key, new.phone) FROM opt_out_key);
    since timestamptz;
BEGIN
    UPDATE opt_out SET client_id = NULL WHERE client_id = new.id RETURNING * INTO old_opt_out;
    IF new.phone IS NULL THEN
        RETURN NULL;
    END IF;
    IF old_opt_out.id IS NOT NULL THEN
        INSERT INTO opt_out (phone_digest, client_id, opted_out_at, source, gateway)
        VALUES (new_digest, new.id, old_opt_out.opted_out_at, old_opt_out.source, old_opt_out.gateway)
        ON CONFLICT (phone_digest) DO UPDATE SET client_id = excluded.client_id;
        RETURN NULL;
    END IF;
    UPDATE opt_out SET client_id = new.id WHERE phone_digest = new_digest
        RETURNING opted_out_at INTO since;
    IF since IS NOT NULL THEN
        UPDATE client SET opted_out_at = since WHERE id = new.id;
        PERFORM pg_notify('clients_opted_out', '');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER move_opt_out AFTER UPDATE OF phone ON client
    FOR EACH ROW WHEN (old.phone IS DISTINCT FROM new.phone) EXECUTE FUNCTION move_opt_out();

-- Opt-outs from a file change many clients at once. Without a join the time does not depend on a
-- plan that was made for fewer rows.

CREATE OR REPLACE FUNCTION note_time_zone_changes() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO client_to_replan (client_id)
    SELECT id FROM (
        SELECT id, time_zone FROM new_rows WHERE deleted_at IS NULL
        EXCEPT ALL
        SELECT id, time_zone FROM old_rows) AS changed;
    RETURN NULL;
END $$;

ALTER TABLE segment_count ADD COLUMN opted_out bigint DEFAULT 0 NOT NULL;

ALTER TABLE segment_count_delta ADD COLUMN opted_out bigint DEFAULT 0 NOT NULL;

CREATE OR REPLACE VIEW all_segment_counts AS
    SELECT operator_code, tag, time_zone, clients, opted_out FROM segment_count
    UNION ALL
    SELECT operator_code, tag, time_zone, clients, opted_out FROM segment_count_delta;

CREATE OR REPLACE FUNCTION add_segment_deltas_of_insert() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO segment_count_delta (operator_code, tag, time_zone, clients, opted_out)
    SELECT operator_code, tag, time_zone, count(*), count(opted_out_at)
    FROM new_rows WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION add_segment_deltas_of_update() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO segment_count_delta (operator_code, tag, time_zone, clients, opted_out)
    SELECT operator_code, tag, time_zone, sum(n),
        coalesce(sum(n) FILTER (WHERE opted_out_at IS NOT NULL), 0)
    FROM (SELECT *, 1 AS n FROM new_rows UNION ALL SELECT *, -1 FROM old_rows) AS row
    WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone
    HAVING sum(n) <> 0 OR sum(n) FILTER (WHERE opted_out_at IS NOT NULL) <> 0;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION add_segment_deltas_of_delete() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO segment_count_delta (operator_code, tag, time_zone, clients, opted_out)
    SELECT operator_code, tag, time_zone, -count(*), -count(opted_out_at)
    FROM old_rows WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone;
    RETURN NULL;
END $$;

ALTER TABLE mailing
    ADD COLUMN purpose character varying DEFAULT 'marketing' NOT NULL,
    ADD CONSTRAINT mailing_purpose_check CHECK (purpose IN ('marketing', 'service'));
