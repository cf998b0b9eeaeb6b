"""Measurements of pages: layout and transferred bytes."""

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

# The lines of all visible texts, clipped by their scrolling or clipping ancestors. A text must not
# be cut off, extend beyond the screen, or overlap another text by more than a few pixels.
COLLISIONS = r"""screen => {
    const width = Math.min(document.scrollingElement.clientWidth, screen), wrong = [];
    const ancestors = element => {
        const found = [];
        for (let at = element; at && at !== document.body; at = at.parentElement) found.push(at);
        return found;
    };
    const cut = ({ left, right, top, bottom }, element) => {
        let scrolls = false;
        for (const at of ancestors(element)) {
            const { overflowX, overflowY } = getComputedStyle(at);
            if (overflowX === "visible" && overflowY === "visible") continue;
            scrolls ||= /auto|scroll/.test(overflowX);
            const box = at.getBoundingClientRect();
            [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
            [top, bottom] = [Math.max(top, box.top), Math.min(bottom, box.bottom)];
        }
        return { left, right, top, bottom, scrolls };
    };
    const isSeen = element => element.checkVisibility({ checkVisibilityCSS: true })
        && !element.closest(".skip, option, textarea, script")
        && ancestors(element).every(at => getComputedStyle(at).clipPath === "none");
    const lines = [], nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (nodes.nextNode()) {
        const node = nodes.currentNode, text = node.data.trim().slice(0, 60);
        if (!text || !isSeen(node.parentElement)) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const rect of range.getClientRects()) {
            const line = { ...cut(rect, node.parentElement), node, text };
            const isEmpty = line.right - line.left < 1 || line.bottom - line.top < 1;
            if (!line.scrolls && (isEmpty || rect.right - line.right > 1))
                wrong.push(`"${text}" is cut off`);
            if (!line.scrolls && line.right > width + 1) wrong.push(`"${text}" leaves the screen`);
            if (!isEmpty) lines.push(line);
        }
    }
    lines.sort((one, other) => one.top - other.top);
    lines.forEach((one, at) => {
        for (const other of lines.slice(at + 1)) {
            if (other.top > one.bottom) break;
            const shared = Math.min(one.right, other.right) - Math.max(one.left, other.left);
            const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
            if (one.node !== other.node && shared > 2 && height > 4)
                wrong.push(`"${one.text}" lies over "${other.text}"`);
        }
    });
    return [...new Set(wrong)];
}"""


async def collisions(page: Page) -> list[str]:
    """Return texts that overlap, are cut off, or extend beyond the screen."""
    assert page.viewport_size is not None
    texts: list[str] = await page.evaluate(COLLISIONS, page.viewport_size["width"])
    return texts


# Records the position of each text of the last drawing of a chart in `window.written`.
LISTEN_TO_CANVAS = """
    window.written = [];
    const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.clearRect = function (...area) {
        window.written = [];
        return clearRect.apply(this, area);
    };
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
        const { width } = this.measureText(text), { a, e } = this.getTransform();
        const share = { left: 0, start: 0, center: 0.5, right: 1, end: 1 }[this.textAlign];
        const left = e + a * (x - share * width);
        written.push({ text, y, left, right: left + a * width, canvas: this.canvas.width });
        return fillText.call(this, text, x, y, ...rest);
    };"""


async def overflows(page: Page) -> list[str]:
    """Return the elements that are wider than the screen; empty if there are none."""
    assert page.viewport_size is not None
    elements: list[str] = await page.evaluate(OVERFLOW, page.viewport_size["width"])
    return elements


async def wire_bytes(page: Page, url: str) -> int:
    """Load a page with an empty cache; return the number of received bytes, headers included."""
    sizes: list[float] = []

    def record_size(event: dict[str, Any]) -> None:
        sizes.append(event["encodedDataLength"])

    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    await session.send("Network.clearBrowserCache")
    session.on("Network.loadingFinished", record_size)
    await page.goto(url, wait_until="load")
    await session.detach()
    return round(sum(sizes))
