"""Real processes: `mailer sandbox` sends receipts, and every message ends as the last ones say."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.acceptance.sandbox_processes import sandbox
from tests.daemons import free_port
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import MailerProcess, Mailers, until, until_true

from mailer.sample_data import new_mailing

CLIENTS = 150
LONG = "Скидка до 50%. " * 10
SECRET = "sandbox-callback-secret"  # noqa: S105  # of a test
FAULTS = ("--error-rate", "0.05", "--reset-rate", "0.05")
CHAOS = (
    *("--receipt-delay", "0.3", "--receipt-failed", "0.2", "--receipt-loss", "0.1"),
    *("--receipt-repeat", "0.3", "--receipt-disorder", "0.3", "--receipt-early", "0.3"),
)
SELECT_OUTCOMES = """
SELECT coalesce(json_object_agg(id, ARRAY[status, reason]), '{}') FROM message
WHERE status <> 'undelivered' OR reason LIKE 'not_delivered%' OR reason = 'validity_expired'
"""
COUNT_AWAITING = "SELECT count(*) FROM message WHERE status = 'sent' AND reason IS NULL"
COUNT_OPTED_OUT = "SELECT count(*) FROM client WHERE opted_out_at IS NOT NULL"


def expected_outcomes(receipts: Iterable[dict[str, Any]]) -> dict[int, str]:
    """Return the status of each message that has a receipt which decides, by its id.

    A failure of a part makes the message undelivered, and all of its parts are known then.
    """
    by_id: dict[int, set[str]] = {}
    for row in receipts:
        if row["status"] != "sent":
            by_id.setdefault(row["id"], set()).add(row["status"])
    return {
        id_: "undelivered" if statuses & {"failed", "expired"} else "delivered"
        for id_, statuses in by_id.items()
    }


async def until_no_receipt_is_awaited(mailer: MailerProcess, mailing_id: int) -> dict[str, Any]:
    """Wait until a mailing is finished and each of its messages is final; return it."""
    await mailer.finished(mailing_id)

    async def is_final() -> bool:
        return not await mailer.query(COUNT_AWAITING)

    await until_true(is_final)
    return await mailer.mailing(mailing_id)


def table_of(kind: str, url: str, **keys: str) -> str:
    """Return a `[[gateway]]` for a sandbox."""
    lines = {"name": "main", "kind": kind, "url": url, **keys}
    return "[[gateway]]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items())


@pytest.mark.parametrize(
    ("kind", "account", "options"),
    [
        ("twilio", {"account": "AC1", "token": "t0k"}, ("--token", "t0k")),  # signed
        (
            "sinch",  # signed, and a secret in the URL
            {"account": "plan", "token": "t", "callback_secret": SECRET},
            ("--callback-secret", SECRET),
        ),
    ],
)
async def test_each_message_ends_as_its_receipts_say_in_any_order(
    start_mailer: Mailers,
    tmp_path: Path,
    kind: str,
    account: dict[str, str],
    options: tuple[str, ...],
) -> None:
    port, file = free_port(), tmp_path / "gateways.toml"
    async with sandbox(tmp_path, "--kind", kind, *options, *FAULTS, *CHAOS) as gateway:
        file.write_text(table_of(kind, gateway.url, sender="1008", **account))
        mailer = await start_mailer(
            port=str(port),
            public_url=f"http://127.0.0.1:{port}",
            gateways=str(file),
            receipt_wait="5",
            breaker_failures="1000",
        )
        await mailer.create_clients(CLIENTS)
        mailing = await mailer.call("POST", "/mailings", new_mailing(text=LONG), 201)
        await until_no_receipt_is_awaited(mailer, mailing["id"])
        outcomes = await mailer.query(SELECT_OUTCOMES)
    expected = expected_outcomes(gateway.receipts())
    found = {int(id_): outcome for id_, outcome in msgspec.json.decode(outcomes).items()}
    assert {id_: found[id_][0] for id_ in expected} == expected
    others = {tuple(outcome) for id_, outcome in found.items() if id_ not in expected}
    assert others <= {("sent", "no_receipt")}
    assert {status for status, _ in found.values()} == {"delivered", "undelivered", "sent"}


async def test_receipts_of_all_parts_deliver_a_long_message(
    start_mailer: Mailers, tmp_path: Path
) -> None:
    port, file = free_port(), tmp_path / "gateways.toml"
    options = ("--kind", "vonage", "--receipt-delay", "0.2", "--receipt-disorder", "0.5")
    async with sandbox(tmp_path, *options, "--receipt-repeat", "0.3") as gateway:
        account = {"account": "a", "token": "t", "sender": "1008", "callback_secret": SECRET[:16]}
        file.write_text(table_of("vonage", gateway.url, **account))
        public_url = f"http://127.0.0.1:{port}"
        mailer = await start_mailer(port=str(port), public_url=public_url, gateways=str(file))
        await mailer.create_clients(50)
        mailing = await mailer.call("POST", "/mailings", new_mailing(text=LONG), 201)
        finished = await until_no_receipt_is_awaited(mailer, mailing["id"])
    assert finished["delivered_messages"] == 50
    assert {row["part"] for row in gateway.receipts()} == {1, 2, 3}


async def test_gateway_that_calls_nobody_is_asked(start_mailer: Mailers, tmp_path: Path) -> None:
    file = tmp_path / "gateways.toml"
    options = ("--kind", "smsru", "--receipt-failed", "0.3", "--seed", "1")
    async with sandbox(tmp_path, *options) as gateway:
        table = table_of("smsru", gateway.url, token="t", sender="1008")  # noqa: S106  # of a test
        file.write_text(f"{table}receipts = true\n")
        mailer = await start_mailer(gateways=str(file))
        await mailer.create_clients(50)
        mailing = await mailer.call("POST", "/mailings", new_mailing(), 201)

        async def find_settled() -> dict[str, Any] | None:
            found = await mailer.mailing(mailing["id"])
            is_awaited = await mailer.query(COUNT_AWAITING)
            return found if found["status"] == "finished" and not is_awaited else None

        settled = await until(find_settled, within=2 * EVENT_TIMEOUT)
    assert settled["delivered_messages"] + settled["undelivered_messages"] == 50
    assert settled["undelivered_messages"] > 0
    assert gateway.receipts() == []


async def test_call_with_another_signature_is_refused_and_changes_nothing(
    start_mailer: Mailers, tmp_path: Path
) -> None:
    port, file = free_port(), tmp_path / "gateways.toml"
    async with sandbox(tmp_path, "--kind", "twilio", "--callback-secret", "wrong") as gateway:
        file.write_text(table_of("twilio", gateway.url, account="AC1", token="t", sender="1008"))  # noqa: S106  # of a test
        mailer = await start_mailer(
            port=str(port),
            public_url=f"http://127.0.0.1:{port}",
            gateways=str(file),
            receipt_wait="2",
        )
        await mailer.create_clients(3)
        mailing = await mailer.call("POST", "/mailings", new_mailing(), 201)
        finished = await until_no_receipt_is_awaited(mailer, mailing["id"])
        receipts = await mailer.query("SELECT count(*) FROM message WHERE receipts IS NOT NULL")
    assert finished["sent_messages"] == 3
    assert receipts == 0
    assert gateway.receipts() == []


async def test_client_who_replies_stop_gets_no_further_message(
    start_mailer: Mailers, tmp_path: Path
) -> None:
    port, file = free_port(), tmp_path / "gateways.toml"
    options = ("--token", "t0k", "--reply-share", "1", "--stop-share", "0.5", "--seed", "1")
    async with sandbox(tmp_path, "--kind", "plivo", *options) as gateway:
        file.write_text(table_of("plivo", gateway.url, account="A", token="t0k", sender="1008"))  # noqa: S106  # of a test
        public_url = f"http://127.0.0.1:{port}"
        mailer = await start_mailer(port=str(port), public_url=public_url, gateways=str(file))
        await mailer.create_clients(40)
        first = await mailer.call("POST", "/mailings", new_mailing(), 201)
        await until_no_receipt_is_awaited(mailer, first["id"])

        async def have_all_replied() -> bool:
            return bool(await mailer.query("SELECT count(*) = 40 FROM reply"))

        await until_true(have_all_replied)
        opted_out = await mailer.query(COUNT_OPTED_OUT)
        second = await mailer.call("POST", "/mailings", new_mailing(), 201)
        finished = await until_no_receipt_is_awaited(mailer, second["id"])
    first_replies = [row for row in gateway.replies() if row["id"] <= 40]
    assert len(first_replies) == 40
    assert opted_out == sum(row.get("stop", False) for row in first_replies)
    assert 0 < opted_out < 40
    assert finished["cancelled_messages"] == opted_out
    assert finished["delivered_messages"] == 40 - opted_out
