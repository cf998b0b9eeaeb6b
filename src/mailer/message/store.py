"""SQL of the job table: claim messages, record results, find out when the next message is due.

The functions with a connection of asyncpg belong to the sending loop. Each of their statements is a
transaction of its own. Triggers update the table `mailing_counts` in the same transactions.

`CLAIM_DUE` also reads the table `mailing`, although the package `mailer.mailing` is a layer above
this one: a claim is right only if the mailing may send at that moment.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from mailer.contact_cap import ContactCap
from mailer.message.model import EARLIEST_DUE, ClaimedMessage, MessageResult

MAX_FAILURES = 20
"""Failed attempts of a message that are kept: the newest ones."""

ClaimCursor = tuple[datetime, int]
"""Position of a message in its mailing's order of claims: `due_at` and `id`."""
FIRST_CURSOR: ClaimCursor = (EARLIEST_DUE, 0)
"""The position before all messages."""

# $1, $5 and $6 are the ids of mailings and the claim cursor of each: due time and id of the `last`
# claimed message. $2 is the share of each: `due` are at most so many of its messages with the route
# $7, oldest first, so that a large mailing does not delay a small one. $8 is the gateway for which
# they are claimed.
# The index holds scheduled messages only, and a claim starts after the mailing's cursor. So the
# cost does not grow with the number of messages done, even while an old snapshot keeps claimed rows
# in the index. Rows that another worker is claiming are skipped.
# A message is sent with the newest text. But if delivery by an earlier attempt is unknown, the same
# text is sent again: the client may have got it already. It is version 1 if the attempt was made
# before texts had versions. The same applies to the values of the client's fields in the text; for
# a literal text no field is read: the fields are in a subselect, which is not executed then.
# $9 is the largest share. It changes nothing but what PostgreSQL expects: without it, it would take
# each share for a tenth of the mailing's messages, and scan the table of clients.
# The subselects call volatile functions once. Without one around clock_timestamp(), PostgreSQL
# would not use it as an index condition and would scan the index to its end. A restored database
# may not send: then nothing is claimed.
#
# The names in braces are for the contact cap; without one, they are replaced by nothing.
CLAIM_TEMPLATE = """
    WITH due AS MATERIALIZED (
        SELECT message.id, message.client_id, mailing.text_version, mailing.template{due_columns}
        FROM unnest($1::bigint[], $2::int[], $5::timestamptz[], $6::bigint[])
            AS last (mailing_id, share, due_at, id)
        JOIN mailing ON mailing.id = last.mailing_id
        CROSS JOIN LATERAL (
            SELECT id, client_id{is_repeat} FROM (
                SELECT id, client_id{unknown_reason} FROM message
                WHERE message.mailing_id = last.mailing_id AND message.route = $7
                    AND status = 'scheduled' AND message.due_at <= (SELECT clock_timestamp())
                    AND (message.due_at, message.id) > (last.due_at, last.id)
                ORDER BY message.due_at, message.id LIMIT last.share FOR UPDATE SKIP LOCKED
            ) AS of_mailing LIMIT $9
        ) AS message
        WHERE mailing.status = 'running'
            AND NOT mailing.is_replanning AND mailing.deleted_at IS NULL
            AND mailing.datetime_end > clock_timestamp() AND (SELECT sending_is_allowed())
    ){over_cap}
    UPDATE message SET status = 'sending', reason = NULL, attempts = attempts + 1,
        text_version = CASE WHEN message.unknown_reason IS NULL THEN due.text_version
                            ELSE coalesce(message.text_version, 1) END,
        field_values = CASE WHEN message.unknown_reason IS NOT NULL THEN message.field_values
            WHEN due.template IS NOT NULL THEN (
                SELECT coalesce(jsonb_object_agg(name, own.fields -> name), '{}')
                FROM client AS own CROSS JOIN jsonb_array_elements(due.template) AS piece
                    CROSS JOIN LATERAL (SELECT piece ->> 'field' AS name) AS placeholder
                WHERE own.id = due.client_id AND jsonb_typeof(piece) = 'object'
                    AND own.fields ? name) END,
        gateway = $8, lease_owner = $3, lease_expires_at = clock_timestamp() + $4,
        updated_at = now()
    FROM due JOIN client ON client.id = due.client_id
    WHERE message.id = due.id
    RETURNING message.id, message.mailing_id, message.attempts, message.lease_expires_at,
        client.phone, client.time_zone, message.unknown_reason, message.due_at,
        message.last_failure, message.route, message.gateway, client.opted_out_at IS NOT NULL,
        message.text_version, CASE WHEN message.text_version <> due.text_version THEN (
            SELECT text FROM mailing_text
            WHERE mailing_id = message.mailing_id AND version = message.text_version) END,
        message.field_values::text,
        CASE WHEN message.text_version <> due.text_version THEN (
            SELECT template::text FROM mailing_text
            WHERE mailing_id = message.mailing_id AND version = message.text_version) END
        {is_over_cap}"""


