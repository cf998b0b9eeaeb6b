"""Mailings that cannot be moved on, because of what is stored for them."""

import contextlib
from collections.abc import Iterator

import structlog

from mailer.db.engine import is_away
from mailer.log import describe

log = structlog.get_logger()


class PassedOver(set[int]):
    """Ids of mailings that are passed over, so that they keep no others waiting."""

    @contextlib.contextmanager
    def on_error(self, mailing_id: int) -> Iterator[None]:
        """Log an error in what belongs to one mailing, and pass over that mailing from now on."""
        try:
            yield
        except Exception as error:
            if is_away(error):
                raise
            self.add(mailing_id)
            log.error("mailing_passed_over", mailing_id=mailing_id, **describe(error))  # noqa: TRY400  # its text may hold data
