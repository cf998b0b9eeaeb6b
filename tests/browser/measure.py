"""Measurements of pages: misplaced texts and elements, and transferred bytes."""

from typing import Any

from playwright.async_api import Page

# Returns the elements that are wider than the screen, whose width in pixels is `screen`.
FIND_OVERFLOWS = """screen => {
    const root = document.scrollingElement, width = Math.min(root.clientWidth, screen);
    if (root.scrollWidth <= width) return [];
    const wide = [...document.body.querySelectorAll("*")].filter(
        element => element.getBoundingClientRect().right > width + 0.5);
    return [`the page is ${root.scrollWidth} wide on ${width}`,
            ...wide.map(element => element.cloneNode(false).outerHTML)];
}"""

# Returns what is wrong with the visible texts. A text must not be cut off, extend beyond the
# screen or the box of an element around it, or overlap another text by more than a few pixels. The
# script computes the visible rectangle of each line: the part inside those ancestors that hide or
# scroll their overflow.
FIND_COLLISIONS = r"""screen => {
    const width = Math.min(document.scrollingElement.clientWidth, screen), wrong = [];
    const withAncestors = element => {
        const elements = [];
        for (let each = element; each && each !== document.body; each = each.parentElement)
            elements.push(each);
        return elements;
    };
    const visibleRect = ({ left, right, top, bottom }, element) => {
        let scrolls = false;
        for (const each of withAncestors(element)) {
            const { overflowX, overflowY } = getComputedStyle(each);
            if (overflowX === "visible" && overflowY === "visible") continue;
            scrolls ||= /auto|scroll/.test(overflowX);
            const box = each.getBoundingClientRect();
            [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
            [top, bottom] = [Math.max(top, box.top), Math.min(bottom, box.bottom)];
        }
        return { left, right, top, bottom, scrolls };
    };
    const leavesBox = (rect, element) => {
        // a blank at the end of a line may hang over
        const margin = getComputedStyle(element).whiteSpace === "pre-wrap" ? 6 : 1;
        for (const each of withAncestors(element)) {
            const { display, position, overflowX } = getComputedStyle(each);
            const box = each.getBoundingClientRect();
            if (overflowX !== "visible") return false; // it hides or scrolls the rest
            if (!/^(inline|contents)$/.test(display)
                && (rect.right > box.right + margin || rect.left < box.left - 1)) return true;
            if (/absolute|fixed/.test(position)) return false;
        }
        return false;
    };
    const isVisible = element => element.checkVisibility({ checkVisibilityCSS: true })
        && !element.closest(".skip, option, textarea, script")
        && withAncestors(element).every(each => getComputedStyle(each).clipPath === "none");
    const lines = [], nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (nodes.nextNode()) {
        const node = nodes.currentNode, text = node.data.trim().slice(0, 60);
        if (!text || !isVisible(node.parentElement)) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const rect of range.getClientRects()) {
            const line = { ...visibleRect(rect, node.parentElement), node, text };
            const isEmpty = line.right - line.left < 1 || line.bottom - line.top < 1;
            if (!line.scrolls && (isEmpty || rect.right - line.right > 1))
                wrong.push(`"${text}" is cut off`);
            if (!line.scrolls && line.right > width + 1) wrong.push(`"${text}" leaves the screen`);
            if (leavesBox(rect, node.parentElement)) wrong.push(`"${text}" leaves its box`);
            if (!isEmpty) lines.push(line);
        }
    }
    lines.sort((one, other) => one.top - other.top);
    lines.forEach((one, index) => {
        for (const other of lines.slice(index + 1)) {
            if (other.top > one.bottom) break;
            const sharedWidth = Math.min(one.right, other.right) - Math.max(one.left, other.left);
            const sharedHeight = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
            if (one.node !== other.node && sharedWidth > 2 && sharedHeight > 4)
                wrong.push(`"${one.text}" lies over "${other.text}"`);
        }
    });
    return [...new Set(wrong)];
}"""


async def collisions(page: Page) -> list[str]:
    """Return texts that overlap, are cut off, or extend beyond the screen or their boxes."""
    assert page.viewport_size is not None
    texts: list[str] = await page.evaluate(FIND_COLLISIONS, page.viewport_size["width"])
    return texts


# Records the texts of the last drawing of a chart in `window.drawnTexts`, with their positions.
RECORD_CANVAS_TEXTS = """
    window.drawnTexts = [];
    const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.clearRect = function (...area) {
        window.drawnTexts = [];
        return clearRect.apply(this, area);
    };
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
        const { width } = this.measureText(text), { a: scale, e: offset } = this.getTransform();
        const shareLeftOfX = { left: 0, start: 0, center: 0.5, right: 1, end: 1 }[this.textAlign];
        const left = offset + scale * (x - shareLeftOfX * width);
        const right = left + scale * width;
        drawnTexts.push({ text, y, left, right, canvasWidth: this.canvas.width });
        return fillText.call(this, text, x, y, ...rest);
    };"""


async def overflows(page: Page) -> list[str]:
    """Return the HTML of the elements that are wider than the screen."""
    assert page.viewport_size is not None
    elements: list[str] = await page.evaluate(FIND_OVERFLOWS, page.viewport_size["width"])
    return elements


async def wire_bytes(page: Page, url: str) -> int:
    """Load a page with an empty cache; return the received bytes of all its files, with headers."""
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