def _claim_statement(**parts: str) -> str:
    """Return `CLAIM_TEMPLATE` with `parts` in the place of their names in braces."""
    statement = CLAIM_TEMPLATE
    for name, part in parts.items():
        statement = statement.replace(f"{{{name}}}", part)
    return statement


CLAIM_DUE = _claim_statement(
    due_columns="", unknown_reason="", is_repeat="", over_cap="", is_over_cap=""
)
# $10 and $11 are the messages and the span of the contact cap. `over_cap` are the messages that the
# cap does not permit; their senders cancel them. A repeat of a message that may have been accepted
# is always permitted. See `record_contacts` in the migrations.
CLAIM_DUE_WITH_CAP = _claim_statement(
    due_columns="""
            , mailing.purpose = 'marketing' AS is_marketing, message.is_repeat""",
    unknown_reason=", unknown_reason",
    is_repeat=", unknown_reason IS NOT NULL AS is_repeat",
    over_cap="""
    , over_cap AS MATERIALIZED (
        SELECT id FROM record_contacts(
            ARRAY(SELECT id FROM due WHERE is_marketing),
            ARRAY(SELECT client_id FROM due WHERE is_marketing),
            ARRAY(SELECT is_repeat FROM due WHERE is_marketing), $10, $11) AS over_cap (id)
    )""",
    is_over_cap=", message.id IN (SELECT id FROM over_cap)",
)


class ClaimSource(NamedTuple):
    """From which mailings a statement claims messages, and how many."""

    route: int
    """Only messages with this route are claimed."""
    after: Mapping[int, ClaimCursor]
    """The claim cursor of each mailing, by its id; only messages after the cursor are claimed. It
    is `FIRST_CURSOR` or the position of the last message of an earlier claim."""
    shares: Mapping[int, int]
    """Most messages of each mailing, by its id."""


class ClaimTarget(NamedTuple):
    """For whom a statement claims messages."""

    owner: UUID
    """The worker that gets the leases."""
    lease: timedelta
    """Duration of the leases."""
    gateway: str
    """The gateway through which the messages are to be sent."""
    contact_cap: ContactCap | None = None
    """The contact cap that the messages are compared with."""


async def claim(
    connection: asyncpg.Connection, source: ClaimSource, target: ClaimTarget
) -> list[ClaimedMessage]:
    """Claim due messages of several mailings for one gateway."""
    cursors = source.after.values()
    due_ats = [due_at for due_at, _ in cursors]
    ids = [id_ for _, id_ in cursors]
    cap = target.contact_cap
    rows = await connection.fetch(
        CLAIM_DUE if cap is None else CLAIM_DUE_WITH_CAP,
        list(source.after),
        [source.shares[mailing_id] for mailing_id in source.after],
        target.owner,
        target.lease,
        due_ats,
        ids,
        source.route,
        target.gateway,
        max(source.shares.values()),
        *(() if cap is None else (cap.messages, cap.span)),
    )
    return [ClaimedMessage(*row) for row in rows]


CLAIM_TIME = "message.updated_at"
"""SQL for the time at which a message being sent was claimed: the claim was its last change."""


def add_failure(reason: str, started_at: str = CLAIM_TIME) -> str:
    """Return SQL for the column `failures` with a failure of the current attempt at the end.

    `reason` and `started_at` are SQL expressions. If `MAX_FAILURES` are stored already, the oldest
    one is removed: `failures - 0` is the array without its first element.
    """
    return f"""
        CASE WHEN jsonb_array_length(failures) >= {MAX_FAILURES} THEN failures - 0
             ELSE coalesce(failures, '[]') END
        || (jsonb_build_object('attempt', message.attempts, 'claimed_at', {started_at},
            'ended_at', now(), 'reason', {reason}, 'gateway', message.gateway,
            'text_version', message.text_version)
            || CASE WHEN message.field_values IS NULL THEN '{{}}'
                    ELSE jsonb_build_object('field_values', message.field_values) END)"""


