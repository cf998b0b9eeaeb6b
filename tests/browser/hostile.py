"""What nobody should be able to put into a page, and how it shows that somebody did."""

from playwright.async_api import Page

OVERRIDE = "\u202e"
"""Turns round what follows it (U+202E); nothing here ends it."""
MARKUP = OVERRIDE + "\"'><img src=x onerror=alert(1)><script>alert(1)</script>{{7*7}}${7*7}"
SHORT = OVERRIDE + '"><img src=x onerror=alert(1)>{{7*7}}'
"""As much of it as a tag has room for; stored, it has lost the override, which nobody sees."""

LOOK = """override => {
    const found = [];
    for (const element of document.querySelectorAll("*")) {
        for (const {name, value} of element.attributes)
            if (name.startsWith("on") || /^\\s*javascript:/i.test(value))
                found.push(`${element.tagName} has ${name}=${value}`);
        if (element.matches("script:not([src]), img[src=x], iframe, object, embed, base"))
            found.push(element.outerHTML);
    }
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode;
        if (!text.data.includes(override)) continue;
        if (text.parentElement.closest("option, textarea")) continue;
        let alone = text.parentElement;
        const reaches = ({display, unicodeBidi}) =>
            display === "inline" && !unicodeBidi.startsWith("isolate");
        while (reaches(getComputedStyle(alone))) alone = alone.parentElement;
        if (alone.textContent.trim() !== text.data.trim())
            found.push(`turned round: ${alone.outerHTML}`);
    }
    return found;
}"""
"""Returns what of a page would run, and where an override reaches beyond the text it is in."""


async def harm(page: Page) -> list[str]:
    """Return what hostile text has done to a page as it stands: nothing, if all is well."""
    found: list[str] = await page.evaluate(LOOK, OVERRIDE)
    return [f"{page.url}: {each}" for each in found]
