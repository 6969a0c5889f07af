"""The program for pages in docs/integrate.md, as it stands there, in real Chromium."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.web.chromium import Visitor
from tests.web.site import SPEC, Site

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "integrate.md").read_text()
(PROGRAM,) = re.findall(r"^```js\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


async def test_a_page_of_ones_own_calls_a_character(
    visit: Callable[..., Awaitable[Visitor]], place: Site
) -> None:
    place.writer.answers.append("So you can.")
    visitor = await visit()
    await visitor.page.evaluate(f"async () => {{ {PROGRAM} {_CALLING} }}")
    await visitor.until("() => film.videoWidth && film.currentTime > 1")
    size = await visitor.page.evaluate("[film.videoWidth, film.videoHeight]")
    assert size == [SPEC.width, SPEC.height]
    await visitor.page.evaluate("line.say('Can I type as well?')")
    await visitor.until(
        "() => told.some((it) => it.type == 'transcript' && it.text.includes('So you can'))"
    )
    await visitor.page.evaluate("line.hangUp()")
    await visitor.until("() => told.some(({ type }) => type == 'ended')")
    kinds = set(await visitor.page.evaluate("told.map(({ type }) => type)"))
    assert {"ready", "transcript", "statistics"} <= kinds


_CALLING = """
  const { avatars } = await (await fetch("/v1/avatars")).json();
  window.told = [];
  window.film = document.createElement("video");
  window.line = await call(avatars[0].id, film, (message) => told.push(message));
"""
