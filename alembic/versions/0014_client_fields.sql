ALTER TABLE client
    ADD COLUMN fields jsonb NOT NULL DEFAULT '{}'::jsonb,
    ADD CONSTRAINT client_fields_check CHECK (jsonb_typeof(fields) = 'object') NOT VALID,
    DROP CONSTRAINT client_erased_check,
    ADD CONSTRAINT client_erased_check CHECK (
        CASE WHEN deleted_at IS NULL THEN phone IS NOT NULL
        ELSE phone IS NULL AND tag IS NULL AND fields = '{}'::jsonb END) NOT VALID;

ALTER TABLE client VALIDATE CONSTRAINT client_fields_check;

ALTER TABLE client VALIDATE CONSTRAINT client_erased_check;

-- Numbers of clients by the name of a field that they have. A statement that changes clients inserts
-- deltas, which a periodic job merges.

CREATE TABLE client_field_count (
    name character varying NOT NULL CONSTRAINT client_field_count_pkey PRIMARY KEY,
    clients bigint DEFAULT 0 NOT NULL
);

CREATE INDEX client_field_count_clients_idx ON client_field_count (clients);

CREATE TABLE client_field_count_delta (
    name character varying NOT NULL,
    clients bigint DEFAULT 0 NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE VIEW all_client_field_counts AS
    SELECT name, clients FROM client_field_count
    UNION ALL
    SELECT name, clients FROM client_field_count_delta;

CREATE FUNCTION add_field_deltas_of_insert() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO client_field_count_delta (name, clients)
    SELECT name, count(*)
    FROM new_rows CROSS JOIN jsonb_object_keys(fields) AS name
    WHERE fields <> '{}'
    GROUP BY name;
    RETURN NULL;
END $$;

CREATE FUNCTION add_field_deltas_of_update() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO client_field_count_delta (name, clients)
    SELECT name, sum(n)
    FROM (SELECT fields, 1 AS n FROM new_rows WHERE fields <> '{}'
        UNION ALL SELECT fields, -1 FROM old_rows WHERE fields <> '{}') AS row
    CROSS JOIN jsonb_object_keys(fields) AS name
    GROUP BY name
    HAVING sum(n) <> 0;
    RETURN NULL;
END $$;

CREATE FUNCTION add_field_deltas_of_delete() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO client_field_count_delta (name, clients)
    SELECT name, -count(*)
    FROM old_rows CROSS JOIN jsonb_object_keys(fields) AS name
    WHERE fields <> '{}'
    GROUP BY name;
    RETURN NULL;
END $$;

CREATE TRIGGER add_field_deltas_of_insert AFTER INSERT ON client
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_field_deltas_of_insert();

CREATE TRIGGER add_field_deltas_of_update AFTER UPDATE ON client
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_field_deltas_of_update();

CREATE TRIGGER add_field_deltas_of_delete AFTER DELETE ON client
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION add_field_deltas_of_delete();
