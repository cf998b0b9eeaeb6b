CREATE TABLE reply (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY (MAXVALUE 4503599627370495)
        CONSTRAINT reply_pkey PRIMARY KEY,
    gateway character varying NOT NULL,
    gateway_reply_id character varying,
    phone character varying,
    recipient character varying,
    text character varying,
    received_at timestamp with time zone NOT NULL,
    client_id bigint,
    mailing_id bigint,
    message_id bigint,
    action character varying,
    read_at timestamp with time zone,
    CONSTRAINT reply_action_check CHECK (action IN ('opted_out', 'opted_in')),
    CONSTRAINT reply_erased_check CHECK ((phone IS NULL) = (text IS NULL)),
    CONSTRAINT reply_text_check CHECK (char_length(text) <= 10000)
);

CREATE UNIQUE INDEX reply_gateway_gateway_reply_id_key ON reply (gateway, gateway_reply_id);

CREATE INDEX reply_inbox_idx ON reply
    ((id + CASE WHEN read_at IS NULL THEN '4503599627370496'::bigint ELSE 0::bigint END));

CREATE INDEX reply_unread_idx ON reply (id) WHERE read_at IS NULL;

CREATE INDEX reply_phone_id_idx ON reply (phone, id) WHERE phone IS NOT NULL;

CREATE INDEX reply_client_id_id_idx ON reply (client_id, id) WHERE client_id IS NOT NULL;

CREATE INDEX reply_mailing_id_id_idx ON reply (mailing_id, id) WHERE mailing_id IS NOT NULL;

CREATE INDEX reply_received_at_idx ON reply (received_at);

-- The words of a reply, each behind the thousand that its id belongs to, as in `mailing_words`. Its phone
-- is found by its beginning, with and without the country code, and by its last four digits.

CREATE FUNCTION reply_words(id bigint, phone text, value text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 100000
    RETURN array_to_tsvector(ARRAY(
        SELECT id / 1000 || ' ' || word
        FROM unnest(words_of(value) || ARRAY[phone, right(phone, 10), right(phone, 4)]) AS word));

CREATE INDEX reply_words_idx ON reply
    USING gin (reply_words(id, phone::text, text::text)) WITH (fastupdate = off);

CREATE TABLE reply_part (
    gateway character varying NOT NULL,
    phone character varying NOT NULL,
    reference character varying NOT NULL,
    parts smallint NOT NULL,
    part smallint NOT NULL,
    text_digest bytea NOT NULL,
    text character varying,
    recipient character varying,
    gateway_reply_id character varying,
    received_at timestamp with time zone NOT NULL,
    joined_at timestamp with time zone,
    CONSTRAINT reply_part_pkey
        PRIMARY KEY (gateway, phone, reference, parts, part, text_digest),
    CONSTRAINT reply_part_joined_check CHECK ((joined_at IS NULL) = (text IS NOT NULL)),
    CONSTRAINT reply_part_part_check CHECK (part BETWEEN 1 AND parts)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE INDEX reply_part_open_idx ON reply_part (received_at) WHERE joined_at IS NULL;

CREATE INDEX reply_part_phone_idx ON reply_part (phone);

CREATE INDEX reply_part_joined_idx ON reply_part (joined_at) WHERE joined_at IS NOT NULL;

-- An answer is a message of its own: its id is drawn from the sequence of messages.

CREATE TABLE answer (
    id bigint NOT NULL CONSTRAINT answer_pkey PRIMARY KEY,
    reply_id bigint NOT NULL
        CONSTRAINT answer_reply_id_fkey REFERENCES reply (id) ON DELETE CASCADE,
    kind character varying NOT NULL,
    gateway character varying NOT NULL,
    phone character varying,
    text character varying,
    status character varying NOT NULL DEFAULT 'waiting',
    reason character varying,
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamp with time zone NOT NULL DEFAULT now(),
    lease_owner uuid,
    lease_expires_at timestamp with time zone,
    gateway_message_id character varying,
    parts smallint,
    created_by character varying,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT answer_erased_check CHECK ((phone IS NULL) = (text IS NULL)),
    CONSTRAINT answer_kind_check CHECK (kind IN ('answer', 'acknowledgement')),
    CONSTRAINT answer_lease_check CHECK ((status = 'sending') = (lease_owner IS NOT NULL)
        AND (status = 'sending') = (lease_expires_at IS NOT NULL)),
    CONSTRAINT answer_status_check
        CHECK (status IN ('waiting', 'sending', 'accepted', 'failed', 'unknown')),
    CONSTRAINT answer_text_check CHECK (char_length(text) BETWEEN 1 AND 1600)
);

CREATE INDEX answer_reply_id_id_idx ON answer (reply_id, id);

CREATE UNIQUE INDEX answer_acknowledgement_key ON answer (reply_id)
    WHERE kind = 'acknowledgement';

CREATE INDEX answer_due_idx ON answer (gateway, due_at, id) WHERE status = 'waiting';

CREATE INDEX answer_waiting_idx ON answer (created_at) WHERE status = 'waiting';

CREATE INDEX answer_lease_idx ON answer (lease_expires_at) WHERE status = 'sending';
