"""A server of the OpenAI Realtime protocol, as its public reference describes it, and strict.

It speaks over real WebSockets, in the released dialect or the beta's. It hears voice by its
energy, makes answers of known sound faster than real time, refuses a response while another runs,
and checks where an item is cut. Tests order it to drop connections, to refuse, and to fail.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

RATE = 24_000
_LOUD = 500  # mean absolute sample
_FRAME = 480  # samples: 20 ms
_PIECE = 4_800  # samples of a delta: 200 ms


@dataclass(frozen=True)
class Script:
    """What the server answers next."""

    text: str = "One two three four."
    seconds: float = 1.0
    level: int = 1000  # of every sample, so that answers can be told apart
    pause: float = 0.002  # between deltas
    error: dict[str, Any] | None = None  # the response fails with this
    tool: tuple[str, str] | None = None  # name and arguments, instead of speech
    silent: bool = False  # nothing ever comes of it


@dataclass
class RealtimeServer:
    """Orders from a test, and what reached the server."""

    beta: bool = False
    key: str = "secret"
    scripts: deque[Script] = field(default_factory=deque)
    transcripts: deque[str] = field(default_factory=deque)
    refuse: int = 0  # HTTP status for the next connections
    refuse_headers: dict[str, str] = field(default_factory=dict)
    cancel_seconds: float = 0.02  # that ending a cancelled response takes
    received: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)  # that it sent
    sessions: list[_Session] = field(default_factory=list)
    url: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def session(self) -> _Session:
        """The newest."""
        return self.sessions[-1]

    def got(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.received if event["type"] == kind]

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    async def drop(self) -> None:
        """End every connection, without a word."""
        for session in self.sessions:
            await session.socket.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.refuse:
            return web.Response(status=self.refuse, headers=self.refuse_headers)
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        session = _Session(self, socket)
        self.sessions.append(session)
        try:
            await session.run()
        finally:
            session.stop()
        return socket


@asynccontextmanager
async def realtime_server(**options: Any) -> AsyncIterator[RealtimeServer]:
    server = RealtimeServer(**options)
    app = web.Application()
    app.router.add_get("/v1/realtime", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"ws://127.0.0.1:{port}/v1/realtime?model=test"
    try:
        yield server
    finally:
        await runner.cleanup()


class Refused(Exception):
    """What the client sent is against the protocol."""

    def __init__(self, code: str, message: str, param: str = "") -> None:
        super().__init__(message)
        self.error = {
            "type": "invalid_request_error",
            "code": code,
            "message": message,
            "param": param,
        }


class _Session:
    """One connection."""

    def __init__(self, server: RealtimeServer, socket: web.WebSocketResponse) -> None:
        self.server = server
        self.socket = socket
        self.items: dict[str, dict[str, Any]] = {}
        self.detection: dict[str, Any] | None = None
        self.configured = False
        self.active: asyncio.Task[None] | None = None
        self._response: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._buffer = bytearray()  # of this connection, all of it
        self._committed = 0  # samples
        self._looked = 0  # samples
        self._quiet = 0  # samples since the last voice
        self._speaking = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self.send("session.created", session=self._described())
        async for message in self.socket:
            if message.type is not WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            self.server.received.append(event)
            try:
                await self._take(event)
            except Refused as refused:
                error = refused.error | {"event_id": event.get("event_id")}
                self.server.errors.append(error)
                await self.send("error", error=error)
            self.server.changed.set()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def send(self, kind: str, **fields: Any) -> None:
        if self.server.beta:
            kind = kind.replace("response.output_audio", "response.audio")
            kind = kind.replace("conversation.item.added", "conversation.item.created")
        event = {"type": kind, "event_id": f"event_{next(self._numbers)}", **fields}
        await self.socket.send_json(event)

    # ---- What the client sends ----

    async def _take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                self._configure(event["session"])
                await self.send("session.updated", session=self._described())
            case "input_audio_buffer.append":
                self._buffer += base64.b64decode(event["audio"], validate=True)
                await self._listen()
            case "input_audio_buffer.commit":
                if len(self._buffer) // 2 - self._committed < RATE // 10:
                    raise Refused("input_audio_buffer_commit_empty", "the buffer is too small")
                await self._commit()
            case "conversation.item.create":
                await self._add(event["item"])
            case "conversation.item.truncate":
                await self._truncate(event)
            case "response.create":
                if self.active is not None:
                    code = "conversation_already_has_active_response"
                    raise Refused(code, "Conversation already has an active response")
                self._spawn_response(event)
            case "response.cancel":
                await self._cancel(event)
            case other:
                raise Refused("unknown_event", f"no such event: {other}")

    def _configure(self, session: dict[str, Any]) -> None:
        known = {"instructions", "tools", "tool_choice", "voice", "model"}
        if self.server.beta:
            known |= {
                "modalities", "input_audio_format", "output_audio_format",
                "input_audio_transcription", "turn_detection",
            }  # fmt: skip
            self.detection = session["turn_detection"]
        else:
            known = (known - {"voice"}) | {"type", "output_modalities", "audio"}
            if session.get("type") != "realtime":
                raise Refused("missing", "session.type is required", "session.type")
            self.detection = session["audio"]["input"]["turn_detection"]
            assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": RATE}
        if unknown := set(session) - known:
            raise Refused("unknown_parameter", f"unknown: {unknown}", f"session.{min(unknown)}")
        self.configured = True

    async def _add(self, item: dict[str, Any]) -> None:
        assert self.configured
        assistant = "text" if self.server.beta else "output_text"
        kinds = {"user": "input_text", "assistant": assistant}
        if item["type"] == "message":
            for part in item["content"]:
                if part["type"] != kinds[item["role"]]:
                    raise Refused("invalid_value", f"{item['role']} cannot say {part['type']}")
        if item["type"] == "function_call_output":
            calls = [it for it in self.items.values() if it["type"] == "function_call"]
            if all(item["call_id"] != call["call_id"] for call in calls):
                raise Refused("invalid_tool_call_id", "no such call in the conversation")
        await self._keep(dict(item))

    async def _keep(self, item: dict[str, Any]) -> dict[str, Any]:
        item["id"] = f"item_{next(self._numbers)}"
        self.items[item["id"]] = item
        await self.send("conversation.item.added", item=item)
        return item

    async def _truncate(self, event: dict[str, Any]) -> None:
        item = self.items.get(event["item_id"])
        if item is None:
            raise Refused("item_not_found", "no such item", "item_id")
        if item.get("role") != "assistant" or event["content_index"] != 0:
            raise Refused("invalid_item", "only what the model said can be cut")
        if item.get("open"):
            raise Refused("item_incomplete", "the item is still being made")
        if not 0 <= event["audio_end_ms"] <= item["ms"]:
            message = f"{event['audio_end_ms']} ms is beyond the {item['ms']} ms there are"
            raise Refused("invalid_value", message, "audio_end_ms")
        item["ms"] = event["audio_end_ms"]
        await self.send("conversation.item.truncated", item_id=item["id"])

    # ---- Hearing ----

    async def _listen(self) -> None:
        samples = np.frombuffer(bytes(self._buffer), "<i2")
        while self.detection is not None and len(samples) >= self._looked + _FRAME:
            frame = samples[self._looked : self._looked + _FRAME]
            self._looked += _FRAME
            loud = np.abs(frame.astype(int)).mean() > _LOUD
            self._quiet = 0 if loud else self._quiet + _FRAME
            if loud and not self._speaking:
                self._speaking = True
                start = (self._looked - _FRAME) * 1000 // RATE
                await self.send("input_audio_buffer.speech_started", audio_start_ms=start)
            elif self._speaking and self._quiet * 1000 // RATE >= self._silence:
                self._speaking = False
                end = (self._looked - self._quiet) * 1000 // RATE
                await self.send("input_audio_buffer.speech_stopped", audio_end_ms=end)
                await self._commit()

    @property
    def _silence(self) -> int:
        assert self.detection is not None
        return int(self.detection["silence_duration_ms"])

    async def _commit(self) -> None:
        self._committed = len(self._buffer) // 2
        await self.send("input_audio_buffer.committed")
        item = await self._keep({"type": "message", "role": "user", "content": []})
        if self.server.transcripts:
            text = self.server.transcripts.popleft()
            item["said"] = text
            kind = "conversation.item.input_audio_transcription.completed"
            await self.send(kind, item_id=item["id"], content_index=0, transcript=text)

    # ---- Answering ----

    def _spawn_response(self, event: dict[str, Any]) -> None:
        assert self.configured
        script = self.server.scripts.popleft() if self.server.scripts else Script()
        self._response = {"id": f"resp_{next(self._numbers)}", "status": "in_progress"}
        self.active = asyncio.create_task(self._respond(script))
        self._keep_task(self.active)

    async def _respond(self, script: Script) -> None:
        await self.send("response.created", response=self._response)
        if script.silent:
            await asyncio.Event().wait()
        if script.error is not None:
            details = {"type": "failed", "error": script.error}
            await self._end("failed", status_details=details)
        elif script.tool is not None:
            name, arguments = script.tool
            call_id = f"call_{next(self._numbers)}"
            item = {"type": "function_call", "name": name, "call_id": call_id}
            item = await self._keep(item | {"arguments": arguments})
            await self._about("response.output_item.done", output_index=0, item=item)
            await self._end("completed")
        else:
            await self._speak(script)

    async def _speak(self, script: Script) -> None:
        item: dict[str, Any] = {"type": "message", "role": "assistant", "ms": 0, "open": True}
        item = await self._keep(item)
        name: dict[str, Any] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        await self._about("response.output_item.added", output_index=0, item=item)
        await self._about("response.content_part.added", **name)
        try:
            for word in script.text.split(" "):
                delta = {"delta": f"{word} ", **name}
                await self._about("response.output_audio_transcript.delta", **delta)
            left = round(script.seconds * RATE)
            while left:
                size = min(left, _PIECE)
                left -= size
                samples = np.full(size, script.level, "<i2").tobytes()
                item["ms"] += size * 1000 // RATE
                delta = {"delta": base64.b64encode(samples).decode(), **name}
                await self._about("response.output_audio.delta", **delta)
                await asyncio.sleep(script.pause)
        finally:
            item["open"] = False
        item["said"] = script.text
        await self._about("response.output_audio.done", **name)
        await self._about("response.output_item.done", output_index=0, item=item)
        await self._end("completed")

    async def _about(self, kind: str, **fields: Any) -> None:
        await self.send(kind, response_id=self._response["id"], **fields)

    async def _end(self, status: str, **fields: Any) -> None:
        self.active = None
        await self.send("response.done", response=self._response | {"status": status, **fields})
        self.server.changed.set()

    async def _cancel(self, event: dict[str, Any]) -> None:
        if self.active is None:
            raise Refused("response_cancel_not_active", "there is no active response")
        if event.get("response_id") not in (None, self._response["id"]):
            raise Refused("response_cancel_not_active", "that response is not active")
        self.active.cancel()
        self._keep_task(asyncio.create_task(self._cancelled()))

    async def _cancelled(self) -> None:
        await asyncio.sleep(self.server.cancel_seconds)
        details = {"type": "cancelled", "reason": "client_cancelled"}
        await self._end("cancelled", status_details=details)

    def _keep_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _described(self) -> dict[str, Any]:
        shape = {"modalities": ["text", "audio"]} if self.server.beta else {"type": "realtime"}
        return {"object": "realtime.session", "id": "sess_1", **shape}
