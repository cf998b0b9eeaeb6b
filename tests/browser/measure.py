"""What a page takes: of the screen, and of the wire."""

from typing import Any

from playwright.async_api import Page

OVERFLOW = """screen => {
    const root = document.scrollingElement, width = Math.min(root.clientWidth, screen);
    if (root.scrollWidth <= width) return [];
    const wide = [...document.body.querySelectorAll("*")].filter(
        element => element.getBoundingClientRect().right > width + 0.5);
    return [`the page is ${root.scrollWidth} wide on ${width}`,
            ...wide.map(element => element.cloneNode(false).outerHTML)];
}"""


async def overflows(page: Page) -> list[str]:
    """Return nothing if the page is no wider than the screen, else what sticks out of it."""
    assert page.viewport_size is not None
    found: list[str] = await page.evaluate(OVERFLOW, page.viewport_size["width"])
    return found


async def wire_bytes(page: Page, url: str) -> int:
    """Load a page with an empty cache and return how many bytes came, headers and all."""
    sizes: list[float] = []

    def see(event: dict[str, Any]) -> None:
        sizes.append(event["encodedDataLength"])

    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    await session.send("Network.clearBrowserCache")
    session.on("Network.loadingFinished", see)
    await page.goto(url, wait_until="load")
    await session.detach()
    return round(sum(sizes))
