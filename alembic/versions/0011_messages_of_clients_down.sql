DROP INDEX reply_reversed_phone_idx;

DROP INDEX client_reversed_phone_idx;

DROP INDEX message_client_id_status_id_idx;
