"""Hostile texts, which run scripts or change a page that does not escape them, and their check."""

from playwright.async_api import Page

OVERRIDE = "\u202e"
"""The character U+202E. It is invisible and reverses the direction of the following text."""
MARKUP = OVERRIDE + "\"'><img src=x onerror=alert(1)><script>alert(1)</script>{{7*7}}${7*7}"
TEXT_MARKUP = MARKUP.replace("{{7*7}}", "")
"""For texts of mailings, in which two braces are a placeholder."""
SHORT_MARKUP = OVERRIDE + '"><img src=x onerror=alert(1)>{{7*7}}'
"""Short enough for a tag. Mailer removes the invisible override from a tag that it stores."""

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
        // the override has an effect up to the next block or isolated element, which must have no
        // other text
        let boundary = text.parentElement;
        const isOverridden = ({display, unicodeBidi}) =>
            display === "inline" && !unicodeBidi.startsWith("isolate");
        while (isOverridden(getComputedStyle(boundary))) boundary = boundary.parentElement;
        if (boundary.textContent.trim() !== text.data.trim())
            found.push(`reversed: ${boundary.outerHTML}`);
    }
    return found;
}"""
"""Script that returns active content of a page, and texts that are reversed by a hostile text."""


async def find_effects(page: Page) -> list[str]:
    """Return the effects of hostile texts on a page; empty if there are none."""
    effects: list[str] = await page.evaluate(FIND_EFFECTS, OVERRIDE)
    return [f"{page.url}: {effect}" for effect in effects]
