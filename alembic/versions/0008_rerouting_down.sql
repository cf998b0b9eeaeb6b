DROP TABLE routes_applied;

ALTER TABLE mailing ADD COLUMN reroute_cursor bigint;

CREATE INDEX mailing_reroute_idx ON mailing (reroute_cursor, id)
    WHERE NOT is_closed AND deleted_at IS NULL AND reroute_cursor IS NOT NULL;

UPDATE mailing SET reroute_cursor = rerouting.cursor FROM rerouting WHERE id = mailing_id;

DROP TABLE rerouting;
