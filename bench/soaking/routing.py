"""The configuration of the soak's gateways, which the soak changes, and pauses of gateways."""

import contextlib
import json
from http import HTTPStatus
from pathlib import Path

import aiohttp

from mailer.sample_data import ALL_OPERATOR_CODES
from soaking.api import TIMEOUT
from soaking.faults import Fleet
from soaking.journal import GATEWAY_TIMEOUT, Entry, Journal, RandomSource
from soaking.sandbox import GATEWAYS, KINDS, Sandbox

CONCURRENCY, RATE = 20, 100
"""Requests at the same time, and requests a second, of each gateway and worker."""
SOME_CODES = frozenset(ALL_OPERATOR_CODES[:30])
OTHER_CODES = frozenset(ALL_OPERATOR_CODES[25:60])
FIRST = {
    "json": Entry(order=1),
    "vonage": Entry(order=1, operator_codes=SOME_CODES),
    "infobip": Entry(order=2),
}
OTHER = {"vonage": Entry(order=1, operator_codes=OTHER_CODES), "infobip": Entry(order=2)}
CONFIGURATIONS: tuple[dict[str, Entry], ...] = (
    FIRST,
    OTHER,  # without json
    OTHER | {"json": Entry(order=1)},
    OTHER | {"json": Entry(order=2), "infobip": Entry(order=1)},
    FIRST
    | {
        "json": Entry(order=1, weight=3),
        "vonage": Entry(order=1, operator_codes=SOME_CODES, weight=1),
    },
    {"json": Entry(order=1), "infobip": Entry(order=2)},  # without vonage
)
"""By the names of the gateways; all operator codes have a gateway in each of them."""
MIN_DURATION = 3 * GATEWAY_TIMEOUT
"""Least seconds between two changes: requests through a removed gateway end before it is back."""
RETRY_DELAY = 0.2
"""Seconds between two attempts to pause or resume a gateway."""


class GatewayFile:
    """The file `gateways.toml` of all workers."""

    def __init__(self, path: Path, gateways: list[Sandbox], journal: Journal) -> None:
        self.path = path
        self._urls = {gateway.name: gateway.url for gateway in gateways}
        self._journal = journal
        self.write(FIRST)

    def write(self, entries: dict[str, Entry]) -> None:
        """Replace the file, and record that."""
        tables = [self._table(name, entry) for name, entry in entries.items()]
        new_file = self.path.with_suffix(".new")
        new_file.write_text("\n".join(tables))
        self._journal.add_configuration(entries)
        new_file.rename(self.path)  # at once, so that no process reads half of it

    def _table(self, name: str, entry: Entry) -> str:
        """Return the `[[gateway]]` of a gateway."""
        [kind] = [kind for kind in KINDS if kind.name == name]
        values: dict[str, object] = {
            "name": name,
            "kind": name,
            "url": self._urls[name],
            "sender": "soak",
            "concurrency": CONCURRENCY,
            "rate": RATE,
            "timeout": GATEWAY_TIMEOUT,
            **kind.account,
            **kind.callback_keys,
            "order": entry.order,
        }
        if entry.operator_codes is not None:
            values["operator_codes"] = sorted(entry.operator_codes)
        if entry.weight is not None:
            values["weight"] = entry.weight
        # a value in JSON is a value in TOML too
        return "\n".join(["[[gateway]]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())])


async def inject_configurations(
    file: GatewayFile, fleet: Fleet, journal: Journal, rng: RandomSource
) -> None:
    """Change the file at random intervals, and let all workers read it."""
    current = FIRST
    while await journal.sleep(rng.uniform(MIN_DURATION, 20)):
        with journal.fault("configuration changed"):
            current = rng.choice([each for each in CONFIGURATIONS if each != current])
            file.write(current)
            fleet.reload()


async def inject_pauses(fleet: Fleet, journal: Journal, rng: RandomSource) -> None:
    """Pause a gateway by the API at random intervals, and resume it some seconds later."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        await _Pauses(session, fleet, journal, rng).run()


class _Pauses:
    """Pauses and resumes gateways, each time by a random running worker."""

    def __init__(
        self, session: aiohttp.ClientSession, fleet: Fleet, journal: Journal, rng: RandomSource
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._journal = journal
        self._rng = rng

    async def run(self) -> None:
        """Pause and resume gateways until the soak is ending."""
        while await self._journal.sleep(self._rng.uniform(3, 12)):
            name = self._rng.choice(GATEWAYS)
            with self._journal.fault("gateway paused", gateway=name):
                await self._call(f"{name}/pause")
                await self._journal.sleep(self._rng.uniform(1, 8))
                await self._call(f"{name}/resume")

    async def _call(self, action: str) -> None:
        """Do an action on a gateway, again and again until a worker answers that it is done.

        A worker answers 404 while its configuration does not have the gateway. Any other status
        except 503 is a violation.
        """
        while await self._journal.sleep(RETRY_DELAY):
            status = HTTPStatus.SERVICE_UNAVAILABLE  # also without an answer
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, IndexError):
                url = f"{self._rng.choice(self._fleet.addresses)}/api/v1/gateways/{action}"
                async with self._session.post(url) as response:
                    status = HTTPStatus(response.status)
            if status == HTTPStatus.OK:
                return
            if status not in {HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE}:
                self._journal.add_violation(f"gateway {action}: {status}")
