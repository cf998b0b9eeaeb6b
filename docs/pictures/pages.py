"""Save pictures of the pages of `mailer demo`: `python docs/pictures/pages.py [FOLDER]`.

`docs/pages.md` shows the pictures. The browser is Debian's package `chromium`. The demo has sample
clients only; their phones are hidden all the same.

Before a commit, reduce the pictures to 256 colors, for example with `Image.quantize` of Pillow:
they then have a third of the bytes.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from playwright.async_api import Browser, Page, async_playwright, expect

ZONE = "Asia/Yekaterinburg"
"""Time zone of the browser."""
# Options of the browser for a picture.
DESK: dict[str, Any] = {"viewport": {"width": 1100, "height": 800}, "locale": "en-GB"}
TALL = DESK | {"viewport": {"width": 1100, "height": 1300}}
RUSSIAN = DESK | {"locale": "ru-RU"}
PHONE: dict[str, Any] = DESK | {
    "viewport": {"width": 390, "height": 844},
    "color_scheme": "dark",
    "has_touch": True,
    "is_mobile": True,
}

# A function of JavaScript that replaces all phones on a page by dots. It also replaces the name of
# the machine and the demo's temporary folder by ordinary ones. It returns the position of a phone
# that is still visible, or -1.
HIDE_PHONES = r"""host => {
    const hide = text => (text === host ? "server" : text).replace(/\S+\/mailer-demo-\w+/,
        "/var/lib/mailer").replace(/\+?\b7[\s(-]*\d{3}[\s)-]*\d{3}[\s-]?\d{2}[\s-]?\d{2}\b/g,
        "7••••••••••");
    const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (nodes.nextNode()) nodes.currentNode.data = hide(nodes.currentNode.data);
    for (const field of document.querySelectorAll("input:not([type=file]), textarea")) {
        field.value = hide(field.value);
        field.placeholder = hide(field.placeholder);
    }
    return document.body.innerText.search(/\b7\d{10}\b/);
}"""

CLIENTS_FILE = """Телефон;Тег;Имя;Город
+7 (916) 123-45-67;vip;Анна;Казань
8 903 123-45-67;;Борис;Пермь
не помню;new;Вера;Омск
"""  # noqa: RUF001  # in Russian
"""A file as Excel writes it in Russia."""

Steps = Callable[[Page], Awaitable[object]]
"""A function that opens the page for a picture and fills in forms."""


async def overview(page: Page) -> None:
    """Open the overview while a mailing is being sent."""
    await page.goto("/")
    await expect(page.locator("#running article")).not_to_have_count(0)
    # The first gateway of the demo fails now and then; wait until it works.
    await expect(page.locator("#gateway.warning")).to_have_count(0)
    await expect(page.locator("#last-day canvas")).to_be_visible()


async def running(page: Page) -> None:
    """Open the page of the mailing that is being sent to all clients."""
    await page.goto("/mailings?status=running")
    await page.get_by_role("link", name="Your order is ready").click()
    await expect(page.locator("rect.delivered")).to_be_visible()
    await expect(page.locator(".status.running")).to_be_visible()


async def mailings(page: Page) -> None:
    """Open the list of all mailings."""
    await page.goto("/mailings")
    await expect(page.locator(".status.running")).to_have_count(1)


async def form(page: Page) -> None:
    """Fill in the form of a mailing whose sending window excludes some clients."""
    start = datetime.now(ZoneInfo(ZONE)) + timedelta(days=2)
    await page.goto("/mailings/new")
    text = "{{ name | Hello }}, a cup of coffee waits for you in café Ёлка until six today."
    await page.locator("#text").fill(text)
    await page.locator("#start").fill(f"{start:%Y-%m-%d}T12:00")
    await page.locator("#end").fill(f"{start:%Y-%m-%d}T18:00")
    await page.locator("#opens").fill("09:00")
    await page.locator("#closes").fill("18:00")
    await page.locator("#audience-terms").check()
    await page.locator("#terms").fill("vip, new")
    await expect(page.locator("#forecast.warning")).to_be_visible()
    await page.evaluate("scrollTo(0, 0)")


async def calendar(page: Page) -> None:
    """Open the calendar of this week."""
    await page.goto("/calendar")
    await expect(page.get_by_role("link", name="Bonus points").first).to_be_visible()


async def messages(page: Page) -> None:
    """Open the list of the undelivered messages of a finished mailing."""
    await page.goto("/mailings/1/messages?status=undelivered")
    await expect(page.locator("tbody tr")).not_to_have_count(0)


async def message(page: Page) -> None:
    """Open the page of a message that was delivered by its second attempt or a later one."""
    all_mailings = await (await page.request.get("/api/v1/mailings?limit=100")).json()
    running_id = next(
        mailing["id"]
        for mailing in all_mailings["results"]
        if mailing["text"].startswith("Your order is ready")
    )
    path = f"/mailings/{running_id}/messages"
    retried_ids: list[int] = []
    while not retried_ids:
        response = await page.request.get(f"/api/v1{path}?status=delivered&limit=1000")
        delivered = (await response.json())["results"]
        retried_ids = [message["id"] for message in delivered if message["attempts"] > 1]
        await asyncio.sleep(1)
    await page.goto(f"{path}/{retried_ids[0]}")
    await expect(page.locator(".timeline")).to_be_visible()


async def clients(page: Page) -> None:
    """Open the list of the clients with a tag."""
    await page.goto("/clients?tag=vip")
    await expect(page.locator("tbody tr")).not_to_have_count(0)


async def import_preview(page: Page) -> None:
    """Open the preview of a file of clients that has a wrong line and a column for a field."""
    await page.goto("/clients/import")
    file: Any = {"name": "clients.csv", "mimeType": "text/csv", "buffer": CLIENTS_FILE.encode()}
    await page.locator("input[type=file]").set_input_files(file)
    await page.get_by_label("Put the clients on a list").fill("Autumn sale")
    await page.get_by_role("button", name="Check the file").click()
    await expect(page.locator("#report table").first).to_be_visible()


async def gateways(page: Page) -> None:
    """Open the list of gateways while the first one has no credit."""
    await page.goto("/gateways")
    await expect(page.get_by_text("no credit")).to_be_visible()


async def system(page: Page) -> None:
    """Open the system page."""
    await page.goto("/system")


async def audit(page: Page) -> None:
    """Pause a mailing, then open the audit log."""
    await page.goto("/mailings?status=scheduled")
    await page.locator("tbody th > a").first.click()
    await page.locator("#pause button").click()
    await expect(page.locator("#undo")).to_be_visible()
    await page.goto("/audit")
    await expect(page.locator("tbody tr")).not_to_have_count(0)


# By the name of the picture: the options of the browser, and the steps. The pictures of a running
# mailing come first, because the mailing may finish.
PICTURES: dict[str, tuple[dict[str, Any], Steps]] = {
    "running": (DESK, running),
    "overview": (DESK, overview),
    "phone": (PHONE, overview),
    "russian": (RUSSIAN, overview),
    "gateways": (DESK, gateways),
    "mailings": (DESK, mailings),
    "calendar": (TALL, calendar),
    "new-mailing": (TALL, form),
    "messages": (DESK, messages),
    "clients": (DESK, clients),
    "import": (TALL, import_preview),
    "system": (DESK, system),
    "audit": (DESK, audit),
    "message": (DESK, message),  # last, because second attempts come late
}


@asynccontextmanager
async def demo() -> AsyncIterator[str]:
    """Run the demo, and yield its address."""
    environ = {name: value for name, value in os.environ.items() if "MAILER" not in name}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "demo"),
        env=environ | {"MAILER_PORT": "0"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdout is None:
            raise RuntimeError
        async for line in process.stdout:
            if b"pages" in line:  # the line of the greeting with the address of the pages
                yield line.decode().split()[-1]
                return
        raise RuntimeError("the demo did not start")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()


async def save(browser: Browser, address: str, folder: Path, name: str) -> None:
    """Save a picture of a page, with phones hidden."""
    options, steps = PICTURES[name]
    context = await browser.new_context(base_url=address, timezone_id=ZONE, **options)
    page = await context.new_page()
    await page.goto("/")  # the first visit sets the time zone
    await steps(page)
    await page.evaluate("document.fonts.ready")
    if await page.evaluate(HIDE_PHONES, socket.gethostname()) >= 0:
        raise RuntimeError(f"a phone is visible on {page.url}")
    await page.screenshot(path=folder / f"{name}.png")
    await context.close()


async def save_all(folder: Path) -> None:
    """Save every picture."""
    async with demo() as address, async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name in PICTURES:
            async with asyncio.timeout(90):
                await save(browser, address, folder, name)
        await browser.close()


def main() -> None:
    """Save the pictures to the given folder, or to the folder of this script."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=20_000)
    asyncio.run(save_all(folder))


if __name__ == "__main__":
    main()
