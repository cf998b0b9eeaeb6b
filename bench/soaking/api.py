"""API calls of the soak: each is repeated until a worker answers, and its answer is checked."""

import time
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from soaking.faults import Fleet
from soaking.journal import Call, Journal, RandomSource

SUCCESS_STATUSES = {"create": HTTPStatus.CREATED, "delete": HTTPStatus.NO_CONTENT}
"""HTTP status of a successful call, by action; 200 for all others."""
STATUSES_AFTER = {
    "pause": ("paused", "finished"),  # finished if no message is left to send
    "resume": ("scheduled", "running"),
    "cancel": ("cancelled",),
}
"""By action: the statuses that a mailing may have after a successful call; else any."""
TIMEOUT = aiohttp.ClientTimeout(total=45)
"""Seconds to wait for an answer: a stop waits for all workers, and each call for the database."""
RETRY_SECONDS = 60.0
"""Seconds after which an unanswered call is not repeated any more."""
MAX_ROUTING_AGE = 30.0
"""Seconds until workers know of a new configuration, even after a failure of the database."""
LOST = 0
"""The status of a call without an answer."""


class Api:
    """Calls the API for one mailing, each time at a random running worker."""

    def __init__(
        self, session: aiohttp.ClientSession, fleet: Fleet, journal: Journal, rng: RandomSource
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._journal = journal
        self._rng = rng
        self._may_be_deleted = False

    async def call(
        self, mailing_id: int, action: str, body_of: Callable[[], dict[str, Any]] | None = None
    ) -> dict[str, Any] | None:
        """Call the API, again and again until a worker answers or `RETRY_SECONDS` have passed.

        `action` is `create`, `change`, `delete` or the last part of a path, such as `pause`.
        `body_of` returns the JSON body; it is called anew for each attempt.

        Return the mailing of the answer; None after a deletion, and when the call was refused or
        never answered.
        """
        deadline = time.time() + RETRY_SECONDS
        while time.time() < deadline:
            if self._fleet.addresses:
                body = body_of() if body_of else None
                call, content = await self._attempt(mailing_id, action, body)
                self._journal.calls.append(call)
                if call.status not in {LOST, HTTPStatus.SERVICE_UNAVAILABLE}:
                    return self._check_answer(call, content, body or {})
                if action == "create" and call.status == LOST:
                    return None  # the mailing may exist; a repeat could create a second one
                self._may_be_deleted |= action == "delete"
            if not await self._journal.sleep(self._rng.uniform(0.2, 1)):
                return None
        return None

    async def _attempt(
        self, mailing_id: int, action: str, body: dict[str, Any] | None
    ) -> tuple[Call, bytes]:
        """Call the API once; return the call and the body of the answer, empty if there is none."""
        match action:
            case "create":
                method, path = "POST", ""
            case "change":
                method, path = "PATCH", f"/{mailing_id}"
            case "delete":
                method, path = "DELETE", f"/{mailing_id}"
            case _:
                method, path = "POST", f"/{mailing_id}/{action}"
        url = f"{self._rng.choice(self._fleet.addresses)}/api/v1/mailings{path}"
        began, status, content = time.time(), LOST, b""
        try:
            async with self._session.request(method, url, json=body) as response:
                content = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # the worker was killed, or is starting
        return Call(mailing_id, action, began, time.time(), status), content

    def _check_answer(
        self, call: Call, content: bytes, body: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Record a violation if an answer is not allowed; return the mailing if the call succeeded.

        `body` is the body of the request.
        """
        mailing: dict[str, Any] | None = None
        if call.status == SUCCESS_STATUSES.get(call.action, HTTPStatus.OK):
            mailing = msgspec.json.decode(content) if content else None
            statuses = STATUSES_AFTER.get(call.action)
            is_allowed = statuses is None or (mailing or {}).get("status") in statuses
        elif call.status == HTTPStatus.CONFLICT:  # the mailing's status does not allow the action
            is_allowed = call.action not in {"create", "delete"}
        elif call.status == HTTPStatus.NOT_FOUND:  # an earlier, unanswered attempt deleted it
            is_allowed = call.action == "delete" and self._may_be_deleted
        elif call.status == HTTPStatus.BAD_REQUEST:
            is_allowed = self._is_outdated(call, body)
        else:
            is_allowed = False
        if not is_allowed:
            summary = f"{call.action} of mailing {call.mailing_id}: {call.status}"
            text = content[:300].decode(errors="replace")
            self._journal.add_violation(f"{summary} {text}")
        return mailing

    def _is_outdated(self, call: Call, body: dict[str, Any]) -> bool:
        """Return whether the end in a request has passed, or its gateway was not configured."""
        has_ended = (
            "datetime_end" in body
            and datetime.fromisoformat(body["datetime_end"]).timestamp() <= call.ended
        )
        since = call.began - MAX_ROUTING_AGE
        recent = self._journal.configurations_during(since, call.ended)
        gateway = body.get("gateway")
        return has_ended or any(gateway not in {None, *each.entries} for each in recent)
