"""Send the daily report by mail.

`send_report` sends one mail, for the schedule; `report_command` is the command `mailer report`.
"""

from datetime import date
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from functools import partial

import structlog

from mailer.daily_report.render import render_html, render_text
from mailer.daily_report.report import DailyReport, daily_report
from mailer.db.startup import DatabaseSource, run_on_database
from mailer.mail.sending import TRANSFER_ENCODING, MailNotSentError, MailResult, send_mail
from mailer.mail.smtp_config import SmtpConfig, read_smtp_config
from mailer.settings import Settings
from mailer.statuses import FAILURES

log = structlog.get_logger()


async def send_report(
    report: DailyReport,
    smtp: SmtpConfig,
    message_id: str | None = None,
    recipients: list[str] | None = None,
) -> MailResult:
    """Send the report to `recipients`. Default: all recipients of the settings.

    `message_id` is the part of the Message-ID before the @. Default: a new one for each mail.
    Raises `MailNotSentError` as `send_mail` does.
    """
    message = _create_mail(report, smtp, message_id)
    result = await send_mail(message, smtp, recipients or smtp.recipients)
    _log_result(report.day, result)
    return result


def _log_result(day: date, result: MailResult) -> None:
    """Log for how many recipients the report was accepted, deferred and refused."""
    for event, codes in (("report_deferred", result.deferred), ("report_refused", result.refused)):
        if codes:
            log.warning(event, day=day, recipients=len(codes), codes=sorted(set(codes.values())))
    if result.accepted:
        log.info("report_sent", day=day, recipients=len(result.accepted))


def _create_mail(report: DailyReport, smtp: SmtpConfig, message_id: str | None) -> EmailMessage:
    message = EmailMessage()
    delivered = report.outcomes.delivered
    not_delivered = sum(getattr(report.outcomes, name) for name in FAILURES)
    subject = f"mailer, {report.day}: {delivered:,} delivered, {not_delivered:,} not"
    if report.outcomes.sent:
        subject += f", {report.outcomes.sent:,} without a receipt"
    message["Subject"] = subject
    message["From"] = Address("mailer", addr_spec=smtp.sender)
    message["To"] = ", ".join(smtp.recipients)
    message["Date"] = format_datetime(report.as_of)
    domain = smtp.sender.rpartition("@")[2]
    message["Message-ID"] = f"<{message_id}@{domain}>" if message_id else make_msgid(domain=domain)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: asks for no automatic replies
    message.set_content(render_text(report), cte=TRANSFER_ENCODING)
    message.add_alternative(render_html(report), subtype="html", cte=TRANSFER_ENCODING)
    return message


async def report_command(settings: Settings, day: date, *, send: bool) -> str:
    """Return the report of a day as text; with `send`, also send it by mail.

    Raises `StartError`, and `MailNotSentError` when a recipient did not get the mail.
    """
    smtp = read_smtp_config(settings) if send else None
    zone = settings.report_time_zone
    source = DatabaseSource.of(settings)
    report = await run_on_database(source, partial(daily_report, day=day, time_zone=zone))
    if smtp is not None:
        result = await send_report(report, smtp)
        if failed := {**result.deferred, **result.refused}:
            recipients = ", ".join(f"{recipient} ({code})" for recipient, code in failed.items())
            raise MailNotSentError(f"the mail server did not accept the report for {recipients}")
    return render_text(report)
