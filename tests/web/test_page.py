"""The page in real Chromium, against a real gateway and bridge before engines of known results."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import Page

from tests.gateway.fleet import eventually, png
from tests.web.chromium import Visitor
from tests.web.site import GREETING, NAMES, SPEC, Site

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]

Visit = Callable[..., Awaitable[Visitor]]

LONG = "Well, there is a lot that one could say about this, and I am going to say it all. " * 3


async def test_characters_are_offered_by_name_and_picture(visit: Visit, place: Site) -> None:
    visitor = await visit()
    page = visitor.page
    for name in NAMES:
        await page.get_by_role("radio", name=name, exact=True).wait_for(state="attached")
    await visitor.until(
        "() => [...document.querySelectorAll('.character img')].every((it) => it.naturalWidth)"
    )
    assert await page.get_by_role("button", name=f"Call {NAMES[0]}").is_enabled()
    answer = await page.request.get(place.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_a_call_by_keyboard_alone(visit: Visit) -> None:
    visitor = await visit()
    page = visitor.page
    await page.get_by_role("button", name=f"Call {NAMES[0]}").wait_for()
    while "characters" not in await _focused(page, "it.closest('[role=radiogroup]')?.id ?? ''"):
        await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowRight")
    assert await page.get_by_role("radio", name=NAMES[1], exact=True).is_checked()
    await page.keyboard.press("Enter")
    await visitor.live()
    assert await page.get_by_role("heading", name=NAMES[1]).is_visible()
    seen = list[str]()
    while not seen or seen[-1] != "hang-up":
        await page.keyboard.press("Tab")
        seen.append(await _focused(page, "it.id"))
        assert await _focused(page, "getComputedStyle(it).outlineStyle") == "solid", seen
    assert {"quality", "compose-text", "mute", "interrupt", "sound", "captions-toggle"} <= set(seen)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Call ended").wait_for()


async def test_a_call_from_the_button_to_its_end(visit: Visit, place: Site) -> None:
    visitor = await visit()
    page = visitor.page
    await page.get_by_text("Push to talk").first.click()
    await visitor.call(NAMES[0])
    await visitor.heard("character", GREETING)
    await visitor.state("Listening")

    # All pictures are shown, in order, none twice.
    serial, first = await visitor.picture()
    decoded = await visitor.decoded()
    await visitor.until(
        "(enough) => document.getElementById('video').getVideoPlaybackQuality()"
        ".totalVideoFrames > enough",
        decoded + 2 * SPEC.fps,
    )
    assert await visitor.picture() > (serial, first + SPEC.fps)

    await page.get_by_label("Type instead of talking").fill("Good morning")
    await page.keyboard.press("Enter")
    await visitor.heard("user", "Good morning")
    await visitor.heard("character", "Good morning")

    await page.locator("#call-name").focus()
    await page.keyboard.press("d")
    await visitor.until(
        "() => /frames\\s+[1-9]/.test(document.getElementById('overlay').innerText)"
        " && /round trip\\s+\\d+ ms/.test(document.getElementById('overlay').innerText)"
    )
    figures = await page.locator("#overlay").inner_text()
    assert re.search(r"80.80 VP8", figures)
    assert "NaN" not in figures
    assert await page.locator("#quality").get_attribute("data-level") in ("good", "fair", "poor")

    await page.get_by_role("button", name="Captions").click()
    assert not await page.locator("#conversation").is_visible()
    ended = place.gateway.metric("tm_session_end_total", reason="client")
    await visitor.hang_up()
    await page.get_by_text("You hung up on Ada.").wait_for()
    await eventually(lambda: place.gateway.metric("tm_session_end_total", reason="client") > ended)
    await page.reload()  # what was hung up is over
    await page.get_by_role("button", name=f"Call {NAMES[0]}").wait_for()


async def test_push_to_talk(visit: Visit, place: Site) -> None:
    recogniser, writer = place.recogniser, place.writer
    recogniser.sounds.clear()
    visitor = await visit()
    page = visitor.page
    await page.get_by_text("Push to talk").first.click()
    await visitor.call(NAMES[0])
    await visitor.heard("character", GREETING)
    # The microphone has said something, and nobody heard it.
    assert not any(any(sound) for sound in recogniser.sounds)

    recogniser.texts.append("What is the weather like")
    writer.answers.append(LONG)
    await page.locator("#call-name").focus()
    await page.keyboard.down(" ")
    await page.get_by_text("Release to send").wait_for()
    await page.wait_for_timeout(3_000)  # the sentence comes round within this
    await page.keyboard.up(" ")
    await visitor.heard("user", "What is the weather like")
    await visitor.state("Speaking")
    await visitor.heard("character", "Well, there is")

    recogniser.texts.append("That will do")
    await page.locator("#push").hover()
    await page.mouse.down()  # speaking again stops the answer
    await visitor.heard("character", "Well", kind="cut")
    await visitor.state("Listening")
    await page.wait_for_timeout(2_600)
    await page.mouse.up()
    await visitor.heard("user", "That will do")
    await visitor.hang_up()


async def test_interrupting_and_muting(visit: Visit, place: Site) -> None:
    recogniser, writer = place.recogniser, place.writer
    visitor = await visit()
    page = visitor.page
    recogniser.texts.extend(["Tell me a story", "Stop it"])
    writer.answers.extend([LONG, LONG, LONG])
    await visitor.call(NAMES[0])
    await visitor.heard("user", "Tell me a story")
    await visitor.heard("character", "Well, there is", kind="partial")
    await visitor.heard("user", "Stop it")  # the microphone's next sentence
    await visitor.heard("character", "Well", kind="cut")

    await page.get_by_role("button", name="Mute").click()
    await visitor.state("Speaking")
    await page.get_by_role("button", name="Interrupt").click()
    await visitor.until("() => document.querySelectorAll('.caption.cut').length > 1")
    await visitor.state("Listening")
    heard = len(recogniser.sounds)
    await page.wait_for_timeout(6_000)  # a sentence and its pause
    assert len(recogniser.sounds) == heard
    await page.get_by_role("button", name="Unmute").click()
    await eventually(lambda: len(recogniser.sounds) > heard, 20)
    await visitor.hang_up()


async def test_a_page_that_is_loaded_again_returns_to_its_call(visit: Visit) -> None:
    visitor = await visit()
    page = visitor.page
    await page.get_by_text("Push to talk").first.click()
    await visitor.call(NAMES[1])
    await visitor.heard("character", GREETING)
    _, before = await visitor.picture()
    await page.reload()
    await visitor.live()
    _, after = await visitor.picture()
    assert after >= before > 0
    assert await page.get_by_role("heading", name=NAMES[1]).is_visible()
    await page.get_by_label("Type instead of talking").fill("Still there?")
    await page.keyboard.press("Enter")
    await visitor.heard("character", "Still there?")
    await visitor.hang_up()


async def test_two_browsers_at_once_stay_separate(visit: Visit) -> None:
    visitors = [await visit() for _ in NAMES]
    for visitor, name in zip(visitors, NAMES, strict=True):
        await visitor.page.get_by_text("Push to talk").first.click()
        await visitor.call(name)
    serials = [{(await visitor.picture())[0]} for visitor in visitors]
    for turn in range(2):
        for visitor, serial, name in zip(visitors, serials, NAMES, strict=True):
            await visitor.page.get_by_label("Type instead of talking").fill(f"{name} {turn}")
            await visitor.page.keyboard.press("Enter")
            await visitor.heard("character", f"{name} {turn}")
            serial.add((await visitor.picture())[0])
    assert len(serials[0]) == len(serials[1]) == 1
    assert serials[0] != serials[1]
    for visitor, other in zip(visitors, reversed(NAMES), strict=True):
        assert not any(other in said for said in await visitor.captions())
        await visitor.hang_up()


async def test_a_character_of_ones_own(visit: Visit) -> None:
    visitor = await visit()
    page = visitor.page
    await page.get_by_role("button", name="Add a character").click()
    dialog = page.get_by_role("dialog", name="Add a character")
    picture = dialog.locator("input[type=file]")
    await dialog.get_by_role("button", name="Add", exact=True).click()
    await dialog.get_by_text("Choose a picture.").wait_for()
    notes = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    await picture.set_input_files(notes)  # type: ignore[arg-type]
    await dialog.get_by_text("not a JPEG, PNG or WebP").wait_for()
    small = {"name": "small.png", "mimeType": "image/png", "buffer": png(20, 20)}
    await picture.set_input_files(small)  # type: ignore[arg-type]
    await dialog.get_by_text("too small: 20").wait_for()
    face = {"name": "face.png", "mimeType": "image/png", "buffer": png(200, 160, seed=9)}
    await picture.set_input_files(face)  # type: ignore[arg-type]
    await dialog.get_by_label("Name").fill("Clio")
    await dialog.get_by_role("button", name="Add", exact=True).click()
    await page.get_by_role("button", name="Call Clio").wait_for()
    page.on("dialog", lambda question: question.accept())
    await page.get_by_role("button", name="Delete this character").click()
    await page.get_by_role("radio", name="Clio", exact=True).wait_for(state="detached")


async def _focused(page: Page, what: str) -> str:
    script = f"() => {{ const it = document.activeElement; return String({what}); }}"
    return str(await page.evaluate(script))
