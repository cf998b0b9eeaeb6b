"""Deliver events to endpoints: the loop of a worker that claims due deliveries and sends them.

Each endpoint has requests of its own, so a slow or dead one delays no other. An endpoint whose last
attempt failed gets one request at a time.
"""

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer import metrics
from mailer.access import audit
from mailer.access.model import SYSTEM
from mailer.clock import database_clock
from mailer.webhook import queue, store
from mailer.webhook.model import DisabledReason
from mailer.webhook.queue import ClaimedDelivery, DeliveryResult, Endpoint
from mailer.webhook.retry_policy import is_failing_too_long, retry_pause
from mailer.webhook.sending import Attempt, WebhookClient
from mailer.webhook.signature import signed_headers

log = structlog.get_logger()

DELIVERY_POLL_INTERVAL = 1.0
"""Seconds between two checks for due deliveries."""
DELIVERY_ROUND_INTERVAL = 0.5
"""Least seconds between two rounds: results and claims of many requests share a transaction."""
ERROR_DELAY = 2.0
"""Seconds after an error until the next round."""
MAX_REQUESTS = 4
"""Requests to one endpoint at the same time."""
MAX_CLAIMED = 50
"""Deliveries for one endpoint that are claimed and have no result yet. With `MAX_REQUESTS` and the
timeout of a request they take less than `queue.LEASE`."""
DELIVERY_STOP_TIMEOUT = 5.0
"""Seconds after `stop` for which requests in flight may go on."""


def payload(claim: ClaimedDelivery) -> bytes:
    """Return the body of the requests for a delivery; it is the same for all attempts."""
    at = claim.event_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    head = msgspec.json.encode({"type": claim.event_type, "timestamp": at})
    return head[:-1] + b',"data":' + claim.data.encode() + b"}"


