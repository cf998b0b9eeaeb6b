-- Started mailings do not know lists any more: their filter would match everybody, so it must name nobody. A
-- finished or cancelled mailing keeps its filter as it was given.

UPDATE mailing SET client_filter = '{"operator_codes": ["000"], "tags": ["nobody"]}'
WHERE status NOT IN ('finished', 'cancelled') AND deleted_at IS NULL
    AND jsonb_typeof(client_filter) = 'object' AND client_filter ? 'lists';

DROP TABLE client_list_member;

DROP TABLE client_list;
