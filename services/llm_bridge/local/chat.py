"""A chat model behind an OpenAI-compatible URL, its answer streamed word by word.

On the path: dialogue → **chat** → HTTP (server-sent events).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import aiohttp

from services.llm_bridge.local.writer import messages
from services.llm_bridge.persona import Persona
from services.llm_bridge.settings import Chat
from services.llm_bridge.speech_model import Cue, Line
from talkingmachines.errors import (
    Internal,
    NoCapacity,
    PermissionDenied,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)

_RETRY_SECONDS = 2.0
_BETWEEN_SECONDS = 10.0  # between two words


class ChatWriter:
    """A `Writer`."""

    def __init__(self, settings: Chat, http: aiohttp.ClientSession) -> None:
        self.name = settings.model
        self._settings = settings
        self._http = http

    async def write(
        self, persona: Persona, history: Sequence[Line], cue: Cue
    ) -> AsyncIterator[str]:
        settings = self._settings
        body = {
            "model": settings.model,
            "messages": messages(persona, history, cue),
            "stream": True,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }
        key = settings.key.get_secret_value() if settings.key else None
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"{settings.url.rstrip('/')}/chat/completions"
        try:
            async with asyncio.timeout(settings.first_word_seconds) as patience:
                async with self._http.post(url, json=body, headers=headers) as response:
                    if response.status != 200:
                        raise _refusal(response)
                    async for line in response.content:
                        for word in _words(line):
                            now = asyncio.get_running_loop().time()
                            patience.reschedule(now + _BETWEEN_SECONDS)
                            yield word
        except TimeoutError:
            limit = settings.first_word_seconds
            raise TimedOut("the chat model's answer", limit=limit) from None
        except aiohttp.ClientError as error:
            what = f"the chat model cannot be reached: {type(error).__name__}"
            raise Unavailable(what, retry_after=_RETRY_SECONDS) from error


def _words(line: bytes) -> list[str]:
    """The text that an event of the stream carries."""
    field, _, value = line.decode(errors="replace").strip().partition(":")
    value = value.strip()
    if field != "data" or value in ("", "[DONE]"):
        return []
    try:
        event = json.loads(value)
        if "error" in event:
            raise Internal("the chat model broke off with an error")
        texts = [choice["delta"].get("content") for choice in event["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Internal("the chat model sent what is no chat completion") from None
    return [text for text in texts if isinstance(text, str) and text]


def _refusal(response: aiohttp.ClientResponse) -> TalkingMachinesError:
    match response.status:
        case 429:
            return NoCapacity("an answer of the chat model", retry_after=_retry_after(response))
        case 401 | 403:
            return PermissionDenied("the chat model refuses our key")
        case status if status >= 500:
            return Unavailable(f"the chat model answered {status}", retry_after=_RETRY_SECONDS)
        case status:
            return Internal(f"the chat model answered {status}")


def _retry_after(response: aiohttp.ClientResponse) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", _RETRY_SECONDS)))
    except ValueError:
        return _RETRY_SECONDS
