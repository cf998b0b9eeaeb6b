"""Send notices by mail: the periodic job that sends each user the mail that is due."""

from collections.abc import Callable
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import NamedTuple

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import metrics
from mailer.mail.job import MailJob
from mailer.mail.sending import TRANSFER_ENCODING, MailNotSentError, retry_delay, send_mail
from mailer.mail.smtp_config import SmtpConfig
from mailer.notice import queue
from mailer.notice.content import NoticeContent, read_content
from mailer.notice.model import Language
from mailer.notice.queue import Claim

log = structlog.get_logger()

MAX_MAILS = 20
"""Most mails of one run; the next run continues."""
MAX_FAILURE_LENGTH = 200
"""Characters of a failure that pages show."""


class MailContent(NamedTuple):
    """The subject, the text and the HTML of a mail."""

    subject: str
    text: str
    html: str
    profile_url: str | None
    """Where the user changes the notices; None if the address of mailer is not known."""


class Reader(msgspec.Struct, frozen=True):
    """The language and the time zone in which a mail is written."""

    language: Language
    time_zone: str


Compose = Callable[[NoticeContent, Reader], MailContent]


class NoticeMail(MailJob):
    """Sends the mails that are due. Several workers share them.

    `compose` writes a mail. If a worker ends after the mail server has accepted a mail and before
    that is recorded, the mail is sent again, with the same Message-ID.
    """

    def __init__(self, engine: AsyncEngine, smtp: SmtpConfig, compose: Compose) -> None:
        self._engine = engine
        self._smtp = smtp
        self._compose = compose

    async def _send_due(self) -> None:
        """Send mails until none is due, or the mail server does not take any."""
        for _ in range(MAX_MAILS):
            async with self._engine.begin() as connection:
                claim = await queue.claim(connection)
                if claim is None:
                    return
                content = await read_content(connection, claim.notices)
                if not content:
                    await queue.record_nothing(connection, claim)
                    continue
            if not await self._send(claim, content):
                return

    async def _send(self, claim: Claim, content: NoticeContent) -> bool:
        """Send a mail and record its result; return whether the mail server works."""
        mail = self._compose(content, Reader(claim.language, claim.time_zone))
        message = _create_mail(mail, claim, self._smtp)
        try:
            result = await send_mail(message, self._smtp, [claim.address])
        except MailNotSentError as error:
            await self._record_failure(claim, str(error))
            return False
        if result.deferred:
            await self._record_failure(claim, f"smtp_{result.deferred[claim.address]}")
        elif result.refused:
            code = result.refused[claim.address]
            async with self._engine.begin() as connection:
                await queue.record_refused(connection, claim, f"smtp_{code}")
            metrics.notices_mailed("refused")
            log.warning("notice_refused", user_id=claim.user_id, code=code)
        else:
            async with self._engine.begin() as connection:
                await queue.record_sent(connection, claim)
            metrics.notices_mailed("sent")
            log.info("notice_sent", user_id=claim.user_id, notices=len(claim.notices))
        return True

    async def _record_failure(self, claim: Claim, failure: str) -> None:
        pause = retry_delay(claim.failures + 1)
        async with self._engine.begin() as connection:
            await queue.record_failed(connection, claim, failure[:MAX_FAILURE_LENGTH], pause)
        metrics.notices_mailed("retried")
        log.warning(
            "notice_failed",
            user_id=claim.user_id,
            attempts=claim.failures + 1,
            reason=failure,
            again_in=pause.total_seconds(),
        )


def _create_mail(mail: MailContent, claim: Claim, smtp: SmtpConfig) -> EmailMessage:
    domain = smtp.sender.rpartition("@")[2]
    message = EmailMessage()
    message["Subject"] = mail.subject
    message["From"] = Address("mailer", addr_spec=smtp.sender)
    message["To"] = claim.address
    message["Date"] = format_datetime(claim.now)
    message["Message-ID"] = f"<notice.{claim.user_id}.{claim.batch_until}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: asks for no automatic replies
    message["List-Id"] = f"mailer <notices.{domain}>"  # RFC 2919: mail programs can sort by it
    if mail.profile_url is not None:
        message["List-Unsubscribe"] = f"<{mail.profile_url}>"  # RFC 2369
    message.set_content(mail.text, cte=TRANSFER_ENCODING)
    message.add_alternative(mail.html, subtype="html", cte=TRANSFER_ENCODING)
    return message
