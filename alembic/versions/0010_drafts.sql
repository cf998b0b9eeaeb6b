ALTER TABLE mailing
    DROP CONSTRAINT mailing_status_check,
    DROP CONSTRAINT mailing_closed_has_ended_check,
    ADD CONSTRAINT mailing_status_check CHECK (
        status IN ('draft', 'scheduled', 'running', 'paused', 'finished', 'cancelled')),
    ADD CONSTRAINT mailing_closed_has_ended_check CHECK (
        NOT is_closed OR status IN ('draft', 'finished', 'cancelled')),
    ADD CONSTRAINT mailing_draft_is_closed_check CHECK (
        status <> 'draft' OR is_closed AND NOT is_settled AND audience_until IS NULL);

CREATE FUNCTION keep_draft() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RETURN NULL;
END $$;

CREATE TRIGGER keep_draft BEFORE UPDATE OF status ON mailing
    FOR EACH ROW WHEN (old.status = 'draft' AND new.status = 'finished')
    EXECUTE FUNCTION keep_draft();
