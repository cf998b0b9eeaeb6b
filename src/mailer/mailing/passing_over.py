"""Mailings that are skipped for a while, because their stored data cannot be processed."""

import contextlib
from collections.abc import Iterator

import structlog
from sqlalchemy.exc import DBAPIError

from mailer.db.engine import is_about_data, is_away
from mailer.log import describe

log = structlog.get_logger()

SKIP_TIME = 60.0
"""Seconds after which all skipped mailings are tried again."""


class PassedOver(set[int]):
    """Ids of mailings that are skipped, so that they do not block the others."""

    @contextlib.contextmanager
    def on_error(self, mailing_id: int) -> Iterator[None]:
        """Log an error in the data of one mailing, and skip that mailing from now on.

        Other errors of the database are raised: they say nothing about the mailing.
        """
        try:
            yield
        except Exception as error:
            if is_away(error) or (isinstance(error, DBAPIError) and not is_about_data(error)):
                raise
            self.add(mailing_id)
            log.error(  # noqa: TRY400  # its text may hold data
                "mailing_skipped", mailing_id=mailing_id, retry_within=SKIP_TIME, **describe(error)
            )
