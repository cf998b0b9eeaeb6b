"""The API as the soak calls it: again while nobody can answer, and never past the contract."""

import time
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from soaking.journal import Call, Draw, Journal
from soaking.troubles import Fleet

DONE = {"create": HTTPStatus.CREATED, "delete": HTTPStatus.NO_CONTENT}
"""The answer to each call that is done; 200 to all others."""
STATUS_AFTER = {
    "pause": ("paused", "finished"),  # nothing was left of it
    "resume": ("scheduled", "running"),
    "cancel": ("cancelled",),
}
TIMEOUT = aiohttp.ClientTimeout(total=45)
"""A call may wait for the last request of a mailing, and for the database."""
GIVE_UP = 60.0
"""Seconds after which a call that never gets through is left alone."""
LOST = 0
"""Stands for the status of an answer that never came."""


class Api:
    """Calls the API of whichever process is there, for one mailing."""

    def __init__(
        self, session: aiohttp.ClientSession, fleet: Fleet, journal: Journal, draw: Draw
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._journal = journal
        self._draw = draw
        self._may_be_deleted = False

    async def call(
        self, mailing_id: int, action: str, body_of: Callable[[], dict[str, Any]] | None = None
    ) -> dict[str, Any] | None:
        """Return the mailing that is answered; None when it was refused, or never answered."""
        give_up_at = time.time() + GIVE_UP
        while time.time() < give_up_at:
            if self._fleet.addresses:
                body = body_of() if body_of else None
                call, content = await self._attempt(mailing_id, action, body)
                self._journal.calls.append(call)
                if call.status not in {LOST, HTTPStatus.SERVICE_UNAVAILABLE}:
                    return self._judged(call, content, body or {})
                if action == "create" and call.status == LOST:
                    return None  # it may exist by now: its requests are checked all the same
                self._may_be_deleted |= action == "delete"
            if not await self._journal.rest(self._draw.uniform(0.2, 1)):
                return None
        return None

    async def _attempt(
        self, mailing_id: int, action: str, body: dict[str, Any] | None
    ) -> tuple[Call, bytes]:
        match action:
            case "create":
                method, path = "POST", ""
            case "change":
                method, path = "PATCH", f"/{mailing_id}"
            case "delete":
                method, path = "DELETE", f"/{mailing_id}"
            case _:
                method, path = "POST", f"/{mailing_id}/{action}"
        url = f"{self._draw.choice(self._fleet.addresses)}/api/v1/mailings{path}"
        began, status, content = time.time(), LOST, b""
        try:
            async with self._session.request(method, url, json=body) as answer:
                content = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # killed, or starting anew
        return Call(mailing_id, action, began, time.time(), status), content

    def _judged(self, call: Call, content: bytes, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the mailing when the call is done; complain of what the contract does not know."""
        mailing: dict[str, Any] | None = None
        if call.status == DONE.get(call.action, HTTPStatus.OK):
            mailing = msgspec.json.decode(content) if content else None
            statuses = STATUS_AFTER.get(call.action)
            is_known = statuses is None or (mailing or {}).get("status") in statuses
        elif call.status == HTTPStatus.CONFLICT:  # it makes no sense in the present state
            is_known = call.action not in DONE
        elif call.status == HTTPStatus.NOT_FOUND:  # an earlier attempt has deleted it, unheard
            is_known = call.action == "delete" and self._may_be_deleted
        elif call.status == HTTPStatus.BAD_REQUEST and "datetime_end" in body:  # waited too long
            is_known = datetime.fromisoformat(body["datetime_end"]).timestamp() <= call.ended
        else:
            is_known = False
        if not is_known:
            what = f"{call.action} of mailing {call.mailing_id}: {call.status}"
            said = content[:300].decode(errors="replace")
            self._journal.complain(f"{what} {said}")
        return mailing
