"""Mailings that are skipped for a while because their stored data cannot be processed.

For example, a filter that somebody wrote into the database by hand cannot be read. Such a mailing
must not stop the work for the others.
"""

import contextlib
from collections.abc import Iterator

import structlog
from sqlalchemy.exc import DBAPIError

from mailer.db.engine import is_data_error, is_unavailable
from mailer.log import describe

log = structlog.get_logger()

SKIP_SECONDS = 60.0
"""Seconds after which the dispatcher tries all skipped mailings again."""


class SkippedMailings(set[int]):
    """The ids of the mailings that are skipped now."""

    @contextlib.contextmanager
    def on_error(self, mailing_id: int) -> Iterator[None]:
        """When the work inside `with` fails, log the error and skip the mailing from now on.

        An error of the database that is not about the mailing's data, such as a lost connection,
        is raised again.
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
