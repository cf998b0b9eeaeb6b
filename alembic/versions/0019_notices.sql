CREATE TABLE notice_recipient (
    user_id bigint NOT NULL CONSTRAINT notice_recipient_pkey PRIMARY KEY,
    address character varying NOT NULL,
    kinds character varying[] NOT NULL,
    language character varying NOT NULL,
    time_zone character varying NOT NULL,
    next_mail_at timestamp with time zone NOT NULL DEFAULT now(),
    claims bigint NOT NULL DEFAULT 0,
    batch_until bigint,
    attempted_at timestamp with time zone,
    sent_at timestamp with time zone,
    failures integer NOT NULL DEFAULT 0,
    failure character varying,
    CONSTRAINT notice_recipient_address_check CHECK (char_length(address) BETWEEN 3 AND 254),
    CONSTRAINT notice_recipient_failures_check CHECK ((failures > 0) = (failure IS NOT NULL)),
    CONSTRAINT notice_recipient_user_id_fkey FOREIGN KEY (user_id) REFERENCES app_user (id)
        ON DELETE CASCADE
);

CREATE TABLE notice (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT notice_pkey PRIMARY KEY,
    user_id bigint NOT NULL,
    kind character varying NOT NULL,
    data json NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT notice_user_id_fkey FOREIGN KEY (user_id) REFERENCES notice_recipient (user_id)
        ON DELETE CASCADE
);

CREATE INDEX notice_user_id_id_idx ON notice (user_id, id);

CREATE TABLE notice_ended_mailing (
    mailing_id bigint NOT NULL CONSTRAINT notice_ended_mailing_pkey PRIMARY KEY,
    ended_at timestamp with time zone NOT NULL DEFAULT now()
);

CREATE TABLE notice_trouble (
    kind character varying NOT NULL,
    subject character varying NOT NULL,
    since timestamp with time zone,
    absent_since timestamp with time zone,
    reported_at timestamp with time zone,
    is_reported boolean NOT NULL DEFAULT false,
    CONSTRAINT notice_trouble_pkey PRIMARY KEY (kind, subject),
    CONSTRAINT notice_trouble_reported_check CHECK (NOT is_reported OR reported_at IS NOT NULL)
);

CREATE FUNCTION add_ended_mailing_of_notices() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (SELECT FROM notice_recipient WHERE 'mailing_unreached' = ANY (kinds)) THEN
        INSERT INTO notice_ended_mailing (mailing_id) VALUES (new.id) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER add_ended_mailing_of_notices AFTER UPDATE ON mailing
    FOR EACH ROW WHEN (new.is_closed AND NOT old.is_closed AND new.deleted_at IS NULL
        AND new.status = 'finished')
    EXECUTE FUNCTION add_ended_mailing_of_notices();
