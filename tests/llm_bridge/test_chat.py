"""The chat model behind a URL, over real HTTP: words as they come, and errors by their names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from services.llm_bridge.local.chat import ChatWriter
from services.llm_bridge.persona import Persona
from services.llm_bridge.settings import Chat
from services.llm_bridge.speech_model import Line, Party, Reply
from talkingmachines.errors import (
    Internal,
    NoCapacity,
    PermissionDenied,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LINES = [Line(Party.USER, "Say something.")]


@asynccontextmanager
async def writer(handler: Handler, *, patience: float = 10.0) -> AsyncIterator[ChatWriter]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"
    chat = Chat(url=url, model="m", key=SecretStr("k"), first_word_seconds=patience)
    try:
        async with aiohttp.ClientSession() as http:
            yield ChatWriter(chat, http)
    finally:
        await runner.cleanup()


async def streamed(request: web.Request, *lines: str, pause: float = 0.0) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for line in lines:
        await response.write(line.encode())
        await asyncio.sleep(pause)
    return response


def delta(text: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n"


async def test_words_come_as_they_are_written() -> None:
    body: dict[str, object] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        body.update(await request.json())
        assert request.headers["authorization"] == "Bearer k"
        first = 'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
        comment = ": keep alive\n\n"
        parts = (first, comment, delta("One "), delta(None), delta("two."), "data: [DONE]\n\n")
        return await streamed(request, *parts, pause=0.01)

    async with writer(handler) as one:
        words = [word async for word in one.write(Persona(), LINES, Reply())]
    assert words == ["One ", "two."]
    assert body["stream"] is True
    assert body["messages"][-1] == {"role": "user", "content": "Say something."}  # type: ignore[index]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, PermissionDenied),
        (404, Internal),
        (429, NoCapacity),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_refusals_are_named(status: int, error: type[TalkingMachinesError]) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"retry-after": "7"}, text="secret detail")

    async with writer(handler) as one:
        with pytest.raises(error) as raised:
            await anext(aiter(one.write(Persona(), LINES, Reply())))
    assert "secret" not in str(raised.value)
    if isinstance(raised.value, NoCapacity):
        assert raised.value.retry_after == 7


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("data: {nonsense\n\n", Internal),
        ('data: {"choices": 3}\n\n', Internal),
        ('data: {"error": {"message": "overloaded"}}\n\n', Internal),
    ],
)
async def test_a_stream_that_is_none_is_an_error(
    line: str, error: type[TalkingMachinesError]
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await streamed(request, delta("So "), line)

    async with writer(handler) as one:
        with pytest.raises(error):
            async for _ in one.write(Persona(), LINES, Reply()):
                pass


async def test_silence_and_absence_have_their_limits() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await streamed(request, ": patience\n\n", pause=30)

    async with writer(handler, patience=0.3) as one:
        with pytest.raises(TimedOut):
            await anext(aiter(one.write(Persona(), LINES, Reply())))
    async with aiohttp.ClientSession() as http:
        nobody = ChatWriter(Chat(url="http://127.0.0.1:1/v1", model="m"), http)
        with pytest.raises(Unavailable):
            await anext(aiter(nobody.write(Persona(), LINES, Reply())))
