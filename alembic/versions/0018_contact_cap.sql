CREATE UNLOGGED TABLE client_contact (
    client_id bigint NOT NULL,
    message_ids bigint[] DEFAULT '{}' NOT NULL,
    contacted_at timestamptz[] DEFAULT '{}' NOT NULL,
    complete_since timestamptz DEFAULT 'infinity' NOT NULL,
    CONSTRAINT client_contact_pkey PRIMARY KEY (client_id),
    CONSTRAINT client_contact_length_check
        CHECK (cardinality(message_ids) = cardinality(contacted_at))
) WITH (fillfactor = 45);

CREATE FUNCTION record_contacts(asked_ids bigint[], asked_clients bigint[], is_repeat boolean[],
    cap integer, span interval) RETURNS SETOF bigint
    LANGUAGE plpgsql
    SET enable_seqscan = off
    SET enable_hashjoin = off
    SET enable_mergejoin = off
    AS $$
#variable_conflict use_column
DECLARE
    at timestamptz;
    since timestamptz;
    permitted bigint[];
BEGIN
    IF cardinality(asked_ids) = 0 THEN
        RETURN;
    END IF;
    -- One claim at a time. Each statement below sees what the claims before have committed.
    PERFORM pg_advisory_xact_lock(-8);
    at := clock_timestamp();
    since := at - span;
    -- Most clients have few messages: fewer than the cap are stored, oldest first, or of the newest
    -- ones the first is too old to count. Then older ones are not needed any more.
    WITH changed AS (
        UPDATE client_contact SET
            message_ids = message_ids[greatest(1, cardinality(message_ids) - cap + 2):]
                || asked.message_id,
            contacted_at = contacted_at[greatest(1, cardinality(contacted_at) - cap + 2):] || at,
            complete_since = CASE WHEN cardinality(message_ids) < cap
                THEN complete_since ELSE since END
        FROM unnest(asked_ids, asked_clients) AS asked (message_id, client_id)
        WHERE client_contact.client_id = asked.client_id
            AND (cardinality(message_ids) < cap
                OR contacted_at[cardinality(contacted_at) - cap + 1] <= since)
            AND complete_since <= since
            AND asked.message_id <> ALL (message_ids)
        RETURNING asked.message_id
    )
    SELECT coalesce(array_agg(message_id), '{}') INTO permitted FROM changed;
    IF cardinality(permitted) = cardinality(asked_ids) THEN
        RETURN;
    END IF;
    SELECT array_agg(message_id), array_agg(client_id), array_agg(repeats)
    INTO asked_ids, asked_clients, is_repeat
    FROM unnest(asked_ids, asked_clients, is_repeat) AS asked (message_id, client_id, repeats)
    WHERE message_id NOT IN (SELECT unnest(permitted));
    INSERT INTO client_contact (client_id)
    SELECT DISTINCT id FROM unnest(asked_clients) AS id
    ON CONFLICT (client_id) DO NOTHING;
    -- Find the messages of clients who are new here, and for a longer span than before.
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
                    SELECT message.id, sent_at, message.updated_at
                    FROM message JOIN mailing ON mailing.id = mailing_id
                    WHERE client_id = known.client_id AND message.status = counted.status
                        AND message.status NOT IN ('scheduled', 'sending')
                        AND purpose = 'marketing'
                    ORDER BY message.id DESC LIMIT 100
                ) AS message
            ) AS contact ON contact.sent_at > since
            WHERE known.client_id = ANY (asked_clients) AND known.complete_since > since
            GROUP BY known.client_id, contact.message_id
        ) AS contact
        GROUP BY client_id
    ) AS found
    WHERE client_contact.client_id = found.client_id;
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT client_id, array_agg(message_id ORDER BY repeats DESC, position) AS ids,
            count(*)::integer AS messages, (count(*) FILTER (WHERE repeats))::integer AS repeats
        FROM unnest(asked_ids, asked_clients, is_repeat) WITH ORDINALITY
            AS asked (message_id, client_id, repeats, position)
        GROUP BY client_id
    ), decided AS MATERIALIZED (
        SELECT client_id, asked.ids, contact.ids AS other_ids, contact.times AS other_times,
            greatest(asked.repeats, least(asked.messages, cap - contact.messages)) AS number
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
            message_ids = other_ids || ids[1:number],
            contacted_at = other_times || array_fill(at, ARRAY[number]),
            complete_since = since
        FROM decided WHERE client_contact.client_id = decided.client_id AND number > 0
    )
    SELECT unnest(ids[number + 1:]) FROM decided WHERE number < cardinality(ids);
END $$;
