"""The API documentation, where requests can be tried."""

from playwright.async_api import Page, expect


async def test_an_entered_key_is_sent_with_every_request(page: Page) -> None:
    await page.goto("/docs")
    await page.get_by_role("button", name="Authorize", exact=True).click()
    key_form = page.locator(".auth-container").filter(has_text="An API key.")
    await key_form.locator("input").fill("mailer_of-a-test")
    await key_form.get_by_role("button", name="Apply credentials").click()
    await page.get_by_role("button", name="Close", exact=True).first.click()

    call = page.locator(".opblock").filter(has_text="/api/v1/statistics")
    await call.get_by_role("button").first.click()
    await call.get_by_role("button", name="Try it out").click()
    async with page.expect_request("**/api/v1/statistics") as requested:
        await call.get_by_role("button", name="Execute").click()
    request = await requested.value
    assert await request.header_value("Authorization") == "Bearer mailer_of-a-test"
    await expect(call.locator(".live-responses-table")).to_contain_text("messages")
