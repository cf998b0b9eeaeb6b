CREATE INDEX mailing_active_idx ON mailing
    USING gist (tstzrange(datetime_start, greatest(datetime_start, updated_at), '[]'))
    WHERE is_settled AND deleted_at IS NULL;
