"""The command `mailer report`."""

from datetime import date
from functools import partial

from mailer.db.startup import run_on_database
from mailer.report.daily import daily_report, render_text
from mailer.report.mail import MailNotSentError, make_smtp_config, send_report
from mailer.settings import Settings


async def report(settings: Settings, day: date, *, send: bool) -> str:
    """Return the report of a day as text; with `send`, also send it by mail.

    Raises `StartError`, and `MailNotSentError` when a recipient did not get the mail.
    """
    smtp = make_smtp_config(settings) if send else None
    zone = settings.report_time_zone
    daily = await run_on_database(settings, partial(daily_report, day=day, time_zone=zone))
    if smtp is not None:
        result = await send_report(daily, smtp)
        if failed := {**result.deferred, **result.refused}:
            recipients = ", ".join(f"{recipient} ({code})" for recipient, code in failed.items())
            raise MailNotSentError(f"the mail server did not accept the report for {recipients}")
    return render_text(daily)
