"""What the page says and does when something is not as it should be."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import pytest

from services.gateway.admission import Capacity
from services.gateway.settings import Auth, Web
from services.local.ports import free_port
from tests.web.chromium import Visitor
from tests.web.site import GREETING, NAMES, Site

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]

Visit = Callable[..., Awaitable[Visitor]]
CALL = f"Call {NAMES[0]}"


async def test_who_has_no_microphone_types(visit: Visit) -> None:
    # Granting something else refuses the microphone.
    visitor = await visit(permissions=["geolocation"])
    page = visitor.page
    await page.get_by_role("button", name="Microphone", exact=True).click()
    await page.get_by_text("The browser blocks the microphone.").wait_for()
    await visitor.call(NAMES[0])
    assert await page.get_by_role("button", name="No mic").is_visible()
    await visitor.heard("character", GREETING)
    await page.get_by_label("Type instead of talking").fill("I have no voice")
    await page.keyboard.press("Enter")
    await visitor.heard("character", "I have no voice")
    await visitor.hang_up()


async def test_a_full_fleet_queues_and_refuses(visit: Visit, place: Site) -> None:
    async with place.another(capacity=Capacity(sessions=1, queue=1)) as url:
        first, second, third = [await visit(url) for _ in range(3)]
        await first.call(NAMES[0])
        await second.page.get_by_role("button", name=CALL).click()
        await second.page.get_by_text("You are next").wait_for()
        await third.page.get_by_role("button", name=CALL).click()
        await third.page.get_by_role("heading", name="All lines are busy").wait_for()
        await third.page.locator("#ended-text", has_text="Try again").wait_for()
        await first.hang_up()
        await second.live()
        await second.hang_up()


async def test_an_access_key(visit: Visit, place: Site, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    known = {"sha256": sha256(b"right").hexdigest(), "tenant": ""}
    file.write_text(json.dumps({"keys": [known]}))
    async with place.another(auth=Auth(keys_file=file)) as url:
        visitor = await visit(url)
        page = visitor.page
        dialog = page.get_by_role("dialog", name="Access key")
        await dialog.get_by_label("Key").fill("wrong")
        await page.keyboard.press("Enter")
        await dialog.get_by_text("not valid").wait_for()
        await page.keyboard.press("Escape")  # there is no way around it
        await dialog.get_by_label("Key").fill("right")
        await page.keyboard.press("Enter")
        await dialog.wait_for(state="hidden")
        await page.get_by_role("button", name="Add a character").wait_for()


async def test_a_gateway_that_goes_and_comes_back(visit: Visit, place: Site) -> None:
    web = Web(port=free_port())
    async with place.another(web=web) as url:
        visitor = await visit(url)
        page = visitor.page
        await page.get_by_text("Push to talk").first.click()
        await visitor.call(NAMES[0])
        await visitor.heard("character", GREETING)
        _, before = await visitor.picture()
    await page.get_by_text("Reconnecting, for up to").wait_for()
    async with place.another(web=web):
        await page.get_by_text("Reconnecting").wait_for(state="hidden")
        await page.get_by_label("Type instead of talking").fill("Are you back?")
        await page.keyboard.press("Enter")
        await visitor.heard("character", "Are you back?")
        assert (await visitor.picture())[1] > before
        await visitor.hang_up()


async def test_a_server_that_is_gone(visit: Visit, place: Site) -> None:
    async with place.another() as url:
        visitor = await visit(url)
        await visitor.page.get_by_role("button", name=CALL).wait_for()
    await visitor.page.get_by_role("button", name=CALL).click()
    await visitor.page.get_by_role("heading", name="Server not reached").wait_for()
    await visitor.page.get_by_role("button", name="Choose another").click()
    await visitor.page.locator("#lobby-message", has_text="does not answer").wait_for()
