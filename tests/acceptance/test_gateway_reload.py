"""SIGHUP makes a running mailer use the changed file of gateways; a wrong file changes nothing."""

import signal
from pathlib import Path

from tests.acceptance.test_signals import WITH_DEFAULT_SIGHUP
from tests.processes import Gateway, Gateways, MailerProcess, Mailers

from mailer.sample_data import new_mailing


def write_file(path: Path, **gateways: Gateway) -> None:
    """Write a file of gateways, by name."""
    path.write_text(
        "\n".join(
            f'[[gateway]]\nname = "{name}"\nkind = "json"\n'
            f'url = "{gateway.url}"\ntoken = "secret"\n'
            for name, gateway in gateways.items()
        )
    )


async def send_mailing(mailer: MailerProcess) -> None:
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    mailing = await mailer.finished(created["id"])
    assert mailing["delivered_messages"] == mailing["clients_count"]


async def test_reload_uses_the_changed_file_without_a_stop(
    start_gateway: Gateways, start_mailer: Mailers, tmp_path: Path
) -> None:
    first, second = await start_gateway(), await start_gateway()
    file = tmp_path / "gateways.toml"
    write_file(file, first=first)
    mailer = await start_mailer(prefix=WITH_DEFAULT_SIGHUP, gateways=str(file))
    await mailer.create_clients(20)
    await send_mailing(mailer)

    write_file(file, second=second)
    mailer.process.send_signal(signal.SIGHUP)
    event = await mailer.event("gateways_reloaded")
    assert event["gateways"] == ["second"]
    await send_mailing(mailer)

    assert (len(first.ids), len(second.ids)) == (20, 20)
    assert await mailer.stop() == 0


async def test_the_api_knows_the_gateways_of_the_file_from_its_first_answer_on(
    start_gateway: Gateways, start_mailer: Mailers, tmp_path: Path
) -> None:
    file = tmp_path / "gateways.toml"
    write_file(file, main=await start_gateway())
    mailer = await start_mailer(gateways=str(file))
    await mailer.event("routes_changed")

    events = [event["event"] for event in mailer.events]
    assert events.index("routes_changed") < events.index("started")
    await mailer.call("POST", "/mailings", {**new_mailing(), "gateway": "main"}, 201)
    assert await mailer.stop() == 0


async def test_wrong_file_changes_nothing_and_says_why(
    start_gateway: Gateways, start_mailer: Mailers, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    file = tmp_path / "gateways.toml"
    write_file(file, main=gateway)
    mailer = await start_mailer(prefix=WITH_DEFAULT_SIGHUP, gateways=str(file))
    await mailer.create_clients(5)

    file.write_text('[[gateway]]\nname = "main"\nkind = "jason"\nwieght = 2\n')
    mailer.process.send_signal(signal.SIGHUP)
    reason = (await mailer.event("gateways_not_reloaded"))["reason"]
    assert f"{file}: gateway[1]" in reason
    assert "wieght" in reason
    await send_mailing(mailer)

    assert len(gateway.ids) == 5
    assert await mailer.stop() == 0
