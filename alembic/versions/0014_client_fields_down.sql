DROP TRIGGER add_field_deltas_of_delete ON client;

DROP TRIGGER add_field_deltas_of_update ON client;

DROP TRIGGER add_field_deltas_of_insert ON client;

DROP FUNCTION add_field_deltas_of_delete();

DROP FUNCTION add_field_deltas_of_update();

DROP FUNCTION add_field_deltas_of_insert();

DROP VIEW all_client_field_counts;

DROP TABLE client_field_count_delta;

DROP TABLE client_field_count;

ALTER TABLE client
    DROP CONSTRAINT client_erased_check,
    DROP COLUMN fields,
    ADD CONSTRAINT client_erased_check CHECK (
        CASE WHEN deleted_at IS NULL THEN phone IS NOT NULL
        ELSE phone IS NULL AND tag IS NULL END) NOT VALID;

ALTER TABLE client VALIDATE CONSTRAINT client_erased_check;
