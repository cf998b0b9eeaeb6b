DROP TRIGGER keep_draft ON mailing;

DROP FUNCTION keep_draft();

-- As a mailing that was cancelled before its start.
UPDATE mailing SET status = 'cancelled', is_settled = true, updated_at = now()
    WHERE status = 'draft';

ALTER TABLE mailing
    DROP CONSTRAINT mailing_draft_is_closed_check,
    DROP CONSTRAINT mailing_status_check,
    DROP CONSTRAINT mailing_closed_has_ended_check,
    ADD CONSTRAINT mailing_status_check CHECK (
        status IN ('scheduled', 'running', 'paused', 'finished', 'cancelled')),
    ADD CONSTRAINT mailing_closed_has_ended_check CHECK (
        NOT is_closed OR status IN ('finished', 'cancelled'));
