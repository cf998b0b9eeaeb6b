"""Export of opt-outs: as CSV that can be imported again, or as rows of a workbook to read."""

from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit
from mailer.access.audited_export import stream_audited
from mailer.access.model import Actor
from mailer.db.csv_export import PLAIN_CSV, CsvLayout, CsvPart, CsvSource, copy_in_chunks

SOURCE = CsvSource(
    table="""(
        SELECT opt_out.id, client.phone, time_zone,
            to_char(opt_out.opted_out_at AT TIME ZONE time_zone, 'YYYY-MM-DD HH24:MI:SS')
                AS local_time,
            to_char(opt_out.opted_out_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                AS opted_out_at
        FROM opt_out JOIN client ON client.id = client_id) AS opt_out""",
    key="id",
    columns="phone, opted_out_at",
    where="true",
)
OPT_OUT_ROWS = SOURCE._replace(columns="phone, time_zone, local_time")


def export_opt_outs(
    engine: AsyncEngine,
    actor: Actor,
    *,
    layout: CsvLayout = PLAIN_CSV,
    as_workbook: bool = False,
) -> AsyncGenerator[CsvPart, None]:
    """Yield as CSV the opt-outs that have a client, oldest first. Of the others no phone is stored.

    `layout` is how the file is written. `as_workbook` yields the rows of a workbook instead: phone,
    time zone and the client's local time, without a header.

    The start of the export is written to the audit log before the first part is yielded. Raises
    `AccessRevokedError` midway when `actor` loses the right to read.
    """
    source = OPT_OUT_ROWS if as_workbook else SOURCE
    if as_workbook:
        layout = CsvLayout(header=b"")
    chunks = copy_in_chunks(engine, source, {}, layout=layout)
    target = audit.Target("opt_out")
    return stream_audited(engine, actor, chunks, "opt_outs_exported", target)
