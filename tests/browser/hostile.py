"""Hostile texts, and a check for their effects in a page."""

from playwright.async_api import Page

OVERRIDE = "\u202e"
"""Reverses the direction of the following text (U+202E); it is never terminated here."""
MARKUP = OVERRIDE + "\"'><img src=x onerror=alert(1)><script>alert(1)</script>{{7*7}}${7*7}"
SHORT = OVERRIDE + '"><img src=x onerror=alert(1)>{{7*7}}'
"""Short enough for a tag. The stored tag does not have the invisible override."""

FIND_EFFECTS = """override => {
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
"""Returns active content, and texts whose direction is reversed by an override elsewhere."""


async def find_effects(page: Page) -> list[str]:
    """Return the effects of hostile texts on a page; empty if there are none."""
    effects: list[str] = await page.evaluate(FIND_EFFECTS, OVERRIDE)
    return [f"{page.url}: {effect}" for effect in effects]
