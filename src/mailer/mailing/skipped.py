"""Mailings that are skipped for a while because their stored data cannot be processed."""

import contextlib
from collections.abc import Iterator

import structlog
from sqlalchemy.exc import DBAPIError

from mailer.db.engine import is_data_error, is_unavailable
from mailer.log import describe

log = structlog.get_logger()

SKIP_SECONDS = 60.0
"""Seconds after which all skipped mailings are tried again."""


class SkippedMailings(set[int]):
    """Ids of mailings that are skipped, so that they do not block the others."""

    @contextlib.contextmanager
    def on_error(self, mailing_id: int) -> Iterator[None]:
        """Log an error in the data of a mailing and skip that mailing from now on.

        Other database errors are raised again, because they are not about the mailing.
        """
        try:
            yield
        except Exception as error:  # wrong data raises many kinds of errors
            if is_unavailable(error) or (
                isinstance(error, DBAPIError) and not is_data_error(error)
            ):
                raise
            self.add(mailing_id)
            log.error(  # noqa: TRY400  # a traceback may contain personal data
                "mailing_skipped",
                mailing_id=mailing_id,
                retry_within=SKIP_SECONDS,
                **describe(error),
            )
