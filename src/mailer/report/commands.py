"""What `mailer report` does."""

from datetime import date
from functools import partial

from mailer.db.opening import on_database
from mailer.report.daily import daily_report, render_text
from mailer.report.mail import MailNotSentError, post_of, send_report
from mailer.settings import Settings


async def report(settings: Settings, day: date, *, send: bool) -> str:
    """Return the report of a day as text, sent by mail too if asked for; raises `StartError`."""
    post = post_of(settings) if send else None
    zone = settings.report_time_zone
    made = await on_database(settings, partial(daily_report, day=day, time_zone=zone))
    if post is not None:
        result = await send_report(made, post)
        if missed := {**result.deferred, **result.refused}:
            said = ", ".join(f"{recipient} ({code})" for recipient, code in missed.items())
            raise MailNotSentError(f"the mail server did not take the report for {said}")
    return render_text(made)
