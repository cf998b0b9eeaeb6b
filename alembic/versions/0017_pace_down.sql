DROP TRIGGER add_mailing_pace ON mailing;

DROP FUNCTION add_mailing_pace();

DROP TABLE mailing_pace;

ALTER TABLE mailing DROP COLUMN priority, DROP COLUMN rate;
