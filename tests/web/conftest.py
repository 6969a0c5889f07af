"""What tests of the page share: one browser, one site, one event loop for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.gateway.fleet import valkey
from tests.web.chromium import Visitor, chromium, recording, write_voice
from tests.web.site import Site, add_characters, site

QUESTION = Path(__file__).resolve().parents[1] / "llm_bridge" / "clips" / "question.ogg"


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """Its microphone says a sentence of two seconds and a half, every five."""
    voice = write_voice(tmp_path_factory.mktemp("voice") / "voice.wav", recording(QUESTION), 2.5)
    async with chromium(voice) as one:
        yield one


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    # Calls are in real time, and asyncio's debug mode takes several times what a call does.
    asyncio.get_running_loop().set_debug(False)
    with valkey() as redis:
        async with site(redis, tmp_path_factory.mktemp("blobs")) as one:
            await add_characters(one.gateway)
            yield one


@pytest_asyncio.fixture(loop_scope="package")
async def visit(browser: Browser, place: Site) -> AsyncIterator[Callable[..., Awaitable[Visitor]]]:
    """Comes to the page, each time as somebody else; nothing in the page may have gone wrong."""
    visitors = list[Visitor]()

    async def come(url: str = place.url, **given: object) -> Visitor:
        visitors.append(await Visitor.come(browser, url, **given))
        return visitors[-1]

    yield come
    for visitor in visitors:
        await visitor.leave()
    assert [visitor.complaints for visitor in visitors] == [[] for _ in visitors]
    place.recogniser.texts.clear()
    place.writer.answers.clear()
