"""Claims what is due: as much as the gateway takes, shared fairly between the mailings."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from mailer import metrics
from mailer.clock import elapsed
from mailer.db.engine import OwnConnection, is_away
from mailer.dispatch.claimed import ClaimedQueue
from mailer.dispatch.failure import log_failure
from mailer.dispatch.giveback import GiveBack
from mailer.dispatch.share import FairShare
from mailer.dispatch.story import tell_claimed
from mailer.dispatch.watch import MailingWatch
from mailer.gateway.breaker import Breaker
from mailer.message import store
from mailer.message.model import ClaimedMessage

LOOK = 0.5
"""Seconds after which a mailing that had nothing due is asked again while others are busy."""
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
        self._on_drained = on_drained
        self._share = FairShare(again_after=LOOK)
        self._is_due = asyncio.Event()
        self._is_in_doubt = False
        self._is_stopping = False

    def wake(self) -> None:
        """Look at what is due now, of every mailing."""
        self._share.ask_all()
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
        """Claim as much as there is room for; False when nothing is due, or nothing may begin."""
        room = min(await self._claimed.room(), self._breaker.room(elapsed()))
        asked, share = self._share.turn(self._watch.running, room, elapsed())
        if not asked or self._is_stopping:
            return False
        try:
            claims = await self._claim(asked, share)
        except Exception as error:
            log_failure(error, at="claim")
            self._is_in_doubt = True
            await asyncio.sleep(AWAY)
            return False
        metrics.claimed(len(claims))
        self._share.served(asked, share, Counter(claim.mailing_id for claim in claims))
        for claim in claims:
            tell_claimed(claim)
        self._claimed.put(claims)
        return bool(claims) or self._share.is_hungry

    async def _claim(self, asked: list[int], share: int) -> list[ClaimedMessage]:
        connection = await self._connection.get()
        if self._is_in_doubt:
            await self._let_go()
        async with self._watch.claiming:
            claims = await store.claim(connection, asked, share, self._owner, self._lease)
        self._held.update((claim.id, claim) for claim in claims)
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
        pause = held or await self._until_due()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(IDLE, max(BREATH, pause))):
                await self._is_due.wait()
        self._is_due.clear()

    async def _until_due(self) -> float:
        """Return the seconds until the next message is due, or until it is worth a look."""
        running = list(self._watch.running)
        if not running:
            return IDLE
        try:
            due_in = await store.seconds_to_next_due(await self._connection.get(), running)
        except Exception as error:
            log_failure(error, at="claim")
            return AWAY
        return IDLE if due_in is None else due_in
