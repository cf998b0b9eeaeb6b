ALTER TABLE mailing ADD COLUMN template jsonb;

ALTER TABLE mailing_text ADD COLUMN template jsonb;

ALTER TABLE message ADD COLUMN field_values jsonb;

CREATE OR REPLACE FUNCTION keep_text() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO mailing_text (mailing_id, version, text, template)
    VALUES (new.id, new.text_version, new.text, new.template);
    RETURN NULL;
END $$;

CREATE FUNCTION render_text(written text, template jsonb, fields jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE WHEN template IS NULL OR fields IS NULL THEN written ELSE (
        SELECT string_agg(CASE jsonb_typeof(piece) WHEN 'string' THEN piece #>> '{}'
            ELSE coalesce(nullif(btrim(fields ->> (piece ->> 'field')), ''), piece ->> 'default',
                '{{ ' || (piece ->> 'field') || ' }}') END, '' ORDER BY position)
        FROM jsonb_array_elements(template) WITH ORDINALITY AS given (piece, position)) END
$$;
