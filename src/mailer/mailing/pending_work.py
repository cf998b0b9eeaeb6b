"""Find out which work mailings need now. The dispatcher asks this before each of its iterations."""

from collections.abc import Collection

import msgspec
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import ENDED_AT, OPEN_MAILING
from mailer.mailing.finishing import ENDED_OPEN_MAILINGS, FINISHABLE_MAILINGS, UNSETTLED_BATCH


class PendingWork(msgspec.Struct, frozen=True):
    """The kinds of work that mailings need now."""

    must_start: bool
    """The start of a mailing has come."""
    must_enqueue: bool
    """Some of a started mailing's audience is not enqueued yet."""
    must_replan: bool
    """A mailing has messages to replan."""
    must_reroute: bool
    """A mailing has messages whose routes must be determined again."""
    must_retry: bool
    """A mailing has messages to retry at a user's request."""
    must_end_messages: bool
    """A mailing that has ended or is cancelled still has scheduled messages."""
    must_finish: bool
    """A mailing with nothing left to send can be closed, or a closed one can be settled."""
    seconds_until_next: float | None
    """Seconds until the next start or end of a mailing; None when there is none."""
    last_checked_id: int = 0
    """Id after which the next call must continue to check for `must_finish`. 0 when this call has
    checked the last mailings, so that the next one starts from the first mailing again."""

    @property
    def has_work(self) -> bool:
        """Return whether there is work now."""
        return any(
            (
                self.must_start,
                self.must_enqueue,
                self.must_replan,
                self.must_reroute,
                self.must_retry,
                self.must_end_messages,
                self.must_finish,
            )
        )


# One row with a column for each field of `PendingWork`. `audience_until` is null before the start.
#
# Each kind of work has a partial index, so that the cost does not grow with the number of waiting
# mailings. `must_finish` has none: it depends on the counts of messages. So only some mailings are
# checked for it, as `FINISHABLE_MAILINGS` describes.
FIND_PENDING_WORK = text(f"""
    WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS at), {FINISHABLE_MAILINGS}
    SELECT
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND audience_until IS NULL
            AND datetime_start <= (SELECT at FROM clock) AND id <> ALL (:skipped)) AS must_start,
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND audience_cursor < audience_until
            AND NOT is_replanning AND id <> ALL (:skipped)) AS must_enqueue,
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND is_replanning
            AND id <> ALL (:skipped)) AS must_replan,
        EXISTS (SELECT FROM rerouting) AS must_reroute,
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND retry_before IS NOT NULL
            AND id <> ALL (:skipped)) AS must_retry,
        EXISTS (SELECT FROM ({ENDED_OPEN_MAILINGS}) AS ended CROSS JOIN LATERAL (
            SELECT FROM mailing_counts
            WHERE mailing_id = ended.id AND scheduled > 0 OFFSET 0) AS counts)
            AS must_end_messages,
        EXISTS (SELECT FROM finishable) AS must_finish,
        extract(epoch FROM least(
            (SELECT min(datetime_start) FROM mailing
                WHERE {OPEN_MAILING} AND audience_until IS NULL AND id <> ALL (:skipped)),
            (SELECT min({ENDED_AT}) FROM mailing
                WHERE {OPEN_MAILING} AND audience_until IS NOT NULL
                AND {ENDED_AT} > (SELECT at FROM clock)))
            - (SELECT at FROM clock))::float8 AS seconds_until_next,
        (SELECT CASE WHEN count(*) = {UNSETTLED_BATCH} THEN max(id) ELSE 0 END
            FROM next_unsettled) AS last_checked_id
    """).bindparams(  # noqa: S608  # no user input
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("check_ids", "skipped"))
)


async def find_pending_work(
    connection: AsyncConnection,
    after: int = 0,
    check_ids: Collection[int] = (),
    skipped: Collection[int] = (),
) -> PendingWork:
    """Return which work is pending now.

    `must_finish` covers the mailings `check_ids` and the next `UNSETTLED_BATCH` mailings with
    ids above `after`. The mailings `skipped` are ignored for start, enqueue, replan
    and retry.
    """
    values = {"after": after, "check_ids": list(check_ids), "skipped": list(skipped)}
    row = (await connection.execute(FIND_PENDING_WORK, values)).mappings().one()
    return PendingWork(**row)
