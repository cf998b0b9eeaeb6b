"""The claimer: claims due messages, as many as the gateways can take, for all mailings fairly.

Messages are claimed by route: a statement claims messages of one route for one gateway. So messages
that wait for a gateway that is out are never read.

It also refunds the attempts that an outage cost, between two claims, on the same connection.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mailer import metrics
from mailer.clock import database_clock, elapsed
from mailer.contact_cap import ContactCap
from mailer.db.engine import DedicatedConnection, is_unavailable
from mailer.dispatch.claims import WorkerClaims
from mailer.dispatch.due import DueMailings
from mailer.dispatch.fair_scheduler import MailingBatch
from mailer.dispatch.loop_failures import DB_RETRY_DELAY, LoopFailures, log_task_error
from mailer.dispatch.mailing_slots import MailingSlots
from mailer.dispatch.message_log import log_claimed
from mailer.dispatch.running_mailings import RunningMailings
from mailer.dispatch.send_policy import Send, decide_before_send
from mailer.dispatch.sender import Sender
from mailer.gateway.channel import Channels
from mailer.gateway.router import Choice, Router
from mailer.message import recovery, store
from mailer.message.model import ClaimedMessage, MessageResult

MAX_CLAIM_POLL_INTERVAL = 1.0
"""Most seconds until the next check for due messages, in case a notification is missed."""
MIN_CLAIM_POLL_INTERVAL = 0.01
"""Least seconds until the next check when the last one found nothing to claim, as may happen while
other workers claim all due messages."""


class Claimer:
    """Keeps the prefetch queues of the senders filled with due messages.

    `use` sets the senders. `channels` knows the routes; call `watch_routes` when they have changed.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # the parts that it connects
        self,
        url: str,
        channels: Channels,
        claims: WorkerClaims,
        running_mailings: RunningMailings,
        failures: LoopFailures,
        contact_cap: ContactCap | None = None,
    ) -> None:
        self._connection = DedicatedConnection(url)
        self._contact_cap = contact_cap
        self._channels = channels
        self._claims = claims
        self._running_mailings = running_mailings
        self._failures = failures
        self._router = Router()
        self._slots = MailingSlots()
        self._senders: dict[str, Sender] = {}
        """By the name of the gateway."""
        self._due: dict[int, DueMailings] = {}
        """By route, of the routes that have one of the senders. The next claim is from the first
        one whose messages a gateway can take. It goes to the end then, so that routes that share a
        gateway alternate."""
        self._has_work = asyncio.Event()
        self._may_have_orphans = False
        """Whether a claim has failed, so that its messages may be leased by this worker although it
        does not know them."""
        self._is_stopping = False

    def use(self, senders: Iterable[Sender]) -> None:
        """Claim for these senders from now on."""
        self._senders = {sender.channel.name: sender for sender in senders}
        self.watch_routes()

    def watch_routes(self) -> None:
        """Claim from the routes for which there is a sender, and from no others."""
        running = self._running_mailings.running
        self._due = {
            route: self._due.get(route) or DueMailings(route, running)
            for route, names in self._channels.routes.items()
            if names & self._senders.keys()
        }
        self.wake()

    def wake(self) -> None:
        """Check for messages to claim now: a gateway may have become usable or have capacity."""
        self._has_work.set()

    def recheck(self, mailing_ids: Iterable[int]) -> None:
        """Find out again when the next messages of these mailings are due: they have changed."""
        ids = list(mailing_ids)
        for due in self._due.values():
            due.recheck(ids)
        self.wake()

    def add_mailings(self, mailing_ids: Iterable[int]) -> None:
        """Claim from these mailings next, because they have new messages."""
        ids = list(mailing_ids)
        for due in self._due.values():
            due.scheduler.add(ids)
        self.wake()

    def record_results(self, results: list[MessageResult]) -> None:
        """Plan new claims of the messages that these results have released or requeued."""
        rescheduled = [result for result in results if result.status == "scheduled"]
        for result in rescheduled:
            due = self._due.get(result.claim.route)
            if result.changes_route:
                self.recheck([result.claim.mailing_id])
            elif due is not None:
                due.record_rescheduled([result])
        if rescheduled:
            self.wake()

    def stop(self) -> None:
        """Make `run` end."""
        self._is_stopping = True
        self.wake()

    async def run(self, on_idle: Callable[[], None]) -> None:
        """Claim until `stop` is called. `on_idle` is called when no message is due."""
        while not self._is_stopping:
            await self._refund_attempts()
            if not await self._claim_due():
                await self._wait_for_work(on_idle)

    async def flush(self) -> None:
        """Refund attempts and release orphans. Call it last, when all results are stored."""
        await self._refund_attempts()
        if self._may_have_orphans:
            await self._release_orphans()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def _refund_attempts(self) -> None:
        """Refund the attempts that an outage cost.

        Call it between two claims only, so that this worker claims none of the messages meanwhile.
        """
        refunds = self._claims.refunds
        claims = refunds.take_refundable(self._claims.unrecorded)
        if not claims:
            return
        try:
            await recovery.refund_attempts(await self._connection.get(), claims)
        except Exception as error:  # any error ends this step only
            log_task_error(error, at="refund")
            if is_unavailable(error):  # another error would only occur again
                refunds.put_back(claims)

    async def _claim_due(self) -> bool:
        """Claim due messages of each route. Return whether there may be more to claim now."""
        try:
            if self._may_have_orphans:
                await self._release_orphans()
            may_have_more = await self._claim_from_routes()
        except Exception as error:  # any error ends this step only
            log_task_error(error, at="claim")
            self._failures.record("claim", has_failed=True)
            self._may_have_orphans = True
            await asyncio.sleep(DB_RETRY_DELAY)
            return False
        self._failures.record("claim", has_failed=False)
        return may_have_more

    async def _claim_from_routes(self) -> bool:
        """Claim due messages of each route once. Return whether there may be more to claim now."""
        may_have_more = False
        for due in list(self._due.values()):
            if self._due.get(due.route) is not due:
                continue  # a reload has removed the route meanwhile
            if self._is_stopping or (choice := self._choose(due)) is None:
                continue  # it keeps its place, before the routes that claim now
            self._due[due.route] = self._due.pop(due.route)  # it is the last one now
            may_have_more |= await self._claim_up_to(due, choice)
        return may_have_more

    def _choose(self, due: DueMailings) -> Choice | None:
        """Return the gateway for the next messages of a route; None if they must wait."""
        now = elapsed()
        return self._router.choose(sender.candidate(now) for sender in self._senders_of(due))

    def _senders_of(self, due: DueMailings) -> list[Sender]:
        """Return the senders of the gateways of a route."""
        names = self._channels.routes[due.route]
        return [sender for name, sender in self._senders.items() if name in names]

    def _limit(self, due: DueMailings, choice: Choice) -> int:
        """Return how many messages of a route to claim for a gateway.

        Routes that share the gateway share its capacity by the weights of their mailings.
        """
        now = elapsed()
        sharing = [
            other
            for other in self._due.values()
            if choice.name in self._channels.routes[other.route]
        ]
        for other in sharing:
            other.scheduler.queue_due(now)
        queued = sum(other.scheduler.queued_weight for other in sharing)
        share = due.scheduler.queued_weight / queued if queued else 1.0
        return max(1, math.ceil(choice.capacity * share))

    async def _claim_up_to(self, due: DueMailings, choice: Choice) -> bool:
        """Claim due messages of a route for a gateway. Return whether there may be more now."""
        await due.refresh(await self._connection.get())
        limit = self._limit(due, choice)
        batch = due.scheduler.next_batch(self._running_mailings.running, limit, elapsed())
        if self._is_stopping:
            return False
        if not batch.mailing_ids:
            return due.has_unchecked
        claims = await self._claim(due, batch, choice)
        metrics.messages_claimed(len(claims))
        for claim in claims:
            log_claimed(claim)
        return bool(claims) or due.scheduler.queued > 0 or due.has_unchecked

    async def _claim(
        self, due: DueMailings, batch: MailingBatch, choice: Choice
    ) -> Sequence[ClaimedMessage]:
        """Claim messages of a batch of mailings for a gateway, and plan the next claims."""
        try:
            connection = await self._connection.get()
            limited = await self._slots.limit(
                connection, batch, self._running_mailings.running, is_late=self._is_late(choice)
            )
            for mailing_id, moment in limited.waiting.items():
                due.scheduler.add_at(mailing_id, moment)
            if not limited.batch.shares:
                return []
            claimed_at = database_clock.now()
            cursors = {mailing_id: due.cursor(mailing_id) for mailing_id in limited.batch.shares}
            async with self._running_mailings.claiming:
                claims = await store.claim(
                    connection,
                    store.ClaimSource(due.route, cursors, limited.batch.shares),
                    store.ClaimTarget(
                        self._claims.owner, self._claims.lease, choice.name, self._contact_cap
                    ),
                )
        except BaseException:
            # They are in no queue of the scheduler now, and it is unknown what was claimed.
            due.recheck(batch.mailing_ids)
            raise
        self._pass_on(claims, choice, limited.slots)
        below_share = due.scheduler.record_claimed(
            limited.batch,
            Counter(claim.mailing_id for claim in claims),
            self._slots.resume(limited),
        )
        due.record_claimed(claims, below_share, claimed_at)
        return claims

    def _is_late(self, choice: Choice) -> bool:
        """Return whether messages of mailings with a rate wait for a free sending task."""
        sender = self._senders.get(choice.name)
        return sender is not None and sender.prefetch.has_late

    def _pass_on(
        self, claims: Sequence[ClaimedMessage], choice: Choice, slots: Mapping[int, list[float]]
    ) -> None:
        """Pass claimed messages to the sender of their gateway.

        A message of a mailing with a rate uses the next one of its `slots`, which is removed; but
        not a message that cannot be sent, such as one to a client who has opted out. If a reload
        has removed the sender during the claim, the messages are orphans.
        """
        sender = self._senders.get(choice.name)
        if sender is None:
            self._may_have_orphans = True
            return
        self._claims.add(claims)
        if slots:
            timed = [each for each in claims if each.mailing_id in slots and self._can_send(each)]
            for claim in timed:
                sender.prefetch.put_at(claim, slots[claim.mailing_id].pop(0))
            ids = {claim.id for claim in timed}
            sender.prefetch.put(claim for claim in claims if claim.id not in ids)
        else:
            sender.prefetch.put(claims)
        self._router.record(choice, len(claims))

    def _can_send(self, claim: ClaimedMessage) -> bool:
        """Return whether a message may be sent, as far as is known before its request."""
        mailing = self._running_mailings.running.get(claim.mailing_id)
        decision = decide_before_send(claim, mailing, database_clock.now(), timeout=0)
        return isinstance(decision, Send)

    async def _release_orphans(self) -> None:
        """Release messages that are leased by this worker although it does not know them.

        This happens when the connection is lost after the database has made a claim, or when a
        reload removes the sender during a claim.
        """
        connection = await self._connection.get()
        unrecorded = self._claims.unrecorded
        if await recovery.release_orphaned(connection, self._claims.owner, unrecorded):
            self.recheck(self._running_mailings.running)  # they are due before the claim cursors
        self._may_have_orphans = False

    async def _wait_for_work(self, on_idle: Callable[[], None]) -> None:
        """Wait until a message is due, a breaker permits a probe, or `_has_work` is set."""
        pauses = [self._seconds_to_work(due) for due in self._due.values()]
        if any(self._choose(due) for due in self._due.values()):
            on_idle()  # nothing was claimed although it could be sent: nothing is due
        pause = min(pauses, default=MAX_CLAIM_POLL_INTERVAL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(
                min(MAX_CLAIM_POLL_INTERVAL, max(MIN_CLAIM_POLL_INTERVAL, pause))
            ):
                await self._has_work.wait()
        self._has_work.clear()

    def _seconds_to_work(self, due: DueMailings) -> float:
        """Return the seconds until a message of a route may be due, or a gateway is probed.

        Infinite if its gateways are paused or have no capacity: then the end of that sets
        `_has_work`.
        """
        now = elapsed()
        if self._choose(due) is not None:
            due_at = due.scheduler.next_due()
            return MAX_CLAIM_POLL_INTERVAL if due_at is None else due_at - now
        pauses = (sender.seconds_to_probe(now) for sender in self._senders_of(due))
        # a probe that is due and not chosen waits for a gateway of a lower order to have capacity
        return min((pause for pause in pauses if pause > 0), default=math.inf)
