CREATE TABLE rerouting (
    mailing_id bigint NOT NULL CONSTRAINT rerouting_pkey PRIMARY KEY,
    cursor bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

INSERT INTO rerouting (mailing_id, cursor)
    SELECT id, reroute_cursor FROM mailing WHERE reroute_cursor IS NOT NULL;

DROP INDEX mailing_reroute_idx;

ALTER TABLE mailing DROP COLUMN reroute_cursor;

CREATE TABLE routes_applied (
    worker character varying NOT NULL CONSTRAINT routes_applied_pkey PRIMARY KEY,
    applied_at timestamp with time zone NOT NULL
);
