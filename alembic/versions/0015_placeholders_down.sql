DROP FUNCTION render_text(text, jsonb, jsonb);

CREATE OR REPLACE FUNCTION keep_text() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO mailing_text (mailing_id, version, text)
    VALUES (new.id, new.text_version, new.text);
    RETURN NULL;
END $$;

UPDATE message SET failures = (
        SELECT jsonb_agg(failure - 'field_values' ORDER BY position)
        FROM jsonb_array_elements(failures) WITH ORDINALITY AS kept (failure, position))
    WHERE jsonb_path_exists(failures, '$[*].field_values');

-- The version before would send the placeholders as they are written.

UPDATE mailing SET status = 'paused'
    WHERE template IS NOT NULL AND status IN ('scheduled', 'running') AND deleted_at IS NULL;

ALTER TABLE message DROP COLUMN field_values;

ALTER TABLE mailing_text DROP COLUMN template;

ALTER TABLE mailing DROP COLUMN template;