class WebhookDelivery:
    """Delivers events until stopped. Several workers share the deliveries.

    `on_error` is called with an error of a round, after which the loop goes on.
    """

    def __init__(
        self, engine: AsyncEngine, client: WebhookClient, on_error: Callable[[Exception], None]
    ) -> None:
        self._engine = engine
        self._client = client
        self._on_error = on_error
        self._claimed: Counter[int] = Counter()
        """Deliveries that are claimed and have no result yet, by id of the endpoint."""
        self._slots: defaultdict[int, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_REQUESTS)
        )
        self._unsent: dict[asyncio.Task[None], ClaimedDelivery] = {}
        """Claims whose requests have not started, by the task that waits for a slot."""
        self._results: list[DeliveryResult] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_results = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Claim nothing more. `run` ends when the requests in flight have ended."""
        self._stopping.set()
        self._has_results.set()

    async def run(self) -> None:
        """Deliver until `stop` is called; then wait for requests in flight, for a short time."""
        async with self._client:
            try:
                while not self._stopping.is_set():
                    await self._pause(await self._try_round())
            finally:
                await self._drain()

    async def _try_round(self) -> float:
        """Do a round; return the seconds until the next one, which a result may bring forward."""
        self._has_results.clear()
        try:
            has_more = await self.do_round()
        except Exception as error:  # noqa: BLE001  # the next round must follow any error
            self._on_error(error)
            return ERROR_DELAY
        return DELIVERY_ROUND_INTERVAL if has_more else DELIVERY_POLL_INTERVAL

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds - DELIVERY_ROUND_INTERVAL)):
                await self._has_results.wait()
        if not self._stopping.is_set():
            await asyncio.sleep(DELIVERY_ROUND_INTERVAL)

    async def do_round(self) -> bool:
        """Record results, claim due deliveries and start their requests.

        Return whether an endpoint got as many as it may get, so that more may be due.
        """
        async with self._recording() as connection:
            endpoints = {each.id: each for each in await queue.read_endpoints(connection)}
            limits = {each.id: self._capacity(each) for each in endpoints.values()}
            limits = {webhook_id: limit for webhook_id, limit in limits.items() if limit > 0}
            claims = await queue.claim(connection, limits) if limits else []
        for claim in claims:
            self._start(endpoints[claim.webhook_id], claim)
        claimed = Counter(claim.webhook_id for claim in claims)
        return any(claimed[webhook_id] == limit for webhook_id, limit in limits.items())

    def _capacity(self, endpoint: Endpoint) -> int:
        """Return how many more deliveries may be claimed for an endpoint."""
        return (1 if endpoint.is_failing else MAX_CLAIMED) - self._claimed[endpoint.id]

    def _start(self, endpoint: Endpoint, claim: ClaimedDelivery) -> None:
        self._claimed[endpoint.id] += 1
        task = asyncio.create_task(self._deliver(endpoint, claim))
        self._unsent[task] = claim
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, endpoint: Endpoint, claim: ClaimedDelivery) -> None:
        """Send one event when the endpoint has a free slot; keep the result for the next round."""
        task = asyncio.current_task()
        try:
            async with self._slots[endpoint.id]:
                if task is not None:
                    self._unsent.pop(task, None)
                body = payload(claim)
                headers = signed_headers(
                    str(claim.event_id), database_clock.now(), body, endpoint.keys
                )
                attempt = await self._client.send(endpoint.url, body, headers)
            self._results.append(_result_of(claim, attempt))
            _log_attempt(endpoint, claim, attempt)
        finally:
            self._claimed[endpoint.id] -= 1
            self._has_results.set()

    @contextlib.asynccontextmanager
    async def _recording(self) -> AsyncIterator[AsyncConnection]:
        """Store the results so far in a transaction, and yield it for more statements.

        If it fails, the results are kept for the next one.
        """
        results, self._results = self._results, []
        statuses: list[str] = []
        disabled: dict[int, DisabledReason] = {}
        try:
            async with self._engine.begin() as connection:
                if results:
                    statuses, disabled = await _store_results(connection, results)
                yield connection
        except BaseException:
            self._results = results + self._results
            raise
        for status in statuses:
            metrics.webhook_attempted("retried" if status == "waiting" else status)
        for webhook_id, reason in disabled.items():
            log.warning("webhook_disabled", webhook_id=webhook_id, reason=reason)

    async def _drain(self) -> None:
        """Wait for the requests in flight, record their results, and release the other claims.

        The lease of a request that is cancelled expires, and then it is sent again.
        """
        unsent, self._unsent = self._unsent, {}
        for task in unsent:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=DELIVERY_STOP_TIMEOUT)
        in_flight = set(self._tasks)
        for task in in_flight:
            task.cancel()
        if in_flight:
            await asyncio.wait(in_flight)
        try:
            async with self._recording() as connection:
                await queue.release(connection, list(unsent.values()))
        except Exception as error:  # noqa: BLE001  # the leases expire anyway
            self._on_error(error)


async def _store_results(
    connection: AsyncConnection, results: list[DeliveryResult]
) -> tuple[list[str], dict[int, DisabledReason]]:
    """Store results, and what they say of their endpoints.

    Return the new statuses of the deliveries, and why endpoints are disabled now, by their ids.
    """
    by_endpoint: defaultdict[int, list[DeliveryResult]] = defaultdict(list)
    for result in results:
        by_endpoint[result.claim.webhook_id].append(result)
    await store.lock(connection, sorted(by_endpoint))
    statuses = await queue.record_results(connection, results)
    disabled: dict[int, DisabledReason] = {}
    for webhook_id, of_endpoint in by_endpoint.items():
        if reason := await _record_health(connection, webhook_id, of_endpoint):
            disabled[webhook_id] = reason
    return statuses, disabled


def _result_of(claim: ClaimedDelivery, attempt: Attempt) -> DeliveryResult:
    if attempt.error is None:
        return DeliveryResult(claim, None, attempt.status)
    chance = random.random()  # noqa: S311  # spreads retries, no secret
    pause = retry_pause(claim.attempts, chance, attempt.retry_after)
    return DeliveryResult(claim, attempt.error, attempt.status, pause)


def _log_attempt(endpoint: Endpoint, claim: ClaimedDelivery, attempt: Attempt) -> None:
    """Log an attempt; of the URL only the host, since the rest may hold a key."""
    facts: dict[str, Any] = {
        "webhook_id": endpoint.id,
        "delivery_id": claim.id,
        "event_type": claim.event_type,
        "attempt": claim.attempts,
        "host": urlsplit(endpoint.url).hostname,
    }
    if attempt.error is None:
        log.debug("webhook_delivered", **facts)
    else:
        log.warning("webhook_failed", reason=attempt.error, **facts)


async def _record_health(
    connection: AsyncConnection, webhook_id: int, results: list[DeliveryResult]
) -> DisabledReason | None:
    """Record successes and failures of an endpoint; disable it if it must be, and return why."""
    is_gone = any(result.response_status == HTTPStatus.GONE for result in results)
    failures = sum(result.error is not None for result in results)
    if failures < len(results):
        await store.record_success(connection, webhook_id)
        if not is_gone:
            return None
    health = await store.record_failures(connection, webhook_id, failures)
    if health is None:
        return None
    reason: DisabledReason = "gone" if is_gone else "failing"
    if not is_gone and not is_failing_too_long(*health):
        return None
    await store.change(connection, webhook_id, store.disabled(reason))
    after = {"enabled": False, "disabled_reason": reason}
    target = audit.Target("webhook", webhook_id)
    await audit.record(connection, SYSTEM, "webhook_disabled", target, after=after)
    return reason
