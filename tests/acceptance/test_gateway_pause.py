"""A user pauses and resumes a gateway, and releases its unknown messages; all workers obey."""

from pathlib import Path

from tests.processes import Gateway, Gateways, MailerProcess, Mailers, until_true

from mailer.sample_data import new_mailing

FILE = """
[[gateway]]
name = "main"
kind = "json"
url = "{main}"
token = "secret"
timeout = 0.5

[[gateway]]
name = "spare"
kind = "json"
url = "{spare}"
token = "secret"
order = 2
"""
ALL_OTHERS_ARE_DELIVERED = """
    SELECT count(*) = 100 AND bool_or(status = 'delivered') FROM message
    WHERE status = 'delivered' OR (status = 'scheduled' AND unknown_reason IS NOT NULL)"""
COUNT_BY_SPARE = """
    SELECT count(*) FROM message WHERE status = 'delivered' AND gateway = 'spare'"""


def write_file(folder: Path, main: Gateway, spare: Gateway) -> str:
    """Write a file with two gateways, and return its path."""
    file = folder / "gateways.toml"
    file.write_text(FILE.format(main=main.url, spare=spare.url))
    return str(file)


async def until_paused(mailer: MailerProcess) -> None:
    """Wait until a worker says that the gateway is held for the pause."""

    async def is_paused() -> bool:
        async with mailer.session.get("/clients") as page:
            return "a user has paused the gateway" in await page.text()

    await until_true(is_paused)


async def test_all_workers_send_around_a_paused_gateway_until_it_is_resumed(
    start_gateway: Gateways, start_mailer: Mailers, tmp_path: Path
) -> None:
    main, spare = await start_gateway(latency=0.01), await start_gateway()
    file = write_file(tmp_path, main, spare)
    workers = [await start_mailer(gateways=file) for _ in range(2)]
    await workers[0].create_clients(2_000)
    created = await workers[0].call("POST", "/mailings", new_mailing(), 201)
    await main.until_received(50)

    assert (await workers[1].call("POST", "/gateways/main/pause"))["state"] == "paused"
    assert (await workers[0].call("GET", "/gateways/main"))["state"] == "paused"
    for worker in workers:
        await until_paused(worker)
    await spare.until_received(1)
    mailing = await workers[0].finished(created["id"])
    assert mailing["delivered_messages"] == 2_000
    assert not set(main.ids) & set(spare.ids)

    received = len(main.ids)
    created = await workers[0].call("POST", "/mailings", new_mailing(), 201)
    await workers[0].finished(created["id"])
    assert len(main.ids) == received

    await workers[0].call("POST", "/gateways/main/resume")
    created = await workers[0].call("POST", "/mailings", new_mailing(), 201)
    await workers[0].finished(created["id"])
    assert len(main.ids) > received


async def test_other_gateways_send_what_one_may_have_only_when_a_user_says_so(
    start_gateway: Gateways, start_mailer: Mailers, tmp_path: Path
) -> None:
    main, spare = await start_gateway(hang_rate=1.0), await start_gateway()
    mailer = await start_mailer(
        gateways=write_file(tmp_path, main, spare), breaker_reset="600", breaker_failures="5"
    )
    await mailer.create_clients(100)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    async def all_others_are_delivered() -> bool:
        return bool(await mailer.query(ALL_OTHERS_ARE_DELIVERED))

    await until_true(all_others_are_delivered)
    mailing = await mailer.mailing(created["id"])
    assert mailing["scheduled_messages"] == len(set(main.ids))

    released = await mailer.call("POST", "/gateways/main/release-unknown")
    assert released == {"messages": len(set(main.ids))}
    mailing = await mailer.finished(created["id"])
    assert mailing["delivered_messages"] == 100
    assert await mailer.query(COUNT_BY_SPARE) == 100
