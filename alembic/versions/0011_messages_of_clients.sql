CREATE INDEX message_client_id_status_id_idx ON message (client_id, status, id)
    WHERE status NOT IN ('scheduled', 'sending');

CREATE INDEX client_reversed_phone_idx ON client (reverse(phone::text) text_pattern_ops)
    WHERE deleted_at IS NULL;

CREATE INDEX reply_reversed_phone_idx ON reply (reverse(phone::text) text_pattern_ops)
    WHERE phone IS NOT NULL;
