"""A periodic job that sends mails, and whose mail is not cut off when the worker stops."""

import asyncio


class MailJob:
    """Base of the periodic jobs that send mails: a subclass sends what is due in `_send_due`."""

    _sending: asyncio.Task[None] | None = None

    async def _send_due(self) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Send what is due. Cancelling this does not stop the sending; see `finish`."""
        self._sending = asyncio.create_task(self._send_due())
        await asyncio.shield(self._sending)

    async def finish(self, max_wait: float) -> None:
        """Wait up to `max_wait` seconds for a mail that is being sent, then cancel it.

        A mail that is cancelled half-way may be sent twice.
        """
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=max_wait)
            self._sending.cancel()  # no effect if it has ended
