CREATE TABLE client_contact (
    client_id bigint NOT NULL,
    message_ids bigint[] DEFAULT '{}' NOT NULL,
    contacted_at timestamptz[] DEFAULT '{}' NOT NULL,
    complete_since timestamptz DEFAULT 'infinity' NOT NULL,
    CONSTRAINT client_contact_pkey PRIMARY KEY (client_id),
    CONSTRAINT client_contact_length_check
        CHECK (cardinality(message_ids) = cardinality(contacted_at))
) WITH (fillfactor = 70);

CREATE FUNCTION record_contacts(message_ids bigint[], client_ids bigint[], is_repeat boolean[],
    cap integer, span interval) RETURNS SETOF bigint
    LANGUAGE plpgsql
    SET enable_seqscan = off
    SET enable_hashjoin = off
    SET enable_mergejoin = off
    AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := clock_timestamp();
    since timestamptz := at - span;
BEGIN
    IF cardinality(record_contacts.message_ids) = 0 THEN
        RETURN;
    END IF;
    -- Lock the rows of the clients, always in the same order. WHERE false only locks.
    INSERT INTO client_contact (client_id)
    SELECT DISTINCT id FROM unnest(client_ids) AS id ORDER BY id
    ON CONFLICT (client_id) DO UPDATE SET client_id = excluded.client_id WHERE false;
    -- Each statement sees what others have committed before it got the locks.
    UPDATE client_contact SET message_ids = found.message_ids, contacted_at = found.contacted_at,
        complete_since = since
    FROM (
        SELECT client_id, coalesce(array_agg(message_id ORDER BY sent_at)
                FILTER (WHERE message_id IS NOT NULL), '{}') AS message_ids,
            coalesce(array_agg(sent_at ORDER BY sent_at)
                FILTER (WHERE message_id IS NOT NULL), '{}') AS contacted_at
        FROM (
            SELECT known.client_id, contact.message_id, max(contact.sent_at) AS sent_at
            FROM client_contact AS known
            LEFT JOIN LATERAL (
                SELECT * FROM unnest(known.message_ids, known.contacted_at)
                    AS stored (message_id, sent_at)
                UNION ALL
                SELECT message.id, coalesce(message.sent_at, message.updated_at)
                FROM unnest('{delivered,sent,unknown}'::text[]) AS counted (status)
                CROSS JOIN LATERAL (
                    SELECT id, mailing_id, sent_at, updated_at FROM message
                    WHERE client_id = known.client_id AND status = counted.status
                        AND status NOT IN ('scheduled', 'sending')
                    ORDER BY id DESC LIMIT 100
                ) AS message
                JOIN mailing ON mailing.id = message.mailing_id
                WHERE mailing.purpose = 'marketing'
            ) AS contact ON contact.sent_at > since
            WHERE known.client_id = ANY (client_ids) AND known.complete_since > since
            GROUP BY known.client_id, contact.message_id
        ) AS contact
        GROUP BY client_id
    ) AS found
    WHERE client_contact.client_id = found.client_id;
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT client_id, array_agg(message_id ORDER BY is_repeat DESC, position) AS ids,
            count(*)::integer AS messages, (count(*) FILTER (WHERE is_repeat))::integer AS repeats
        FROM unnest(record_contacts.message_ids, client_ids, is_repeat) WITH ORDINALITY
            AS asked (message_id, client_id, is_repeat, position)
        GROUP BY client_id
    ), decided AS MATERIALIZED (
        SELECT client_id, asked.ids, contact.ids AS other_ids, contact.times AS other_times,
            greatest(repeats, least(asked.messages, cap - contact.messages)) AS permitted
        FROM asked JOIN client_contact USING (client_id) CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(stored.message_id), '{}') AS ids,
                coalesce(array_agg(stored.sent_at), '{}') AS times, count(*)::integer AS messages
            FROM unnest(client_contact.message_ids, client_contact.contacted_at)
                AS stored (message_id, sent_at)
            WHERE stored.sent_at > since AND stored.message_id <> ALL (asked.ids)
                -- whether a message was sent matters only if the number would reach the cap
                AND (cardinality(client_contact.message_ids) + asked.messages <= cap
                    OR NOT EXISTS (
                        SELECT FROM message WHERE message.id = stored.message_id
                            AND (status IN ('undelivered', 'cancelled')
                                OR status = 'scheduled' AND unknown_reason IS NULL)))
        ) AS contact
    ), changed AS (
        UPDATE client_contact SET
            message_ids = other_ids || ids[1:permitted],
            contacted_at = other_times || array_fill(at, ARRAY[permitted]),
            complete_since = since
        FROM decided WHERE client_contact.client_id = decided.client_id AND permitted > 0
    )
    SELECT unnest(ids[permitted + 1:]) FROM decided WHERE permitted < cardinality(ids);
END $$;
