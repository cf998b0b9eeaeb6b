"""Claims what is due: as much as the gateway takes, shared fairly between the mailings."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from uuid import UUID

from mailer import metrics
from mailer.clock import database_clock, elapsed
from mailer.db.engine import OwnConnection, is_away
from mailer.dispatch.claimed import ClaimedQueue
from mailer.dispatch.due import DueMailings
from mailer.dispatch.failure import log_failure
from mailer.dispatch.giveback import GiveBack
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.share import FairShare
from mailer.dispatch.story import tell_claimed
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.breaker import Breaker
from mailer.message import store
from mailer.message.model import ClaimedMessage, FinishedMessage

IDLE = 1.0
"""Most seconds between looks at what is due: the backstop behind every signal."""
BREATH = 0.01
"""Least seconds between looks, when what is due is in other hands."""
AWAY = 0.5
"""Seconds between attempts while the database is away."""


class Claimer:
    """Keeps `claimed` filled from the running mailings while the breaker lets any through.

    What is claimed stands in `held` until its outcome is written.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # the parts that it looks at
        self,
        url: str,
        owner: UUID,
        lease: timedelta,
        breaker: Breaker,
        watch: MailingWatch,
        claimed: ClaimedQueue,
        held: dict[int, ClaimedMessage],
        give_back: GiveBack,
        failures: LoopFailures,
        on_drained: Callable[[], None],
    ) -> None:
        self._connection = OwnConnection(url)
        self._owner = owner
        self._lease = lease
        self._breaker = breaker
        self._watch = watch
        self._claimed = claimed
        self._held = held
        self._give_back = give_back
        self._failures = failures
        self._on_drained = on_drained
        self._share = FairShare()
        self._due = DueMailings(self._share, watch.running)
        self._is_due = asyncio.Event()
        self._is_in_doubt = False
        self._is_stopping = False

    def wake(self) -> None:
        """Go on claiming: more may begin."""
        self._is_due.set()

    def look(self, mailings: Iterable[int]) -> None:
        """Look when these have something due: they have changed."""
        self._due.look(mailings)
        self._is_due.set()

    def ask(self, mailings: Iterable[int]) -> None:
        """Claim from these: they have new messages."""
        self._share.ask(mailings)
        self._is_due.set()

    def recorded(self, finished: list[FinishedMessage]) -> None:
        """Note when messages are due again that this worker has put back."""
        self._due.recorded(finished)
        self._is_due.set()

    def stop(self) -> None:
        """Claim no more."""
        self._is_stopping = True
        self._is_due.set()
        self._claimed.close()

    async def run(self) -> None:
        """Claim until told to stop."""
        while not self._is_stopping:
            await self._write_give_back()
            if not await self._claim_due():
                await self._rest()

    async def settle(self) -> None:
        """Put in order what is left when all outcomes are written."""
        await self._write_give_back()
        if self._is_in_doubt:
            await self._let_go()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    async def _write_give_back(self) -> None:
        """Between two claims, so that none of the messages is claimed meanwhile."""
        claims = self._give_back.take(self._held)
        if not claims:
            return
        try:
            await store.give_back(await self._connection.get(), claims)
        except Exception as error:
            log_failure(error, at="give_back")
            if is_away(error):
                self._give_back.add(claims)

    async def _claim_due(self) -> bool:
        """Claim what is due; False when there is nothing more, or none may begin."""
        room = min(await self._claimed.room(), self._breaker.room(elapsed()))
        try:
            has_more = await self._claim_up_to(room)
        except Exception as error:
            log_failure(error, at="claim")
            self._failures.record("claim", has_failed=True)
            self._is_in_doubt = True
            await asyncio.sleep(AWAY)
            return False
        self._failures.record("claim", has_failed=False)
        return has_more

    async def _claim_up_to(self, room: int) -> bool:
        await self._due.refresh(await self._connection.get())
        asked, share = self._share.turn(self._watch.running, room, elapsed())
        if not asked or self._is_stopping:
            return self._due.is_unsure and not self._is_stopping
        claims = await self._claim(asked, share)
        metrics.claimed(len(claims))
        for claim in claims:
            tell_claimed(claim)
        self._claimed.put(claims)
        return bool(claims) or self._share.is_hungry or self._due.is_unsure

    async def _claim(self, asked: list[int], share: int) -> list[ClaimedMessage]:
        try:
            connection = await self._connection.get()
            if self._is_in_doubt:
                await self._let_go()
            at = database_clock.now()
            after = {mailing: self._due.place(mailing) for mailing in asked}
            async with self._watch.claiming:
                claims = await store.claim(connection, after, share, self._owner, self._lease)
        except BaseException:
            self._due.look(asked)  # it is not known what it took
            raise
        self._held.update((claim.id, claim) for claim in claims)
        less = self._share.record_claimed(
            asked, share, Counter(claim.mailing_id for claim in claims)
        )
        self._due.claimed(claims, less, at)
        return claims

    async def _let_go(self) -> None:
        """Return what the last claim took, if it was made before its connection was lost."""
        await store.let_go(await self._connection.get(), self._owner, self._held)
        self._is_in_doubt = False

    async def _rest(self) -> None:
        """Wait for a message to be due or the breaker to let one through, or for a signal."""
        held = self._breaker.seconds_to_probe(elapsed())
        if not held:
            self._on_drained()
        due_at = self._share.next_moment()
        pause = held or (IDLE if due_at is None else due_at - elapsed())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(IDLE, max(BREATH, pause))):
                await self._is_due.wait()
        self._is_due.clear()