ATTEMPT_START = f"coalesce(result.started_at, {CLAIM_TIME})"
"""SQL for the start of the attempt: its request, or the claim if the request followed at once."""
ATTEMPT_WAS_MADE = "(result.attempts = result.claimed_attempts OR result.failure IS NOT NULL)"
"""SQL for whether the claim led to an attempt: one that counts, or that failed in an outage."""
LAST_GATEWAY = "failures -> -1 ->> 'gateway'"
"""SQL for the gateway of the last failed attempt. It is the gateway of a message that was claimed
for another gateway and then not sent."""
LAST_TEXT_VERSION = "(failures -> -1 ->> 'text_version')::int"
"""SQL for the version of the text in the last failed attempt; null without one. Like
`LAST_GATEWAY`, it is that of a message that was claimed and then not sent."""
LAST_FIELD_VALUES = "failures -> -1 -> 'field_values'"
"""SQL for the values of fields in the last failed attempt; null without any."""
ONLY_THIS_GATEWAY = "find_route(ARRAY[coalesce(message.gateway, 'default')])"
"""SQL for the route of a message that only its gateway may send again: delivery is unknown. The
gateway is null if an earlier version, which had only the gateway `default`, claimed the message."""
OTHER_GATEWAYS = """(SELECT find_route(
    coalesce(nullif(array_remove(gateways, message.gateway), '{}'), gateways))
    FROM route WHERE id = message.route)"""
"""SQL for the route of a message without its gateway. It is unchanged if no other gateway is left:
the route may have been determined again since the claim."""
RECEIPT_DECIDES = """(message.receipt_status = 'delivered'
        OR (message.receipt_status IS NOT NULL AND (result.status IN ('sent', 'unknown')
            OR (result.status = 'scheduled'
                AND coalesce(result.unknown_reason, message.unknown_reason) IS NOT NULL))))"""
"""SQL for whether a receipt that came before the result decides the status: it shows that the
gateway has accepted the message. A rejection or a failure of this attempt still counts, unless the
receipt says that the message is delivered."""
# The columns to the right of `=` have the values from before this statement.
# `reason`: the claim has set it to null. A message that is scheduled again without a new reason
# gets back the reason that it had before the claim: its last failure.
# `unknown_reason` becomes null with any other status: then the gateway has reported an outcome.
# `sent_at` of a message that ends as unknown because of an earlier attempt is not in the result: it
# is the claim of the last attempt before this one, or else this claim.
# The WHERE fences the change: a result is stored only while the message has exactly the lease of
# its claim. Owner and attempts are not enough, because a message that was released and claimed
# again can have both as before. The status is not compared: a lease implies `sending`, and the
# comparison could make the planner scan all messages that ever had that status.
RECORD_RESULTS = f"""
    UPDATE message SET attempts = result.attempts,
        status = CASE WHEN {RECEIPT_DECIDES} THEN message.receipt_status ELSE result.status END,
        reason = CASE WHEN {RECEIPT_DECIDES} THEN message.receipt_reason
                      WHEN result.status = 'scheduled' THEN coalesce(result.reason, last_failure)
                      ELSE result.reason END,
        last_failure = coalesce(result.failure, last_failure),
        unknown_reason = CASE WHEN {RECEIPT_DECIDES} THEN NULL
                              WHEN result.status IN ('scheduled', 'unknown')
                              THEN coalesce(result.unknown_reason, message.unknown_reason) END,
        claimed_at = CASE WHEN {ATTEMPT_WAS_MADE} THEN {ATTEMPT_START}
                          ELSE message.claimed_at END,
        failures = CASE WHEN result.failure IS NULL THEN failures
                        ELSE {add_failure("result.failure", ATTEMPT_START)} END,
        gateway = CASE WHEN {ATTEMPT_WAS_MADE} THEN message.gateway ELSE {LAST_GATEWAY} END,
        text_version = CASE WHEN {ATTEMPT_WAS_MADE} OR message.unknown_reason IS NOT NULL
                            THEN message.text_version ELSE {LAST_TEXT_VERSION} END,
        field_values = CASE WHEN {ATTEMPT_WAS_MADE} OR message.unknown_reason IS NOT NULL
                            THEN message.field_values ELSE {LAST_FIELD_VALUES} END,
        route = CASE WHEN result.unknown_reason IS NOT NULL THEN {ONLY_THIS_GATEWAY}
                     WHEN result.excludes_gateway THEN {OTHER_GATEWAYS}
                     ELSE message.route END,
        gateway_message_id = CASE WHEN result.status IN ('sent', 'delivered')
                                  THEN result.gateway_message_id
                                  ELSE message.gateway_message_id END,
        parts = coalesce(result.parts, message.parts),
        uses_gateway_id = coalesce(result.uses_gateway_id, message.uses_gateway_id),
        receipt_status = NULL, receipt_reason = NULL,
        due_at = coalesce(result.due_at, message.due_at),
        retry_at = CASE WHEN {RECEIPT_DECIDES} THEN NULL ELSE result.retry_at END,
        sent_at = CASE WHEN {RECEIPT_DECIDES} AND {ATTEMPT_WAS_MADE}
                       THEN coalesce(result.sent_at, {ATTEMPT_START})
                       WHEN {RECEIPT_DECIDES} OR result.status = 'unknown'
                       THEN coalesce(result.sent_at, message.claimed_at, {ATTEMPT_START})
                       ELSE result.sent_at END,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    FROM unnest($2::bigint[], $3::int[], $4::timestamptz[], $5::text[], $6::text[], $7::int[],
        $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::timestamptz[],
        $13::text[], $14::int[], $15::bool[], $16::bool[], $17::timestamptz[])
        AS result (id, claimed_attempts, leased_until, status, reason, attempts, due_at, sent_at,
            failure, unknown_reason, retry_at, gateway_message_id, parts, excludes_gateway,
            uses_gateway_id, started_at)
    WHERE message.id = result.id AND message.lease_owner = $1
        AND message.attempts = result.claimed_attempts
        AND message.lease_expires_at = result.leased_until
    RETURNING message.id"""  # noqa: S608  # inserts expressions from above


