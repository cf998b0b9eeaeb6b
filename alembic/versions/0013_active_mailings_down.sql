DROP INDEX mailing_active_idx;
