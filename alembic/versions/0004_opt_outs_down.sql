DO $$
BEGIN
    IF EXISTS (SELECT FROM opt_out) THEN
        RAISE EXCEPTION 'a downgrade would lose the opt-outs'
            USING HINT = 'Export them, delete the rows of opt_out, and try again.';
    END IF;
END $$;

ALTER TABLE mailing DROP COLUMN purpose;

CREATE OR REPLACE FUNCTION add_segment_deltas_of_insert() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO segment_count_delta
    SELECT operator_code, tag, time_zone, count(*) FROM new_rows WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION add_segment_deltas_of_update() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO segment_count_delta
    SELECT operator_code, tag, time_zone, sum(n)
    FROM (SELECT *, 1 AS n FROM new_rows UNION ALL SELECT *, -1 FROM old_rows) AS row
    WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone HAVING sum(n) <> 0;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION add_segment_deltas_of_delete() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO segment_count_delta
    SELECT operator_code, tag, time_zone, -count(*) FROM old_rows WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION note_time_zone_changes() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO client_to_replan (client_id)
    SELECT new_rows.id FROM new_rows JOIN old_rows USING (id)
    WHERE new_rows.time_zone <> old_rows.time_zone AND new_rows.deleted_at IS NULL;
    RETURN NULL;
END $$;

DROP VIEW all_segment_counts;

DELETE FROM segment_count_delta WHERE clients = 0;

ALTER TABLE segment_count DROP COLUMN opted_out;

ALTER TABLE segment_count_delta DROP COLUMN opted_out;

CREATE VIEW all_segment_counts AS
    SELECT * FROM segment_count UNION ALL SELECT * FROM segment_count_delta;

DROP TRIGGER move_opt_out ON client;

DROP TRIGGER link_opt_outs ON client;

ALTER TABLE client DROP COLUMN opted_out_at;

DROP TABLE opt_out;

DROP TABLE opt_out_to_link;

DROP TABLE opt_out_count;

DROP TABLE opt_out_key;

DROP FUNCTION move_opt_out();

DROP FUNCTION link_opt_outs();

DROP FUNCTION count_inserted_opt_outs();

DROP FUNCTION count_deleted_opt_outs();

DROP FUNCTION hmac_sha256(bytea, bytea, text);