async def record_results(
    connection: asyncpg.Connection, owner: UUID, results: Sequence[MessageResult]
) -> set[int]:
    """Store results of messages that `owner` has claimed; return the ids of the stored ones.

    A result is not stored when the lease of its claim is no longer valid.
    """
    ordered = sorted(results, key=lambda result: result.claim.id)  # one lock order for all writers
    claims = [result.claim for result in ordered]
    columns: tuple[list[Any], ...] = (  # $2 to $17 of the statement
        [claim.id for claim in claims],
        [claim.attempts for claim in claims],
        [claim.lease_expires_at for claim in claims],
        [result.status for result in ordered],
        [result.reason for result in ordered],
        [result.attempts for result in ordered],
        [result.due_at for result in ordered],
        [result.sent_at for result in ordered],
        [result.last_failure for result in ordered],
        [result.unknown_reason for result in ordered],
        [result.retry_at for result in ordered],
        [result.gateway_message_id for result in ordered],
        [result.parts for result in ordered],
        [result.excludes_gateway or None for result in ordered],
        [result.uses_gateway_id or None for result in ordered],
        [result.started_at for result in ordered],
    )
    # A column of nulls only is sent as an empty array, because sending each value costs time;
    # unnest() fills the shorter arrays with nulls.
    arrays = [[] if column.count(None) == len(column) else column for column in columns]
    return {row[0] for row in await connection.fetch(RECORD_RESULTS, owner, *arrays)}


class FirstScheduled(NamedTuple):
    """The scheduled message of a mailing that is claimed next."""

    mailing_id: int
    position: ClaimCursor
    seconds_to_due: float
    """Seconds until the message is due; negative when it is due already."""


# $3 is the route.
SELECT_FIRST_SCHEDULED = """
    SELECT asked.mailing_id, first.due_at, first.id,
        extract(epoch FROM first.due_at - clock_timestamp())::float8
    FROM unnest($1::bigint[], $2::timestamptz[]) AS asked (mailing_id, since) CROSS JOIN LATERAL (
        SELECT due_at, id FROM message
        WHERE mailing_id = asked.mailing_id AND route = $3 AND status = 'scheduled'
            AND due_at >= asked.since
        ORDER BY due_at, id LIMIT 1) AS first
    WHERE (SELECT sending_is_allowed())"""


async def first_scheduled(
    connection: asyncpg.Connection, route: int, since: Mapping[int, datetime | None]
) -> list[FirstScheduled]:
    """Return each mailing's first scheduled message with a route: when to claim from it next.

    `since` maps the id of each mailing to a moment; messages due before that moment are ignored.
    None stands for no such moment. Mailings without such a message are left out. The result is
    empty while this database may not send.
    """
    moments = [moment or EARLIEST_DUE for moment in since.values()]
    rows = await connection.fetch(SELECT_FIRST_SCHEDULED, list(since), moments, route)
    return [
        FirstScheduled(mailing_id, (due_at, id_), seconds)
        for mailing_id, due_at, id_, seconds in rows
    ]
