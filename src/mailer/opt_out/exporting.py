"""Export of opt-outs as a CSV file that can be imported again."""

from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.audited_export import stream_audited
from mailer.access.model import Actor
from mailer.db.csv_export import CsvPart, CsvSource, copy_in_chunks

SOURCE = CsvSource(
    table="""(
        SELECT opt_out.id, client.phone,
            to_char(opt_out.opted_out_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                AS opted_out_at
        FROM opt_out JOIN client ON client.id = client_id) AS opt_out""",
    key="id",
    columns="phone, opted_out_at",
    where="true",
)


def export_opt_outs(engine: AsyncEngine, actor: Actor) -> AsyncGenerator[CsvPart, None]:
    """Yield as CSV the opt-outs that have a client, oldest first. Of the others no phone is stored.

    The start of the export is written to the audit log before the first part is yielded. Raises
    `AccessRevokedError` midway when `actor` loses the right to read.
    """
    chunks = copy_in_chunks(engine, SOURCE, {})
    target = audit.Target("opt_out")
    return stream_audited(engine, actor, chunks, "opt_outs_exported", target)
